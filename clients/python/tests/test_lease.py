from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from sessiond import Client, LeaseEvent, Lost, Recovered, Regranted, SessiondError, SessionKey

from .server import Proxy, Server, file_storage, until_lease_ended

Start = Callable[..., Awaitable[Server]]


async def next_event(events: AsyncIterator[LeaseEvent], within: float = 15) -> LeaseEvent:
    return await asyncio.wait_for(anext(events), within)


async def test_a_lease_is_kept_alive_and_revoked(client: Client) -> None:
    lease = await client.lease(1, "gw-1:8443")
    await client.create(SessionKey(0, 1), lease=lease.id)
    deadline = asyncio.get_running_loop().time() + 2.5
    while asyncio.get_running_loop().time() < deadline:
        assert await client.has(SessionKey(0, 1))
        await asyncio.sleep(0.1)
    assert lease.is_held
    assert await lease.revoke() == 1
    assert [event async for event in lease.events()] == []


async def test_a_lease_ends_with_its_block(client: Client) -> None:
    async with await client.lease(30, "gw-1:8443") as lease:
        await client.create(SessionKey(0, 1), lease=lease.id)
    assert not await client.has(SessionKey(0, 1))
    async with await client.lease(30, "gw-1:8443") as lease:
        await lease.revoke()
    with pytest.raises(SessiondError) as caught:
        await lease.revoke()
    assert caught.value.is_lease_gone


async def test_a_lease_lingers(client: Client) -> None:
    lease = await client.lease(30, "gw-1:8443")
    await client.create(SessionKey(0, 1), lease=lease.id)
    assert await lease.revoke(linger=60) == 0
    assert await client.has(SessionKey(0, 1))


async def test_a_lease_that_is_gone_is_replaced(client: Client) -> None:
    for linger in (0, 60):
        lease = await client.lease(2, "gw-1:8443")
        events, first = lease.events(), lease.id
        await client.revoke_lease(first, linger=linger)
        lease.check()
        event = await next_event(events)
        if event == Lost():
            event = await next_event(events)
        assert isinstance(event, Regranted) and event.lease_id == lease.id != first
        await lease.revoke()


async def test_a_lost_registry_replaces_the_lease(server: Server, client: Client) -> None:
    lease = await client.lease(3, "gw-1:8443")
    events = lease.events()
    await server.restart()
    while not isinstance(event := await next_event(events), Regranted):
        pass
    assert event.lease_id == lease.id
    await lease.revoke()


async def test_a_lease_survives_an_outage_longer_than_its_ttl(started: Start, tmp_path: Path) -> None:
    server = await started(*file_storage(tmp_path))
    async with Client(server.address) as client:
        lease = await client.lease(1, "gw-1:8443")
        await client.create(SessionKey(0, 1), lease=lease.id)
        events, first = lease.events(), lease.id
        await server.kill()
        assert await next_event(events) == Lost() and not lease.is_held
        await server.start()
        assert await next_event(events) == Recovered()
        assert lease.id == first and await client.has(SessionKey(0, 1))
        await lease.revoke()


async def test_a_partition_loses_the_lease(proxy: Proxy, client: Client) -> None:
    async with Client(proxy.address) as cut:
        lease = await cut.lease(1, "gw-1:8443")
        events, first = lease.events(), lease.id
        proxy.stall()
        assert await next_event(events) == Lost()
        await until_lease_ended(client, first)
        proxy.heal()
        event = await next_event(events)
        assert isinstance(event, Regranted) and event.lease_id != first
        await lease.revoke()


async def test_a_refused_lease_is_an_error(client: Client) -> None:
    with pytest.raises(SessiondError) as caught:
        await client.lease(30, "x" * 200)
    assert caught.value.reason == "OWNER_TOO_LONG"
