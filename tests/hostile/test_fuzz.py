"""Noise, the same each time: whatever comes, it is answered or refused, nobody gets another's answer, and nothing breaks.

Good requests with a few bytes changed, put in or left out, in all protocols' decoders and over the sockets.
"""

import contextlib
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from server.errors import ServingError
from server.protocols import encoding, v1, v2_grpc, v2_json
from server.tensors import Signature, TensorSpec
from tests.hostile.catalogue import PROTOCOLS
from tests.hostile.protocols import INFER
from tests.server.conftest import Wire

HERE = Path(__file__).parent
SIGNATURE = Signature("serving_default", (TensorSpec("features", "FP32", (-1, 4)),), (TensorSpec("total", "FP32", (-1,)),))
PIECES = [
    b"",
    b"\0",
    b"\xff",
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b",",
    b":",
    b"1e999",
    b"-",
    b"null",
    b"NaN",
    b"\\u0000",
    b"\\ud800",
    b"9" * 30,
    b"true",
    b'"data":',
    b'"shape":[',
    b"\r\n",
    b"\x80\x80\x80\x80\x10",
]
DECODERS = 15_000
REQUESTS, HEADS, CALLS = 4000, 3000, 3000


def changed(sent: bytes, chance: random.Random) -> bytes:
    """With one to four changes anywhere."""
    body = bytearray(sent)
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(body) + 1)
        how = chance.randrange(4)
        if how == 0 and at < len(body):
            body[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            body[at : at + chance.randrange(9)] = chance.choice(PIECES)
        elif how == 2:
            stop = min(len(body), at + chance.randrange(40))
            body[at:at] = body[at:stop]
        else:
            del body[at : at + chance.randrange(20)]
    return bytes(body)


def bodies() -> dict[str, list[bytes]]:
    """All bodies of the catalogue that are not large: each a start for noise."""
    found = {}
    for name, protocol in PROTOCOLS.items():
        cases = [one for some in protocol.CASES.values() if not isinstance(some, str) for one in some]
        found[name] = [c.body for c in [protocol.good(7), *cases] if 0 < len(c.body) < 2000]
    return found


def decoded(name: str, body: bytes, chance: random.Random) -> None:
    if name == "V1":
        v1.decode("table", body, lambda names, named: SIGNATURE)
    elif name == "V2":
        v2_json.decode("table", body)
    elif name == "binary":
        v2_json.decode("table", body, str(chance.randrange(len(body) + 2)))
    else:
        v2_grpc.decode(v2_grpc.parse(body))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_decoder_makes_of_noise_a_request_or_an_error_of_ours(protocol):
    chance, starts = random.Random(protocol), bodies()[protocol]
    for _ in range(DECODERS):
        body = changed(chance.choice(starts), chance)
        with contextlib.suppress(ServingError):
            decoded(protocol, body, chance)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_noise_that_says_it_is_compressed_is_undone_or_refused(coding):
    chance, start = random.Random(coding), encoding.compress(b"abc" * 300, coding)
    for _ in range(DECODERS):
        with contextlib.suppress(ServingError):
            assert len(encoding.decompress(changed(start, chance), coding, 1000)) <= 1000


@pytest.fixture(scope="module")
def server(serve):
    with serve(
        f"{HERE}/models/table.py:Quick", "--model_name=table", "--receive_timeout=0.3", "--max_body_bytes=65536"
    ) as server:
        yield server
        assert server.process.poll() is None
        assert "Traceback" not in server.stderr
        assert "internal error" not in server.stderr


def row(n: int) -> bytes:
    return b'{"instances":[[%d,0,0,0]]}' % n


class Neighbour:
    """Asks between the noise, on a connection of its own, for what nobody else asks for."""

    def __init__(self, server) -> None:
        self._wire, self._n = Wire(server.http), 1000
        # a connection on which nothing is asked is not kept for long
        self.ask()

    def ask(self) -> None:
        self._n += 1
        answer = self._wire.ask("POST", "/v1/models/table:predict", row(self._n))
        assert answer.json["predictions"][0]["total"] == self._n


@pytest.mark.parametrize("protocol", ["V1", "V2", "binary"])
def test_noise_in_bodies_is_never_a_500(server, protocol):
    chance, starts, neighbour = random.Random(protocol), bodies()[protocol], Neighbour(server)
    path = f"/v1/models/{server.name}:predict" if protocol == "V1" else f"/v2/models/{server.name}/infer"
    with Wire(server.http) as connection:
        for n in range(REQUESTS):
            body = changed(chance.choice(starts), chance)
            headers = {"inference_header_content_length": str(chance.randrange(len(body) + 2))} if protocol == "binary" else {}
            answer = connection.ask("POST", path, body, **headers)
            assert answer.status in (200, 400, 404, 501, 504), (answer, body)
            assert answer.status == 200 or answer.error
            if n % 20 == 0:
                neighbour.ask()


def test_noise_in_heads_is_never_a_500_and_never_anothers_answer(server):
    """What follows on the same connection is lost with it, or answered by its own number."""
    neighbour = Neighbour(server)
    start = b"POST /v1/models/table:predict HTTP/1.1\r\nhost: a\r\nx-request-id: abc\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"

    def one(seed: int) -> None:
        chance = random.Random(seed)
        body = row(seed)
        head = start % len(body)
        with Wire(server.http) as connection:
            connection.send_raw(changed(head, chance) + body)
            connection.send_raw(head + body)
            connection.socket.settimeout(20)
            while (answer := connection.read()).status:
                assert answer.status != 500, answer
                if answer.status == 200:
                    # a head that was cut may leave fewer digits, never another's row
                    assert answer.json.get("predictions", [{"total": seed}])[0]["total"] == seed
                    break

    with ThreadPoolExecutor(16) as pool:
        for n, done in enumerate(pool.map(one, range(100, 100 + HEADS))):
            assert done is None
            if n % 20 == 0:
                neighbour.ask()


def test_noise_in_messages_is_never_internal(server):
    chance, starts, neighbour = random.Random("gRPC"), bodies()["gRPC"], Neighbour(server)
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(INFER)
        calls = [call.future(changed(chance.choice(starts), chance), timeout=60) for _ in range(CALLS)]
        for n, one in enumerate(calls):
            error = one.exception()
            assert error is None or error.code().name in (
                "INVALID_ARGUMENT",
                "NOT_FOUND",
                "DEADLINE_EXCEEDED",
                "UNIMPLEMENTED",
                "RESOURCE_EXHAUSTED",
            ), error
            if n % 20 == 0:
                neighbour.ask()


def test_raw_numbers_at_random_are_answered_to_the_bit(server):
    """Each of four callers at once gets the sums of its own rows, over frames that are known by then."""

    def one(seed: int) -> None:
        kind, chance = PROTOCOLS["gRPC" if seed % 2 else "binary"], np.random.default_rng(seed)
        connection = kind.PROTOCOL.open(server)
        for _ in range(100):
            n = int(chance.integers(-(2**23), -10))
            sound = kind.good(n)
            assert kind.PROTOCOL.end(kind.PROTOCOL.begin(server, sound, connection), keep=True).numbers == (n,)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(4)))
