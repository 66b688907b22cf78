"""What an .onnx file says about itself, read before (and without) onnxruntime: versions, operators, classes, external weights.

The file is mapped and its protobuf wire format walked by hand, because the alternatives read the weights too: `onnx.load`
and any protobuf message, even one that declares few fields, copy a 1 GB model into memory just to tell its version.  Here
a tensor's bytes are stepped over, so they are not even paged in.  Nothing in here runs a model, and of a file of weights
only the place and size are looked at.

The field numbers are those of onnx.proto, which never change their meaning.
"""

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from predictors.formats import CONTENTS, content_of
from server.errors import ModelLoadError

Value = int | memoryview
Labels = list[int] | list[str]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose bytes are in another file.  `location` is as the model has it; `length` 0 means: to the file's end."""

    name: str
    location: str
    offset: int = 0
    length: int = 0


@dataclass(frozen=True)
class Graph:
    """`opsets` and `operators` are by domain, "ai.onnx" for the default one.  `functions` are defined in the file itself.

    `unranked`: inputs and outputs that give no shape at all (onnxruntime shows them like scalars).
    `zipmaps`: class labels in the model's column order, by the output that a ZipMap node writes.
    """

    ir_version: int
    producer: str
    opsets: dict[str, int]
    operators: dict[str, set[str]]
    functions: frozenset[tuple[str, str]]
    unranked: frozenset[str]
    zipmaps: dict[str, Labels]
    classes: list[Labels]
    external: tuple[ExternalTensor, ...]


@dataclass
class _Found:
    """Filled while the graph, its subgraphs and its functions are walked."""

    operators: dict[str, set[str]] = field(default_factory=dict)
    unranked: set[str] = field(default_factory=set)
    zipmaps: dict[str, Labels] = field(default_factory=dict)
    classes: list[Labels] = field(default_factory=list)
    external: list[ExternalTensor] = field(default_factory=list)


class _Malformed(ValueError):
    pass


def read_graph(path: Path) -> Graph:
    """The file's facts; ModelLoadError, in one line, where it is no whole ONNX file."""
    content = content_of(path)
    if content not in ("onnx", "unknown"):
        raise ModelLoadError(f"cannot read {path} as ONNX: it is {CONTENTS[content].called}", CONTENTS[content].remedy)
    with path.open("rb") as file:
        # unmapped with its last view, which the traceback of an error may hold
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        return parse(whole)
    except ValueError as error:
        problem = str(error)
    raise ModelLoadError(
        f"cannot read {path} as ONNX: {problem} (size {len(whole)} bytes)",
        "it is damaged, cut short or another kind of file: copy or export it again",
    )


def check_external(path: Path, tensors: Iterable[ExternalTensor]) -> None:
    """ModelLoadError unless every file of weights is there, whole, and inside the model's folder.

    The folder that the model file itself really lies in counts too: download caches hold links to files side by side.
    """
    folders = (path.parent.resolve(), path.resolve().parent)
    ends: dict[str, ExternalTensor] = {}
    for tensor in tensors:
        known = ends.get(tensor.location)
        if known is None or tensor.offset + tensor.length > known.offset + known.length:
            ends[tensor.location] = tensor
    for location, last in ends.items():
        _check_weights(path, folders, location, last)


def _check_weights(path: Path, folders: tuple[Path, Path], location: str, last: ExternalTensor) -> None:
    wants = f"{path} has the weights of tensor {last.name!r} in {location!r}"
    if "\0" in location or Path(location).is_absolute() or ".." in Path(location).parts:
        raise ModelLoadError(f"{wants}, which may lead out of the model's folder", _OUTSIDE)
    file = (folders[0] / location).resolve()
    if not any(file.is_relative_to(folder) for folder in folders):
        raise ModelLoadError(f"{wants}, a link that leads out of the model's folder (to {file})", _OUTSIDE)
    if not file.is_file():
        raise ModelLoadError(f"{wants}, and there is no such file", f"copy it into {file.parent}, it belongs to the model")
    size, wanted = file.stat().st_size, last.offset + last.length
    if size < wanted:
        raise ModelLoadError(
            f"{wants}, which has {size} bytes where at least {wanted} are needed",
            "it is cut short or of another export: copy both files again",
        )


_OUTSIDE = "a model's weights must be in its own folder: put them there and save the model with their plain file name"


def parse(model: memoryview) -> Graph:
    """The facts in a serialised ModelProto; ValueError where the bytes are not one."""
    try:
        return _parse(model)
    except RecursionError:
        raise _Malformed("its subgraphs are nested too deeply") from None


def _parse(model: memoryview) -> Graph:
    graphs: list[memoryview] = []
    functions: list[memoryview] = []
    opsets: dict[str, int] = {}
    ir_version, producer = 0, ["", ""]
    for number, value in _fields(model):
        match number, value:
            case 1, int():
                ir_version = value
            case ((2 | 3), memoryview()):
                producer[number - 2] = _text(value)
            case 7, memoryview():
                graphs.append(value)
            case 8, memoryview():
                domain, version = _named(value)
                opsets[domain or "ai.onnx"] = version
            case 25, memoryview():
                functions.append(value)
    if not graphs:
        raise _Malformed("there is no graph in it")
    found = _Found()
    for graph in graphs:
        _walk_graph(graph, found, outermost=True)
    names = frozenset(_walk_function(f, found) for f in functions)
    return Graph(
        ir_version=ir_version,
        producer=" ".join(filter(None, producer)),
        opsets=opsets,
        operators=found.operators,
        functions=names,
        unranked=frozenset(found.unranked),
        zipmaps=found.zipmaps,
        classes=found.classes,
        external=tuple(found.external),
    )


def _walk_graph(graph: memoryview, found: _Found, outermost: bool = False) -> None:
    for number, value in _fields(graph):
        match number, value:
            case 1, memoryview():
                _walk_node(value, found)
            case 5, memoryview():
                _walk_tensor(value, found)
            case 15, memoryview():
                for _, part in _fields(value):
                    if isinstance(part, memoryview):
                        _walk_tensor(part, found)
            case ((11 | 12), memoryview()) if outermost:
                name, has_shape = _value_info(value)
                if not has_shape:
                    found.unranked.add(name)


def _walk_function(function: memoryview, found: _Found) -> tuple[str, str]:
    name, domain = "", ""
    for number, value in _fields(function):
        match number, value:
            case 1, memoryview():
                name = _text(value)
            case 7, memoryview():
                _walk_node(value, found)
            case 10, memoryview():
                domain = _text(value)
    return domain or "ai.onnx", name


def _walk_node(node: memoryview, found: _Found) -> None:
    outputs, operator, domain = [], "", ""
    classes: Labels = []
    for number, value in _fields(node):
        match number, value:
            case 2, memoryview():
                outputs.append(_text(value))
            case 4, memoryview():
                operator = _text(value)
            case 5, memoryview():
                classes = _walk_attribute(value, found) or classes
            case 7, memoryview():
                domain = _text(value)
    found.operators.setdefault(domain or "ai.onnx", set()).add(operator)
    if classes and operator == "ZipMap" and outputs:
        found.zipmaps[outputs[0]] = classes
    elif classes and classes not in found.classes:
        found.classes.append(classes)


def _walk_attribute(attribute: memoryview, found: _Found) -> Labels:
    """The class labels where the attribute lists such.  Other lists of numbers are left: a forest has millions of them."""
    wanted = False
    numbers: list[int] = []
    texts: list[str] = []
    for number, value in _fields(attribute):
        match number, value:
            case 1, memoryview():
                wanted = bytes(value).startswith(b"classlabels_")
            case ((5 | 10), memoryview()):
                _walk_tensor(value, found)
            case ((6 | 11), memoryview()):
                _walk_graph(value, found)
            case 8, int() if wanted:
                numbers.append(_signed(value))
            case 8, memoryview() if wanted:
                numbers += [_signed(n) for n in _varints(value)]
            case 9, memoryview() if wanted:
                texts.append(_text(value))
            case ((7 | 8 | 9), _):
                break
    return texts or numbers


def _walk_tensor(tensor: memoryview, found: _Found) -> None:
    name, entries = "", {}
    for number, value in _fields(tensor):
        match number, value:
            case ((4 | 5 | 6 | 7 | 10 | 11), _):
                # its values are in here, as one field each in old files
                break
            case 8, memoryview():
                name = _text(value)
            case 13, memoryview():
                key, entry = _entry(value)
                entries[key] = entry
    if "location" in entries:
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
        except ValueError as error:
            raise _Malformed(f"the place of tensor {name!r} in {entries['location']!r} is no number") from error
        if offset < 0 or length < 0:
            raise _Malformed(f"the place of tensor {name!r} in {entries['location']!r} is negative")
        found.external.append(ExternalTensor(name, entries["location"], offset, length))


def _value_info(value_info: memoryview) -> tuple[str, bool]:
    name, has_shape = "", False
    for number, value in _fields(value_info):
        match number, value:
            case 1, memoryview():
                name = _text(value)
            case 2, memoryview():
                has_shape = _has_shape(value)
    return name, has_shape


def _has_shape(type_: memoryview) -> bool:
    for number, value in _fields(type_):
        match number, value:
            case ((1 | 8), memoryview()):
                return any(n == 2 for n, _ in _fields(value))
            case ((4 | 9), memoryview()):
                return any(n == 1 and isinstance(v, memoryview) and _has_shape(v) for n, v in _fields(value))
    return False


def _named(opset: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in _fields(opset):
        match number, value:
            case 1, memoryview():
                domain = _text(value)
            case 2, int():
                version = _signed(value)
    return domain, version


def _entry(entry: memoryview) -> tuple[str, str]:
    pair = {n: _text(v) for n, v in _fields(entry) if isinstance(v, memoryview)}
    return pair.get(1, ""), pair.get(2, "")


def _text(value: memoryview) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise _Malformed("a name in it is not UTF-8") from None


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Each field's number and value: an integer, or the bytes of a string, a message or a fixed-size number."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            number, at = _varint(message, at)
            yield tag >> 3, number
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise _Malformed("its bytes are no protobuf message")
        if at + size > end:
            raise _Malformed(f"a part of {size} bytes is cut off after {end - at}")
        yield tag >> 3, message[at : at + size]
        at += size


def _varints(packed: memoryview) -> Iterator[int]:
    at = 0
    while at < len(packed):
        number, at = _varint(packed, at)
        yield number


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _Malformed("it ends in the middle of a number")
        byte = message[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
    raise _Malformed("its bytes are no protobuf message")
