"""gRPC as clients and attackers speak it, over real sockets; the messages are those of tritonclient's own definition."""

import socket

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

Code = grpc.StatusCode
LIMIT = 6 << 20


@pytest.fixture(scope="module")
def server(serve, models, lane):
    with serve(f"{models}/sums.py:Sums", *lane, "--max_body_bytes", str(LIMIT)) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server):
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.grpc, options=options) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel):
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def tensor(name="x", shape=(1, 2), datatype="FP64", **contents):
    return pb.ModelInferRequest.InferInputTensor(name=name, shape=shape, datatype=datatype, contents=contents or None)


ROW = tensor(fp64_contents=[1, 2])
RAW = np.array([1.0, 2.0]).tobytes()


def request(*inputs, raw=(), parameters=(), outputs=(), **fields):
    message = pb.ModelInferRequest(**{"model_name": "sums", **fields}, inputs=inputs or [ROW], raw_input_contents=raw)
    for name, value in dict(parameters).items():
        setattr(message.parameters[name], "int64_param" if isinstance(value, int) else "string_param", value)
    for name in outputs:
        message.outputs.add(name=name)
    return message


def totals(answer) -> list[float]:
    return np.frombuffer(answer.raw_output_contents[0]).tolist()


def refused(call, *args, **kwargs):
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as raised:
        call(*args, **kwargs)
    return raised.value


@pytest.mark.parametrize(
    "message",
    [request(), request(tensor(), raw=[RAW]), request(parameters={"mine": 1, "timeout": 10**9}), request(outputs=["total"])],
)
def test_a_request_is_answered_in_raw_contents(stub, message):
    answer = stub.ModelInfer(message)
    assert (answer.model_name, answer.model_version, totals(answer)) == ("sums", "", [3.0])
    assert [(o.name, o.datatype, list(o.shape), o.HasField("contents")) for o in answer.outputs] == [
        ("total", "FP64", [1], False)
    ]


def test_health_and_metadata_answer(stub):
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ModelReady(pb.ModelReadyRequest(name="sums")).ready
    assert "model_repository" in stub.ServerMetadata(pb.ServerMetadataRequest()).extensions
    model = stub.ModelMetadata(pb.ModelMetadataRequest(name="sums"))
    assert (model.name, list(model.versions), model.outputs[0].name) == ("sums", [], "total")
    index = stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="any", ready=True)).models
    assert [(m.name, m.version, m.state, m.reason) for m in index] == [("sums", "", "READY", "")]


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        (request(model_name="none"), Code.NOT_FOUND, "unknown model 'none'; models here: sums"),
        (request(model_name=""), Code.NOT_FOUND, "unknown model ''; models here: sums"),
        (request(model_name="../sums"), Code.NOT_FOUND, "unknown model '../sums'"),
        (request(model_name="n" * 10_000), Code.NOT_FOUND, f"unknown model '{'n' * 80}…'"),
        (request(model_version="1"), Code.NOT_FOUND, "model 'sums' has no version '1'"),
        (pb.ModelInferRequest(model_name="sums"), Code.INVALID_ARGUMENT, "the request has no inputs"),
        (request(ROW, ROW), Code.INVALID_ARGUMENT, "input 'x' is given twice"),
        (
            request(tensor("y", fp64_contents=[1, 2])),
            Code.INVALID_ARGUMENT,
            "unknown input 'y'; the model expects: x FP64[-1, 2]",
        ),
        (request(tensor("a\nb\x1b", fp64_contents=[1, 2])), Code.INVALID_ARGUMENT, r"unknown input 'a\nb\x1b'"),
        (request(tensor("y" * 100_000, fp64_contents=[1, 2])), Code.INVALID_ARGUMENT, "unknown input 'yyy"),
        (request(tensor("☃" * 5_000, fp64_contents=[1, 2])), Code.INVALID_ARGUMENT, "unknown input '☃☃☃"),
        (request(tensor("\U0001f600" * 5_000, fp64_contents=[1, 2])), Code.INVALID_ARGUMENT, "unknown input '\U0001f600"),
        (request(tensor(datatype="FLOAT64", fp64_contents=[1, 2])), Code.INVALID_ARGUMENT, "did you mean 'FP64'?"),
        (request(tensor(datatype="q" * 100_000, fp64_contents=[1, 2])), Code.INVALID_ARGUMENT, "unknown datatype 'qqq"),
        (request(tensor(shape=[1, 3], fp64_contents=[1, 2, 3])), Code.INVALID_ARGUMENT, "the model expects [-1, 2]"),
        (request(tensor(shape=[-1, 2], fp64_contents=[1, 2])), Code.INVALID_ARGUMENT, "every dimension"),
        (request(tensor(shape=[2**40, 2**40], fp64_contents=[1])), Code.INVALID_ARGUMENT, "more elements than any memory holds"),
        (request(tensor(shape=[1] * 100, fp64_contents=[1])), Code.INVALID_ARGUMENT, "at most 16"),
        (request(tensor(fp64_contents=[1])), Code.INVALID_ARGUMENT, "needs 2 values, fp64_contents has 1"),
        (request(tensor(fp32_contents=[1, 2])), Code.INVALID_ARGUMENT, "needs fp64_contents only"),
        (request(tensor()), Code.INVALID_ARGUMENT, "has no data"),
        (request(tensor(), raw=[RAW[:-1]]), Code.INVALID_ARGUMENT, "needs 16 bytes, got 15"),
        (request(tensor(), raw=[RAW, RAW]), Code.INVALID_ARGUMENT, "2 entries for 1 inputs"),
        (request(ROW, raw=[RAW]), Code.INVALID_ARGUMENT, "send one of the two"),
        (request(outputs=["totl"]), Code.INVALID_ARGUMENT, "did you mean 'total'?"),
        (request(outputs=["total", "total"]), Code.INVALID_ARGUMENT, "requested twice"),
        (request(parameters={"timeout": -5}), Code.INVALID_ARGUMENT, "'timeout' is -5"),
        (request(parameters={"timeout": "soon"}), Code.INVALID_ARGUMENT, "'timeout' is 'soon'"),
        (request(parameters={"triton_x": 1}), Code.INVALID_ARGUMENT, "'triton_x' is not known"),
        (request(parameters={"signature_name": "other"}), Code.INVALID_ARGUMENT, "unknown signature_name 'other'"),
    ],
)
def test_a_bad_request_has_a_status_and_a_text(stub, message, code, text):
    error = refused(stub.ModelInfer, message)
    assert error.code() is code
    assert text in error.details()
    assert totals(stub.ModelInfer(request())) == [3.0]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("ModelReady", pb.ModelReadyRequest(name="none")),
        ("ModelReady", pb.ModelReadyRequest(name="sums", version="1")),
        ("ModelMetadata", pb.ModelMetadataRequest(name="none")),
    ],
)
def test_asking_about_a_model_that_is_not_there_is_not_found(stub, method, message):
    assert refused(getattr(stub, method), message).code() is Code.NOT_FOUND


@pytest.mark.parametrize("method", ["SystemSharedMemoryRegister", "CudaSharedMemoryStatus", "TraceSetting", "Nope", ""])
def test_a_method_that_is_not_built_is_unimplemented(channel, method):
    call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    assert refused(call, b"").code() is Code.UNIMPLEMENTED


@pytest.mark.parametrize("sent", [b"\xff\xff\xff", b"\x0a\x7f", b"\x0a\x02\xff\xfe"])
def test_bytes_that_are_no_message_are_an_invalid_argument(channel, server, sent):
    error = refused(channel.unary_unary("/inference.GRPCInferenceService/ModelInfer"), sent)
    assert (error.code(), error.details()) == (Code.INVALID_ARGUMENT, "the request is not a valid inference.ModelInferRequest")
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize("compression", list(grpc.Compression))
@pytest.mark.parametrize(("rows", "fits"), [(LIMIT // 16 - 10, True), (LIMIT // 16 + 1, False), (LIMIT, False)])
def test_a_message_may_be_as_large_as_the_limit_also_when_it_was_compressed(stub, compression, rows, fits):
    message = request(tensor(shape=[rows, 2]), raw=[bytes(16 * rows)])
    if fits:
        assert totals(stub.ModelInfer(message, compression=compression)) == [0.0] * rows
    else:
        error = refused(stub.ModelInfer, message, compression=compression)
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert "larger than max" in error.details()
    assert totals(stub.ModelInfer(request())) == [3.0]


def test_another_protocol_on_the_port_disturbs_nobody(server, stub):
    for garbage in (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"\0" * 100, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100):
        with socket.create_connection(server.grpc.split(":"), timeout=30) as stranger:
            stranger.sendall(garbage)
            assert totals(stub.ModelInfer(request())) == [3.0]


def test_health_is_known_by_server_service_and_model(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "inference.GRPCInferenceService", "sums"):
        assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == health_pb2.HealthCheckResponse.SERVING
    assert refused(health.Check, health_pb2.HealthCheckRequest(service="none")).code() is Code.NOT_FOUND
    watched = health.Watch(health_pb2.HealthCheckRequest(service="none"), timeout=30)
    assert next(watched).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watched.cancel()


def test_reflection_lists_the_services_and_hands_out_their_messages(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    services = {"inference.GRPCInferenceService", "grpc.health.v1.Health"}
    assert services <= set(database.get_services())
    pool = DescriptorPool(database)
    method = pool.FindServiceByName("inference.GRPCInferenceService").methods_by_name["ModelInfer"]
    assert method.input_type.full_name == "inference.ModelInferRequest"
    message = pool.FindMessageTypeByName("inference.ModelInferRequest")
    assert message.fields_by_name["raw_input_contents"].number == 7
    assert pool.FindMessageTypeByName("grpc.health.v1.HealthCheckRequest").fields_by_name["service"].number == 1


def test_metadata_names_the_request_in_the_log_and_secrets_stay_out_of_it(server, stub, until):
    metadata = (("x-request-id", "from-metadata"), ("authorization", "Bearer s3cret"), ("some-bin", b"\0\xff"))
    stub.ModelInfer(request(), metadata=metadata)
    stub.ModelInfer(request(id="from-message\n\x1b[2J"))
    assert until(lambda: '"request_id":"from-metadata"' in server.stderr, "the first line")
    assert until(lambda: r'"request_id":"from-message\n\u001b[2J"' in server.stderr, "the second line")
    assert "s3cret" not in server.stderr


def test_no_grpc_where_it_is_switched_off(serve, models):
    with serve(f"{models}/sums.py:Sums", "--enable_grpc=false") as server:
        assert server.grpc is None
