"""What Triton's clients may ask beside inference: configuration, statistics, settings.  Looked up, nothing is decided here.

REST (`routes_triton`) and gRPC (`grpc_triton`) give the same answers.
"""

import sys
import time

from server.errors import InvalidRequest, NotSupported
from server.inference import Inference
from server.models import ModelHandle, facts
from server.priorities import LEVELS
from server.protocols import triton
from server.protocols.triton import Batches, Counted, Document, Queueing, Total

# Statuses of requests that were answered as asked, over HTTP and over gRPC.
_ANSWERED = (200, "OK")
# Why a whole group of calls is refused.
SHARED_MEMORY = "this server does not map shared memory of its clients; send tensors in the request"
TRACE = "trace settings can't be read or changed while the server runs; requests are in /metrics and in the access log"
LOGGING = "log settings can't be changed while the server runs; start it with --access_log, --access_log_sample or --log_format"


class TritonCalls:
    """The documents of one process.  Raises ModelNotFound, ModelNotReady."""

    def __init__(self, inference: Inference) -> None:
        self._inference, self._registry = inference, inference.registry

    def config(self, name: str, version: str) -> Document:
        handle = self._registry.ready(name, version)
        batcher, runtime = handle.batcher, handle.runtime
        limits = batcher.limits
        timeout, alone = self._inference.settings.timeout, bool(batcher.alone)
        queueing = Queueing(limits.rows, limits.queue_rows, limits.concurrency, timeout, LEVELS, alone)
        return triton.config(handle.name, runtime.platform, handle.signature, queueing, facts(handle), runtime.labels)

    def statistics(self, name: str, version: str) -> Document:
        """Of one version, of the one that the server chooses, or (without a name) of all that are ready."""
        if name:
            return {"model_stats": [self._statistics(self._registry.ready(name, version))]}
        if version:
            raise InvalidRequest(f"version {version!r} of no model; name the model, or leave the version out")
        handles = [v.handle for v in self._registry.all_versions() if v.handle is not None]
        return {"model_stats": [self._statistics(handle) for handle in handles]}

    def _statistics(self, handle: ModelHandle) -> Document:
        counts = handle.batcher.counts
        answered, failed = Total(), Total()
        for code, (count, seconds) in self._requests(handle).items():
            if code in _ANSWERED:
                answered = Total(answered.count + count, answered.seconds + seconds)
            else:
                failed = Total(failed.count + count, failed.seconds + seconds)
        # the clocks differ by what they did when the process began
        last = round((time.time() - time.monotonic() + counts.last) * 1e3) if counts.last else 0
        return triton.statistics(
            handle.name,
            handle.version,
            Counted(
                answered=answered,
                failed=failed,
                queued=handle.metrics.queue_seconds,
                computed=counts.weighted,
                rows=counts.answered_rows,
                batches=[Batches(rows, Total(*of_size)) for rows, of_size in counts.sizes.items()],
                last=last,
                memory_bytes=handle.metrics.memory_bytes,
            ),
        )

    def _requests(self, handle: ModelHandle) -> dict[int | str, tuple[int, float]]:
        """By status.  Requests that failed before a version was chosen are those of the version that would have been."""
        metrics = self._inference.metrics
        found = metrics.requests(handle.name, handle.version)
        if handle.version and self._registry.find(handle.name).handle is handle:
            for code, (count, seconds) in metrics.requests(handle.name, "").items():
                before = found.get(code, (0, 0.0))
                found[code] = before[0] + count, before[1] + seconds
        return found

    def log_settings(self) -> dict[str, bool | int | str]:
        form = self._inference.settings.log_format
        return triton.log_settings(form == "json" or (form == "auto" and not sys.stderr.isatty()))


def refuse(text: str) -> None:
    """End a call that is not offered."""
    raise NotSupported(text)
