"""The messages here are built and read with tritonclient's own protobuf classes, so only bytes pass between theirs and ours."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult, model_config_pb2, service_pb2
from tritonclient.grpc._utils import _get_inference_request
from tritonclient.utils import np_to_triton_dtype

from server.errors import InvalidInput, InvalidRequest, NotSupported, RuntimeFailed
from server.protocols import _pb
from server.protocols.v2_grpc import decode, encode, model_metadata, repository_index, server_metadata
from server.tensors import InferRequest, InferResponse, Tensor, TensorSpec

ROOT = Path(__file__).parents[3]
Request = service_pb2.ModelInferRequest


def tensor(datatype="FP32", shape=(1,), name="x", parameters=None, **contents):
    return Request.InferInputTensor(name=name, datatype=datatype, shape=shape, parameters=parameters, contents=contents or None)


def request(*inputs, raw=(), **fields):
    return Request(model_name="iris", inputs=inputs, raw_input_contents=raw, **fields)


def ours(message):
    return _pb.message(type(message).__name__).FromString(message.SerializeToString())


def theirs(message):
    return getattr(service_pb2, type(message).__name__).FromString(message.SerializeToString())


Response = service_pb2.ModelInferResponse.FromString


def test_every_message_of_ours_has_the_field_numbers_of_theirs():
    """... and all their fields, except `properties`, which only the protocol's own definition has."""

    def fields(descriptor):
        return {
            (f.name, f.number, f.type, f.is_repeated, f.message_type.full_name if f.message_type else None)
            for f in descriptor.fields
            if f.name != "properties"
        }

    names = {name for classes in _pb.METHODS.values() for name in (c.DESCRIPTOR.name for c in classes)}
    checked = 0
    for name in names | {"InferParameter", "InferTensorContents"}:
        mine, other = _pb.message(name).DESCRIPTOR, getattr(service_pb2, name).DESCRIPTOR
        assert fields(mine) == fields(other)
        assert {n.name: fields(n) for n in mine.nested_types if n.name != "PropertiesEntry"} == {
            n.name: fields(n) for n in other.nested_types
        }
        checked += 1
    assert checked == 27


PARTS = (
    "ModelInput",
    "ModelOutput",
    "ModelInstanceGroup",
    "ModelQueuePolicy",
    "ModelDynamicBatching",
    "ModelVersionPolicy",
    "ModelParameter",
    "ModelTransactionPolicy",
    "ModelConfig",
    "InferStatistics",
    "InferBatchStatistics",
    "MemoryUsage",
    "ModelStatistics",
)


@pytest.mark.parametrize("name", PARTS)
def test_of_what_only_triton_has_our_fields_have_the_numbers_of_theirs(name):
    """... as far as we have them."""

    def fields(descriptor):
        return {(f.name, f.number, f.type, f.is_repeated) for f in descriptor.fields}

    mine = _pb.message(name).DESCRIPTOR
    other = getattr(model_config_pb2, name, None) or getattr(service_pb2, name)
    assert fields(mine) <= fields(other.DESCRIPTOR)
    for field in mine.fields:
        if field.enum_type is not None:
            theirs = other.DESCRIPTOR.fields_by_name[field.name].enum_type
            assert {(v.name, v.number) for v in field.enum_type.values} <= {(v.name, v.number) for v in theirs.values}


def test_the_methods_are_those_of_the_service():
    other = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    assert list(_pb.METHODS) == [
        "ServerLive",
        "ServerReady",
        "ModelReady",
        "ServerMetadata",
        "ModelMetadata",
        "ModelInfer",
        "ModelStreamInfer",
        "ModelConfig",
        "ModelStatistics",
        "LogSettings",
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
    ]
    for name, (asked, answered) in _pb.METHODS.items():
        assert asked.DESCRIPTOR.full_name == other[name].input_type.full_name
        assert answered.DESCRIPTOR.full_name == other[name].output_type.full_name
    assert other["ModelInfer"].containing_service.full_name == _pb.SERVICE


@pytest.mark.parametrize(
    "modules", [("tritonclient.grpc", "server.protocols._pb"), ("server.protocols._pb", "tritonclient.grpc")]
)
def test_our_messages_and_tritonclients_live_in_one_process_whoever_comes_first(modules):
    code = "; ".join(
        (
            *(f"import {module}" for module in modules),
            "from tritonclient.grpc import service_pb2",
            "from server.protocols._pb import METHODS",
            "sent = service_pb2.ModelReadyRequest(name='iris', version='2')",
            "got = METHODS['ModelReady'][0].FromString(sent.SerializeToString())",
            "print(got.name, got.version, type(got) is type(sent))",
        )
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("iris 2 False\n", 0), done.stderr


def test_what_is_generated_is_what_the_proto_says_and_a_changed_proto_is_noticed(tmp_path):
    def check(root):
        return subprocess.run(
            ["bash", str(root / "scripts/generate"), "--check"],
            env={**os.environ, "PYTHON": sys.executable},
            capture_output=True,
            text=True,
            check=False,
        )

    assert check(ROOT).returncode == 0

    shutil.copytree(ROOT / "server/protocols", tmp_path / "server/protocols")
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/generate", tmp_path / "scripts")
    proto = tmp_path / "server/protocols/proto/open_inference.proto"
    proto.write_text(proto.read_text().replace("bool live = 1;", "bool live = 2;"))
    changed = check(tmp_path)
    assert changed.returncode == 1
    assert "open_inference.py is not what the messages of server/protocols/proto say" in changed.stderr


TYPED = [
    ("BOOL", "bool_contents", [True, False]),
    ("UINT8", "uint_contents", [0, 255]),
    ("UINT16", "uint_contents", [0, 65535]),
    ("UINT32", "uint_contents", [0, 2**32 - 1]),
    ("UINT64", "uint64_contents", [0, 2**64 - 1]),
    ("INT8", "int_contents", [-128, 127]),
    ("INT16", "int_contents", [-32768, 32767]),
    ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
    ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
    ("FP32", "fp32_contents", [1.5, float("inf")]),
    ("FP64", "fp64_contents", [0.1, float("-inf")]),
    ("BYTES", "bytes_contents", [b"a\0\xff", b""]),
]


@pytest.mark.parametrize("times", [1, 500], ids=["few", "many"])
@pytest.mark.parametrize(("datatype", "field", "values"), TYPED, ids=[t[0] for t in TYPED])
def test_typed_contents_become_an_array_of_their_datatype(datatype, field, values, times):
    sent = request(tensor(datatype.lower(), (times, 2), **{field: values * times}))
    found = decode(ours(sent)).inputs["x"]
    assert found.datatype == datatype
    assert found.array.dtype == Tensor.of(found.array).array.dtype
    assert found.array.tolist() == [values] * times


@pytest.mark.parametrize("count", [1, 3, 127, 128, 129, 200, 70_000])
@pytest.mark.parametrize(("datatype", "field", "dtype"), [("FP32", "fp32_contents", "f4"), ("FP64", "fp64_contents", "f8")])
def test_typed_floats_keep_every_value_at_every_size(datatype, field, dtype, count):
    values = np.random.default_rng(count).standard_normal(count).astype(dtype)
    values[-1] = np.nan
    array = decode(ours(request(tensor(datatype, (count,), **{field: values.tolist()})))).inputs["x"].array
    np.testing.assert_array_equal(array, values)
    assert array.flags.aligned


def test_unknown_fields_beside_many_typed_contents_change_nothing():
    sent = request(tensor("FP32", (300,), fp32_contents=range(300)))
    added = sent.inputs[0].contents.SerializeToString() + b"\x9a\x06\x03abc"  # field 99, three bytes
    sent.inputs[0].contents.ParseFromString(added)
    assert decode(ours(sent)).inputs["x"].array.tolist() == list(range(300))


def test_all_of_a_request_arrives():
    sent = request(
        tensor("INT64", (2, 1), "a"),
        tensor("BYTES", (1,), "b"),
        raw=[np.array([1, -2]).tobytes(), b"\x02\0\0\0hi"],
        model_version="3",
        id="seven",
        outputs=[Request.InferRequestedOutputTensor(name=n) for n in ("p", "q")],
        parameters={
            "flag": {"bool_param": False},
            "count": {"int64_param": -3},
            "text": {"string_param": ""},
            "ratio": {"double_param": 0.5},
            "big": {"uint64_param": 2**64 - 1},
            "timeout": {"int64_param": 250_000},
        },
    )
    found = decode(ours(sent))
    assert {name: (t.datatype, t.array.tolist()) for name, t in found.inputs.items()} == {
        "a": ("INT64", [[1], [-2]]),
        "b": ("BYTES", [b"hi"]),
    }
    found.inputs = {}
    assert found == InferRequest(
        "iris",
        {},
        version="3",
        id="seven",
        outputs=["p", "q"],
        parameters={"flag": False, "count": -3, "text": "", "ratio": 0.5, "big": 2**64 - 1, "timeout": 250_000},
        timeout=0.25,
    )


def test_a_request_that_names_no_outputs_and_no_parameters_leaves_them_to_the_model():
    found = decode(ours(request(tensor(fp32_contents=[1.5]))))
    assert (found.version, found.id, found.outputs, found.parameters, found.timeout) == ("", "", None, {}, None)


@pytest.mark.parametrize("sent", [request(tensor("BYTES", (0, 3))), request(tensor("BYTES", (0, 3)), raw=[b""])])
def test_an_input_without_elements_needs_no_data(sent):
    array = decode(ours(sent)).inputs["x"].array
    assert (array.shape, array.dtype) == ((0, 3), np.object_)


F4 = {"fp32_contents": [1, 2, 3, 4]}
SHARED = {"shared_memory_region": {"string_param": "r"}, "shared_memory_byte_size": {"int64_param": 16}}
ONE = tensor(fp32_contents=[1])
BAD = [
    (request(), InvalidInput, "the request has no inputs"),
    (request(ONE, ONE), InvalidInput, "input 'x' is given twice"),
    (request(tensor("FLOAT32", fp32_contents=[1])), InvalidInput, "input 'x': unknown datatype 'FLOAT32'; did you mean 'FP32'?"),
    (request(tensor("FP32", (-1, 4), **F4)), InvalidInput, "input 'x' has shape [-1, 4]; every dimension"),
    (request(tensor("FP32", (2**40, 2**40), **F4)), InvalidInput, "input 'x' has shape [1099511627776, 1099511627776]"),
    (request(tensor("FP32", (2**29, 2**29), **F4)), InvalidInput, "needs 288230376151711744 values, fp32_contents has 4"),
    (request(tensor("FP32", (2**29, 2**29)), raw=[bytes(16)]), InvalidInput, "needs 1152921504606846976 bytes, got 16"),
    (request(tensor("FP32", [1] * 17, **F4)), InvalidInput, "input 'x' has 17 dimensions, at most 16"),
    (request(tensor("FP32", (2, 4), **F4)), InvalidInput, "input 'x' of shape [2, 4] needs 8 values, fp32_contents has 4"),
    (request(tensor("FP32", (0, 4), **F4)), InvalidInput, "input 'x' of shape [0, 4] needs 0 values, fp32_contents has 4"),
    (request(tensor("FP32", (1, 4))), InvalidInput, "input 'x' has no data: neither fp32_contents nor raw_input_contents is set"),
    (request(tensor("INT8", (2,), int_contents=[1, 128])), InvalidInput, "element 1 is 128, INT8 goes from -128 to 127"),
    (request(tensor("INT16", (1,), int_contents=[-32769])), InvalidInput, "element 0 is -32769, INT16 goes from -32768"),
    (request(tensor("UINT8", (1,), uint_contents=[300])), InvalidInput, "element 0 is 300, UINT8 goes from 0 to 255"),
    (request(tensor("UINT16", (1,), uint_contents=[65536])), InvalidInput, "element 0 is 65536, UINT16 goes from 0 to 65535"),
    (
        request(tensor("FP64", (4,), **F4)),
        InvalidInput,
        "input 'x' is FP64 and needs fp64_contents only, but the request sets fp32_contents",
    ),
    (
        request(tensor("FP32", (4,), bytes_contents=[b"a"], **F4)),
        InvalidInput,
        "needs fp32_contents only, but the request sets fp32_contents, bytes_contents",
    ),
    (request(tensor("FP16", **F4)), InvalidInput, "input 'x' is FP16, which has no typed contents; use raw_input_contents"),
    (request(tensor("BF16", **F4)), InvalidInput, "use raw_input_contents"),
    (
        request(tensor(shape=(2, 4)), raw=[bytes(31)]),
        InvalidInput,
        "input 'x' of shape [2, 4] and datatype FP32 needs 32 bytes, got 31",
    ),
    (request(tensor("BYTES", (2,)), raw=[b"\x05\0\0\0abcde"]), InvalidInput, "input 'x': BYTES element 1 at offset 9"),
    (request(tensor(**F4), raw=[bytes(16)]), InvalidInput, "input 'x' has contents although the request uses raw_input_contents"),
    (request(tensor(name="w"), tensor(**F4), raw=[bytes(4)]), InvalidInput, "input 'x' has contents although"),
    (request(tensor(), tensor(name="w"), raw=[bytes(4)]), InvalidInput, "raw_input_contents has 1 entries for 2 inputs (x, w)"),
    (request(tensor(), raw=[bytes(4)] * 2), InvalidInput, "raw_input_contents has 2 entries for 1 inputs (x)"),
    (request(tensor(parameters=SHARED)), NotSupported, "input 'x' is in shared memory, which this server does not offer"),
    (request(tensor(name="w"), tensor(parameters=SHARED), raw=[bytes(4)]), NotSupported, "input 'x' is in shared memory"),
    (
        request(ONE, outputs=[Request.InferRequestedOutputTensor(name="y", parameters=SHARED)]),
        NotSupported,
        "requested output 'y' is in shared memory",
    ),
    (
        request(ONE, outputs=[InferRequestedOutput("y", class_count=-3)._get_tensor()]),
        InvalidRequest,
        "output 'y': classification is -3, expected how many classes are wanted",
    ),
    (request(ONE, parameters={"triton_x": {"bool_param": True}}), InvalidRequest, "parameter 'triton_x' is not known"),
    (request(ONE, parameters={"empty": {}}), InvalidRequest, "parameter 'empty' has no value"),
    *(
        (
            request(ONE, parameters={"timeout": value}),
            InvalidRequest,
            f"parameter 'timeout' is {shown}; it must be an integer above 0",
        )
        for value, shown in (
            ({"int64_param": 0}, "0"),
            ({"int64_param": -5}, "-5"),
            ({"string_param": "5"}, "'5'"),
            ({"bool_param": True}, "True"),
            ({"double_param": 5.0}, "5.0"),
        )
    ),
]


@pytest.mark.parametrize(("sent", "kind", "said"), BAD, ids=[f"{at} {b[2][:40]}" for at, b in enumerate(BAD)])
def test_a_bad_request_is_refused_with_what_is_wrong(sent, kind, said):
    with pytest.raises(kind) as error:
        decode(ours(sent))
    assert said in str(error.value)


NUMPY = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
shapes = arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)


def through_both(array):
    """The array as tritonclient sends it, decoded, given back as an output, and as tritonclient reads it."""
    given_ = InferInput("x", array.shape, np_to_triton_dtype(array.dtype)).set_data_from_numpy(array)
    sent = _get_inference_request("iris", [given_], "", "9", [InferRequestedOutput("y")], 0, False, False, 0, None, None)
    asked = decode(ours(sent))
    answer = encode(InferResponse(asked.model, "1", {"y": asked.inputs["x"]}, id=asked.id))
    result = InferResult(Response(answer))
    assert (result.get_response().id, result.get_response().model_version) == ("9", "1")
    assert len(result.get_response().raw_output_contents) == 1
    return result.as_numpy("y")


@pytest.mark.parametrize("dtype", NUMPY)
@given(data=st.data())
def test_tritonclient_reads_the_numbers_that_it_sent(dtype, data):
    array = data.draw(arrays.arrays(np.dtype(dtype), shapes))
    back = through_both(array)
    assert (back.shape, back.dtype, back.tobytes()) == (array.shape, array.dtype, array.tobytes())


@given(arrays.arrays(np.uint16, shapes))
def test_tritonclient_reads_the_bfloat16_that_it_sent(bits):
    array = bits.view(ml_dtypes.bfloat16)
    back = through_both(array)
    assert back.shape == array.shape
    assert back.astype(ml_dtypes.bfloat16).tobytes() == array.tobytes()


@given(arrays.arrays(np.object_, shapes, elements=st.binary(max_size=6), fill=st.nothing()))
def test_tritonclient_reads_the_bytes_that_it_sent(array):
    back = through_both(array)
    assert back.shape == array.shape
    assert back.tolist() == array.tolist()


def test_tritonclients_own_request_options_are_understood():
    given_ = InferInput("x", [1], "FP32").set_data_from_numpy(np.ones(1, np.float32))
    sent = _get_inference_request("iris", [given_], "2", "", None, "s", True, False, 1, 5_000_000, {"mine": "yes"})
    asked = decode(ours(sent))
    assert (asked.version, asked.timeout) == ("2", 5.0)
    sequence = {"sequence_id": "s", "sequence_start": True, "sequence_end": False}
    assert asked.parameters == {**sequence, "priority": 1, "timeout": 5_000_000, "mine": "yes"}


def test_outputs_come_in_order_with_one_raw_entry_each_even_when_empty():
    outputs = {
        "label": Tensor("BYTES", np.array(["setosa", None], object)),
        "none": Tensor("FP32", np.empty((0, 3), np.float32)),
        "score": Tensor("FP64", np.array([[0.25], [0.75]])),
    }
    result = InferResult(Response(encode(InferResponse("iris", "1", outputs))))
    assert [(o.name, o.datatype, list(o.shape)) for o in result.get_response().outputs] == [
        ("label", "BYTES", [2]),
        ("none", "FP32", [0, 3]),
        ("score", "FP64", [2, 1]),
    ]
    assert result.as_numpy("label").tolist() == [b"setosa", b""]
    assert result.as_numpy("none").shape == (0, 3)
    assert result.as_numpy("score").tolist() == [[0.25], [0.75]]


def test_an_output_of_another_type_than_promised_is_not_sent():
    with pytest.raises(RuntimeFailed, match="output 'y' should be FP32"):
        encode(InferResponse("iris", "1", {"y": Tensor("FP32", np.zeros(1))}))


def test_metadata_and_index_say_what_they_were_given():
    about = model_metadata(
        "iris",
        ["1", "2"],
        "sklearn_skops",
        [TensorSpec("x", "FP32", (-1, 4))],
        [TensorSpec("label", "BYTES", (-1,)), TensorSpec("p", "FP64", (-1, 3))],
        {"classes": "a,b,c"},
    )
    assert about.properties == {"classes": "a,b,c"}
    read = theirs(about)
    assert (read.name, list(read.versions), read.platform) == ("iris", ["1", "2"], "sklearn_skops")
    assert [(t.name, t.datatype, list(t.shape)) for t in (*read.inputs, *read.outputs)] == [
        ("x", "FP32", [-1, 4]),
        ("label", "BYTES", [-1]),
        ("p", "FP64", [-1, 3]),
    ]

    server = theirs(server_metadata("serveplane", "0.1.0", ["model_repository"]))
    assert (server.name, server.version, list(server.extensions)) == ("serveplane", "0.1.0", ["model_repository"])

    entries = [("iris", "1", "READY", ""), ("iris", "2", "UNAVAILABLE", "unloaded")]
    index = theirs(repository_index(entries))
    assert [(m.name, m.version, m.state, m.reason) for m in index.models] == entries
