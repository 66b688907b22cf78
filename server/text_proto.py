"""Protobuf's text form, as far as configuration files use it: fields, nested messages, texts, numbers and words.

Without a schema: every field is a list of its values in order, a message a dict of such lists.
"""

import re
from typing import Any

# What nests deeper is no configuration.
DEEPEST = 20
_TOKEN = re.compile(
    r"""(?:[\s,;]|\#[^\n]*)*(?:(?P<mark>[{}<>:\[\]])|(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|(?P<word>[\w.+-]+))"""
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "'": "'", "\\": "\\"}
_CLOSING = {"{": "}", "<": ">"}


class TextProtoError(ValueError):
    """The text is none; says the line."""


def parse(text: str) -> dict[str, list[Any]]:
    """The fields of a message; TextProtoError says in which line something else was expected."""
    return _Reader(text).message("", 0)


class _Reader:
    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def message(self, closing: str, depth: int) -> dict[str, list[Any]]:
        if depth > DEEPEST:
            raise self._wrong("fewer messages within one another")
        fields: dict[str, list[Any]] = {}
        while True:
            kind, token = self._next()
            if token == closing and kind != "text":
                return fields
            if kind != "word":
                raise self._wrong("a field's name" + (f" or {closing!r}" if closing else ""))
            fields.setdefault(token, []).extend(self._values(depth))

    def _values(self, depth: int) -> list[Any]:
        kind, token = self._next()
        if token == ":" and kind == "mark":
            kind, token = self._next()
        elif token not in _CLOSING or kind != "mark":
            raise self._wrong("':' or '{'")
        if token == "[" and kind == "mark":
            values: list[Any] = []
            while (found := self._next()) != ("mark", "]"):
                values.append(self._value(*found, depth))
            return values
        return [self._value(kind, token, depth)]

    def _value(self, kind: str, token: str, depth: int) -> Any:
        if kind == "mark" and token in _CLOSING:
            return self.message(_CLOSING[token], depth + 1)
        if kind == "text":
            value = _unquoted(token)
            # texts side by side are one
            while (after := _TOKEN.match(self._text, self._at)) and after["text"]:
                self._at = after.end()
                value += _unquoted(after["text"])
            return value
        if kind != "word":
            raise self._wrong("a value")
        return int(token) if re.fullmatch(r"-?\d{1,19}", token) else token

    def _next(self) -> tuple[str, str]:
        found = _TOKEN.match(self._text, self._at)
        if found is None:
            if re.fullmatch(r"(?:[\s,;]|#[^\n]*)*", self._text[self._at :]):
                self._at = len(self._text)
                return "end", ""
            raise self._wrong("a name, a value or a bracket")
        self._at = found.end()
        kind = str(found.lastgroup)
        return kind, found[kind]

    def _wrong(self, wanted: str) -> TextProtoError:
        line = self._text.count("\n", 0, self._at) + 1
        return TextProtoError(f"line {line}: expected {wanted}")


def _unquoted(token: str) -> str:
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), token[1:-1])
