"""Every call of tritonclient, by the table that users read: docs/clients.md says what becomes of it, and that is what does."""

import asyncio
import json
import queue
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from tests.server.kinds import KINDS, OVER_HTTP, run, tensor

ROOT = Path(__file__).parents[2]
ROWS = np.array([[6.3, 3.3, 6.0, 2.5], [5.1, 3.5, 1.4, 0.2]])
CLASSES = [2, 0]


def table() -> dict[str, tuple[str, str]]:
    """The page's table: what a call does over HTTP and over gRPC, empty where there is no such call."""
    page = (ROOT / "docs/clients.md").read_text()
    return {call: (http, grpc) for call, http, grpc in re.findall(r"^\| `(.+?)` \| *(.*?) *\| *(.*?) *\|", page, re.M)}


TABLE = table()


@pytest.fixture(scope="module")
def iris_in_lane(serve, lane):
    with serve(ROOT / "examples/iris.skops", "--enable_model_control", *lane) as server:
        yield server


@pytest.fixture(scope="module")
def gated(serve, models, lane, gate):
    with serve(f"{models}/gated.py:Gated", *lane, env=gate.environment) as server:
        yield server


def iris(kind, **how):
    return [tensor(kind, "x", ROWS, **how)]


async def predicted(client, kind, outputs=None, sent=None, **how):
    result = await client.infer("iris", sent or iris(kind), outputs=outputs, **how)
    assert result.as_numpy("predict").tolist() == CLASSES


def field(kind, answer, name):
    return answer[name] if kind in OVER_HTTP else getattr(answer, name)


async def live(client, kind):
    assert await client.is_server_live() is True


async def ready(client, kind):
    assert await client.is_server_ready() is True


async def model_ready(client, kind):
    assert await client.is_model_ready("iris") is True


async def server_metadata(client, kind):
    extensions = list(field(kind, await client.get_server_metadata(), "extensions"))
    assert {"classification", "statistics", "model_configuration", "schedule_policy"} <= set(extensions)
    assert not {"system_shared_memory", "cuda_shared_memory", "trace", "logging"} & set(extensions)


async def model_metadata(client, kind):
    assert field(kind, await client.get_model_metadata("iris"), "platform") == "sklearn_skops"


async def in_json(client, kind):
    outputs = [kind.InferRequestedOutput("predict", binary_data=False)]
    await predicted(client, kind, outputs, iris(kind, binary_data=False))


async def best_classes(client, kind):
    wanted = [kind.InferRequestedOutput("predict_proba", class_count=2), kind.InferRequestedOutput("predict")]
    for _ in range(3):
        result = await client.infer("iris", iris(kind), outputs=wanted)
        texts = [[text.decode().split(":") for text in row] for row in result.as_numpy("predict_proba")]
        assert [[(index, label) for _, index, label in row] for row in texts] == [
            [("2", "2"), ("1", "1")],
            [("0", "0"), ("1", "1")],
        ]
        assert all(float(first[0]) > float(second[0]) for first, second in texts)
        assert result.as_numpy("predict").tolist() == CLASSES
    if kind in OVER_HTTP:
        wanted = [kind.InferRequestedOutput("predict_proba", binary_data=False, class_count=1)]
        result = await client.infer("iris", iris(kind, binary_data=False), outputs=wanted)
        assert [text.partition(":")[2] for text in result.get_output("predict_proba")["data"]] == ["2:2", "0:0"]
    result = await client.infer("iris", iris(kind), outputs=[kind.InferRequestedOutput("predict_proba")])
    assert result.as_numpy("predict_proba").shape == (2, 3)


async def compressed(client, kind):
    for algorithm in ("gzip", "deflate"):
        both = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
        await predicted(client, kind, **(both if kind in OVER_HTTP else {"compression_algorithm": algorithm}))


async def scheduled(client, kind):
    await predicted(client, kind, priority=1, timeout=10**6)


async def of_a_sequence(client, kind):
    await predicted(client, kind, sequence_id=7, sequence_start=True)
    await predicted(client, kind, sequence_id=7, sequence_end=True)


async def with_parameters(client, kind):
    await predicted(client, kind, parameters={"mine": 1})


async def async_infer(client, kind):
    if kind is tritonclient.http:
        result = (await client.async_infer("iris", iris(kind))).get_result()
    else:
        answers: queue.Queue = queue.Queue()
        await client.async_infer("iris", iris(kind), lambda result, error: answers.put((result, error)))
        result, error = answers.get(timeout=30)
        assert error is None
    assert result.as_numpy("predict").tolist() == CLASSES


async def body_by_other_means(client, kind):
    body, length = await client.generate_request_body(iris(kind))
    text = json.loads(body[:length])
    assert text["inputs"][0]["parameters"]["binary_data_size"] == ROWS.nbytes == len(body) - length


async def answer_by_other_means(client, kind):
    answer = json.dumps({"model_name": "iris", "outputs": [{"name": "p", "datatype": "INT64", "shape": [1], "data": [2]}]})
    assert (await client.parse_response_body(answer.encode())).as_numpy("p").tolist() == [2]


async def streamed(client, kind):
    answers: queue.Queue = queue.Queue()
    await client.start_stream(lambda result, error: answers.put((result, error)))
    for n in range(10):
        await client.async_stream_infer("iris" if n != 5 else "none", iris(kind), request_id=str(n))
    await client.stop_stream()
    for n in range(10):
        result, error = answers.get_nowait()
        if n == 5:
            assert "unknown model 'none'" in error.message()
        else:
            assert (error, result.get_response().id) == (None, str(n))
            assert result.as_numpy("predict").tolist() == CLASSES


async def stream_infer(client, kind):
    async def requests():
        for n in range(10):
            yield {"model_name": "iris" if n != 5 else "none", "inputs": iris(kind), "request_id": str(n)}

    seen = []
    async for result, error in await client.stream_infer(requests()):
        seen.append(error.message()[:21] if error else result.get_response().id)
    assert seen == [*"01234", "unknown model 'none';", *"6789"]


async def model_config(client, kind):
    answer = await client.get_model_config("iris")
    config = answer if kind in OVER_HTTP else answer.config
    name, most, inputs, outputs = (field(kind, config, n) for n in ("name", "max_batch_size", "input", "output"))
    assert (name, most, len(outputs)) == ("iris", 1024, 4)
    assert list(field(kind, inputs[0], "dims")) == [4]
    batching = field(kind, config, "dynamic_batching")
    assert field(kind, batching, "priority_levels") == 16


async def statistics(client, kind):
    async def read(*which):
        (stats,) = field(kind, await client.get_inference_statistics(*which), "model_stats")
        inside = field(kind, stats, "inference_stats")
        count = [int(field(kind, field(kind, inside, n), "count")) for n in ("success", "fail", "queue", "compute_infer")]
        batches = {
            field(kind, b, "batch_size"): field(kind, field(kind, b, "compute_infer"), "count")
            for b in field(kind, stats, "batch_stats")
        }
        rows = [int(field(kind, stats, n)) for n in ("inference_count", "execution_count", "last_inference")]
        return *count, *rows, batches.get(2, 0), sum(batches.values())

    before = await read("iris")
    await predicted(client, kind)
    with pytest.raises(InferenceServerException):
        await client.infer("iris", [tensor(kind, "x", ROWS[:, :3])])
    after = await read()
    grown = [b - a for a, b in zip(before, after, strict=True)]
    assert grown[:6] == [1, 1, 1, 1, 2, 1]
    assert grown[6] > 0
    assert grown[7:] == [1, 1]
    assert after[5] == after[-1]


async def index(client, kind):
    answer = await client.get_model_repository_index()
    first = answer[0] if kind in OVER_HTTP else answer.models[0]
    assert (field(kind, first, "name"), field(kind, first, "state")) == ("iris", "READY")


async def log_settings(client, kind):
    answer = await client.get_log_settings()
    if kind in OVER_HTTP:
        assert (answer["log_info"], answer["log_verbose_level"], answer["log_format"]) == (True, 0, "ISO8601")
    else:
        found = answer.settings
        assert (found["log_info"].bool_param, found["log_format"].string_param) == (True, "ISO8601")


async def reloaded(client, kind):
    await client.unload_model("iris")
    assert not await client.is_model_ready("iris")
    await client.load_model("iris")
    assert await client.is_model_ready("iris")


async def no_regions(client, kind):
    answer = await client.get_system_shared_memory_status()
    assert answer == [] if kind in OVER_HTTP else len(answer.regions) == 0


async def nothing_to_unregister(client, kind):
    await client.unregister_system_shared_memory()
    await client.unregister_system_shared_memory("mine")


class Plugin:
    def __call__(self, request) -> None:
        request.headers["authorization"] = "Basic bWU6c2VjcmV0"


async def plugins(client, kind):
    await client.register_plugin(Plugin())
    assert await client.plugin() is not None
    await predicted(client, kind)
    await client.unregister_plugin()


async def closed(client, kind):
    """`run` closes each client."""
    await predicted(client, kind)


CALLS = {
    "is_server_live": live,
    "is_server_ready": ready,
    "is_model_ready": model_ready,
    "get_server_metadata": server_metadata,
    "get_model_metadata": model_metadata,
    "infer": predicted,
    "infer(binary_data=False)": in_json,
    "infer(class_count=2)": best_classes,
    "infer(compression)": compressed,
    "infer(priority=1, timeout=10**6)": scheduled,
    "infer(sequence_id=7, sequence_start=True)": of_a_sequence,
    'infer(parameters={"mine": 1})': with_parameters,
    "async_infer": async_infer,
    "generate_request_body": body_by_other_means,
    "parse_response_body": answer_by_other_means,
    "start_stream": streamed,
    "async_stream_infer": streamed,
    "stop_stream": streamed,
    "stream_infer": stream_infer,
    "get_model_config": model_config,
    "get_inference_statistics": statistics,
    "get_model_repository_index": index,
    "load_model": reloaded,
    "unload_model": reloaded,
    "get_log_settings": log_settings,
    "update_log_settings": lambda client, kind: client.update_log_settings({"log_info": False}),
    "get_trace_settings": lambda client, kind: client.get_trace_settings("iris"),
    "update_trace_settings": lambda client, kind: client.update_trace_settings(None, {"trace_rate": "1"}),
    "get_system_shared_memory_status": no_regions,
    "register_system_shared_memory": lambda client, kind: client.register_system_shared_memory("mine", "/mine", 64),
    "unregister_system_shared_memory": nothing_to_unregister,
    "get_cuda_shared_memory_status": lambda client, kind: client.get_cuda_shared_memory_status(),
    "register_cuda_shared_memory": lambda client, kind: client.register_cuda_shared_memory("mine", b"bWluZQ==", 0, 64),
    "unregister_cuda_shared_memory": lambda client, kind: client.unregister_cuda_shared_memory(),
    "register_plugin": plugins,
    "unregister_plugin": plugins,
    "plugin": plugins,
    "close": closed,
}
# Those that need a model which can be kept waiting.
WAITING = ("async_infer().cancel", "infer(client_timeout=0.2)")


def has(kind, call) -> bool:
    return hasattr(kind.InferenceServerClient, call.partition("(")[0])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("call", CALLS)
def test_what_the_page_says_of_a_call_is_what_becomes_of_it(iris_in_lane, kind, call):
    said = TABLE[call][kind not in OVER_HTTP]
    if not said or not has(kind, call):
        assert not has(kind, call) or call == "infer(binary_data=False)"
        return
    if said == "yes":
        run(kind, iris_in_lane, lambda client: CALLS[call](client, kind))
        return
    with pytest.raises(InferenceServerException) as raised:
        run(kind, iris_in_lane, lambda client: CALLS[call](client, kind))
    assert raised.value.status() in (said, f"StatusCode.{said}")
    assert raised.value.message()


def test_the_page_lists_every_call_of_every_kind():
    public = {name for kind in KINDS for name in dir(kind.InferenceServerClient) if not name.startswith("_")}
    assert {call.partition("(")[0] for call in TABLE} == public
    assert list(TABLE) == sorted(TABLE, key=[*CALLS, *WAITING].index) or set(TABLE) == {*CALLS, *WAITING}
    for name in public:
        assert bool(TABLE[name][0]) == any(has(kind, name) for kind in OVER_HTTP)
        assert bool(TABLE[name][1]) == any(has(kind, name) for kind in KINDS if kind not in OVER_HTTP)


def test_the_page_counts_right():
    said = [TABLE[call][kind not in OVER_HTTP] for call in TABLE for kind in KINDS if has(kind, call)]
    exist, work = len([one for one in said if one]), said.count("yes")
    assert f"Of {exist} (a line and a kind that has it) {work} do" in (ROOT / "docs/clients.md").read_text()


def test_the_command_of_the_page_gets_an_answer(iris_in_lane, tmp_path):
    page = (ROOT / "docs/clients.md").read_text()
    (command,) = re.findall(r"```sh\n(.*?)```", page, re.S)
    here = command.replace("http://127.0.0.1:8080", iris_in_lane.http)
    subprocess.run(["bash", "-c", here], cwd=tmp_path, check=True, capture_output=True)
    answer = (tmp_path / "answer").read_bytes()
    result = tritonclient.http.InferenceServerClient.parse_response_body(answer, header_length=answer.index(b"}]}") + 3)
    assert result.as_numpy("predict").shape == (1,)


def whole_number(kind, value):
    return [tensor(kind, "x", np.array([[value]], np.int64))]


@pytest.fixture
def busy(gated, gate, wire, in_flight):
    """The model is at work for somebody for as long as the test lasts; then `gate.rows()` is all that it has seen."""
    with wire(gated.http) as holder:
        body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [1000]}]}
        holder.send("POST", "/v2/models/gated/infer", body)
        with gate.held():
            gate.seen.clear()
            yield gate
        assert holder.read().status == 200
        # whatever was left in the queue has had its turn before this
        body["inputs"][0]["data"] = [99]
        assert holder.ask("POST", "/v2/models/gated/infer", body).status == 200
        assert gate.rows() == [99]


GIVING_UP = [
    "grpc cancel",
    "grpc client_timeout",
    "aio cancel",
    "aio client_timeout",
    "http close",
    "http network_timeout",
    "http aio cancel",
    "stream cancel",
]


@pytest.mark.parametrize("how", GIVING_UP)
def test_what_its_caller_has_given_up_leaves_the_queue_and_is_not_computed(gated, busy, in_flight, wire, how):
    if how.startswith("grpc"):
        with tritonclient.grpc.InferenceServerClient(gated.grpc) as client:
            answers: queue.Queue = queue.Queue()
            timeout = 0.2 if how.endswith("timeout") else None
            call = client.async_infer(
                "gated", whole_number(tritonclient.grpc, 11), lambda result, error: answers.put(error), client_timeout=timeout
            )
            if timeout is None:
                in_flight(gated, 2)
                call.cancel()
            # of the time limit both sides know, and either may say it first
            assert ("cancelled" if timeout is None else "deadline") in answers.get(timeout=30).message().lower()
            in_flight(gated, 1)
    elif how == "http network_timeout":
        address = gated.http.removeprefix("http://")
        with (
            tritonclient.http.InferenceServerClient(address, network_timeout=0.2) as client,
            pytest.raises(TimeoutError, match="timed out"),
        ):
            client.infer("gated", whole_number(tritonclient.http, 11))
        in_flight(gated, 1)
    elif how == "http close":
        with wire(gated.http) as connection:
            body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [11]}]}
            connection.send("POST", "/v2/models/gated/infer", body)
            in_flight(gated, 2)
        in_flight(gated, 1)
    elif how == "stream cancel":
        with tritonclient.grpc.InferenceServerClient(gated.grpc) as client:
            client.start_stream(lambda result, error: None)
            for n in range(5):
                client.async_stream_infer("gated", whole_number(tritonclient.grpc, 11 + n))
            in_flight(gated, 6)
            client.stop_stream(cancel_requests=True)
            in_flight(gated, 1)
    else:
        asyncio.run(_given_up_by_aio(gated, in_flight, how))


async def _given_up_by_aio(gated, in_flight, how):
    kind = tritonclient.http.aio if how.startswith("http") else tritonclient.grpc.aio
    client = kind.InferenceServerClient(gated.http.removeprefix("http://") if how.startswith("http") else gated.grpc)
    timeout = {"client_timeout": 0.2} if how.endswith("timeout") else {}
    task = asyncio.ensure_future(client.infer("gated", whole_number(kind, 11), **timeout))
    if timeout:
        with pytest.raises(InferenceServerException, match="(?i)deadline"):
            await task
    else:
        await asyncio.to_thread(in_flight, gated, 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.to_thread(in_flight, gated, 1)
    await client.close()
