from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path

import aiohttp
import pytest
from mtpylon.sessions import SessionEvent
from mtpylon.sessions.session_oberver_protocol import SessionObserverProtocol
from mtpylon.types import long

from sessiond import Client, SessiondError, SessionKey
from sessiond.contrib.mtpylon import FleetAuthKey, SessiondStorage, SessiondSubject

from .mtproto import AUTH_KEY, MtprotoClient, MtpylonServer
from .server import Server, holder, until, until_held

ID = long(-123123)
KEY = SessionKey(AUTH_KEY.id, ID)
# mtpylon's own tests that use a session storage.
TESTS = ("tests/test_sessions/", "tests/test_middlewares/", "tests/simpleschema.py", "tests/__init__.py")
PATCH = """
import os
import mtpylon.sessions
from sessiond.contrib.mtpylon import SessiondStorage
mtpylon.sessions.InMemorySessionStorage = lambda: SessiondStorage(os.environ["REGISTRY"], "tests")
"""


@pytest.fixture
async def storage(server: Server) -> AsyncIterator[SessiondStorage]:
    storage = SessiondStorage(server.address, "gw-1", linger=0)
    yield storage
    await storage.stop()


@pytest.fixture
async def other(server: Server) -> AsyncIterator[SessiondStorage]:
    storage = SessiondStorage(server.address, "gw-2", linger=0)
    yield storage
    await storage.stop()


class Observer(SessionObserverProtocol):
    def __init__(self) -> None:
        self.events: list[SessionEvent] = []

    async def update(self, event: SessionEvent) -> None:
        self.events.append(event)


async def test_mtpylons_own_tests_pass(server: Server, client: Client, tmp_path: Path) -> None:
    files = [file for file in metadata.files("mtpylon") or () if str(file).startswith(TESTS) and file.suffix == ".py"]
    assert len(files) > 5
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(file.locate()), tmp_path / file)
    (tmp_path / "conftest.py").write_text(PATCH)
    async with client.watch() as watch:
        await anext(watch)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(tmp_path),
            str(tmp_path),
            cwd=tmp_path,
            env={**os.environ, "REGISTRY": server.address},
            stdout=asyncio.subprocess.PIPE,
        )
        output = (await asyncio.wait_for(process.communicate(), 60))[0].decode()
        assert process.returncode == 0, output
        assert " passed" in output
        # They have used this registry.
        await asyncio.wait_for(anext(watch), 15)


async def test_ids_become_signed(storage: SessiondStorage, client: Client) -> None:
    await storage.create_session(AUTH_KEY, ID)
    assert AUTH_KEY.id >> 63 and KEY.auth_key_id < 0
    assert (await client.lookup(KEY)).lease == ((await storage.gateway()).lease_id, "gw-1")
    await storage.destroy_session(AUTH_KEY, ID)
    assert not await client.has(KEY) and not await storage.has_session(AUTH_KEY, ID)


async def test_a_session_moves_to_the_gateway_that_creates_it(
    storage: SessiondStorage, other: SessiondStorage, client: Client
) -> None:
    closed, leave = asyncio.Event(), asyncio.Event()

    async def move() -> None:
        async with other.socket(lambda: None):
            assert not await other.has_session(AUTH_KEY, ID)
            await other.create_session(AUTH_KEY, ID)
            assert await other.has_session(AUTH_KEY, ID)
            await leave.wait()

    async with storage.socket(closed.set):
        await storage.create_session(AUTH_KEY, ID)
        assert await storage.has_session(AUTH_KEY, ID)
        moving = asyncio.create_task(move())
        await asyncio.wait_for(closed.wait(), 15)
        assert not await storage.has_session(AUTH_KEY, ID)
        # A message that the old connection has received before takes nothing back.
        with pytest.raises(SessiondError, match="is closed"):
            await storage.create_session(AUTH_KEY, ID)
        assert await holder(client, KEY) == (await other.gateway()).lease_id
    leave.set()
    await moving
    await until_held(client, KEY, None)


async def test_a_session_ends_with_its_last_connection(storage: SessiondStorage, client: Client) -> None:
    async with storage.socket(lambda: None):
        await storage.create_session(AUTH_KEY, ID)

        async def second() -> None:
            async with storage.socket(lambda: None):
                assert not await storage.has_session(AUTH_KEY, ID)
                await asyncio.gather(*(storage.create_session(AUTH_KEY, ID) for _ in range(3)))

        await asyncio.create_task(second())
        assert await storage.has_session(AUTH_KEY, ID) and await client.has(KEY)
    await until_held(client, KEY, None)
    assert not storage._storage


async def test_messages_do_not_wait_for_the_network(server: Server, storage: SessiondStorage) -> None:
    await storage.create_session(AUTH_KEY, ID)
    server.signal(signal.SIGSTOP)
    assert await asyncio.wait_for(storage.has_session(AUTH_KEY, ID), 0.1)
    assert not await asyncio.wait_for(storage.has_session(AUTH_KEY, long(1)), 0.1)
    server.signal(signal.SIGCONT)


async def test_a_session_that_cannot_be_registered_closes_its_connection() -> None:
    storage = SessiondStorage("http://127.0.0.1:1", timeout=0.2)
    closed = asyncio.Event()
    async with storage.socket(closed.set):
        with pytest.raises(SessiondError):
            await storage.create_session(AUTH_KEY, ID)
    assert closed.is_set() and not await storage.has_session(AUTH_KEY, ID)
    await storage.stop()


async def test_observers_hear_of_the_whole_fleet(
    server: Server, storage: SessiondStorage, other: SessiondStorage
) -> None:
    async def find(key_id: int) -> object:
        assert key_id == AUTH_KEY.id
        return AUTH_KEY

    subjects = [SessiondSubject(storage, find), SessiondSubject(other)]  # type: ignore[arg-type]
    observers = [Observer(), Observer()]
    for subject, observer in zip(subjects, observers, strict=True):
        subject.subscribe(observer)
        await subject.start()
        await subject.synced()
    await subjects[0].create_session(AUTH_KEY, ID)
    await subjects[1].create_session(AUTH_KEY, ID)
    await subjects[1].destroy_session(AUTH_KEY, ID)
    await until(lambda: all(len(observer.events) == 2 for observer in observers))
    assert observers[0].events == [SessionEvent(kind, ID, AUTH_KEY) for kind in ("created", "destroyed")]
    stranger = observers[1].events[0].auth_key
    assert stranger == FleetAuthKey(key_id=AUTH_KEY.id) and stranger.id == AUTH_KEY.id
    subjects[1].unsubscribe(observers[1])
    for subject in subjects:
        await subject.stop()


@pytest.fixture
async def gateways(server: Server) -> AsyncIterator[list[MtpylonServer]]:
    servers = [await MtpylonServer.start(server.address, owner) for owner in ("gw-1", "gw-2")]
    yield servers
    for one in servers:
        await one.end()


async def owner_of(client: Client) -> str | None:
    lease = (await client.lookup(KEY)).lease
    return lease.owner if lease else None


async def test_a_real_client_moves_and_ends(gateways: list[MtpylonServer], client: Client) -> None:
    first, second = gateways
    async with MtprotoClient.connect(first.port) as here:
        await here.send(ID)
        await here.answer()
        assert await owner_of(client) == "gw-1"
        async with MtprotoClient.connect(second.port) as there:
            await there.send(ID)
            await there.answer()
            assert await owner_of(client) == "gw-2"
            # The old gateway closes the connection that the client has left.
            assert (await here.socket.receive(timeout=15)).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
    await until_held(client, KEY, None)
    line = f"session {ID} of auth key {AUTH_KEY.id:#x}"
    await until(lambda: all(one.lines == [f"created {line}", f"destroyed {line}"] for one in gateways))


async def test_the_sessions_of_a_killed_server_end(server: Server, client: Client) -> None:
    gateway = await MtpylonServer.start(server.address, "gw-1", ttl=2)
    async with MtprotoClient.connect(gateway.port) as here:
        await here.send(ID)
        await here.answer()
        assert await owner_of(client) == "gw-1"
        gateway.process.send_signal(signal.SIGKILL)
        await until_held(client, KEY, None)
    await gateway.end()


async def test_the_sessions_of_a_stopped_server_stay_for_its_clients(
    gateways: list[MtpylonServer], client: Client
) -> None:
    async with MtprotoClient.connect(gateways[0].port) as here:
        await here.send(ID)
        await here.answer()
        gateways[0].process.send_signal(signal.SIGTERM)
        assert (await here.socket.receive(timeout=15)).type is not aiohttp.WSMsgType.BINARY
        await asyncio.wait_for(gateways[0].process.wait(), 20)
    assert gateways[0].process.returncode == 0
    async with MtprotoClient.connect(gateways[1].port) as there:
        await there.send(ID)
        await there.answer()
        assert await owner_of(client) == "gw-2"
        assert len(gateways[1].lines) == 1
