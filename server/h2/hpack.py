"""HPACK (RFC 7541): header blocks ↔ fields.  Pure but for a decoder's dynamic table, which is what HPACK is.

The server advertises a dynamic table of size 0.  From when a peer says that it has taken that in, a block means the same
whatever came before it, so that a connection may look whole blocks up; until then the table has to be kept as anywhere.
"""

from collections import deque
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import NamedTuple

from server.h2.frames import Code, ConnectionFault

Field = tuple[bytes, bytes]

# What a decoder and its peer start with, and the most that a peer may go back to.  The RFC would have it ended for more than
# we have advertised, but what it does then is well defined, and clients have been seen to do it (h2spec is one).
LARGEST_TABLE = 4096
# RFC 7541 §4.1: what a field counts beyond its own bytes.
OVERHEAD = 32
# A longer integer than four more bytes is no length of anything.
_LARGEST_SHIFT = 28

_STATIC_TEXT = """
:authority;:method=GET;:method=POST;:path=/;:path=/index.html;:scheme=http;:scheme=https;:status=200;:status=204
:status=206;:status=304;:status=400;:status=404;:status=500;accept-charset;accept-encoding=gzip, deflate
accept-language;accept-ranges;accept;access-control-allow-origin;age;allow;authorization;cache-control
content-disposition;content-encoding;content-language;content-length;content-location;content-range;content-type
cookie;date;etag;expect;expires;from;host;if-match;if-modified-since;if-none-match;if-range;if-unmodified-since
last-modified;link;location;max-forwards;proxy-authenticate;proxy-authorization;range;referer;refresh;retry-after
server;set-cookie;strict-transport-security;transfer-encoding;user-agent;vary;via;www-authenticate
"""
STATIC: list[Field] = [
    (name.encode(), value.encode())
    for name, _, value in (entry.partition("=") for line in _STATIC_TEXT.split("\n") for entry in line.split(";") if entry)
]

# RFC 7541 appendix B is a canonical code, so the lengths tell it: bits of the symbols 0 to 255 and of the end of string.
_LENGTHS = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b0806060605050506060606060606"
    "07080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e060f05060506050606060507070606060506070605"
    "050607070707070f0b0e0d1c14161414161616171617171717171817181816171817171717151617161717181615141616171715171616181516"
    "1717151516151716171714161616171616171a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b1418141516151517"
    "1616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)
_END_OF_STRING = 256
_LONGEST_PADDING = 7


class Block(NamedTuple):
    """A decoded header block; `size` as SETTINGS_MAX_HEADER_LIST_SIZE counts it."""

    fields: list[Field]
    size: int


class Decoder:
    """One direction of one connection.

    `largest` bounds what one block may decode to, because a few bytes of it can stand for megabytes.
    """

    def __init__(self, largest: int) -> None:
        self.table_size = LARGEST_TABLE
        self._largest = largest
        self._table: deque[Field] = deque()
        self._used = 0

    def decode(self, block: bytes) -> Block:
        """ConnectionFault where the block is not valid, or is too much: the table is then no longer the peer's."""
        try:
            return self._decode(block)
        except IndexError:
            raise _invalid("it ends in the middle of a field") from None

    def _decode(self, block: bytes) -> Block:
        fields: list[Field] = []
        at, end, size = 0, len(block), 0
        while at < end:
            first = block[at]
            if first & 0x80:
                index, at = integer(block, at, 7)
                field = self._entry(index)
            elif first & 0xE0 == 0x20:
                if fields:
                    raise _invalid("the table's size changes behind a field")
                wanted, at = integer(block, at, 5)
                self._resize(wanted)
                continue
            else:
                keeps = first & 0x40
                if first & 0xBF:
                    index, at = integer(block, at, 6 if keeps else 4)
                else:
                    index, at = 0, at + 1
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                field = (name, value)
                if keeps:
                    self._keep(field)
            size += len(field[0]) + len(field[1]) + OVERHEAD
            if size > self._largest:
                raise ConnectionFault(Code.ENHANCE_YOUR_CALM, f"a header block of more than {self._largest} bytes")
            fields.append(field)
        return Block(fields, size)

    def _entry(self, index: int) -> Field:
        if not index:
            raise _invalid("index 0")
        if index <= len(STATIC):
            return STATIC[index - 1]
        if index > len(STATIC) + len(self._table):
            raise _invalid(f"index {index} of {len(STATIC) + len(self._table)}")
        return self._table[index - len(STATIC) - 1]

    def _keep(self, field: Field) -> None:
        size = len(field[0]) + len(field[1]) + OVERHEAD
        self._evict(self.table_size - size)
        if size <= self.table_size:
            self._table.appendleft(field)
            self._used += size

    def _resize(self, size: int) -> None:
        if size > LARGEST_TABLE:
            raise _invalid(f"a table of {size} bytes, {LARGEST_TABLE} are allowed")
        self.table_size = size
        self._evict(size)

    def _evict(self, room: int) -> None:
        while self._table and self._used > room:
            name, value = self._table.pop()
            self._used -= len(name) + len(value) + OVERHEAD


def integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """(value, where it ends) of an integer with a prefix of so many bits; IndexError where the block ends in it."""
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > _LARGEST_SHIFT:
            raise _invalid("an integer of too many bytes")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    first = block[at]
    coded, length = first & 0x80, first & 0x7F
    if length < 0x7F:
        at += 1
    else:
        length, at = integer(block, at, 7)
    stop = at + length
    if stop > len(block):
        raise _invalid("a string ends behind the block")
    text = block[at:stop]
    if not coded:
        return text, stop
    # clients say the same again and again
    return (_seen_before(text) if length <= 64 else unhuffman(text)), stop


def unhuffman(text: bytes) -> bytes:
    """A Huffman-coded string as it was; ConnectionFault where it is none."""
    steps, state, out = _steps(), _State(0, b"", 0), bytearray()
    for byte in text:
        for half in (byte >> 4, byte & 15):
            step = steps[state.node][half]
            if step is None:
                raise _invalid("a string holds the end-of-string symbol")
            state = step
            out += state.gives
    if state.padding > _LONGEST_PADDING or state.padding < 0:
        raise _invalid("a string's padding is not the beginning of the end-of-string symbol")
    return bytes(out)


@lru_cache(maxsize=4096)
def _seen_before(text: bytes) -> bytes:
    return unhuffman(text)


class _State(NamedTuple):
    """Where four bits lead: the node of the code's tree, what was complete on the way, and the bits since then.

    `padding` is -1 where those bits are not all ones, as padding has to be.
    """

    node: int
    gives: bytes
    padding: int


@cache
def _steps() -> list[list[_State | None]]:
    """For each inner node of the code's tree where each half byte leads; None where that is the end of string.

    Half bytes rather than bits, for speed: attackers choose how much there is to decode.
    """
    tree = _tree()
    ones, node = {0: 0}, 0
    while tree[node][1] >= 0:
        ones[tree[node][1]] = ones[node] + 1
        node = tree[node][1]
    return [[_step(tree, ones, node, half) for half in range(16)] for node in range(len(tree))]


def _step(tree: list[list[int]], ones: dict[int, int], node: int, half: int) -> _State | None:
    gives = bytearray()
    for shift in (3, 2, 1, 0):
        branch = tree[node][half >> shift & 1]
        if branch >= 0:
            node = branch
            continue
        symbol = ~branch
        if symbol == _END_OF_STRING:
            return None
        gives.append(symbol)
        node = 0
    return _State(node, bytes(gives), ones.get(node, -1))


def _tree() -> list[list[int]]:
    """Two branches for each inner node, the root first: another node, or the complement of a symbol."""
    tree = [[0, 0]]
    for symbol, (code, length) in huffman_codes().items():
        node = 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            if not tree[node][bit]:
                tree.append([0, 0])
                tree[node][bit] = len(tree) - 1
            node = tree[node][bit]
        tree[node][code & 1] = ~symbol
    return tree


def huffman_codes() -> dict[int, tuple[int, int]]:
    """(code, length in bits) of each symbol; 256 is the end of string."""
    codes: dict[int, tuple[int, int]] = {}
    code = last = 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(_LENGTHS)):
        code = (code + 1) << (length - last) if last else 0
        last = length
        codes[symbol] = (code, length)
    return codes


def literal(name: bytes, value: bytes) -> bytes:
    """A field that changes no table, in the plainest form; names and values of less than 64 KiB."""
    index = _STATIC_NAMES.get(name)
    if index is not None:
        return _number(index, 4, 0) + _number(len(value), 7, 0) + value
    return b"\0" + _number(len(name), 7, 0) + name + _number(len(value), 7, 0) + value


def encode(fields: Iterable[Field]) -> bytes:
    """A header block that means the same on every connection."""
    return b"".join(_indexed(_STATIC_FIELDS[f]) if f in _STATIC_FIELDS else literal(*f) for f in fields)


def _indexed(index: int) -> bytes:
    return bytes([0x80 | index])


def _number(value: int, bits: int, first: int) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    out = bytearray([first | most])
    value -= most
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_STATIC_FIELDS = {field: at for at, field in reversed(list(enumerate(STATIC, 1)))}
_STATIC_NAMES = {name: at for at, (name, _) in reversed(list(enumerate(STATIC, 1)))}


def _invalid(why: str) -> ConnectionFault:
    return ConnectionFault(Code.COMPRESSION_ERROR, f"a header block is not valid: {why}")
