"""A long mixed load on one predictor that keeps changing: `python -m tests.soak --minutes 10 --rate 200`.

An open loop of V1, V2 (JSON, binary tensors) and V2 gRPC calls on a folder of versions.  Every few seconds a new version
appears and an old one goes; of a hundred requests five hang up before the answer, and five are wrong and have to be refused.  A
model of version N answers N times the sum of its row, so every answer tells whether it is right, and of which version.
Ends with a table, and with exit code 1 where an answer was lost or wrong.
"""

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import skops.io
from sklearn.linear_model import LinearRegression
from tritonclient.grpc import service_pb2 as pb

COLUMNS = 4
CHANGE_SECONDS = 5.0
KEPT = 2
ABANDONED, BAD = 0.05, 0.05
NAME = "times"


@dataclass
class Tally:
    """What came of the requests, by protocol; `memory` is (seconds, MiB)."""

    sent: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    abandoned: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    versions: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)

    def add(self, protocol: str, row: list[float], value: float, version: str) -> None:
        """An answer: right where it is a whole multiple of the row's sum, and the multiple of the version that says it ran."""
        self.answered[protocol] += 1
        found = value / sum(row)
        number = round(found)
        if number < 1 or abs(found - number) > 1e-4 or (version and int(version) != number):
            self.wrong.append(f"{protocol}: {value} for {row}, version {version!r}")
        else:
            self.versions[number] += 1


@dataclass
class Clients:
    http: httpx.AsyncClient
    infer: Callable[..., Any]


async def v1(clients: Clients, row: list[Any]) -> tuple[float, str] | str:
    answer = await clients.http.post(f"/v1/models/{NAME}:predict", json={"instances": [row]})
    return answer.text if answer.status_code == 400 else (_ok(answer).json()["predictions"][0], "")


async def v2(clients: Clients, row: list[Any]) -> tuple[float, str] | str:
    tensor = {"name": "x", "shape": [1, len(row)], "datatype": "FP64", "data": row}
    answer = await clients.http.post(f"/v2/models/{NAME}/infer", json={"inputs": [tensor]})
    if answer.status_code == 400:
        return answer.text
    found = _ok(answer).json()
    return found["outputs"][0]["data"][0], found["model_version"]


async def v2_binary(clients: Clients, row: list[Any]) -> tuple[float, str] | str:
    data = np.array([float(v) if isinstance(v, float) else 0.0 for v in row]).tobytes()
    size = len(data) if all(isinstance(v, float) for v in row) else len(data) + 8
    tensor = {"name": "x", "shape": [1, len(row)], "datatype": "FP64", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    answer = await clients.http.post(f"/v2/models/{NAME}/infer", content=head + data, headers=headers)
    if answer.status_code == 400:
        return answer.text
    body = _ok(answer).content
    cut = int(answer.headers["inference-header-content-length"])
    return float(np.frombuffer(body[cut:], np.float64)[0]), json.loads(body[:cut])["model_version"]


async def v2_grpc(clients: Clients, row: list[Any]) -> tuple[float, str] | str:
    request = pb.ModelInferRequest(model_name=NAME)
    tensor = request.inputs.add(name="x", datatype="FP64", shape=[1, len(row)])
    tensor.contents.fp64_contents.extend([v for v in row if isinstance(v, float)])
    try:
        answer = await clients.infer(request)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            return str(error.details())
        raise
    return float(np.frombuffer(answer.raw_output_contents[0], np.float64)[0]), answer.model_version


PROTOCOLS: dict[str, Callable[[Clients, list[Any]], Awaitable[tuple[float, str] | str]]] = {
    "V1": v1,
    "V2": v2,
    "V2 binary": v2_binary,
    "V2 gRPC": v2_grpc,
}


def _ok(answer: httpx.Response) -> httpx.Response:
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.status_code} {answer.text[:200]}")
    return answer


async def one(clients: Clients, tally: Tally, rng: random.Random) -> None:
    protocol = rng.choice(list(PROTOCOLS))
    chance = rng.random()
    row: list[Any] = [round(rng.uniform(1, 9), 2) for _ in range(COLUMNS)]
    tally.sent[protocol] += 1
    began = time.perf_counter()
    if chance < ABANDONED:
        # the server may have answered already: either will do, and neither may hurt anybody
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rng.uniform(0.0005, 0.004)):
                await PROTOCOLS[protocol](clients, row)
        tally.abandoned[protocol] += 1
        return
    is_bad = chance < ABANDONED + BAD
    if is_bad:
        row[rng.randrange(COLUMNS)] = "seven"
    try:
        answer = await PROTOCOLS[protocol](clients, row)
    except Exception as error:
        tally.lost.append(f"{protocol}: {type(error).__name__}: {error}"[:300])
        return
    tally.seconds.append(time.perf_counter() - began)
    if isinstance(answer, str):
        tally.refused[protocol] += 1
        if not is_bad:
            tally.wrong.append(f"{protocol}: a good row was refused: {answer[:200]}")
    elif is_bad:
        tally.wrong.append(f"{protocol}: a bad row was answered: {answer}")
    else:
        tally.add(protocol, row, *answer)


def write_version(folder: Path, number: int) -> None:
    """Half a copy is never a version: it gets its number once it is whole."""
    rows = np.random.default_rng(0).normal(size=(20, COLUMNS))
    made = folder / f".making-{number}"
    made.mkdir()
    skops.io.dump(LinearRegression(fit_intercept=False).fit(rows, number * rows.sum(axis=1)), made / "model.skops")
    made.rename(folder / str(number))


async def change(folder: Path, until: float) -> int:
    number = 1
    while time.monotonic() < until:
        await asyncio.sleep(CHANGE_SECONDS)
        number += 1
        await asyncio.to_thread(write_version, folder, number)
        if number > KEPT:
            shutil.rmtree(folder / str(number - KEPT))
    return number


def resident(pid: int) -> float:
    """MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


async def watch(pid: int, tally: Tally, until: float) -> None:
    began = time.monotonic()
    while time.monotonic() < until:
        tally.memory.append((time.monotonic() - began, resident(pid)))
        await asyncio.sleep(1)


def slope(samples: list[tuple[float, float]]) -> float:
    """MiB a minute, over the last two thirds: what a server takes to warm up is not a leak."""
    later = np.array(samples[len(samples) // 3 :])
    return float(np.polyfit(later[:, 0], later[:, 1], 1)[0] * 60)


async def run(folder: Path, ready: dict[str, Any], pid: int, seconds: float, rate: float, seed: int) -> Tally:
    tally, rng, until = Tally(), random.Random(seed), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
    async with (
        httpx.AsyncClient(base_url=ready["http"], limits=limits, timeout=30) as http,
        grpc.aio.insecure_channel(ready["grpc"]) as channel,
    ):
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        clients = Clients(http, lambda request: infer(request, timeout=30))
        beside = [asyncio.create_task(change(folder, until)), asyncio.create_task(watch(pid, tally, until))]
        calls: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while due < until:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            call = asyncio.create_task(one(clients, tally, rng))
            calls.add(call)
            call.add_done_callback(calls.discard)
            due += 1 / rate
        await asyncio.gather(*calls, *beside)
    return tally


def report(tally: Tally, seconds: float) -> str:
    times = np.sort(np.array(tally.seconds)) * 1e3
    lines = ["| protocol | sent | answered | refused as they should be | hung up |", "|---|--:|--:|--:|--:|"]
    lines += [
        f"| {name} | {tally.sent[name]} | {tally.answered[name]} | {tally.refused[name]} | {tally.abandoned[name]} |"
        for name in PROTOCOLS
    ]
    first, last = tally.memory[len(tally.memory) // 3][1], tally.memory[-1][1]
    lines += [
        "",
        f"{sum(tally.sent.values())} requests in {seconds:.0f} s over {len(tally.versions)} versions: "
        f"{len(tally.lost)} lost, {len(tally.wrong)} wrong; "
        f"p50 {np.percentile(times, 50):.1f} ms, p99 {np.percentile(times, 99):.1f} ms; "
        f"RSS {first:.0f} to {last:.0f} MiB, {slope(tally.memory):+.2f} MiB a minute",
        *[f"lost: {one}" for one in tally.lost[:5]],
        *[f"wrong: {one}" for one in tally.wrong[:5]],
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / NAME
        folder.mkdir()
        write_version(folder, 1)
        flags = ["--model_dir", name, "--version_policy", f"latest:{KEPT}", "--poll_interval", "0.5"]
        flags += ["--http_port", "0", "--grpc_port", "0", "--output", "json"]
        with (Path(name) / "log").open("w") as log:
            server = subprocess.Popen(
                [sys.executable, "-P", "-m", "server", *flags], stdout=subprocess.PIPE, stderr=log, text=True
            )
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            tally = asyncio.run(run(folder, ready, server.pid, options.minutes * 60, options.rate, options.seed))
        finally:
            server.terminate()
            server.wait(60)
    print(report(tally, options.minutes * 60))
    return 1 if tally.lost or tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
