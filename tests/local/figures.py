"""The platform's own figures: `python -m tests.local.figures` deploys on a state directory of its own and prints a table.

Seconds to Ready, idle memory, what Envoy adds to a request, counts of 2 000 requests at three splits, and how long a
weight takes to have effect.  Latencies alternate between the two ways, so that the machine's mood meets both.
"""

import copy
import http.client
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from deployer.local.client import LocalClient
from deployer.local.state import Home
from tests.local.conftest import Platform, until

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
ROW = json.dumps({"instances": [[5.1, 3.5, 1.4, 0.2]]})


class Caller:
    """One keep-alive connection to a service."""

    def __init__(self, url: str, name: str) -> None:
        parts = urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.netloc, timeout=30)
        self.path = f"{parts.path}/v1/models/{name}:predict"

    def __call__(self) -> float:
        self.connection.request("POST", self.path, ROW, {"content-type": "application/json"})
        response = self.connection.getresponse()
        body = response.read()
        assert response.status == 200, body
        return float(json.loads(body)["predictions"][0])


def memory(pid: int) -> float:
    """MB (PSS) of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3


def latencies(ways: dict[str, str], name: str, clients: int, rounds: int = 10, calls: int = 200) -> dict[str, list[float]]:
    """Milliseconds of every call, by way; the ways take turns."""
    callers = {way: [Caller(url, name) for _ in range(clients)] for way, url in ways.items()}
    found: dict[str, list[float]] = {way: [] for way in ways}

    def loop(way: str, caller: Caller) -> None:
        for _ in range(calls // clients):
            started = time.perf_counter()
            caller()
            found[way].append((time.perf_counter() - started) * 1e3)

    for _ in range(rounds):
        for way in ways:
            threads = [threading.Thread(target=loop, args=(way, caller)) for caller in callers[way]]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    return found


def variant(folder: Path, answer: float) -> Path:
    import skops.io
    from sklearn.linear_model import LinearRegression

    path = folder / f"m{answer:g}.skops"
    skops.io.dump(LinearRegression().fit(np.eye(4), np.full(4, answer)), path)
    return path


def with_percent(service: dict, percent: int) -> dict:
    made = copy.deepcopy(service)
    made["spec"]["predictor"]["canaryTrafficPercent"] = percent
    return made


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        platform = Platform(Path(folder) / "home")
        platform.home.mkdir()
        try:
            figures(platform, Path(folder))
        finally:
            platform.serve("platform", "down")


def figures(platform: Platform, folder: Path) -> None:
    for what in ("nothing runs yet", "the platform is up"):
        started = time.monotonic()
        service = platform.object("deploy", EXAMPLES / "iris.skops")
        print(f"serve deploy to Ready, {what}: {time.monotonic() - started:.2f} s")
        if what == "nothing runs yet":
            platform.serve("delete", "iris")
    until(lambda: not any(p["pid"] and not p["ready"] for p in platform.processes()))
    supervisor, envoy = memory(platform.supervisor()), memory(platform.envoy())
    print(f"idle memory (PSS): supervisor {supervisor:.0f} MB, Envoy {envoy:.0f} MB, together {supervisor + envoy:.0f} MB")
    ways = {"direct": f"http://127.0.0.1:{platform.processes()[0]['http_port']}", "Envoy": service["status"]["url"]}
    for clients in (1, 8):
        found = latencies(ways, "iris", clients)
        p50 = {way: statistics.median(ms) for way, ms in found.items()}
        p99 = {way: statistics.quantiles(ms, n=100)[98] for way, ms in found.items()}
        text = ", ".join(f"{way} p50 {p50[way]:.2f} p99 {p99[way]:.2f}" for way in ways)
        print(
            f"{clients} connections: {text}; added p50 {p50['Envoy'] - p50['direct']:.2f} ms, p99 {p99['Envoy'] - p99['direct']:.2f} ms"
        )
    platform.object("deploy", variant(folder, 1), "--name", "m")
    for percent in (10, 50, 90):
        service = platform.object("deploy", variant(folder, 2), "--name", "m", "--canary", percent)
        call = Caller(service["status"]["url"], "m")
        answers = [round(call()) for _ in range(2000)]
        print(f"canary {percent} %: {answers.count(2)} of {len(answers)}")
    client, times = LocalClient(Home(platform.home)), []
    call = Caller(service["status"]["url"], "m")
    for percent, answer in ((0, 1), (100, 2)) * 5:
        # 100 % of a candidate would promote it: its template is kept apart by asking for 99 %
        before = time.perf_counter()
        client.apply(with_percent(service, min(percent, 99)), "known")
        while sum(round(call()) == answer for _ in range(5)) < 5:
            pass
        times.append((time.perf_counter() - before) * 1e3)
    print(f"a new weight has effect after (ms, asking included): median {statistics.median(times):.0f}, most {max(times):.0f}")


if __name__ == "__main__":
    main()
