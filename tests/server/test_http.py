"""HTTP as clients and attackers speak it, over real sockets: routes, statuses, limits, bodies, V1 and V2."""

import gzip
import json
import zlib

import pytest

INFER, PREDICT = "/v2/models/sums/infer", "/v1/models/sums:predict"
X = {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]}
V2 = {"inputs": [X]}
V1 = {"instances": [[1, 2]]}
TOTAL = {"name": "total", "datatype": "FP64", "shape": [1], "data": [3.0]}
V2_ANSWER = {"model_name": "sums", "outputs": [TOTAL]}
IS_HTTP = "this is not a valid HTTP/1.1 request"


@pytest.fixture
def connection(sums, wire):
    with wire(sums.http) as connection:
        yield connection


@pytest.fixture(scope="module")
def small(serve, models, lane):
    """A server with narrow limits."""
    with serve(f"{models}/sums.py:Sums", *lane, "--max_body_bytes=4096", "--receive_timeout=0.3") as server:
        yield server


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "answer"),
    [
        ("GET", "/", b"", 200, {"status": "alive"}),
        ("GET", "/v2/health/live", b"", 200, {"live": True}),
        ("GET", "/v2/health/ready", b"", 200, {"live": True, "ready": True}),
        ("GET", "/v2/models/sums/ready", b"", 200, {"name": "sums", "ready": True}),
        ("GET", "/v2/models", b"", 200, {"models": ["sums"]}),
        ("GET", "/v1/models", b"", 200, {"models": ["sums"]}),
        ("POST", "/v2/repository/index", b"", 200, [{"name": "sums", "state": "READY", "reason": ""}]),
        ("POST", "/v2/repository/index", {}, 200, [{"name": "sums", "state": "READY", "reason": ""}]),
        ("POST", "/v2/repository/any/index", {"ready": True}, 200, [{"name": "sums", "state": "READY", "reason": ""}]),
        ("POST", INFER, V2, 200, V2_ANSWER),
        (
            "POST",
            INFER,
            {**V2, "id": "7", "outputs": [{"name": "total"}]},
            200,
            {"model_name": "sums", "id": "7", "outputs": [TOTAL]},
        ),
        ("POST", INFER, {"inputs": [{**X, "more": 1}], "model_name": "x", "why": None}, 200, V2_ANSWER),
        ("POST", INFER + "?trace=1", V2, 200, V2_ANSWER),
        ("POST", "/v2/models/su%6ds/infer", V2, 200, V2_ANSWER),
        ("POST", PREDICT, V1, 200, {"predictions": [3.0]}),
        ("POST", PREDICT, {"instances": [[1, 2], [3, 4.5]]}, 200, {"predictions": [3.0, 7.5]}),
        ("POST", PREDICT, {"instances": [{"x": [1, 2]}]}, 200, {"predictions": [3.0]}),
        ("POST", PREDICT, {"inputs": [[1, 2]]}, 200, {"outputs": [3.0]}),
        ("POST", PREDICT, {"inputs": {"x": [[1, 2]]}}, 200, {"outputs": [3.0]}),
        ("POST", PREDICT, {**V1, "signature_name": "serving_default"}, 200, {"predictions": [3.0]}),
        ("POST", "/v1/models/sums%3Apredict", V1, 200, {"predictions": [3.0]}),
    ],
)
def test_a_route_answers(connection, method, path, body, status, answer):
    found = connection.ask(method, path, body)
    assert (found.status, found.json) == (status, answer)
    assert found.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_server_says_what_it_is_and_which_extensions_are_on(connection, path):
    answer = connection.ask("GET", path).json
    assert sorted(answer) == ["extensions", "name", "version"]
    assert {"binary_tensor_data", "model_repository"} <= set(answer["extensions"])


def test_metadata_says_what_goes_in_and_what_comes_out(connection):
    found = connection.ask("GET", "/v2/models/sums").json
    properties = found.pop("properties")
    assert all(isinstance(value, str) for value in properties.values())
    assert found == {
        "name": "sums",
        "platform": "python_class",
        "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}],
        "outputs": [{"name": "total", "datatype": "FP64", "shape": [-1]}],
    }


@pytest.mark.parametrize("path", ["/", "/v2/health/ready", "/v2/models/sums", "/metrics", "/v2/models/none"])
def test_head_answers_as_get_does_but_without_the_body(connection, path):
    asked, got = connection.ask("GET", path), connection.ask("HEAD", path)
    assert (got.status, got.headers["content-type"], got.body) == (asked.status, asked.headers["content-type"], b"")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", INFER, "POST"),
        ("PUT", INFER, "POST"),
        ("HEAD", INFER, "POST"),
        ("GET", "/v2/models/sums/versions/1/infer", "POST"),
        ("GET", PREDICT, "POST"),
        ("DELETE", PREDICT, "POST"),
        ("GET", "/v2/repository/index", "POST"),
        ("POST", "/v2/health/live", "GET"),
        ("PUT", "/v2/models/sums", "GET"),
        ("OPTIONS", "/v2", "GET"),
        ("PATCH", "/metrics", "GET"),
    ],
)
def test_a_wrong_method_is_405_and_names_the_right_one(connection, method, path, allowed):
    answer = connection.ask(method, path)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert method == "HEAD" or answer.error == f"method {method} is not allowed here"


UNVERSIONED = "model 'sums' has no version '{}'; it has: (none)"
# in V1 the words that TensorFlow Serving's clients look for come behind ours
NO_SERVABLE = "unknown model 'none'; models here: sums (Servable not found for request: Latest(none))"


@pytest.mark.parametrize(
    ("method", "path", "error"),
    [
        ("GET", "/nope", "Not Found"),
        ("GET", "/v2/models/sums/", "Not Found"),
        ("POST", INFER + "/", "Not Found"),
        ("POST", "/" + INFER, "Not Found"),
        ("POST", "*", "Not Found"),
        ("POST", "/v2/models//infer", "Not Found"),
        ("POST", "/v2/models/a/b/infer", "Not Found"),
        ("POST", "/v2/models/sums/versions//infer", "Not Found"),
        ("POST", "/v2/models/sums/versions/1/2/infer", "Not Found"),
        ("GET", "/docs/..%2f..%2fserver.py", "Not Found"),
        ("GET", "/docs/secrets.txt", "there is no page docs/secrets.txt"),
        ("GET", "/v2/models/sum", "unknown model 'sum'; did you mean 'sums'?; models here: sums"),
        ("GET", "/v2/models/none/ready", "unknown model 'none'; models here: sums"),
        ("GET", "/v1/models/none", NO_SERVABLE),
        ("POST", "/v1/models/none:predict", NO_SERVABLE),
        ("GET", "/v2/models/sums/versions/1", UNVERSIONED.format(1)),
        ("GET", "/v2/models/sums/versions/1/ready", UNVERSIONED.format(1)),
        ("POST", "/v2/models/sums/versions/1/infer", UNVERSIONED.format(1)),
        ("POST", "/v2/models/sums/versions/abc/infer", UNVERSIONED.format("abc")),
        ("POST", "/v2/models/sums/versions/99999999999999999999/infer", UNVERSIONED.format("9" * 20)),
        (
            "POST",
            "/v1/models/sums/versions/1:predict",
            f"{UNVERSIONED.format(1)} (Servable not found for request: Specific(sums, 1))",
        ),
        # names that are paths, or nothing at all: looked up, never opened
        ("POST", "/v2/models/../infer", "unknown model '..'; models here: sums"),
        ("POST", "/v2/models/%2e%2e/infer", "unknown model '..'; models here: sums"),
        ("POST", "/v2/models/a%2Fb/infer", "unknown model 'a/b'; models here: sums"),
        ("POST", "/v2/models/%2Fetc%2Fpasswd/infer", "unknown model '/etc/passwd'; models here: sums"),
        ("POST", "/v2/models/a%00b/infer", "unknown model 'a\\x00b'; models here: sums"),
        ("GET", "/v2/models/a%00b", "unknown model 'a\\x00b'; models here: sums"),
        ("POST", "/v2/models/%1b[2J%0a/infer", "unknown model '\\x1b[2J\\n'; models here: sums"),
        ("POST", "/v2/models/%ff%fe/infer", "unknown model '��'; models here: sums"),
        ("POST", f"/v2/models/{'x' * 10_000}/infer", f"unknown model '{'x' * 80}…'; models here: sums"),
        ("GET", f"/v2/models/{'%41' * 10_000}", f"unknown model '{'A' * 80}…'; models here: sums"),
        ("POST", "/v2/models/%zz/infer", "unknown model '%zz'; models here: sums"),
    ],
)
def test_what_is_not_there_is_404_and_says_what_is(connection, method, path, error):
    answer = connection.ask(method, path, V2 if method == "POST" else b"")
    assert (answer.status, answer.error) == (404, error)


BAD_BODIES = [
    (b"", "request body is empty"),
    (b"  ", "request body is empty"),
    (b"{", "not valid JSON"),
    (b"[1]", "expected a JSON object, got a list"),
    (b"7", "expected a JSON object, got a number"),
    (b"\xff", "not UTF-8: byte 0 is 0xff"),
    (b"[" * 100_000, "nested deeper"),
    (b'{"a":' * 10_000, "nested deeper"),
    (b"1" * 10_000, "not valid JSON"),
]


@pytest.mark.parametrize("path", [INFER, PREDICT])
@pytest.mark.parametrize(("body", "error"), BAD_BODIES)
def test_a_body_that_is_no_request_is_400(connection, path, body, error):
    answer = connection.ask("POST", path, body)
    assert answer.status == 400
    assert error in answer.error


def x(**changes):
    return {"inputs": [{k: v for k, v in {**X, **changes}.items() if v != "gone"}]}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, "missing 'inputs'"),
        ({"inputs": None}, "'inputs' is a null, expected a list"),
        ({"inputs": []}, "'inputs' is empty"),
        ({"inputs": [X, X]}, "input 'x' is given twice"),
        ({**V2, "id": 7}, "id is a number, expected a string"),
        ({**V2, "id": "\ud800"}, "id holds half a surrogate pair"),
        ({**V2, "outputs": [{"name": "totl"}]}, "unknown output 'totl'; did you mean 'total'?; the model has: total"),
        ({**V2, "outputs": [{"name": "total"}, {"name": "total"}]}, "output 'total' is requested twice"),
        ({**V2, "parameters": {"triton_x": 1}}, "'triton_x' is not known"),
        ({**V2, "parameters": {"a": {}}}, "it must be a string, a number or a boolean"),
        ({**V2, "parameters": {"timeout": 0}}, "must be an integer above 0"),
        ({**V2, "parameters": {"timeout": 1.5}}, "must be an integer above 0"),
        (x(name="y"), "unknown input 'y'; the model expects: x FP64[-1, 2]"),
        (x(name="y" * 100_000), "unknown input 'yyy"),
        (x(name="\ud800"), "the name of inputs[0] holds half a surrogate pair"),
        (x(datatype="FLOAT64"), "did you mean 'FP64'?"),
        (x(datatype="INT64", data=[1, 2**63]), "out of range for INT64"),
        (x(datatype="BYTES", data=["1", "2"]), "input 'x' is BYTES, the model expects FP64"),
        (x(shape=[2, 2]), "shape [2, 2] needs 4 values, data has 2"),
        (x(shape=[1, 3], data=[1, 2, 3]), "input 'x' has shape [1, 3], the model expects [-1, 2]"),
        (x(shape=[2]), "did you mean [1, 2] (one row)?"),
        (x(shape=[-1, 2]), "every dimension must be an integer of 0 or more"),
        (x(shape=[1, 2.0]), "every dimension must be an integer of 0 or more"),
        (x(shape=[2**40, 2**40]), "more elements than any memory holds"),
        (x(shape=[10**9, 2]), "needs 2000000000 values, data has 2"),
        (x(data=[[1], [2, 3]]), "not rectangular"),
        (x(data=["1", 2]), 'got the string "1"'),
        (x(data=[True, 2]), "got the boolean true"),
        (x(data="gone"), "exactly one of data and binary_data_size, got neither"),
        (x(parameters={"binary_data_size": 16}), "got data and binary_data_size"),
    ],
)
def test_a_request_that_does_not_fit_is_400_and_says_where(connection, body, error):
    answer = connection.ask("POST", INFER, body)
    assert answer.status == 400
    assert error in answer.error
    assert len(answer.error) < 2100


def test_a_repeated_key_is_refused_and_not_chosen_from(connection):
    answer = connection.ask("POST", INFER, json.dumps(V2).replace('"data"', '"data":[5,5],"data"').encode())
    assert (answer.status, answer.error) == (400, "duplicate key 'data' in a JSON object")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({**V1, "inputs": [[1, 2]]}, "got both"),
        ({"instance": 1}, "got neither; did you mean 'instances'?"),
        ({"instances": []}, "instances is empty"),
        ({"instances": [[1, 2], [3]]}, "not rectangular"),
        ({"instances": [{"x": [1, 2]}, {}]}, "instances[1] has no 'x'"),
        ({**V1, "signature_name": "other"}, "unknown signature_name 'other'; the model has: serving_default"),
        ({**V1, "output_filter": ["none"]}, "unknown output 'none'"),
    ],
)
def test_a_v1_request_that_does_not_fit_is_400(connection, body, error):
    answer = connection.ask("POST", PREDICT, body)
    assert answer.status == 400
    assert error in answer.error


@pytest.mark.parametrize("body", [b"x", b"[]", b'{"ready": 1}', b"null", b"\xff"])
def test_the_index_refuses_a_body_that_it_does_not_understand(connection, body):
    answer = connection.ask("POST", "/v2/repository/index", body)
    assert answer.status == 400
    assert answer.error


@pytest.mark.parametrize("content_type", [None, "application/json", "application/octet-stream", "text/plain", "a b c"])
def test_the_content_type_of_a_request_does_not_matter(connection, content_type):
    headers = {"content_type": content_type} if content_type else {}
    assert connection.ask("POST", INFER, V2, **headers).json == V2_ANSWER
    assert connection.ask("POST", PREDICT, V1, **headers).json == {"predictions": [3.0]}


@pytest.mark.parametrize(
    ("given", "called"),
    [
        ("abc", "abc"),
        ("a b", "a b"),
        ("8f14e45f-ceea", "8f14e45f-ceea"),
        ("\xe4\xff", "??"),
        ("x" * 4000, "x" * 256),
    ],
)
def test_a_request_id_comes_back_and_a_missing_one_is_made_up(connection, given, called):
    assert connection.ask("POST", INFER, V2, x_request_id=given).headers["x-request-id"] == called
    assert connection.ask("POST", INFER, b"", x_request_id=given).headers["x-request-id"] == called
    made_up = [connection.ask("POST", INFER, V2).headers["x-request-id"] for _ in range(3)]
    assert len(set(made_up)) == 3


@pytest.mark.parametrize(
    "raw",
    [
        b"garbage\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT other:80 HTTP/1.1\r\n\r\n",
        b"GET http://other HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /v2\xe4 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nhost : a\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nx: \x1b[2J\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nx: a\r\n b\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"POST /v2 HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_is_400_and_ends_the_connection(connection, raw):
    connection.send_raw(raw)
    answer = connection.read()
    if answer.status != 400:  # a chunk's size is read only after its request has been answered
        answer = connection.read()
    assert (answer.status, answer.error, answer.headers["connection"]) == (400, IS_HTTP, "close")
    assert connection.read().status == 0


def test_headers_of_any_size_are_refused_before_they_fill_the_memory(connection):
    connection.send_raw(b"GET /v2 HTTP/1.1\r\nx: " + b"y" * 1_000_000)
    assert connection.read().status in (431, 0)


def test_an_offer_of_http2_is_passed_over_and_the_body_is_read(connection):
    for _ in range(2):
        answer = connection.ask("POST", INFER, V2, connection="Upgrade, HTTP2-Settings", upgrade="h2c", http2_settings="AA")
        assert answer.json == V2_ANSWER
    head = f"POST {INFER} HTTP/1.1\r\nupgrade: h2c\r\nconnection: upgrade\r\ncontent-length: {len(json.dumps(V2))}\r\n\r\n"
    connection.send_raw(head.encode())
    connection.send_raw(json.dumps(V2).encode())
    assert connection.read().json == V2_ANSWER


def test_http_1_0_gets_its_answer_and_the_end_of_the_connection(connection):
    connection.send_raw(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
    answer = connection.read()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert connection.read().status == 0


def test_pipelined_requests_are_answered_in_order(connection):
    def body(n):
        return x(data=[n, n])

    for n in range(20):
        connection.send("POST", INFER, body(n) if n % 7 else b"bad")
    for n in range(20):
        answer = connection.read()
        assert answer.status == (200 if n % 7 else 400)
        assert not n % 7 or answer.json["outputs"][0]["data"] == [2.0 * n]


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_chunked_body_is_one_body(connection, size):
    body = json.dumps(V2).encode()
    connection.send("POST", INFER, transfer_encoding="chunked")
    for start in range(0, len(body), size):
        part = body[start : start + size]
        connection.send_raw(b"%x\r\n%s\r\n" % (len(part), part))
    connection.send_raw(b"0\r\n\r\n")
    assert connection.read().json == V2_ANSWER


def test_a_client_that_expects_100_continue_gets_it_once_the_body_is_wanted(connection):
    body = json.dumps(V2).encode()
    connection.send("POST", INFER, content_length=str(len(body)), expect="100-continue")
    assert connection.read().status == 100
    connection.send_raw(body)
    assert connection.read().json == V2_ANSWER
    connection.send("POST", INFER, content_length=str(1 << 30), expect="100-continue")
    assert connection.read().status == 413


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_bodies_are_compressed_both_ways(connection, encoding, pack):
    rows = 500
    body = json.dumps({"inputs": [{**X, "shape": [rows, 2], "data": [0.5] * rows * 2}]}).encode()
    answer = connection.ask("POST", INFER, pack(body), content_encoding=encoding, accept_encoding=encoding)
    assert (answer.status, answer.headers["content-encoding"], answer.headers["vary"]) == (200, encoding, "accept-encoding")
    assert json.loads(zlib.decompress(answer.body, 47))["outputs"][0]["data"] == [1.0] * rows
    assert "content-encoding" not in connection.ask("POST", INFER, V2, accept_encoding=encoding).headers


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [(b"abc", "gzip", 400), (gzip.compress(b"{}")[:-1], "gzip", 400), (b"abc", "br", 415), (b"abc", "gzip," * 5, 415)],
)
def test_an_encoding_that_can_not_be_undone_is_refused(connection, body, encoding, status):
    answer = connection.ask("POST", INFER, body, content_encoding=encoding)
    assert answer.status == status
    assert answer.error
    assert answer.headers.get("accept-encoding") == ("gzip, deflate" if status == 415 else None)


def test_a_bomb_is_413_and_costs_no_memory(small, wire, metrics):
    bomb = gzip.compress(gzip.compress(bytes(64 << 20), 1), 9)
    before = metrics(small)["process_resident_memory_bytes"]
    with wire(small.http) as connection:
        for _ in range(5):
            answer = connection.ask("POST", INFER, bomb, content_encoding="gzip, gzip")
            assert (answer.status, "when decompressed" in answer.error) == (413, True)
    assert metrics(small)["process_resident_memory_bytes"] - before < 30 << 20


def padded(size: int) -> bytes:
    return json.dumps(V2).encode().ljust(size)


@pytest.mark.parametrize(("size", "status"), [(4096, 200), (4097, 413)])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_may_be_as_large_as_the_limit_and_no_larger(small, wire, size, status, chunked):
    with wire(small.http) as connection:
        if chunked:
            connection.send("POST", INFER, transfer_encoding="chunked")
            connection.send_raw(b"%x\r\n%s\r\n0\r\n\r\n" % (size, padded(size)))
            answer = connection.read()
        else:
            answer = connection.ask("POST", INFER, padded(size))
        assert answer.status == status
        if status == 413:
            assert "--max_body_bytes" in answer.error
            assert "x-request-id" in answer.headers
            assert answer.headers["connection"] == "close"


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(small, wire):
    for path in (INFER, "/v2/repository/index"):
        with wire(small.http) as connection:
            connection.send("POST", path, content_length="5000")
            answer = connection.read()
        assert (answer.status, answer.error) == (413, "the body is 5000 bytes, the limit is 4096 (--max_body_bytes)")
        assert answer.headers["connection"] == "close"


def test_a_client_that_sends_far_too_much_gets_to_read_why(connection):
    body = bytes(70 << 20)
    answer = connection.ask("POST", INFER, body)
    assert answer.status == 413
    assert "(--max_body_bytes)" in answer.error


def test_a_body_that_does_not_come_is_answered_and_holds_up_nobody(small, wire):
    with wire(small.http) as slow, wire(small.http) as index, wire(small.http) as other:
        slow.send("POST", INFER, b'{"inp', content_length="100")
        index.send("POST", "/v2/repository/index", b'{"rea', content_length="100")
        assert other.ask("POST", INFER, V2).status == 200
        for connection in (slow, index):
            answer = connection.read()
            assert (answer.status, answer.error) == (504, "the request's body did not arrive within 0.3 s")
            assert (answer.headers["connection"], connection.read().status) == ("close", 0)


@pytest.mark.parametrize("head", [b"", b"POST /v2/mod", b"\r\n\r\n"])
def test_a_head_that_does_not_come_ends_the_connection(small, wire, head):
    with wire(small.http) as slow, wire(small.http) as other:
        slow.send_raw(head)
        assert other.ask("POST", INFER, V2).status == 200
        assert slow.read().status == 0
        # a second request that comes slowly is no better
        other.send_raw(head or b"P")
        assert other.read().status == 0


def test_connections_beyond_the_limit_are_told_so_and_those_within_go_on(serve, models, lane, wire, until):
    with serve(f"{models}/sums.py:Sums", *lane, "--limit_connections", "2") as server:
        with wire(server.http) as one, wire(server.http) as two:
            assert one.ask("POST", INFER, V2).status == two.ask("POST", INFER, V2).status == 200
            with wire(server.http) as three:
                answer = three.read()
                assert (answer.status, "--limit_connections" in answer.error) == (503, True)
            assert one.ask("POST", INFER, V2).status == two.ask("POST", INFER, V2).status == 200

        def served():
            with wire(server.http) as again:
                return again.ask("GET", "/v2/health/live").status == 200

        assert until(served, "a connection after others have gone")


def test_a_server_behind_a_path_answers_with_it_and_without(serve, models, lane, wire):
    """Its model's name, too, is one that URLs must escape."""
    flags = "--root_path=/serving/default/it", "--model_name=row sums"
    with serve(f"{models}/sums.py:Sums", *lane, *flags) as server, wire(server.http) as connection:
        for prefix in ("", "/serving/default/it"):
            assert connection.ask("POST", f"{prefix}/v2/models/row%20sums/infer", V2).json["model_name"] == "row sums"
            assert connection.ask("POST", f"{prefix}/v1/models/row%20sums:predict", V1).json == {"predictions": [3.0]}
            for path in ("/v2", "/v2/health/ready", "/v2/models/row%20sums", "/docs", "/metrics"):
                assert connection.ask("GET", prefix + path).status == 200
            assert connection.ask("GET", f"{prefix}/x/v2").status == 404
            assert connection.ask("POST", f"{prefix}/v2/models/other/infer", V2).error.endswith("models here: row sums")


def test_a_client_that_leaves_in_the_middle_of_its_body_is_logged_without_a_traceback(sums, wire, until):
    for path, number in ((INFER, "x-gone-1"), ("/v2/repository/index", "x-gone-2")):
        with wire(sums.http) as connection:
            connection.send("POST", path, b'{"inp', content_length="100", x_request_id=number)
    line = until(lambda: next((t for t in sums.stderr.splitlines() if "x-gone-1" in t), None), "the access log's line")
    found = json.loads(line)
    assert (found["code"], found["error"], found["model"]) == (499, "RequestCancelled", "sums")
    assert "Traceback" not in sums.stderr


def test_a_refused_body_is_in_the_access_log_and_in_the_metrics(small, wire, metrics, until):
    with wire(small.http) as connection:
        connection.ask("POST", INFER, content_length="123456", x_request_id="too-large")
    line = until(lambda: next((t for t in small.stderr.splitlines() if "too-large" in t), None), "the access log's line")
    assert json.loads(line)["code"] == 413
    counted = [v for k, v in metrics(small).items() if k.startswith("serve_request_duration_seconds_count") and 'code="413"' in k]
    assert counted
    assert counted[0] >= 1


def test_a_client_that_asks_and_never_reads_does_not_fill_the_memory(sums, wire, metrics):
    rows = 6000
    body = json.dumps({"inputs": [{**X, "shape": [rows, 2], "data": [0.5] * rows * 2}]}).encode()
    head = f"POST {INFER} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    before = metrics(sums)["process_resident_memory_bytes"]
    with wire(sums.http) as greedy:
        greedy.socket.settimeout(1)
        with pytest.raises(OSError):  # nobody takes more from it, or it is cut off
            greedy.socket.sendall((head + body) * 2000)
        assert metrics(sums)["process_resident_memory_bytes"] - before < 40 << 20
