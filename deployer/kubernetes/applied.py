"""Whether an object still says what was applied: pure.

The API server fills in defaults, writes quantities its own way and lets others add what is theirs, so what is read is
never what was sent.  What was sent has to be in it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deployer.spec import quantity

# By which fields the items of a list are the same thing; a list of other things is compared item by item.
_KEYS = ("name", "uid", "containerPort", "port", "mountPath", "type", "key", "ip", "topologyKey")


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def differences(wanted: Any, found: Any, path: str = "") -> dict[str, Any]:
    """What is found, by path, where `wanted` says otherwise; what only `found` says is no difference."""
    if isinstance(wanted, Mapping):
        if not isinstance(found, Mapping):
            return {path: found} if wanted else {}
        return _joined(differences(value, found.get(key), f"{path}.{key}") for key, value in wanted.items())
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        if not wanted and found is None:
            return {}
        return _of_lists(wanted, found, path) if isinstance(found, Sequence) and not isinstance(found, str) else {path: found}
    return {} if _same(wanted, found) else {path: found}


def _of_lists(wanted: Sequence[Any], found: Sequence[Any], path: str) -> dict[str, Any]:
    key = _key(wanted)
    if key is None:
        if len(wanted) != len(found):
            return {path: found}
        return _joined(differences(one, found[at], f"{path}[{at}]") for at, one in enumerate(wanted))
    there = {one.get(key): one for one in found if isinstance(one, Mapping)}
    return _joined(differences(one, there.get(one[key]), f"{path}[{one[key]}]") for one in wanted)


def _joined(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {path: found for part in parts for path, found in part.items()}


def _key(items: Sequence[Any]) -> str | None:
    """What tells the items apart; None where nothing does."""
    if not all(isinstance(one, Mapping) for one in items):
        return None
    for key in _KEYS:
        values = [one.get(key) for one in items]
        if all(isinstance(value, str | int) for value in values) and len(set(values)) == len(values):
            return key
    return None


def _same(wanted: Any, found: Any) -> bool:
    if wanted == found and isinstance(wanted, bool) == isinstance(found, bool):
        return True
    if found is None:
        return wanted is None or wanted == ""
    if isinstance(wanted, str | int | float) and isinstance(found, str | int | float):
        try:
            return quantity(wanted) == quantity(found)
        except (ValueError, TypeError, ArithmeticError):
            return False
    return False
