from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from sessiond import (
    Client,
    Closed,
    CloseReason,
    Connection,
    Destroyed,
    DestroyReason,
    Events,
    Gateway,
    Moved,
    SessiondError,
    SessionElsewhere,
    SessionKey,
    Stopped,
)

from .server import Proxy, Server, file_storage, holder, until, until_held, until_lease_ended

Start = Callable[..., Awaitable[Server]]
KEY = SessionKey(7, 42)


@pytest.fixture
async def gateways() -> AsyncIterator[Callable[..., Awaitable[Gateway]]]:
    started: list[Gateway] = []

    async def start(client: Client, owner: str = "gw-1:8443", ttl: float = 30) -> Gateway:
        gateway = await client.gateway(owner, ttl=ttl)
        started.append(gateway)
        return gateway

    yield start
    await asyncio.gather(*(gateway.stop(linger=0) for gateway in started), return_exceptions=True)


Gateways = Callable[..., Awaitable[Gateway]]


async def reason_of(connection: Connection, within: float = 15) -> CloseReason:
    return await asyncio.wait_for(connection.closed, within)


async def stream_lives(client: Client, gateway: Gateway) -> None:
    """Waits until the gateway has heard of a change from the stream of its lease."""
    ghost = SessionKey(99, 99)
    await client.create(ghost, lease=gateway.lease_id)
    await until_held(client, ghost, None)


async def test_a_connection_registers_its_session(client: Client, gateways: Gateways) -> None:
    gateway = await gateways(client)
    connection = await gateway.connect(KEY)
    assert (await client.lookup(KEY)).lease == (gateway.lease_id, "gw-1:8443")
    assert gateway.holds(KEY)
    connection.close()
    assert not gateway.holds(KEY)
    assert await reason_of(connection) == Closed()
    await until_held(client, KEY, None)
    await until(lambda: gateway.session_count == 0)


async def test_many_connections_share_calls(client: Client, gateways: Gateways) -> None:
    gateway = await gateways(client)
    keys = [SessionKey(0, number) for number in range(5000)]
    connections = await asyncio.gather(*map(gateway.connect, keys))
    assert await client.batch_lookup(keys) == [gateway.lease_id] * len(keys)
    for connection in connections:
        connection.close()
    await until(lambda: gateway.session_count == 0)
    assert not any(await client.batch_has(keys))


async def test_a_second_connection_survives_the_close_of_the_first(client: Client, gateways: Gateways) -> None:
    gateway = await gateways(client)
    first = await gateway.connect(KEY)
    second = await gateway.connect(KEY)
    first.close()
    with await gateway.connect(SessionKey(0, 1)):
        assert await holder(client, KEY) == gateway.lease_id
    assert not second.closed.done()
    second.close()
    await until_held(client, KEY, None)


async def test_a_client_that_moves_closes_its_old_connection(client: Client, gateways: Gateways) -> None:
    old, new = await gateways(client, "gw-1"), await gateways(client, "gw-2")
    first = await old.connect(KEY)
    second = await new.connect(KEY)
    assert await reason_of(first) == Moved(new.lease_id)
    # It comes back, and the old gateway has had time to notice or not.
    third = await old.connect(KEY)
    assert await reason_of(second) == Moved(old.lease_id)
    assert await holder(client, KEY) == old.lease_id
    third.close()
    await until_held(client, KEY, None)


async def test_a_client_that_comes_back_closes_the_connection_it_left(proxy: Proxy, client: Client) -> None:
    """The gateway has not heard of the move, because nothing but calls reaches it."""
    other = (await client.grant_lease(30, "gw-2")).lease_id
    gateway = await client.gateway("gw-1")
    try:
        first = await gateway.connect(KEY)
        gateway._observer.cancel()
        await client.create(KEY, lease=other)
        second = await gateway.connect(KEY)
        assert await reason_of(first) == Moved(other)
        assert not second.closed.done()
        assert await holder(client, KEY) == gateway.lease_id
    finally:
        await gateway.stop(linger=0)


async def test_a_kick_closes_the_connection(client: Client, gateways: Gateways) -> None:
    gateway = await gateways(client)
    connection = await gateway.connect(KEY)
    await stream_lives(client, gateway)
    assert await client.destroy(KEY)
    assert await reason_of(connection) == Destroyed(DestroyReason.REQUESTED)
    assert not await client.has(KEY)


async def test_a_session_that_was_created_again_under_no_lease_was_destroyed(
    client: Client, gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await gateways(client)
    connection = await gateway.connect(KEY)
    await stream_lives(client, gateway)
    look_up = client.batch_lookup

    async def look_up_late(sessions: Iterable[SessionKey]) -> list[int | None]:
        await client.create(KEY)
        return await look_up(sessions)

    monkeypatch.setattr(client, "batch_lookup", look_up_late)
    await client.destroy(KEY)
    assert await reason_of(connection) == Destroyed(DestroyReason.REQUESTED)
    assert await client.lookup(KEY) == (True, None)


async def test_a_claim_takes_nothing_from_a_newer_holder(client: Client, gateways: Gateways) -> None:
    gateway = await gateways(client)
    newer = (await client.grant_lease(30, "gw-2")).lease_id
    lookup = client.batch_lookup

    async def slow(sessions: object) -> list[int | None]:
        found = await lookup([KEY])
        await client.create(KEY, lease=newer)
        return found

    client.batch_lookup = slow  # type: ignore[method-assign]
    with pytest.raises(SessionElsewhere) as caught:
        await gateway.connect(KEY)
    assert caught.value.lease_id == newer and not caught.value.is_retryable
    assert await holder(client, KEY) == newer


async def test_a_lookup_that_was_answered_late_takes_nothing(client: Client, gateways: Gateways) -> None:
    gateway = await gateways(client)
    other = (await client.grant_lease(30, "gw-2")).lease_id
    await client.create(KEY, lease=other)
    lookup = client.batch_lookup

    async def slow(sessions: object) -> list[int | None]:
        await asyncio.sleep(1.2)
        return await lookup([KEY])

    client.batch_lookup = slow  # type: ignore[method-assign]
    with pytest.raises(SessionElsewhere):
        await gateway.connect(KEY)
    assert await holder(client, KEY) == other


async def test_a_create_delayed_past_the_close_leaves_no_ghost(client: Client, gateways: Gateways) -> None:
    gateway = await gateways(client)
    with await gateway.connect(KEY):
        pass
    await until_held(client, KEY, None)
    await until(lambda: gateway.session_count == 0)
    # The create of a connection that is long closed arrives now.
    await client.create(KEY, lease=gateway.lease_id)
    await until_held(client, KEY, None)
    await until(lambda: gateway.session_count == 0)


async def test_a_destroy_delayed_past_the_next_connect_is_undone(client: Client, gateways: Gateways) -> None:
    gateway = await gateways(client)
    connection = await gateway.connect(KEY)
    await stream_lives(client, gateway)
    assert await client.destroy(KEY, lease=gateway.lease_id)
    await until_held(client, KEY, gateway.lease_id)
    assert not connection.closed.done()


async def test_connecting_fails_after_the_timeout_and_leaves_no_ghost(proxy: Proxy, client: Client) -> None:
    async with Client(proxy.address, timeout=1) as cut:
        gateway = await cut.gateway("gw-1")
        proxy.stall()
        with pytest.raises(SessiondError, match="could not register"):
            await gateway.connect(KEY)
        proxy.heal()
        await until(lambda: gateway.session_count == 0, 20)
        assert not await client.has(KEY)
        await gateway.stop(linger=0)


async def test_a_cancelled_connect_leaves_no_ghost(client: Client, gateways: Gateways) -> None:
    gateway = await gateways(client)
    for delay in (0, 0.0005, 0.001, 0.002, 0.003):
        task = asyncio.create_task(gateway.connect(KEY))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled() and task.exception() is None:
            task.result().close()
        await until(lambda: gateway.session_count == 0)
        await until_held(client, KEY, None)


async def test_kill_and_restart_over_a_file(started: Start, gateways: Gateways, tmp_path: Path) -> None:
    server = await started(*file_storage(tmp_path))
    async with Client(server.address) as client:
        gateway = await gateways(client)
        kept, closed = await gateway.connect(KEY), await gateway.connect(SessionKey(0, 1))
        await server.kill()
        closed.close()
        opening = asyncio.create_task(gateway.connect(SessionKey(0, 2)))
        await server.start()
        assert (await asyncio.wait_for(opening, 15)).session == SessionKey(0, 2)
        await until_held(client, SessionKey(0, 1), None)
        assert await holder(client, KEY) == gateway.lease_id and not kept.closed.done()
        await gateway.stop(linger=0)


async def test_a_lost_registry_gets_its_sessions_again(server: Server, client: Client, gateways: Gateways) -> None:
    gateway = await gateways(client)
    first = gateway.lease_id
    connections = await asyncio.gather(*(gateway.connect(SessionKey(0, number)) for number in range(100)))
    await server.restart()
    for connection in connections[:50]:
        connection.close()
    await until(lambda: gateway.lease_id != first, 20)
    for number in (50, 99):
        await until_held(client, SessionKey(0, number), gateway.lease_id)
    await until(lambda: gateway.session_count == 50)
    found = await client.batch_lookup([connection.session for connection in connections])
    assert found == [None] * 50 + [gateway.lease_id] * 50
    assert not any(connection.closed.done() for connection in connections[50:])


async def test_closing_while_sessions_are_registered_again_leaves_no_ghost(client: Client, gateways: Gateways) -> None:
    gateway = await gateways(client)
    first = gateway.lease_id
    keys = [SessionKey(0, number) for number in range(20_000)]
    connections = await asyncio.gather(*map(gateway.connect, keys))
    await client.revoke_lease(first)
    for connection in connections[::2]:
        connection.close()
        if connection.session.session_id % 100 == 0:
            await asyncio.sleep(0.002)
    await until(lambda: gateway.lease_id != first and gateway.session_count == 10_000, 20)
    await until_held(client, keys[-1], gateway.lease_id)
    expected = [gateway.lease_id if number % 2 else None for number in range(20_000)]
    deadline = asyncio.get_running_loop().time() + 15
    while await client.batch_lookup(keys) != expected:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.1)
    assert not any(connection.closed.done() for connection in connections[1::2])


@pytest.mark.parametrize("client_moves", [True, False])
async def test_a_partition(client_moves: bool, proxy: Proxy, client: Client, gateways: Gateways) -> None:
    """Either the client has moved to another gateway when the partition heals, or it has stayed."""
    async with Client(proxy.address, timeout=2) as cut:
        old, new = await gateways(cut, "gw-1", 1.0), await gateways(client, "gw-2")
        first = old.lease_id
        connection, other = await old.connect(KEY), await old.connect(SessionKey(0, 1))
        proxy.cut()
        await until_lease_ended(client, first)
        if client_moves:
            moved = await new.connect(KEY)
        assert not connection.closed.done()
        proxy.heal()
        await until(lambda: old.lease_id != first)
        await until_held(client, SessionKey(0, 1), old.lease_id)
        if client_moves:
            assert await reason_of(connection) == Moved(new.lease_id)
            assert await holder(client, KEY) == new.lease_id
            # It goes back.
            back = await old.connect(KEY)
            assert await reason_of(moved) == Moved(old.lease_id) and not back.closed.done()
        else:
            assert not connection.closed.done()
        assert not other.closed.done() and old.lease_id != first
        await until_held(client, KEY, old.lease_id)
        await old.stop(linger=0)


async def test_a_lease_revoked_by_someone_else(client: Client, gateways: Gateways) -> None:
    for linger in (0, 60):
        gateway = await gateways(client)
        first = gateway.lease_id
        connection = await gateway.connect(KEY)
        await client.revoke_lease(first, linger=linger)
        with await gateway.connect(SessionKey(0, 1)):
            assert gateway.lease_id != first
            await until_held(client, KEY, gateway.lease_id)
            assert not connection.closed.done()
        connection.close()
        await until_held(client, KEY, None)


async def test_a_stopped_server_closes_no_connection(server: Server, client: Client, gateways: Gateways) -> None:
    gateway = await gateways(client)
    connection = await gateway.connect(KEY)
    server.signal(signal.SIGSTOP)
    closing = await asyncio.wait({asyncio.ensure_future(connection.closed)}, timeout=3)
    server.signal(signal.SIGCONT)
    assert not closing[0]
    with await gateway.connect(SessionKey(0, 1)):
        assert await holder(client, KEY) == gateway.lease_id


async def test_a_stopped_gateway_lets_its_clients_move(client: Client, gateways: Gateways) -> None:
    old, new = await gateways(client, "gw-1"), await gateways(client, "gw-2")
    connection = await old.connect(KEY)
    watch = client.watch()
    await anext(watch)
    stopping = asyncio.create_task(old.stop())
    assert await reason_of(connection) == Stopped()
    connection.close()
    await stopping
    with pytest.raises(SessiondError, match="stopped"):
        await old.connect(KEY)
    assert await client.has(KEY)
    moved = await new.connect(KEY)
    assert await holder(client, KEY) == new.lease_id and not moved.closed.done()
    await client.create(SessionKey(0, 1))
    # Nobody saw the session disappear: the first event is the one just made.
    update = await anext(watch)
    assert isinstance(update, Events)
    assert [event.session for event in update] == [SessionKey(0, 1)], (list(update), old.lease_id, new.lease_id)
    await watch.close()


async def test_a_stopping_gateway_ignores_late_events_of_its_stream(client: Client) -> None:
    gateway = await client.gateway("gw-1")
    await stream_lives(client, gateway)
    connection, destroy = await gateway.connect(KEY), client.batch_destroy

    async def slow(sessions: list[SessionKey], *, lease: int) -> object:
        # The event of a session whose connection has been told to stop.
        await client.create(SessionKey(0, 1), lease=lease)
        await asyncio.sleep(0.5)
        return await destroy(sessions, lease=lease)

    client.batch_destroy = slow  # type: ignore[assignment, method-assign]
    connection.close()
    await gateway.stop()
    assert await client.batch_has([KEY, SessionKey(0, 1)]) == [False, True]


async def test_stopping_ends_the_sessions_that_were_closed_before(client: Client) -> None:
    gateway = await client.gateway("gw-1")
    connection = await gateway.connect(KEY)
    connection.close()
    await gateway.stop()
    assert not await client.has(KEY)


async def test_a_refused_gateway_fails_at_once(started: Start, tmp_path: Path) -> None:
    from .test_client import new_token

    access = tmp_path / "access"
    token = await new_token(access, "gw")
    server = await started("--access-file", str(access))
    async with Client(server.address, token=token) as client:
        gateway = await client.gateway("gw-1")
        access.write_text(access.read_text().replace("read,write,observe", "observe"))
        deadline = asyncio.get_running_loop().time() + 10
        with pytest.raises(SessiondError) as caught:
            while asyncio.get_running_loop().time() < deadline:
                (await gateway.connect(KEY)).close()
        assert caught.value.reason == "SCOPE_MISSING"
        with pytest.raises(SessiondError):
            await gateway.stop()


async def test_a_forgotten_connection_warns_and_ends(client: Client, gateways: Gateways) -> None:
    gateway = await gateways(client)
    connection: Connection | None = await gateway.connect(KEY)
    with pytest.warns(ResourceWarning, match="unclosed connection"):
        del connection
    await until_held(client, KEY, None)
