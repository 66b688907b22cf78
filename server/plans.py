"""Requests that say what one before them has said, but for the numbers of their one input: looked up, not read again.

A client sends the same text around its numbers each time.  What was made of it once (the model's signature, the input's
name and shape, the wanted outputs, the parameters) is kept under the bytes before and after the numbers; of the next such
request only the numbers are read.  Whether those bytes mean the same whatever the numbers are is not assumed: other
numbers are put in their place, the whole is decoded the ordinary way, and has to differ in these numbers alone.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson

from server.batcher import Job
from server.models import ModelHandle
from server.protocols import json_values
from server.tensors import DATATYPES, Array, InferRequest, Tensor, made

# Kept for one model, and how many bytes of a request may be other than numbers.
MOST_PLANS, LARGEST_FRAME = 1024, 2048
# Bytes of numbers in an answer that is written by plan.
LARGEST_ANSWER = 16 * 1024
# Frames that were seen once: what comes a single time is not worth a plan.
MOST_SEEN = 8192
# Lists within lists.
DEEPEST = 5
# Places of one length that are tried.
MOST_PLACES = 4
_CLOSING = tuple(b"]" * depth for depth in range(DEEPEST + 3))

# What an edge's decoder makes of a body: the request, and how its answer is to be written.
Decode = Callable[[bytes], tuple[InferRequest, Any]]
Frame = tuple[bytes, bytes]


class Parts(NamedTuple):
    """A body's bytes: those around its numbers, and the numbers, nested so deep in JSON (0: raw)."""

    frame: Frame
    numbers: bytes
    depth: int


class Written(NamedTuple):
    """How the answers of one frame are written that have one output of this shape: these bytes around its numbers."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    numbers: Callable[[Array], bytes]
    before: bytes
    after: bytes
    # what else the encoder says of such an answer
    extra: Any

    def text(self, outputs: Mapping[str, Array]) -> bytes | None:
        """The answer with this output; None where it is another one."""
        array = outputs.get(self.name)
        if array is None or array.shape != self.shape or array.dtype is not self.dtype:
            return None
        numbers = self.numbers(array)
        # a number that JSON has not, which is written in more ways than one
        return None if b"null" in numbers and self.numbers is not _raw else b"%b%b%b" % (self.before, numbers, self.after)


class Plan:
    """How a request of one frame is run.  `extra` is how its answer is written; `timeout` in seconds, None for none.

    `written` is how it was written the last time, where that was plain.
    """

    __slots__ = ("_array", "_decode", "_job", "_name", "_parameters", "depth", "extra", "id", "is_learnt", "timeout", "written")

    def __init__(self, request: InferRequest, extra: Any, job: Job, depth: int) -> None:
        self.id, self.timeout, self.extra, self.depth = request.id, request.timeout, extra, depth
        ((self._name, array),) = job.arrays.items()
        ((_, tensor),) = request.inputs.items()
        datatype = DATATYPES[tensor.datatype]
        # as it was sent, and where that is another one, as the model wants it
        self._array = array.shape, datatype.dtype, array.size, array.dtype if array.dtype != datatype.dtype else None
        self._decode = json_values.decoder(datatype, depth) if depth else None
        self._job = job.signature, job.rows, job.outputs
        self._parameters = job.parameters
        self.written: Written | None = None
        self.is_learnt = False

    def learn(self, outputs: Mapping[str, Array], encode: Callable[[dict[str, Array]], tuple[bytes, Any]]) -> None:
        """How answers are written, from one of them; a second look would find nothing else."""
        self.is_learnt = True
        self.written = written(outputs, encode)

    def job(self, numbers: bytes, deadline: float | None, nbytes: int) -> Job | None:
        """The job of a request with these numbers; None where they do not fit the frame."""
        shape, dtype, size, widened = self._array
        array: Array
        if self._decode is not None:
            try:
                array = np.array(self._decode(numbers), dtype)
            except json_values.NOT_THAT:
                return None
            if array.shape != shape:
                if self.depth > 1 or array.shape != (size,):
                    return None
                array = array.reshape(shape)
        elif len(numbers) != size * dtype.itemsize:
            return None
        else:
            array = np.ndarray(shape, dtype, numbers)
        if widened is not None:
            array = array.astype(widened)
        signature, rows, outputs = self._job
        # a model may write into its parameters
        parameters = dict(self._parameters) if self._parameters else {}
        return Job(signature, {self._name: array}, rows, outputs, parameters, deadline, nbytes=nbytes)


class Plans:
    """The plans for one model version's requests, by their frames."""

    def __init__(self) -> None:
        self._plans: dict[Frame, Plan | None] = {}
        self._seen: set[int] = set()
        self.find = self._plans.get
        # what was found last, by JSON: mostly it is the next one's, too
        self.last: tuple[bytes, bytes, Plan | None] = b"", b"", None

    def find_json(self, body: bytes, key: bytes) -> tuple[Plan, bytes] | None:
        """The plan for a JSON body, and its numbers."""
        before, after, plan = self.last
        if plan is not None and body.startswith(before) and body.endswith(after):
            # a list and nothing else, or it is not decoded
            return plan, body[len(before) : len(body) - len(after)]
        parts = json_parts(body, key)
        plan = None if parts is None else self._plans.get(parts.frame)
        if plan is None or parts is None:
            return None
        self.last = *parts.frame, plan
        return plan, parts.numbers

    def wanted(self, frame: Frame) -> bool:
        """Whether it is time to `keep` a plan for this frame, which none is kept for: not the first time that it is seen."""
        if frame in self._plans or len(frame[0]) + len(frame[1]) > LARGEST_FRAME:
            return False
        number = hash(frame)
        if number in self._seen:
            self._seen.discard(number)
            return True
        if len(self._seen) >= MOST_SEEN:
            self._seen.clear()
        self._seen.add(number)
        return False

    def keep(self, frame: Frame, plan: Plan | None) -> None:
        """`plan` is None for a frame that has none, which is then not looked into again."""
        if len(self._plans) >= MOST_PLANS:
            self._plans.clear()
        self._plans[frame] = plan


def json_parts(body: bytes, key: bytes) -> Parts | None:
    """A JSON body parted around the nested list behind a key such as `"data":`; None where there is no such list."""
    start = body.find(key)
    if start < 0:
        return None
    start += len(key)
    opening = body[start : start + 7].lstrip(b" ")
    depth = len(opening) - len(opening.lstrip(b"["))
    end = body.find(_CLOSING[depth], start) + depth
    if not 1 <= depth <= DEEPEST or end < start + depth:
        return None
    return made(Parts, ((body[:start], body[end:]), body[start:end], depth))


def binary_parts(body: bytes, json_length: str) -> Parts | None:
    """A body parted where its JSON ends and the bytes of its tensors begin."""
    if not json_length.isdecimal() or len(json_length) > 5:
        return None
    length = int(json_length)
    return made(Parts, ((body[:length], b""), body[length:], 0))


def message_parts(message: bytes, request: InferRequest) -> Parts | None:
    """A protobuf message parted around the bytes of its only tensor; None where they are not in it as the array has them.

    Only floats: whole numbers may be packed in fewer bytes the smaller they are, and look alike by chance.
    """
    if len(request.inputs) != 1:
        return None
    (tensor,) = request.inputs.values()
    numbers = tensor.array.tobytes() if tensor.array.dtype.kind == "f" else b""
    start = message.find(numbers) if numbers else -1
    return None if start < 0 else _around(message, start, start + len(numbers))


def _around(message: bytes, start: int, stop: int) -> Parts:
    return made(Parts, ((message[:start], message[stop:]), message[start:stop], 0))


class Kept(NamedTuple):
    """What is kept for one model version."""

    v1: Plans
    v2: Plans
    grpc: Plans

    @classmethod
    def of(cls, handle: ModelHandle) -> "Kept":
        if handle.kept is None:
            handle.kept = cls(Plans(), Plans(), Plans())
        kept: Kept = handle.kept
        return kept


class Spans:
    """Where messages of one length have their numbers, and which model version a frame is for."""

    def __init__(self) -> None:
        self._places: dict[int, list[tuple[int, int]]] = {}
        self._of: dict[Frame, tuple[str, str]] = {}
        self._last: tuple[int, Frame, tuple[str, str]] = -1, (b"", b""), ("", "")

    def find(self, message: bytes) -> tuple[str, str, Parts] | None:
        length, frame, of = self._last
        if len(message) == length and message.startswith(frame[0]) and message.endswith(frame[1]):
            return *of, made(Parts, (frame, message[len(frame[0]) : length - len(frame[1])], 0))
        for start, stop in self._places.get(len(message), ()):
            parts = _around(message, start, stop)
            if parts.frame in self._of:
                of = self._of[parts.frame]
                self._last = len(message), parts.frame, of
                return *of, parts
        return None

    def keep(self, request: InferRequest, parts: Parts) -> None:
        if len(self._of) >= MOST_PLANS:
            self._of.clear()
            self._places.clear()
        start = len(parts.frame[0])
        place = start, start + len(parts.numbers)
        places = self._places.setdefault(start + len(parts.numbers) + len(parts.frame[1]), [])
        if place not in places:
            places.append(place)
            # each is a look at every message of this length
            del places[:-MOST_PLACES]
        self._of[parts.frame] = request.model, request.version


def plan_of(parts: Parts, request: InferRequest, extra: Any, job: Job, decode: Decode) -> Plan | None:
    """The plan for all requests of this frame, from one of them, what `decode` made of it and the job that it became.

    None where there is more to the request than the numbers of one input, taken as they are.
    """
    if len(request.inputs) != 1 or len(job.arrays) != 1 or not job.rows:
        return None
    ((given, tensor),) = request.inputs.items()
    spec = job.signature.spec(given)
    array = tensor.array
    if spec is None or not is_plain(tensor.datatype, spec.datatype) or array.shape[1:] != spec.row:
        return None
    if not parts.depth and tensor.datatype in ("BF16", "BOOL"):
        return None  # their bytes are not the array's, or have to be looked at
    other = np.zeros_like(array) if array.any() else np.ones_like(array)
    before, after = parts.frame
    try:
        again, extra_again = decode(before + _as_sent(other, parts.depth) + after)
    except Exception:
        return None
    same = again.inputs.keys() == request.inputs.keys() and extra == extra_again
    same = same and (again.id, again.outputs, again.parameters, again.timeout, again.version, again.model) == (
        request.id, request.outputs, request.parameters, request.timeout, request.version, request.model
    )  # fmt: skip
    if not same or not _equal(again.inputs[given], Tensor(tensor.datatype, other)):
        return None
    plan = Plan(request, extra, job, parts.depth)
    again_job = plan.job(parts.numbers, None, 0)
    ran = Tensor(spec.datatype, job.arrays[spec.name])
    return plan if again_job is not None and _equal(ran, Tensor(spec.datatype, again_job.arrays[spec.name])) else None


def is_plain(sent: str, wanted: str) -> bool:
    """Whether values of the one datatype are those of the other whatever they are, as a signature's check has it."""
    if sent == wanted:
        return sent != "BYTES"
    return "BF16" not in (sent, wanted) and all(DATATYPES[one].dtype.kind in "iuf" for one in (sent, wanted))


def written(outputs: Mapping[str, Array], encode: Callable[[dict[str, Array]], tuple[bytes, Any]]) -> Written | None:
    """How `encode` writes answers with this output; None where that takes more than bytes around the numbers.

    Found out as with requests: by having it write other numbers in their place.
    """
    if len(outputs) != 1:
        return None
    ((name, array),) = outputs.items()
    if array.dtype.kind not in "fiu" or not array.dtype.isnative or not array.size or array.nbytes > LARGEST_ANSWER:
        return None
    # whatever is at the place of the ones is not by chance what is there of the zeros
    ones, zeros = np.ones(array.shape, array.dtype), np.zeros(array.shape, array.dtype)
    (text, extra), *others = encode({name: ones}), encode({name: zeros}), encode({name: array})
    for numbers in (_raw, _flat, _nested):
        before, found, after = text.rpartition(numbers(ones))
        one = Written(name, array.shape, array.dtype, numbers, before, after, extra)
        if found and others == [(one.text({name: zeros}), extra), (one.text(outputs), extra)]:
            return one
    return None


def _raw(array: Array) -> bytes:
    return array.tobytes()


def _flat(array: Array) -> bytes:
    return orjson.dumps(array.ravel(), option=orjson.OPT_SERIALIZE_NUMPY)


def _nested(array: Array) -> bytes:
    return orjson.dumps(array if array.flags.c_contiguous else array.copy(), option=orjson.OPT_SERIALIZE_NUMPY)


def _as_sent(array: Array, depth: int) -> bytes:
    if not depth:
        return array.tobytes()
    return orjson.dumps((array.ravel() if depth == 1 else array).tolist())


def _equal(one: Tensor, other: Tensor) -> bool:
    return (
        one.datatype == other.datatype
        and one.array.dtype == other.array.dtype
        and one.array.shape == other.array.shape
        and one.array.tobytes() == other.array.tobytes()
    )
