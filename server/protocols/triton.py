"""Triton's model configuration and statistics: from plain values to the documents that its clients read.  Pure.

Each document is what REST answers as JSON; `message` makes of it what gRPC answers, whose fields have the same names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from google.protobuf import json_format

from server.class_labels import FILE, ClassLabels
from server.protocols import _pb
from server.tensors import Signature, TensorSpec

Document = dict[str, Any]

# Where the name of a platform does not begin with that of its backend.
_BACKENDS = {"onnx": "onnxruntime", "keras": "tensorflow"}
# What Triton says for none.
_UNLIMITED = 0


class Queueing(NamedTuple):
    """How a model's requests are batched: the largest batch and queue in rows, `timeout` in seconds (0: none).

    `levels` of priority; `alone` is true where requests are not joined.
    """

    rows: int
    queue_rows: int
    concurrency: int
    timeout: float
    levels: int
    alone: bool


@dataclass(frozen=True)
class Total:
    """So many of something, and how long all of them took."""

    count: int = 0
    seconds: float = 0.0

    def document(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


class Batches(NamedTuple):
    """Batches of one number of rows."""

    rows: int
    total: Total


class Counted(NamedTuple):
    """What there was to count of one model version.  `last` is in milliseconds of the epoch, 0 for never.

    `queued` and `computed` are seconds of all answered requests together; a batch counts for each of its requests.
    """

    answered: Total
    failed: Total
    queued: float
    computed: float
    rows: int
    batches: Sequence[Batches]
    last: int
    memory_bytes: int


def message(name: str, document: Document) -> Any:
    """The message `inference.<name>` with this document's fields."""
    return json_format.ParseDict(document, _pb.message(name)())


def config(
    name: str, platform: str, signature: Signature, queueing: Queueing, facts: Mapping[str, str], labels: ClassLabels
) -> Document:
    """The ModelConfig of a model's default signature."""
    counts_rows = is_batched(signature)
    kind = platform.partition("_")[0]
    found: Document = {
        "name": name,
        "platform": platform,
        "backend": _BACKENDS.get(kind, kind),
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": queueing.rows if counts_rows else 0,
        "input": [{**_tensor(s, counts_rows), "format": "FORMAT_NONE", "optional": s.optional} for s in signature.inputs],
        "output": [
            {**_tensor(s, counts_rows), "label_filename": FILE if _is_labelled(s, labels) else ""} for s in signature.outputs
        ],
        "instance_group": [{"name": name, "count": queueing.concurrency, "kind": "KIND_CPU"}],
        "parameters": {key: {"string_value": value} for key, value in facts.items()},
        "model_transaction_policy": {"decoupled": False},
    }
    if not queueing.alone:
        found["dynamic_batching"] = {
            "preferred_batch_size": [queueing.rows],
            "max_queue_delay_microseconds": 0,
            "preserve_ordering": False,
            "priority_levels": queueing.levels,
            "default_priority_level": queueing.levels,
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": round(queueing.timeout * 1e6) or _UNLIMITED,
                "allow_timeout_override": True,
                "max_queue_size": queueing.queue_rows,
            },
        }
    return found


def is_batched(signature: Signature) -> bool:
    """Whether every tensor's first dimension is free and counts rows, so that Triton's clients may leave it out."""
    tensors = (*signature.inputs, *signature.outputs)
    return signature.batched and bool(tensors) and all(s.shape[:1] == (-1,) and not s.unknown_rank for s in tensors)


def _is_labelled(spec: TensorSpec, labels: ClassLabels) -> bool:
    return labels.in_file and bool(labels.of(spec.name, spec.shape[-1] if spec.shape else None))


def _tensor(spec: TensorSpec, counts_rows: bool) -> Document:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": list(spec.shape[1:] if counts_rows else spec.shape)}


def statistics(name: str, version: str, counted: Counted) -> Document:
    """The ModelStatistics.

    Joining inputs and cutting outputs is part of what a batch takes, so that it is in `compute_infer`; what decoding and
    encoding took is what `success` is longer than its parts.
    """
    answered = counted.answered.count
    nothing = Total().document()
    return {
        "name": name,
        "version": version,
        "last_inference": counted.last,
        "inference_count": counted.rows,
        "execution_count": sum(b.total.count for b in counted.batches),
        "inference_stats": {
            "success": counted.answered.document(),
            "fail": counted.failed.document(),
            "queue": Total(answered, counted.queued).document(),
            "compute_input": Total(answered).document(),
            "compute_infer": Total(answered, counted.computed).document(),
            "compute_output": Total(answered).document(),
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [
            {
                "batch_size": b.rows,
                "compute_input": Total(b.total.count).document(),
                "compute_infer": b.total.document(),
                "compute_output": Total(b.total.count).document(),
            }
            for b in counted.batches
        ],
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": counted.memory_bytes}],
    }


def log_settings(json: bool) -> dict[str, bool | int | str]:
    """What is logged, in the words of Triton's settings."""
    return {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "ISO8601" if json else "default",
    }
