"""The fleet under test: a registry, gateways and observers behind proxies, devices, and a back end."""

import asyncio
import itertools
import os
import random
import subprocess
import time

from back_end import BackEnd
from client_process import Agent, Gone, Refused
from devices import Device
from model import Changes, Stream
from proxy import Proxy
from servers import Registry

START = 30  # seconds, for an agent to start on a busy machine


class Member:
    """An agent behind its own proxy."""

    def __init__(self, world, name):
        self.world, self.name = world, name
        self.agent, self.proxy = None, None
        self.changes = self.stream = None
        self.mirror_filter = {}
        self.last_stopped = -1.0

    async def start_client(self):
        world = self.world
        if self.proxy is None:
            self.proxy = await Proxy(world.registry.addresses, world.random.random()).start()
        self.agent = await Agent(world.client, self.name, self.on_event, self.on_end).start()
        await self.agent.call("client", addr=self.proxy.address, timeout_ms=int(world.timeout * 1000), token_file=world.token_file, timeout=START)

    async def mirror(self, **filters):
        self.mirror_filter, self.changes = filters, Changes(self)
        await self.agent.call("mirror", changes=True, **{name: [str(id_) for id_ in ids] for name, ids in filters.items()})

    async def dump(self):
        def compare(answer):
            if self.changes is not None and answer["mirror"] and answer["mirror"]["synced"]:
                self.changes.compare({(int(item[0]), int(item[1])): int(item[2] or 0) for item in answer["mirror"]["sessions"]})

        return await self.agent.call("dump", timeout=60, on_ok=compare)

    async def watch(self, **options):
        self.stream = Stream(self)
        await self.agent.call("watch", **options)

    def on_event(self, event):
        kind = event["event"]
        if kind == "changes":
            self.changes.apply(event["changes"])
        elif kind == "resync":
            self.changes.resync()
        elif kind == "update":
            self.stream.apply(event)

    def on_end(self, agent):
        if not agent.expected_end:
            errors = "\n    ".join(agent.errors[-20:])
            self.world.fault(f"the agent {self.name} has ended with {agent.process.returncode}:\n    {errors}")

    def stop_process(self):
        self.agent.stop()

    def continue_process(self):
        if self.agent.stopped:
            self.last_stopped = self.world.now()
            self.agent.cont()

    async def close(self):
        if self.agent:
            await self.agent.kill()
        if self.proxy:
            await self.proxy.close()


class Gateway(Member):
    """A gateway. After a crash or an orderly stop, it starts again as a new process with the same owner."""

    def __init__(self, world, name):
        super().__init__(world, name)
        self.connections, self.accepts = {}, False

    async def start(self):
        world = self.world
        await self.start_client()
        while True:
            try:
                ttl, linger = int(world.ttl * 1000), int(world.linger * 1000)
                await self.agent.call("gateway", owner=self.name, ttl_ms=ttl, linger_ms=linger)
                break
            except Refused as refused:
                # The registry may be away.
                world.note(f"{self.name} cannot start: {refused}")
                await asyncio.sleep(0.2)
        if self.changes is not None:
            await self.mirror(**self.mirror_filter)
        self.accepts = True
        world.note(f"{self.name} has started")

    def on_event(self, event):
        if event["event"] != "closed":
            super().on_event(event)
            return
        connection = self.connections.get(event["connection"])
        details = " ".join(str(event[name]) for name in ("reason", "lease", "destroy_reason") if event.get(name))
        self.world.note(f"{self.name} tells {event['connection']} to close: {details}")
        if connection is None:
            return  # it was closed by the device at the same time
        device = connection.device
        since = self.world.now() - device.disturbed
        if event["reason"] != "stopped" and (device.disturbed < 0 or since > self.world.memory):
            self.world.fault(f"{self.name} tells {connection.name} to close for no reason ({details})")
        device.ended(connection)

    async def stop(self):
        """Stops in an orderly way: the sessions linger, so that the devices can move."""
        self.accepts = False
        try:
            await self.agent.call("stop", timeout=self.world.timeout + 10)
        except (Refused, Gone) as error:
            self.world.note(f"{self.name} cannot stop: {error}")
        await self.crash()

    async def crash(self):
        self.accepts = False
        await self.agent.kill()
        for connection in list(self.connections.values()):
            connection.device.ended(connection)
            connection.device.disturb()


class Fleet:
    """Everything that one history is about. `faults` lists what was wrong so far."""

    def __init__(self, binary, client, storage, seed, *, ttl=2.0, linger=2.0, timeout=3.0, flags=("--outage-grace", "1s"), tokens=False):
        self.binary, self.client, self.storage, self.seed = binary, client, storage, seed
        self.ttl, self.linger, self.timeout = ttl, linger, timeout
        self.random = random.Random(f"{seed} fleet")
        self.begun, self.notes, self.faults = time.monotonic(), [], []
        # How long after a reason has passed gateways may still act on it: an absence, and the time to notice its end.
        self.memory = 60
        self.gateways, self.observers, self.devices = [], [], []
        self.registry = Registry(binary, storage, flags)
        self.token_file, self.token, self.tokens = None, None, itertools.count(1)
        if tokens:
            self.token_file = str(self.registry.folder / "token")
            self.registry.flags += ["--access-file", str(self.registry.folder / "access")]
            self.grant_token()

    def now(self):
        return time.monotonic() - self.begun

    def note(self, text):
        self.notes.append((self.now(), text))

    def fault(self, text):
        self.note(f"FAULT: {text}")
        self.faults.append(text)

    def grant_token(self):
        """Adds a new token to the access file and hands it out. The old ones stay valid."""
        path = self.registry.folder / f"token-{next(self.tokens)}"
        command = [self.binary, "token", "new", "--name", "fleet", "--scopes", "admin", "--out", str(path)]
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        access = self.registry.folder / "access"
        old = access.read_text() if access.exists() else ""
        replace(access, old + line + "\n")
        self.token = path.read_text()
        return line

    def hand_out_token(self):
        replace(self.registry.folder / "token", self.token)

    def revoke_old_tokens(self, line):
        replace(self.registry.folder / "access", line + "\n")

    def credentials(self):
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    async def start(self, gateways=3, observers=1):
        if self.token:
            self.hand_out_token()
        await self.registry.start()
        self.back_end = BackEnd(self.registry.addresses, self.credentials)
        self.gateways = [Gateway(self, f"gateway-{index}") for index in range(gateways)]
        self.observers = [Member(self, f"observer-{index}") for index in range(observers)]
        await asyncio.gather(*(gateway.start() for gateway in self.gateways), *(self._observe(observer) for observer in self.observers))
        self.note("everything has started")
        return self

    async def _observe(self, observer):
        await observer.start_client()
        await observer.mirror()
        await observer.watch(start="snapshot", placements=True, heartbeat_ms=1000)
        await observer.agent.call("synced")
        # The registry is empty, and so is the mirror.
        observer.changes.is_late = False

    def add_devices(self, sessions):
        for session in sessions:
            name = f"d{len(self.devices)}"
            self.devices.append(Device(self, name, session, random.Random(f"{self.seed} {name}")))

    @property
    def members(self):
        return [*self.gateways, *self.observers]

    async def close(self):
        for device in self.devices:
            device.task.cancel()
        for member in self.members:
            await member.close()
        if hasattr(self, "back_end"):
            await self.back_end.close()
        await self.registry.close()

    def show(self):
        """Prints the history."""
        for when, text in self.notes:
            print(f"  {when:7.3f} {text}")
        for member in self.members:
            if member.agent and member.agent.errors and os.environ.get("SESSIOND_AGENT_LOG"):
                print(f"  log of {member.name}:", *member.agent.errors[-200:], sep="\n    ")
        if os.environ.get("SESSIOND_SERVER_LOG"):
            for index, line in self.registry.log:
                print(f"  server {index}: {line}")


def replace(path, text):
    """Replaces a file in one step, so that nobody reads half of it."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o600)
    new.rename(path)
