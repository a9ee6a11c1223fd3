"""Random histories of two gateways and a mirror, with faults. In the end, all agree with the registry."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sessiond import Client, Connection, Gateway, SessiondError, SessionKey

from .server import Proxy, Server, file_storage

Start = Callable[..., Awaitable[Server]]
SEEDS = range(int(os.environ.get("SESSIOND_SEEDS", "3")))
KEYS = [SessionKey(0, number) for number in range(20)]


class History:
    """Runs random operations, and keeps what the gateways have told."""

    def __init__(self, seed: int, client: Client, gateways: list[Gateway]) -> None:
        self.random = random.Random(seed)
        self.client = client
        self.gateways = gateways
        self.connections: list[tuple[Gateway, Connection]] = []
        self.log: list[str] = []
        self._connecting: set[asyncio.Task[None]] = set()

    async def step(self) -> None:
        key, index = self.random.choice(KEYS), self.random.randrange(2)
        gateway, kind = self.gateways[index], self.random.random()
        if kind < 0.5:
            self.log.append(f"connect {key.session_id} at {index}")
            task = asyncio.create_task(self._connect(gateway, key))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        elif kind < 0.9 and self.connections:
            gateway, connection = self.connections.pop(self.random.randrange(len(self.connections)))
            self.log.append(f"close {connection.session.session_id} at {self.gateways.index(gateway)}")
            connection.close()
        elif kind < 0.95:
            self.log.append(f"kick {key.session_id}")
            await self._ignore(self.client.destroy(key))
        else:
            # A call of an old connection that was delayed until now.
            self.log.append(f"late create of {key.session_id} at {index}")
            await self._ignore(self.client.create(key, lease=gateway.lease_id, only_from=0))

    async def _connect(self, gateway: Gateway, key: SessionKey) -> None:
        try:
            self.connections.append((gateway, await gateway.connect(key)))
        except SessiondError as error:
            self.log.append(f"connect {key.session_id} at {self.gateways.index(gateway)} failed: {error}")

    async def _ignore(self, call: Awaitable[object]) -> None:
        try:
            await call
        except SessiondError as error:
            self.log.append(str(error))

    async def settle(self) -> None:
        await asyncio.gather(*self._connecting)

    async def disagreement(self) -> str | None:
        """Returns how the registry differs from the open connections."""
        holders = await self.client.batch_lookup(KEYS)
        for key, holder in zip(KEYS, holders, strict=True):
            here = {
                gateway.lease_id
                for gateway, connection in self.connections
                if connection.session == key and not connection.closed.done()
            }
            if here != (set() if holder is None else {holder}):
                return f"{key} is under {holder} in the registry, and gateways with the leases {here} hold it"
        return None


@pytest.mark.parametrize("storage", ["memory", "file"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_in_the_end_all_agree(seed: int, storage: str, started: Start, tmp_path: Path) -> None:
    server = await started(*(file_storage(tmp_path) if storage == "file" else ("--storage", "memory:")))
    chance = random.Random(seed)
    proxies = [await Proxy(lambda: server.port).start() for _ in range(2)]
    clients = [Client(proxy.address, timeout=2) for proxy in proxies]
    async with Client(server.address) as client:
        gateways = [await each.gateway(f"gw-{number}", ttl=2) for number, each in enumerate(clients)]
        mirror = await clients[0].mirror(heartbeat=0.2)
        history = History(seed, client, gateways)
        for _ in range(6):
            for _ in range(chance.randrange(5, 40)):
                await history.step()
                await asyncio.sleep(chance.choice([0, 0, 0.002, 0.02]))
            fault = chance.choice(["cut", "stall", "restart", "revoke", "linger", "none"])
            victim = chance.randrange(2)
            history.log.append(f"{fault} {victim}")
            match fault:
                case "cut":
                    proxies[victim].cut()
                case "stall":
                    proxies[victim].stall()
                case "restart":
                    await server.restart()
                case "revoke" | "linger":
                    await history._ignore(
                        client.revoke_lease(gateways[victim].lease_id, linger=30 if fault == "linger" else 0)
                    )
            for _ in range(chance.randrange(5, 20)):
                await history.step()
                await asyncio.sleep(chance.choice([0, 0.02]))
            await asyncio.sleep(chance.choice([0, 0.5, 3]))
            for proxy in proxies:
                proxy.heal()
        await history.settle()
        deadline = asyncio.get_running_loop().time() + 30
        while (wrong := await history.disagreement()) or set(mirror) != await present(client):
            assert asyncio.get_running_loop().time() < deadline, "\n".join(
                [*history.log, wrong or f"the mirror holds {set(mirror)}"]
            )
            await asyncio.sleep(0.1)
        await mirror.close()
        await asyncio.gather(*(gateway.stop(linger=0) for gateway in gateways))
        assert not any(await client.batch_has(KEYS))
    for each in clients:
        await each.close()
    for proxy in proxies:
        await proxy.stop()


async def present(client: Client) -> set[SessionKey]:
    return {key for key, exists in zip(KEYS, await client.batch_has(KEYS), strict=True) if exists}
