"""The one table: which HTTP status and which gRPC code each error is.

429 and RESOURCE_EXHAUSTED for overload, not 503 and UNAVAILABLE: meshes retry the latter by default, which multiplies
the load that was the trouble.
"""

from typing import NamedTuple

from server import errors


class Status(NamedTuple):
    """`grpc` is the name of a code of grpc.StatusCode."""

    http: int
    grpc: str


_TABLE: dict[type[errors.ServingError], Status] = {
    errors.InvalidRequest: Status(400, "INVALID_ARGUMENT"),
    errors.FailedPrecondition: Status(400, "FAILED_PRECONDITION"),
    errors.RequestTooLarge: Status(413, "RESOURCE_EXHAUSTED"),
    errors.UnsupportedEncoding: Status(415, "INVALID_ARGUMENT"),
    errors.ModelNotFound: Status(404, "NOT_FOUND"),
    errors.ModelNotReady: Status(503, "UNAVAILABLE"),
    errors.Overloaded: Status(429, "RESOURCE_EXHAUSTED"),
    errors.DeadlineExceeded: Status(504, "DEADLINE_EXCEEDED"),
    errors.RequestCancelled: Status(499, "CANCELLED"),
    errors.NotAllowed: Status(403, "PERMISSION_DENIED"),
    errors.NotSupported: Status(501, "UNIMPLEMENTED"),
    errors.ResourceExhausted: Status(503, "RESOURCE_EXHAUSTED"),
    errors.RuntimeFailed: Status(500, "INTERNAL"),
    errors.ServingError: Status(500, "INTERNAL"),
}


def status_of(error: errors.ServingError) -> Status:
    """The status of the error's class, or of the nearest parent that has one."""
    return next(_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE)
