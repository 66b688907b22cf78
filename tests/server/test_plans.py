"""Requests that are answered by plan: that it changes nothing but their price, and what has no plan."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from server import plans
from server.batcher import Job
from server.plans import Plans, Spans, json_parts, message_parts, plan_of, written
from server.protocols import _pb, v1, v2_grpc, v2_json
from server.tensors import DATATYPES, InferResponse, Signature, Tensor, TensorSpec

NUMBERS = [name for name in DATATYPES if name not in ("BYTES", "BF16")]


def signature(datatype="FP32", row=(3,), **more):
    return Signature("s", (TensorSpec("x", datatype, (-1, *row), **more),), (TensorSpec("y", "FP32", (-1,)),))


def decode(body):
    return v2_json.decode("m", body)


def job_of(request, of):
    checked = of.check(request.inputs)
    return Job(of, checked.arrays, checked.rows, of.chosen_outputs(request.outputs), request.parameters)


def planned(body, of, decoder=decode, key=b'"data":'):
    parts = json_parts(body, key)
    request, extra = decoder(body)
    return parts and plan_of(parts, request, extra, job_of(request, of), decoder)


def text(data, datatype="FP32", shape=None, separators=(",", ":"), **more):
    shape = list(np.shape(data)) if shape is None else shape
    return json.dumps(
        {"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": data}], **more}, separators=separators
    ).encode()


HAVE_ONE = [
    ("flat", text([1, 2.5, 3], shape=[1, 3])),
    ("nested", text([[1, 2.5, 3]])),
    ("with spaces", text([[1, 2.5, 3]], separators=(", ", ": "))),
    (
        "with an id, outputs and parameters",
        text([[1, 2, 3]], id="7", outputs=[{"name": "y"}], parameters={"timeout": 5, "of mine": "a"}),
    ),
    ("data first", b'{"inputs":[{"data":[1,2,3],"name":"x","shape":[1,3],"datatype":"FP32"}]}'),
    ("with a null", text([[1, None, 3]])),
    ("all zeros", text([[0, 0, 0]])),
    ("a datatype that is widened", text([[1, 2, 3]], "INT8")),
    ("binary output", text([[1, 2, 3]], parameters={"binary_data_output": True})),
]


@pytest.mark.parametrize("body", [b for _, b in HAVE_ONE], ids=[name for name, _ in HAVE_ONE])
def test_a_plain_request_has_a_plan_and_its_job_is_what_the_whole_way_makes(body):
    plan = planned(body, signature())
    parts = json_parts(body, b'"data":')
    request, extra = decode(body)
    whole, quick = job_of(request, signature()), plan.job(parts.numbers, 9.0, 100)
    np.testing.assert_array_equal(quick.arrays["x"], whole.arrays["x"])
    assert quick.arrays["x"].dtype == whole.arrays["x"].dtype
    assert (quick.rows, quick.outputs, quick.parameters, quick.deadline, quick.nbytes) == (
        whole.rows,
        whole.outputs,
        whole.parameters,
        9.0,
        100,
    )
    assert (plan.id, plan.extra, plan.timeout) == (request.id, extra, request.timeout)


HAVE_NONE = [
    (
        "two inputs",
        b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]},{"name":"z","shape":[1],"datatype":"FP32","data":[1]}]}',
    ),
    ("no list", b'{"inputs":[{"name":"x","shape":[],"datatype":"FP32","data":7}]}'),
    ("the key in a text", b'{"id":"\\"data\\":[1]","inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data" :[1,2,3]}]}'),
    (
        "the key in another object",
        b'{"parameters":{"data":"[1]"},"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data" :[1,2,3]}]}',
    ),
]


@pytest.mark.parametrize("body", [b for _, b in HAVE_NONE], ids=[name for name, _ in HAVE_NONE])
def test_what_is_not_plain_has_no_plan(body):
    two = Signature("s", (TensorSpec("x", "FP32", (-1,)), TensorSpec("z", "FP32", (-1,))), (TensorSpec("y", "FP32", (-1,)),))
    assert not planned(body, two if b'"z"' in body else signature())


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=3))
def test_a_widened_number_is_what_its_own_datatype_makes_of_it(values):
    of = signature("FP64")
    plan = planned(text([[1, 2, 3]], "FP32"), of)
    body = text([values], "FP32")
    quick, whole = plan.job(json_parts(body, b'"data":').numbers, None, 0), job_of(decode(body)[0], of)
    assert quick.arrays["x"].tobytes() == whole.arrays["x"].tobytes()
    assert quick.arrays["x"].dtype == np.float64


def test_a_list_deeper_than_arrays_are_is_not_parted():
    assert json_parts(b'{"data":[[[[[[1]]]]]]}', b'"data":') is None
    assert json_parts(b'{"data":[[[[[1]]]]]}', b'"data":').depth == 5


def test_text_has_no_plan():
    of = Signature("s", (TensorSpec("x", "BYTES", (-1,), nullable=True),), (TensorSpec("y", "FP32", (-1,)),))
    assert not planned(text(["a", "b"], "BYTES"), of)


@pytest.mark.parametrize(
    "numbers",
    [
        b"[1,2]",
        b"[1,2,3,4]",
        b"[1,2,3",
        b'["a",2,3]',
        b"[1e39,2,3]",
        b"[NaN,1,2]",
        b"[1,2,[3]]",
        b"[]",
        b"[[1,2,3]]",
        b"[true,1,2]",
        b"",
    ],
)
def test_other_numbers_than_the_frame_wants_go_the_whole_way(numbers):
    plan = planned(text([1, 2, 3], shape=[1, 3]), signature())
    assert plan.job(numbers, None, 0) is None


@given(st.data())
def test_whatever_the_numbers_a_plan_and_the_whole_way_agree(data):
    datatype = data.draw(st.sampled_from(NUMBERS))
    nested = data.draw(st.booleans())
    arrays = hnp.arrays(
        DATATYPES[datatype].dtype,
        (2, 3),
        elements={"allow_nan": False, "allow_infinity": False} if datatype[:2] == "FP" else None,
    )
    one, other = ((a if nested else a.ravel()).tolist() for a in (data.draw(arrays), data.draw(arrays)))
    of = signature(datatype)
    plan = planned(text(one, datatype, [2, 3]), of)
    body = text(other, datatype, [2, 3])
    quick, whole = plan.job(json_parts(body, b'"data":').numbers, None, 0), job_of(decode(body)[0], of)
    assert quick.arrays["x"].tobytes() == whole.arrays["x"].tobytes()
    assert quick.arrays["x"].dtype == whole.arrays["x"].dtype


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_parting_loses_nothing_whatever_the_bytes(before, after):
    body = before + b'"data":[[' + after
    parts = json_parts(body, b'"data":')
    assert parts is None or parts.frame[0] + parts.numbers + parts.frame[1] == body


def test_rows_of_v1_have_a_plan():
    of = signature()

    def decode_v1(body):
        return v1.decode("m", body, lambda names, wanted: of)

    plan = planned(b'{"instances":[[1,2,3]]}', of, decode_v1, b'"instances":')
    assert plan.job(b"[[4,5,6.5]]", None, 0).arrays["x"].tolist() == [[4.0, 5.0, 6.5]]


def message(array, datatype="FP32", raw=True, **more):
    made = _pb.message("ModelInferRequest")(model_name="m", **more)
    tensor = made.inputs.add(name="x", datatype=datatype, shape=array.shape)
    if raw:
        made.raw_input_contents.append(array.tobytes())
    else:
        getattr(tensor.contents, {"FP32": "fp32_contents", "FP64": "fp64_contents"}[datatype]).extend(array.ravel().tolist())
    return made.SerializeToString()


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_a_message_of_floats_has_a_plan_and_is_found_again_by_its_frame(raw, datatype):
    array = np.arange(6, dtype=DATATYPES[datatype].dtype).reshape(2, 3)
    of = signature(datatype)

    def decode_message(sent):
        return v2_grpc.decode(v2_grpc.parse(sent)), None

    sent = message(array, datatype, raw, id="a")
    request, _ = decode_message(sent)
    parts = message_parts(sent, request)
    plan = plan_of(parts, request, None, job_of(request, of), decode_message)
    spans = Spans()
    spans.keep(request, parts)
    other = message(array * 7 + 0.5, datatype, raw, id="a")
    model, version, found = spans.find(other)
    assert (model, version) == ("m", "")
    assert plan.job(found.numbers, None, 0).arrays["x"].tolist() == (array * 7 + 0.5).tolist()
    # another id is another frame, and so is another length
    assert spans.find(message(array, datatype, raw, id="b")) is None
    assert spans.find(message(array[:1], datatype, raw, id="a")) is None


@pytest.mark.parametrize("datatype", ["INT32", "UINT8", "BOOL"])
def test_whole_numbers_in_messages_have_no_plan(datatype):
    sent = message(np.ones((1, 3), DATATYPES[datatype].dtype), datatype)
    assert message_parts(sent, v2_grpc.decode(v2_grpc.parse(sent))) is None


def answer(outputs, datatypes=None):
    return InferResponse(
        "m", "3", {n: Tensor((datatypes or {}).get(n) or Tensor.of(a).datatype, a) for n, a in outputs.items()}, "an id"
    )


ENCODERS = {
    "V2 JSON": lambda response: v2_json.encode(response, v2_json.Wanted()),
    "V2 binary": lambda response: v2_json.encode(response, v2_json.Wanted(binary=True)),
    "V1": lambda response: (v1.encode(response, v1.Form()), None),
    "gRPC": lambda response: (v2_grpc.encode(response), None),
}


@pytest.mark.parametrize("encoder", ENCODERS)
@given(st.data())
def test_an_answer_by_plan_is_the_bytes_that_the_encoder_writes(encoder, data):
    dtype = np.dtype(data.draw(st.sampled_from(["f4", "f8", "f2", "i4", "i8", "u1"])))
    shape = data.draw(st.sampled_from([(1,), (1, 2), (3, 2), (2, 1, 2)]))
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else None
    first = data.draw(hnp.arrays(dtype, shape, elements=finite))
    other = data.draw(hnp.arrays(dtype, shape))

    def encode(outputs):
        return ENCODERS[encoder](answer(outputs))

    how = written({"y": first}, encode)
    assert how is not None
    assert how.text({"y": first}) == encode({"y": first})[0]
    # what JSON can't say is left to the encoder
    assert how.text({"y": other}) in (encode({"y": other})[0], None)
    assert (how.text({"y": other}) is None) == (encoder not in ("V2 binary", "gRPC") and not np.isfinite(other).all())
    assert how.text({"y": np.zeros(shape, "i2")}) is None
    assert how.text({"y": np.concatenate([other, other])}) is None
    assert how.text({"z": other}) is None


@pytest.mark.parametrize(
    "outputs",
    [
        {"y": np.array([b"a"], object)},
        {"y": np.zeros((0, 2), "f4")},
        {"y": np.array([True])},
        {"y": np.ones(1, "f4"), "z": np.ones(1, "f4")},
        {"y": np.zeros(plans.LARGEST_ANSWER // 4 + 1, "f4")},
        {"y": np.zeros(2, ">f4")},
    ],
    ids=["text", "no rows", "booleans", "two outputs", "large", "another byte order"],
)
def test_answers_that_are_more_than_a_few_numbers_are_the_encoders(outputs):
    assert written(outputs, lambda o: ENCODERS["V2 JSON"](answer(o))) is None


def test_bfloats_are_the_encoders_in_messages():
    assert written({"y": np.ones(2, "f4")}, lambda o: (v2_grpc.encode(answer(o, {"y": "BF16"})), None)) is None


def test_a_frame_is_worth_a_plan_from_the_second_time_on_and_is_looked_into_once():
    kept = Plans()
    frame = b"a", b"b"
    assert [kept.wanted(frame), kept.wanted(frame), kept.wanted((b"c", b"d"))] == [False, True, False]
    kept.keep(frame, None)
    assert kept.find(frame) is None
    assert [kept.wanted(frame), kept.wanted(frame)] == [False, False]
    assert not any(kept.wanted((bytes(plans.LARGEST_FRAME), b"a")) for _ in range(3))


def test_what_is_kept_is_bounded():
    kept, spans = Plans(), Spans()
    request, _ = decode(text([1.0, 2.0, 3.0], shape=[1, 3]))
    for n in range(3 * plans.MOST_PLANS):
        frame = struct.pack("<Q", n), b""
        kept.wanted(frame)
        kept.keep(frame, None)
        spans.keep(request, plans.Parts((b"a" * (n % 50), frame[0]), b"1234", 0))
    assert len(kept._plans) <= plans.MOST_PLANS
    assert len(kept._seen) <= plans.MOST_SEEN
    assert len(spans._of) <= plans.MOST_PLANS
    assert all(len(places) <= plans.MOST_PLACES for places in spans._places.values())
