"""A TCP proxy in front of the servers, one for each agent, that breaks connections in the ways networks do."""

import asyncio
import contextlib
import random
import struct

CHUNK = 1 << 16
DATA_FRAME = 0


class Direction:
    """One direction of one connection: reads, waits as long as the faults say, and writes in order."""

    def __init__(self, proxy, reader, writer, gate, on_data=None):
        self.proxy, self.reader, self.writer, self.gate, self.on_data = proxy, reader, writer, gate, on_data
        self.delay = 0.0
        # A short queue, so that a reader that stops reading is felt by the sender.
        self.queue = asyncio.Queue(8)

    async def read(self):
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await self.reader.read(CHUNK):
                await self.queue.put((loop.time() + self.delay, data))
        await self.queue.put((loop.time() + self.delay, b""))

    async def write(self):
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while True:
                due, data = await self.queue.get()
                if (wait := due - loop.time()) > 0:
                    await asyncio.sleep(wait)
                await self.gate.wait()
                if not data:
                    break
                if self.on_data:
                    self.on_data(data)
                self.writer.write(data)
                await self.writer.drain()
        self.writer.close()


class Connection:
    """A connection of a client, and the one to a server that belongs to it."""

    def __init__(self, proxy, client, server):
        self.proxy = proxy
        self.gate_up, self.gate_down = asyncio.Event(), asyncio.Event()
        self.client_writer, self.server_writer = client[1], server[1]
        self.up = Direction(proxy, client[0], server[1], self.gate_up)
        self.down = Direction(proxy, server[0], client[1], self.gate_down, self._answered)
        self.answers = FrameReader()
        self.severed = False
        self.tasks = []
        self.follow()

    def follow(self):
        """Follows the faults of the proxy."""
        for gate, open_ in (self.gate_up, self.proxy.passes_up), (self.gate_down, self.proxy.passes_down):
            if not self.severed:
                gate.set() if open_ else gate.clear()
        # Some connections are slow and some are not, so that calls on different connections overtake each other.
        slow = self.proxy.reorders and self.proxy.random.random() < 0.5
        self.up.delay = self.proxy.random.uniform(0.05, 0.4) if slow else self.proxy.delay
        self.down.delay = self.proxy.random.uniform(0.0, 0.2) if slow else self.proxy.delay

    def _answered(self, data):
        if self.answers.feed(data) and self.proxy.holds_after_answer:
            self.proxy.held.set()
            self.gate_up.clear()

    async def run(self):
        directions = [self.up.read(), self.down.read(), self.up.write(), self.down.write()]
        self.tasks = [asyncio.ensure_future(direction) for direction in directions]
        # When one side has closed, the other one is closed once it has received everything.
        await asyncio.wait(self.tasks[2:], return_when=asyncio.FIRST_COMPLETED)
        if not self.severed:
            self.cut()
        await asyncio.wait(self.tasks)

    def cut(self):
        """Resets both sides. What is in between is lost."""
        for writer in self.client_writer, self.server_writer:
            reset(writer)
        for task in self.tasks:
            task.cancel()

    def die(self):
        """Passes nothing any more, and stays open: what a machine sees whose peer has vanished."""
        self.severed = True
        self.gate_up.clear()
        self.gate_down.clear()

    async def sever(self, seconds):
        """Resets the client's side now, and delivers what the client has sent after some seconds."""
        self.severed = True
        self.gate_up.clear()
        await asyncio.sleep(0.05)
        reset(self.client_writer)
        await asyncio.sleep(seconds)
        self.gate_up.set()
        await asyncio.sleep(1)
        self.cut()


def reset(writer):
    """Closes a socket with a RST, as a machine that has lost the connection does."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SOL_SOCKET, SO_LINGER
    writer.transport.abort()


class FrameReader:
    """Finds HTTP/2 frames in a byte stream, to notice when a message passes."""

    def __init__(self):
        self.buffer = b""

    def feed(self, data):
        """Returns whether a DATA frame with a message has begun in this data."""
        self.buffer += data
        found = False
        while len(self.buffer) >= 9:
            length, kind = int.from_bytes(self.buffer[:3], "big"), self.buffer[3]
            if len(self.buffer) < 9 + length:
                break
            found |= kind == DATA_FRAME and length > 5
            self.buffer = self.buffer[9 + length :]
        return found


class Proxy:
    """Accepts connections on a port of its own. `targets` are the addresses of the servers; a random one is used."""

    def __init__(self, targets, seed):
        self.targets, self.random = targets, random.Random(seed)
        self.connections, self.tasks = set(), set()
        self.passes_up = self.passes_down = self.accepts = True
        self.reorders = self.holds_after_answer = False
        self.delay = 0.0
        self.held = asyncio.Event()

    async def start(self):
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    async def _accept(self, reader, writer):
        server = None
        if self.accepts:
            for host, port in self.random.sample(self.targets, len(self.targets)):
                with contextlib.suppress(OSError):
                    server = await asyncio.open_connection(host, port)
                    break
        if server is None or not self.accepts:
            reset(writer)
            if server is not None:
                reset(server[1])
            return
        connection = Connection(self, (reader, writer), server)
        self.connections.add(connection)
        try:
            await connection.run()
        except asyncio.CancelledError:
            connection.cut()
        finally:
            self.connections.discard(connection)

    def set(self, **faults):
        """Changes the faults, for new connections and those that exist."""
        for name, value in faults.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        for connection in self.connections:
            connection.follow()

    def heal(self):
        self.held.clear()
        self.set(passes_up=True, passes_down=True, accepts=True, reorders=False, holds_after_answer=False, delay=0.0)

    def cut(self):
        for connection in list(self.connections):
            connection.cut()

    def die(self):
        for connection in self.connections:
            connection.die()

    def sever(self, seconds):
        for connection in list(self.connections):
            task = asyncio.ensure_future(connection.sever(seconds))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def close(self):
        self.server.close()
        for task in list(self.tasks):
            task.cancel()
        self.cut()
