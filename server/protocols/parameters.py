"""Request parameters that mean the same in every protocol."""

from collections.abc import Mapping
from typing import Any

from server.errors import InvalidRequest


def timeout_of(parameters: Mapping[str, Any]) -> float | None:
    """Seconds, from the `timeout` parameter's microseconds; None where it is not given.

    InvalidRequest for it, for names that are reserved, and for values that are neither text, number nor boolean.
    """
    for name, value in parameters.items():
        if name.startswith("triton_"):
            raise InvalidRequest(f"parameter {name!r} is not known; names that begin with 'triton_' are reserved")
        if not isinstance(value, str | bool | int | float):
            raise InvalidRequest(f"parameter {name!r} is a {type(value).__name__}; it must be a string, a number or a boolean")
    timeout = parameters.get("timeout")
    if timeout is None:
        return None
    if type(timeout) is not int or timeout <= 0:
        raise InvalidRequest(f"parameter 'timeout' is {timeout!r}; it must be an integer above 0, in microseconds")
    return timeout / 1e6
