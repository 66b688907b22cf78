"""YAML and JSON text → the objects in it.  Errors name the source and the line.

YAML is read as Kubernetes' tools read it (version 1.1), but for dates, which stay text, and for keys that stand twice, which
are a mistake instead of a silent loss.
"""

import json
from collections.abc import Iterable
from typing import Any

import yaml

from deployer.errors import Mistake, SpecError, show, under

MAX_VALUES = 1_000_000
MAX_DEPTH = 200


def documents(text: str, source: str) -> list[dict[str, Any]]:
    """The objects in a text, in order; the items of a `kind: List` instead of the list.  SpecError for what is none."""
    objects: list[dict[str, Any]] = []
    mistakes: list[Mistake] = []
    for line, value in _values(text, source):
        if value is None:
            continue
        if not isinstance(value, dict):
            mistakes.append(
                Mistake(f"{source}:{line}", f"found {show(value)}, wanted an object with apiVersion, kind, metadata, spec")
            )
            continue
        items = value.get("items")
        if str(value.get("kind", "")).endswith("List") and isinstance(items, list):
            objects += [one for one in items if isinstance(one, dict)]
            mistakes += [
                Mistake(f"{source}:{line}: {under('items', at)}", f"found {show(one)}, wanted an object")
                for at, one in enumerate(items)
                if not isinstance(one, dict)
            ]
        else:
            objects.append(value)
    if mistakes:
        raise SpecError(mistakes)
    return objects


def _values(text: str, source: str) -> list[tuple[int, Any]]:
    """The line and the value of each document."""
    if text.lstrip().startswith(("{", "[")):
        try:
            # not all JSON is YAML: tabs are not
            return [(1, json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant))]
        except (ValueError, RecursionError):
            pass  # YAML's flow style begins alike, and its reader knows the line
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError([_bad_yaml(source, line, f"the character {chr(error.character)!r} may not stand in it")]) from error
    found = []
    try:
        while loader.check_node():
            node = loader.get_node()
            assert node is not None
            _measure(node)
            found.append((node.start_mark.line + 1, loader.construct_document(node)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise SpecError([_bad_yaml(source, mark.line + 1 if mark else 1, str(error.problem or error.context))]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise SpecError([_bad_yaml(source, loader.line + 1, problem)]) from error
    finally:
        loader.dispose()
    if loader.twice:
        raise SpecError(Mistake(f"{source}:{line}", message) for line, message in loader.twice)
    return found


def _bad_yaml(source: str, line: int, problem: str) -> Mistake:
    hint = "; indent with spaces" if "'\\t'" in problem else ""
    return Mistake(f"{source}:{line}", f"this is not YAML: {problem}{hint}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _measure(root: yaml.Node) -> None:
    """Refuse what grows without end when its aliases are written out, before anything is built of it."""
    left = MAX_VALUES
    waiting: list[tuple[yaml.Node, int]] = [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem="it is too large or too deep once its aliases are written out", problem_mark=node.start_mark
            )
        inner: Iterable[yaml.Node] = ()
        if isinstance(node, yaml.MappingNode):
            inner = [one for pair in node.value for one in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        waiting += [(one, depth + 1) for one in inner]


class _Loader(yaml.SafeLoader):
    """A safe loader that knows no dates, makes JSON values only, and remembers keys that stand twice: (line, text)."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own table, less one)
        first: [(tag, regexp) for tag, regexp in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[tuple[int, str]] = []

    def mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(
                    problem=f"found the key {key_node.value if isinstance(key_node.value, str) else 'of several values'}, "
                    "wanted text: put it in quotes",
                    problem_mark=key_node.start_mark,
                )
            key = key_node.value
            if key in seen:
                self.twice.append(
                    (line, f"the key {show(key)} stands twice in one object, first on line {seen[key]}; keep one of them")
                )
            seen.setdefault(key, line)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.mapping)
for _tag in ("binary", "omap", "pairs", "set", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_undefined)  # type: ignore[type-var]
