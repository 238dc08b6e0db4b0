"""Every error Octavo raises on purpose, split by who has to act.

    OctavoError
    ├── ClientError             the caller sent something wrong; sending it again will fail again
    │   ├── InvalidRequestError     a parameter is malformed or out of range
    │   ├── NeverFitsError          the request can never fit the block pool or the context window
    │   ├── NotFoundError           the named model, route or request does not exist
    │   ├── AbortedError            somebody who may do so ended the request while it ran
    │   ├── AuthenticationError     the API key is missing or unknown
    │   └── ForbiddenError          the API key, or the name that the server was called by, does not allow it
    ├── CapacityError           nothing is wrong with the request; later is fine
    │   ├── QueueFullError          the waiting queue is at its limit
    │   ├── TooManyRequestsError    the tenant has as many requests open as it may
    │   ├── PinBudgetError          other pins take too much of the blocks that may be pinned
    │   └── EngineUnavailableError  the engine is loading, restarting or draining
    ├── ServerFault             our fault, one request or the whole engine
    │   ├── RequestFailedError      one request failed inside a step; the others went on
    │   └── EngineDeadError         the engine process ended under an open request
    └── SetupError              the operator has to change something before Octavo can start
        ├── ConfigError             an option is unknown, malformed or contradicts another
        ├── ModelNotFoundError      no such folder, file, Hub id or built-in name
        ├── WeightsError            a weight file is missing, truncated, or not what it claims to be
        ├── UnsupportedModelError   the architecture is not one that Octavo's decoder covers
        └── MemoryTooSmallError     the KV pool does not fit, or is smaller than one request

`octavo.server.errors` maps this tree to HTTP in one table. Messages are written for the person who reads
them: they name the offending value and what would be accepted.
"""

from __future__ import annotations


class OctavoError(Exception):
    """Root of every error that Octavo raises on purpose."""


class ClientError(OctavoError):
    """The request is at fault.

    Args:
        message: What is wrong, naming the value and what would be accepted.
        param: The request field at fault, in the wire format's spelling, if one is.
        code: A short machine-readable reason such as ``context_length_exceeded``.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class InvalidRequestError(ClientError):
    """A parameter is malformed, of the wrong type, or out of range."""


class NeverFitsError(ClientError):
    """The request needs more KV blocks or positions than will ever exist.

    Args:
        message: As for `ClientError`; names the largest length that fits.
        largest: The largest total length (prompt + output, in tokens) that fits.
    """

    def __init__(self, message: str, *, largest: int, param: str | None = None) -> None:
        super().__init__(message, param=param, code="context_length_exceeded")
        self.largest = largest


class NotFoundError(ClientError):
    """The named model, route or request does not exist."""


class AbortedError(ClientError):
    """Somebody who may do so ended the request while it ran."""


class AuthenticationError(ClientError):
    """The API key is missing or unknown."""


class ForbiddenError(ClientError):
    """The API key, or the name that the server was called by, does not allow it."""


class CapacityError(OctavoError):
    """The request is fine and the server cannot take it now.

    Args:
        message: Why not now.
        retry_after: Seconds after which trying again is reasonable.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFullError(CapacityError):
    """The waiting queue is at its limit."""


class TooManyRequestsError(CapacityError):
    """The tenant has as many requests open as it may."""


class PinBudgetError(CapacityError):
    """The pins there are leave too few blocks for one more."""


class EngineUnavailableError(CapacityError):
    """The engine is loading, restarting or draining."""


class ServerFault(OctavoError):
    """Octavo failed; the request was fine."""


class RequestFailedError(ServerFault):
    """One request failed inside a step; the others went on."""


class EngineDeadError(ServerFault):
    """The engine process ended while the request was open."""


class SetupError(OctavoError):
    """The operator has to change something before Octavo can start."""


class ConfigError(SetupError):
    """An option is unknown, malformed or contradicts another."""


class ModelNotFoundError(SetupError):
    """No such folder, file, Hub id or built-in name."""


class WeightsError(SetupError):
    """A weight file is missing, truncated, or not what it claims to be."""


class UnsupportedModelError(SetupError):
    """The architecture is not one that Octavo's decoder covers."""


class MemoryTooSmallError(SetupError):
    """The KV pool does not fit in memory, or is smaller than one request."""
