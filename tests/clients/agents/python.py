"""The agent of the Python client: PROTOCOL.md describes what it does. Uses the package in clients/python/src."""

import asyncio
import json
import logging
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "clients/python/src"))

import grpc  # noqa: E402
import sessiond  # noqa: E402
from sessiond import SessionKey  # noqa: E402

if mutant := os.environ.get("SESSIOND_MUTANT"):
    import importlib.util

    spec = importlib.util.spec_from_file_location("mutants", pathlib.Path(__file__).resolve().parents[1] / "mutants/python.py")
    mutants = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutants)
    getattr(mutants, mutant)()

FILTERS = ("session_ids", "auth_key_ids", "lease_ids")


def write(line):
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def ids(fields):
    return {name: [int(id_) for id_ in fields[name]] for name in FILTERS if fields.get(name)}


def seconds(milliseconds, **otherwise):
    return otherwise if milliseconds is None else {name: milliseconds / 1000 for name in otherwise}


def describe(update, cursor):
    line = {"event": "update", "kind": type(update).__name__.lower(), "cursor": cursor or ""}
    match update:
        case sessiond.Snapshot():
            line["sessions"] = [[str(session.auth_key_id), str(session.session_id), str(lease)] for session, lease in update]
        case sessiond.Synced():
            line["count"] = update.session_count
        case sessiond.Events():
            line["events"] = [
                [event.type.name.lower(), str(event.session.auth_key_id), str(event.session.session_id),
                 str(event.lease_id), str(event.previous_lease_id), event.reason.name if event.reason else ""]
                for event in update
            ]
        case sessiond.Reset():
            line["reason"] = update.reason.name
        case sessiond.Disconnected():
            line["reason"] = update.error.reason or str(update.error)
    return line


def failure(error):
    if isinstance(error, asyncio.CancelledError):
        return {"reason": "CANCELLED", "message": "the connection was closed"}
    if isinstance(error, sessiond.SessionElsewhere):
        return {"reason": "SESSION_ELSEWHERE", "message": str(error), "lease": str(error.lease_id)}
    if isinstance(error, sessiond.SessiondError):
        if error.reason:
            return {"reason": error.reason, "message": str(error)}
        if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return {"reason": "TIMEOUT", "message": str(error)}
    return {"reason": "OTHER", "message": f"{type(error).__name__}: {error}"}


class Agent:
    def __init__(self):
        self.client = self.gateway = self.mirror = None
        self.opening, self.open, self.tasks = {}, {}, set()
        self.flows = {"watch": asyncio.Event(), "changes": asyncio.Event()}
        for flow in self.flows.values():
            flow.set()

    def spawn(self, coroutine):
        task = asyncio.ensure_future(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def run(self, command):
        id_, do = command.pop("id"), command.pop("do")
        try:
            write({"id": id_, "ok": await getattr(self, f"do_{do}")(**command) or {}})
        except (Exception, asyncio.CancelledError) as error:
            write({"id": id_, "error": failure(error)})

    async def do_client(self, addr, token_file=None, timeout_ms=None):
        self.client = sessiond.Client(addr, token_file=token_file, **seconds(timeout_ms, timeout=10.0))

    async def do_gateway(self, owner, ttl_ms=None, linger_ms=None):
        self.gateway = await self.client.gateway(owner, **seconds(ttl_ms, ttl=30.0), **seconds(linger_ms, linger=30.0))

    async def do_connect(self, connection, session):
        await self.connect(connection, SessionKey(*map(int, session)))

    async def connect(self, name, session):
        opening = self.opening[name] = self.spawn(self.gateway.connect(session))
        try:
            self.open[name] = connection = await opening
        finally:
            del self.opening[name]
        connection.closed.add_done_callback(lambda closed: self.closed(name, closed))

    def closed(self, name, closed):
        if closed.cancelled() or isinstance(reason := closed.result(), sessiond.Closed):
            return
        self.open.pop(name, None)
        event = {"event": "closed", "connection": name, "reason": type(reason).__name__.lower()}
        if isinstance(reason, sessiond.Moved):
            event["lease"] = str(reason.lease_id)
        elif isinstance(reason, sessiond.Destroyed):
            event["destroy_reason"] = reason.reason.name
        write(event)

    async def do_close(self, connection):
        self.close(connection)

    def close(self, name):
        if name in self.opening:
            self.opening[name].cancel()
        elif name in self.open:
            self.open.pop(name).close()

    async def do_connect_many(self, auth_key_id, first, count):
        sessions = [SessionKey(int(auth_key_id), id_) for id_ in range(first, first + count)]
        results = await asyncio.gather(*(self.connect(str(session.session_id), session) for session in sessions), return_exceptions=True)
        failed = {}
        for result in results:
            if result is not None:
                reason = failure(result)["reason"]
                failed[reason] = failed.get(reason, 0) + 1
        return {"connected": count - sum(failed.values()), "failed": failed}

    async def do_close_many(self, first, count):
        for id_ in range(first, first + count):
            self.close(str(id_))

    async def do_stop(self):
        await self.gateway.stop()

    async def do_mirror(self, changes=False, **fields):
        self.mirror = await self.client.mirror(**ids(fields))
        self.syncing = self.spawn(self.mirror.synced())
        if changes:
            self.spawn(self.report(self.mirror.changes()))

    async def report(self, changes):
        while True:
            await self.flows["changes"].wait()
            change = await anext(changes)
            if isinstance(change, sessiond.Resync):
                write({"event": "resync"})
            else:
                session = change.session
                lease = None if change.type is sessiond.EventType.DESTROYED else change.lease_id
                write({"event": "changes", "changes": [[str(session.auth_key_id), str(session.session_id), None if lease is None else str(lease)]]})

    async def do_synced(self):
        await self.mirror.synced()

    async def do_wait_until(self, place):
        await self.mirror.wait_until(sessiond.Place(place["partition"], int(place["position"])))

    async def do_watch(self, start, placements=False, heartbeat_ms=None, **fields):
        begin = {"snapshot": {"snapshot": True}, "now": {}}.get(start, {"after": start})
        self.spawn(self.follow(self.client.watch(placements=placements, **begin, **ids(fields), **seconds(heartbeat_ms, heartbeat=None))))

    async def follow(self, watch):
        while True:
            await self.flows["watch"].wait()
            try:
                update = await anext(watch)
            except sessiond.SessiondError as error:
                write({"event": "update", "kind": "failed", "reason": failure(error)["reason"], "cursor": watch.cursor or ""})
                return
            write(describe(update, watch.cursor))

    async def do_pause(self, what):
        self.flows[what].clear()

    async def do_resume(self, what):
        self.flows[what].set()

    async def do_dump(self):
        gateway = mirror = None
        if self.gateway is not None:
            connections = {name: [str(connection.session.auth_key_id), str(connection.session.session_id)] for name, connection in self.open.items()}
            gateway = {"lease": str(self.gateway.lease_id), "connections": connections}
        if self.mirror is not None:
            sessions = []
            for session in self.mirror:
                holder = self.mirror.holder_of(session)
                sessions.append([str(session.auth_key_id), str(session.session_id), str(holder.lease_id if holder else 0), holder and holder.owner])
            mirror = {"sessions": sessions, "synced": self.syncing.done(), "staleness_ms": self.mirror.staleness * 1000}
        return {"gateway": gateway, "mirror": mirror}


async def main():
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    agent = Agent()
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        agent.spawn(agent.run(json.loads(line)))
    # Without stopping anything, as a process does that was killed.
    os._exit(0)


asyncio.run(main())
