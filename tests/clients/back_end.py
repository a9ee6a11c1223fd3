"""A back end next to the servers, which no fault of the network reaches: it changes sessions, and reads the truth."""

import asyncio
import contextlib
import itertools

import grpc
import grpc.aio

from stubs import lease_grpc, lease_pb, pb, pb_grpc

DEADLINE = 60  # seconds, in which the registry answers: a history may stop it several times in a row
OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
]
RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL,
           grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAUTHENTICATED)


async def repeat(attempt, deadline=DEADLINE):
    """Awaits what `attempt` returns, and repeats that while the registry is away."""
    end = asyncio.get_running_loop().time() + deadline
    while True:
        try:
            return await attempt()
        except grpc.aio.AioRpcError as error:
            if error.code() not in RETRIED or asyncio.get_running_loop().time() > end:
                raise
            await asyncio.sleep(0.1)


class BackEnd:
    """Calls any server that answers. `credentials` returns the metadata of a call."""

    def __init__(self, addresses, credentials=tuple):
        self.credentials = credentials
        self.channels = [grpc.aio.insecure_channel(f"{host}:{port}", OPTIONS) for host, port in addresses]

    async def call(self, service, method, request, deadline=DEADLINE):
        """Makes a call to one server after the other, and repeats it while the registry is away."""
        channels = itertools.cycle(self.channels)

        def attempt():
            return getattr(service(next(channels)), method)(request, timeout=2, metadata=self.credentials())

        return await repeat(attempt, deadline)

    async def create(self, *sessions, lease=0, **fields):
        keys, ids = zip(*sessions)
        request = pb.BatchCreateSessionsRequest(session_ids=ids, auth_key_ids=keys, lease_id=lease, **fields)
        return await self.call(pb_grpc.SessionServiceStub, "BatchCreateSessions", request)

    async def destroy(self, *sessions, lease=0, **fields):
        keys, ids = zip(*sessions)
        request = pb.BatchDestroySessionsRequest(session_ids=ids, auth_key_ids=keys, lease_id=lease, **fields)
        return await self.call(pb_grpc.SessionServiceStub, "BatchDestroySessions", request)

    async def lookup(self, *sessions):
        """Returns the lease of each session: 0 for none, None if the session does not exist."""
        keys, ids = zip(*sessions)
        request = pb.BatchLookupSessionsRequest(session_ids=ids, auth_key_ids=keys)
        answer = await self.call(pb_grpc.SessionServiceStub, "BatchLookupSessions", request)
        return [lease if exists else None for exists, lease in zip(answer.exists, answer.lease_ids)]

    async def owners(self):
        """Returns the owner of each lease."""
        owners, token = {}, ""
        while True:
            request = lease_pb.ListLeasesRequest(page_token=token)
            page = await self.call(lease_grpc.LeaseServiceStub, "ListLeases", request)
            owners |= {status.lease.lease_id: status.lease.owner for status in page.leases}
            token = page.next_page_token
            if not token:
                return owners

    async def revoke(self, lease, linger=0):
        request = lease_pb.RevokeLeaseRequest(lease_id=lease)
        request.linger.seconds = linger
        return await self.call(lease_grpc.LeaseServiceStub, "RevokeLease", request)

    async def snapshot(self, server=0):
        """Returns the lease of each session of the registry, as this server sees it."""
        return await repeat(lambda: self._snapshot(server))

    async def _snapshot(self, server):
        held = {}
        stub = pb_grpc.SessionServiceStub(self.channels[server])
        call = stub.Subscribe(pb.SubscribeRequest(snapshot=True, placements=True), metadata=self.credentials(), timeout=DEADLINE)
        async for message in call:
            for session in message.snapshot.sessions:
                held[session.auth_key_id, session.session_id] = session.lease_id
            if message.HasField("synced"):
                call.cancel()
                return held
        raise AssertionError("the stream ended within the snapshot")

    async def registry_id(self):
        stub = pb_grpc.SessionServiceStub(self.channels[0])
        call = stub.Subscribe(pb.SubscribeRequest(), metadata=self.credentials(), timeout=DEADLINE)
        async for message in call:
            call.cancel()
            return message.subscribed.registry_id

    async def close(self):
        for channel in self.channels:
            with contextlib.suppress(Exception):
                await channel.close()
