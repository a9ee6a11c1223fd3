"""An observer of the registry that reconnects and resumes by itself."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias

import grpc
import grpc.aio

from ._backoff import Backoff
from ._channel import Target, metadata
from ._proto import session_service_pb2 as pb
from .client import duration, seconds
from .errors import SessiondError, protocol_error
from .session import DestroyReason, EventType, Place, SessionKey, key_of

_DEFAULT_HEARTBEAT = 15.0
_MAX_HEARTBEAT = 3600.0
# How many heartbeats may be missed before a stream counts as dead.
_SILENT_HEARTBEATS = 3
# How late any heartbeat may be, however short its interval, because a busy machine is not a dead one.
_SLACK = 1.0
# A timer that fires later than this shows that the process was stopped or busy meanwhile.
_LATE = 0.05

_logger = logging.getLogger("sessiond")


class ResetReason(enum.IntEnum):
    """Why a watch lost its place."""

    UNKNOWN = 0
    """A reason that only a newer server knows."""
    CURSOR_EXPIRED = 1
    """The cursor is older than the retained changes."""
    CURSOR_FOREIGN = 2
    """The cursor belongs to another registry."""
    LAGGED = 3
    """The watch fell behind the retained changes."""
    STORAGE_RESTARTED = 4
    """The storage lost changes or started again empty."""
    SNAPSHOT_INTERRUPTED = 100
    """The stream broke within a snapshot."""

    @classmethod
    def _missing_(cls, value: object) -> ResetReason:
        return cls.UNKNOWN


class SnapshotSession(NamedTuple):
    """A session in a snapshot. `lease_id` is 0 if it is under no lease or the watch has no placements."""

    session: SessionKey
    lease_id: int


class SessionEvent(NamedTuple):
    """A change of a session.

    `reason` is set if the session was destroyed. In watches with placements, `lease_id` is the lease that the session
    is under after the change or, if it was destroyed, was under before; `previous_lease_id` is the lease that it moved
    from.
    """

    type: EventType
    session: SessionKey
    reason: DestroyReason
    lease_id: int
    previous_lease_id: int


_EVENT_TYPES: dict[int, EventType] = {int(kind): kind for kind in EventType}
_DESTROY_REASONS: dict[int, DestroyReason] = {int(reason): reason for reason in DestroyReason}


@dataclass(frozen=True)
class Subscribed:
    """A stream is open. This is the first update, and comes again after each reconnect."""

    registry_id: str
    heartbeat: float
    cursor: str


class Snapshot:
    """Some of the existing sessions that match the filters. Iterate over it."""

    __slots__ = ("message",)

    def __init__(self, message: pb.Snapshot) -> None:
        self.message = message

    def __len__(self) -> int:
        return len(self.message.sessions)

    def __iter__(self) -> Iterator[SnapshotSession]:
        for session in self.message.sessions:
            yield SnapshotSession(key_of(session.auth_key_id, session.session_id), session.lease_id)

    def __repr__(self) -> str:
        return f"Snapshot({len(self)} sessions)"


@dataclass(frozen=True)
class Synced:
    """The snapshot is complete, and live events follow."""

    session_count: int


class Events:
    """Changes, in commit order. Iterate over it."""

    __slots__ = ("message",)

    def __init__(self, message: pb.SessionEvents) -> None:
        self.message = message

    def __len__(self) -> int:
        return len(self.message.events)

    def __iter__(self) -> Iterator[SessionEvent]:
        # Calling an enum or the constructor of a named tuple would take longer than all of this.
        new, types, reasons = tuple.__new__, _EVENT_TYPES, _DESTROY_REASONS
        for event in self.message.events:
            yield new(
                SessionEvent,
                (
                    types[event.type],
                    new(SessionKey, (event.auth_key_id, event.session_id)),
                    reasons.get(event.reason, DestroyReason.REQUESTED),
                    event.lease_id,
                    event.previous_lease_id,
                ),
            )

    def __repr__(self) -> str:
        return f"Events({list(self)})"


@dataclass(frozen=True)
class Heartbeat:
    """Nothing else was sent for one heartbeat interval."""


@dataclass(frozen=True)
class Reset:
    """The watch has lost its place. Discard everything; a full snapshot follows, up to `Synced`."""

    reason: ResetReason


@dataclass(frozen=True)
class Disconnected:
    """The connection is lost. The watch reconnects after `retry_in` seconds, and resumes where it stopped."""

    error: SessiondError
    retry_in: float


WatchUpdate: TypeAlias = Subscribed | Snapshot | Synced | Events | Heartbeat | Reset | Disconnected


def subscribe_request(
    session_ids: Iterable[int],
    auth_key_ids: Iterable[int],
    lease_ids: Iterable[int],
    types: Iterable[EventType],
    placements: bool,
    heartbeat: float | None,
) -> pb.SubscribeRequest:
    """Returns the request of a watch, without its start."""
    return pb.SubscribeRequest(
        session_ids=[SessionKey(0, session_id).session_id for session_id in session_ids],
        auth_key_ids=[SessionKey(auth_key_id, 0).auth_key_id for auth_key_id in auth_key_ids],
        lease_ids=lease_ids,
        types=[pb.SessionEventType.Name(kind) for kind in types],
        placements=placements,
        heartbeat=None if heartbeat is None else duration(heartbeat),
    )


class _Stream:
    """An open stream on a connection of its own, because an old one may be dead without either end noticing."""

    def __init__(self, target: Target, request: pb.SubscribeRequest) -> None:
        self._target = target
        self._sent = target.current_token()
        self._channel = target.connect()
        self._call = self._channel.unary_stream(
            "/sessiond.v1.SessionService/Subscribe",
            request_serializer=pb.SubscribeRequest.SerializeToString,
            response_deserializer=pb.SubscribeResponse.FromString,
        )(request, metadata=metadata(self._sent))
        # Unlike `read`, the iterator returns the messages that arrived before the stream ended.
        self._messages: AsyncIterator[pb.SubscribeResponse] = aiter(self._call)
        self._reading: asyncio.Task[pb.SubscribeResponse] | None = None
        self.subscribed = False
        self.is_extended = False
        self.limit = target.timeout
        self.deadline = asyncio.get_running_loop().time() + target.timeout

    async def next(self) -> pb.SubscribeResponse:
        """Waits for the next message. If this is cancelled, no message is lost."""
        loop = asyncio.get_running_loop()
        if not self.is_extended and self.deadline <= loop.time():
            # The caller was busy, perhaps in the event loop, so that no message could arrive. This happens only once
            # between messages: frequent calls must not keep a dead stream alive.
            self.is_extended = True
            self.deadline = loop.time() + _SLACK
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read())
        while not self._reading.done():
            await asyncio.wait({self._reading}, timeout=max(0.0, self.deadline - loop.time()))
            if self._reading.done():
                break
            late = loop.time() - self.deadline
            if late > _LATE and not self.is_extended:
                # The process was stopped. What the server sent meanwhile is still on its way to this task.
                self.is_extended = True
                self.deadline = loop.time() + _SLACK
            elif late >= 0:
                raise self._silent()
        reading, self._reading = self._reading, None
        self.is_extended = False
        if reading.cancelled():
            # Not the caller of this: gRPC cancels its calls when their channel is closed.
            raise SessiondError(grpc.StatusCode.CANCELLED, "the stream was cancelled")
        return reading.result()

    async def _read(self) -> pb.SubscribeResponse:
        try:
            return await anext(self._messages)
        except StopAsyncIteration:
            raise SessiondError(grpc.StatusCode.UNAVAILABLE, "the stream ended without a status") from None
        except grpc.aio.AioRpcError as error:
            raise self._target.error(error, self._sent) from None

    def _silent(self) -> SessiondError:
        if self.subscribed:
            code = grpc.StatusCode.UNAVAILABLE
            message = f"the stream received nothing for {self.limit:.1f} s, not even a heartbeat"
        else:
            code = grpc.StatusCode.DEADLINE_EXCEEDED
            message = f"the server did not answer within {self.limit:.1f} s"
        return SessiondError(code, message)

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if isinstance(self._messages, AsyncGenerator):
            # Ends what an interceptor does for the stream, such as a span, before the garbage collector does.
            await self._messages.aclose()
        self._call.cancel()
        await self._channel.close()


class Watch:
    """An observer of the registry, returned by `Client.watch`: an async iterator of updates that never ends.

    To mirror the registry exactly, start with a snapshot, set no filter by type, and apply the updates in order:

    - `Snapshot`: insert its sessions.
    - `Events`: insert sessions that were created, and remove those that were destroyed.
    - `Reset`: discard everything.

    From `Synced` on, the mirror equals the registry. You may ignore the other updates.

    If the connection breaks, the watch returns `Disconnected`, reconnects, and resumes after the last update that it
    returned. No event is lost or repeated. It raises only errors that are not retryable, such as a missing permission.
    After an error, iterating again waits, reconnects and resumes.

    The watch reads only while you iterate, so a slow reader does not fill the memory. If it is so slow that the server
    no longer retains the next event, the watch returns `Reset`.
    """

    def __init__(self, target: Target, request: pb.SubscribeRequest, *, snapshot: bool, after: str | None) -> None:
        if snapshot and after is not None:
            raise ValueError("a watch starts with a snapshot or after a cursor, not both")
        self._target = target
        self._request = request
        self._snapshot = snapshot
        self._cursor = after
        self._places: tuple[Place, ...] = ()
        # Whether the open stream has returned a part of a snapshot that is not complete yet.
        self._in_snapshot = False
        # Whether the caller holds part of a snapshot from a broken stream and must still be given a reset.
        self._owes_reset = False
        self._backoff = Backoff()
        self._stream: _Stream | None = None
        self._retry_at = 0.0
        self._closed = False

    @property
    def cursor(self) -> str | None:
        """The cursor after the last update. `Client.watch(after=…)` resumes exactly there.

        None before the first update, and from the start of a snapshot until `Synced`: a stream cannot be resumed
        within a snapshot.
        """
        return None if self._owes_reset else self._cursor

    @property
    def places(self) -> tuple[Place, ...]:
        """The places in the change log that came with the last update, if the watch has placements.

        `Subscribed`, `Synced` and `Heartbeat` have one for each partition, `Events` the place of its last event.
        """
        return self._places

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> WatchUpdate:
        """Waits for the next update. If this is cancelled, no update is lost."""
        while not self._closed:
            try:
                update = await self._step()
            except SessiondError as error:
                if self._closed:
                    break
                return await self._disconnect(error)
            if update is not None:
                return update
        raise StopAsyncIteration

    async def close(self) -> None:
        """Ends the watch, and so the iteration over it."""
        self._closed = True
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    async def __aenter__(self) -> Watch:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _step(self) -> WatchUpdate | None:
        stream = self._stream
        if stream is None:
            delay = self._retry_at - asyncio.get_running_loop().time()
            if delay > 0:
                await asyncio.sleep(delay)
                if self._closed:
                    return None
            stream = self._stream = self._open()
        if stream.subscribed and self._owes_reset:
            self._owes_reset = False
            self._places = ()
            return Reset(ResetReason.SNAPSHOT_INTERRUPTED)
        return self._advance(stream, await stream.next())

    def _open(self) -> _Stream:
        request = pb.SubscribeRequest()
        request.CopyFrom(self._request)
        if self._cursor is not None:
            request.cursor = self._cursor
        elif self._snapshot:
            request.snapshot = True
        return _Stream(self._target, request)

    def _advance(self, stream: _Stream, message: pb.SubscribeResponse) -> WatchUpdate | None:
        """Advances to the place after the message. Returns None for a kind that only newer servers know."""
        body = message.WhichOneof("body")
        if not stream.subscribed and body != "subscribed":
            raise protocol_error("the stream did not start with `subscribed`")
        update: WatchUpdate | None = None
        places: Iterable[Any] = ()
        if body == "events":
            if not {event.type for event in message.events.events} <= _EVENT_TYPES.keys():
                # Skipping the event could leave the observer with a session that does not exist.
                raise protocol_error("an event of an unknown type")
            update = Events(message.events)
            places = (message.events.place,) if message.events.HasField("place") else ()
        elif body == "heartbeat":
            update, places = Heartbeat(), message.heartbeat.places
        elif body == "snapshot":
            update = Snapshot(message.snapshot)
        elif body == "synced":
            update, places = Synced(message.synced.session_count), message.synced.places
        elif body == "reset":
            update = Reset(ResetReason(message.reset.reason))
        elif body == "subscribed":
            subscribed = message.subscribed
            heartbeat = seconds(subscribed.heartbeat) if subscribed.HasField("heartbeat") else _DEFAULT_HEARTBEAT
            heartbeat = min(max(heartbeat, 0.0), _MAX_HEARTBEAT)
            stream.subscribed = True
            stream.limit = max(heartbeat * _SILENT_HEARTBEATS, heartbeat + _SLACK)
            update, places = Subscribed(subscribed.registry_id, heartbeat, message.cursor), subscribed.places
        stream.deadline = asyncio.get_running_loop().time() + stream.limit
        self._places = tuple(Place(place.partition, place.position) for place in places)
        if not message.cursor:
            self._cursor, self._snapshot, self._in_snapshot = None, True, True
        else:
            self._cursor, self._in_snapshot = message.cursor, False
            # `subscribed` alone is not progress: do not hammer a server that always fails after it.
            if body != "subscribed":
                self._backoff.reset()
        return update

    async def _disconnect(self, error: SessiondError) -> Disconnected:
        """Drops the stream and schedules the next one."""
        self._owes_reset |= self._in_snapshot
        self._in_snapshot = False
        self._places = ()
        retry_in = 0.0 if error.has_new_token else self._backoff.after_failure(error.retry_after)
        self._retry_at = asyncio.get_running_loop().time() + retry_in
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()
        if not error.is_retryable:
            raise error
        _logger.info("watch disconnected, retrying in %.2f s: %s", retry_in, error)
        return Disconnected(error, retry_in)
