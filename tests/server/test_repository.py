"""Models and versions come and go while requests run: real folders, real servers, clients as they are published.

models/numbered.py answers with the number that lies in its version's folder, so an answer shows which version made it.
"""

import asyncio
import json
import os
import shutil
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

CODE = Path(__file__).parent / "models" / "numbered.py"
POLL = ("--poll_interval", "0.05")


def lay(folder: Path, number: object, ballast: int = 0) -> Path:
    """A version whose answers are multiples of that number, put in its place at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = folder.with_name(f"{folder.name}.tmp")
    making.mkdir()
    shutil.copy(CODE, making / "model.py")
    (making / "number.txt").write_text(str(number))
    if ballast:
        (making / "ballast.txt").write_text(str(ballast))
    making.rename(folder)
    return folder


def row(value: int = 1) -> dict:
    return {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [value]}]}


def ask(wire, server, path: str, body=None, method: str = ""):
    with wire(server.http) as connection:
        return connection.ask(method or ("GET" if body is None else "POST"), path, b"" if body is None else body)


def answered(wire, server, where: str = "m", value: int = 1) -> tuple[str, int]:
    """(version, result) of a V2 call."""
    answer = ask(wire, server, f"/v2/models/{where}/infer", row(value))
    assert answer.status == 200, answer
    return answer.json["model_version"], answer.json["outputs"][0]["data"][0]


def index(wire, server) -> dict[tuple[str, str], tuple[str, str]]:
    entries = ask(wire, server, "/v2/repository/index", b"", "POST").json
    return {(e["name"], e.get("version", "")): (e["state"], e["reason"]) for e in entries}


def is_ready(wire, server, where: str) -> bool:
    return ask(wire, server, f"/v2/models/{where}/ready").status == 200


@pytest.fixture
def base(tmp_path):
    """A model of one version."""
    lay(tmp_path / "m" / "1", 1)
    return tmp_path / "m"


@pytest.fixture(scope="module")
def several(serve, lane, tmp_path_factory):
    """A repository of two models, with versions and labels, that every test leaves as it found it."""
    root = tmp_path_factory.mktemp("several")
    for version in (1, 2, 3):
        lay(root / "m" / str(version), version)
    lay(root / "other" / "7", 70)
    flags = ("--version_policy", "all", "--label", "stable=1", "--label", "canary=2", *lane)
    with serve(root, *flags) as server:
        yield server


@pytest.mark.parametrize(
    ("where", "version", "result"),
    [
        ("m", "3", 3),
        ("m/versions/1", "1", 1),
        ("m/versions/3", "3", 3),
        ("m/labels/stable", "1", 1),
        ("m/labels/canary", "2", 2),
        ("m/versions/stable", "1", 1),
        ("other", "7", 70),
        ("other/versions/7", "7", 70),
    ],
)
def test_a_request_reaches_the_version_that_it_names_over_every_protocol(several, wire, where, version, result):
    assert answered(wire, several, where) == (version, result)
    v1 = ask(wire, several, f"/v1/models/{where}:predict", {"instances": [[1]]})
    assert v1.json == {"predictions": [result]}
    assert is_ready(wire, several, where)
    metadata = ask(wire, several, f"/v2/models/{where}").json
    assert metadata["versions"] == (["1", "2", "3"] if where.startswith("m") else ["7"])
    model, _, named = where.partition("/")
    with tritonclient.grpc.InferenceServerClient(several.grpc) as client:
        answer = client.infer(model, [ones(tritonclient.grpc)], named.rpartition("/")[2]).get_response()
        assert (answer.model_version, np.frombuffer(answer.raw_output_contents[0], "<i8").tolist()) == (version, [result])
        assert client.is_model_ready(model, named.rpartition("/")[2])


def ones(kind):
    given = kind.InferInput("x", [1, 1], "INT64")
    given.set_data_from_numpy(np.array([[1]]))
    return given


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("m/versions/4", "model 'm' has no version '4'; it has: 1, 2, 3; labels: stable=1, canary=2"),
        ("m/versions/stabel", "model 'm' has no version or label 'stabel'; did you mean 'stable'?; it has: 1, 2, 3; labels:"),
        ("m/labels/stabel", "model 'm' has no version or label 'stabel'; did you mean 'stable'?; it has: 1, 2, 3; labels:"),
        ("m/labels/1", "model 'm' has no label '1'; it has: 1, 2, 3"),
        ("m/labels/%31", "model 'm' has no label '1'; it has: 1, 2, 3"),
        ("m/versions/99999999999999999999", "model 'm' has no version '99999999999999999999'"),
        ("other/labels/stable", "model 'other' has no version or label 'stable'; it has: 7"),
        ("others/labels/stable", "unknown model 'others'; did you mean 'other'?; models here: m, other"),
    ],
)
def test_what_there_is_not_is_told_with_what_there_is(several, wire, path, text):
    for method, where, body in (
        ("POST", f"/v2/models/{path}/infer", row()),
        ("POST", f"/v1/models/{path}:predict", {"instances": [[1]]}),
        ("GET", f"/v2/models/{path}/ready", b""),
        ("GET", f"/v2/models/{path}", b""),
    ):
        answer = ask(wire, several, where, body, method)
        # TensorFlow Serving's clients know a label that is none by this code
        code = 400 if where.startswith("/v1/") and "has no version or label" in text and "/labels/" in path else 404
        assert (answer.status, answer.error[: len(text)]) == (code, text), where
    model, _, version = path.partition("/")
    if version.startswith("versions/"):
        with (
            tritonclient.grpc.InferenceServerClient(several.grpc) as client,
            pytest.raises(InferenceServerException, match="has no"),
        ):
            client.infer(model, [ones(tritonclient.grpc)], version.removeprefix("versions/"))


def test_every_version_is_in_the_index_and_in_the_metrics_and_in_what_the_server_says(several, wire, metrics):
    assert index(wire, several) == dict.fromkeys((("m", "1"), ("m", "2"), ("m", "3"), ("other", "7")), ("READY", ""))
    answered(wire, several, "m/labels/canary")
    counts = metrics(several)
    assert counts['serve_model_state{model="m",state="READY",version="2"}'] == 1
    named = 'serve_request_duration_seconds_count{code="200",method="infer",model="m",protocol="v2",version="2"}'
    assert counts[named] >= 1
    told = {m["name"]: (m["labels"], [v["version"] for v in m["versions"]]) for m in several.info["models"]}
    assert told == {"m": ({"stable": "1", "canary": "2"}, ["1", "2", "3"]), "other": ({}, ["7"])}
    assert ask(wire, several, "/v2/models").json == {"models": ["m", "other"]}


def test_a_folder_of_versions_is_one_model_and_its_name_may_be_chosen(serve, base, wire):
    lay(base / "2", 2)
    with serve(base) as server:
        assert (server.name, answered(wire, server)) == ("m", ("2", 2))
        # latest: the other one is not served
        assert ask(wire, server, "/v2/models/m").json["versions"] == ["2"]
        assert ask(wire, server, "/v2/models/m/versions/1/infer", row()).status == 404
    with serve(base.parent, "--model_name", "named", "--version_policy", "specific:1") as server:
        assert answered(wire, server, "named") == ("1", 1)
    lay(base.parent / "n" / "1", 1)
    with (
        pytest.raises(RuntimeError, match="holds several models: m, n; they are called as their folders are"),
        serve(base.parent, "--model_name", "named"),
    ):
        pass


def test_labels_of_a_model_without_versions_are_a_mistake(serve, models):
    with pytest.raises(RuntimeError, match="labels are for versions"), serve(f"{models}/sums.py:Sums", "--label", "a=1"):
        pass


def test_a_new_version_appears_by_itself_and_the_old_one_goes(serve, base, wire, until, lane):
    with serve(base, *POLL, *lane) as server:
        assert answered(wire, server) == ("1", 1)
        lay(base / "2", 2)
        until(lambda: answered(wire, server) == ("2", 2), "the new version")
        until(lambda: index(wire, server).get(("m", "1")) == ("UNAVAILABLE", "unloaded"), "the end of the old one")
        answer = ask(wire, server, "/v2/models/m/versions/1/infer", row())
        assert (answer.status, answer.error) == (404, "model 'm' version '1' is unloaded; it has: 2")
        # and a new model, which was nobody's before
        assert is_ready(wire, server, "m")


def test_a_new_model_appears_by_itself_and_one_that_is_bad_keeps_nobody_from_answering(serve, base, wire, until):
    lay(base.parent / "bad" / "1", "no number")
    with serve(base.parent, *POLL) as server:
        assert answered(wire, server) == ("1", 1)
        state, reason = index(wire, server)["bad", "1"]
        assert (state, "ValueError" in reason) == ("UNAVAILABLE", True)
        # it was there at the start, so this server is not whole without it
        assert ask(wire, server, "/v2/health/ready").status == 503
        assert ask(wire, server, "/v2/models/bad/infer", row()).status == 503
        (base.parent / "bad" / "1" / "number.txt").write_text("5")
        until(lambda: ask(wire, server, "/v2/health/ready").status == 200, "ready")
        assert answered(wire, server, "bad") == ("1", 5)
        # one that comes later is not missed before it was there
        lay(base.parent / "late" / "1", "no number")
        until(lambda: ("late", "1") in index(wire, server), "the new model")
        assert ask(wire, server, "/v2/health/ready").status == 200


def test_a_version_that_fails_leaves_the_old_one_in_its_place_and_is_tried_again_when_its_files_change(
    serve, base, wire, until, metrics
):
    with serve(base, *POLL) as server:
        folder = lay(base / "2", "no number")
        until(lambda: index(wire, server).get(("m", "2"), ("",))[0] == "UNAVAILABLE", "the failure")
        reason = index(wire, server)["m", "2"][1]
        assert "invalid literal for int()" in reason
        assert answered(wire, server) == ("1", 1)
        assert ask(wire, server, "/v2/health/ready").status == 200
        assert metrics(server)['serve_model_load_failures_total{model="m"}'] == 1
        assert "a version could not be loaded" in server.stderr
        refused = ask(wire, server, "/v2/models/m/versions/2/infer", row())
        assert (refused.status, "model 'm' version '2' is not ready, it is FAILED" in refused.error) == (503, True)
        (folder / "number.txt").write_text("2")
        until(lambda: answered(wire, server) == ("2", 2), "the second try")
        assert metrics(server)['serve_model_load_failures_total{model="m"}'] == 1


def test_what_is_being_copied_is_left_alone_until_it_is_whole(serve, base, wire, until):
    """A file that grows from look to look is not, however often somebody looks."""
    with serve(base, "--poll_interval", "0.4", "--version_policy", "all") as server:
        (base / "2").mkdir()
        shutil.copy(CODE, base / "2" / "model.py")
        growing, done = base / "2" / "number.txt", threading.Event()

        def copy():
            while not done.wait(0.002):
                with growing.open("a") as file:
                    file.write("0")

        copying = threading.Thread(target=copy)
        copying.start()
        try:
            # so many looks later
            lay(base / "3", 3)
            until(lambda: answered(wire, server) == ("3", 3), "a version that is whole")
            lay(base / "4", 4)
            until(lambda: answered(wire, server) == ("4", 4), "another one")
            assert ("m", "2") not in index(wire, server)
        finally:
            done.set()
            copying.join()
        growing.write_text("2")
        until(lambda: is_ready(wire, server, "m/versions/2"), "the whole version")
        assert answered(wire, server, "m/versions/2") == ("2", 2)


def test_what_was_half_there_at_the_start_is_loaded_again_when_it_is_whole(serve, base, wire, until):
    """At the start nobody waits for a second look, so what was loaded is looked at once more."""
    with serve(base, "--poll_interval", "0.5") as server:
        (base / "1" / "number.txt").write_text("11")
        until(lambda: answered(wire, server) == ("1", 11), "the whole version")


def test_a_version_that_vanishes_is_unloaded_unless_it_is_the_last(serve, base, wire, until):
    lay(base / "2", 2)
    with serve(base, *POLL, "--version_policy", "all") as server:
        shutil.rmtree(base / "1")
        until(lambda: index(wire, server).get(("m", "1")) == ("UNAVAILABLE", "unloaded"), "the end of version 1")
        shutil.rmtree(base / "2")
        until(lambda: "has gone from" in server.stderr, "the warning")
        assert answered(wire, server) == ("2", 2)
        assert ask(wire, server, "/v2/health/ready").status == 200


def test_a_request_that_is_under_way_is_answered_by_its_version_which_then_closes(serve, base, wire, until, gate, lane):
    gate.seen.clear()
    with serve(base, *POLL, *lane, env=gate.environment) as server, wire(server.http) as http:
        http.send("POST", "/v2/models/m/infer", row(1000))
        with grpc.insecure_channel(server.grpc), tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            given = tritonclient.grpc.InferInput("x", [1, 1], "INT64")
            given.set_data_from_numpy(np.array([[2000]]))
            answers: list = []
            with gate.entered():
                client.async_infer("m", [given], lambda result, error: answers.append((result, error)))
                second = gate.entered()
                lay(base / "2", 2)
                until(lambda: answered(wire, server) == ("2", 2), "the new version")
                until(lambda: index(wire, server)[("m", "1")] == ("UNLOADING", ""), "the old one to be on its way out")
                assert [1] not in gate.seen
            answer = http.read()
            assert (answer.json["model_version"], answer.json["outputs"][0]["data"]) == ("1", [1000])
            second.close()
            until(lambda: answers, "the answer over gRPC")
            ((result, error),) = answers
            assert (error, result.get_response().model_version, result.as_numpy("y").tolist()) == (None, "1", [2000])
        until(lambda: index(wire, server)[("m", "1")] == ("UNAVAILABLE", "unloaded"), "the end")
        # its close was called, after its last request
        assert gate.seen[-1] == [1]


def test_a_request_that_failed_keeps_nothing_alive(serve, base, wire, until, lane):
    """An exception has a traceback, which has the request, which has the version."""
    with serve(base, *POLL, *lane) as server:
        for _ in range(3):
            assert ask(wire, server, "/v2/models/m/infer", row("x")).status == 400
        # twice: then the head and the frame are kept
        for _ in range(5):
            answered(wire, server)
        lay(base / "2", 2)
        until(lambda: index(wire, server).get(("m", "1")) == ("UNAVAILABLE", "unloaded"), "the end of version 1")


@contextmanager
def traffic(server, kinds):
    """Calls over every client for as long as the block lasts; each answer as (version, row, result), or what went wrong."""
    answers: list = []
    stop = threading.Event()

    def http():
        with tritonclient.http.InferenceServerClient(server.http.removeprefix("http://")) as client:
            loop(client, tritonclient.http, lambda r: r.get_response().get("model_version"))

    def over_grpc():
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            loop(client, tritonclient.grpc, lambda r: r.get_response().model_version)

    def loop(client, kind, version):
        value = 0
        while not stop.is_set():
            value = value % 500 + 1
            given = kind.InferInput("x", [1, 1], "INT64")
            given.set_data_from_numpy(np.array([[value]]))
            try:
                result = client.infer("m", [given])
                answers.append((version(result), value, int(result.as_numpy("y")[0])))
            except Exception as error:
                answers.append((error, value, 0))

    threads = [threading.Thread(target=work) for work in (http, over_grpc) for _ in range(kinds)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_reloads_under_load_lose_no_request_and_no_answer_is_a_mixture(serve, base, wire, until, lane):
    with serve(base, *POLL, *lane) as server, traffic(server, 2) as answers:
        for version in range(2, 7):
            lay(base / str(version), version)
            until(lambda version=version: any(a[0] == str(version) for a in answers[-50:]), f"version {version}")
        until(lambda: len(index(wire, server)) <= 4, "the old ones to be forgotten")
    wrong = [a for a in answers if isinstance(a[0], Exception) or a[2] != int(a[0]) * a[1]]
    assert (len(answers) > 100, wrong) == (True, [])
    assert {a[0] for a in answers} == {"1", "2", "3", "4", "5", "6"}


def test_one_version_whose_files_were_replaced_is_loaded_anew_under_load_on_request(serve, base, wire, lane):
    with serve(base, "--enable_model_control", *lane) as server, traffic(server, 1) as answers:
        for number in (21, 31):
            (base / "1" / "number.txt").write_text(str(number))
            assert ask(wire, server, "/v2/repository/models/m/load", b"", "POST").status == 200
            assert answered(wire, server) == ("1", number)
        (base / "1" / "number.txt").write_text("none")
        refused = ask(wire, server, "/v2/repository/models/m/load", b"", "POST")
        assert (refused.status, "could not be loaded" in refused.error) == (400, True)
        assert answered(wire, server) == ("1", 31)
    assert [a for a in answers if a[0] != "1" or a[2] not in (a[1], 21 * a[1], 31 * a[1])] == []


def test_a_model_without_versions_can_be_loaded_anew_on_request(serve, base, wire):
    with serve(f"{base}/1/model.py:Numbered", "--model_name", "m", "--enable_model_control") as server:
        (base / "1" / "model.py").write_text(CODE.read_text().replace("rows * self.number", "rows * self.number + 7"))
        for path, result in (("load", 8), ("unload", None), ("load", 8)):
            assert ask(wire, server, f"/v2/repository/models/m/{path}", b"", "POST").status == 200
            answer = ask(wire, server, "/v2/models/m/infer", row())
            assert (answer.status, "outputs" in answer.json and answer.json["outputs"][0]["data"]) == (
                (200, [result]) if result else (404, False)
            )
        assert "model_version" not in answer.json


def test_a_load_whose_caller_has_gone_comes_to_its_end(serve, base, wire, until, gate):
    flags = ("--enable_model_control", "--poll_interval", "0", "--version_policy", "all")
    with serve(base.parent, *flags, env=gate.environment) as server:
        folder = lay(base.parent / "slow" / "1", 3)
        (folder / "model.py").write_text(
            CODE.read_text().replace("def load(self, folder):", "def load(self, folder):\n        _tell([1000])")
        )
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            with pytest.raises(InferenceServerException, match="Deadline"):
                client.load_model("slow", client_timeout=0.3)
            with gate.entered():
                assert index(wire, server)["slow", "1"] == ("LOADING", "")
            until(lambda: index(wire, server)["slow", "1"] == ("READY", ""), "the model to be ready")


def test_what_was_unloaded_leaves_no_trace_in_the_metrics_after_a_while(serve, base, wire, until, metrics):
    with serve(base, *POLL) as server:
        for version in range(2, 7):
            lay(base / str(version), version)
            until(lambda version=version: answered(wire, server) == (str(version), version), f"version {version}")
        until(lambda: not [key for key in metrics(server) if 'version="1"' in key], "the end of version 1's samples")
        assert sorted(v for _, v in index(wire, server)) == ["3", "4", "5", "6"]
        assert metrics(server)['serve_model_state{model="m",state="UNLOADED",version="5"}'] == 1


# model control


KINDS = (tritonclient.http, tritonclient.grpc, tritonclient.http.aio, tritonclient.grpc.aio)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


def run(kind, server, use):
    """`use(call)` with tritonclient's client of that kind, where `call(name, …)` is one of its methods."""

    async def main():
        client = kind.InferenceServerClient(server.grpc if "grpc" in kind.__name__ else server.http.removeprefix("http://"))

        async def call(name, *args, **kwargs):
            answer = getattr(client, name)(*args, **kwargs)
            return await answer if asyncio.iscoroutine(answer) else answer

        try:
            return await use(call)
        finally:
            closing = client.close()
            if asyncio.iscoroutine(closing):
                await closing

    return asyncio.run(main())


def entries(answer) -> dict[tuple[str, str], str]:
    if isinstance(answer, list):
        return {(e["name"], e["version"]): e["state"] for e in answer}
    return {(e.name, e.version): e.state for e in answer.models}


@pytest.fixture(scope="module")
def controlled(serve, lane, tmp_path_factory):
    root = tmp_path_factory.mktemp("controlled")
    lay(root / "m" / "1", 1)
    lay(root / "other" / "1", 1)
    with serve(root, "--enable_model_control", "--poll_interval", "0", *lane) as server:
        server.root = root
        yield server


def test_tritons_client_unloads_and_loads_a_model(kind, controlled, until, wire):
    async def use(call):
        assert entries(await call("get_model_repository_index"))["m", "1"] == "READY"
        await call("unload_model", "m")
        assert not await call("is_model_ready", "m")
        assert await call("is_model_ready", "other")
        assert await call("is_server_ready")
        with pytest.raises(InferenceServerException, match="model 'm' is unloaded"):
            await call("get_model_metadata", "m")
        until(lambda: index(wire, controlled)["m", "1"] == ("UNAVAILABLE", "unloaded"), "the end")
        await call("unload_model", "m")
        await call("load_model", "m")
        assert await call("is_model_ready", "m")
        await call("load_model", "m")
        assert entries(await call("get_model_repository_index")) == {("m", "1"): "READY", ("other", "1"): "READY"}

    run(kind, controlled, use)
    assert answered(wire, controlled) == ("1", 1)


@pytest.mark.parametrize(
    ("call_and_arguments", "status", "code", "text"),
    [
        (("load_model", "n"), 404, "NOT_FOUND", "the repository has no model 'n'"),
        (("load_model", "othr"), 404, "NOT_FOUND", "did you mean 'other'?; it has: "),
        (("unload_model", "othr"), 404, "NOT_FOUND", "did you mean 'other'?"),
        (("load_model", "m", {"config": "{}"}), 501, "UNIMPLEMENTED", "parameter 'config' would bring"),
        (("load_model", "bad"), 400, "INVALID_ARGUMENT", "model 'bad' version 1 could not be loaded: Numbered.load() failed"),
    ],
)
def test_tritons_client_is_told_why_not(kind, controlled, call_and_arguments, status, code, text):
    (name, model, *more) = call_and_arguments
    if model == "bad" and not (controlled.root / "bad").exists():
        lay(controlled.root / "bad" / "1", "no number")

    async def use(call):
        with pytest.raises(InferenceServerException) as raised:
            await call(name, model, **({"config": more[0]["config"]} if more else {}))
        return raised.value

    error = run(kind, controlled, use)
    assert text in error.message()
    assert error.status() == (f"StatusCode.{code}" if "grpc" in kind.__name__ else str(status))


def test_files_in_a_request_are_refused(kind, controlled):
    async def use(call):
        with pytest.raises(InferenceServerException, match="does not take"):
            await call("load_model", "m", config="{}", files={"file:1/model.py": b"code"})

    run(kind, controlled, use)


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 200, ""),
        (b"{}", 200, ""),
        (b'{"parameters": {}}', 200, ""),
        (b"[]", 400, "expected"),
        (b'{"parameters": 3}', 400, "expected"),
        (b'{"parameters": {"confg": ""}}', 400, "unknown parameter 'confg'"),
        (b"{", 400, "not valid JSON"),
    ],
)
def test_the_body_of_a_load_may_be_empty(controlled, wire, body, status, text):
    for path in ("/v2/repository/models/m/load", "/v2/repository/any/models/m/load"):
        answer = ask(wire, controlled, path, body, "POST")
        assert answer.status == status
        assert (answer.body == b"") if status == 200 else (text in answer.error)


def test_without_the_flag_nobody_loads_or_unloads(kind, several):
    async def use(call):
        for name in ("load_model", "unload_model"):
            with pytest.raises(InferenceServerException, match="--enable_model_control") as raised:
                await call(name, "m")
            assert raised.value.status() in ("403", "StatusCode.PERMISSION_DENIED")

    run(kind, several, use)


def test_of_several_workers_none_loads_alone_and_each_follows_the_folder(serve, base, wire, until):
    with serve(base, *POLL, "--workers", "2", "--enable_model_control") as server:
        refused = ask(wire, server, "/v2/repository/models/m/load", b"", "POST")
        assert (refused.status, "--workers" in refused.error) == (501, True)
        lay(base / "2", 2)
        until(lambda: {answered(wire, server) for _ in range(12)} == {("2", 2)}, "the new version in both")


# labels and configuration


def configure(file: Path, **models) -> Path:
    """A configuration file in its place at once: `m={"path": …}`."""
    making = file.with_name("making")
    making.write_text(json.dumps({"models": [{"name": name, **told} for name, told in models.items()]}))
    making.rename(file)
    return file


@contextmanager
def configured(serve, file, *flags):
    """A server of a configuration file."""
    with serve("", "--model_config_file", str(file), *flags) as server:
        yield server


@pytest.fixture
def file(tmp_path, base):
    lay(base / "2", 2)
    both = {"path": "m", "versions": "all", "labels": {"stable": 1, "canary": 2}}
    return configure(tmp_path / "models.json", m=both)


def test_a_label_moves_under_load_from_one_version_to_the_other_and_never_in_between(serve, file, wire, until):
    with configured(serve, file, *POLL) as server:
        seen: list = []
        stop = threading.Event()

        def look():
            while not stop.is_set():
                seen.append(answered(wire, server, "m/labels/stable"))

        looking = threading.Thread(target=look)
        looking.start()
        try:
            until(lambda: len(seen) > 5, "answers")
            configure(file, m={"path": "m", "versions": "all", "labels": {"stable": 2, "canary": 2}})
            until(lambda: seen[-1] == ("2", 2), "the label to move")
        finally:
            stop.set()
            looking.join()
        # the one, and from some request on the other
        assert seen == sorted(seen)
        assert set(seen) == {("1", 1), ("2", 2)}


def test_a_label_waits_for_its_version(serve, file, base, wire, until):
    with configured(serve, file, *POLL) as server:
        configure(file, m={"path": "m", "labels": {"stable": 3}})
        until(lambda: "points to version 3, which is not ready" in server.stderr, "what is told")
        assert answered(wire, server, "m/labels/stable") == ("1", 1)
        assert ask(wire, server, "/v2/models/m/labels/canary/infer", row()).status == 404
        lay(base / "3", 3)
        until(lambda: answered(wire, server, "m/labels/stable") == ("3", 3), "the label to move")


def test_a_configuration_that_changed_is_followed_and_a_bad_one_changes_nothing(serve, file, base, wire, until):
    with configured(serve, file, *POLL) as server:
        lay(base.parent / "n" / "5", 5)
        file.write_text("{")
        until(lambda: "models.json is not JSON" in server.stderr, "what is told")
        assert answered(wire, server, "m/labels/stable") == ("1", 1)
        configure(file, n={"path": "n"}, m={"path": "m"})
        until(lambda: is_ready(wire, server, "n"), "the new model")
        until(lambda: index(wire, server).get(("m", "1")) == ("UNAVAILABLE", "unloaded"), "the end of a version")
        configure(file, n={"path": "n"})
        until(lambda: list(index(wire, server)) == [("n", "5")], "the end of a model")
        answer = ask(wire, server, "/v2/models/m/infer", row())
        assert (answer.status, answer.error) == (404, "unknown model 'm'; models here: n")
        # one of two that is wrong keeps the other from nothing, and what answered goes on
        configure(file, n={"path": "absent"}, m={"path": "m"})
        until(lambda: is_ready(wire, server, "m"), "the model that is right")
        assert answered(wire, server, "n") == ("5", 5)


def test_a_hangup_has_the_configuration_read_at_once(serve, file, wire, until):
    with configured(serve, file, "--poll_interval", "0") as server:
        configure(file, m={"path": "m", "versions": "all", "labels": {"stable": 2}})
        assert answered(wire, server, "m/labels/stable") == ("1", 1)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: answered(wire, server, "m/labels/stable") == ("2", 2), "the label to move")
        file.write_text("{")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "models.json is not JSON" in server.stderr, "what is told")
        assert answered(wire, server, "m/labels/stable") == ("2", 2)


def test_a_hangup_reaches_all_workers(serve, file, wire, until):
    with configured(serve, file, "--poll_interval", "0", "--workers", "2") as server:
        configure(file, m={"path": "m", "versions": "all", "labels": {"stable": 2}})
        server.process.send_signal(signal.SIGHUP)
        until(lambda: {answered(wire, server, "m/labels/stable") for _ in range(12)} == {("2", 2)}, "both")


def test_a_model_that_is_not_required_keeps_nobody_from_being_ready(serve, file, wire):
    configure(file, m={"path": "m"}, absent={"path": "absent", "required": False})
    with configured(serve, file) as server:
        assert ask(wire, server, "/v2/health/ready").status == 200
        state, reason = index(wire, server)["absent", ""]
        assert (state, "there is no such file or folder" in reason) == ("UNAVAILABLE", True)


def test_where_no_model_can_be_served_the_process_ends_and_says_why_of_each(serve, tmp_path):
    for name in ("a", "b"):
        lay(tmp_path / name / "1", f"not {name}")
    with pytest.raises(RuntimeError) as raised, serve(tmp_path):
        pass
    last = str(raised.value).splitlines()[-1]
    assert last.startswith("serve: no model can be served: a: ")
    assert "not b" in last


def test_the_settings_name_one_source_of_models(serve, file, base):
    with pytest.raises(RuntimeError, match="two sources of models given"), serve(base, "--model_config_file", str(file)):
        pass


def test_the_memory_of_a_version_comes_back(serve, base, wire, until):
    """Versions of 40 MB one after the other, in cycles, which the garbage collector has been told to let be."""
    with serve(base, *POLL) as server:
        memory, sizes = Path(f"/proc/{server.process.pid}/statm"), []
        for version in range(2, 9):
            lay(base / str(version), version, ballast=40_000_000)
            until(lambda version=version: answered(wire, server) == (str(version), version), f"version {version}")
            old = "m", str(version - 1)
            until(lambda old=old: index(wire, server).get(old) == ("UNAVAILABLE", "unloaded"), "the end of the one before")
            sizes.append(int(memory.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
    assert max(sizes) - sizes[0] < 60, sizes
