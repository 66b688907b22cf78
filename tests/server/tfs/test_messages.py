"""Our definitions of TensorFlow Serving's messages are its own, and live beside it in one process."""

import itertools
import subprocess
import sys

import pytest
from google.protobuf.descriptor_pool import Default
from tensorflow_serving.apis import model_service_pb2, prediction_log_pb2, prediction_service_pb2

from server.protocols import _pb
from server.protocols.tfs_grpc import METHODS

THEIRS = Default()
# all that warm-up files hold is known to the pool by this import
THEIRS.FindMessageTypeByName(prediction_log_pb2.PredictionLog.DESCRIPTOR.full_name)


def nested(descriptor):
    yield descriptor
    for inside in descriptor.nested_types:
        yield from nested(inside)


def test_every_field_of_ours_is_one_of_theirs():
    checked = 0
    for file in ("tensorflow.proto", "tensorflow_serving.proto"):
        for top in _pb.POOL.FindFileByName(file).message_types_by_name.values():
            for ours in nested(top):
                theirs = THEIRS.FindMessageTypeByName(ours.full_name)
                for field in ours.fields:
                    other = theirs.fields_by_number[field.number]
                    assert (field.name, field.is_repeated, field.is_packed) == (other.name, other.is_repeated, other.is_packed)
                    # a code is an enumeration there
                    assert field.type == other.type or (field.name, other.enum_type.full_name) == (
                        "error_code",
                        "tensorflow.error.Code",
                    )
                    assert (field.message_type and field.message_type.full_name) == (
                        other.message_type and other.message_type.full_name
                    )
                    assert (field.containing_oneof and field.containing_oneof.name) == (
                        other.containing_oneof and other.containing_oneof.name
                    )
                    checked += 1
    assert checked > 100


@pytest.mark.parametrize("name", ["tensorflow.DataType", "tensorflow.serving.ModelVersionStatus.State"])
def test_the_numbers_of_an_enumeration_are_theirs(name):
    ours, theirs = (pool.FindEnumTypeByName(name).values_by_name for pool in (_pb.POOL, THEIRS))
    assert {n: v.number for n, v in ours.items()} == {n: theirs[n].number for n in ours}


@pytest.mark.parametrize("module", [prediction_service_pb2, model_service_pb2])
def test_every_method_of_the_services_is_there_but_for_streaming(module):
    (service,) = module.DESCRIPTOR.services_by_name.values()
    ours = METHODS[service.full_name]
    assert {m.name for m in service.methods if not m.server_streaming} == set(ours)
    for method in service.methods:
        if method.name in ours:
            assert tuple(c.DESCRIPTOR.full_name for c in ours[method.name]) == (
                method.input_type.full_name,
                method.output_type.full_name,
            )


MODULES = {
    "ours": "server.grpc_calls",
    "TensorFlow Serving's": "tensorflow_serving.apis.prediction_service_pb2_grpc",
    "Triton's": "tritonclient.grpc",
}


ORDERS = list(itertools.permutations(MODULES))


@pytest.mark.parametrize("order", ORDERS, ids=", ".join)
def test_all_can_be_imported_into_one_process_in_any_order(order):
    code = "; ".join(f"import {MODULES[name]}" for name in order)
    code += "; from server.protocols import tfs_grpc; from tensorflow_serving.apis.predict_pb2 import PredictRequest as P"
    code += "; tfs_grpc.message('PredictRequest').FromString(P(output_filter=['y']).SerializeToString()).output_filter[0] == 'y' or exit(1)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
