"""The errors of the client, and whether a retry can help."""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2, status_pb2

from ._reasons import IS_RETRYABLE

_DOMAIN = "sessiond"
_CLOSED = "CLOSED"
# The codes whose calls may succeed if they are retried, if the error has no known reason.
_TRANSIENT = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class SessiondError(Exception):
    """A call or a watch failed.

    Attributes:
        code: the gRPC code. Errors that the client found by itself have one, too.
        message: what is wrong and what to do.
        reason: the server's reason in UPPER_SNAKE, for example `LEASE_GONE`, or one of the client's:
            `SESSION_ELSEWHERE`, `REGISTRY_LOST`, `GATEWAY_STOPPED` or `CLOSED`. None if the error has none. Unlike the
            message, a reason does not change between versions.
        retry_after: how many seconds the server asks to wait before a retry; None if it does not.
        has_new_token: whether the token that was refused has been replaced in the `token_file` since: retry at once.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.retry_after = retry_after
        self.has_new_token = False

    @property
    def is_retryable(self) -> bool:
        """Whether the same call may succeed if it is retried later."""
        if self.has_new_token:
            return True
        if self.reason in IS_RETRYABLE:
            return IS_RETRYABLE[self.reason]
        return self.code in _TRANSIENT and self.reason != _CLOSED

    @property
    def is_lease_gone(self) -> bool:
        """Whether the lease has ended or lingers.

        Grant a new lease and create the sessions again under it. `Lease` and `Gateway` do this by themselves.
        """
        # Only calls that name a lease return NOT_FOUND, and a proxy may strip the reason.
        if self.code is grpc.StatusCode.NOT_FOUND:
            return True
        return self.code is grpc.StatusCode.FAILED_PRECONDITION and self.reason in ("LEASE_GONE", "LEASE_LINGERS")


class SessionElsewhere(SessiondError):  # noqa: N818
    """`Gateway.connect` failed because another gateway holds the session. Close the connection: the client has moved.

    Attributes:
        lease_id: the lease that the session is under.
    """

    def __init__(self, lease_id: int) -> None:
        super().__init__(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"the session is held elsewhere, under lease {lease_id}: close the connection",
            reason="SESSION_ELSEWHERE",
        )
        self.lease_id = lease_id


def closed_error(what: str) -> SessiondError:
    """Something that was closed is used."""
    return SessiondError(grpc.StatusCode.CANCELLED, f"the {what} is closed", reason=_CLOSED)


def gateway_stopped() -> SessiondError:
    """A gateway that was stopped is used."""
    return SessiondError(grpc.StatusCode.FAILED_PRECONDITION, "the gateway was stopped", reason="GATEWAY_STOPPED")


def registry_lost() -> SessiondError:
    """The registry was replaced by a new one, or lost changes, while a mirror waited for a place."""
    message = "the registry was replaced or lost changes, so that the place means nothing"
    return SessiondError(grpc.StatusCode.FAILED_PRECONDITION, message, reason="REGISTRY_LOST")


def protocol_error(message: str) -> SessiondError:
    """The server's answer does not follow the protocol. It may be another program or a newer sessiond."""
    return SessiondError(grpc.StatusCode.UNIMPLEMENTED, f"unexpected answer from the server: {message}")


def from_rpc_error(error: grpc.aio.AioRpcError) -> SessiondError:
    """Converts an error of grpc.aio, and reads its details."""
    reason, retry_after = None, None
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            reason, retry_after = _details(value)
    return SessiondError(error.code(), error.details() or "", reason=reason, retry_after=retry_after)


def _details(value: bytes) -> tuple[str | None, float | None]:
    reason, retry_after = None, None
    try:
        for detail in status_pb2.Status.FromString(value).details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info) and info.domain == _DOMAIN:
                reason = info.reason
            elif detail.Unpack(retry):
                delay = retry.retry_delay
                retry_after = max(0.0, delay.seconds + delay.nanos / 1e9)
    except ValueError:
        # The bytes are not a status: a proxy has sent them.
        pass
    return reason, retry_after
