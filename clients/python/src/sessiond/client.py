"""A client of one server, or of the replicas behind one name."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Sequence, Sized
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from ._channel import Target, TokenFile, call
from ._proto import lease_service_pb2 as leases
from ._proto import session_service_pb2 as pb
from .errors import closed_error, protocol_error
from .session import EventType, Place, SessionKey

if TYPE_CHECKING:
    from .gateway import Gateway
    from .lease import Lease
    from .mirror import Mirror
    from .watch import Watch

MAX_BATCH = 65_536
"""The largest batch that the server accepts. The client splits larger ones."""

_Response = TypeVar("_Response", bound=Message)


class LeaseHolder(NamedTuple):
    """A lease and its owner, by convention the address of a gateway."""

    lease_id: int
    owner: str


class Located(NamedTuple):
    """Whether a session exists, and the lease that it is under."""

    exists: bool
    lease: LeaseHolder | None


class CreateResult(NamedTuple):
    """The answer of `Client.create`.

    It is true if the call created the session. `held_by` is the lease that the session is under if that is not the
    lease of the call. `place` is set if the call asked for it.
    """

    created: bool
    held_by: LeaseHolder | None
    place: Place | None

    def __bool__(self) -> bool:
        return self.created


class DestroyResult(NamedTuple):
    """The answer of `Client.destroy`. It is true if the call destroyed the session."""

    destroyed: bool
    place: Place | None

    def __bool__(self) -> bool:
        return self.destroyed


class BatchCreateResult(NamedTuple):
    """The answer of `Client.batch_create` and `Client.batch_take`, in the order of the sessions.

    `lease_ids` are the leases that the sessions are under after the call; empty unless `only_from` was set. `places`
    are set if the call asked for them: the last place in each partition that has sessions of the batch.
    """

    created: list[bool]
    lease_ids: list[int]
    places: list[Place]


class BatchDestroyResult(NamedTuple):
    """The answer of `Client.batch_destroy`, in the order of the sessions."""

    destroyed: list[bool]
    places: list[Place]


class LeaseGrant(NamedTuple):
    """A lease that was granted, and its ttl in seconds."""

    lease_id: int
    ttl: float


class LeaseStatus(NamedTuple):
    """A lease that has not ended. Times are in seconds."""

    lease_id: int
    owner: str
    ttl: float
    expires_in: float
    session_count: int
    lingers: bool


class Client:
    """A client of the server at `address`: `http://HOST:PORT`, `https://HOST:PORT` for TLS, or `unix:PATH`.

    It connects when the first call is made, and may be created outside the event loop. All its calls must be made in
    one event loop. Calls that the server refuses for a moment are tried up to five times. Every call raises
    `SessiondError` if it fails.

    Args:
        address: the address of the server. A name that resolves to several replicas is balanced between them.
        tls_ca: the roots that the server's certificate must come from, in PEM. By default those of gRPC.
        tls_identity: the client's certificate and its private key, in PEM.
        token: a token, as `sessiond token new` printed it.
        token_file: a file with the token. It is read again when it changes. A call or a watch whose token was replaced
            meanwhile is retried with the new one.
        timeout: how many seconds a call may take, including connecting and retries.
        connect_timeout: how many seconds connecting may take, including the TLS handshake.
        interceptors: interceptors for each connection, as for `grpc.aio.insecure_channel`.
    """

    def __init__(
        self,
        address: str,
        *,
        tls_ca: bytes | None = None,
        tls_identity: tuple[bytes, bytes] | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        timeout: float = 10.0,
        connect_timeout: float = 5.0,
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    ) -> None:
        self._target = Target(
            address=address,
            tls_ca=tls_ca,
            tls_identity=tls_identity,
            token=token,
            token_file=None if token_file is None else TokenFile(token_file),
            interceptors=tuple(interceptors),
            timeout=timeout,
            connect_timeout=connect_timeout,
        )
        self._channel: grpc.aio.Channel | None = None
        self._is_closed = False

    async def close(self) -> None:
        """Closes the connection of the calls. Those in flight and later ones fail with CANCELLED and `CLOSED`.

        End watches, leases, gateways and mirrors first.
        """
        self._is_closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def channel(self) -> grpc.aio.Channel:
        """The connection of the calls, for other services of the same server such as `grpc.health.v1`.

        Calls that you make over it do not carry the client's token.
        """
        if self._is_closed:
            raise closed_error("client")
        if self._channel is None:
            self._channel = self._target.connect(retries=True)
        return self._channel

    async def _call(self, method: str, request: Message, response: type[_Response]) -> _Response:
        return await call(self._target, self.channel, method, request, response)

    async def create(
        self, session: SessionKey, *, lease: int = 0, only_from: int | None = None, with_place: bool = False
    ) -> CreateResult:
        """Creates a session, or moves an existing session to `lease`.

        With `only_from`, an existing session moves only if it is under that lease (0: under no lease) or under a lease
        that has ended. Otherwise it stays, and `held_by` says where.
        """
        request = pb.CreateSessionRequest(
            session_id=session.session_id,
            auth_key_id=session.auth_key_id,
            lease_id=lease,
            only_from_lease_id=only_from,
            with_place=with_place,
        )
        answer = await self._call("SessionService/CreateSession", request, pb.CreateSessionResponse)
        return CreateResult(
            answer.created,
            _holder(answer.lease) if answer.HasField("lease") else None,
            _place(answer.place) if answer.HasField("place") else None,
        )

    async def take(
        self, session: SessionKey, lease: int, *, only_from: int = 0, with_place: bool = False
    ) -> CreateResult:
        """Creates a session under `lease`, or moves it there if it is under `only_from` (0: under no lease).

        Otherwise it stays, and `held_by` says where. A lease that has ended or lingers protects nothing.
        """
        return await self.create(session, lease=lease, only_from=only_from, with_place=with_place)

    async def has(self, session: SessionKey) -> bool:
        """Returns whether a session exists."""
        request = pb.HasSessionRequest(session_id=session.session_id, auth_key_id=session.auth_key_id)
        return (await self._call("SessionService/HasSession", request, pb.HasSessionResponse)).exists

    async def lookup(self, session: SessionKey) -> Located:
        """Returns whether a session exists, and the lease that it is under."""
        request = pb.LookupSessionRequest(session_id=session.session_id, auth_key_id=session.auth_key_id)
        answer = await self._call("SessionService/LookupSession", request, pb.LookupSessionResponse)
        return Located(answer.exists, _holder(answer.lease) if answer.HasField("lease") else None)

    async def destroy(self, session: SessionKey, *, lease: int = 0, with_place: bool = False) -> DestroyResult:
        """Destroys a session. With `lease`, only if it is under that lease."""
        request = pb.DestroySessionRequest(
            session_id=session.session_id, auth_key_id=session.auth_key_id, lease_id=lease, with_place=with_place
        )
        answer = await self._call("SessionService/DestroySession", request, pb.DestroySessionResponse)
        return DestroyResult(answer.destroyed, _place(answer.place) if answer.HasField("place") else None)

    async def batch_create(
        self,
        sessions: Iterable[SessionKey],
        *,
        lease: int = 0,
        only_from: int | None = None,
        with_place: bool = False,
    ) -> BatchCreateResult:
        """Is `create` for any number of sessions. Each session is changed atomically, the batch is not."""
        result = BatchCreateResult([], [], [])
        places: dict[int, int] = {}
        for session_ids, auth_key_ids in _split(sessions):
            request = pb.BatchCreateSessionsRequest(
                session_ids=session_ids,
                auth_key_ids=auth_key_ids,
                lease_id=lease,
                only_from_lease_id=only_from,
                with_place=with_place,
            )
            answer = await self._call("SessionService/BatchCreateSessions", request, pb.BatchCreateSessionsResponse)
            _check_answers(session_ids, answer.created, *(() if only_from is None else (answer.lease_ids,)))
            result.created.extend(answer.created)
            result.lease_ids.extend(answer.lease_ids)
            places.update((place.partition, place.position) for place in answer.places)
        result.places.extend(Place(*place) for place in places.items())
        return result

    async def batch_take(
        self, sessions: Iterable[SessionKey], lease: int, *, only_from: int = 0, with_place: bool = False
    ) -> BatchCreateResult:
        """Is `take` for any number of sessions.

        `lease_ids` of the answer are the leases that the sessions are under afterwards. A gateway that has lost its
        lease registers its sessions again with this and `only_from=0`, which takes nothing from a live lease.
        """
        return await self.batch_create(sessions, lease=lease, only_from=only_from, with_place=with_place)

    async def batch_has(self, sessions: Iterable[SessionKey]) -> list[bool]:
        """Returns whether each session exists, in the order of the sessions."""
        exists: list[bool] = []
        for session_ids, auth_key_ids in _split(sessions):
            request = pb.BatchHasSessionsRequest(session_ids=session_ids, auth_key_ids=auth_key_ids)
            answer = await self._call("SessionService/BatchHasSessions", request, pb.BatchHasSessionsResponse)
            _check_answers(session_ids, answer.exists)
            exists.extend(answer.exists)
        return exists

    async def batch_lookup(self, sessions: Iterable[SessionKey]) -> list[int | None]:
        """Returns the lease of each session, in the order of the sessions: 0 for none, None if there is no session.

        The owner of a lease never changes: look it up once with `list_leases`.
        """
        found: list[int | None] = []
        for session_ids, auth_key_ids in _split(sessions):
            request = pb.BatchLookupSessionsRequest(session_ids=session_ids, auth_key_ids=auth_key_ids)
            answer = await self._call("SessionService/BatchLookupSessions", request, pb.BatchLookupSessionsResponse)
            _check_answers(session_ids, answer.exists, answer.lease_ids)
            pairs = zip(answer.exists, answer.lease_ids, strict=True)
            found.extend(lease_id if exists else None for exists, lease_id in pairs)
        return found

    async def batch_destroy(
        self, sessions: Iterable[SessionKey], *, lease: int = 0, with_place: bool = False
    ) -> BatchDestroyResult:
        """Is `destroy` for any number of sessions. Each session is changed atomically, the batch is not."""
        result = BatchDestroyResult([], [])
        places: dict[int, int] = {}
        for session_ids, auth_key_ids in _split(sessions):
            request = pb.BatchDestroySessionsRequest(
                session_ids=session_ids, auth_key_ids=auth_key_ids, lease_id=lease, with_place=with_place
            )
            answer = await self._call("SessionService/BatchDestroySessions", request, pb.BatchDestroySessionsResponse)
            _check_answers(session_ids, answer.destroyed)
            result.destroyed.extend(answer.destroyed)
            places.update((place.partition, place.position) for place in answer.places)
        result.places.extend(Place(*place) for place in places.items())
        return result

    async def grant_lease(self, ttl: float, owner: str = "") -> LeaseGrant:
        """Grants a lease of `ttl` seconds that nothing keeps alive. `lease` keeps one alive in the background."""
        request = leases.GrantLeaseRequest(ttl=duration(ttl), owner=owner)
        answer = await self._call("LeaseService/GrantLease", request, leases.GrantLeaseResponse)
        if not answer.lease_id or not answer.HasField("ttl"):
            raise protocol_error("a lease without an id or a ttl")
        return LeaseGrant(answer.lease_id, seconds(answer.ttl))

    async def keep_lease_alive(self, lease: int) -> float:
        """Restarts the ttl of a lease, and returns it in seconds."""
        request = leases.KeepLeaseAliveRequest(lease_id=lease)
        answer = await self._call("LeaseService/KeepLeaseAlive", request, leases.KeepLeaseAliveResponse)
        return seconds(answer.ttl)

    async def revoke_lease(self, lease: int, *, linger: float = 0) -> int:
        """Ends a lease, after `linger` seconds. Returns how many sessions were destroyed with it."""
        request = leases.RevokeLeaseRequest(lease_id=lease, linger=duration(linger))
        answer = await self._call("LeaseService/RevokeLease", request, leases.RevokeLeaseResponse)
        return answer.sessions_destroyed

    async def list_leases(
        self, *, owner: str = "", lease_ids: Iterable[int] = (), page_size: int = 1000
    ) -> AsyncIterator[LeaseStatus]:
        """Lists the leases that have not ended, ordered by id, and asks for one page after the other."""
        ids = sorted(set(lease_ids))
        # Without ids there is one request, which lists all leases.
        for start in range(0, max(len(ids), 1), MAX_BATCH):
            batch = ids[start : start + MAX_BATCH]
            request = leases.ListLeasesRequest(owner=owner, lease_ids=batch, page_size=page_size)
            while True:
                answer = await self._call("LeaseService/ListLeases", request, leases.ListLeasesResponse)
                for status in answer.leases:
                    yield LeaseStatus(
                        status.lease.lease_id,
                        status.lease.owner,
                        seconds(status.ttl),
                        seconds(status.expires_in),
                        status.session_count,
                        status.lingers,
                    )
                request.page_token = answer.next_page_token
                if not request.page_token:
                    break

    def watch(
        self,
        *,
        snapshot: bool = False,
        after: str | None = None,
        session_ids: Iterable[int] = (),
        auth_key_ids: Iterable[int] = (),
        lease_ids: Iterable[int] = (),
        types: Iterable[EventType] = (),
        placements: bool = False,
        heartbeat: float | None = None,
    ) -> Watch:
        """Returns a watch of the registry, an async iterator of updates that reconnects and resumes by itself.

        Args:
            snapshot: starts with the existing sessions. By default the watch starts with the next change.
            after: starts right after the update at which `Watch.cursor` was this.
            session_ids: only these sessions, under any auth key.
            auth_key_ids: only sessions of these auth keys.
            lease_ids: only sessions under these leases. Implies `placements`.
            types: only these kinds of changes. Does not filter snapshots.
            placements: also reports the lease of each session, moves, and places.
            heartbeat: how many seconds the stream may be quiet before the server sends a heartbeat: 0.1 to 3600.
        """
        from .watch import Watch, subscribe_request

        request = subscribe_request(session_ids, auth_key_ids, lease_ids, types, placements, heartbeat)
        return Watch(self._target, request, snapshot=snapshot, after=after)

    async def lease(self, ttl: float, owner: str = "") -> Lease:
        """Grants a lease of `ttl` seconds, and keeps it alive in the background until `Lease.revoke` is called."""
        from .lease import Lease

        return await Lease.granted(self, owner, ttl)

    async def gateway(self, owner: str, *, ttl: float = 30.0, linger: float = 30.0) -> Gateway:
        """Returns a gateway that registers its connections under a lease of its own.

        Args:
            owner: by convention the address at which the gateway can be reached; at most 128 bytes.
            ttl: how many seconds the sessions outlive a gateway that crashed: 1 to 86,400.
            linger: how many seconds the sessions stay after a stop, so that their clients can move: 0 to 3600.
        """
        from .gateway import Gateway

        return await Gateway.started(self, owner, ttl, linger)

    async def mirror(
        self,
        *,
        session_ids: Iterable[int] = (),
        auth_key_ids: Iterable[int] = (),
        lease_ids: Iterable[int] = (),
        heartbeat: float = 5.0,
    ) -> Mirror:
        """Returns a local copy of the registry, or of the sessions that match every filter.

        It fills in the background: `Mirror.synced` waits until it is complete. It reconnects after three missed
        heartbeats, and `Mirror.wait_until` may wait for one: 0.1 to 3600 seconds.
        """
        from .mirror import Mirror

        only_leases = frozenset(lease_ids)
        watch = self.watch(
            snapshot=True,
            session_ids=session_ids,
            auth_key_ids=auth_key_ids,
            lease_ids=only_leases,
            placements=True,
            heartbeat=heartbeat,
        )
        return Mirror(self, watch, only_leases)


def duration(value: float) -> Duration:
    """Converts seconds."""
    nanos = round(value * 1_000_000_000)
    return Duration(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)


def seconds(value: Duration) -> float:
    """Converts to seconds."""
    return value.seconds + value.nanos / 1e9


def _holder(lease: pb.Lease) -> LeaseHolder:
    return LeaseHolder(lease.lease_id, lease.owner)


def _place(place: pb.Place) -> Place:
    return Place(place.partition, place.position)


def _check_answers(asked: Sized, *answers: Sized) -> None:
    if any(len(answer) != len(asked) for answer in answers):
        raise protocol_error("a batch response does not have one value for each session")


def _split(sessions: Iterable[SessionKey]) -> Iterable[tuple[list[int], list[int]]]:
    """Returns the session ids and auth keys of batches that the server accepts."""
    every = list(sessions)
    for start in range(0, len(every), MAX_BATCH):
        batch = every[start : start + MAX_BATCH]
        auth_key_ids = [session[0] for session in batch]
        yield [session[1] for session in batch], auth_key_ids if any(auth_key_ids) else []
