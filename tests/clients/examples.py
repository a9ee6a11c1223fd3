"""Tests the examples in Go and C++ against a real server that is killed and started again.

    python tests/clients/examples.py SERVER [Go | Cpp]

It makes the stubs and builds the examples as docs/clients/go.md and docs/clients/cpp.md say, which also name the
packages that this needs.
"""

import asyncio
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

import grpc
import grpc.aio
from back_end import BackEnd
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from servers import Program, Registry
from stubs import ROOT, pb

DEADLINE = 30  # seconds
BINARY = None  # set by main


def protoc(folder, *options):
    protos = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    subprocess.run(["protoc", f"-I{ROOT / 'proto'}", *options, *protos], cwd=folder, check=True)


def build_go(folder):
    """Makes the stubs and the program in this folder. Returns the path of the program."""
    (folder / "src").mkdir()
    protoc(folder, "--go_out=src", "--go-grpc_out=src")
    environment = os.environ | {"GO111MODULE": "off", "GOFLAGS": "", "GOPATH": f"{folder}:/usr/share/gocode"}
    subprocess.run(["go", "vet", "."], cwd=ROOT / "examples/go", env=environment, check=True)
    subprocess.run(["go", "build", "-o", folder / "sessiond-go", "."], cwd=ROOT / "examples/go", env=environment, check=True)
    return folder / "sessiond-go"


def build_cpp(folder):
    """Makes the stubs and the program in this folder. Returns the path of the program."""
    protoc(folder, "--cpp_out=.", "--grpc_out=.", f"--plugin=protoc-gen-grpc={shutil.which('grpc_cpp_plugin')}")
    sources = [*folder.rglob("*.cc"), *(ROOT / "examples/cpp").glob("*.cc")]
    libraries = subprocess.run(["pkg-config", "--libs", "grpc++", "protobuf"], check=True, capture_output=True, text=True)
    command = ["g++", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-I.", "-o", "sessiond-cpp", *sources]
    subprocess.run([*command, *libraries.stdout.split()], cwd=folder, check=True)
    return folder / "sessiond-cpp"


class Example(Program):
    """A running example, and the lines that it has printed."""

    async def start(self, program, *arguments):
        self.process = await asyncio.create_subprocess_exec(program, *arguments, stdout=asyncio.subprocess.PIPE)
        return self

    async def line(self):
        return (await asyncio.wait_for(self.process.stdout.readline(), DEADLINE)).decode().strip()

    async def until(self, *lines):
        """Reads until each of these lines was printed."""
        missing = set(lines)
        while missing:
            line = await self.line()
            assert line or self.process.returncode is None, f"it ended before it printed {missing}"
            missing.discard(line)


def retry_info(seconds):
    """Returns the trailers of an error that asks to wait for this long before a retry."""
    status = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="draining")
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(round(seconds * 1000))
    status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return (("grpc-status-details-bin", status.SerializeToString()),)


class Device:
    """A client of the gateway."""

    def __init__(self, session):
        self.session = session

    async def connect(self, address):
        host, _, port = address.rpartition(":")
        self.reader, self.writer = await asyncio.open_connection(host, int(port))
        self.writer.write(f"{self.session}\n".encode())
        line = await asyncio.wait_for(self.reader.readline(), DEADLINE)
        assert line == b"connected\n", line
        return self

    async def is_disconnected(self):
        line = await asyncio.wait_for(self.reader.readline(), DEADLINE)
        self.close()
        return line == b""

    def close(self):
        self.writer.close()


class Examples:
    """The tests of an observer and a gateway, for each language."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="sessiond-examples-")
        cls.addClassCleanup(folder.cleanup)
        cls.program = cls.build(pathlib.Path(folder.name))

    async def asyncSetUp(self):
        self.examples = []
        self.back_end = self.registry = None

    async def asyncTearDown(self):
        for example in self.examples:
            await example.kill()
        if self.registry:
            await self.back_end.close()
            await self.registry.close()

    async def serve(self, storage):
        self.registry = await Registry(BINARY, storage, ["--outage-grace", "1s"]).start()
        host, port = self.registry.addresses[0]
        self.address = f"{host}:{port}"
        self.back_end = BackEnd(self.registry.addresses)

    async def example(self, *arguments):
        example = await Example().start(self.program, arguments[0], self.address, *arguments[1:])
        self.examples.append(example)
        return example

    async def gateway(self):
        gateway = await self.example("gateway", "127.0.0.1:0")
        line = await gateway.line()
        return gateway, line.removeprefix("listening on ")

    async def held_by(self, expected):
        """Waits until these sessions and no others exist, each under a lease of this owner."""
        end = asyncio.get_running_loop().time() + DEADLINE
        held = None
        while held != expected:
            self.assertLess(asyncio.get_running_loop().time(), end, f"the registry holds {held} instead of {expected}")
            await asyncio.sleep(0.05)
            owners = await self.back_end.owners()
            held = {id_: owners.get(lease) for (_, id_), lease in (await self.back_end.snapshot()).items()}

    async def restarts(self, storage):
        """The server is killed and starts again while clients come and go."""
        await self.serve(storage)
        observer = await self.example("observe")
        await observer.until("synced 0")
        _, address = await self.gateway()
        stays, leaves = await Device(1).connect(address), await Device(2).connect(address)
        await observer.until("created 1", "created 2")
        await self.registry.servers[0].kill()
        leaves.close()
        late = asyncio.ensure_future(Device(3).connect(address))
        await self.registry.servers[0].start()
        late = await late
        if storage == "memory":
            # The observer has lost its place, and starts over with a snapshot.
            while not (await observer.line()).startswith("synced"):
                pass
        await self.held_by({1: address, 3: address})
        late.close()
        await self.held_by({1: address})
        stays.close()
        await self.held_by({})
        await observer.until("destroyed 1")

    async def test_a_restart_on_memory_loses_no_session_and_leaves_no_ghost(self):
        await self.restarts("memory")

    async def test_a_restart_on_a_file_loses_no_session_and_leaves_no_ghost(self):
        await self.restarts("file")

    async def test_a_session_moves_and_ends_as_others_say(self):
        await self.serve("memory")
        observer = await self.example("observe")
        _, one = await self.gateway()
        _, other = await self.gateway()
        first = await Device(5).connect(one)
        second = await Device(5).connect(other)
        self.assertTrue(await first.is_disconnected())
        await observer.until("created 5", "moved 5")
        await self.held_by({5: other})
        again = await Device(5).connect(other)
        second.close()
        await self.held_by({5: other})
        await self.back_end.destroy((0, 5))
        self.assertTrue(await again.is_disconnected())
        await observer.until("destroyed 5")
        await self.held_by({})

    async def test_a_stopped_gateway_lets_its_sessions_linger(self):
        await self.serve("memory")
        observer = await self.example("observe")
        gateway, one = await self.gateway()
        _, other = await self.gateway()
        device = await Device(8).connect(one)
        await observer.until("created 8")
        self.assertEqual(await gateway.terminate(), 0)
        self.assertTrue(await device.is_disconnected())
        await self.held_by({8: one})
        moved = await Device(8).connect(other)
        await self.held_by({8: other})
        self.assertEqual(await observer.line(), "moved 8")
        moved.close()

    async def test_an_observer_waits_as_long_as_the_registry_asks(self):
        asked, tries = 1.5, []

        async def subscribe(request, context):
            tries.append(asyncio.get_running_loop().time())
            if len(tries) == 1:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "draining", retry_info(asked))
            if len(tries) == 2:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "a proxy sends no details")
            subscribed = pb.Subscribed(heartbeat=duration_pb2.Duration(seconds=15))
            yield pb.SubscribeResponse(subscribed=subscribed, cursor="1")
            yield pb.SubscribeResponse(synced=pb.Synced(), cursor="1")
            await asyncio.sleep(DEADLINE)

        server = grpc.aio.server()
        method = grpc.unary_stream_rpc_method_handler(
            subscribe, pb.SubscribeRequest.FromString, pb.SubscribeResponse.SerializeToString
        )
        handler = grpc.method_handlers_generic_handler("sessiond.v1.SessionService", {"Subscribe": method})
        server.add_generic_rpc_handlers((handler,))
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            observer = await self.example("observe")
            await observer.until("synced 0")
        finally:
            await server.stop(None)
        self.assertGreaterEqual(tries[1] - tries[0], asked)

    async def test_a_gateway_stops_while_the_registry_is_away(self):
        await self.serve("memory")
        gateway, address = await self.gateway()
        device = await Device(9).connect(address)
        await self.registry.servers[0].kill()
        await asyncio.wait_for(gateway.terminate(), DEADLINE)
        self.assertTrue(await device.is_disconnected())


class Go(Examples, unittest.IsolatedAsyncioTestCase):
    build = staticmethod(build_go)


class Cpp(Examples, unittest.IsolatedAsyncioTestCase):
    build = staticmethod(build_cpp)


if __name__ == "__main__":
    if len(sys.argv) < 2 or not os.access(sys.argv[1], os.X_OK):
        sys.exit(f"usage: {sys.argv[0]} SERVER [unittest's arguments]")
    BINARY = sys.argv.pop(1)
    unittest.main(verbosity=1)
