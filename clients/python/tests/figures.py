"""Measures what the documentation states: `python -m tests.figures` in clients/python, with SESSIOND_BIN set."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
import timeit

from sessiond import Client, Events, Mirror, SessionKey, Snapshot, Synced

from .server import BINARY, Server

SESSIONS = 1_000_000


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def best(statement: str, **names: object) -> float:
    """Returns the CPU time of the fastest of several runs: other processes may be busy."""
    return min(timeit.repeat(statement, globals=names, number=1, repeat=9, timer=time.process_time))


async def fill(client: Client, with_auth_keys: bool) -> None:
    leases = [(await client.grant_lease(3600, f"gw-{number}")).lease_id for number in range(10)]
    ids = random.Random(1)
    for start in range(0, SESSIONS, 50_000):
        keys = [SessionKey(ids.getrandbits(64) if with_auth_keys else 0, ids.getrandbits(64)) for _ in range(50_000)]
        await client.batch_create(keys, lease=leases[start // 50_000 % 10])


async def sync(client: Client) -> None:
    gc.collect()
    before, began = resident(), time.process_time()
    mirror: Mirror = await client.mirror()
    await mirror.synced()
    took = time.process_time() - began
    gc.collect()
    print(f"mirror: synced {len(mirror):,} sessions in {took:.2f} s of CPU time ({len(mirror) / took:,.0f} a second)")
    print(f"mirror: {(resident() - before) / len(mirror):.0f} bytes of memory for each session")
    # Copies lie together in memory, as those of a caller would: only the lookups in the mirror are to miss the caches.
    present = [SessionKey(key[0] + 1 - 1, key[1] + 1 - 1) for key in random.Random(2).sample(list(mirror), 100_000)]
    absent = [SessionKey(1, number) for number in range(100_000)]
    for name, keys in (("present", present), ("absent", absent)):
        each = best("[mirror.has(key) for key in keys]", mirror=mirror, keys=keys) / len(keys)
        print(f"mirror: has costs {each * 1e9:.0f} ns for sessions that are {name}")
    numbers = dict.fromkeys(key[1] + 1 - 1 for key in mirror)
    keys_of = [key[1] + 1 - 1 for key in present]
    each = best("[key in numbers for key in keys]", numbers=numbers, keys=keys_of) / len(keys_of)
    print(f"for comparison: `in` costs {each * 1e9:.0f} ns for a dict of as many numbers")
    each = best("[mirror.holder_of(key) for key in keys]", mirror=mirror, keys=present) / len(present)
    print(f"mirror: holder_of costs {each * 1e9:.0f} ns")
    await mirror.close()


async def events(client: Client, placements: bool) -> None:
    """Reads changes that the server has retained, so that the server's own work does not count."""
    async with client.watch(placements=placements) as watch:
        await anext(watch)
        cursor = watch.cursor
    keys = [SessionKey(5, number) for number in range(250_000)]
    await client.batch_create(keys)
    await client.batch_destroy(keys)
    for name in ("messages", "each event"):
        async with client.watch(after=cursor, placements=placements) as watch:
            received, began = 0, time.process_time()
            while received < 2 * len(keys):
                update = await anext(watch)
                if isinstance(update, Events):
                    received += len(update) if name == "messages" else sum(1 for _ in update)
            took = time.process_time() - began
        print(f"watch: {received / took:,.0f} events a second of CPU time, reading {name}, {placements=}")


async def churn(client: Client) -> None:
    mirror = await client.mirror()
    await mirror.synced()
    keys = [SessionKey(6, number) for number in range(250_000)]
    cpu = time.process_time()
    places = [*(await client.batch_create(keys, with_place=True)).places]
    places = (await client.batch_destroy(keys, with_place=True)).places
    await mirror.wait_until(places)
    took = time.process_time() - cpu
    print(f"mirror: {2 * len(keys) / took:,.0f} events a second of CPU time, the calls that made them included")
    await mirror.close()


async def main() -> None:
    for with_auth_keys in (False, True):
        server = await Server().start()
        async with Client(server.address) as client:
            print(f"-- {with_auth_keys=}")
            await fill(client, with_auth_keys)
            await sync(client)
            if not with_auth_keys:
                async with client.watch(snapshot=True) as watch:
                    began = time.process_time()
                    while not isinstance(update := await anext(watch), Synced):
                        assert not isinstance(update, Snapshot) or len(update)
                    rate = update.session_count / (time.process_time() - began)
                    print(f"watch: {rate:,.0f} sessions a second of CPU time")
                for placements in (False, True):
                    await events(client, placements)
                await churn(client)
        await server.kill()


if not BINARY:
    sys.exit("SESSIOND_BIN must name the server to measure with")
asyncio.run(main())
