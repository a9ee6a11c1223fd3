from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import grpc
import pytest

from sessiond import (
    Client,
    DestroyReason,
    EventType,
    Mirror,
    MirrorChange,
    MirrorHolder,
    Place,
    Resync,
    SessiondError,
    SessionKey,
)
from sessiond import (
    mirror as mirrors,
)

from .server import Proxy, Server, file_storage, until

Start = Callable[..., Awaitable[Server]]
KEY = SessionKey(-7, -42)


async def synced(client: Client, lease_ids: Iterable[int] = (), auth_key_ids: Iterable[int] = ()) -> Mirror:
    mirror = await client.mirror(lease_ids=lease_ids, auth_key_ids=auth_key_ids)
    await asyncio.wait_for(mirror.synced(), 15)
    return mirror


def place_of(place: Place | None) -> Place:
    assert place is not None
    return place


async def test_a_mirror_equals_the_registry(client: Client) -> None:
    lease = (await client.grant_lease(30, "gw-1")).lease_id
    keys = [SessionKey(auth, session) for auth in (0, 1, -1, 1 << 63) for session in (0, 1, -1, 1 << 63)]
    await client.batch_create(keys, lease=lease)
    async with await synced(client) as mirror:
        assert set(mirror) == set(keys) and len(mirror) == len(keys)
        assert mirror.staleness == 0
        assert mirror.holder_of(keys[0]) == MirrorHolder(lease, "gw-1")
        other = (await client.grant_lease(30, "gw-2")).lease_id
        await mirror.wait_until(place_of((await client.create(KEY, lease=other, with_place=True)).place))
        assert mirror.has(KEY) and KEY in mirror and mirror.holder_of(KEY) == MirrorHolder(other, "gw-2")
        await mirror.wait_until(place_of((await client.create(KEY, lease=lease, with_place=True)).place))
        assert mirror.holder_of(KEY) == MirrorHolder(lease, "gw-1")
        await mirror.wait_until(place_of((await client.destroy(KEY, with_place=True)).place))
        assert not mirror.has(KEY) and mirror.holder_of(KEY) is None
        await mirror.wait_until((await client.batch_destroy(keys, with_place=True)).places)
        assert len(mirror) == 0
        await client.create(KEY)
        await until(lambda: mirror.has(KEY))
        assert mirror.holder_of(KEY) is None


async def test_a_mirror_asks_for_a_heartbeat_every_5_s(server: Server) -> None:
    asked: list[float] = []

    class Streams(grpc.aio.UnaryStreamClientInterceptor):
        async def intercept_unary_stream(self, continuation, details, request):  # type: ignore[no-untyped-def]
            asked.append(request.heartbeat.ToMilliseconds() / 1000)
            return await continuation(details, request)

    async with Client(server.address, interceptors=[Streams()]) as client:
        for started in (client.mirror(), client.mirror(heartbeat=0.3)):
            async with await started as mirror:
                await asyncio.wait_for(mirror.synced(), 15)
    assert asked == [5, 0.3]


async def test_filters(client: Client) -> None:
    lease = (await client.grant_lease(30, "gw-1")).lease_id
    other = (await client.grant_lease(30, "gw-2")).lease_id
    async with await synced(client, lease_ids=iter([lease])) as mirror, await synced(client, auth_key_ids=[5]) as fives:
        changes = mirror.changes()
        places = [
            (await client.create(KEY, lease=other, with_place=True)).place,
            (await client.create(KEY, lease=lease, with_place=True)).place,
            (await client.create(SessionKey(5, 1), with_place=True)).place,
        ]
        await mirror.wait_until(map(place_of, places))
        await fives.wait_until(map(place_of, places))
        assert list(mirror) == [KEY] and list(fives) == [SessionKey(5, 1)]
        await mirror.wait_until(place_of((await client.create(KEY, lease=other, with_place=True)).place))
        assert len(mirror) == 0
        assert [(await anext(changes))[:3] for _ in range(2)] == [
            (EventType.CREATED, KEY, lease),
            (EventType.DESTROYED, KEY, lease),
        ]


async def test_changes_and_a_slow_reader(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "_MAX_CHANGES", 100)
    await client.create(KEY)
    async with await synced(client) as mirror:
        changes = mirror.changes()
        await client.destroy(KEY)
        unspecified = DestroyReason.UNSPECIFIED
        assert await anext(changes) == MirrorChange(EventType.DESTROYED, KEY, 0, 0, DestroyReason.REQUESTED)
        keys = [SessionKey(0, number) for number in range(1000)]
        await mirror.wait_until((await client.batch_create(keys, with_place=True)).places)
        assert await anext(changes) == Resync()
        await client.create(KEY)
        while (change := await asyncio.wait_for(anext(changes), 15)) != MirrorChange(
            EventType.CREATED, KEY, 0, 0, unspecified
        ):
            assert isinstance(change, MirrorChange | Resync)
        changes.close()


async def test_changes_say_why_a_session_was_destroyed(client: Client) -> None:
    lease = (await client.grant_lease(30, "gw-1")).lease_id
    keys = [SessionKey(0, number) for number in range(3)]
    await client.batch_create(keys, lease=lease)
    async with await synced(client) as mirror:
        changes = mirror.changes()
        await client.destroy(keys[0])
        await client.destroy(keys[1], lease=lease)
        await client.revoke_lease(lease)
        seen = [await asyncio.wait_for(anext(changes), 15) for _ in keys]
    assert {change.session: change.reason for change in seen if isinstance(change, MirrorChange)} == dict(
        zip(keys, (DestroyReason.REQUESTED, DestroyReason.RELEASED, DestroyReason.LEASE_REVOKED), strict=True)
    )


async def test_the_first_contents_are_changes(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    await client.create(KEY)
    async with await client.mirror() as mirror:
        changes = mirror.changes()
        change = await asyncio.wait_for(anext(changes), 15)
        assert isinstance(change, MirrorChange) and change[:2] == (EventType.CREATED, KEY)
    monkeypatch.setattr(mirrors, "_MAX_CHANGES", 100)
    await client.batch_create([SessionKey(0, number) for number in range(200)])
    async with await client.mirror() as mirror:
        assert await asyncio.wait_for(anext(mirror.changes()), 15) == Resync()


async def test_a_lost_registry(server: Server, client: Client) -> None:
    await client.batch_create([KEY, SessionKey(0, 1)])
    async with await synced(client) as mirror:
        changes = mirror.changes()
        place = place_of((await client.create(SessionKey(0, 2), with_place=True)).place)
        await asyncio.wait_for(mirror.wait_until(place), 15)
        far = Place(place.partition, 1 << 60)
        waiting = asyncio.create_task(mirror.wait_until(far))
        await server.kill()
        await until(lambda: mirror.staleness > 0)
        assert mirror.has(KEY) and len(mirror) == 3
        await server.start()
        await client.create(SessionKey(0, 3))
        with pytest.raises(SessiondError) as caught:
            await asyncio.wait_for(waiting, 15)
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.reason == "REGISTRY_LOST" and not caught.value.is_retryable
        await until(lambda: set(mirror) == {SessionKey(0, 3)})
        await until(lambda: mirror.staleness == 0)
        seen = [await asyncio.wait_for(anext(changes), 15) for _ in range(5)]
        assert {change[:2] for change in seen if isinstance(change, MirrorChange)} == {
            (EventType.CREATED, SessionKey(0, 2)),
            (EventType.CREATED, SessionKey(0, 3)),
            *((EventType.DESTROYED, key) for key in (KEY, SessionKey(0, 1), SessionKey(0, 2))),
        }


async def test_a_reset_tells_only_differences(started: Start) -> None:
    server = await started("--retain-events", "1024")
    proxy = await Proxy(lambda: server.port).start()
    async with Client(server.address) as client, Client(proxy.address) as cut:
        kept = [SessionKey(0, number) for number in range(100)]
        await client.batch_create([*kept, KEY])
        async with await synced(cut) as mirror:
            changes = mirror.changes()
            proxy.cut()
            await until(lambda: mirror.staleness > 0)
            churn = [SessionKey(1, number) for number in range(10_000)]
            await client.batch_create(churn)
            await client.batch_destroy([*churn, KEY])
            await client.create(SessionKey(2, 2))
            assert mirror.has(KEY)
            proxy.heal()
            seen = [await asyncio.wait_for(anext(changes), 15) for _ in range(2)]
            assert {change[:2] for change in seen if isinstance(change, MirrorChange)} == {
                (EventType.DESTROYED, KEY),
                (EventType.CREATED, SessionKey(2, 2)),
            }
            assert set(mirror) == {*kept, SessionKey(2, 2)}
    await proxy.stop()


async def test_kill_and_restart_over_a_file(started: Start, tmp_path: Path) -> None:
    server = await started(*file_storage(tmp_path))
    async with Client(server.address) as client:
        await client.create(KEY)
        async with await synced(client) as mirror:
            changes = mirror.changes()
            await server.restart()
            place = (await client.create(SessionKey(0, 1), with_place=True)).place
            await asyncio.wait_for(mirror.wait_until(place_of(place)), 15)
            assert set(mirror) == {KEY, SessionKey(0, 1)}
            change = await anext(changes)
            assert isinstance(change, MirrorChange) and change.session == SessionKey(0, 1)


async def test_owners_are_found_later_and_forgotten(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "_OWNER_TIMEOUT", 0.0)
    monkeypatch.setattr(mirrors, "_OWNER_RETRY", 0.05)
    lease = (await client.grant_lease(30, "gw-1")).lease_id
    await client.create(KEY, lease=lease)
    async with await synced(client) as mirror:
        assert mirror.holder_of(KEY) == MirrorHolder(lease, None)
        monkeypatch.setattr(mirrors, "_OWNER_TIMEOUT", 1.0)
        await until(lambda: mirror.holder_of(KEY) == MirrorHolder(lease, "gw-1"))
        await client.destroy(KEY)
        await until(lambda: lease not in mirror._copy.leases)


async def test_a_wait_for_a_place_that_never_comes_ends(server: Server) -> None:
    async with Client(server.address, timeout=0.5) as client, await client.mirror() as mirror:
        assert not mirror.is_synced
        await mirror.synced()
        assert mirror.is_synced
        with pytest.raises(SessiondError) as caught:
            await asyncio.wait_for(mirror.wait_until(Place(0, 1 << 60)), 15)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_closed_mirror_ends_what_waits(client: Client) -> None:
    mirror = await synced(client)
    changes = mirror.changes()
    waiting = asyncio.create_task(mirror.wait_until(Place(0, 1 << 60)))
    await asyncio.sleep(0)
    await mirror.close()
    with pytest.raises(SessiondError) as caught:
        await waiting
    assert caught.value.code is grpc.StatusCode.CANCELLED
    assert caught.value.reason == "CLOSED" and not caught.value.is_retryable
    assert [change async for change in changes] == []


async def test_an_empty_mirror_is_true(client: Client) -> None:
    async with await client.mirror() as mirror:
        await mirror.synced()
        assert len(mirror) == 0 and bool(mirror)
