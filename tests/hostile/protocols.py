"""What the catalogue is made of: cases, and the protocols that carry them.  A protocol is one row of `catalogue.PROTOCOLS`."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from tests.server.conftest import Wire

INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Case:
    """One request, and how it has to end.

    `code` is a HTTP status, or the name of a gRPC code.  `says` is in the error's text.  `model` is a class of
    models/table.py, or "Words".  `headers` are HTTP's or gRPC's metadata, `path` is where it goes if not to the model.
    `raw`: what goes over a connection of its own, byte by byte, in the place of a well-formed request.
    """

    what: str
    code: int | str
    says: str
    body: bytes = b""
    model: str = "Table"
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = ""
    method: str = "POST"
    raw: bytes = b""
    timeout: float | None = None
    # of what is answered well, the numbers
    numbers: tuple[float, ...] = ()
    # how it may end too where others wait before it
    behind_others: int | str = 0


@dataclass(frozen=True)
class Said:
    """What a request was answered with: its code, an error's text, the answer's numbers."""

    code: int | str
    text: str = ""
    numbers: tuple[float, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


class OverHttp:
    """V1, V2, V2 with binary tensors: they differ in what they send, and in where an answer has its numbers."""

    def __init__(self, path: str) -> None:
        self._path = path

    def open(self, server) -> Wire:
        """A connection for several requests, one after the other."""
        return Wire(server.http)

    def begin(self, server, case: Case, connection: Wire | None = None):
        """Send; what is given back is to be read with `end`.  Without a connection it has one of its own."""
        wire = connection or Wire(server.http)
        if case.raw:
            wire.send_raw(case.raw.replace(b"PATH", self._path.format(server.name).encode()))
        else:
            # a name of Wire's own for each header: underscores become dashes
            headers = {name.replace("-", "_"): value for name, value in case.headers.items()}
            wire.send(case.method, case.path or self._path.format(server.name), case.body, **headers)
        return wire

    def end(self, wire: Wire, keep: bool = False) -> Said:
        answer = wire.read()
        if not keep:
            wire.close()
        if answer.status in (0, 200):
            return Said(answer.status, "", self._numbers(answer) if answer.status else ())
        return Said(answer.status, answer.error, headers=answer.headers)

    def _numbers(self, answer) -> tuple[float, ...]:
        """Those of the first output."""
        cut = answer.headers.get("inference-header-content-length")
        if cut:
            told = json.loads(answer.body[: int(cut)])["outputs"][0]
            raw = answer.body[int(cut) :][: told["parameters"]["binary_data_size"]]
            return numbers(told["datatype"], raw)
        if "predictions" in answer.json:
            rows = answer.json["predictions"]
            return tuple(next(iter(r.values())) if isinstance(r, dict) else r for r in rows)
        if isinstance(answer.json.get("outputs"), list):
            return tuple(answer.json["outputs"][0]["data"])
        return ()


class OverGrpc:
    """Any gRPC method, by bytes."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._channels: dict[str, grpc.Channel] = {}

    def open(self, server) -> None:
        """All share one."""

    def begin(self, server, case: Case, connection: None = None):
        if server.grpc not in self._channels:
            self._channels[server.grpc] = grpc.insecure_channel(server.grpc, [("grpc.max_send_message_length", -1)])
        call = self._channels[server.grpc].unary_unary(case.path or self._path)
        return call.future(case.body, metadata=tuple(case.headers.items()), timeout=case.timeout)

    def end(self, call: grpc.Future, keep: bool = False) -> Said:
        error = call.exception(timeout=60)
        if error is not None:
            return Said(error.code().name, error.details() or "", headers=dict(error.trailing_metadata() or ()))
        answer = pb.ModelInferResponse.FromString(call.result())
        found = numbers(answer.outputs[0].datatype, answer.raw_output_contents[0]) if answer.outputs else ()
        return Said("OK", "", found)


WORDS = "red", "green", "blue", "red"


def sound(n: int, model: str) -> tuple[dict[str, tuple[str, list]], float]:
    """Inputs of one row, by name a datatype and a row, that only this caller's answer fits; and that answer."""
    if model == "Mixed":
        return {"pair": ("FP32", [n, 0]), "count": ("UINT8", 0)}, n
    if model == "Words":
        return {"word": ("BYTES", WORDS[n % 4]), "number": ("FP64", n % 4 + 1)}, n % 4 + 1
    return {"features": ("FP32", [n, 0, 0, 0])}, n


def numbers(datatype: str, raw: bytes) -> tuple[float, ...]:
    dtype = {"FP32": np.float32, "FP64": np.float64}.get(datatype)
    return () if dtype is None else tuple(np.frombuffer(raw, dtype).tolist())


def packed(datatype: str, row: object) -> tuple[list[int], bytes]:
    """A row as shape and raw bytes."""
    if datatype == "BYTES":
        return [1], words(str(row).encode())
    array = np.array([row], {"FP32": np.float32, "FP64": np.float64, "UINT8": np.uint8}[datatype])
    return list(array.shape), array.tobytes()


def as_json(document: object) -> bytes:
    return json.dumps(document).encode()


def v2(*inputs: Mapping, **more: object) -> bytes:
    return as_json({"inputs": list(inputs), **more})


def tensor(name: str, datatype: str, shape: object, data: object) -> dict:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def binary(*inputs: Mapping, tail: bytes = b"", **more: object) -> tuple[bytes, dict[str, str]]:
    """A body of JSON and raw tensors, and the header that says where the one ends."""
    text = v2(*inputs, **more)
    return text + tail, {"inference-header-content-length": str(len(text))}


def sized(name: str, datatype: str, shape: object, size: object) -> dict:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


def message(*inputs: pb.ModelInferRequest.InferInputTensor, raw=(), model: str = "", **more: object) -> bytes:
    return pb.ModelInferRequest(model_name=model, inputs=inputs, raw_input_contents=raw, **more).SerializeToString()


def given(name: str, datatype: str, shape, **contents: object) -> pb.ModelInferRequest.InferInputTensor:
    one = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    for key, values in contents.items():
        getattr(one.contents, key).extend(values)
    return one


def words(*texts: bytes) -> bytes:
    """BYTES elements as they are in raw tensors."""
    return b"".join(struct.pack("<I", len(t)) + t for t in texts)


def is_a_test(module: str, name: str | None) -> bool:
    """Whether a file of tests has a test of that name, or is there at all; its imports may cost seconds, so it is read."""
    path = Path(__file__).parents[2] / (module.replace(".", "/") + ".py")
    return path.is_file() and (name is None or f"\ndef {name}(" in path.read_text())
