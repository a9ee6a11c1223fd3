from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from sessiond import Client

from .server import BINARY, Proxy, Server


def pytest_configure() -> None:
    if not BINARY:
        pytest.exit("SESSIOND_BIN must name the server to test with", returncode=4)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = await Server("--storage", "memory:").start()
    yield server
    await server.kill()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with Client(server.address) as client:
        yield client


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    proxy = await Proxy(lambda: server.port).start()
    yield proxy
    await proxy.stop()


@pytest.fixture
async def started() -> AsyncIterator[Callable[..., Awaitable[Server]]]:
    """Starts servers with the flags of the caller."""
    servers: list[Server] = []

    async def start(*flags: str, scheme: str = "http") -> Server:
        server = await Server(*flags, scheme=scheme).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.kill()
