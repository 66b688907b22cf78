"""Request parameters that mean the same in every protocol."""

from collections.abc import Mapping
from typing import Any

from server.errors import InvalidRequest

# Of Triton's own names, what is understood: each answer of a stream is marked as the last of its request, asked or not.
_KNOWN = frozenset(("triton_enable_empty_final_response",))


def timeout_of(parameters: Mapping[str, Any]) -> float | None:
    """Seconds, from the `timeout` parameter's microseconds; None where it is not given.

    InvalidRequest for it, for a priority that is none, for names that are reserved, and for values that are neither text,
    number nor boolean.
    """
    if not parameters:
        return None
    for name, value in parameters.items():
        if name.startswith("triton_") and name not in _KNOWN:
            raise InvalidRequest(f"parameter {name!r} is not known; names that begin with 'triton_' are reserved")
        if not isinstance(value, str | bool | int | float):
            raise InvalidRequest(f"parameter {name!r} is a {type(value).__name__}; it must be a string, a number or a boolean")
    priority = parameters.get("priority", 0)
    if type(priority) is not int or priority < 0:
        raise InvalidRequest(f"parameter 'priority' is {priority!r}; it must be 0 for none, or 1 (first) and up")
    timeout = parameters.get("timeout")
    if timeout is None:
        return None
    if type(timeout) is not int or not 0 < timeout < 2**63:
        raise InvalidRequest(f"parameter 'timeout' is {_shown(timeout)}; it must be an integer above 0, in microseconds")
    return timeout / 1e6


def _shown(value: object) -> str:
    """Of an integer of thousands of digits Python makes no text."""
    return "an integer beyond 64 bits" if type(value) is int and value >= 2**63 else repr(value)
