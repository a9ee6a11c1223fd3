"""Sessions of mtpylon in a fleet: a session storage and a session subject that use sessiond.

    app = web.Application()
    configure_app(app, schema, {…})
    setup(app, SessiondStorage("http://127.0.0.1:50051", owner="gw-1:8443"))

`setup` puts the storage behind mtpylon's session subject, ties sessions to their WebSocket connections, and stops the
gateway when the application shuts down.

- A session is registered by the first message of each connection that carries it, and taken from any other gateway:
  the client has just connected here. Later messages find it in this process and do not wait for the network.
- When a WebSocket closes, its sessions end, unless another connection here has them too.
- When a client has moved to another gateway, or someone has destroyed its session, its WebSocket is closed.
- If the process is killed, its sessions end with its lease.

Without `setup`, mtpylon tells a storage only which session to create, and never when a connection closes: sessions then
stay until `destroy_session` is called or the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from mtpylon.constants import AUTH_KEY_MANAGER_RESOURCE_NAME, SESSION_SUBJECT_RESOURCE_NAME
from mtpylon.crypto import AuthKey
from mtpylon.crypto.exceptions import AuthKeyDoesNotExist
from mtpylon.sessions import SessionEvent
from mtpylon.sessions.session_oberver_protocol import SessionObserverProtocol
from mtpylon.sessions.session_storage_protocol import SessionStorageProtocol
from mtpylon.sessions.session_subject_protocol import SessionSubjectProtocol
from mtpylon.types import long

from ..client import Client
from ..errors import SessiondError, closed_error
from ..gateway import Closed, Connection, Gateway
from ..mirror import Mirror, MirrorChange, Resync
from ..session import EventType, SessionKey

_logger = logging.getLogger("sessiond")
_MASK = (1 << 64) - 1
# How long to wait before asking again whether the fleet can be observed.
_RETRY = 1.0


@dataclass(frozen=True)
class FleetAuthKey(AuthKey):
    """The auth key of a session in another process, of which only the id is known. Its `value` is 0."""

    value: int = 0
    key_id: int = 0

    def __hash__(self) -> int:
        return hash(self.key_id)

    @property
    def id(self) -> int:
        """The id of the auth key."""
        return self.key_id


@dataclass(eq=False)
class _Socket:
    """A WebSocket, and the sessions whose messages came over it."""

    close: Callable[[], None] | None
    connections: dict[SessionKey, asyncio.Task[Connection]] = field(default_factory=dict)
    is_open: bool = True

    def end(self) -> None:
        """Closes the WebSocket, if it is known. Messages that have arrived create no session any more."""
        if self.close is not None:
            self.is_open = False
            self.close()


# The WebSocket whose messages are being handled. The tasks that mtpylon starts for messages inherit it.
_socket: ContextVar[_Socket | None] = ContextVar("sessiond_mtpylon_socket", default=None)


class SessiondStorage(SessionStorageProtocol):
    """Stores mtpylon's sessions in sessiond, under the lease of a gateway of this process.

    It may be created outside the event loop. The gateway starts with the first session.

    Args:
        address: the address of the server.
        owner: by convention the address at which this gateway can be reached.
        ttl: how many seconds the sessions outlive this process if it is killed.
        linger: how many seconds the sessions stay after an orderly stop, so that clients can move to other gateways.
        options: further options of `Client`, such as `token_file`.
    """

    def __init__(
        self, address: str, owner: str = "", *, ttl: float = 30.0, linger: float = 30.0, **options: Any
    ) -> None:
        self.client = Client(address, **options)
        self._owner = owner
        self._ttl = ttl
        self._linger = linger
        self._gateway: asyncio.Task[Gateway] | None = None
        # The sessions that are present here, by the sockets that carry them.
        self._storage: dict[SessionKey, set[_Socket]] = {}
        # Carries the sessions of messages whose WebSocket is unknown.
        self._unknown = _Socket(close=None)
        self._watchers: set[asyncio.Task[None]] = set()

    async def gateway(self) -> Gateway:
        """Returns the gateway, and starts it if this is the first call."""
        if self._gateway is None or (self._gateway.done() and self._gateway.exception() is not None):
            self._gateway = asyncio.create_task(self.client.gateway(self._owner, ttl=self._ttl, linger=self._linger))
        return await asyncio.shield(self._gateway)

    async def create_session(self, auth_key: AuthKey, session_id: long) -> None:
        """Registers a session of the current connection, and takes it from any other gateway."""
        socket, session = _socket.get() or self._unknown, SessionKey(auth_key.id, session_id)
        if not socket.is_open:
            # A late message must not take the session back from where the client is now.
            raise closed_error(f"connection of {session}")
        task = socket.connections.get(session)
        if task is None:
            task = socket.connections[session] = asyncio.create_task(self._connect(socket, session))
        await asyncio.shield(task)

    async def has_session(self, auth_key: AuthKey, session_id: long) -> bool:
        """Returns whether the session is registered for the current connection. Does not wait for the network.

        A session that another gateway holds, or another connection, counts as missing. mtpylon then creates it, and it
        moves here.
        """
        session = SessionKey(auth_key.id, session_id)
        sockets = self._storage.get(session, ())
        socket = _socket.get()
        return bool(sockets) if socket is None else socket in sockets

    async def destroy_session(self, auth_key: AuthKey, session_id: long) -> None:
        """Ends the session, wherever it is."""
        session = SessionKey(auth_key.id, session_id)
        for socket in self._storage.pop(session, set()):
            if (task := socket.connections.pop(session, None)) is not None:
                _close_when_connected(task)
        await self.client.destroy(session)

    async def stop(self) -> None:
        """Stops the gateway and closes the client."""
        try:
            if self._gateway is not None:
                await (await self._gateway).stop()
        except SessiondError as error:
            _logger.warning("could not stop the gateway, so its lease will expire after its ttl: %s", error)
        await self.client.close()

    @contextlib.asynccontextmanager
    async def socket(self, close: Callable[[], None]) -> AsyncIterator[None]:
        """Ties the sessions that are created within the block to a connection.

        They end with the block. `close` is called if one of them has moved or was destroyed elsewhere.
        """
        socket = _Socket(close)
        token = _socket.set(socket)
        try:
            yield
        finally:
            _socket.reset(token)
            socket.is_open = False
            for session, task in list(socket.connections.items()):
                self._forget(socket, session)
                task.add_done_callback(_close_when_connected)

    async def _connect(self, socket: _Socket, session: SessionKey) -> Connection:
        try:
            connection = await (await self.gateway()).connect(session)
        except BaseException as error:
            # mtpylon would leave the client waiting for an answer.
            socket.connections.pop(session, None)
            _logger.warning("closing the connection of %s, which could not be registered: %s", session, error)
            socket.end()
            raise
        if socket.is_open:
            self._storage.setdefault(session, set()).add(socket)
            watcher = asyncio.create_task(self._watch(socket, session, connection))
            self._watchers.add(watcher)
            watcher.add_done_callback(self._watchers.discard)
        return connection

    async def _watch(self, socket: _Socket, session: SessionKey, connection: Connection) -> None:
        reason = await connection.closed
        if not isinstance(reason, Closed):
            self._forget(socket, session)
            _logger.info("closing the connection of %s: %s", session, reason)
            socket.end()

    def _forget(self, socket: _Socket, session: SessionKey) -> None:
        socket.connections.pop(session, None)
        sockets = self._storage.get(session)
        if sockets is not None:
            sockets.discard(socket)
            if not sockets:
                del self._storage[session]


def _close_when_connected(task: asyncio.Task[Connection]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


class SessiondSubject(SessionSubjectProtocol):
    """A session subject whose observers hear of the sessions of the whole fleet.

    Each session that is created or destroyed, here or elsewhere, is reported once, from `start` on. A session that
    moves to another gateway is not reported. The auth keys of events come from `find_auth_key`; those that it does not
    know are `FleetAuthKey`s.

    It holds a mirror of the registry, so that it can tell what has changed while it was cut off.
    """

    def __init__(
        self,
        session_storage: SessiondStorage,
        find_auth_key: Callable[[int], Awaitable[AuthKey]] | None = None,
    ) -> None:
        self.session_storage: SessiondStorage = session_storage
        self.observers: list[SessionObserverProtocol] = []
        self._find_auth_key = find_auth_key
        self._mirror: Mirror | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_started = False

    def subscribe(self, observer: SessionObserverProtocol) -> None:
        """Adds an observer."""
        self.observers.append(observer)

    def unsubscribe(self, observer: SessionObserverProtocol) -> None:
        """Removes an observer."""
        self.observers.remove(observer)

    async def create_session(self, auth_key: AuthKey, session_id: long) -> None:
        """Registers a session of the current connection."""
        await self.session_storage.create_session(auth_key, session_id)

    async def has_session(self, auth_key: AuthKey, session_id: long) -> bool:
        """Returns whether the session is registered for the current connection."""
        return await self.session_storage.has_session(auth_key, session_id)

    async def destroy_session(self, auth_key: AuthKey, session_id: long) -> None:
        """Ends the session, wherever it is."""
        await self.session_storage.destroy_session(auth_key, session_id)

    async def start(self) -> None:
        """Starts to observe the fleet. Returns at once if the registry is away; the observers then hear later."""
        self._is_started = True
        self._mirror = await self.session_storage.client.mirror()
        self._task = asyncio.create_task(self._notify_all(self._mirror), name="sessiond mtpylon subject")

    async def synced(self) -> None:
        """Waits until every change from now on will be reported."""
        if self._mirror is not None:
            await self._mirror.synced()

    async def stop(self) -> None:
        """Stops observing."""
        self._is_started = False
        if self._mirror is not None:
            await self._mirror.close()
        if self._task is not None:
            await self._task

    async def _notify_all(self, mirror: Mirror) -> None:
        # The first contents of the mirror are not changes of the fleet.
        while not mirror.is_synced:
            try:
                await mirror.synced()
            except SessiondError as error:
                if not self._is_started:
                    return
                _logger.error("cannot observe the fleet, retrying: %s", error)
                await asyncio.sleep(_RETRY)
        async for change in mirror.changes():
            if isinstance(change, Resync):
                _logger.error("the observers are too slow: some sessions were not reported to them")
            elif change.type is not EventType.MOVED:
                await self._notify(change)

    async def _notify(self, change: MirrorChange) -> None:
        event = SessionEvent(
            type="created" if change.type is EventType.CREATED else "destroyed",
            session_id=long(change.session.session_id),
            # mtpylon's session ids are signed and the ids of its auth keys are not.
            auth_key=await self._auth_key(change.session.auth_key_id & _MASK),
        )
        results = await asyncio.gather(
            *(observer.update(event) for observer in list(self.observers)), return_exceptions=True
        )
        for result in results:
            if isinstance(result, Exception):
                _logger.error("an observer failed", exc_info=result)

    async def _auth_key(self, key_id: int) -> AuthKey:
        if self._find_auth_key is not None:
            with contextlib.suppress(AuthKeyDoesNotExist):
                return await self._find_auth_key(key_id)
        return FleetAuthKey(key_id=key_id)


def setup(app: web.Application, storage: SessiondStorage) -> SessiondSubject:
    """Makes an application that `configure_app` has configured keep its sessions in `storage`.

    Returns the session subject, to which observers subscribe.
    """
    subject = SessiondSubject(storage, app[AUTH_KEY_MANAGER_RESOURCE_NAME].get_key)
    app[SESSION_SUBJECT_RESOURCE_NAME] = subject

    @web.middleware
    async def tie_sessions(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        def close() -> None:
            if request.transport is not None:
                request.transport.close()

        async with storage.socket(close):
            return await handler(request)

    async def run(app: web.Application) -> AsyncIterator[None]:
        await subject.start()
        yield
        await subject.stop()

    async def stop_gateway(app: web.Application) -> None:
        await storage.stop()

    app.middlewares.append(tie_sessions)
    app.cleanup_ctx.append(run)
    # At the start of the shutdown, so that clients move while their connections are being closed.
    app.on_shutdown.append(stop_gateway)
    return subject
