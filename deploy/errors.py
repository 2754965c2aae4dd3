"""What can go wrong here, by name.

Each error carries a ``reason``: the word that metrics and logs use. What a reason means on the
wire (an HTTP status, a gRPC code) is decided by the protocol's own module.
"""

from __future__ import annotations

from typing import ClassVar


class DeployError(Exception):
    """Base of this room's errors; the message says what to do."""

    reason: ClassVar[str] = "internal"


class InputError(DeployError):
    """The input cannot be used. ``item`` is its position in the batch, or None."""

    reason = "bad_input"

    def __init__(self, message: str, item: int | None = None) -> None:
        super().__init__(message if item is None else f"item {item}: {message}")
        self.item = item


class TooLargeError(DeployError):
    """The body or the number of items is over the limit."""

    reason = "too_large"


class SlowBodyError(DeployError):
    """The request's body did not arrive in time."""

    reason = "slow_body"


class AccessError(DeployError):
    """The tokens, or the files for TLS, cannot be used."""

    reason = "access"


class UnauthorizedError(DeployError):
    """No token, or one that is not known."""

    reason = "unauthorized"


class ForbiddenError(DeployError):
    """The token lacks the scope that is needed."""

    reason = "forbidden"


class UnknownModelError(DeployError):
    """No model of that name is served here."""

    reason = "unknown_model"


class UnknownVersionError(DeployError):
    """That version is not loaded here."""

    reason = "unknown_version"


class NotReadyError(DeployError):
    """No version is loaded yet, or the server is going away."""

    reason = "not_ready"


class QueueFullError(DeployError):
    """The queue is at its limit. ``retry_after``: seconds after which it may have room."""

    reason = "queue_full"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(DeployError):
    """The work waited longer than allowed and was dropped unstarted."""

    reason = "deadline"


class ClientGoneError(DeployError):
    """The client left before its answer was ready."""

    reason = "client_gone"


class InferenceError(DeployError):
    """The model failed on this very input (it was tried alone)."""

    reason = "inference_failed"


class LoadError(DeployError):
    """A version could not be made to serve. ``cause`` is the word for the metrics."""

    reason = "load_failed"

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class ExportError(DeployError):
    """A torch module could not be turned into a graph that computes the same."""

    reason = "export_failed"


class PatchError(DeployError):
    """New weights do not fit the graph."""

    reason = "patch_failed"


class BindError(DeployError):
    """The server's address cannot be bound."""

    reason = "bind_failed"
