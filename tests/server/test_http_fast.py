"""Heads that are kept: that a repeated request is answered as the first was, and what makes another head."""

import json

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from server.http_fast import MOST_HEADS, Head, Heads, without_id

PATH = "/v2/models/sums/infer"


def body(*values):
    return json.dumps({"inputs": [{"name": "x", "shape": [1, len(values)], "datatype": "FP64", "data": list(values)}]}).encode()


@pytest.mark.parametrize(
    ("head", "rest", "request_id"),
    [
        (
            b"POST / HTTP/1.1\r\nx-request-id: a-1\r\nhost: h\r\n\r\n",
            b"POST / HTTP/1.1\r\nx-request-id: \r\nhost: h\r\n\r\n",
            "a-1",
        ),
        (b"POST / HTTP/1.1\r\nX-Request-Id: 7\r\n\r\n", b"POST / HTTP/1.1\r\nX-Request-Id: \r\n\r\n", "7"),
        # anything else is for the parser
        (b"POST / HTTP/1.1\r\nx-request-id: \r\n\r\n", None, ""),
        (b"POST / HTTP/1.1\r\nx-request-id: a b\r\n\r\n", None, ""),
        (b"POST / HTTP/1.1\r\nx-request-id: \xc3\xa9\r\n\r\n", None, ""),
        (b"POST / HTTP/1.1\r\nx-request-id: a\rb\r\n\r\n", None, ""),
        (b"POST / HTTP/1.1\r\nx-request-id:a\r\n\r\n", None, ""),
        (b"POST / HTTP/1.1\r\nhost: h\r\n\r\n", None, ""),
    ],
)
def test_a_head_without_its_id(head, rest, request_id):
    assert without_id(head) == (head if rest is None else rest, request_id)


def test_heads_are_kept_from_the_second_time_on_and_never_too_many():
    heads, head = Heads(), Head(None, 0, True)
    heads.keep(b"a", head)
    assert heads.find(b"a") is None
    heads.keep(b"a", head)
    assert heads.find(b"a") is head
    for n in range(3 * MOST_HEADS):
        for _ in range(2):
            heads.keep(b"%d" % n, head)
    assert len(heads._kept) <= MOST_HEADS


def test_the_same_request_again_and_again_is_answered_each_time_by_its_own_numbers(sums, wire):
    with wire(sums.http) as connection:
        for n in range(6):
            answer = connection.ask("POST", PATH, body(n, 1.5))
            assert answer.status == 200
            assert answer.json["outputs"][0]["data"] == [n + 1.5]


def test_each_has_the_id_that_it_was_sent_with_or_one_of_its_own(sums, wire):
    with wire(sums.http) as connection:
        sent = [f"id-{n}" for n in range(5)]
        assert [
            connection.ask("POST", PATH, body(1, n), **{"x-request-id": one}).headers["x-request-id"]
            for n, one in enumerate(sent)
        ] == sent
        made = [connection.ask("POST", PATH, body(1, n)).headers["x-request-id"] for n in range(5)]
        assert len(set(made)) == 5


def test_what_else_a_head_says_is_minded_each_time(sums, wire):
    with wire(sums.http) as connection:
        for _ in range(4):
            assert connection.ask("POST", PATH, body(1, 2)).status == 200
            late = connection.ask("POST", PATH, body(1, 2), **{"x-request-timeout": "none"})
            assert (late.status, late.json["error"][:24]) == (400, "header x-request-timeout")
            other = connection.ask("POST", "/v2/models/other/infer", body(1, 2))
            assert other.status == 404
            assert connection.ask("POST", "/v2/models/sums/versions/9/infer", body(1, 2)).status == 404


def test_a_request_that_comes_in_pieces_or_with_the_next_one_is_whole(sums, wire):
    sent = body(2, 3)
    raw = f"POST {PATH} HTTP/1.1\r\nhost: h\r\ncontent-length: {len(sent)}\r\n\r\n".encode() + sent
    with wire(sums.http) as connection:
        for _ in range(3):
            connection.send_raw(raw)
            assert connection.read().json["outputs"][0]["data"] == [5]
        for cut in (1, 20, len(raw) - len(sent), len(raw) - 1):
            connection.send_raw(raw[:cut])
            connection.send_raw(raw[cut:])
            assert connection.read().json["outputs"][0]["data"] == [5]
            connection.send_raw(raw + raw[:cut])
            assert connection.read().json["outputs"][0]["data"] == [5]
            connection.send_raw(raw[cut:])
            assert connection.read().json["outputs"][0]["data"] == [5]


def test_mistakes_between_good_requests_are_told_each_time_and_the_connection_goes_on(sums, wire):
    with wire(sums.http) as connection:
        for n in range(4):
            for wrong in (body(1, None), body("a", 1), body(1, 2)[:-2], body(), b"{}"):
                assert connection.ask("POST", PATH, wrong).status in (200, 400)
            assert connection.ask("POST", PATH, body(n, n)).json["outputs"][0]["data"] == [2 * n]


def test_requests_leave_nothing_for_the_garbage_collector(serve, models, wire):
    with (
        serve(f"{models}/sums.py:Garbage") as server,
        wire(server.http) as connection,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        path, stub = f"/v2/models/{server.name}/infer", service_pb2_grpc.GRPCInferenceServiceStub(channel)
        message = pb.ModelInferRequest(model_name=server.name)
        message.inputs.add(name="x", shape=[1, 2], datatype="FP64").contents.fp64_contents.extend([1, 2])

        def ask(times):
            for n in range(times):
                assert connection.ask("POST", path, body(n, 1)).status == 200
                assert connection.ask("POST", "/v2/models/other/infer", body(n, 1)).status == 404
                assert len(stub.ModelInfer(message).raw_output_contents) == 1
            return connection.ask("POST", path, body(-1, 0)).json["outputs"][0]["data"][0]

        ask(10)
        assert ask(200) < 20
