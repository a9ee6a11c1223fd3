"""A real server, started from the binary that SESSIOND_BIN names, and a TCP proxy before it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import sessiond

BINARY = os.environ.get("SESSIOND_BIN", "")


class Server:
    """A server process. It listens on the same port after a restart."""

    def __init__(self, *flags: str, scheme: str = "http") -> None:
        self.flags = flags
        self.scheme = scheme
        self.port = 0
        self.process: asyncio.subprocess.Process | None = None
        self._log: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def start(self) -> Server:
        command = [BINARY, "serve", "--listen", f"127.0.0.1:{self.port}", "--admin-listen", "127.0.0.1:0"]
        self.process = await asyncio.create_subprocess_exec(
            *command, *self.flags, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        lines = []
        assert self.process.stdout is not None
        while line := (await asyncio.wait_for(self.process.stdout.readline(), 20)).decode():
            lines.append(line)
            text = re.sub(r"\x1b\[[0-9;]*m", "", line)
            if self.port == 0 and (found := re.search(r'listening address="127\.0\.0\.1:(\d+)"', text)):
                self.port = int(found[1])
            if await self._accepts():
                break
        else:
            raise AssertionError("the server did not start:\n" + "".join(lines))
        self._log = asyncio.create_task(self._drain(self.process.stdout))
        return self

    async def _accepts(self) -> bool:
        if self.port == 0:
            return False
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    async def _drain(self, output: asyncio.StreamReader) -> None:
        while await output.readline():
            pass

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()
        if self._log is not None:
            await self._log
            self._log = None

    async def restart(self) -> None:
        await self.kill()
        await self.start()


class Proxy:
    """Forwards TCP connections to a port. It can cut them, refuse new ones, stall them, and let them die."""

    def __init__(self, port: Callable[[], int]) -> None:
        self._target = port
        self._flows = asyncio.Event()
        self._flows.set()
        self._refuses = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1 << 16)
        return self

    @property
    def address(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Breaks all connections and refuses new ones."""
        self._refuses = True
        for writer in self._writers:
            writer.transport.abort()

    def stall(self) -> None:
        """Keeps the connections open and forwards nothing."""
        self._flows.clear()

    def die(self) -> None:
        """Lets the connections that are open now pass nothing, ever. New ones work."""
        for task in self._tasks:
            task.cancel()

    def heal(self) -> None:
        self._refuses = False
        self._flows.set()

    async def stop(self) -> None:
        self.cut()
        self._flows.set()
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        try:
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target())
        except OSError:
            writer.transport.abort()
            return
        for source, sink in ((reader, target_writer), (target_reader, writer)):
            task = asyncio.create_task(self._forward(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        self._writers.add(sink)
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                await self._flows.wait()
                sink.write(data)
                await sink.drain()
        # A task that was cancelled leaves its connection open: it is dead.
        self._writers.discard(sink)
        with contextlib.suppress(OSError):
            sink.close()


async def until(condition: Callable[[], bool], within: float = 10.0) -> None:
    """Waits until the condition holds."""
    deadline = asyncio.get_running_loop().time() + within
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "the condition did not come true"
        await asyncio.sleep(0.01)


async def holder(client: sessiond.Client, session: sessiond.SessionKey) -> int | None:
    """Returns the lease that the session is under: 0 for none, None if there is no session."""
    return (await client.batch_lookup([session]))[0]


async def until_held(client: sessiond.Client, session: sessiond.SessionKey, lease: int | None) -> None:
    """Waits until the registry has the session under the lease."""
    deadline = asyncio.get_running_loop().time() + 15
    while (found := await holder(client, session)) != lease:
        assert asyncio.get_running_loop().time() < deadline, f"{session} is under {found} and not under {lease}"
        await asyncio.sleep(0.02)


async def until_lease_ended(client: sessiond.Client, lease: int) -> None:
    """Waits until the registry no longer has the lease."""
    deadline = asyncio.get_running_loop().time() + 15
    while [status async for status in client.list_leases(lease_ids=[lease])]:
        assert asyncio.get_running_loop().time() < deadline, f"lease {lease} does not end"
        await asyncio.sleep(0.05)


def file_storage(folder: Path) -> tuple[str, str]:
    return "--storage", f"file:{folder / 'registry'}"
