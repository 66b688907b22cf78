"""What can go wrong while serving, in the domain's words: no HTTP and no gRPC in here.

    ServingError
    ├── InvalidRequest          the request itself is malformed
    │   ├── InvalidInput        its tensors do not fit the model
    │   │   └── WrongInputs     it has inputs that the model has not, or lacks some
    │   ├── UnknownSignature    it names one that the model has not
    │   └── FailedPrecondition  the same, where a protocol tells that from a malformed request
    ├── RequestTooLarge
    ├── UnsupportedEncoding
    ├── ModelNotFound
    ├── ModelNotReady           loading, failed to load, or draining; worth a retry
    ├── Overloaded              the queue is full; worth a retry later
    ├── DeadlineExceeded
    ├── RequestCancelled        the caller has gone
    ├── NotAllowed              what the operator has to allow first
    ├── NotSupported            a feature that is off or not built
    ├── ResourceExhausted       the model ran out of memory
    └── RuntimeFailed           the model raised, or returned something that does not fit

    ModelLoadError              a model can't be served at all (not about one request)
    └── FetchFailed             it could not be brought here; `reason` says why, for programs

`protocols/status.py` is the one table that gives each a HTTP status and a gRPC code.
"""

from typing import Literal


class ServingError(Exception):
    """A request can't be answered as asked; `str(error)` is the text that its caller reads.

    `retry_after` is in seconds, None where a retry would not help.  `request_id` is that of the call that it ended, where it
    is known.
    """

    retry_after: float | None = None
    request_id: str = ""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        if retry_after is not None:
            self.retry_after = retry_after


class InvalidRequest(ServingError):
    pass


class InvalidInput(InvalidRequest):
    pass


class WrongInputs(InvalidInput):
    pass


class UnknownSignature(InvalidRequest):
    """`name` is the one that was asked for."""

    def __init__(self, message: str, *, name: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.name = name


class FailedPrecondition(InvalidRequest):
    pass


class RequestTooLarge(ServingError):
    pass


class UnsupportedEncoding(ServingError):
    pass


class ModelNotFound(ServingError):
    pass


class ModelNotReady(ServingError):
    retry_after = 1.0


class Overloaded(ServingError):
    retry_after = 1.0


class DeadlineExceeded(ServingError):
    pass


class RequestCancelled(ServingError):
    pass


class NotAllowed(ServingError):
    pass


class NotSupported(ServingError):
    pass


class ResourceExhausted(ServingError):
    retry_after = 1.0


class RuntimeFailed(ServingError):
    pass


class ModelLoadError(Exception):
    """A model can't be served: what was found (`str(error)`) and what to do about it (`remedy`)."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.remedy = remedy


FetchReason = Literal[
    "BadArchive",
    "ChecksumMismatch",
    "DiskFull",
    "DownloadFailed",
    "NotFound",
    "TooLarge",
    "Unreadable",
    "UnsupportedScheme",
    "Unwritable",
]


class FetchFailed(ModelLoadError):
    """A model could not be brought to this machine.  "Unreadable" is of files that are here, "Unwritable" of where it goes."""

    def __init__(self, reason: FetchReason, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.reason = reason
