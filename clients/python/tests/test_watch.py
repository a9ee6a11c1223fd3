from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import grpc
import pytest

from sessiond import (
    Client,
    DestroyReason,
    Disconnected,
    Events,
    EventType,
    Heartbeat,
    Reset,
    ResetReason,
    SessiondError,
    SessionEvent,
    SessionKey,
    Snapshot,
    Subscribed,
    Synced,
    Watch,
    WatchUpdate,
)

from .server import Proxy, Server, file_storage

Start = Callable[..., Awaitable[Server]]
T = TypeVar("T")


async def next_of(watch: Watch, kind: type[T], within: float = 15) -> T:
    """Returns the next update of this kind, and skips the others."""

    async def find() -> T:
        while not isinstance(update := await anext(watch), kind):
            pass
        return update

    return await asyncio.wait_for(find(), within)


async def events_of(watch: Watch, count: int) -> list[SessionEvent]:
    events: list[SessionEvent] = []
    while len(events) < count:
        update = await asyncio.wait_for(anext(watch), 15)
        assert not isinstance(update, Reset)
        if isinstance(update, Events):
            events.extend(update)
    return events


async def test_snapshot_then_events(client: Client) -> None:
    lease = (await client.grant_lease(30, "gw-1:8443")).lease_id
    await client.create(SessionKey(5, 1), lease=lease)
    async with client.watch(snapshot=True, placements=True) as watch:
        subscribed = await anext(watch)
        assert isinstance(subscribed, Subscribed) and subscribed.heartbeat == 15 and watch.places
        snapshot = await anext(watch)
        assert isinstance(snapshot, Snapshot) and list(snapshot) == [(SessionKey(5, 1), lease)]
        assert watch.cursor is None
        assert await anext(watch) == Synced(1)
        assert watch.cursor
        await client.create(SessionKey(0, 2))
        await client.create(SessionKey(0, 2), lease=lease)
        await client.destroy(SessionKey(0, 2), lease=lease)
        assert await events_of(watch, 3) == [
            (EventType.CREATED, SessionKey(0, 2), DestroyReason.UNSPECIFIED, 0, 0),
            (EventType.MOVED, SessionKey(0, 2), DestroyReason.UNSPECIFIED, lease, 0),
            (EventType.DESTROYED, SessionKey(0, 2), DestroyReason.RELEASED, lease, 0),
        ]


async def test_filters(client: Client) -> None:
    async with client.watch(auth_key_ids=[1 << 63], types=[EventType.CREATED]) as watch:
        await next_of(watch, Subscribed)
        for session in (SessionKey(0, 1), SessionKey(1 << 63, 2)):
            await client.create(session)
            await client.destroy(session)
        await client.create(SessionKey(1 << 63, 3))
        assert [event.session.session_id for event in await events_of(watch, 2)] == [2, 3]


async def test_a_cursor_resumes_exactly(client: Client) -> None:
    async with client.watch() as watch:
        await next_of(watch, Subscribed)
        for number in range(3):
            await client.create(SessionKey(0, number))
        await events_of(watch, 3)
        cursor = watch.cursor
    await client.create(SessionKey(0, 3))
    async with client.watch(after=cursor) as watch:
        assert [event.session.session_id for event in await events_of(watch, 1)] == [3]


async def test_a_foreign_cursor_resets(client: Client, started: Start) -> None:
    other = await started()
    async with client.watch() as watch:
        await next_of(watch, Subscribed)
        cursor = watch.cursor
    async with Client(other.address) as foreign, foreign.watch(after=cursor) as watch:
        assert (await next_of(watch, Reset)).reason is ResetReason.CURSOR_FOREIGN
        await next_of(watch, Synced)


async def test_a_malformed_cursor_is_an_error(client: Client) -> None:
    async with client.watch(after="nonsense") as watch:
        with pytest.raises(SessiondError) as caught:
            await anext(watch)
    assert caught.value.reason == "MALFORMED_CURSOR"


async def test_a_watch_survives_kill_and_restart_over_a_file(started: Start, tmp_path: Path) -> None:
    server = await started(*file_storage(tmp_path))
    async with Client(server.address) as client, client.watch() as watch:
        await next_of(watch, Subscribed)
        await client.create(SessionKey(0, 1))
        await events_of(watch, 1)
        await server.kill()
        assert (await next_of(watch, Disconnected)).error.is_retryable
        await server.start()
        await client.create(SessionKey(0, 2))
        assert [event.session.session_id for event in await events_of(watch, 1)] == [2]


async def test_a_lost_registry_resets(server: Server, client: Client) -> None:
    await client.create(SessionKey(0, 1))
    async with client.watch(snapshot=True) as watch:
        first = await next_of(watch, Subscribed)
        await next_of(watch, Synced)
        await server.restart()
        second = await next_of(watch, Subscribed)
        assert second.registry_id != first.registry_id
        assert (await next_of(watch, Reset)).reason is ResetReason.CURSOR_FOREIGN
        assert await next_of(watch, Synced) == Synced(0)


async def test_a_cut_connection_resumes(proxy: Proxy, client: Client) -> None:
    async with Client(proxy.address) as cut, cut.watch() as watch:
        await next_of(watch, Subscribed)
        proxy.cut()
        await next_of(watch, Disconnected)
        await client.create(SessionKey(0, 1))
        proxy.heal()
        assert [event.session.session_id for event in await events_of(watch, 1)] == [1]


@pytest.mark.parametrize("fault", ["stalled connection", "stopped server"])
async def test_silence_is_noticed(fault: str, server: Server, proxy: Proxy, client: Client) -> None:
    async with Client(proxy.address, timeout=2) as stalled, stalled.watch(heartbeat=0.1) as watch:
        await next_of(watch, Heartbeat)
        if fault == "stalled connection":
            proxy.stall()
        else:
            server.signal(signal.SIGSTOP)
        began = asyncio.get_running_loop().time()
        disconnected = await next_of(watch, Disconnected)
        assert disconnected.error.code is grpc.StatusCode.UNAVAILABLE
        assert asyncio.get_running_loop().time() - began < 4
        proxy.heal()
        server.signal(signal.SIGCONT)
        await client.create(SessionKey(0, 1))
        assert [event.session.session_id for event in await events_of(watch, 1)] == [1]


async def test_an_interrupted_snapshot_is_discarded(proxy: Proxy, client: Client) -> None:
    await client.batch_create(SessionKey(0, number) for number in range(200_000))
    async with Client(proxy.address) as cut, cut.watch(snapshot=True) as watch:
        await next_of(watch, Snapshot)
        proxy.cut()
        await next_of(watch, Disconnected)
        assert watch.cursor is None
        proxy.heal()
        assert (await next_of(watch, Reset)).reason is ResetReason.SNAPSHOT_INTERRUPTED
        sessions = 0
        while not isinstance(update := await anext(watch), Synced):
            sessions += len(update) if isinstance(update, Snapshot) else 0
        assert sessions == update.session_count == 200_000


async def test_a_slow_watch_is_reset_and_does_not_buffer(started: Start) -> None:
    server = await started("--retain-events", "1024")
    async with Client(server.address) as client, client.watch(heartbeat=0.5) as watch:
        await next_of(watch, Subscribed)
        sessions = [SessionKey(0, number) for number in range(50_000)]
        for _ in range(20):
            await client.batch_create(sessions)
            await client.batch_destroy(sessions)
        await client.create(SessionKey(1, 1))
        held: set[SessionKey] = set()
        received, resets = 0, 0
        while held != {SessionKey(1, 1)}:
            update = await asyncio.wait_for(anext(watch), 15)
            if isinstance(update, Reset):
                assert update.reason in (ResetReason.LAGGED, ResetReason.CURSOR_EXPIRED)
                held, resets = set(), resets + 1
            elif isinstance(update, Snapshot):
                held.update(session for session, _ in update)
            elif isinstance(update, Events):
                received += len(update)
                for event in update:
                    (held.add if event.type is EventType.CREATED else held.discard)(event.session)
        assert resets and received < 2_000_000


async def test_a_cancelled_wait_loses_nothing(client: Client) -> None:
    async with client.watch() as watch:
        await next_of(watch, Subscribed)
        seen: list[int] = []
        for number in range(20):
            await client.create(SessionKey(0, number))
            try:
                update: WatchUpdate = await asyncio.wait_for(anext(watch), 0.001)
            except asyncio.TimeoutError:
                continue
            if isinstance(update, Events):
                seen.extend(event.session.session_id for event in update)
        seen.extend(event.session.session_id for event in await events_of(watch, 20 - len(seen)))
        assert seen == list(range(20))


async def test_a_busy_process_is_not_silence(client: Client) -> None:
    import time

    async with client.watch(heartbeat=0.1) as watch:
        await next_of(watch, Heartbeat)
        for _ in range(2):
            time.sleep(2)
            assert isinstance(await anext(watch), Heartbeat)


async def test_a_drained_server_ends_the_stream_and_the_watch_resumes(started: Start, tmp_path: Path) -> None:
    server = await started(*file_storage(tmp_path))
    async with Client(server.address) as client, client.watch() as watch:
        await next_of(watch, Subscribed)
        server.signal(signal.SIGTERM)
        disconnected = await next_of(watch, Disconnected)
        assert disconnected.error.reason == "SERVER_DRAINING" and disconnected.error.retry_after is not None
        await server.restart()
        await client.create(SessionKey(0, 1))
        assert [event.session.session_id for event in await events_of(watch, 1)] == [1]


async def test_closing_a_watch_ends_a_pending_wait(client: Client) -> None:
    watch = client.watch()
    await next_of(watch, Subscribed)
    pending = asyncio.ensure_future(anext(watch, None))
    await asyncio.sleep(0.1)
    await watch.close()
    assert await asyncio.wait_for(pending, 15) is None
