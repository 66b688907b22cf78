"""Bodies that are nothing but the bytes of a model's input."""

import numpy as np
import pytest

from server.errors import InvalidInput, InvalidRequest
from server.protocols.raw_request import decode, is_raw
from server.tensors import Signature, TensorSpec

Y = TensorSpec("y", "FP32", (-1,))
FOUR = np.arange(4, dtype="f4")


def of(shape, datatype="FP32", batched=True, **more):
    return Signature("s", (TensorSpec("x", datatype, shape, **more),), (Y,), batched=batched)


@pytest.mark.parametrize(
    ("signature", "body", "shape"),
    [
        (of((-1, 4)), FOUR.tobytes(), (1, 4)),
        (of((-1, 2, 2)), FOUR.tobytes(), (1, 2, 2)),
        (of((-1, -1)), FOUR.tobytes(), (1, 4)),
        (of((-1, 2, -1)), FOUR.tobytes(), (1, 2, 2)),
        (of((-1,)), FOUR[:1].tobytes(), (1,)),
        (of((4,), batched=False), FOUR.tobytes(), (4,)),
        (of((-1,), batched=False), FOUR.tobytes(), (4,)),
        (of((-1, -1)), b"", (1, 0)),
        (of((-1,), "BYTES"), b"any text", (1,)),
        (of((-1, 1), "BYTES"), b"any text", (1, 1)),
        (of((-1, -1), "BYTES"), b"", (1, 1)),
    ],
)
def test_the_body_is_one_row_of_the_only_input(signature, body, shape):
    request, wanted = decode("m", body, signature)
    (tensor,) = request.inputs.values()
    assert tensor.array.shape == shape
    assert wanted.is_binary("y")
    found = tensor.array.ravel()[0] if tensor.datatype == "BYTES" else tensor.array.tobytes()
    assert found == body


@pytest.mark.parametrize(
    ("signature", "body", "kind", "text"),
    [
        (of((-1, 4)), b"123", InvalidInput, "needs 16 bytes, got 3"),
        (of((-1, 2, -1)), b"1234", InvalidInput, "takes 8 bytes a step, and 4 came"),
        (of((-1, -1, -1)), b"", InvalidRequest, "which the size of a body does not tell"),
        (of((-1,), unknown_rank=True), b"", InvalidRequest, "which the size of a body does not tell"),
        (of((-1, 3), "BYTES"), b"", InvalidRequest, "is 3 texts, and a body is one"),
        (Signature("s", (Y, TensorSpec("z", "FP32", (-1,))), (Y,)), b"", InvalidRequest, "exactly one input, and 'm' has y, z"),
        (Signature("s", (), (Y,)), b"", InvalidRequest, "none that is declared"),
    ],
)
def test_what_a_body_does_not_tell_is_refused(signature, body, kind, text):
    with pytest.raises(kind, match=text.replace("[", r"\[")):
        decode("m", body, signature)


@pytest.mark.parametrize(
    ("header", "answer"), [("0", True), ("000", True), ("", False), (None, False), ("10", False), ("-0", False)]
)
def test_a_length_of_nothing_says_so(header, answer):
    assert is_raw(header) is answer


def test_over_the_wire_it_is_answered_in_binary_again_and_again(sums, wire):
    path, headers = "/v2/models/sums/infer", {"inference_header_content_length": "0"}
    with wire(sums.http) as connection:
        for n in range(6):
            answer = connection.ask("POST", path, np.array([n, 2.0]).tobytes(), **headers)
            assert answer.status == 200
            assert answer.body[int(answer.headers["inference-header-content-length"]) :] == np.array([n + 2.0]).tobytes()
            assert (
                connection.ask("POST", path, b"123", **headers).error
                == "input 'x' of shape [1, 2] and datatype FP64 needs 16 bytes, got 3"
            )
