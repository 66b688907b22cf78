"""Greedy batching: one queue per model; whatever waits when a slot is free runs at once, joined where that is safe.

There is no timer.  While all slots are busy the queue fills by itself, so batches form exactly under load and an idle
server adds one turn of the event loop.  Models that answer faster than a thread can be woken run in the event loop.

What one request can never do to another (each is a test in tests/server/test_batcher.py): be joined with a different
shape, signature, output choice or parameters; fail it (a failed batch is halved until the culprit is alone); shift its
rows (a result with the wrong row count is never sliced); hold it up by size (large requests go chunk by chunk) or by
shape (each key has a queue of its own); be waited for when its caller has gone.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from server.batch_counts import BatchCounts
from server.cost import Cost
from server.errors import DeadlineExceeded, Overloaded, ResourceExhausted, RuntimeFailed, ServingError
from server.pending import Pending
from server.priorities import Lanes, Queues, level_of
from server.tensors import Array, Signature, Timing, made

Outputs = dict[str, Array]

# A batch that is expected to be quicker than this runs in the event loop: waking a thread costs some 50-100 µs, and
# nothing else on the loop is held up for longer than this.
INLINE_SECONDS = 0.001
# Such a batch may be of many rows, and still takes less than this.
LONG_SECONDS = 1.0
# The same in bytes, where rows differ in size, so that their number does not tell what they cost.
INLINE_BYTES = 16 * 1024
# Decoding and checking so much takes about a millisecond.
IN_THREAD = 64 * 1024

# Parameters that are about transport, not about the model: they do not keep requests apart.
TRANSPORT_PARAMETERS = frozenset(
    (
        "binary_data_output",
        "content_type",
        "headers",
        "priority",
        "sequence_end",
        "sequence_id",
        "sequence_start",
        "signature_name",
        "timeout",
        "triton_enable_empty_final_response",
    )
)


class Predict(Protocol):
    def __call__(
        self, signature: Signature, inputs: dict[str, Array], outputs: tuple[str, ...], parameters: Mapping[str, Any]
    ) -> Any: ...


class Result(NamedTuple):
    outputs: Outputs
    timing: Timing


@dataclass(slots=True, eq=False)
class Job:
    """One caller's checked inputs on their way through the queue.

    `deadline` is on `time.monotonic`'s clock; `nbytes` are the wire's, or the arrays' where those are more.
    """

    signature: Signature
    arrays: dict[str, Array]
    rows: int
    outputs: tuple[str, ...]
    parameters: Mapping[str, Any]
    deadline: float | None = None
    queued_at: float = 0.0
    nbytes: int = 0
    future: "Pending[Result]" = field(init=False)
    timer: asyncio.TimerHandle | None = None
    waiting: bool = False


@dataclass(frozen=True)
class Limits:
    """`rows` and `nbytes` bound one batch, `queue_rows` and `queue_bytes` what waits, `concurrency` the batches at once."""

    rows: int = 64
    nbytes: int = 64 << 20
    queue_rows: int = 1024
    queue_bytes: int = 512 << 20
    concurrency: int = 1


class Observer(Protocol):
    """Who is told about batches (metrics).  Durations are in seconds."""

    def batch(self, rows: int, seconds: float) -> None: ...
    def fallback(self) -> None: ...
    def rejected(self, reason: str) -> None: ...
    def queued(self, rows: int) -> None: ...
    def alone(self, why: str) -> None: ...


@dataclass(slots=True)
class Faults:
    """What went wrong while a batch ran: how often a part was run again, and why rows can't be joined, if they can't."""

    fallbacks: int = 0
    alone: str = ""


def batch_key(job: Job) -> Hashable | None:
    """Jobs with equal keys may run as one batch; None runs alone."""
    signature = job.signature
    if not signature.batched or job.rows == 0:
        return None
    told = [(k, repr(v)) for k, v in job.parameters.items() if k not in TRANSPORT_PARAMETERS] if job.parameters else ()
    if signature.uniform and not told:
        return signature.name, job.outputs
    shapes = () if signature.uniform else tuple(sorted((name, a.shape[1:]) for name, a in job.arrays.items()))
    return signature.name, job.outputs, shapes, tuple(sorted(told))


def merge(jobs: Sequence[Job]) -> dict[str, Array]:
    """The jobs' inputs joined along the batch, in order; one job's own arrays as they are."""
    if len(jobs) == 1:
        return jobs[0].arrays
    return {name: np.concatenate([j.arrays[name] for j in jobs]) for name in jobs[0].arrays}


class WrongRowCount(RuntimeFailed):
    """The model gave another number of rows than it got: nobody can say which row is whose."""


def split(outputs: Outputs, jobs: Sequence[Job]) -> list[Outputs]:
    """Each job's rows of the outputs, as views; WrongRowCount unless every output has exactly the rows that went in."""
    total = sum(j.rows for j in jobs)
    if jobs[0].signature.batched:
        for name, array in outputs.items():
            if array.ndim == 0 or len(array) != total:
                found = "a scalar" if array.ndim == 0 else f"{len(array)} rows"
                raise WrongRowCount(f"the model returned {found} for {total} in output {name!r}")
    if len(jobs) == 1:
        return [outputs]
    parts, start = [], 0
    for job in jobs:
        parts.append({name: array[start : start + job.rows] for name, array in outputs.items()})
        start += job.rows
    return parts


def _outputs_of(job: Job, returned: Any) -> Outputs:
    if not isinstance(returned, dict) or any(name not in returned for name in job.outputs):
        raise RuntimeFailed(f"the runtime returned {type(returned).__name__} without the outputs {', '.join(job.outputs)}")
    # no names: the model's outputs are not known beforehand, and all of them are wanted
    return {name: returned[name] for name in job.outputs} if job.outputs else returned


def as_serving_error(error: BaseException) -> ServingError:
    """What a caller may be told about an exception of the model's."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, MemoryError):
        failed: ServingError = ResourceExhausted("the model ran out of memory on this request; send fewer rows at once")
    else:
        failed = RuntimeFailed(f"the model failed: {type(error).__name__}")
    failed.__cause__ = error
    return failed


def execute(predict: Predict, jobs: Sequence[Job], faults: Faults) -> list[Outputs | ServingError]:
    """Run jobs of one key as one batch; when it fails, halves of it, so that only the culprits fail.  Never raises."""
    job = jobs[0]
    try:
        returned = predict(job.signature, merge(jobs), job.outputs, job.parameters)
        return list(split(_outputs_of(job, returned), jobs))
    except BaseException as error:  # a model may call sys.exit(): that ends its request, not this thread
        if len(jobs) == 1:
            return [as_serving_error(error)]
        faults.fallbacks += 1
        if isinstance(error, WrongRowCount):
            faults.alone = str(error)
            return [one for j in jobs for one in execute(predict, [j], faults)]
    half = len(jobs) // 2
    return execute(predict, jobs[:half], faults) + execute(predict, jobs[half:], faults)


async def execute_async(predict: Predict, job: Job) -> list[Outputs | ServingError]:
    """The same for a runtime whose `predict` is a coroutine function; such jobs run alone."""
    try:
        returned = await predict(job.signature, job.arrays, job.outputs, job.parameters)
        return list(split(_outputs_of(job, returned), [job]))
    except BaseException as error:  # see `execute`; nobody cancels the task that runs this
        return [as_serving_error(error)]


class Batcher:
    """The queue in front of one loaded model.  All methods are called in the event loop's thread.

    `alone` says why requests are not joined (the self test failed, or the model is not row-wise), and is empty where they
    are; it is filled once a batch comes back with the wrong rows.  What is not joined is not cut into chunks either.
    """

    def __init__(
        self,
        predict: Predict,
        limits: Limits,
        cost: Cost,
        executor: Executor,
        observer: Observer,
        *,
        alone: str = "",
        is_async: bool = False,
    ) -> None:
        self.limits, self.cost, self.alone = limits, cost, alone
        self._predict, self._executor, self._observer, self._is_async = predict, executor, observer, is_async
        self._inline = not is_async and cost.of(1) < INLINE_SECONDS
        self.counts = BatchCounts()
        self._queues: Queues[Job] = {}
        self._lanes: Lanes[Job] = Lanes()
        self._queued_rows = self._queued_bytes = 0
        self._running = 0
        self._scheduled = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def inline(self) -> bool:
        """Whether answers come within a turn or two of the loop, so that nobody needs to be watched meanwhile."""
        return self._inline

    @property
    def queued_rows(self) -> int:
        return self._queued_rows

    def submit(self, job: Job) -> "Pending[Result]":
        """The job's result to come; Overloaded at once where the queue has no room or could not answer in time."""
        job.queued_at = now = time.monotonic()
        nbytes = 0
        for array in job.arrays.values():
            nbytes += array.nbytes
        if nbytes > job.nbytes:
            job.nbytes = nbytes
        waiting, limits = self._queued_rows, self.limits
        level = level_of(job.parameters) if job.parameters else 0
        if waiting:
            if waiting + job.rows > limits.queue_rows or self._queued_bytes + job.nbytes > limits.queue_bytes:
                self._reject("queue_full", f"the queue is full: {waiting} rows wait")
            # who has a long time need not be told that one batch of a quick model takes a short one
            if (
                job.deadline is not None
                and not level
                and not (self._inline and waiting <= limits.rows and job.deadline - now > LONG_SECONDS)
            ):
                wait = self._expected_wait()
                if now + wait > job.deadline:
                    self._reject("no_time", f"the queue needs about {wait:.1f} s, more than this request's deadline")
        job.future = Pending(self._loop)
        key = None if self.alone else batch_key(job)
        queues = self._lanes.queues(level) if level else self._queues
        queue = queues.get(key)
        if key is None or queue is None:
            queue = queues[job if key is None else key] = deque()
        queue.append(job)
        job.waiting = True
        self._queued_rows += job.rows
        self._queued_bytes += job.nbytes
        if self._running or not self._is_quick(job.signature, job.rows, job.nbytes):
            self._watch(job)
        if not self._scheduled:
            self._schedule()
        return job.future

    def _is_quick(self, signature: Signature, rows: int, nbytes: int) -> bool:
        """Whether so much may run in the event loop."""
        return self._inline and self.cost.of(rows) < INLINE_SECONDS and (signature.even or nbytes <= INLINE_BYTES)

    def aside(self, nbytes: int, work: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        """The work on so many bytes done, in a thread where it is much."""
        return aside(self._executor, nbytes, work, *args)

    async def drained(self) -> None:
        """Return when nothing waits and nothing runs."""
        await self._idle.wait()

    def _reject(self, reason: str, text: str) -> None:
        self._observer.rejected(reason)
        raise Overloaded(f"{text}; try again later", retry_after=max(1.0, self._expected_wait()))

    def _expected_wait(self) -> float:
        """Seconds until what waits now has run, were it all joined in full batches."""
        if not self._queued_rows:
            return 0.0
        full = 1 if self.alone else self.limits.rows
        waiting = (queue for queues in (self._queues, *self._lanes) for queue in queues.values())
        batches = sum(map(len, waiting)) if self.alone else -(-self._queued_rows // full)
        per_batch = self.cost.of(min(full, self._queued_rows))
        return batches * per_batch / self.limits.concurrency

    def _watch(self, job: Job) -> None:
        """See to it that a job whose time is over is answered, and one whose caller has gone gives back its place."""
        if job.deadline is not None:
            job.timer = self._loop.call_later(max(0.0, job.deadline - job.queued_at), self._expire, job)
        job.future.add_done_callback(lambda _: self._leave(job))

    def _leave(self, job: Job) -> None:
        if job.waiting:
            job.waiting = False
            self._queued_rows -= job.rows
            self._queued_bytes -= job.nbytes

    def _expire(self, job: Job) -> None:
        if not job.future.done():
            self._observer.rejected("deadline")
            job.future.set_exception(DeadlineExceeded("the deadline passed before the model answered"))

    def _schedule(self) -> None:
        self._idle.clear()
        if not self._scheduled and self._running < self.limits.concurrency:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        while (self._queues or self._lanes) and self._running < self.limits.concurrency:
            jobs = self._take_by_priority() if self._lanes else self._take(self._queues, next(iter(self._queues)), [])
            if not jobs:
                continue
            rows = sum([j.rows for j in jobs])
            if self._is_async:
                self._start_async(jobs[0])
            elif self._is_quick(jobs[0].signature, rows, sum([j.nbytes for j in jobs])):
                self._run(jobs, rows)
                # others on the loop come first; what they bring joins the next batch
                if self._queues or self._lanes:
                    self._schedule()
                break
            else:
                self._running += 1
                self._executor.submit(self._run_in_thread, jobs, rows)
        self._observer.queued(self._queued_rows)
        if not self._queues and not self._lanes and not self._running:
            self._idle.set()

    def _take_by_priority(self) -> list[Job]:
        """The next batch where some go before others: whose turn it is, and then those who may be joined with them."""
        first, *others = self._lanes.order(self._queues)
        key = next(iter(first))
        jobs = self._take(first, key, [])
        for queues in others:
            if key in queues:
                self._take(queues, key, jobs)
        self._lanes.tidy()
        return jobs

    def _take(self, queues: Queues[Job], key: Hashable, jobs: list[Job]) -> list[Job]:
        """The batch with the jobs of one key added up to the limits, the dead left out; the key then goes to the back."""
        queue = queues[key]
        now, rows, nbytes = time.monotonic(), 0, 0
        for job in jobs:
            rows, nbytes = rows + job.rows, nbytes + job.nbytes
        while queue:
            job = queue[0]
            if jobs and (rows + job.rows > self.limits.rows or nbytes + job.nbytes > self.limits.nbytes):
                break
            queue.popleft()
            if job.waiting:
                self._leave(job)
            if job.future.done():
                continue
            if job.deadline is not None and now + self.cost.of(job.rows) * 0.5 > job.deadline:
                self._expire(job)
                continue
            jobs.append(job)
            rows, nbytes = rows + job.rows, nbytes + job.nbytes
        del queues[key]
        if queue:
            queues[key] = queue
        return jobs

    def _run(self, jobs: list[Job], rows: int) -> None:
        started, faults = time.monotonic(), Faults()
        answers = execute(self._predict, jobs, faults)
        self._deliver(jobs, rows, answers, faults, started, time.monotonic() - started)

    def _run_in_thread(self, jobs: list[Job], rows: int) -> None:
        started, faults = time.monotonic(), Faults()
        answers = execute(self._predict, jobs, faults)
        seconds = time.monotonic() - started
        self._loop.call_soon_threadsafe(self._finish, jobs, rows, answers, faults, started, seconds)

    def _start_async(self, job: Job) -> None:
        self._running += 1
        started = time.monotonic()

        async def run() -> None:
            answers = await execute_async(self._predict, job)
            self._finish([job], job.rows, answers, Faults(), started, time.monotonic() - started)

        task = self._loop.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _finish(
        self, jobs: list[Job], rows: int, answers: list[Outputs | ServingError], faults: Faults, started: float, seconds: float
    ) -> None:
        self._running -= 1
        self._deliver(jobs, rows, answers, faults, started, seconds)
        self._dispatch()

    def _deliver(
        self, jobs: list[Job], rows: int, answers: list[Outputs | ServingError], faults: Faults, started: float, seconds: float
    ) -> None:
        """Give each caller its own answer, once; callers who have gone get none."""
        self.cost.observe(rows, seconds)
        for job, answer in zip(jobs, answers, strict=True):
            if job.timer is not None:
                job.timer.cancel()
            if job.future.done():
                continue
            if isinstance(answer, ServingError):
                self.counts.failed_rows += job.rows
                if isinstance(answer, ResourceExhausted):
                    # running out of memory can take seconds: never again in the event loop
                    self._inline = False
                job.future.set_exception(answer)
            else:
                job.future.set_result(made(Result, (answer, made(Timing, (started - job.queued_at, seconds, rows, started)))))
        self._observer.batch(rows, seconds)
        self.counts.add(rows, len(jobs), started, seconds)
        for _ in range(faults.fallbacks):
            self._observer.fallback()
        if faults.alone and not self.alone:
            self.alone = faults.alone
            self._observer.alone(faults.alone)


async def aside(executor: Executor, nbytes: int, work: Callable[..., Any], *args: Any) -> Any:
    """The work on so many bytes done: here if it is little, else in a thread, because it would hold up others."""
    if nbytes <= IN_THREAD:
        return work(*args)
    return await asyncio.get_running_loop().run_in_executor(executor, work, *args)


def chunks(job: Job, limit: int) -> list[Job]:
    """A job as jobs of at most `limit` rows, in order: a large request takes its turns among the small ones."""
    return [
        Job(
            job.signature,
            {name: a[start : start + limit] for name, a in job.arrays.items()},
            min(limit, job.rows - start),
            job.outputs,
            job.parameters,
            job.deadline,
            nbytes=job.nbytes * min(limit, job.rows - start) // job.rows,
        )
        for start in range(0, job.rows, limit)
    ]


def submit_whole(batcher: Batcher, job: Job) -> Awaitable[Result]:
    """The result of a job of any size."""
    if job.rows <= batcher.limits.rows or batcher.alone or not job.signature.batched:
        return batcher.submit(job)
    return _submit_chunks(batcher, job)


async def _submit_chunks(batcher: Batcher, job: Job) -> Result:
    """Chunk after chunk, so that what others send meanwhile runs in between."""
    results = [await batcher.submit(part) for part in chunks(job, batcher.limits.rows)]
    outputs = await batcher.aside(job.nbytes, joined, results, job.outputs)
    queue, compute = sum(r.timing.queue for r in results), sum(r.timing.compute for r in results)
    return Result(outputs, Timing(queue, compute, batcher.limits.rows, results[0].timing.began))


def joined(results: Sequence[Result], names: Sequence[str]) -> Outputs:
    return {name: np.concatenate([r.outputs[name] for r in results]) for name in names}
