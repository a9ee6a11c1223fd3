"""End users' devices: each has one session, and at most one connection that it uses."""

import asyncio
import itertools

from client_process import Gone, Refused

PATIENCE = 5  # seconds beyond the client's timeout, after which a connect that is not answered is a fault


class Connection:
    """A connection of a device to a gateway. A gateway may believe in it after the device has left."""

    def __init__(self, name, device, gateway, now):
        self.name, self.device, self.gateway, self.asked = name, device, gateway, now
        self.state = "connecting"  # then "open", then "closed"
        self.answer = None

    def __repr__(self):
        return f"{self.name}@{self.gateway.name} ({self.state})"


class Device:
    """A device of an end user. While it wants to be online, it connects again whenever it is told to close."""

    def __init__(self, world, name, session, rng):
        self.world, self.name, self.session, self.random = world, name, session, rng
        self.wants, self.newest, self.wake = False, None, asyncio.Event()
        self.connections, self.numbers = [], itertools.count(1)
        self.disturbed = -1.0  # when something last gave a gateway a reason to close this device's connections
        self.preferred = None
        self.task = asyncio.ensure_future(self._live())

    async def _live(self):
        while True:
            self.wake.clear()
            if self.wants and (self.newest is None or self.newest.state == "closed"):
                await self._connect()
            else:
                await self.wake.wait()

    async def _connect(self):
        gateways = [gateway for gateway in self.world.gateways if gateway.accepts]
        last = self.newest.gateway if self.newest else None
        others = [gateway for gateway in gateways if gateway is not last] or gateways
        if self.preferred in gateways:
            others = [self.preferred]
        self.preferred = None
        if not others:
            await asyncio.sleep(0.1)
            return
        self.connect(self.random.choice(others))
        woken = asyncio.ensure_future(self.wake.wait())
        try:
            await asyncio.wait([self.newest.answer, woken], return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
        if self.newest is not None and self.newest.state == "closed":
            # So that a device does not hammer the gateways.
            await asyncio.sleep(self.random.uniform(0.05, 0.3))

    def connect(self, gateway):
        """Opens a connection through this gateway. It replaces the one that the device used before."""
        if any(connection.state != "closed" for connection in self.connections):
            self.disturb()
        name = f"{self.name}.{next(self.numbers)}"
        connection = Connection(name, self, gateway, self.world.now())
        self.newest = connection
        self.connections.append(connection)
        gateway.connections[name] = connection
        session = [str(number) for number in self.session]
        connection.answer = asyncio.ensure_future(self._answer(connection, gateway.agent.send("connect", connection=name, session=session)))
        self.world.note(f"{name} connects to {gateway.name}")
        return connection

    async def _answer(self, connection, future):
        gateway, begun = connection.gateway, self.world.now()
        while not future.done():
            await asyncio.wait([future], timeout=0.5)
            limit = self.world.timeout + PATIENCE
            if not future.done() and self.world.now() - max(begun, gateway.last_stopped) > limit and not gateway.agent.stopped:
                self.world.fault(f"{connection} is not answered within {limit} s")
                return
        try:
            future.result()
        except Refused as refused:
            self.world.note(f"{connection.name} is refused: {refused}")
            if refused.reason == "OTHER":
                self.world.fault(f"{connection.name} is refused for an unexpected reason: {refused}")
            self.ended(connection)
        except Gone:
            self.ended(connection)
        else:
            if connection.state == "connecting":
                connection.state = "open"
                self.world.note(f"{connection.name} is connected")

    def close(self, connection):
        """The gateway learns that this connection is closed."""
        if connection.state != "closed":
            self.world.note(f"{connection.name} closes")
            connection.gateway.agent.send("close", connection=connection.name)
            self.ended(connection)

    def ended(self, connection):
        connection.state = "closed"
        connection.gateway.connections.pop(connection.name, None)
        if connection is not self.newest or self.wants:
            self.connections = [known for known in self.connections if known.state != "closed" or known is self.newest]
        self.wake.set()

    def disturb(self):
        """From now on, a gateway may rightly tell this device to close its connection."""
        self.disturbed = self.world.now()

    def stale(self):
        """Connections that the device no longer uses, but of which the gateway has not been told that."""
        return [connection for connection in self.connections if connection.state != "closed" and connection is not self.newest]

    def leave(self):
        """The device goes offline and closes all its connections."""
        self.wants = False
        for connection in list(self.connections):
            self.close(connection)
        self.wake.set()
