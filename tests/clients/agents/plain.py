"""The simplest gateway, mirror and watch on plain stubs. It is here to test the driver, and is no example."""

import asyncio
import json
import os
import sys

import grpc
import grpc.aio

sys.path.insert(0, os.environ["SESSIOND_STUBS"])
from sessiond.v1 import lease_service_pb2 as lease_pb  # noqa: E402
from sessiond.v1 import lease_service_pb2_grpc as lease_grpc  # noqa: E402
from sessiond.v1 import session_service_pb2 as pb  # noqa: E402
from sessiond.v1 import session_service_pb2_grpc as pb_grpc  # noqa: E402

OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000), ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 10000), ("grpc.keepalive_timeout_ms", 5000), ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
TYPES = {1: "created", 2: "destroyed", 3: "moved"}
REASONS = {0: "", 1: "REQUESTED", 2: "LEASE_EXPIRED", 3: "LEASE_REVOKED", 4: "RELEASED"}


def write(line):
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


class Failed(Exception):
    def __init__(self, reason, message="", lease=None):
        super().__init__(message)
        self.error = {"reason": reason, "message": message, "lease": lease}


class Client:
    def __init__(self, addr, timeout_ms=None, token_file=None):
        self.addr, self.timeout, self.token_file = addr.removeprefix("http://"), (timeout_ms or 10000) / 1000, token_file
        channel = self.channel()
        self.sessions, self.leases = pb_grpc.SessionServiceStub(channel), lease_grpc.LeaseServiceStub(channel)

    def channel(self):
        return grpc.aio.insecure_channel(self.addr, OPTIONS)

    def metadata(self):
        return (("authorization", "Bearer " + open(self.token_file).read()),) if self.token_file else ()

    async def call(self, method, request):
        return await method(request, timeout=self.timeout, wait_for_ready=True, metadata=self.metadata())

    async def stream(self, **fields):
        """Yields (message, None) and, at each end of the stream, (None, error)."""
        request, cursor, again = pb.SubscribeRequest(**fields), "", False
        while True:
            if cursor:
                request.cursor = cursor
            elif again and not cursor:
                request.snapshot = True
            channel = self.channel()
            try:
                limit = 46
                call = pb_grpc.SessionServiceStub(channel).Subscribe(request, metadata=self.metadata(), wait_for_ready=True)
                while True:
                    message = await asyncio.wait_for(call.read(), limit)
                    if message is grpc.aio.EOF:
                        break
                    if message.HasField("subscribed"):
                        heartbeat = message.subscribed.heartbeat
                        limit = max(3, 1 + 3 * (heartbeat.seconds + heartbeat.nanos / 1e9))
                    yield message, None
                    cursor, again = message.cursor, True
            except (grpc.RpcError, asyncio.TimeoutError) as error:
                yield None, error
            await channel.close()
            await asyncio.sleep(0.2)


class Gateway:
    """All calls about sessions are made by one loop."""

    def __init__(self, client, owner, ttl_ms=None, linger_ms=None):
        self.client, self.owner, self.ttl, self.linger = client, owner, ttl_ms or 30000, linger_ms if linger_ms is not None else 30000
        self.lease, self.opening, self.open, self.dirty = 0, {}, {}, {}
        self.wake, self.leaving, self.stopped, self.stream_task = asyncio.Event(), {}, False, None

    async def start(self):
        await self.grant()
        asyncio.ensure_future(self.keep())
        asyncio.ensure_future(self.loop())

    async def grant(self):
        request = lease_pb.GrantLeaseRequest(owner=self.owner)
        request.ttl.FromMilliseconds(self.ttl)
        try:
            self.lease = (await self.client.call(self.client.leases.GrantLease, request)).lease_id
        except grpc.RpcError as error:
            raise Failed("OTHER" if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED else "TIMEOUT", str(error)) from error
        for session in {session for session, _ in self.open.values()}:
            self.dirty[session] = "restore"
        self.wake.set()
        if self.stream_task:
            self.stream_task.cancel()
        self.stream_task = asyncio.ensure_future(self.follow(self.lease))

    async def lives(self, lease):
        try:
            await self.client.call(self.client.leases.KeepLeaseAlive, lease_pb.KeepLeaseAliveRequest(lease_id=lease))
            return True
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
                return False
            raise

    async def keep(self):
        while not self.stopped:
            await asyncio.sleep(self.ttl / 3000)
            while not self.stopped:
                try:
                    await self.client.leases.KeepLeaseAlive(lease_pb.KeepLeaseAliveRequest(lease_id=self.lease), timeout=1, wait_for_ready=True, metadata=self.client.metadata())
                    break
                except grpc.RpcError as error:
                    try:
                        if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
                            await self.grant()
                            break
                    except Failed:
                        pass
                    await asyncio.sleep(0.1)

    async def follow(self, lease):
        before, seen = None, None
        async for message, _error in self.client.stream(snapshot=True, lease_ids=[lease]):
            if message is None:
                continue
            body = message.WhichOneof("body")
            if body in ("subscribed", "reset"):
                before, seen = {session for session, _ in self.open.values()}, set()
            elif body == "snapshot":
                for session in message.snapshot.sessions:
                    key = session.auth_key_id, session.session_id
                    seen.add(key)
                    self.hint(key)
            elif body == "synced":
                for key in before - seen:
                    self.hint(key)
            elif body == "events":
                for event in message.events.events:
                    self.leaving[event.auth_key_id, event.session_id] = event.reason
                    self.hint((event.auth_key_id, event.session_id))

    def hint(self, session):
        self.dirty.setdefault(session, "check")
        self.wake.set()

    async def loop(self):
        while True:
            await self.wake.wait()
            self.wake.clear()
            while self.dirty:
                batch, self.dirty = self.dirty, {}
                try:
                    await self.round(batch, self.lease)
                except grpc.RpcError:
                    for session, why in batch.items():
                        self.dirty.setdefault(session, why)
                    await asyncio.sleep(0.1)

    async def round(self, batch, lease):
        sessions = list(batch)
        keys, ids = zip(*sessions)
        asked = asyncio.get_running_loop().time()
        answer = await self.client.call(self.client.sessions.BatchLookupSessions, pb.BatchLookupSessionsRequest(session_ids=ids, auth_key_ids=keys))
        restores, destroys = [], []
        lives = None
        for session, exists, found in zip(sessions, answer.exists, answer.lease_ids):
            opening = [(name, future, begun) for name, (s, future, begun) in self.opening.items() if s == session]
            opened = [name for name, (s, l) in self.open.items() if s == session]
            mine = exists and found == lease
            if opened and not mine:
                if not exists and lives is None:
                    lives = await self.lives(lease)
                if not exists and not lives or all(self.open[name][1] != lease for name in opened):
                    restores.append(session)
                else:
                    for name in opened:
                        del self.open[name]
                        moved = {"reason": "moved", "lease": str(found)} if exists else {"reason": "destroyed", "destroy_reason": "REQUESTED"}
                        write({"event": "closed", "connection": name} | moved)
                    opened = []
            for name, future, begun in opening:
                if mine:
                    self.registered(name, session, lease, future)
                    continue
                now = asyncio.get_running_loop().time()
                only_from = found if exists and now - begun < 1 else 0
                created = await self.client.call(self.client.sessions.BatchCreateSessions, pb.BatchCreateSessionsRequest(
                    session_ids=[session[1]], auth_key_ids=[session[0]], lease_id=lease, only_from_lease_id=only_from))
                if created.lease_ids[0] == lease:
                    self.registered(name, session, lease, future)
                else:
                    self.opening.pop(name, None)
                    if not future.done():
                        future.set_exception(Failed("SESSION_ELSEWHERE", lease=str(created.lease_ids[0])))
            if not opening and not opened and mine:
                destroys.append(session)
        if restores:
            keys, ids = zip(*restores)
            answer = await self.client.call(self.client.sessions.BatchCreateSessions, pb.BatchCreateSessionsRequest(
                session_ids=ids, auth_key_ids=keys, lease_id=lease, only_from_lease_id=0))
            for session, found in zip(restores, answer.lease_ids):
                for name in [name for name, (s, _) in self.open.items() if s == session]:
                    if found == lease:
                        self.open[name] = session, lease
                    else:
                        del self.open[name]
                        write({"event": "closed", "connection": name, "reason": "moved", "lease": str(found)})
                if not any(s == session for s, _ in self.open.values()):
                    self.hint(session)
        if destroys:
            keys, ids = zip(*destroys)
            await self.client.call(self.client.sessions.BatchDestroySessions, pb.BatchDestroySessionsRequest(
                session_ids=ids, auth_key_ids=keys, lease_id=lease))
            for session in destroys:
                if any(s == session for s, *_ in [*self.opening.values(), *self.open.values()]):
                    self.hint(session)

    def registered(self, name, session, lease, future):
        if self.opening.pop(name, None) and not future.done():
            self.open[name] = session, lease
            future.set_result(None)
        else:
            self.hint(session)

    async def connect(self, name, session):
        if self.stopped:
            raise Failed("GATEWAY_STOPPED")
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self.opening[name] = session, future, loop.time()
        self.hint(session)
        try:
            await asyncio.wait_for(future, self.client.timeout)
        except asyncio.TimeoutError:
            raise Failed("TIMEOUT") from None
        finally:
            self.opening.pop(name, None)
            self.hint(session)

    def close(self, name):
        if name in self.opening:
            session, future, _ = self.opening.pop(name)
            if not future.done():
                future.set_exception(Failed("CANCELLED"))
            self.hint(session)
        elif name in self.open:
            session, _ = self.open.pop(name)
            self.hint(session)

    async def stop(self):
        self.stopped = True
        self.stream_task.cancel()
        for name in self.open:
            write({"event": "closed", "connection": name, "reason": "stopped"})
        self.open.clear()
        request = lease_pb.RevokeLeaseRequest(lease_id=self.lease)
        request.linger.FromMilliseconds(self.linger)
        try:
            await self.client.call(self.client.leases.RevokeLease, request)
        except grpc.RpcError as error:
            raise Failed("OTHER", str(error)) from error


class Mirror:
    def __init__(self, client, changes, **filters):
        self.client, self.filters, self.changes = client, filters, changes
        self.held, self.next, self.owners, self.synced = {}, None, {0: None}, asyncio.Event()
        asyncio.ensure_future(self.follow())

    def set(self, session, lease):
        if (self.next if self.next is not None else self.held).get(session) == lease:
            return
        if self.next is not None:
            held, told = self.next, False
        else:
            held, told = self.held, True
        if lease is None:
            held.pop(session, None)
        else:
            held[session] = lease
            self.learn(lease)
        if told and self.changes:
            write({"event": "changes", "changes": [[str(session[0]), str(session[1]), None if lease is None else str(lease)]]})

    def learn(self, lease):
        if lease not in self.owners:
            self.owners[lease] = None
            asyncio.ensure_future(self.find(lease))

    async def find(self, lease):
        while True:
            try:
                answer = await self.client.call(self.client.leases.ListLeases, lease_pb.ListLeasesRequest(lease_ids=[lease]))
                for status in answer.leases:
                    self.owners[lease] = status.lease.owner
                return
            except grpc.RpcError:
                await asyncio.sleep(0.2)

    async def follow(self):
        leases = set(self.filters.get("lease_ids", ()))
        async for message, _error in self.client.stream(snapshot=True, placements=True, **self.filters):
            if message is None:
                continue
            body = message.WhichOneof("body")
            if body == "reset" or (body == "snapshot" and self.next is None):
                self.next = {}
            if body == "snapshot":
                for session in message.snapshot.sessions:
                    self.set((session.auth_key_id, session.session_id), session.lease_id)
            elif body == "synced":
                new, self.next = self.next or {}, None
                for session in self.held.keys() - new.keys():
                    self.set(session, None)
                for session, lease in new.items():
                    self.set(session, lease)
                self.synced.set()
            elif body == "events":
                for event in message.events.events:
                    gone = event.type == 2 or (leases and event.lease_id not in leases)
                    self.set((event.auth_key_id, event.session_id), None if gone else event.lease_id)

    def dump(self):
        sessions = [[str(key), str(id_), str(lease), self.owners.get(lease)] for (key, id_), lease in self.held.items()]
        return {"sessions": sessions, "synced": self.synced.is_set(), "staleness_ms": 0}


class Agent:
    gateway = mirror = None

    async def do(self, command):
        do, fields = command.pop("do"), {k: v for k, v in command.items() if k != "id" and v is not None}
        ints = {k: [int(i) for i in fields[k]] for k in ("session_ids", "auth_key_ids", "lease_ids") if k in fields}
        if do == "client":
            self.client = Client(**fields)
        elif do == "gateway":
            gateway = Gateway(self.client, **fields)
            await gateway.start()
            self.gateway = gateway
        elif do == "connect":
            await self.gateway.connect(fields["connection"], tuple(map(int, fields["session"])))
        elif do == "connect_many":
            first, key = int(fields["first"]), int(fields["auth_key_id"])
            done = await asyncio.gather(*(self.gateway.connect(str(i), (key, i)) for i in range(first, first + fields["count"])), return_exceptions=True)
            failed = {}
            for one in done:
                if one is not None:
                    failed[one.error["reason"]] = failed.get(one.error["reason"], 0) + 1
            return {"connected": sum(one is None for one in done), "failed": failed}
        elif do == "close":
            self.gateway.close(fields["connection"])
        elif do == "close_many":
            for i in range(int(fields["first"]), int(fields["first"]) + fields["count"]):
                self.gateway.close(str(i))
        elif do == "stop":
            await self.gateway.stop()
        elif do == "mirror":
            self.mirror = Mirror(self.client, fields.get("changes"), **ints)
        elif do == "synced":
            await self.mirror.synced.wait()
        elif do == "watch":
            asyncio.ensure_future(self.watch(ints, **fields))
        elif do == "dump":
            gateway = self.gateway and {"lease": str(self.gateway.lease), "connections": {n: list(map(str, s)) for n, (s, _) in self.gateway.open.items()}}
            return {"gateway": gateway, "mirror": self.mirror and self.mirror.dump()}
        return {}

    async def watch(self, ints, start, heartbeat_ms=15000, placements=False, **_):
        request = pb.SubscribeRequest(placements=placements, snapshot=start == "snapshot", **ints)
        request.heartbeat.FromMilliseconds(heartbeat_ms)
        fields = {field.name: value for field, value in request.ListFields()}
        async for message, error in self.client.stream(**fields):
            if message is None:
                write({"event": "update", "kind": "disconnected", "reason": str(error)})
                continue
            update = {"event": "update", "kind": message.WhichOneof("body"), "cursor": message.cursor}
            if update["kind"] == "snapshot":
                update["sessions"] = [[str(s.auth_key_id), str(s.session_id), str(s.lease_id)] for s in message.snapshot.sessions]
            elif update["kind"] == "synced":
                update["count"] = message.synced.session_count
            elif update["kind"] == "events":
                update["events"] = [[TYPES[e.type], str(e.auth_key_id), str(e.session_id), str(e.lease_id), str(e.previous_lease_id), REASONS[e.reason]]
                                    for e in message.events.events]
            write(update)

    async def run(self, command):
        id_ = command["id"]
        try:
            write({"id": id_, "ok": await self.do(command)})
        except Failed as failed:
            write({"id": id_, "error": failed.error})
        except grpc.RpcError as error:
            write({"id": id_, "error": {"reason": "OTHER", "message": str(error)}})


async def main():
    agent, tasks = Agent(), set()
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        task = asyncio.ensure_future(agent.run(json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    os._exit(0)


asyncio.run(main())
