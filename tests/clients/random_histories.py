"""Random histories: devices come, go and move, while the network, the servers and the gateways fail."""

import asyncio
import random
import traceback

from fleet import Fleet
from model import settle

STEPS = 40
KEYS = (0, 7, -3)
IDS = (0, 1, -1, 2**63 - 1, -(2**63), 42)
BURST_KEY = 999

# Steps and how often they are chosen.
DEVICE_STEPS = {"arrive": 8, "leave": 3, "hop": 5, "twin": 3, "flap": 3, "vanish": 3, "late_close": 4, "move_back": 2}
BACK_END_STEPS = {"kick": 3, "create_without_lease": 1, "burst": 2}
NETWORK_STEPS = {"cut": 3, "refuse": 2, "stall": 2, "stall_requests": 2, "stall_answers": 2, "reorder": 4, "sever": 3, "absence": 1}
GATEWAY_STEPS = {"freeze_gateway": 2, "crash_gateway": 1, "stop_gateway": 2, "revoke": 1, "slow_consumer": 2, "freeze_observer": 1}
SERVER_STEPS = {"kill_server": 3, "lose_registry": 1, "freeze_server": 2, "drain_server": 2, "freeze_redis": 1, "change_token": 1}


def plan(seed, storage, has_tokens):
    """Returns the steps of a history: (pause before it, name, numbers that the step may use)."""
    rng = random.Random(f"{seed} plan")
    weights = DEVICE_STEPS | BACK_END_STEPS | NETWORK_STEPS | GATEWAY_STEPS | SERVER_STEPS
    if storage != "redis":
        weights.pop("freeze_redis")
    if not has_tokens:
        weights.pop("change_token")
    names = rng.choices(list(weights), list(weights.values()), k=STEPS)
    # Some devices are online before anything goes wrong.
    names[:6] = ["arrive"] * 6
    return [(rng.uniform(0.0, 0.4), name, random.Random(rng.random())) for name in names]


class History:
    """One run of a plan."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.tasks = []
        self.changing_servers = asyncio.Lock()
        self.changing_gateway = {gateway: asyncio.Lock() for gateway in fleet.gateways}

    async def run(self, steps):
        for pause, name, rng in steps:
            await asyncio.sleep(pause)
            self.tasks.append(asyncio.ensure_future(getattr(self, name)(rng)))
            if self.fleet.faults:
                break
        await asyncio.gather(*self.tasks)
        await self.heal()

    async def heal(self):
        """Ends all faults, and lets the gateways learn which devices have left."""
        fleet = self.fleet
        await fleet.registry.heal()
        for member in fleet.members:
            member.proxy.heal()
            member.continue_process()
        for device in fleet.devices:
            # A gateway cannot know that a device on it has left, unless its session is elsewhere.
            if not device.wants:
                device.leave()
        burst = [session for session in await fleet.back_end.snapshot() if session[0] == BURST_KEY]
        unwanted = [device.session for device in fleet.devices if not device.wants]
        # The back end removes what it has created without a lease.
        for session, lease in zip(unwanted, await fleet.back_end.lookup(*unwanted) if unwanted else ()):
            if lease == 0:
                burst.append(session)
        if burst:
            await fleet.back_end.destroy(*burst)
        fleet.note("all faults are healed")

    # Devices

    def _device(self, rng, wants=None):
        devices = [device for device in self.fleet.devices if wants is None or device.wants == wants]
        return rng.choice(devices or self.fleet.devices)

    def _gateway(self, rng, *, other_than=None):
        gateways = [gateway for gateway in self.fleet.gateways if gateway.accepts and gateway is not other_than]
        return rng.choice(gateways) if gateways else None

    async def arrive(self, rng):
        device = self._device(rng, wants=False)
        device.wants = True
        device.wake.set()

    async def leave(self, rng):
        self._device(rng, wants=True).leave()

    async def flap(self, rng):
        """Connects and leaves at once, perhaps before the gateway has registered the session."""
        device = self._device(rng)
        await self._reconnect(device, self._gateway(rng), closes_first=True)
        await asyncio.sleep(rng.choice((0, 0.001, 0.01, 0.1)))
        device.leave()

    async def _reconnect(self, device, gateway, closes_first):
        if gateway is None:
            return
        if closes_first:
            device.leave()
        device.wants = True
        device.connect(gateway)
        device.wake.set()

    async def hop(self, rng):
        """Moves to another gateway. The old gateway is told late or not at all."""
        device = self._device(rng, wants=True)
        old = device.newest.gateway if device.newest else None
        await self._reconnect(device, self._gateway(rng, other_than=old), closes_first=rng.random() < 0.2)

    async def move_back(self, rng):
        """Moves to another gateway and at once back to the one it came from."""
        device = self._device(rng, wants=True)
        old = device.newest.gateway if device.newest else None
        await self._reconnect(device, self._gateway(rng, other_than=old), closes_first=False)
        await asyncio.sleep(rng.uniform(0, 0.3))
        if old is not None and old.accepts:
            await self._reconnect(device, old, closes_first=False)

    async def twin(self, rng):
        """Connects again through the same gateway, and closes the first connection then."""
        device = self._device(rng, wants=True)
        old = device.newest
        if old is None or not old.gateway.accepts:
            return
        await self._reconnect(device, old.gateway, closes_first=False)
        await asyncio.sleep(rng.uniform(0, 0.5))
        if old is not device.newest:
            device.close(old)

    async def vanish(self, rng):
        """Loses its network. The gateway learns that much later, or when all faults are healed."""
        device = self._device(rng, wants=True)
        device.wants = False
        self.fleet.note(f"{device.name} vanishes")

    async def late_close(self, rng):
        """A gateway learns that a device has left one of its connections."""
        stale = [(device, connection) for device in self.fleet.devices for connection in device.stale()]
        if stale:
            device, connection = rng.choice(stale)
            device.close(connection)

    # The back end

    async def kick(self, rng):
        device = self._device(rng, wants=True)
        device.disturb()
        self.fleet.note(f"the back end destroys the session of {device.name}")
        await self.fleet.back_end.destroy(device.session)
        device.disturb()

    async def create_without_lease(self, rng):
        device = self._device(rng)
        device.disturb()
        self.fleet.note(f"the back end creates the session of {device.name} without a lease")
        await self.fleet.back_end.create(device.session)
        device.disturb()

    async def burst(self, rng):
        sessions = [(BURST_KEY, id_) for id_ in rng.sample(range(1000), 300)]
        self.fleet.note("the back end creates and destroys 300 sessions")
        await self.fleet.back_end.create(*sessions)
        await self.fleet.back_end.destroy(*sessions)

    # The network

    async def _break(self, rng, text, seconds, **faults):
        member = rng.choice(self.fleet.members)
        self.fleet.note(f"the network of {member.name}: {text} for {seconds:.1f} s")
        self._disturb_all()
        member.proxy.set(**faults)
        await asyncio.sleep(seconds)
        member.proxy.set(**{name: name not in ("reorders", "delay") and not value for name, value in faults.items()})
        self.fleet.note(f"the network of {member.name}: healed")

    def _disturb_all(self):
        """A lease may end, and devices that are still connected elsewhere may get in the way of each other."""
        for device in self.fleet.devices:
            if len(device.connections) > 1:
                device.disturb()

    async def cut(self, rng):
        member = rng.choice(self.fleet.members)
        self.fleet.note(f"the network of {member.name} cuts all connections")
        member.proxy.cut()

    async def sever(self, rng):
        member = rng.choice(self.fleet.members)
        seconds = rng.uniform(0.1, 1.5)
        self.fleet.note(f"the network of {member.name} cuts all connections, and delivers what was sent {seconds:.1f} s later")
        member.proxy.sever(seconds)

    async def refuse(self, rng):
        member = rng.choice(self.fleet.members)
        seconds = rng.uniform(0.2, 1.5)
        self.fleet.note(f"the network of {member.name} refuses connections for {seconds:.1f} s")
        member.proxy.set(accepts=False)
        member.proxy.cut()
        await asyncio.sleep(seconds)
        member.proxy.set(accepts=True)

    async def absence(self, rng):
        """A gateway is away longer than its ttl."""
        gateway = rng.choice(self.fleet.gateways)
        seconds = self.fleet.ttl * rng.uniform(1.2, 2)
        self.fleet.note(f"{gateway.name} is cut off for {seconds:.1f} s")
        gateway.proxy.set(accepts=False)
        gateway.proxy.cut()
        await asyncio.sleep(seconds)
        gateway.proxy.set(accepts=True)

    async def stall(self, rng):
        await self._break(rng, "stall", rng.uniform(0.2, 4), passes_up=False, passes_down=False)

    async def stall_requests(self, rng):
        await self._break(rng, "requests stall", rng.uniform(0.2, 3), passes_up=False)

    async def stall_answers(self, rng):
        await self._break(rng, "answers stall", rng.uniform(0.2, 3), passes_down=False)

    async def reorder(self, rng):
        await self._break(rng, "reorder", rng.uniform(0.5, 3), reorders=True)

    # Gateways and observers

    async def freeze_gateway(self, rng):
        gateway = rng.choice(self.fleet.gateways)
        async with self.changing_gateway[gateway]:
            await self._freeze(gateway, rng.choice((0.3, 1, self.fleet.ttl * 1.5, self.fleet.ttl * 2.5)))

    async def freeze_observer(self, rng):
        await self._freeze(rng.choice(self.fleet.observers), rng.uniform(0.3, 5))

    async def _freeze(self, member, seconds):
        self.fleet.note(f"{member.name} is frozen for {seconds:.1f} s")
        member.stop_process()
        await asyncio.sleep(seconds)
        member.continue_process()
        self.fleet.note(f"{member.name} continues")

    async def crash_gateway(self, rng):
        gateway = rng.choice(self.fleet.gateways)
        async with self.changing_gateway[gateway]:
            self.fleet.note(f"{gateway.name} crashes")
            await gateway.crash()
            await gateway.start()

    async def stop_gateway(self, rng):
        gateway = rng.choice(self.fleet.gateways)
        async with self.changing_gateway[gateway]:
            self.fleet.note(f"{gateway.name} stops in an orderly way")
            await gateway.stop()
            await gateway.start()

    async def revoke(self, rng):
        """An operator revokes a lease, with or without a linger."""
        gateway, linger = rng.choice(self.fleet.gateways), rng.choice((0, 1))
        leases = [lease for lease, owner in (await self.fleet.back_end.owners()).items() if owner == gateway.name]
        if not leases:
            return
        self.fleet.note(f"an operator revokes {leases} of {gateway.name} with a linger of {linger} s")
        for lease in leases:
            try:
                await self.fleet.back_end.revoke(lease, linger)
            except Exception as error:  # it may have ended
                self.fleet.note(f"cannot revoke {lease}: {error}")

    async def slow_consumer(self, rng):
        observer, what = rng.choice(self.fleet.observers), rng.choice(("watch", "changes"))
        seconds = rng.uniform(0.5, 3)
        self.fleet.note(f"{observer.name} takes no {what} for {seconds:.1f} s")
        await observer.agent.call("pause", what=what)
        await asyncio.sleep(seconds)
        await observer.agent.call("resume", what=what)

    # Servers

    def _server(self, rng):
        return rng.choice(self.fleet.registry.servers)

    def _forgets(self):
        """On memory, the sessions are lost with the server: any gateway with an old connection may get a session."""
        self._disturb_all()

    async def kill_server(self, rng):
        async with self.changing_servers:
            server, seconds = self._server(rng), rng.choice((0, rng.uniform(0, 3)))
            self.fleet.note(f"server {server.port} is killed, and starts {seconds:.1f} s later")
            self._forgets()
            await server.kill()
            await asyncio.sleep(seconds)
            await server.start()
            self.fleet.note(f"server {server.port} has started")

    async def drain_server(self, rng):
        async with self.changing_servers:
            server = self._server(rng)
            self.fleet.note(f"server {server.port} drains and starts again")
            self._forgets()
            code = await server.terminate()
            if code:
                self.fleet.note(f"it exits with {code}")
            await server.start()

    async def lose_registry(self, rng):
        async with self.changing_servers:
            seconds = rng.choice((0, rng.uniform(0, 2)))
            self.fleet.note(f"the registry is lost, and a new one starts {seconds:.1f} s later")
            self._forgets()
            await self.fleet.registry.lose(seconds)

    async def freeze_server(self, rng):
        async with self.changing_servers:
            server, seconds = self._server(rng), rng.choice((0.5, 2, 6))
            self.fleet.note(f"server {server.port} is frozen for {seconds} s")
            server.stop()
            await asyncio.sleep(seconds)
            server.cont()

    async def freeze_redis(self, rng):
        async with self.changing_servers:
            seconds = rng.uniform(0.3, 4)
            self.fleet.note(f"Redis is frozen for {seconds:.1f} s")
            self.fleet.registry.redis.stop()
            await asyncio.sleep(seconds)
            self.fleet.registry.redis.cont()

    async def change_token(self, rng):
        async with self.changing_servers:
            self.fleet.note("the token changes")
            line = self.fleet.grant_token()
            # The server reads the file again within seconds.
            await asyncio.sleep(3)
            self.fleet.hand_out_token()
            await asyncio.sleep(1)
            self.fleet.revoke_old_tokens(line)
            self.fleet.note("the old token is revoked")


async def run(binary, client, storage, seed):
    """Runs the history of this seed. Returns the fleet, whose faults say whether it passed."""
    rng = random.Random(f"{seed} options")
    flags = ["--outage-grace", "1s"]
    if rng.random() < 0.3:
        flags += ["--max-connection-age", "2s"]
    if rng.random() < 0.3:
        flags += ["--retain-events", "64"]
    has_tokens = rng.random() < 0.3
    fleet = Fleet(binary, client, storage, seed, flags=flags, tokens=has_tokens)
    fleet.note(f"the servers run with {' '.join(flags)}")
    try:
        await fleet.start()
        await fleet.gateways[0].mirror(auth_key_ids=[7])
        fleet.add_devices([(key, id_) for key in KEYS for id_ in rng.sample(IDS, 4)])
        await History(fleet).run(plan(seed, storage, has_tokens))
        if not fleet.faults:
            await settle(fleet)
    except Exception:
        fleet.fault(traceback.format_exc())
    finally:
        await fleet.close()
    return fleet
