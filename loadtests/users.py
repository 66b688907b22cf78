"""locust's users: each asks one model, over one protocol, again and again, with the next request of its pool."""

import itertools
import time
from collections.abc import Mapping

import grpc
import grpc.experimental.gevent
import numpy as np
from locust import FastHttpUser, User, constant, task
from tritonclient.grpc import service_pb2

from loadtests import payloads
from loadtests.payloads import Signature

grpc.experimental.gevent.init_gevent()
ANSWER_SECONDS = 60.0
METHODS = {
    "grpc": "/inference.GRPCInferenceService/ModelInfer",
    "tfs-grpc": "/tensorflow.serving.PredictionService/Predict",
}


class HttpUser(FastHttpUser):
    """`protocol` is one of `payloads.BODIES`."""

    abstract = True
    wait_time = constant(0)
    network_timeout = connection_timeout = ANSWER_SECONDS
    protocol = "v2"
    signature: Signature
    requests: list[tuple[bytes, payloads.Headers]]
    more: Mapping[str, str] = {}

    def on_start(self) -> None:
        self._next = itertools.cycle(self.requests)

    @task
    def predict(self) -> None:
        body, headers = next(self._next)
        path = self.prefix + payloads.path(self.protocol, self.signature.model)
        sent = {**headers, **self.more}
        with self.client.post(path, body, headers=sent, name=self.protocol, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code} {(answer.text or '')[:200]}")

    prefix = ""
    """The path under which the service is, without a slash at its end."""


class GrpcUser(User):
    """Unary calls over one channel for each user; `protocol` is one of `METHODS`.  The answers' bytes are not looked into."""

    abstract = True
    protocol = "grpc"
    wait_time = constant(0)
    address = ""
    """host:port"""
    authority = ""
    """The host that is asked for, where that is another one."""
    requests: list[bytes]
    more: Mapping[str, str] = {}

    def on_start(self) -> None:
        self._next = itertools.cycle(self.requests)
        options = [("grpc.default_authority", self.authority)] if self.authority else []
        self._channel = grpc.insecure_channel(self.address, options)
        self._call = self._channel.unary_unary(METHODS[self.protocol])

    def on_stop(self) -> None:
        self._channel.close()

    @task
    def predict(self) -> None:
        began, error, size = time.perf_counter(), None, 0
        try:
            size = len(self._call(next(self._next), timeout=ANSWER_SECONDS, metadata=tuple(self.more.items())))
        except grpc.RpcError as found:
            error = RuntimeError(f"{found.code().name}: {found.details()[:200]}")
        milliseconds = (time.perf_counter() - began) * 1e3
        self.environment.events.request.fire(
            request_type="gRPC", name=self.protocol, response_time=milliseconds, response_length=size, exception=error, context={}
        )


def message(signature: Signature, arrays: Mapping[str, np.ndarray]) -> bytes:
    """A ModelInferRequest with raw contents."""
    made = service_pb2.ModelInferRequest(model_name=signature.model)
    for one in signature.inputs:
        array = arrays[one.name]
        made.inputs.add(name=one.name, datatype=one.datatype, shape=array.shape)
        made.raw_input_contents.append(payloads.raw(array))
    return made.SerializeToString()


MESSAGES = {"grpc": message, "tfs-grpc": payloads.tfs_message}
"""What makes the message of each gRPC protocol."""
