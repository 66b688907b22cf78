"""Requests recorded for a SavedModel, as TensorFlow Serving has them, replayed before it is ready.

They are in the model's folder, and whoever exports it puts them there.  A record that can't be replayed is told and left out:
it costs the first request some milliseconds, not the model.
"""

import time
from pathlib import Path
from typing import Any

from server.errors import InvalidRequest, NotSupported, ServingError
from server.log import log
from server.models import meant_signature
from server.protocols import tfs, tfs_grpc
from server.protocols.examples import from_input, inputs_of
from server.protocols.tfrecord import records
from server.runtime import ModelFile, Runtime
from server.tensors import InferRequest

FILE = Path("assets.extra") / "tf_serving_warmup_requests"
# As TensorFlow Serving has it.
MOST_RECORDS = 1000
LARGEST_RECORD = 256 << 20
# Records of one file that are complained of one by one.
MOST_TOLD = 10


def replay(found: ModelFile, runtime: Runtime) -> None:
    """Run what was recorded; takes as long as the model takes."""
    path = found.path / FILE
    if found.format != "savedmodel" or not path.is_file():
        return
    started, good, bad = time.monotonic(), 0, 0
    with path.open("rb") as file:
        for number, record in enumerate(records(file, path.stat().st_size, LARGEST_RECORD)):
            if number == MOST_RECORDS:
                log.warning("more warm-up records than are replayed", file=str(path), replayed=MOST_RECORDS)
                break
            wrong = record.wrong or _wrong_with(record.data, runtime)
            good, bad = (good, bad + 1) if wrong else (good + 1, bad)
            if wrong and bad <= MOST_TOLD:
                log.warning("a warm-up record is left out", file=str(path), record=number, reason=wrong)
    seconds = round(time.monotonic() - started, 3)
    log.info("warm-up requests replayed", file=str(path), replayed=good, left_out=bad, seconds=seconds)


def _wrong_with(data: bytes, runtime: Runtime) -> str:
    """Why a record could not be replayed; empty where it was."""
    try:
        recorded = tfs_grpc.parse(tfs_grpc.message("PredictionLog"), data)
        kind = recorded.WhichOneof("log_type")
        if kind is None:
            raise NotSupported("it holds no request of Predict, Classify, Regress or MultiInference")
        for request in _requests(kind, getattr(recorded, kind).request, runtime):
            _run(request, runtime)
    except ServingError as error:
        return str(error)
    except Exception as error:  # a framework's, about a request that it has not seen before
        return f"{type(error).__name__}: {error}"[:300]
    return ""


def _requests(kind: str, sent: Any, runtime: Runtime) -> list[InferRequest]:
    if kind == "predict_log":
        return [tfs_grpc.predict_request(sent, tfs_grpc.asked_of(sent), LARGEST_RECORD)]
    examples = from_input(sent.input)
    if kind == "multi_inference_log":
        tasks = tfs_grpc.tasks_of(sent)
    else:
        tasks = [(tfs_grpc.asked_of(sent), tfs.CLASSIFY if kind == "classify_log" else tfs.REGRESS)]
    return [_of_examples(asked, method, examples, runtime) for asked, method in tasks]


def _of_examples(asked: tfs.Asked, method: str, examples: Any, runtime: Runtime) -> InferRequest:
    inputs = inputs_of(examples, lambda names, name: meant_signature(runtime.signatures, names, name), asked.signature or None)
    request = InferRequest(asked.model, inputs)
    if asked.signature:
        request.parameters["signature_name"] = asked.signature
    signature = meant_signature(runtime.signatures, inputs, asked.signature or None)
    if method not in (tfs.CLASSIFY, tfs.REGRESS):
        raise InvalidRequest(f"a task has the method {method!r}, expected {tfs.CLASSIFY!r} or {tfs.REGRESS!r}")
    request.outputs = tfs.class_sources(signature).outputs if method == tfs.CLASSIFY else [tfs.value_source(signature)]
    return request


def _run(request: InferRequest, runtime: Runtime) -> None:
    signature = meant_signature(runtime.signatures, request.inputs, request.parameters.get("signature_name"))
    checked = signature.check(request.inputs)
    runtime.predict(signature, checked.arrays, signature.chosen_outputs(request.outputs), {})
