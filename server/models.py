"""Loaded models: a handle is one ready version; the registry finds it by name and version.

A handle takes a request's tensors from check to result.  Loading happens in a thread, and a version is in the registry
for everyone to see from its first moment, with a state and, if it fails, with the reason.
"""

import asyncio
import enum
import gc
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from server.batcher import IN_THREAD, Batcher, Cost, Job, Limits, Result, measure, submit_whole
from server.errors import InvalidInput, ModelLoadError, ModelNotFound, ModelNotReady, UnknownSignature
from server.log import log
from server.runtime import LoadOptions, ModelFile, Runtime, load_runtime
from server.telemetry import Metrics, ModelMetrics
from server.tensors import (
    DEFAULT_SIGNATURE,
    Array,
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
    UNLOADED = "UNLOADED"


STATES = tuple(State)

# New objects that the garbage collector lets be before it looks for cycles among them.
YOUNG_OBJECTS = 20_000


@dataclass(frozen=True)
class BatchOptions:
    """What the operator decides about batches; 0 means "measure" (`timeout`: seconds, 0 for none)."""

    max_batch_size: int = 0
    max_queue: int = 0
    concurrency: int = 0
    timeout: float = 60.0


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
    """One version of a model as the registry knows it, ready or not.  `reason` says why it is not."""

    name: str
    version: str
    state: State = State.LOADING
    reason: str = ""
    handle: ModelHandle | None = None


class Registry:
    """Names and versions to handles.  Used from the event loop only."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, Version]] = {}

    def names(self) -> list[str]:
        return list(self._models)

    def versions(self, name: str) -> list[Version]:
        """Known versions of a model, the newest last."""
        if name not in self._models:
            raise self._unknown(name)
        return sorted(
            self._models[name].values(), key=lambda v: (v.version.isdecimal(), int(v.version) if v.version.isdecimal() else 0)
        )

    def all_versions(self) -> list[Version]:
        return [v for name in self._models for v in self.versions(name)]

    def put(self, version: Version) -> None:
        self._models.setdefault(version.name, {})[version.version] = version

    def find(self, name: str, version: str = "") -> Version:
        """That version, or without one the newest that is ready (else the newest); ModelNotFound names what there is."""
        model = self._models.get(name)
        if model is None:
            raise self._unknown(name)
        if version:
            if version not in model:
                raise ModelNotFound(
                    f"model {name!r} has no version {version!r}; it has: {', '.join(v or '(none)' for v in model)}"
                )
            return model[version]
        if len(model) == 1:
            return next(iter(model.values()))
        ordered = self.versions(name)
        return next((v for v in reversed(ordered) if v.state is State.READY), ordered[-1])

    def ready(self, name: str, version: str = "") -> ModelHandle:
        """The handle of a ready version; ModelNotReady says in which state it is instead."""
        found = self.find(name, version)
        if found.handle is None:
            reason = f": {found.reason}" if found.reason else ""
            raise ModelNotReady(f"model {name!r} is not ready, it is {found.state}{reason}")
        return found.handle

    def is_ready(self) -> bool:
        versions = [v for model in self._models.values() for v in model.values()]
        return bool(versions) and all(v.state is State.READY for v in versions)

    def _unknown(self, name: str) -> ModelNotFound:
        shown = name[:80] + ("…" if len(name) > 80 else "")
        known = ", ".join(list(self._models)[:20]) or "none yet"
        return ModelNotFound(f"unknown model {shown!r}{did_you_mean(name[:80], self._models)}; models here: {known}")


def _age(version: Version) -> tuple[bool, int]:
    """Sorts numbered versions by number, after those with other names, which stay in load order."""
    return (True, int(version.version)) if version.version.isdecimal() else (False, 0)


# Runs requests that came with a model, before any other.
WarmUp = Callable[[ModelFile, Runtime], None]


class Prepared(NamedTuple):
    """A loaded model, what a batch of it costs, and why its requests can't be joined (empty where they can)."""

    runtime: Runtime
    cost: Cost
    alone: str


def prepare(found: ModelFile, options: LoadOptions, warm_up: WarmUp) -> Prepared:
    """Open a model, warm it up, measure it and test whether its rows may be joined.

    Runs in a thread; takes as long as the framework takes.  A model that made-up inputs can't run is still served: its
    own users know better what it eats.
    """
    runtime = load_runtime(found, options)
    warm_up(found, runtime)
    signature = runtime.signatures[0]
    if runtime.is_async:
        return Prepared(runtime, Cost(0.01, 0.0), "the model's predict is a coroutine")
    if not signature.inputs:
        return Prepared(runtime, Cost(0.01, 0.0), "the model declares no inputs")
    outputs = signature.defaults

    def probe(rows: int) -> Mapping[str, Array]:
        answer: Mapping[str, Array] = runtime.predict(signature, runtime.sample(signature, rows), outputs, {})
        return answer

    try:
        probe(1)
        cost = measure(probe) if signature.batched else measure(lambda _: probe(1))
        why = (
            depends_on_neighbours(runtime, signature) if signature.batched else "the model's inputs have no free batch dimension"
        )
    except Exception as error:
        log.warning(
            "the model does not take made-up inputs, so it is not warmed up", reason=f"{type(error).__name__}: {error}"[:300]
        )
        return Prepared(runtime, Cost(0.01, 0.0), "it could not be tested with made-up inputs")
    return Prepared(runtime, cost, why)


def depends_on_neighbours(runtime: Runtime, signature: Signature, rows: int = 5) -> str:
    """Empty where rows give the same alone and together (up to rounding); else what differed."""
    together_in = runtime.sample(signature, rows, 7)
    together = runtime.predict(signature, together_in, signature.defaults, {})
    for name, array in together.items():
        if array.ndim == 0 or len(array) != rows:
            return f"output {name!r} has shape {list(array.shape)} for {rows} rows"
    for row in range(rows):
        alone = runtime.predict(signature, {n: a[row : row + 1] for n, a in together_in.items()}, signature.defaults, {})
        for name, array in together.items():
            if not _alike(array[row : row + 1], alone[name]):
                return f"output {name!r} of a row changes with the rows beside it"
    return ""


def _alike(a: Array, b: Array) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype.kind == "f":
        return bool(np.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True))
    return bool(np.array_equal(a, b))


def limits_for(runtime: Runtime, cost: Cost, options: BatchOptions) -> Limits:
    """How much runs at once: as many rows as take about 20 ms, 1024 at most, where the operator does not say."""
    rows = options.max_batch_size
    if not rows:
        rows = 1024 if cost.per_row <= 0 else int(min(1024, max(8, (0.02 - cost.fixed) / cost.per_row)))
    queue = options.max_queue or max(1024, 16 * rows)
    return Limits(rows=rows, queue_rows=queue, concurrency=options.concurrency or runtime.concurrency)


def resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


@dataclass(frozen=True)
class Loader:
    """How this process loads models; `load` is the verb."""

    registry: Registry
    metrics: Metrics
    executor: Executor
    load_options: LoadOptions
    batch_options: BatchOptions
    warm_up: WarmUp

    async def load(self, name: str, version: str, find: Callable[[], ModelFile]) -> Version:
        """Load a version and put it in the registry; its state and reason tell how it went, nothing is raised."""
        entry = Version(name, version)
        self.registry.put(entry)
        metrics = self.metrics.of_model(name, version)
        metrics.entered(entry.state, STATES)
        started, before = time.monotonic(), resident_bytes()
        loop = asyncio.get_running_loop()
        try:
            prepared = await loop.run_in_executor(self.executor, lambda: prepare(find(), self.load_options, self.warm_up))
        except Exception as error:
            entry.state, entry.reason = State.FAILED, _reason(error)
            self.metrics.load_failures.labels(name).inc()
            if not isinstance(error, ModelLoadError):
                log.error("loading failed", model=name, exc_info=error)
        else:
            entry.handle = self._handle(name, version, prepared, metrics)
            entry.state = State.READY
            metrics.load_seconds.set(time.monotonic() - started)
            metrics.memory.set(max(0, resident_bytes() - before))
        metrics.entered(entry.state, STATES)
        return entry

    def _handle(self, name: str, version: str, prepared: "Prepared", metrics: ModelMetrics) -> ModelHandle:
        runtime, cost, alone = prepared
        limits = limits_for(runtime, cost, self.batch_options)
        alone = alone or ("it is turned off" if limits.rows == 1 else "")
        batcher = Batcher(runtime.predict, limits, cost, self.executor, metrics, alone=alone, is_async=runtime.is_async)
        # what loading left behind never becomes garbage: keep the collector from walking it on every request
        gc.collect()
        gc.freeze()
        # nor from looking at requests that are under way: reference counts free what they leave, cycles are rare
        gc.set_threshold(YOUNG_OBJECTS)
        for warning in runtime.warnings:
            log.warning(warning, model=name)
        for note in runtime.notes:
            log.info(note, model=name)
        batching = f"off: {alone}" if alone else f"up to {limits.rows} rows"
        probed = round(cost.of(1) * 1e3, 3)
        log.info("model ready", model=name, version=version, batching=batching, inline=batcher.inline, probe_ms=probed)
        return ModelHandle(name, version, runtime, batcher, metrics, self.batch_options.timeout)


def _reason(error: BaseException) -> str:
    if isinstance(error, ModelLoadError | InvalidInput):
        return str(error)
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no text'}"


def facts(handle: ModelHandle) -> dict[str, str]:
    """What the metadata says of a version beyond its tensors; values are strings, as Open Inference has it."""
    batcher = handle.batcher
    return {
        "runtime": handle.runtime.platform,
        "signatures": json.dumps([s.name for s in handle.runtime.signatures]),
        "batching": f"off: {batcher.alone}" if batcher.alone else f"up to {batcher.limits.rows} rows",
        **handle.runtime.properties,
    }
