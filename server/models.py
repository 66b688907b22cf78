"""Loaded models: a handle is one ready version; the registry finds it by name and version.

A handle takes a request's tensors from check to result.  A version is in the registry for everyone to see from its first
moment, with a state and, if it fails, with the reason.  Who loads and unloads is above: `loading`, `repository`.
"""

import enum
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.batcher import IN_THREAD, Batcher, Job, Result, submit_whole
from server.errors import ModelLoadError, ModelNotFound, ModelNotReady, UnknownSignature
from server.runtime import Runtime
from server.telemetry import ModelMetrics
from server.tensors import (
    DEFAULT_SIGNATURE,
    InferRequest,
    InferResponse,
    Signature,
    Tensor,
    datatype_of,
    did_you_mean,
    made,
)


class State(enum.StrEnum):
    LOADING = "LOADING"
    WARMING = "WARMING"
    READY = "READY"
    FAILED = "FAILED"
    # takes no more requests, and answers those that it has
    DRAINING = "DRAINING"
    UNLOADED = "UNLOADED"


STATES = tuple(State)


class ModelHandle:
    """One ready version of a model: `infer` is the way of every request, whatever protocol it came by."""

    def __init__(
        self, name: str, version: str, runtime: Runtime, batcher: Batcher, metrics: ModelMetrics, timeout: float
    ) -> None:
        self.name, self.version, self.runtime, self.batcher = name, version, runtime, batcher
        self.metrics, self.waited, self._timeout = metrics, metrics.waited, timeout
        # what those who call it keep of its requests, and what goes when it goes
        self.kept: Any = None

    @property
    def signature(self) -> Signature:
        """The default signature."""
        return self.runtime.signatures[0]

    def signature_for(self, inputs: Iterable[str] | None, name: object = None) -> Signature:
        """The signature a request means: the one it names, else the first that takes inputs of these names."""
        if name is None and (inputs is None or len(self.runtime.signatures) == 1):
            return self.runtime.signatures[0]
        return meant_signature(self.runtime.signatures, inputs, name)

    async def job(self, request: InferRequest) -> Job:
        """The request checked.  Raises InvalidInput and its like."""
        signature = self.signature_for(request.inputs, request.parameters.get("signature_name"))
        outputs = signature.chosen_outputs(request.outputs)
        if request.nbytes <= IN_THREAD:
            checked = signature.check(request.inputs)
        else:
            checked = await self.batcher.aside(request.nbytes, signature.check, request.inputs)
        deadline = self.deadline(request.timeout)
        return Job(signature, checked.arrays, checked.rows, outputs, request.parameters, deadline, nbytes=request.nbytes)

    def deadline(self, timeout: float | None) -> float | None:
        """When a request of now has to be answered, on `time.monotonic`'s clock; `timeout` in seconds is its own wish."""
        if self._timeout and (timeout is None or timeout > self._timeout):
            timeout = self._timeout
        return None if timeout is None else time.monotonic() + timeout

    async def infer(self, job: Job, request_id: str) -> InferResponse:
        """Batch, predict.  Raises Overloaded, DeadlineExceeded, RuntimeFailed and their like."""
        result = await submit_whole(self.batcher, job)
        self.waited(result.timing.queue)
        return self.response(job, result, request_id)

    def response(self, job: Job, result: Result, request_id: str) -> InferResponse:
        """What has become of a job, for its caller."""
        bfloats = job.signature.bfloats
        outputs = {
            name: made(Tensor, ("BF16" if name in bfloats else datatype_of(array.dtype), array))
            for name, array in result.outputs.items()
        }
        return InferResponse(
            self.name, self.version, outputs, request_id, job.rows, result.timing, self.runtime.labels, job.signature.batched
        )


def meant_signature(signatures: Sequence[Signature], inputs: Iterable[str] | None, name: object) -> Signature:
    """Of a model's signatures the one of that name, else the first that takes inputs of these names; UnknownSignature.

    TensorFlow's name for the default one names none where no signature has that name.
    """
    by_name = {s.name: s for s in signatures}
    if name is not None and not (name == DEFAULT_SIGNATURE and name not in by_name):
        if not isinstance(name, str) or name not in by_name:
            hint = did_you_mean(str(name), by_name)
            raise UnknownSignature(f"unknown signature_name {name!r}{hint}; the model has: {', '.join(by_name)}", name=str(name))
        return by_name[name]
    if inputs is not None:
        given = list(inputs)
        return next((s for s in signatures if s.takes(given)), signatures[0])
    return signatures[0]


@dataclass(eq=False)
class Version:
    """One version of a model as the registry knows it, ready or not.

    `reason` says why it is not, or why the one that is ready is not the one that was wanted.
    """

    name: str
    version: str
    state: State = State.LOADING
    reason: str = ""
    handle: ModelHandle | None = None


class Registry:
    """Names and versions to handles.  Used from the event loop only."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, Version]] = {}
        self._labels: dict[str, dict[str, str]] = {}
        # what answers by name, then by version, by label and by "": looked up once for each request
        self._serving: dict[str, dict[str, ModelHandle]] = {}
        # the first load is under way: whatever is ready already, the process is not
        self.is_starting = True
        # models without which the process is not ready
        self.required: set[str] = set()

    def names(self) -> list[str]:
        return list(self._models)

    def versions(self, name: str) -> list[Version]:
        """Known versions of a model, the newest last."""
        if name not in self._models:
            raise self._unknown(name)
        return sorted(self._models[name].values(), key=_age)

    def all_versions(self) -> list[Version]:
        return [v for name in self._models for v in self.versions(name)]

    def known(self, name: str, version: str) -> Version | None:
        """That version by its number, in whatever state."""
        return self._models.get(name, {}).get(version)

    def serves(self, name: str) -> bool:
        """Whether a version of the model answers."""
        return bool(self._serving.get(name))

    def labels(self, name: str) -> dict[str, str]:
        """A model's labels, each with the ready version that it points to."""
        return dict(self._labels.get(name, {}))

    def put(self, version: Version) -> None:
        """Take in a version, or in the place of one of that number another."""
        self._models.setdefault(version.name, {})[version.version] = version
        self._publish(version.name)

    def change(self, version: Version, state: State, reason: str = "", handle: ModelHandle | None = None) -> None:
        """A version that is in here enters a state: from the next request on it answers, or does not."""
        version.state, version.reason, version.handle = state, reason, handle
        self._publish(version.name)

    def remove(self, version: Version) -> None:
        """Forget a version, and with its last one the model."""
        model = self._models.get(version.name, {})
        if model.get(version.version) is version:
            del model[version.version]
        if not model:
            self._models.pop(version.name, None)
            self._labels.pop(version.name, None)
            self._serving.pop(version.name, None)
        else:
            self._publish(version.name)

    def set_labels(self, name: str, labels: Mapping[str, str]) -> None:
        """Let these labels of a model point where they say, all at the same moment."""
        self._labels[name] = dict(labels)
        self._publish(name)

    def _publish(self, name: str) -> None:
        """Work out who answers for a model; those who ask see all of it or nothing."""
        model = self._models.get(name, {})
        ready = {v.version: v.handle for v in sorted(model.values(), key=_age) if v.handle is not None}
        # a label whose version has gone leads nowhere
        labels = self._labels[name] = {label: v for label, v in self._labels.get(name, {}).items() if v in ready}
        serving = {label: ready[version] for label, version in labels.items()} | ready
        if ready:
            serving[""] = list(ready.values())[-1]
        self._serving[name] = serving

    def find(self, name: str, version: str = "") -> Version:
        """That version (a number, or a label), or without one the newest that is ready (else the newest).

        ModelNotFound names what there is.
        """
        model = self._models.get(name)
        if not model:
            raise self._unknown(name)
        if version:
            number = version if version in model else self._labels.get(name, {}).get(version)
            if number is None:
                raise self._unknown_version(name, version)
            return model[number]
        ordered = self.versions(name)
        return next((v for v in reversed(ordered) if v.state is State.READY), ordered[-1])

    def labelled(self, name: str, label: str) -> Version:
        """The version that a label points to; ModelNotFound names what there is."""
        version = self._labels.get(name, {}).get(label)
        if version is None:
            self.versions(name)
            raise self._unknown_version(name, label, "label" if label.isdecimal() else "")
        return self._models[name][version]

    def ready(self, name: str, version: str = "") -> ModelHandle:
        """The handle of a ready version; ModelNotReady says in which state it is instead, ModelNotFound what there is."""
        try:
            return self._serving[name][version]
        except KeyError:
            pass
        found = self.find(name, version)
        what = f"model {name!r}" + (f" version {found.version!r}" if version else "")
        if found.state in (State.DRAINING, State.UNLOADED):
            others = self._serving.get(name)
            instead = f"; {self._what_there_is(name)}" if others else ""
            raise ModelNotFound(f"{what} is unloaded{instead}")
        reason = f": {found.reason}" if found.reason else ""
        raise ModelNotReady(f"{what} is not ready, it is {found.state}{reason}")

    def any_ready(self) -> ModelHandle:
        """A model that answers, the first by name; ModelLoadError says why there is none."""
        for name in sorted(self._serving):
            if self.serves(name):
                return self._serving[name][""]
        reasons = {v.name: v.reason for v in self.all_versions() if v.reason}
        if len(reasons) == 1:
            raise ModelLoadError(*reasons.values())
        raise ModelLoadError("no model can be served: " + "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))

    def is_ready(self) -> bool:
        """Whether every model that is required has a version that answers, and the first load has come to its end."""
        return not self.is_starting and all(map(self.serves, self.required))

    def _unknown(self, name: str) -> ModelNotFound:
        shown = name[:80] + ("…" if len(name) > 80 else "")
        known = ", ".join(list(self._models)[:20]) or "none yet"
        return ModelNotFound(f"unknown model {shown!r}{did_you_mean(name[:80], self._models)}; models here: {known}")

    def _unknown_version(self, name: str, version: str, what: str = "") -> ModelNotFound:
        shown = version[:80] + ("…" if len(version) > 80 else "")
        labels = self._labels.get(name, {})
        may_be_label = not version.isdecimal() and (labels or any(self._models[name]))
        what = what or ("version or label" if may_be_label else "version")
        known = labels if what == "label" else [*self._models[name], *labels]
        return ModelNotFound(
            f"model {name!r} has no {what} {shown!r}{did_you_mean(version[:80], known)}; {self._what_there_is(name)}"
        )

    def _what_there_is(self, name: str) -> str:
        """Texts may go to anybody, so they have a length."""
        versions = [v.version or "(none)" for v in self.versions(name) if v.state is not State.UNLOADED]
        labels = [f"{label}={version}" for label, version in self._labels.get(name, {}).items()]
        text = f"it has: {', '.join(versions[-20:])}"
        return text + (f"; labels: {', '.join(labels[:20])}" if labels else "")


def _age(version: Version) -> tuple[bool, int]:
    """Sorts numbered versions by number, after those with other names, which stay in load order."""
    return (True, int(version.version)) if version.version.isdecimal() else (False, 0)


def facts(handle: ModelHandle) -> dict[str, str]:
    """What the metadata says of a version beyond its tensors; values are strings, as Open Inference has it."""
    batcher = handle.batcher
    return {
        "runtime": handle.runtime.platform,
        "signatures": json.dumps([s.name for s in handle.runtime.signatures]),
        "batching": f"off: {batcher.alone}" if batcher.alone else f"up to {batcher.limits.rows} rows",
        **handle.runtime.properties,
    }
