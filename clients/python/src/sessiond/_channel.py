"""Connections to the server: their options, and the credentials sent with each call."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc
import grpc.aio
from google.protobuf.message import Message

from .errors import SessiondError, closed_error, from_rpc_error

Response = TypeVar("Response", bound=Message)

_logger = logging.getLogger("sessiond")

_SERVICES = ("sessiond.v1.SessionService", "sessiond.v1.LeaseService")
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5000),
    # Without this, the C core keeps a dead connection for a minute, whatever the timeout of the keepalive.
    ("grpc.http2.ping_timeout_ms", 5000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC shares connections between channels otherwise. A watch that leaves a dead connection needs a new one.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
]
_BALANCE: list[dict[str, dict[str, str]]] = [{"round_robin": {}}]
_RETRIES = {
    "loadBalancingConfig": _BALANCE,
    "methodConfig": [
        {
            "name": [{"service": service} for service in _SERVICES],
            "waitForReady": True,
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ],
}


class TokenFile:
    """A token in a file. The file is read again when it changes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._stamp: tuple[int, int, int] | None = None
        self._token = ""
        try:
            self._read()
        except OSError as error:
            raise ValueError(f"cannot read the token in {self._path}: {error}") from error

    def token(self) -> str:
        """Returns the token that the file contains now."""
        try:
            self._read()
        except (OSError, ValueError) as error:
            # A program that replaces the file may empty or remove it for a moment.
            _logger.warning("cannot read the token from %s, using the last one: %s", self._path, error)
        return self._token

    def _read(self) -> None:
        status = self._path.stat()
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp != self._stamp:
            token = self._path.read_text().strip()
            _check_token(token)
            self._token, self._stamp = token, stamp


def _check_token(token: str) -> None:
    if not re.fullmatch("[!-~]+", token):
        raise ValueError("the token is malformed: pass it exactly as `sessiond token new` printed it")


@dataclass(frozen=True)
class Target:
    """The server to connect to, and the credentials to send."""

    address: str
    tls_ca: bytes | None = None
    tls_identity: tuple[bytes, bytes] | None = None
    token: str | None = field(default=None, repr=False)
    token_file: TokenFile | None = field(default=None, repr=False)
    interceptors: tuple[grpc.aio.ClientInterceptor, ...] = ()
    timeout: float = 10.0
    connect_timeout: float = 5.0

    def __post_init__(self) -> None:
        name, is_tls = self._name()
        if not is_tls and (self.tls_ca is not None or self.tls_identity is not None):
            raise ValueError(f"TLS settings need an https:// address, not {name}")
        if self.token is not None and self.token_file is not None:
            raise ValueError("pass a token or a token_file, not both")
        if self.token is not None:
            _check_token(self.token)

    def connect(self, *, retries: bool = False) -> grpc.aio.Channel:
        """Returns a channel with a connection of its own, opened by its first call.

        With `retries`, unary calls wait for the connection and are retried.
        """
        name, is_tls = self._name()
        config = _RETRIES if retries else {"loadBalancingConfig": _BALANCE}
        # gRPC's name for how long an attempt to connect may take.
        connect_timeout = ("grpc.min_reconnect_backoff_ms", round(self.connect_timeout * 1000))
        options = [*_OPTIONS, connect_timeout, ("grpc.service_config", json.dumps(config))]
        interceptors = list(self.interceptors)
        if not is_tls:
            return grpc.aio.insecure_channel(name, options=options, interceptors=interceptors)
        certificate, key = self.tls_identity or (None, None)
        credentials = grpc.ssl_channel_credentials(self.tls_ca, key, certificate)
        return grpc.aio.secure_channel(name, credentials, options=options, interceptors=interceptors)

    def current_token(self) -> str | None:
        """Returns the token to send now."""
        return self.token_file.token() if self.token_file else self.token

    def error(self, error: grpc.aio.AioRpcError, sent: str | None) -> SessiondError:
        """Converts an error of a call that was sent with this token."""
        converted = from_rpc_error(error)
        converted.has_new_token = error.code() is grpc.StatusCode.UNAUTHENTICATED and self.current_token() != sent
        return converted

    def _name(self) -> tuple[str, bool]:
        """Returns gRPC's name for the address, and whether it uses TLS."""
        if re.match("unix:(?!/*$).", self.address):
            return self.address, False
        url = urlsplit(self.address)
        if url.scheme in ("http", "https") and url.hostname and not url.path.strip("/") and not url.query:
            is_tls = url.scheme == "https"
            # gRPC's own default is 443, without TLS too.
            name = url.netloc if url.port else f"{url.netloc}:{443 if is_tls else 80}"
            return f"dns:///{name}", is_tls
        raise ValueError(
            f"{self.address!r} is not a server address: use http://HOST:PORT, https://HOST:PORT for TLS, or unix:PATH"
        )


def metadata(token: str | None) -> grpc.aio.Metadata | None:
    """Returns the metadata of a call with this token."""
    return None if token is None else grpc.aio.Metadata(("authorization", f"Bearer {token}"))


async def call(
    target: Target,
    channel: grpc.aio.Channel,
    method: str,
    request: Message,
    response: type[Response],
    *,
    timeout: float | None = None,
) -> Response:
    """Makes a unary call. `method` is SERVICE/METHOD, without the package."""
    stub = channel.unary_unary(
        f"/sessiond.v1.{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=response.FromString,
    )
    loop = asyncio.get_running_loop()
    end = loop.time() + (target.timeout if timeout is None else timeout)
    is_retry = False
    while True:
        sent = target.current_token()
        try:
            return await stub(request, timeout=end - loop.time(), metadata=metadata(sent))
        except grpc.aio.AioRpcError as error:
            failure = target.error(error, sent)
            if is_retry or not failure.has_new_token:
                raise failure from None
            is_retry = True
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            # gRPC cancels the calls of a channel that is closed.
            raise closed_error("client") from None
        except grpc.aio.UsageError:
            raise closed_error("client") from None


def _is_cancelled() -> bool:
    """Returns whether the current task was cancelled. Python 3.10 cannot tell whether that or a call was."""
    task = asyncio.current_task()
    return sys.version_info < (3, 11) or task is None or task.cancelling() > 0
