"""A local copy of the registry."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import grpc

from ._proto import session_service_pb2 as pb
from ._signal import Signal
from .errors import SessiondError, closed_error, registry_lost
from .session import DestroyReason, EventType, Place, SessionKey, key_of
from .watch import Disconnected, Events, Heartbeat, Reset, ResetReason, Snapshot, Subscribed, Synced, Watch

if TYPE_CHECKING:
    from .client import Client
    from .watch import WatchUpdate

_HALF = 1 << 63
# How long the owners of new leases may delay the changes that name them, and how often they are asked for again.
_OWNER_TIMEOUT = 1.0
_OWNER_RETRY = 1.0
# How late a heartbeat may be before the mirror counts as stale.
_SLACK = 1.0
# How many leases without sessions are kept until the stream is quiet.
_MAX_EMPTY = 1000
_MAX_CHANGES = 65_536

_logger = logging.getLogger("sessiond")


class MirrorHolder(NamedTuple):
    """The lease that a session is under, and its owner: the gateway that holds the session.

    `owner` is None if it could not be looked up yet.
    """

    lease_id: int
    owner: str | None


class MirrorChange(NamedTuple):
    """A change that a mirror has applied.

    `lease_id` is the lease after the change or, if the session was destroyed, before it; 0 for none. `reason` is
    `UNSPECIFIED` for a session that was destroyed while the mirror was away.
    """

    type: EventType
    session: SessionKey
    lease_id: int
    previous_lease_id: int
    reason: DestroyReason


class Resync(NamedTuple):
    """The reader of the changes was too slow, and changes were left out: read the mirror again."""


class _Lease:
    """A lease that sessions of the mirror are under."""

    __slots__ = ("holder", "id", "sessions")

    def __init__(self, lease_id: int, owner: str | None) -> None:
        self.id = lease_id
        self.holder = MirrorHolder(lease_id, owner) if lease_id else None
        self.sessions = 0


class _Copy:
    """The contents of the mirror. During a snapshot there are two: the old one to read, the new one to fill.

    The key of a session is one number (see `_pack`), which takes less memory than a pair.
    """

    __slots__ = ("leases", "sessions")

    def __init__(self) -> None:
        self.sessions: dict[int, _Lease] = {}
        self.leases: dict[int, _Lease] = {0: _Lease(0, None)}


class MirrorChanges:
    """An async iterator of the changes that a mirror applies, returned by `Mirror.changes`."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._pending: deque[MirrorChange] = deque()
        self._is_lagging = False

    def __aiter__(self) -> MirrorChanges:
        return self

    async def __anext__(self) -> MirrorChange | Resync:
        """Waits for the next change. The iteration ends with the mirror."""
        while True:
            if self._is_lagging:
                self._is_lagging = False
                return Resync()
            if self._pending:
                return self._pending.popleft()
            if self._mirror._is_closed:
                raise StopAsyncIteration
            await self._mirror._changed.wait()

    def close(self) -> None:
        """Stops the mirror from storing changes for this iterator."""
        self._mirror._readers.discard(self)

    def _push(self, changes: list[MirrorChange]) -> None:
        if len(self._pending) + len(changes) > _MAX_CHANGES:
            self._pending.clear()
            self._is_lagging = True
        else:
            self._pending.extend(changes)


class Mirror:
    """A local copy of the registry, or of some of its sessions, returned by `Client.mirror`.

    It equals the registry from `synced` on, a moment behind. If it is cut off, its contents stay readable and
    `staleness` grows. After a reset the old contents stay readable until the new ones are complete, so the memory
    peaks at twice.
    """

    def __init__(self, client: Client, watch: Watch, lease_ids: frozenset[int]) -> None:
        self._client = client
        self._watch = watch
        self._lease_ids = lease_ids
        self._copy = _Copy()
        self._sessions = self._copy.sessions
        self._next: _Copy | None = _Copy()
        self._places: dict[int, int] = {}
        self._registry_id: str | None = None
        # Grows when positions of the log lose their meaning.
        self._epoch = 0
        # Whether the open stream comes from another registry than the stream before.
        self._is_other_registry = False
        self._is_synced = False
        self._is_live = False
        self._is_closed = False
        self._error: SessiondError | None = None
        self._heartbeat = 0.0
        self._last_message = asyncio.get_running_loop().time()
        self._changed = Signal()
        self._readers: set[MirrorChanges] = set()
        self._task = asyncio.create_task(self._follow(), name="sessiond mirror")
        self._owner_task: asyncio.Task[None] | None = None

    def has(self, session: SessionKey) -> bool:
        """Returns whether the session exists."""
        # Written out, and not with `_pack`: a call would take as long as all the rest.
        auth_key_id, session_id = session[0], session[1]
        return ((auth_key_id << 64) + session_id if auth_key_id else session_id) in self._sessions

    def holder_of(self, session: SessionKey) -> MirrorHolder | None:
        """Returns the lease and the owner that hold the session. None if there is no session or it has no lease."""
        lease = self._sessions.get(_pack(*session))
        return None if lease is None else lease.holder

    def __contains__(self, session: SessionKey) -> bool:
        return self.has(session)

    def __bool__(self) -> bool:
        """Always True, so that `if mirror` does not take an empty mirror for none."""
        return True

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[SessionKey]:
        """Iterates over the sessions. Fails with `RuntimeError` if the mirror changes meanwhile: do not await."""
        return map(_unpack, self._sessions)

    @property
    def staleness(self) -> float:
        """How many seconds the mirror may be behind: 0 while its stream is live.

        Otherwise the time since the last message of a live stream.
        """
        age = asyncio.get_running_loop().time() - self._last_message
        return 0.0 if self._is_live and age <= self._heartbeat + _SLACK else age

    @property
    def is_synced(self) -> bool:
        """Whether the mirror has been complete once. Until then it is empty."""
        return self._is_synced

    async def synced(self) -> None:
        """Waits until the mirror is complete for the first time.

        Raises `SessiondError` if the registry refuses the stream.
        """
        while not self._is_synced:
            self._check()
            await self._changed.wait()

    async def wait_until(self, places: Place | Iterable[Place]) -> None:
        """Waits until the mirror has applied the change at this place, or at all these places.

        Calls with `with_place` return the place of their change. Raises `SessiondError` with DEADLINE_EXCEEDED if this
        takes longer than the client's timeout, and with the reason `REGISTRY_LOST` if the registry is replaced or loses
        changes meanwhile, so that the place means nothing.
        """
        wanted = [places] if isinstance(places, Place) else list(places)
        timeout = self._client._target.timeout
        try:
            await asyncio.wait_for(self._reach(wanted, self._epoch), timeout)
        except asyncio.TimeoutError:
            raise SessiondError(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"the mirror did not reach the place within {timeout} s"
            ) from None

    async def _reach(self, wanted: list[Place], epoch: int) -> None:
        while not all(self._places.get(place.partition, -1) >= place.position for place in wanted):
            self._check()
            await self._changed.wait()
            if self._epoch != epoch:
                raise registry_lost()

    def changes(self) -> MirrorChanges:
        """Returns an iterator of the changes that the mirror applies from now on.

        When a new snapshot replaces the contents, the differences are reported as changes. The first snapshot is
        reported in the same way, as changes of an empty mirror. At most 65,536 changes wait for the reader; a slower
        one gets `Resync`.
        """
        changes = MirrorChanges(self)
        self._readers.add(changes)
        return changes

    async def close(self) -> None:
        """Stops the mirror. Its contents stay as they are."""
        self._is_closed = True
        self._is_live = False
        tasks = [task for task in (self._task, self._owner_task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._watch.close()
        self._changed.notify()

    async def __aenter__(self) -> Mirror:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _check(self) -> None:
        if self._is_closed:
            raise closed_error("mirror")
        if self._error is not None:
            raise self._error

    async def _follow(self) -> None:
        while True:
            try:
                update = await anext(self._watch)
            except SessiondError as error:
                _logger.error("mirror cannot watch the registry, retrying: %s", error)
                self._error, self._is_live = error, False
            else:
                await self._apply(update)
            self._changed.notify()

    async def _apply(self, update: WatchUpdate) -> None:
        now = asyncio.get_running_loop().time()
        match update:
            case Events():
                await self._apply_events(update.message)
                self._note_places()
            case Heartbeat():
                self._note_places()
                self._is_live = self._next is None
                self._drop_empty()
            case Snapshot():
                await self._fill(update.message)
            case Synced():
                self._replace()
                self._note_places()
            case Reset():
                self._next, self._is_live = _Copy(), False
                # A registry that was rolled back may keep its id and use the same positions again.
                is_lost = update.reason in (ResetReason.CURSOR_FOREIGN, ResetReason.STORAGE_RESTARTED)
                if is_lost and not self._is_other_registry:
                    self._lose_places()
            case Subscribed():
                self._error = None
                self._heartbeat = update.heartbeat
                self._is_other_registry = self._registry_id not in (None, update.registry_id)
                if self._is_other_registry:
                    self._lose_places()
                self._registry_id = update.registry_id
                return
            case Disconnected():
                self._is_live = False
                return
        # A stream that has resumed sends a heartbeat once it has caught up.
        if self._is_live:
            self._last_message = now

    def _lose_places(self) -> None:
        self._places = {}
        self._epoch += 1

    def _note_places(self) -> None:
        if self._next is None:
            for partition, position in self._watch.places:
                if self._places.get(partition, -1) < position:
                    self._places[partition] = position

    async def _fill(self, message: pb.Snapshot) -> None:
        copy = self._next
        if copy is None:
            return
        await self._add_leases(copy, {session.lease_id for session in message.sessions})
        sessions, leases = copy.sessions, copy.leases
        for session in message.sessions:
            lease = leases[session.lease_id]
            sessions[_pack(session.auth_key_id, session.session_id)] = lease
            lease.sessions += 1

    async def _apply_events(self, message: pb.SessionEvents) -> None:
        copy, only, destroyed = self._next or self._copy, self._lease_ids, pb.SESSION_EVENT_TYPE_DESTROYED
        lease_ids = {event.lease_id for event in message.events if event.type != destroyed}
        await self._add_leases(copy, lease_ids & only if only else lease_ids)
        sessions, leases = copy.sessions, copy.leases
        for event in message.events:
            key = _pack(event.auth_key_id, event.session_id)
            old = sessions.pop(key, None)
            if old is not None:
                old.sessions -= 1
            if event.type == destroyed or (only and event.lease_id not in only):
                continue
            lease = sessions[key] = leases[event.lease_id]
            lease.sessions += 1
        if self._readers and self._next is None:
            self._tell([self._change(event) for event in message.events])
        if len(leases) > _MAX_EMPTY:
            self._drop_empty()

    def _change(self, event: pb.SessionEvent) -> MirrorChange:
        kind, reason = EventType(event.type), DestroyReason(event.reason)
        lease_id, previous = event.lease_id, event.previous_lease_id
        if kind is EventType.MOVED and self._lease_ids:
            # A session that moves in or out is created or destroyed here.
            if previous not in self._lease_ids:
                kind = EventType.CREATED
            elif lease_id not in self._lease_ids:
                kind, lease_id, previous = EventType.DESTROYED, previous, 0
        return MirrorChange(kind, key_of(event.auth_key_id, event.session_id), lease_id, previous, reason)

    def _replace(self) -> None:
        """Puts the complete new contents in place of the old ones."""
        if self._next is None:
            return
        old, self._copy, self._next = self._copy, self._next, None
        self._sessions = self._copy.sessions
        if self._readers:
            # One more than can wait for a reader tells it to read the mirror.
            self._tell(list(islice(_differences(old, self._copy), _MAX_CHANGES + 1)))
        self._is_synced = self._is_live = True

    def _tell(self, changes: list[MirrorChange]) -> None:
        for reader in self._readers:
            reader._push(changes)

    # The owners of leases.

    async def _add_leases(self, copy: _Copy, lease_ids: set[int]) -> None:
        new = lease_ids - copy.leases.keys()
        if not new:
            return
        owners: dict[int, str | None] = {}
        for lease_id in new:
            known = self._copy.leases.get(lease_id)
            if known is not None and known.holder is not None and known.holder.owner is not None:
                owners[lease_id] = known.holder.owner
        if unknown := new - owners.keys():
            owners.update(await self._owners(unknown))
        for lease_id in new:
            copy.leases[lease_id] = _Lease(lease_id, owners.get(lease_id))
        if new - owners.keys() and (self._owner_task is None or self._owner_task.done()):
            self._owner_task = asyncio.create_task(self._retry_owners(), name="sessiond mirror owners")

    async def _owners(self, lease_ids: set[int]) -> dict[int, str]:
        """Returns the owners that the registry tells in time."""
        owners: dict[int, str] = {}

        async def ask() -> None:
            async for status in self._client.list_leases(lease_ids=lease_ids):
                owners[status.lease_id] = status.owner

        try:
            await asyncio.wait_for(ask(), _OWNER_TIMEOUT)
        except (SessiondError, asyncio.TimeoutError) as error:
            _logger.debug("cannot look up the owners of %d leases, retrying: %s", len(lease_ids), error)
        return owners

    async def _retry_owners(self) -> None:
        """Asks for the owners that are unknown until all are known. A lease that has ended has none."""
        while True:
            await asyncio.sleep(_OWNER_RETRY)
            copies = [self._copy, *([self._next] if self._next else [])]
            unknown = {
                lease.id
                for copy in copies
                for lease in copy.leases.values()
                if lease.sessions and lease.holder and lease.holder.owner is None
            }
            if not unknown:
                return
            for lease_id, owner in (await self._owners(unknown)).items():
                for copy in copies:
                    if lease := copy.leases.get(lease_id):
                        lease.holder = MirrorHolder(lease_id, owner)

    def _drop_empty(self) -> None:
        leases = self._copy.leases
        for lease_id in [lease.id for lease in leases.values() if lease.id and not lease.sessions]:
            del leases[lease_id]


def _differences(old: _Copy, new: _Copy) -> Iterator[MirrorChange]:
    unspecified = DestroyReason.UNSPECIFIED
    for key, lease in old.sessions.items():
        if key not in new.sessions:
            yield MirrorChange(EventType.DESTROYED, _unpack(key), lease.id, 0, unspecified)
    for key, lease in new.sessions.items():
        before = old.sessions.get(key)
        if before is None:
            yield MirrorChange(EventType.CREATED, _unpack(key), lease.id, 0, unspecified)
        elif before.id != lease.id:
            yield MirrorChange(EventType.MOVED, _unpack(key), lease.id, before.id, unspecified)


def _pack(auth_key_id: int, session_id: int) -> int:
    """Packs a key into one number. Both ids are signed 64-bit numbers, so no two keys share one."""
    return (auth_key_id << 64) + session_id


def _unpack(key: int) -> SessionKey:
    auth_key_id = (key + _HALF) >> 64
    return key_of(auth_key_id, key - (auth_key_id << 64))
