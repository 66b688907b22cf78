"""Puts the rooms together: start-up, readiness, drain.  The only file that knows them all."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import uvicorn
import uvloop

from server import announce, warmup
from server.errors import ModelLoadError
from server.example import curl
from server.folders import listing
from server.grpc_calls import GrpcCalls
from server.grpc_fast import FastGrpcEdge
from server.http_api import Edge
from server.http_fast import FastProtocol, Heads, TracedProtocol
from server.http_protocol import HttpProtocol
from server.inference import Inference
from server.life import VERSION, Life
from server.loading import BatchOptions, Loader
from server.log import Sink, configure_logging, fail, log
from server.models import Registry, Version
from server.repository import Repository
from server.runtime import LoadOptions
from server.settings import Settings, cpu_budget
from server.sockets import listen
from server.sources import Sources, model_name, sources_of
from server.telemetry import AccessLog, Metrics

if TYPE_CHECKING:
    from server.spans import Tracing

# Waiting threads cost nothing; too few would let one model's slow batch hold up another's.
THREADS = 16

# What sending the last spans may take.
SPANS_SECONDS = 2.0


class HttpServer(uvicorn.Server):
    """uvicorn, but signals are ours: a predictor drains before it stops."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class Predictor:
    """One process's parts, made but not started."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(bool(settings.metrics_dir), settings.metrics_compat.split(","), VERSION)
        self.registry = Registry()
        self.life = Life(self.registry)
        self.executor = ThreadPoolExecutor(THREADS, thread_name_prefix="predict")
        json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
        self.sink = Sink(sys.stderr.fileno())
        self.access_log = AccessLog(self.sink, json, settings.access_log_sample) if settings.access_log else None
        self.tracing = None if settings.trace_sample is None else tracing(settings.trace_sample, self.access_log)
        seen_by = self.tracing or self.access_log
        self.inference = Inference(self.registry, settings, self.metrics, seen_by, self.executor)
        control = settings.enable_model_control
        # a worker can't tell the others
        self.repository = Repository(self._loader(), self.registry, control=control, alone=not settings.metrics_dir)
        self.edge = Edge(self.inference, self.life, self.repository)
        fast = FastProtocol if self.tracing is None else TracedProtocol
        protocol = partial(fast, self.inference, self.life, Heads()) if settings.http_fast else partial(HttpProtocol, settings)
        config = uvicorn.Config(
            self.edge,
            loop="none",
            http=protocol,  # type: ignore[arg-type]  # what makes a protocol will do
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=int(settings.timeout_keep_alive),
            backlog=2048,
            timeout_graceful_shutdown=max(1, round(settings.grace)),
        )
        self.http = HttpServer(config)
        self.calls = GrpcCalls(self.inference, self.life, self.repository)
        self.grpc = grpc_edge(settings, self.calls) if settings.enable_grpc else None
        self._ports = 0, 0
        # the HTTP server's task, once it listens
        self._serving: list[asyncio.Task[None]] = []
        # what goes on beside the requests
        self._tasks: set[asyncio.Task[object]] = set()
        configure_logging(json, self.sink, sys.stderr.isatty())

    async def run(self) -> int:
        """Serve until told to stop; the process's exit code."""
        settings, out = self.settings, announce.own_stdout()
        stop = Stop(lambda: self.inference.in_flight)
        try:
            if not settings.listen_when_ready:
                await self._listen()
            loading = asyncio.create_task(self._load())
            watching = asyncio.create_task(self._watch())
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({loading, stopping, *self._serving}, return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                loading.cancel()
                return 0
            loading.result()
            if settings.listen_when_ready:
                await self._listen()
            try:
                # nobody holds on to a handle: it would be one version that can't go
                told = announce.facts(settings, self.registry.any_ready(), *self._ports, curl, self.life.models())
                announce.ready(out, settings.output, told)
            except OSError as error:
                return fail(f"can't say on stdout that the model is ready: {error.strerror}")
            await stop.wait()
            watching.cancel()
            await self._drain(stop)
            await self.repository.close()
        except ModelLoadError as error:
            self.sink.flush()
            return fail(str(error))
        finally:
            self.http.should_exit = True
            for serving in self._serving:
                await asyncio.wait_for(serving, settings.grace + 5)
            if self.grpc:
                await self.grpc.stop(0)
            if self.access_log:
                self.access_log.flush()
            if self.tracing:
                await self._send_spans(self.tracing)
            self.sink.flush()
        return 0

    async def _listen(self) -> None:
        """Take connections from here on; ModelLoadError says which port can't be had."""
        settings = self.settings
        listener = listen("HTTP", settings.host, settings.http_port, settings.reuse_port)
        try:
            grpc_port = await self.grpc.start(settings.host, settings.grpc_port) if self.grpc else 0
        except ModelLoadError:
            listener.close()
            raise
        self._ports = listener.getsockname()[1], grpc_port
        self._serving.append(asyncio.create_task(self.http.serve([listener])))

    def _loader(self) -> Loader:
        settings = self.settings
        options = LoadOptions(
            threads=settings.threads or cpu_budget(),
            trust_code=settings.trusts_code,
            strict_versions=settings.strict_versions,
            extra=settings.runtime_options,
        )
        batches = BatchOptions(settings.max_batch_size, settings.max_queue, settings.concurrency, settings.timeout)
        return Loader(self.registry, self.metrics, self.executor, options, batches, warmup.replay)

    async def _load(self) -> None:
        """The first load.  ModelLoadError says why there is no model that answers."""
        settings, repository = self.settings, self.repository
        file = listing(Path(settings.model_config_file)) if settings.model_config_file else None
        if file is not None:
            reload = partial(self._begin, partial(repository.reload, Path(file.path)))
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        else:
            # where it takes a while to bring the model here, somebody may ask for it
            self.registry.put(Version(settings.model_name or model_name(settings.model_dir), ""))
        sources: Sources = await asyncio.get_running_loop().run_in_executor(self.executor, sources_of, settings)
        await repository.start(sources)
        if settings.poll_interval and sources.may_change:
            self._begin(partial(repository.watch, settings.poll_interval, file))
        self.registry.any_ready()

    def _begin(self, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self, stop: "Stop") -> None:
        """Not ready at once; then no new connections; then nothing left to do.  A second signal ends the process."""
        self.life.draining = True
        delay = 0.0 if stop.signal == signal.SIGINT else self.settings.drain_delay
        log.info("draining", signal=signal.Signals(stop.signal).name, delay=delay, grace=self.settings.grace)
        self.calls.readiness_changed()
        await asyncio.sleep(delay)
        rest = max(0.1, self.settings.grace - delay)
        self.http.config.timeout_graceful_shutdown = max(1, round(rest))
        self.http.should_exit = True
        if self.grpc:
            self.calls.end_streams()
            await self.grpc.stop(rest)

    async def _send_spans(self, tracing: "Tracing") -> None:
        """Those that have not gone yet, for a while: a collector that is not there is no reason to stay."""
        tracing.flush()
        with contextlib.suppress(TimeoutError):
            sending = asyncio.get_running_loop().run_in_executor(self.executor, tracing.close)
            await asyncio.wait_for(sending, SPANS_SECONDS)

    async def _watch(self, every: float = 1.0) -> None:
        """How late the event loop wakes up: what a request waits before anyone looks at it.

        And whether a worker still has its parent: without one nobody would ever stop it, or give its ports back.
        """
        loop, parent = asyncio.get_running_loop(), os.getppid()
        while True:
            due = loop.time() + every
            await asyncio.sleep(every)
            self.metrics.loop_lag.set(max(0.0, loop.time() - due))
            if self.settings.metrics_dir and os.getppid() != parent:
                parent = os.getppid()
                log.warning("the process that started this worker has gone")
                os.kill(os.getpid(), signal.SIGTERM)


class Stop:
    """The first SIGTERM or SIGINT asks to drain; the second ends the process there and then.

    That is an ordinary end (exit 0) where nobody was waiting for an answer, and a violent one (128 + the signal) where
    `in_flight` says that somebody was.
    """

    def __init__(self, in_flight: Callable[[], int]) -> None:
        self.signal: int = 0
        self._in_flight = in_flight
        self._asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._take, number)

    def _take(self, number: int) -> None:
        if self._asked.is_set():
            os._exit(128 + number if self._in_flight() else 0)
        self.signal = number
        self._asked.set()

    async def wait(self) -> None:
        await self._asked.wait()


def tracing(share: float, log: AccessLog | None) -> "Tracing":
    """What makes spans.  OpenTelemetry is imported only where it is asked for; ModelLoadError where it is not there."""
    try:
        from server.spans import begin
    except ModuleNotFoundError as error:
        raise ModelLoadError(
            "--trace_sample needs OpenTelemetry, which is not installed",
            "run: pip install 'serveplane[telemetry]' (here: scripts/install telemetry)",
        ) from error
    return begin(share, VERSION, log)


class CallEdge(Protocol):
    """What a gRPC engine is to us."""

    async def start(self, host: str, port: int) -> int: ...

    async def stop(self, grace: float) -> None: ...


def grpc_edge(settings: Settings, calls: GrpcCalls) -> CallEdge:
    """The engine that the settings name.  The library is imported only for its own: it costs start and memory."""
    if settings.grpc_engine == "fast":
        return FastGrpcEdge(calls)
    from server.grpc_api import GrpcEdge

    return GrpcEdge(calls)


def main(settings: Settings) -> NoReturn:
    """Run one predictor in this process, on uvloop, and end the process with its exit code."""

    async def run() -> int:
        try:
            predictor = Predictor(settings)
        except ModelLoadError as error:
            return fail(str(error))
        return await predictor.run()

    code: int = uvloop.run(run())
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    # not `return`: the interpreter would wait for threads, and a model that does not come back keeps one for ever
    os._exit(code)
