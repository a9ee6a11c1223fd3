"""The servers of one registry: one on memory or on a file, or three on one Redis."""

import asyncio
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import tempfile

START = 20  # seconds, for a server to start
REPLICAS = {"memory": 1, "file": 1, "redis": 3}


def loopback():
    """Returns a loopback address that no client takes ports of, so that a server gets its port again after a restart."""
    return f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.1"


def free_port(host):
    with socket.socket() as sock:
        sock.bind((host, 0))
        return sock.getsockname()[1]


class Program:
    """A process that is killed at the end."""

    def __init__(self):
        self.process, self.stopped = None, False

    @property
    def runs(self):
        return self.process is not None and self.process.returncode is None

    def signal(self, number):
        if self.runs:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def stop(self):
        self.stopped = True
        self.signal(signal.SIGSTOP)

    def cont(self):
        self.stopped = False
        self.signal(signal.SIGCONT)

    async def kill(self):
        if self.process is not None:
            self.signal(signal.SIGKILL)
            await self.process.wait()
        self.stopped = False

    async def terminate(self):
        """Lets it drain. Returns its exit code."""
        self.cont()
        self.signal(signal.SIGTERM)
        return await self.process.wait()


class Server(Program):
    """A sessiond that keeps its address when it is started again."""

    def __init__(self, binary, storage, flags, log):
        super().__init__()
        self.binary, self.storage, self.flags = binary, storage, flags
        self.log = log
        self.host, self.port = loopback(), 0

    @property
    def address(self):
        return self.host, self.port

    async def start(self):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SESSIOND_")}
        self.process = await asyncio.create_subprocess_exec(
            self.binary, "serve", "--listen", f"{self.host}:{self.port}", "--admin-listen", "127.0.0.1:0",
            "--storage", self.storage, "--log-format", "json", "--workers", "2", *self.flags,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env=environment,
        )
        await asyncio.wait_for(self._listening(), START)
        self.reading = asyncio.ensure_future(self._read())

    async def _listening(self):
        while line := await self.process.stderr.readline():
            self.log(line)
            with contextlib.suppress(ValueError):
                fields = json.loads(line).get("fields", {})
                if fields.get("message") == "listening":
                    self.port = int(fields["address"].rpartition(":")[2])
                    return
        raise RuntimeError(f"sessiond exited with {await self.process.wait()}")

    async def _read(self):
        while line := await self.process.stderr.readline():
            self.log(line)


class Redis(Program):
    """A redis-server that keeps nothing when it is killed."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.host = folder, loopback()
        self.port = free_port(self.host)

    async def start(self):
        self.process = await asyncio.create_subprocess_exec(
            "redis-server", "--bind", self.host, "--port", str(self.port), "--save", "", "--appendonly", "no", "--dir", self.folder,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )
        end = asyncio.get_running_loop().time() + START
        while True:
            try:
                _, writer = await asyncio.open_connection(self.host, self.port)
                writer.close()
                return
            except OSError:
                if asyncio.get_running_loop().time() > end:
                    raise
                await asyncio.sleep(0.02)


class Registry:
    """All servers of one registry."""

    def __init__(self, binary, storage, flags=()):
        self.binary, self.storage, self.flags = binary, storage, list(flags)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="sessiond-clients-"))
        self.redis, self.servers = None, []
        self.log = []

    async def start(self):
        url = {"memory": "memory:", "file": f"file:{self.folder / 'sessions'}"}.get(self.storage)
        if self.storage == "redis":
            self.redis = Redis(str(self.folder))
            await self.redis.start()
            url = f"redis://{self.redis.host}:{self.redis.port}"
        for index in range(REPLICAS[self.storage]):
            log = lambda line, index=index: self.log.append((index, line.decode(errors="replace").rstrip()))
            self.servers.append(Server(self.binary, url, self.flags, log))
            await self.servers[-1].start()
        return self

    @property
    def addresses(self):
        return [server.address for server in self.servers]

    async def lose(self, seconds):
        """Loses the registry, and starts a new one after some seconds."""
        if self.redis:
            await self.redis.kill()
            await asyncio.sleep(seconds)
            await self.redis.start()
            return
        await self.servers[0].kill()
        for file in self.folder.glob("sessions*"):
            file.unlink()
        await asyncio.sleep(seconds)
        await self.servers[0].start()

    async def heal(self):
        """Continues and starts whatever is stopped."""
        for program in [self.redis, *self.servers]:
            if program is not None:
                program.cont()
                if not program.runs:
                    await program.start()

    async def close(self):
        for program in [*self.servers, self.redis]:
            if program is not None:
                await program.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
