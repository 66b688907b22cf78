"""Bringing a model into memory and letting it go: open, warm up, measure, publish; drain, close, free.

Both take their time in threads, and neither loses a request: what is there goes on answering until what comes is warm, and
what goes is closed when the last request that it answers has its answer.
"""

import asyncio
import contextlib
import ctypes
import gc
import time
import weakref
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from server.batcher import Batcher, Limits
from server.cost import Cost, measure
from server.errors import InvalidInput, ModelLoadError
from server.log import log
from server.models import STATES, ModelHandle, Registry, State, Version
from server.runtime import LoadOptions, ModelFile, Runtime, load_runtime
from server.telemetry import Metrics, ModelMetrics
from server.tensors import Array, Signature

# New objects that the garbage collector lets be before it looks for cycles among them.
YOUNG_OBJECTS = 20_000

# What a model may take to end, after the last request has been answered.
CLOSE_SECONDS = 5.0

# So many bytes that models left behind are worth that all requests wait, some 100 ms, while the garbage collector looks for them.
WORTH_A_PAUSE = 32 << 20


@dataclass(frozen=True)
class BatchOptions:
    """What the operator decides about batches; 0 means "measure" (`timeout`: seconds, 0 for none)."""

    max_batch_size: int = 0
    max_queue: int = 0
    concurrency: int = 0
    timeout: float = 60.0


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
    """How this process loads models and lets them go."""

    registry: Registry
    metrics: Metrics
    executor: Executor
    load_options: LoadOptions
    batch_options: BatchOptions
    warm_up: WarmUp
    # versions on their way out, and what those before them have not given back
    going: "set[asyncio.Task[None]]" = field(default_factory=set)
    left_behind: "LeftBehind" = field(default_factory=lambda: LeftBehind())

    async def load(self, name: str, version: str, find: Callable[[], ModelFile]) -> Version:
        """Load a version and put it in the registry; its state and reason tell how it went, nothing is raised.

        One that is there already answers until the other is warm, and goes on where that can't be loaded.
        """
        entry = self.registry.known(name, version)
        if entry is None:
            entry = Version(name, version)
            self.registry.put(entry)
        metrics, old = self.metrics.of_model(name, version), entry.handle
        added = metrics.memory_bytes
        if old is None:
            self._enter(entry, State.LOADING)
        started, before = time.monotonic(), resident_bytes()
        loop = asyncio.get_running_loop()
        try:
            prepared = await loop.run_in_executor(self.executor, lambda: prepare(find(), self.load_options, self.warm_up))
        except Exception as error:
            reason = _reason(error)
            self.metrics.load_failures.labels(name).inc()
            if not isinstance(error, ModelLoadError):
                log.error("loading failed", model=name, version=version, exc_info=error)
            if old is None:
                self._enter(entry, State.FAILED, reason)
            else:
                self._enter(entry, State.READY, f"what it was changed to can't be loaded: {reason}", old)
            return entry
        self._enter(entry, State.READY, handle=self._handle(name, version, prepared, metrics))
        metrics.load_seconds.set(time.monotonic() - started)
        metrics.memory.set(max(0, resident_bytes() - before))
        if old is not None:
            self._begin(self._end(Leaving(old, added, loop)))
        return entry

    def unload(self, entry: Version, after: Callable[[Version], None] = lambda _: None) -> None:
        """Give a version no more requests, from now on; when it has answered those that it has, close it and free its memory.

        `after` is called when that is done.
        """
        if entry.handle is None:
            if entry.state is not State.DRAINING:
                self._enter(entry, State.UNLOADED, "unloaded")
                after(entry)
            return
        metrics = self.metrics.of_model(entry.name, entry.version)
        leaving = Leaving(entry.handle, metrics.memory_bytes, asyncio.get_running_loop())
        self._enter(entry, State.DRAINING)

        async def end() -> None:
            await self._end(leaving)
            # unless it has come back meanwhile
            if entry.state is State.DRAINING:
                metrics.memory.set(0)
                self._enter(entry, State.UNLOADED, "unloaded")
                after(entry)

        self._begin(end())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.going.add(task)
        task.add_done_callback(self.going.discard)

    def forget(self, entry: Version) -> None:
        """Let nothing be known any more of a version that is not loaded: not in the registry, nor in the metrics."""
        self.registry.remove(entry)
        self.metrics.forget(entry.name, entry.version)

    def fail(self, name: str, version: str, reason: str) -> None:
        """Let it be known of a model that there is nothing to load, and why."""
        entry = self.registry.known(name, version)
        if entry is None:
            entry = Version(name, version)
            self.registry.put(entry)
        self._enter(entry, State.FAILED, reason)

    async def close_all(self) -> None:
        """Let every model that is loaded give back what it holds, and wait for those on their way out; for a while."""
        runtimes = [v.handle.runtime for v in self.registry.all_versions() if v.handle is not None]
        closing = [asyncio.ensure_future(close(runtime, self.executor)) for runtime in runtimes]
        if closing or self.going:
            await asyncio.wait([*closing, *self.going], timeout=CLOSE_SECONDS)

    def _enter(self, entry: Version, state: State, reason: str = "", handle: ModelHandle | None = None) -> None:
        self.registry.change(entry, state, reason, handle)
        self.metrics.of_model(entry.name, entry.version).entered(state, STATES)

    async def _end(self, leaving: "Leaving") -> None:
        """Wait until nobody needs a version any more, and free it; what its `close` raises is logged and changes nothing."""
        longest = self.batch_options.timeout
        await leaving.unused(longest + CLOSE_SECONDS if longest else None)
        before = resident_bytes()
        await close(leaving.runtime, self.executor)
        leaving.forget()
        self.left_behind.bytes += max(0, leaving.added - max(0, before - resident_bytes()))
        if self.left_behind.bytes >= WORTH_A_PAUSE:
            self.left_behind.bytes = 0
            await asyncio.get_running_loop().run_in_executor(self.executor, free_memory)
        log.info("model unloaded", model=leaving.name, version=leaving.version, freed_bytes=before - resident_bytes())

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


@dataclass
class LeftBehind:
    """What models that have gone have not given back, as far as that can be told: what loading added, less what went."""

    bytes: int = 0


class Leaving:
    """A version that is on its way out: what it leaves behind, and when nothing refers to it any more.

    A request holds on to its handle from the moment it finds it until its answer is written, so none has to be counted.
    """

    def __init__(self, handle: ModelHandle, added: int, loop: asyncio.AbstractEventLoop) -> None:
        """`added` is what loading it added to resident memory, in bytes."""
        self.name, self.version, self.added = handle.name, handle.version, added
        self.runtime, self._batcher = handle.runtime, handle.batcher
        self._gone = asyncio.Event()
        # the last to let go may be a thread
        weakref.finalize(handle, loop.call_soon_threadsafe, self._gone.set).atexit = False

    async def unused(self, longest: float | None) -> None:
        """Return when no request has it and no batch runs.  After `longest` seconds all requests have ended."""
        deadline = None if longest is None else time.monotonic() + longest
        while not await self._is_gone_within(0.5) and (deadline is None or time.monotonic() < deadline):
            # a request that failed is in its own traceback, which is a cycle: few objects are young, so this is quick
            gc.collect()
        await self._batcher.drained()

    async def _is_gone_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), seconds)
        return self._gone.is_set()

    def forget(self) -> None:
        """Let go of what it left behind, too."""
        del self.runtime, self._batcher


async def close(runtime: Runtime, executor: Executor) -> None:
    """Let a model give back what it holds, for a while; its exceptions are logged and change nothing."""
    try:
        await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(executor, runtime.close), CLOSE_SECONDS)
    except Exception:
        log.exception("closing the model failed")


def free_memory() -> None:
    """Find what a model that has gone left in cycles, frozen as it was, and give its pages back to the system."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    # glibc keeps freed pages; other C libraries have no such function
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reason(error: BaseException) -> str:
    if isinstance(error, ModelLoadError | InvalidInput):
        return str(error)
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no text'}"
