"""JSON text ↔ numpy arrays: what V2's `data` and V1's `instances` have in common.

There is a fast way and an exact way.  `fast_array` takes the numbers straight from the text when every element is just
what the datatype asks for, and gives up (None) otherwise.  `exact_array` takes a parsed value, allows what JSON users
mean (1.0 for an integer, null for a missing number, NaN tokens) and names the element where it can't.  What the fast
way answers, the exact way answers too; a property test holds them together.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import msgspec
import numpy as np
import orjson

from server.errors import InvalidInput, InvalidRequest
from server.tensors import DATATYPES, Array, Datatype, Tensor

# A longer array is parsed in pieces of about so many bytes, a millisecond's work each.
LARGE, PIECE = 256 * 1024, 64 * 1024
# By depth, what ends an element of the outermost list; a string may hold anything but its own end.
_CUTS: dict[Any, re.Pattern[bytes]] = {
    **{depth: re.compile(rb"(?:\][ \t\r\n]*){%d}," % (depth - 1)) for depth in range(1, 6)},
    "O": re.compile(rb'(?<!\\)"[ \t\r\n]*,'),
}
MAX_DEPTH = 64
MAX_RANK = 16


def _nested(element: Any, depth: int) -> Any:
    for _ in range(depth):
        element = list[element]
    return element


def _decoders(element: Any) -> list[Any]:
    return [msgspec.json.Decoder(_nested(element, depth)) for depth in range(1, 6)]


def _within(dtype: Any) -> Any:
    """Floats that the narrower dtype can hold; what might round to infinity is looked at the exact way."""
    largest = float(np.finfo(dtype).max)
    return Annotated[float, msgspec.Meta(ge=-largest, le=largest)] | None


# numpy makes NaN of None, which is what null means for a float
_BY_KIND = {"f": _decoders(float | None), "i": _decoders(int), "u": _decoders(int), "b": _decoders(bool), "O": _decoders(str)}
_BY_DTYPE = {np.dtype(t): _decoders(_within(t)) for t in (np.float32, np.float16)}
_DECODERS = {d.name: _BY_DTYPE.get(d.dtype) or _BY_KIND[d.dtype.kind] for d in DATATYPES.values()}
_SMALL_FLOATS = tuple(_BY_DTYPE)
# What is written for no number: by being one of these objects an infinity tells that it is no number too large, as 1e400 is.
_TOKENS = {text: float(text) for text in ("NaN", "Infinity", "-Infinity")}
# Letters of our keys as JSON's escapes, which nobody writes who does not want to hide them.
_HIDDEN = re.compile(rb"\\u00(?:[67]|5[fF])")
NOT_THAT = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)


def fast_array(raw: bytes | msgspec.Raw, datatype: Datatype) -> Array | None:
    """The array that JSON text nests, in the datatype's dtype; None where the exact way must look at it."""
    depth = 0
    for byte in memoryview(raw)[:64]:
        if byte == 0x5B:  # "["
            depth += 1
        elif byte not in b" \t\r\n":
            break
    if not 1 <= depth <= 5:
        return None
    if len(raw) > LARGE:
        array = _in_pieces(bytes(raw), datatype, depth)
        if array is not None:
            return array
    return nested_array(raw, datatype, depth)


def _in_pieces(raw: bytes, datatype: Datatype, depth: int) -> Array | None:
    """The same for a long text, cut between rows: the parser does not let other threads run until it is done.

    Each piece is a list of its own.  A cut that falls into a string leaves a piece without its end, which is None.
    """
    text = raw.strip()
    if text[-1:] != b"]":
        return None
    cut = _CUTS["O" if datatype.dtype.kind == "O" and depth == 1 else depth]
    arrays: list[Array] = []
    start, end = 1, len(text) - 1
    while start < end:
        found = cut.search(text, min(start + PIECE, end), end)
        stop = found.end() - 1 if found else end
        array = nested_array(b"[%b]" % text[start:stop], datatype, depth)
        if array is None or not len(array) or (arrays and array.shape[1:] != arrays[0].shape[1:]) or (found and stop + 1 == end):
            return None
        arrays.append(array)
        start = stop + 1
    return np.concatenate(arrays) if arrays else None


def nested_array(raw: bytes | msgspec.Raw, datatype: Datatype, depth: int) -> Array | None:
    """The same where it is known how deep the text nests its list, 1 to 5."""
    try:
        values = decoder(datatype, depth)(raw)
        if datatype.dtype.kind == "O":
            return _text_array(values, depth)
        array = np.array(values, datatype.dtype)
    except NOT_THAT:
        return None
    return array if array.ndim == depth else None


def decoder(datatype: Datatype, depth: int) -> Callable[[bytes | msgspec.Raw], list[Any]]:
    """What makes the elements, in lists nested so deep, of a text; it raises one of `NOT_THAT`, as numpy does of uneven lists."""
    decode: Callable[[bytes | msgspec.Raw], list[Any]] = _DECODERS[datatype.name][depth - 1].decode
    return decode


def _text_array(values: list[Any], depth: int) -> Array | None:
    if depth == 1:
        texts = np.empty(len(values), object)
        texts[:] = [v.encode() for v in values]
        return texts
    array = np.array(values, object)
    if array.ndim != depth:
        return None
    flat = array.ravel()
    flat[:] = [v.encode() for v in flat]
    return flat.reshape(array.shape)


def exact_array(value: Any, datatype: Datatype, where: str, strict: bool = False) -> Array:
    """The array that a parsed JSON value nests; InvalidInput names the first element that does not fit and its place."""
    shape, flat = _flatten(value, where)
    convert = _CONVERT[datatype.dtype.kind]
    elements = [convert(v, datatype, where, i, strict) for i, v in enumerate(flat)]
    if datatype.dtype.kind == "O":
        array: Array = np.empty(len(elements), object)
        array[:] = elements
    elif datatype.dtype.kind == "f":
        array = _floats(elements, datatype, where)
    else:
        array = np.array(elements, datatype.dtype)
    return array.reshape(shape)


def _floats(elements: list[float], datatype: Datatype, where: str) -> Array:
    wide = np.array(elements, np.float64)
    with np.errstate(over="ignore"):
        array = wide.astype(datatype.dtype)
    overflow = np.flatnonzero(np.isinf(array) & ~np.isinf(wide))
    if len(overflow):
        at = int(overflow[0])
        raise InvalidInput(f"{where}: {elements[at]!r} at element {at} overflows {datatype.name}")
    return array


def _flatten(value: Any, where: str) -> tuple[tuple[int, ...], list[Any]]:
    """Shape and elements in row-major order of a rectangular nest of lists; InvalidInput names the first odd row."""
    shape: list[int] = []
    level = [value]
    while level and isinstance(level[0], list):
        if len(shape) == MAX_RANK:
            raise InvalidInput(f"{where} is nested deeper than {MAX_RANK} dimensions")
        width = len(level[0])
        for row, item in enumerate(level):
            if not isinstance(item, list) or len(item) != width:
                found = f"{len(item)} elements" if isinstance(item, list) else f"a {type_name(item)}"
                raise InvalidInput(f"{where} is not rectangular: row {row} at depth {len(shape)} has {found}, row 0 has {width}")
        shape.append(width)
        level = [element for item in level for element in item]
    for at, item in enumerate(level):
        if isinstance(item, list):
            raise InvalidInput(f"{where} is not rectangular: element {at} at depth {len(shape)} is a list, element 0 is not")
    return tuple(shape), level


def natural_datatype(value: Any) -> str:
    """The datatype that holds every element of a nest of JSON values, where no model says which it wants."""
    kinds = {type(v) for v in _flatten(value, "the value")[1]}
    if kinds <= {bool}:
        return "BOOL"
    if kinds <= {int}:
        return "INT64"
    return "FP64" if kinds <= {int, float, type(None)} else "BYTES"


def type_name(value: Any) -> str:
    """What JSON calls the type of a parsed value."""
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _float(value: Any, datatype: Datatype, where: str, at: int, strict: bool) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(f"{where}: expected a number ({datatype.name}) at element {at}, got {_shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        raise InvalidInput(f"{where}: the integer at element {at} overflows {datatype.name}") from None
    if math.isinf(number) and value is not _TOKENS["Infinity"] and value is not _TOKENS["-Infinity"]:
        raise InvalidInput(f"{where}: the number at element {at} overflows {datatype.name}")
    if strict and not math.isfinite(number):
        raise InvalidInput(f"{where}: {number} at element {at} is not JSON, and --strict-json is on; send null")
    return number


def _integer(value: Any, datatype: Datatype, where: str, at: int, strict: bool) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(f"{where}: expected an integer ({datatype.name}) at element {at}, got {_shown(value)}")
    limits = np.iinfo(datatype.dtype)
    if not limits.min <= value <= limits.max:
        raise InvalidInput(f"{where}: {value} at element {at} is out of range for {datatype.name} ({limits.min} to {limits.max})")
    return value


def _boolean(value: Any, datatype: Datatype, where: str, at: int, strict: bool) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"{where}: expected true or false at element {at}, got {_shown(value)}")
    return value


def _bytes(value: Any, datatype: Datatype, where: str, at: int, strict: bool) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except binascii.Error as error:
            raise InvalidInput(f"{where}: element {at} is not base64: {error}") from None
    if not isinstance(value, str):
        raise InvalidInput(f"{where}: expected a string (BYTES) at element {at}, got {_shown(value)}")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise InvalidInput(
            f"{where}: the string at element {at} holds half a surrogate pair, which UTF-8 can't express"
        ) from None


_CONVERT: dict[str, Any] = {"f": _float, "i": _integer, "u": _integer, "b": _boolean, "O": _bytes}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return f"the {type_name(value)} {text if len(text) <= 40 else text[:37] + '...'}"


def parse(body: bytes | memoryview, what: str = "request body") -> Any:
    """Any JSON, with bare NaN and Infinity and without duplicate keys; InvalidRequest says what is wrong and where."""
    raw = bytes(body)
    if not raw.strip():
        raise InvalidRequest(f"{what} is empty")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{what} is not UTF-8: byte {error.start} is {raw[error.start]:#04x}") from None
    if _depth(text) > MAX_DEPTH:
        raise InvalidRequest(f"{what}: JSON is nested deeper than {MAX_DEPTH}")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_TOKENS.__getitem__)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{what} is not valid JSON: {error.msg} at byte {len(text[: error.pos].encode())}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise InvalidRequest(f"{what} is not valid JSON: {error}") from None


def hides_letters(raw: bytes) -> bool:
    """Whether a key may be there that a look for its bytes does not find, such as `"d\\u0061ta"`."""
    return b"\\u00" in raw and _HIDDEN.search(raw) is not None


def _depth(text: str) -> int:
    """How deep brackets nest at most (those in strings count too: it is a bound, and a cheap one)."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    quoted = escaped = False
    for c in text:
        if quoted:
            quoted, escaped = (c != '"' or escaped), c == "\\" and not escaped
        elif c == '"':
            quoted = True
        elif c in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                return depth
            deepest = max(deepest, depth)
        elif c in "]}":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [k for k, _ in pairs]
        twice = next(n for n in names if names.count(n) > 1)
        raise InvalidRequest(f"duplicate key {twice!r} in a JSON object")
    return found


def texts(array: Array, name: str, hint: str = "request it as binary_data") -> list[Any]:
    """A BYTES array as nested lists of str; InvalidRequest where an element is not UTF-8."""
    if array.dtype.kind != "O":
        listed: list[Any] = (array if array.dtype.kind == "U" else np.char.decode(array, "utf-8")).tolist()
        return listed

    def text(value: Any) -> Any:
        return value.decode() if isinstance(value, bytes) else value

    try:
        flat = [text(v) for v in array.ravel().tolist()]
    except UnicodeDecodeError:
        raise InvalidRequest(f"output {name!r} holds bytes that are not UTF-8 and can't be JSON; {hint}") from None
    if array.ndim <= 1:
        return flat if array.ndim else flat[0]
    nested = np.empty(len(flat), object)
    nested[:] = flat
    shaped: list[Any] = nested.reshape(array.shape).tolist()
    return shaped


def b64(value: Any) -> dict[str, str]:
    """How TF Serving's JSON writes bytes that need not be text."""
    return {"b64": base64.b64encode(value.encode() if isinstance(value, str) else value).decode()}


def jsonable(tensor: Tensor, name: str, flat: bool) -> Any:
    """A tensor as something `dump` writes: an array where that is quick, lists otherwise."""
    array = tensor.array
    if tensor.datatype == "BYTES":
        return texts(array.ravel() if flat else array, name)
    if not flat and array.ndim == 0:
        return array.item()
    return np.ascontiguousarray(array.ravel() if flat else array)


def flat_text(tensor: Tensor, name: str, strict: bool = False) -> bytes:
    """The JSON text of a tensor's elements in row-major order; numbers as `dump` writes them."""
    if tensor.datatype == "BYTES":
        return orjson.dumps(texts(tensor.array.ravel(), name))
    flat = np.ascontiguousarray(tensor.array.ravel())
    text = orjson.dumps(flat, default=listed, option=orjson.OPT_SERIALIZE_NUMPY)
    # what is not finite is null to it, and nothing else of numbers is
    return text if strict or b"null" not in text else json.dumps(listed(flat), separators=(",", ":")).encode()


def dump(document: Any, arrays: Iterable[Array], strict: bool = False) -> bytes:
    """JSON text of a document that may hold arrays.  Floats are the shortest that round-trip in their own width.

    NaN and infinities are bare tokens, as Triton's and TF Serving's clients expect, or null where `strict`.
    """
    if strict or all(a.dtype.kind != "f" or np.isfinite(a).all() for a in arrays):
        return orjson.dumps(document, default=listed, option=orjson.OPT_SERIALIZE_NUMPY)
    return json.dumps(document, default=listed, separators=(",", ":")).encode()


def listed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype in _SMALL_FLOATS:
            # through text, so that 0.1 in float32 is written 0.1 and not 0.10000000149011612
            return np.array([float(str(v)) for v in value.ravel()]).reshape(value.shape).tolist()
        return value.tolist()
    if isinstance(value, np.generic):
        # a row's scalar: orjson does not know every spelling of an integer (C's long long is not its int64)
        return listed(np.asarray(value)) if value.dtype in _SMALL_FLOATS else value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")
