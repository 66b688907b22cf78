"""A real Envoy between an open loop of requests and processes that are killed, stopped, poisoned and replaced under it."""

import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import grpc
import pytest

from deployer.local.envoy import Backend, Endpoint, EnvoyOptions, HeaderRoute, Mirror, ServiceRoutes
from deployer.local.proxy import Proxy
from loadtests.openloop import Load

UPSTREAM = Path(__file__).parent / "upstream.py"
EXAMPLES = Path(__file__).parents[2] / "examples"
ONE, TWO = "iris-predictor-00001", "iris-predictor-00002"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(found, what: str, seconds: float = 20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        threading.Event().wait(0.002)
    raise AssertionError(f"{what} did not happen within {seconds:g} s")


class Upstream:
    """A stand-in for a predictor that can be killed and started again on its ports."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.file = name, folder / name
        self.endpoint = Endpoint(free_port(), free_port())
        self.process: subprocess.Popen | None = None
        self.be_ready()

    def be_ready(self, ready: bool = True) -> None:
        mark = Path(f"{self.file}.ready")
        mark.touch() if ready else mark.unlink()

    def start(self) -> "Upstream":
        ports = [str(self.endpoint.http_port), str(self.endpoint.grpc_port)]
        self.process = subprocess.Popen([sys.executable, "-P", str(UPSTREAM), self.name, *ports, str(self.file)])
        return self

    def started(self) -> "Upstream":
        self.start()
        until(lambda: self.answers("/v2/health/ready"), f"{self.name} answers")
        return self

    def answers(self, path: str) -> bool:
        connection = HTTPConnection("127.0.0.1", self.endpoint.http_port, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().status > 0
        except OSError:
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def runs(self) -> int:
        """How often a poisoned body was read."""
        runs = Path(f"{self.file}.runs")
        return len(runs.read_text().splitlines()) if runs.exists() else 0


class Stand:
    """An Envoy, its proxy, and what stands behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.options = EnvoyOptions(folder / "envoy", free_port(), folder / "admin.sock", folder / "logs" / "access.log")
        self.proxy = Proxy(self.options)
        self.upstreams: list[Upstream] = []
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.proxy.command())
        until(self.proxy.ready, "Envoy is ready")

    def upstream(self, name: str) -> Upstream:
        found = Upstream(name, self.folder).started()
        self.upstreams.append(found)
        return found

    def service(self, *backends: Backend, name: str = "iris", port: int = 0, timeout: float = 20.0, **more) -> ServiceRoutes:
        return ServiceRoutes("default", name, port or free_port(), timeout, backends, **more)

    def url(self, name: str = "iris") -> str:
        return f"http://127.0.0.1:{self.options.port}/serving/default/{name}/v2/models/{name}/infer"

    def apply(self, *services: ServiceRoutes) -> None:
        self.proxy.apply(services)
        assert self.proxy.rejected() == ""
        assert self.proxy.wait_applied(5)

    def ask(self, path: str = "/", body: bytes | None = None, port: int = 0, **headers: str):
        connection = HTTPConnection("127.0.0.1", port or self.options.port, timeout=30)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("GET" if body is None else "POST", path, body, names)
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), json.loads(answer.read())
        finally:
            connection.close()

    def close(self) -> None:
        for process in [self.process, *(u.process for u in self.upstreams)]:
            if process is not None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()


@contextmanager
def stand_in(folder: Path):
    stand = Stand(folder)
    try:
        stand.proxy.apply([])
        stand.start()
        yield stand
    finally:
        stand.close()


@pytest.fixture
def stand(tmp_path_factory):
    with stand_in(tmp_path_factory.mktemp("e")) as stand:
        yield stand


@pytest.fixture
def two(stand):
    """(stand, a, b): one backend with two endpoints."""
    a, b = stand.upstream("a"), stand.upstream("b")
    stand.apply(stand.service(Backend(ONE, 100, (a.endpoint, b.endpoint))))
    return stand, a, b


@pytest.fixture
def single(stand):
    """(stand, a): one backend with one endpoint."""
    a = stand.upstream("a")
    stand.apply(stand.service(Backend(ONE, 100, (a.endpoint,))))
    return stand, a


def who(answer) -> str:
    return json.loads(answer.body)["who"]


# who answers


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    """(stand, the service): a stable and a candidate, and a second service that has no predictor."""
    with stand_in(tmp_path_factory.mktemp("c")) as stand:
        a, b = stand.upstream("a"), stand.upstream("b")
        backends = Backend(ONE, 100, (a.endpoint,)), Backend(TWO, 0, (b.endpoint,))
        iris = stand.service(*backends, header_routes=(HeaderRoute("x-user", "tester", TWO),))
        empty = stand.service(Backend("empty-predictor-00001", 100, ()), name="empty")
        stand.apply(iris, empty)
        yield stand, iris


@pytest.mark.parametrize(
    ("why", "path", "headers", "expected"),
    [
        ("the path form", "/serving/default/iris/v2/models?x=1", {}, (200, "a", "/v2/models")),
        ("the path form without more", "/serving/default/iris", {}, (200, "a", "/")),
        ("the path form with a slash", "/serving/default/iris/", {}, (200, "a", "/")),
        ("a host", "/v2", {"host": "iris-default.localhost"}, (200, "a", "/v2")),
        ("a host with a port", "/v2", {"host": "iris-default.localhost:99"}, (200, "a", "/v2")),
        ("a header", "/v2", {"serve_service": "default/iris"}, (200, "a", "/v2")),
        ("a header in the default namespace", "/v2", {"serve_service": "iris"}, (200, "a", "/v2")),
        ("a revision by its name", "/serving/default/iris/x", {"serve_revision": TWO}, (200, "b", "/x")),
        ("the candidate", "/serving/default/iris/x", {"serve_revision": "candidate"}, (200, "b", "/x")),
        ("the stable one", "/serving/default/iris/x", {"serve_revision": "stable"}, (200, "a", "/x")),
        ("a header of the spec's", "/serving/default/iris/x", {"x_user": "tester"}, (200, "b", "/x")),
        ("another value of it", "/serving/default/iris/x", {"x_user": "other"}, (200, "a", "/x")),
        (
            "no such revision",
            "/serving/default/iris/x",
            {"serve_revision": "iris"},
            (404, "default/iris has no such revision", ""),
        ),
        ("another service", "/serving/default/iris2", {}, (404, "there is no such service", "")),
        ("out of the path", "/serving/default/iris/../other", {}, (404, "there is no such service", "")),
        ("nothing", "/", {}, (404, "there is no such service", "")),
        ("another namespace's service", "/", {"serve_service": "other/iris"}, (404, "there is no such service", "")),
        ("no predictor", "/serving/default/empty/v2", {}, (503, "default/empty has no predictor that is ready", "")),
    ],
)
def test_a_request_reaches_the_service_that_it_names(canary, why, path, headers, expected):
    stand, _ = canary
    status, answered, body = stand.ask(path, b"{}", **headers)
    if status == 200:
        assert (status, body["who"], body["path"]) == expected
        assert answered["serve-revision"] == {"a": ONE, "b": TWO}[body["who"]]
    else:
        assert (status, body["error"][: len(expected[1])], "") == expected
        assert answered["content-type"] == "application/json"
        assert answered.get("retry-after") == ("1" if status == 503 else None)


def test_a_service_s_own_port_needs_no_name_of_it(canary):
    stand, iris = canary
    assert stand.ask("/v2/models", port=iris.port)[2]["path"] == "/v2/models"
    assert stand.ask("/v2/models", port=iris.port, serve_revision="candidate")[2]["who"] == "b"
    assert stand.ask("/v2/models", port=iris.port, host="anything.example")[0] == 200


def call(target: str, options=(), body: bytes = b"hello", timeout: float = 10.0, **metadata: str) -> bytes:
    with grpc.insecure_channel(target, options=options) as channel:
        method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        return method(body, metadata=[(k.replace("_", "-"), v) for k, v in metadata.items()], timeout=timeout)


def test_grpc_names_its_service_by_authority_by_metadata_or_by_port(canary):
    stand, iris = canary
    shared = f"127.0.0.1:{stand.options.port}"
    authority = [("grpc.default_authority", "iris-default.localhost")]
    assert call(shared, authority) == b"a hello"
    assert call(shared, serve_service="default/iris") == b"a hello"
    assert call(shared, serve_service="iris", serve_revision="candidate") == b"b hello"
    assert call(f"127.0.0.1:{iris.port}") == b"a hello"
    assert call(f"127.0.0.1:{iris.port}", serve_revision=TWO) == b"b hello"


@pytest.mark.parametrize(
    ("metadata", "code", "text"),
    [
        ({"serve_service": "other"}, grpc.StatusCode.UNIMPLEMENTED, "there is no such service"),
        ({"serve_service": "empty"}, grpc.StatusCode.UNAVAILABLE, "default/empty has no predictor that is ready"),
    ],
)
def test_grpc_is_told_in_its_own_words(canary, metadata, code, text):
    stand, _ = canary
    with pytest.raises(grpc.RpcError) as raised:
        call(f"127.0.0.1:{stand.options.port}", **metadata)
    assert raised.value.code() == code
    assert raised.value.details().startswith(text)


def test_a_revision_of_a_service_that_has_only_one_can_be_named(single):
    stand, _ = single
    for name in ("stable", ONE):
        assert stand.ask("/serving/default/iris", serve_revision=name)[0] == 200
    assert stand.ask("/serving/default/iris")[0] == 200
    assert stand.ask("/serving/default/iris", serve_revision="candidate")[0] == 404


def test_names_with_underscores_pass_and_what_steers_envoy_does_not(canary):
    stand, _ = canary
    headers = stand.ask("/serving/default/iris", user_id="1", **{"x-envoy-max-retries": "9"})[2]["headers"]
    connection = HTTPConnection("127.0.0.1", stand.options.port)
    connection.request("GET", "/serving/default/iris", headers={"my_header": "2", "x-envoy-upstream-rq-timeout-ms": "1"})
    with connection.getresponse() as answer:
        headers |= json.loads(answer.read())["headers"]
    connection.close()
    assert (headers["user-id"], headers["my_header"]) == ("1", "2")
    assert not [name for name in headers if name in ("x-envoy-max-retries", "x-envoy-upstream-rq-timeout-ms")]


def test_a_body_of_64_mebibytes_passes(canary):
    stand, _ = canary
    assert stand.ask("/serving/default/iris", b"x" * (64 << 20))[2]["size"] == 64 << 20


def test_the_access_log_says_who_answered_what(canary):
    stand, _ = canary
    stand.ask("/serving/default/iris/v2?secret=1", b"{}", x_request_id="find-me")

    def entry():
        lines = stand.options.access_log.read_text().splitlines()
        return next((json.loads(line) for line in lines if "find-me" in line), None)

    found = until(entry, "the line is written")
    known = {"service": "default/iris", "backend": f"default/{ONE}/http", "status": 200, "attempts": 1, "flags": "-"}
    assert known.items() <= found.items()
    assert "secret" not in json.dumps(found)


def test_the_admin_socket_is_this_user_s_alone(canary):
    stand, _ = canary
    assert stand.options.admin.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("percent", [10, 50, 90])
def test_requests_are_split_by_weight(stand, percent):
    a, b = stand.upstream("a"), stand.upstream("b")
    stand.apply(stand.service(Backend(ONE, 100 - percent, (a.endpoint,)), Backend(TWO, percent, (b.endpoint,))))
    count, port = 2000, stand.options.port
    connection = HTTPConnection("127.0.0.1", port)
    hits = 0
    for _ in range(count):
        connection.request("POST", "/serving/default/iris", b"{}")
        hits += json.loads(connection.getresponse().read())["who"] == "b"
    connection.close()
    # five standard deviations: one run in two million is outside
    assert abs(hits - count * percent / 100) < 5 * math.sqrt(count * percent / 100 * (1 - percent / 100)), hits
    stats = stand.proxy.stats()
    assert stats[f"default/{TWO}"].requests == hits
    assert stats[f"default/{ONE}"].requests == count - hits


def test_a_mirror_gets_copies_whose_answers_nobody_sees(stand):
    a, b = stand.upstream("a"), stand.upstream("b")
    backends = Backend(ONE, 100, (a.endpoint,)), Backend(TWO, 0, (b.endpoint,))
    stand.apply(stand.service(*backends, mirror=Mirror(TWO, 100)))
    with Load(stand.url(), rate=50) as load:
        load.wait_for(50)
        b.kill()
        load.wait_for(100)
    assert not load.lost, load
    assert {who(answer) for answer in load.answers} == {"a"}
    assert stand.proxy.stats()[f"default/{ONE}"].requests == len(load.answers)


# what happens to endpoints


def test_a_killed_predictor_of_two_costs_no_request(two):
    stand, a, _b = two
    with Load(stand.url()) as load:
        load.wait_for(300)
        a.kill()
        load.mark("killed")
        load.wait_for(300)
        a.started()
        load.wait_for(300)
    assert not load.lost, load
    assert max(answer.seconds for answer in load.between("killed")) < 1, load
    assert {who(answer) for answer in load.answers[-100:]} == {"a", "b"}


def test_requests_wait_for_the_only_predictor_while_it_is_started_again(single):
    stand, a = single
    with Load(stand.url()) as load:
        load.wait_for(150)
        a.kill()
        load.mark("killed")
        threading.Event().wait(2.0)  # how long a supervisor takes is what is tested here, not something to wait for
        a.start()
        until(lambda: a.answers("/v2/health/ready"), "a answers again")
        load.mark("back")
        load.wait_for(600)
    assert not load.lost, load
    outage = load.marks["back"] - load.marks["killed"]
    assert max(answer.seconds for answer in load.answers) < outage + 1, load
    assert max(answer.seconds for answer in load.between("back", after=1)) < 0.5, load


def test_requests_wait_while_the_only_predictor_loads_its_model(single):
    stand, a = single
    with Load(stand.url()) as load:
        load.wait_for(50)
        a.kill()
        a.be_ready(False)
        a.started()
        load.wait_for(0)
        until(lambda: stand.proxy.stats()[f"default/{ONE}"].held > 50, "requests are held")
        a.be_ready()
        load.mark("ready")
        load.wait_for(300)
    assert not load.lost, load


def test_grpc_calls_wait_for_the_only_predictor_too(single):
    stand, a = single
    target = f"127.0.0.1:{stand.options.port}"
    a.kill()
    with ThreadPoolExecutor(20) as pool:
        calls = [pool.submit(call, target, serve_service="iris", timeout=20) for _ in range(20)]
        until(lambda: stand.proxy.stats()[f"default/{ONE}"].held >= 15, "calls are held")
        a.start()
        assert {one.result() for one in calls} == {b"a hello"}


def test_a_waiting_request_is_told_when_its_time_is_over(single):
    stand, a = single
    stand.apply(stand.service(Backend(ONE, 100, (a.endpoint,)), timeout=5.0))
    a.kill()
    began = time.monotonic()
    status, _, body = stand.ask("/serving/default/iris", b"{}")
    assert (status, body) == (504, {"error": "no answer within the service's timeout"})
    assert 4.9 < time.monotonic() - began < 6


def test_more_than_a_thousand_do_not_wait(single):
    stand, a = single
    a.kill()
    with Load(stand.url(), rate=400, timeout=40) as load:
        until(lambda: any("503" in one.why for one in load.lost), "one is refused", 30)
        load.mark("full")
        assert 850 <= stand.proxy.stats()[f"default/{ONE}"].held <= 3200
        a.start()
        until(lambda: a.answers("/v2/health/ready"), "a answers again")
        load.wait_for(100)
    assert all("503" in one.why for one in load.lost), load
    # most are told at once; now and then a newcomer gets the place of one that has waited
    assert sorted(one.seconds for one in load.lost)[len(load.lost) // 2] < 1, load
    assert len(load.answers) > 1000


def test_a_poisoned_request_is_run_three_times_at_most_and_harms_no_other(two):
    stand, a, b = two
    alive, stop = {a: True, b: True}, threading.Event()

    def restart() -> None:
        while not stop.wait(0.01):
            for upstream in (a, b):
                if upstream.process.poll() is not None:
                    threading.Event().wait(0.3)
                    upstream.start()

    supervisor = threading.Thread(target=restart)
    with Load(stand.url()) as load:
        load.wait_for(100)
        supervisor.start()
        load.mark("poisoned")
        status, _headers, body = stand.ask("/serving/default/iris", b"poison")
        load.mark("answered")
        load.wait_for(450)
    stop.set()
    supervisor.join()
    assert status == 503, body
    assert body == {"error": "the predictor ended before it had answered"}
    assert 1 <= a.runs + b.runs <= 3
    assert all(alive.values())
    assert not load.lost, load


def test_poison_kills_the_only_predictor_twice_or_thrice_and_not_again(single):
    stand, a = single
    runs = []

    def restart() -> None:
        for _ in range(3):
            a.process.wait()
            runs.append(a.runs)
            a.start()
            if until(lambda: answered.done() or a.process.poll() is not None, "something") and answered.done():
                return

    with ThreadPoolExecutor(2) as pool:
        answered = pool.submit(stand.ask, "/serving/default/iris", b"poison")
        supervised = pool.submit(restart)
        assert answered.result()[0] == 503
        supervised.result(30)
    assert 1 <= a.runs <= 3


def test_poison_over_grpc_is_no_different(single):
    stand, a = single
    stop = threading.Event()

    def restart() -> None:
        while not stop.wait(0.01):
            if a.process.poll() is not None:
                a.start()

    supervisor = threading.Thread(target=restart)
    supervisor.start()
    with pytest.raises(grpc.RpcError) as raised:
        call(f"127.0.0.1:{stand.options.port}", body=b"poison", timeout=20, serve_service="iris")
    stop.set()
    supervisor.join()
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert 1 <= a.runs <= 3


def test_a_stopped_predictor_of_two_gets_nothing_after_two_seconds(two):
    stand, a, _ = two
    with Load(stand.url()) as load:
        load.wait_for(150)
        a.process.send_signal(signal.SIGSTOP)
        load.mark("stopped")
        until(lambda: stand.proxy.stats()[f"default/{ONE}"].healthy == 1, "its check fails", 3)
        found = load.mark("out") - load.marks["stopped"]
        load.wait_for(450)
        waiting = load.sent - len(load.answers)
        a.process.send_signal(signal.SIGCONT)
        load.mark("goes on")
        until(lambda: stand.proxy.stats()[f"default/{ONE}"].healthy == 2, "it is back")
        load.wait_for(150)
    assert not load.lost, load
    assert found <= 2, load
    assert max(answer.seconds for answer in load.between("out", "goes on")) < 0.5, load
    # those that were given to it before: with a balancer that does not look they would be half of all
    assert waiting <= 10, load
    assert {who(answer) for answer in load.answers[-100:]} == {"a", "b"}


def test_a_new_endpoint_gets_requests_at_once_and_none_before_it_is_ready(single):
    stand, a = single
    b = Upstream("b", stand.folder)
    b.be_ready(False)
    b.started()
    stand.upstreams.append(b)
    service = stand.service(Backend(ONE, 100, (a.endpoint, b.endpoint)))
    with Load(stand.url()) as load:
        stand.apply(service)
        load.wait_for(100)
        assert {who(answer) for answer in load.answers} == {"a"}
        b.be_ready()
        load.mark("ready")
        until(lambda: any(who(answer) == "b" for answer in load.answers), "it gets a request")
        seconds = load.now - load.marks["ready"]
    assert not load.lost, load
    assert seconds < 0.5


def test_a_ready_endpoint_gets_requests_within_three_tenths_of_a_second(single):
    stand, a = single
    b = stand.upstream("b")
    with Load(stand.url()) as load:
        load.wait_for(50)
        load.mark("added")
        stand.proxy.apply([stand.service(Backend(ONE, 100, (a.endpoint, b.endpoint)))])
        until(lambda: any(who(answer) == "b" for answer in load.answers), "it gets a request")
        seconds = load.now - load.marks["added"]
    assert not load.lost, load
    assert seconds < 0.3


def test_all_endpoints_are_replaced_by_others_and_nothing_is_lost(single):
    stand, a = single
    b, port = stand.upstream("b"), free_port()
    with Load(stand.url()) as load, Load(f"{stand.url()}?delay=0.5", rate=10) as slow:
        for i in range(20):
            new = (a, b)[i % 2]
            stand.apply(stand.service(Backend(ONE, 100, (new.endpoint,)), port=port))
            load.wait_for(15)
    assert not load.lost, load
    assert not slow.lost, slow
    assert max(answer.seconds for answer in slow.answers) < 1, slow
    assert stand.proxy.stats()[f"default/{ONE}"].requests >= len(load.answers) + len(slow.answers)
    assert max(answer.seconds for answer in load.answers) < 0.5, load


# what is applied


def test_a_hundred_changes_of_weight_in_ten_seconds_lose_nothing(stand):
    a, b, port = stand.upstream("a"), stand.upstream("b"), free_port()
    seconds = []
    with Load(stand.url()) as load:
        began = time.monotonic()
        for i in range(100):
            backends = Backend(ONE, 100 - i, (a.endpoint,)), Backend(TWO, i, (b.endpoint,))
            asked = time.monotonic()
            stand.proxy.apply([stand.service(*backends, port=port)])
            assert stand.proxy.wait_applied(2)
            seconds.append(time.monotonic() - asked)
            if i == 0:
                load.lost.clear()  # before there was a service
            threading.Event().wait(max(0.0, began + (i + 1) * 0.1 - time.monotonic()))
    assert not [one for one in load.lost if one.at > 1], load
    assert sorted(seconds)[50] < 0.1, seconds


def test_a_change_of_weight_is_in_effect_when_apply_returns_and_within_a_tenth_of_a_second(stand):
    a, b, port = stand.upstream("a"), stand.upstream("b"), free_port()
    connection, seconds = HTTPConnection("127.0.0.1", stand.options.port), []
    for i in range(20):
        share = 100 * (i % 2)
        backends = Backend(ONE, 100 - share, (a.endpoint,)), Backend(TWO, share, (b.endpoint,))
        began = time.monotonic()
        stand.proxy.apply([stand.service(*backends, port=port)])
        connection.request("POST", "/serving/default/iris", b"{}")
        assert json.loads(connection.getresponse().read())["who"] == ("b" if share else "a")
        seconds.append(time.monotonic() - began)
    connection.close()
    assert sorted(seconds[1:])[10] < 0.1, seconds


def test_services_come_and_go_beside_one_that_loses_nothing(stand):
    a, b = stand.upstream("a"), stand.upstream("b")
    iris = stand.service(Backend(ONE, 100, (a.endpoint,)))
    stand.apply(iris)
    with Load(stand.url()) as load:
        for i in range(10):
            other = stand.service(Backend(f"other{i}-predictor-00001", 100, (b.endpoint,)), name=f"other{i}")
            stand.apply(iris, other)
            assert stand.ask(f"/serving/default/other{i}")[2]["who"] == "b"
            assert stand.ask("/", port=other.port)[2]["who"] == "b"
            stand.apply(iris)
            assert stand.ask(f"/serving/default/other{i}")[0] == 404
            with pytest.raises(OSError):
                stand.ask("/", port=other.port)
    assert not load.lost, load


def test_a_backend_whose_last_endpoint_goes_gives_its_requests_to_the_other(stand):
    a, b, port = stand.upstream("a"), stand.upstream("b"), free_port()
    both = Backend(ONE, 50, (a.endpoint,)), Backend(TWO, 50, (b.endpoint,))
    one = Backend(ONE, 50, (a.endpoint,)), Backend(TWO, 50, ())
    stand.apply(stand.service(*both, port=port))
    with Load(stand.url()) as load:
        for backends in (one, both) * 5:
            stand.apply(stand.service(*backends, port=port))
            load.wait_for(20)
    assert not load.lost, load
    assert max(answer.seconds for answer in load.answers) < 0.5, load


def test_what_envoy_refuses_is_told_in_its_words_and_what_was_before_serves_on(single):
    stand, a = single
    good = stand.service(Backend(ONE, 100, (a.endpoint,)))
    stand.apply(good)
    files = {path.name: path.read_text() for path in stand.options.directory.iterdir()}
    bad = stand.service(Backend(ONE, 100, (a.endpoint,)), port=good.port, header_routes=(HeaderRoute("", "x", ONE),))
    stand.proxy.apply([bad])
    assert "string_match" not in stand.proxy.rejected()
    assert "Name" in stand.proxy.rejected()
    assert not stand.proxy.wait_applied(0.1)
    assert stand.ask("/serving/default/iris")[2]["who"] == "a"
    assert stand.ask("/", port=good.port)[2]["who"] == "a"
    # an Envoy that is started now serves what was good
    assert files == {path.name: path.read_text() for path in stand.options.directory.iterdir()}
    stand.apply(good)


def test_a_port_that_another_process_has_is_told_and_every_other_service_is_served(single):
    stand, a = single
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        services = [
            stand.service(Backend(ONE, 100, (a.endpoint,))),
            stand.service(Backend("other-predictor-00001", 100, (a.endpoint,)), name="other", port=port),
        ]
        stand.proxy.apply(services)
        assert f"127.0.0.1:{port}" in stand.proxy.rejected()
        assert "Address already in use" in stand.proxy.rejected()
        assert stand.ask("/", port=services[0].port)[0] == 200
        assert stand.ask("/serving/default/other")[0] == 200
    stand.apply(*services)
    assert stand.ask("/", port=port)[0] == 200


def test_a_full_disk_is_told_and_the_files_before_stay(single):
    stand, a = single
    b, port = stand.upstream("b"), free_port()
    stand.apply(stand.service(Backend(ONE, 100, (a.endpoint,)), port=port))
    files = {path.name: path.read_text() for path in stand.options.directory.iterdir()}
    backends = Backend(ONE, 50, (a.endpoint,)), Backend(TWO, 50, (b.endpoint,))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(OSError):
            stand.proxy.apply([stand.service(*backends, port=port)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_text() for path in stand.options.directory.iterdir()} == files
    assert stand.ask("/serving/default/iris")[2]["who"] == "a"
    stand.apply(stand.service(*backends, port=port))


def test_applying_the_same_again_writes_nothing(two):
    stand, a, b = two
    service = stand.service(Backend(ONE, 100, (a.endpoint, b.endpoint)))
    stand.apply(service)
    written = {path: path.stat().st_mtime_ns for path in stand.options.directory.iterdir()}
    stand.apply(service)
    Proxy(stand.options).apply([service])
    assert written == {path: path.stat().st_mtime_ns for path in stand.options.directory.iterdir()}


def test_threads_may_apply_at_the_same_time(stand):
    a = stand.upstream("a")
    services = [stand.service(Backend(f"s{i}-predictor-00001", 100, (a.endpoint,)), name=f"s{i}") for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: stand.proxy.apply(services[: i + 1]), range(8)))
    stand.apply(*services)
    assert [stand.ask(f"/serving/default/s{i}")[0] for i in range(8)] == [200] * 8


def test_an_envoy_that_is_killed_and_started_again_serves_the_same(two):
    stand, _, _ = two
    stand.process.kill()
    stand.process.wait()
    assert (stand.proxy.ready(), stand.proxy.stats(), stand.proxy.rejected()) == (False, {}, "")
    assert not stand.proxy.wait_applied(0.01)
    stand.start()
    assert stand.proxy.wait_applied(5)
    assert stand.ask("/serving/default/iris")[0] == 200


def test_a_new_proxy_goes_on_with_the_envoy_of_a_dead_one(two):
    stand, _a, b = two
    proxy = Proxy(stand.options)
    assert proxy.ready()
    assert proxy.wait_applied(1)
    with Load(stand.url()) as load:
        proxy.apply([stand.service(Backend(ONE, 100, (b.endpoint,)))])
        load.mark("without a")
        load.wait_for(100)
    assert not load.lost, load
    assert {who(answer) for answer in load.between("without a")} == {"b"}


def test_memory_stays_small(two):
    stand, _, _ = two
    status = Path(f"/proc/{stand.process.pid}/status").read_text()
    kibibytes = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    assert kibibytes < 75 * 1024


def test_a_real_predictor_behind_it_survives_its_kill(stand):
    ports = Endpoint(free_port(), free_port())
    flags = [
        "--model_dir",
        str(EXAMPLES / "iris.skops"),
        "--http_port",
        str(ports.http_port),
        "--grpc_port",
        str(ports.grpc_port),
    ]
    command = [sys.executable, "-P", "-m", "server", *flags, "--access_log", "false"]
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP64", "data": [5.1, 3.5, 1.4, 0.2]}]}).encode()
    with ExitStack() as stack:

        def start() -> subprocess.Popen:
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=EXAMPLES)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        process = start()
        service = stand.service(Backend(ONE, 100, (ports,)))
        stand.apply(service)
        # held until it is ready
        status, _, answer = stand.ask("/serving/default/iris/v2/models/iris/infer", body)
        assert (status, answer["outputs"][0]["data"]) == (200, [0])
        with Load(stand.url(), body) as load:
            load.wait_for(200)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process = start()
            load.wait_for(600, 60)
        assert not load.lost, load
        assert {json.loads(one.body)["outputs"][0]["data"][0] for one in load.answers} == {0}
