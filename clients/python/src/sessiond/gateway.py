"""A gateway: connections whose sessions are registered under a lease."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

import grpc

from ._backoff import Backoff
from ._proto import session_service_pb2 as pb
from .errors import SessiondError, SessionElsewhere, gateway_stopped
from .lease import Lease, Regranted
from .session import DestroyReason, SessionKey, key_of
from .watch import Events, Reset, Snapshot, Subscribed, Synced

if TYPE_CHECKING:
    from .client import Client
    from .watch import WatchUpdate

# The most sessions in one round of calls.
_ROUND = 4096
# A lookup that was answered later than this after the client connected says nothing about where the client came from.
_FRESH = 1.0
_HEARTBEAT = 5.0
# The longest pause that the registry may ask for.
_LONGEST_RETRY_AFTER = 10.0

_logger = logging.getLogger("sessiond")


@dataclass(frozen=True)
class Moved:
    """The session is under another lease. The client has connected elsewhere."""

    lease_id: int


@dataclass(frozen=True)
class Destroyed:
    """Someone has destroyed the session.

    The reason is `UNSPECIFIED` if that happened while the gateway could not follow the registry.
    """

    reason: DestroyReason


@dataclass(frozen=True)
class Stopped:
    """The gateway stops. The client should connect to another one, which takes the session."""


@dataclass(frozen=True)
class Closed:
    """`Connection.close` was called."""


CloseReason: TypeAlias = Moved | Destroyed | Stopped | Closed


class _Phase(enum.Enum):
    OPENING = 1
    """Waits for a lookup."""
    CLAIMING = 2
    """Looked up. Waits for the session to be created or moved here."""
    REGISTERED = 3
    CLOSED = 4


class _Link:
    """A connection as the book knows it."""

    __slots__ = ("began", "claim", "closed", "error", "opened", "phase", "session")

    def __init__(self, session: SessionKey, loop: asyncio.AbstractEventLoop) -> None:
        self.session = session
        self.phase = _Phase.OPENING
        self.began = loop.time()
        # The lease from which the session may be taken. Fixed by the lookup, so that a retry cannot take the session
        # from a newer holder.
        self.claim = 0
        self.error: SessiondError | None = None
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[CloseReason] = loop.create_future()


class _Entry:
    """What the book knows about a session."""

    __slots__ = ("left", "links", "maybe", "under")

    def __init__(self) -> None:
        self.links: list[_Link] = []
        # The lease that the session is registered under. 0 if it must be registered again.
        self.under = 0
        # The leases that the session is or may be under, because a create was sent.
        self.maybe: tuple[int, ...] = ()
        # Why the session may have left the lease.
        self.left: Destroyed | Moved | None = None

    def links_in(self, phase: _Phase) -> list[_Link]:
        return [link for link in self.links if link.phase is phase]


class Connection:
    """A client's connection, returned by `Gateway.connect`. Close it, or use it in a `with` statement."""

    def __init__(self, gateway: Gateway, link: _Link) -> None:
        self._gateway = gateway
        self._link = link

    @property
    def session(self) -> SessionKey:
        """The session of the connection."""
        return self._link.session

    @property
    def closed(self) -> asyncio.Future[CloseReason]:
        """Wait for this to learn why the connection must be closed: `Moved`, `Destroyed` or `Stopped`.

        It is `Closed` if `close` was called.
        """
        return asyncio.shield(self._link.closed)

    def close(self) -> None:
        """Ends the connection. The last one of a session ends the session, unless it is elsewhere by now."""
        self._gateway._close(self._link)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._link.phase is not _Phase.CLOSED:
            warnings.warn(f"unclosed connection of {self.session}", ResourceWarning, source=self, stacklevel=2)
            loop = self._link.closed.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._gateway._close, self._link)


class Gateway:
    """Registers the sessions of its connections under a lease, returned by `Client.gateway`.

    One loop makes all calls about sessions. Opening and closing connections, and the events of the lease's own stream,
    only tell it which sessions to look at; the registry decides. So no two calls about one session are in flight at a
    time, and many sessions share a call.
    """

    def __init__(self, client: Client, lease: Lease, linger: float) -> None:
        self._client = client
        self._lease = lease
        self._linger = linger
        self._lease_id = lease.id
        self._book: dict[SessionKey, _Entry] = {}
        self._dirty: dict[SessionKey, None] = {}
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._stopping = asyncio.Event()
        self._stopped: asyncio.Task[None] | None = None
        self._last_error: SessiondError | None = None
        self._candidates: set[SessionKey] = set()
        self._observer = asyncio.create_task(self._observe(lease.id), name="sessiond gateway stream")
        self._follower = asyncio.create_task(self._follow_lease(), name="sessiond gateway lease")
        self._reconciler = asyncio.create_task(self._reconcile(), name="sessiond gateway")

    @classmethod
    async def started(cls, client: Client, owner: str, ttl: float, linger: float) -> Gateway:
        """Grants the lease and starts the gateway."""
        return cls(client, await Lease.granted(client, owner, ttl), linger)

    @property
    def lease_id(self) -> int:
        """The lease that sessions are registered under. It changes if the lease is lost."""
        return self._lease_id

    def holds(self, session: SessionKey) -> bool:
        """Returns whether the session has an open connection here that was registered."""
        entry = self._book.get(session)
        return entry is not None and any(link.phase is _Phase.REGISTERED for link in entry.links)

    @property
    def session_count(self) -> int:
        """How many sessions have a connection here, or are still to be ended."""
        return len(self._book)

    async def connect(self, session: SessionKey) -> Connection:
        """Registers a client that has just connected here, and takes its session from any other gateway.

        Raises `SessionElsewhere` if the client has meanwhile connected to another gateway, and another
        `SessiondError` if the registry does not answer within the client's timeout. Close the client's connection
        then.
        """
        if self._is_stopping:
            raise gateway_stopped()
        link = _Link(session, asyncio.get_running_loop())
        self._entry(session).links.append(link)
        self._mark(session)
        try:
            await asyncio.wait({link.opened}, timeout=self._client._target.timeout)
        except asyncio.CancelledError:
            self._close(link)
            raise
        if not link.opened.done():
            self._close(link)
            raise SessiondError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"could not register {session} within {self._client._target.timeout} s: {self._last_error or 'busy'}",
            )
        if link.error is not None:
            raise link.error
        return Connection(self, link)

    async def stop(self, *, linger: float | None = None) -> None:
        """Stops the gateway, and lets its clients move.

        Every connection is told to close (`Stopped`). The sessions stay for `linger` seconds (by default those that
        the gateway was created with), so that the clients can connect to other gateways without anybody seeing their
        sessions disappear. Those that remain then end.
        """
        if self._stopped is None:
            linger = self._linger if linger is None else linger
            self._stopped = asyncio.create_task(self._stop(linger), name="sessiond gateway stop")
        await asyncio.shield(self._stopped)

    async def __aenter__(self) -> Gateway:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _stop(self, linger: float) -> None:
        self._is_stopping = True
        self._stopping.set()
        # An event that comes from now on must not end a session whose client moves.
        self._follower.cancel()
        self._observer.cancel()
        for session, entry in list(self._book.items()):
            if entry.links:
                # The sessions of these connections move, or end with the lease.
                del self._book[session]
                error = gateway_stopped()
                for link in entry.links:
                    self._finish(link, Stopped(), error)
        self._wake.set()
        await asyncio.wait({self._reconciler}, timeout=self._client._target.timeout)
        tasks = (self._reconciler, self._follower, self._observer)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await self._lease.revoke(linger=linger)
        except SessiondError as error:
            if not error.is_lease_gone:
                raise

    def _entry(self, session: SessionKey) -> _Entry:
        entry = self._book.get(session)
        if entry is None:
            entry = self._book[session] = _Entry()
        return entry

    def _mark(self, session: SessionKey) -> None:
        self._dirty[session] = None
        self._wake.set()

    def _finish(self, link: _Link, reason: CloseReason, error: SessiondError | None = None) -> None:
        link.phase = _Phase.CLOSED
        link.error = error
        if not link.opened.done():
            link.opened.set_result(None)
        if not link.closed.done():
            link.closed.set_result(reason)

    def _close(self, link: _Link, reason: CloseReason | None = None, error: SessiondError | None = None) -> None:
        """Ends a connection, for whatever reason."""
        if link.phase is _Phase.CLOSED:
            return
        self._finish(link, reason or Closed(), error)
        entry = self._book[link.session]
        entry.links.remove(link)
        if not entry.links:
            self._mark(link.session)

    def _register(self, link: _Link) -> None:
        link.phase = _Phase.REGISTERED
        if not link.opened.done():
            link.opened.set_result(None)

    # The loop that makes all calls about sessions.

    async def _reconcile(self) -> None:
        backoff = Backoff()
        while True:
            if not self._dirty:
                if self._is_stopping:
                    return
                await self._wake.wait()
                self._wake.clear()
                continue
            batch = [session for session, _ in zip(self._dirty, range(_ROUND), strict=False)]
            for session in batch:
                del self._dirty[session]
            try:
                await self._round(batch)
            except SessiondError as error:
                if self._is_stopping:
                    return
                self._last_error = error
                self._dirty.update(dict.fromkeys(batch))
                if error.is_lease_gone:
                    self._lease.check()
                asked = None if error.retry_after is None else min(error.retry_after, _LONGEST_RETRY_AFTER)
                delay = backoff.after_failure(asked)
                _logger.info("gateway cannot register %d sessions, retrying in %.2f s: %s", len(batch), delay, error)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), delay)
            else:
                backoff.reset()

    async def _round(self, batch: list[SessionKey]) -> None:
        lease_id = self._lease_id
        await self._look_up(batch, lease_id)
        await self._claim(batch, lease_id)
        await self._destroy(batch)
        for session in batch:
            entry = self._book.get(session)
            if entry is not None and not entry.links and not entry.maybe and session not in self._dirty:
                del self._book[session]

    async def _look_up(self, batch: list[SessionKey], lease_id: int) -> None:
        """Asks where the sessions are that may have left, and those of connections that are opening."""
        opening: dict[SessionKey, list[_Link]] = {}
        hints: dict[SessionKey, Destroyed | Moved | None] = {}
        for session in batch:
            entry = self._book.get(session)
            if entry is None:
                continue
            links = entry.links_in(_Phase.OPENING)
            if links or entry.left is not None:
                opening[session], hints[session] = links, entry.left
                # A hint that comes during the call asks for another lookup.
                entry.left = None
        if not hints:
            return
        try:
            found = await self._client.batch_lookup(hints)
            # If the lease has ended, so have its sessions, and nobody has moved or destroyed them.
            is_alive = not any(map(self._seems_lost, hints, found)) or await self._is_alive(lease_id)
        except SessiondError as error:
            for session, hint in hints.items():
                if (entry := self._book.get(session)) is not None and entry.left is None:
                    entry.left = hint
            self._refuse(error, (link for links in opening.values() for link in links))
            raise
        now = asyncio.get_running_loop().time()
        for (session, hint), holder in zip(hints.items(), found, strict=True):
            entry = self._book.get(session)
            if entry is None:
                continue
            if holder == lease_id:
                self._hold(entry, lease_id)
                for link in opening[session]:
                    if link.phase is _Phase.OPENING:
                        self._register(link)
                continue
            if is_alive or holder or entry.under != lease_id:
                self._leave(entry, lease_id, holder, hint, opening[session])
            for link in opening[session]:
                if link.phase is _Phase.OPENING:
                    link.phase = _Phase.CLAIMING
                    link.claim = holder or 0 if now - link.began <= _FRESH else 0

    def _seems_lost(self, session: SessionKey, holder: int | None) -> bool:
        entry = self._book.get(session)
        return not holder and entry is not None and bool(entry.links_in(_Phase.REGISTERED))

    async def _is_alive(self, lease_id: int) -> bool:
        """Returns whether the lease has neither ended nor lingers. If not, makes its keeper notice."""
        # The server may answer a keep-alive from memory, even if another replica has just revoked the lease.
        statuses = [status async for status in self._client.list_leases(lease_ids=[lease_id])]
        is_alive = bool(statuses) and not statuses[0].lingers
        if not is_alive:
            self._lease.check()
        return is_alive

    def _hold(self, entry: _Entry, lease_id: int) -> None:
        """Notes that the session is under the lease."""
        entry.under, entry.maybe = lease_id, (lease_id,)
        for link in entry.links_in(_Phase.CLAIMING):
            self._register(link)

    def _leave(
        self,
        entry: _Entry,
        lease_id: int,
        holder: int | None,
        hint: Destroyed | Moved | None,
        opening: list[_Link],
    ) -> None:
        """Closes the connections that the session has left: it is not under the lease."""
        registered = entry.links_in(_Phase.REGISTERED)
        if not registered:
            return
        reason: CloseReason
        if entry.under != lease_id:
            # The session is to be registered again. That it is not there does not mean that the client is elsewhere,
            # unless it is under another lease and the client has just come back from there.
            if not opening or not holder or holder in entry.maybe:
                return
            reason = Moved(holder)
        elif holder:
            reason = Moved(holder)
        elif hint == Destroyed(DestroyReason.RELEASED):
            # A destroy of this gateway was delayed until after the client had come back: register the session again.
            entry.under = 0
            return
        else:
            reason = hint or Destroyed(DestroyReason.UNSPECIFIED)
        entry.under, entry.maybe = 0, ()
        for link in registered:
            self._close(link, reason)

    async def _claim(self, batch: list[SessionKey], lease_id: int) -> None:
        """Creates or moves the sessions of connections that are opening, and registers sessions again."""
        groups: dict[int, dict[SessionKey, None]] = {}
        for session in batch:
            entry = self._book.get(session)
            if entry is None:
                continue
            for link in entry.links_in(_Phase.CLAIMING):
                groups.setdefault(link.claim, {})[session] = None
            if self._is_to_restore(entry, lease_id):
                groups.setdefault(0, {})[session] = None
        for only_from, sessions in groups.items():
            claims: dict[SessionKey, list[_Link]] = {}
            for session in sessions:
                entry = self._book.get(session)
                if entry is None:
                    continue
                links = [link for link in entry.links_in(_Phase.CLAIMING) if link.claim == only_from]
                if links or (only_from == 0 and self._is_to_restore(entry, lease_id)):
                    claims[session] = links
                    if lease_id not in entry.maybe:
                        entry.maybe = (*entry.maybe, lease_id)
            if claims and not self._is_stopping:
                await self._create(claims, lease_id, only_from)

    @staticmethod
    def _is_to_restore(entry: _Entry, lease_id: int) -> bool:
        return entry.under != lease_id and any(link.phase is _Phase.REGISTERED for link in entry.links)

    async def _create(self, claims: dict[SessionKey, list[_Link]], lease_id: int, only_from: int) -> None:
        try:
            answer = await self._client.batch_take(claims, lease_id, only_from=only_from)
        except SessiondError as error:
            self._refuse(error, (link for links in claims.values() for link in links))
            raise
        for (session, links), holder in zip(claims.items(), answer.lease_ids, strict=True):
            entry = self._book.get(session)
            if entry is None:
                continue
            if holder == lease_id:
                self._hold(entry, lease_id)
                continue
            registered = entry.links_in(_Phase.REGISTERED)
            entry.under, entry.maybe = 0, ()
            for link in links:
                self._close(link, error=SessionElsewhere(holder))
            for link in registered:
                self._close(link, Moved(holder))

    def _refuse(self, error: SessiondError, links: Iterable[_Link]) -> None:
        """Fails the connections that are opening, if a retry cannot help."""
        if not error.is_retryable and not error.is_lease_gone:
            for link in list(links):
                self._close(link, error=error)

    async def _destroy(self, batch: list[SessionKey]) -> None:
        """Ends the sessions without connections, under each lease that they may be under."""
        groups: dict[int, list[SessionKey]] = {}
        for session in batch:
            entry = self._book.get(session)
            if entry is not None and not entry.links:
                for lease_id in entry.maybe:
                    groups.setdefault(lease_id, []).append(session)
                entry.under, entry.maybe = 0, ()
        while groups:
            lease_id, sessions = groups.popitem()
            try:
                await self._client.batch_destroy(sessions, lease=lease_id)
            except SessiondError:
                groups[lease_id] = sessions
                for rest, left in groups.items():
                    for session in left:
                        entry = self._entry(session)
                        if rest not in entry.maybe:
                            entry.maybe = (*entry.maybe, rest)
                raise

    # The hints: the lease and its stream.

    async def _follow_lease(self) -> None:
        async for event in self._lease.events():
            if isinstance(event, Regranted):
                self._lease_id = event.lease_id
                self._observer.cancel()
                self._observer = asyncio.create_task(self._observe(event.lease_id), name="sessiond gateway stream")
                for session, entry in self._book.items():
                    if entry.links:
                        self._dirty[session] = None
                self._wake.set()

    async def _observe(self, lease_id: int) -> None:
        self._candidates = set()
        watch = self._client.watch(snapshot=True, lease_ids=[lease_id], heartbeat=_HEARTBEAT)
        try:
            while True:
                try:
                    self._apply(lease_id, await anext(watch))
                except SessiondError as error:
                    _logger.error("gateway cannot watch its lease, retrying: %s", error)
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(watch.close())

    def _apply(self, lease_id: int, update: WatchUpdate) -> None:
        match update:
            case Subscribed() | Reset():
                # What a snapshot lacks may have left, if it was registered before.
                self._candidates = {session for session, entry in self._book.items() if entry.under == lease_id}
            case Snapshot():
                for present in update.message.sessions:
                    session = key_of(present.auth_key_id, present.session_id)
                    self._candidates.discard(session)
                    self._hint_present(session, lease_id)
            case Synced():
                for session in self._candidates:
                    self._hint_absent(session, Destroyed(DestroyReason.UNSPECIFIED))
                self._candidates = set()
            case Events():
                last = {(event.auth_key_id, event.session_id): event for event in update.message.events}
                for (auth_key_id, session_id), event in last.items():
                    session = key_of(auth_key_id, session_id)
                    if event.type == pb.SESSION_EVENT_TYPE_DESTROYED:
                        self._hint_absent(session, Destroyed(DestroyReason(event.reason)))
                    elif event.lease_id != lease_id:
                        self._hint_absent(session, Moved(event.lease_id))
                    else:
                        self._hint_present(session, lease_id)

    def _hint_present(self, session: SessionKey, lease_id: int) -> None:
        """The session appeared under the lease. Without a connection, a delayed create has made it: end it."""
        entry = self._book.get(session)
        if entry is None or not (entry.links or lease_id in entry.maybe):
            entry = self._entry(session)
            entry.maybe = (*entry.maybe, lease_id)
            self._mark(session)

    def _hint_absent(self, session: SessionKey, reason: Destroyed | Moved) -> None:
        """The session may have left the lease: look it up."""
        entry = self._book.get(session)
        if entry is not None and any(link.phase is _Phase.REGISTERED for link in entry.links):
            entry.left = reason
            self._mark(session)
