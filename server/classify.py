"""Classes and values of examples, over every runtime: what TensorFlow Serving's clients ask beyond tensors in, tensors out.

Used by its REST and its gRPC edge; knows no wire format.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from server.batcher import aside
from server.inference import Entry, Inference
from server.models import ModelHandle, Registry, Version
from server.protocols import tfs
from server.protocols.examples import Example, inputs_of
from server.tensors import Array, InferRequest, Signature, Timing


class Given(NamedTuple):
    """Examples as they came: `timeout` in seconds from now, None for none; `nbytes` on the wire."""

    examples: Sequence[Example]
    signature_name: object
    timeout: float | None
    nbytes: int


class Found(NamedTuple):
    """What there is to tell, and the signature that told it, by the name that clients know it by."""

    told: Any
    signature: str


def found(registry: Registry, asked: tfs.Asked) -> Version:
    """The version that is asked for; ModelNotFound."""
    return registry.labelled(asked.model, asked.version) if asked.by_label else registry.find(asked.model, asked.version)


def ready(registry: Registry, asked: tfs.Asked) -> ModelHandle:
    """The same, ready; ModelNotReady."""
    return registry.ready(asked.model, found(registry, asked).version if asked.by_label else asked.version)


def parts(registry: Registry, asked: tfs.Asked) -> list[tfs.Part]:
    """The status of one version, or of all that are known; ModelNotFound."""
    versions = [found(registry, asked)] if asked.version else registry.versions(asked.model)
    return [tfs.Part(v.version, v.state.name, v.reason) for v in versions]


async def classify(inference: Inference, handle: ModelHandle, given: Given, entry: Entry) -> Found:
    """`told` is a `Classes`: labels and scores of each example."""
    signature = _signature(handle, given)
    sources = tfs.class_sources(signature)
    outputs, signature = await _infer(inference, handle, given, sources.outputs, entry)
    return Found(tfs.classes(sources, outputs, handle.runtime.labels), tfs.name_of(signature, handle.runtime.signatures))


async def regress(inference: Inference, handle: ModelHandle, given: Given, entry: Entry) -> Found:
    """`told` is one number for each example."""
    name = tfs.value_source(_signature(handle, given))
    outputs, signature = await _infer(inference, handle, given, [name], entry)
    return Found(tfs.values(name, outputs), tfs.name_of(signature, handle.runtime.signatures))


METHODS = {tfs.CLASSIFY: classify, tfs.REGRESS: regress}


def _signature(handle: ModelHandle, given: Given) -> Signature:
    names = dict.fromkeys(name for example in given.examples for name in example)
    return handle.signature_for(list(names), given.signature_name)


async def _infer(
    inference: Inference, handle: ModelHandle, given: Given, outputs: list[str], entry: Entry
) -> tuple[dict[str, Array], Signature]:
    inputs = await aside(inference.executor, given.nbytes, inputs_of, given.examples, handle.signature_for, given.signature_name)
    request = InferRequest(handle.name, inputs, outputs=outputs, timeout=given.timeout, nbytes=given.nbytes)
    if given.signature_name is not None:
        request.parameters["signature_name"] = given.signature_name
    job = await handle.job(request)
    response = await handle.infer(job, "")
    timing = response.timing
    if entry.ran is not None:
        was = entry.ran[2]
        timing = Timing(was.queue + timing.queue, was.compute + timing.compute, max(was.batch_rows, timing.batch_rows))
    entry.ran = handle, job.rows, timing
    arrays = {name: t.array.astype(np.float32) if t.datatype == "FP16" else t.array for name, t in response.outputs.items()}
    return arrays, job.signature
