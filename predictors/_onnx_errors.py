"""onnxruntime's error texts put into our errors: pure, from text to text.

Its exceptions carry one string each, with source paths, C++ signatures and line breaks in it; what matters is found by
pattern.  A text that no pattern knows is told as it is, in one line.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from server.errors import InvalidInput, ModelLoadError, ResourceExhausted, ServingError

_PREFIX = re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ?")
_NODE = re.compile(r"Non-zero status code returned while running (\w+) node\. Name:'(.*?)' Status Message: ")
# "/build/x.cc:12 void onnxruntime::F(int) const " and, for a failed assertion, "a == b was false. "
_PLACE = re.compile(
    r"\S+\.(?:h|cc|cpp|cu):\d+ (?:[^()]*::[^()]*\([^()]*(?:\([^()]*\)[^()]*)*\)(?: const)? )?(?:.*? was false\. )?"
)

_BAD_INPUT = re.compile(
    r"\bshapes?\b|reshape|\bdim(?:ension)?s?\b|broadcast|\brank\b|\baxis\b|channels|bounds"
    # a text that is no number, and one that an encoder has not seen
    r"|\bsto(?:[dfil]|ll|ul)\b|unknown category",
    re.I,
)
_NO_MEMORY = re.compile(r"failed to allocate memory|bad_alloc", re.I)


def cleaned(text: str) -> str:
    """What onnxruntime says in one line, without places in its source code."""
    line = " ".join(_PREFIX.sub("", text.split("Stacktrace:")[0]).split())
    node = _NODE.search(line)
    said = _PLACE.sub("", line[node.end() :] if node else line, count=2)
    if not node:
        return said[:400]
    name = f" {node[2]!r}" if node[2] else ""
    return f"{node[1]} node{name}: {said}"[:400]


def run_error(text: str, invalid_argument: bool) -> ServingError | None:
    """What a failed run means to the caller; None where the model itself is to blame."""
    said = cleaned(text)
    if _NO_MEMORY.search(said):
        return ResourceExhausted(f"the model ran out of memory on this request: {said}")
    if invalid_argument or _BAD_INPUT.search(said):
        return InvalidInput(f"the model can't compute with these inputs: {said}")
    return None


def load_error(path: Path, text: str, opsets: Mapping[str, int], runtime_version: str) -> ModelLoadError:
    line = " ".join(text.split())
    for pattern, tell in _LOAD:
        match = pattern.search(line)
        if match:
            what, remedy = tell(match, opsets, f"onnxruntime {runtime_version}")
            return ModelLoadError(f"cannot read {path} as ONNX: {what}", remedy)
    return ModelLoadError(f"cannot read {path} as ONNX: onnxruntime {runtime_version} says: {cleaned(text)}", "export it again")


def _unknown_operator(domain: str, operator: str, version: object, runtime: str) -> tuple[str, str]:
    domain = domain or "ai.onnx"
    known = domain == "ai.onnx" or domain.startswith(("ai.onnx.ml", "com.microsoft"))
    if domain == "ai.onnx.contrib":
        remedy = "it is of onnxruntime-extensions: run pip install onnxruntime-extensions"
    elif known:
        remedy = "install an onnxruntime that has it, or export the model for an older opset"
    else:
        remedy = "give the library that has it: --runtime-option custom-ops=/path/to/library.so"
    return f"its operator {operator} of domain {domain} (opset {version}) is unknown to {runtime}", remedy


def _opset(match: re.Match[str], _: Mapping[str, int], runtime: str) -> tuple[str, str]:
    newest = f"{runtime} knows opsets of {match[2]} up to {match[3]}"
    return f"it is of opset {match[1]} of domain {match[2]}, and {newest}", f"upgrade onnxruntime, or export for opset {match[3]}"


def _ir(match: re.Match[str], _: Mapping[str, int], runtime: str) -> tuple[str, str]:
    return (
        f"it has IR version {match[1]}, and {runtime} reads up to {match[2]}",
        "upgrade onnxruntime, or save it with an older one",
    )


def _no_kernel(match: re.Match[str], _: Mapping[str, int], runtime: str) -> tuple[str, str]:
    node = f" (node {match[3]!r})" if match[3] else ""
    what = f"{runtime} has no implementation of {match[1]} (since opset {match[2]}) for this node's datatypes{node}"
    return what, "export it with other datatypes, for example float32, or use an execution provider that has it"


Tell = Callable[[re.Match[str], Mapping[str, int], str], tuple[str, str]]
_LOAD: tuple[tuple[re.Pattern[str], Tell], ...] = (
    (
        re.compile(r"Fatal error: (\S*?):(\w+)\(-?\d+\) is not a registered"),
        lambda m, opsets, runtime: _unknown_operator(m[1], m[2], opsets.get(m[1] or "ai.onnx", "not given"), runtime),
    ),
    (
        re.compile(r'In Node, \("[^"]*", (\w+), "([^"]*)".*No Op registered for (\w+) with domain_version of (\d+)'),
        lambda m, _, runtime: _unknown_operator(m[2], m[3], m[4], runtime),
    ),
    (re.compile(r"Opset (\d+) is under development.* domain (\S+) is till opset (\d+)"), _opset),
    (re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)"), _ir),
    (re.compile(r"Could not find an implementation for (\w+)\((\d+)\) node with name '(.*?)'"), _no_kernel),
)
