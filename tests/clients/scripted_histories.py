"""Histories that are written down: the races that were seen, and outages of known length."""

import asyncio
import contextlib
import time
import traceback

from client_process import Refused
from fleet import Fleet
from model import settle

MANY = 60_000
HISTORIES, DEFAULT = {}, []


def history(*, by_default=True, gateways=2, observers=1, storages=("memory", "file", "redis"), **options):
    """Registers a function of a fleet as a history."""

    def register(function):
        HISTORIES[function.__name__] = function, gateways, observers, storages, options
        if by_default:
            DEFAULT.append(function.__name__)
        return function

    return register


def storages_of(name):
    """Returns the storages on which the history of this name makes sense."""
    return HISTORIES[name][3]


async def run(name, binary, client, storage):
    """Runs the history of this name. Returns the fleet, whose faults say whether it passed."""
    function, gateways, observers, _, options = HISTORIES[name]
    fleet = Fleet(binary, client, storage, name, **options)
    try:
        await fleet.start(gateways, observers)
        await function(fleet)
    except Exception:
        fleet.fault(traceback.format_exc())
    finally:
        await fleet.close()
    return fleet


async def until(fleet, text, condition, limit=30):
    """Waits for a condition. If it does not come true in time, that is a fault."""
    end = fleet.now() + limit
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            fleet.note(text)
            return True
        if fleet.now() > end:
            fleet.fault(f"within {limit} s it does not come true that {text}")
            return False
        await asyncio.sleep(0.005)


async def online(fleet, device, gateway):
    """Connects a device through this gateway, and waits until it is connected."""
    device.wants = True
    connection = device.connect(gateway)
    device.wake.set()
    await until(fleet, f"{connection.name} is connected through {gateway.name}", lambda: connection.state != "connecting")
    return connection


async def lease_of(gateway):
    return int((await gateway.agent.call("dump"))["gateway"]["lease"])


async def is_under(fleet, session, gateway):
    return (await fleet.back_end.lookup(session))[0] == await lease_of(gateway)


def closes(connection):
    return lambda: connection.state == "closed"


@history()
async def first_of_two_connections_closes(fleet):
    """A second connection in one gateway, then the first closes: the session stays."""
    fleet.add_devices([(0, 1)])
    device, gateway = fleet.devices[0], fleet.gateways[0]
    for _ in range(20):
        first = device.newest if device.newest and device.newest.state == "open" else await online(fleet, device, gateway)
        second = await online(fleet, device, gateway)
        device.close(first)
        if second.state != "open":
            fleet.fault(f"{second} is closed")
    await settle(fleet)
    created = fleet.observers[0].stream.counts
    if created.get("destroyed") or created.get("created") != 1:
        fleet.fault(f"the session was created and destroyed in between: {created}")


@history()
async def gateway_returns_after_its_client_has_moved(fleet):
    """A is cut off past its ttl, the client moves to B, A returns: B keeps the session and A is told. Then the other way."""
    fleet.add_devices([(7, -5), (7, 6)])
    moves, stays = fleet.devices
    one, other = fleet.gateways
    await online(fleet, stays, one)
    for source, target in ((one, other), (other, one)):
        old = await online(fleet, moves, source)
        lease = await lease_of(source)
        source.proxy.set(accepts=False)
        source.proxy.cut()
        async def ended():
            return lease not in await fleet.back_end.owners()
        await until(fleet, f"the lease of {source.name} has ended", ended)
        new = await online(fleet, moves, target)
        source.proxy.heal()
        await until(fleet, f"{source.name} tells {old.name} to close", closes(old))
        await settle(fleet)
        if new.state != "open" or moves.newest is not new:
            fleet.fault(f"{new} was closed")
        if not await is_under(fleet, moves.session, target):
            fleet.fault(f"{target.name} has lost the session")
    if stays.newest.name != "d1.1" or stays.newest.state != "open":
        fleet.fault(f"the device that stayed was told to close: {stays.newest}")


async def moves_while_cut_off(fleet):
    """Moves a client from a gateway that is cut off to the other one. Returns its device, the first gateway, and both connections."""
    fleet.add_devices([(0, 42)])
    device = fleet.devices[0]
    source, target = fleet.gateways
    old = await online(fleet, device, source)
    source.proxy.set(accepts=False)
    source.proxy.cut()
    return device, source, old, await online(fleet, device, target)


@history()
async def takeover_within_a_partition(fleet):
    """A is cut off for less than its ttl, the client moves to B: A learns of it from its stream, and closes."""
    device, source, old, new = await moves_while_cut_off(fleet)
    source.proxy.heal()
    await until(fleet, f"{source.name} tells {old.name} to close", closes(old))
    await settle(fleet)
    if device.newest is not new:
        fleet.fault(f"{new} was closed")


@history(timeout=10.0, ttl=10.0)
async def create_is_delayed_past_a_takeover(fleet):
    """A has looked the session up, its create is delayed, B takes the session over: B keeps it."""
    fleet.add_devices([(0, 1), (0, 2)])
    device = fleet.devices[0]
    slow, quick = fleet.gateways
    # The gateway has a connection for its calls.
    await online(fleet, fleet.devices[1], slow)
    slow.proxy.set(holds_after_answer=True)
    delayed = device.connect(slow)
    await asyncio.wait_for(slow.proxy.held.wait(), 10)
    await asyncio.sleep(1.2)
    slow.proxy.set(holds_after_answer=False, passes_up=False)
    device.wants = True
    new = await online(fleet, device, quick)
    slow.proxy.heal()
    await until(fleet, f"{delayed.name} is closed", closes(delayed))
    await settle(fleet)
    if device.newest is not new or not await is_under(fleet, device.session, quick):
        fleet.fault("the delayed create has taken the session")


@history()
async def create_is_delayed_past_the_close(fleet):
    """The client leaves while its create is on the way: no ghost."""
    fleet.add_devices([(0, id_) for id_ in range(1, 9)])
    gateway = fleet.gateways[0]
    for device in fleet.devices[:2]:
        # Requests wait in the network. The client leaves, and then they arrive.
        gateway.proxy.set(passes_up=False)
        device.wants = True
        device.connect(gateway)
        await asyncio.sleep(0.2)
        device.leave()
        await asyncio.sleep(0.2)
        gateway.proxy.heal()
        await asyncio.sleep(0.2)
    for device in fleet.devices[2:4]:
        # The create is executed, but its answer waits.
        gateway.proxy.set(passes_down=False)
        device.wants = True
        device.connect(gateway)
        await asyncio.sleep(0.3)
        device.leave()
        await asyncio.sleep(0.2)
        gateway.proxy.heal()
        await asyncio.sleep(0.2)
    for device in fleet.devices[4:]:
        # The connection breaks when the create was sent, and the server receives it after everything that came later.
        gateway.proxy.held.clear()
        gateway.proxy.set(holds_after_answer=True)
        device.wants = True
        device.connect(gateway)
        await asyncio.wait_for(gateway.proxy.held.wait(), 10)
        await asyncio.sleep(0.1)
        gateway.proxy.sever(1.5)
        await asyncio.sleep(0)
        gateway.proxy.holds_after_answer = False
        device.leave()
        await asyncio.sleep(2)
    await asyncio.sleep(2)
    await settle(fleet)


@history(gateways=1)
async def back_end_ends_a_session(fleet):
    """A back end destroys a session: its holder hears of it at once."""
    fleet.add_devices([(0, id_) for id_ in range(20)])
    times = []
    for device in fleet.devices:
        connection = await online(fleet, device, fleet.gateways[0])
        device.disturb()
        device.wants = False
        begun = time.monotonic()
        await fleet.back_end.destroy(device.session)
        await until(fleet, f"{connection.name} is closed", closes(connection))
        times.append(time.monotonic() - begun)
    times.sort()
    fleet.note(f"the holder heard of it within {times[len(times) // 2] * 1000:.0f} ms (median), {times[-1] * 1000:.0f} ms (slowest)")
    if times[len(times) // 2] > 0.1 or times[-1] > 2:
        fleet.fault(f"the holder hears of a destroyed session too late: {times}")
    await settle(fleet)


async def connect_many(fleet, gateway, first, count):
    answer = await gateway.agent.call("connect_many", auth_key_id="0", first=first, count=count, timeout=120)
    fleet.note(f"{gateway.name} has connected {answer}")
    if answer["connected"] != count:
        fleet.fault(f"{gateway.name} connected {answer} of {count}")


async def settle_many(fleet, expected, limit=60):
    """Waits until exactly these session_ids are in the registry, under the lease of this gateway, and in all mirrors."""

    async def agree():
        owners = await fleet.back_end.owners()
        held = {id_: owners.get(lease) for (_, id_), lease in (await fleet.back_end.snapshot()).items()}
        if held != expected:
            return False
        for member in fleet.members:
            dump = await member.agent.call("dump", timeout=60)
            if dump["mirror"] is not None and {int(item[1]): item[3] for item in dump["mirror"]["sessions"]} != expected:
                return False
            if dump["gateway"] is not None:
                mine = {int(session[1]) for session in dump["gateway"]["connections"].values()}
                if mine != {id_ for id_, owner in expected.items() if owner == member.name}:
                    return False
        return True

    if not await until(fleet, "all agree", agree, limit):
        held = {id_ for _, id_ in await fleet.back_end.snapshot()}
        fleet.fault(f"{len(held - expected.keys())} ghosts, {len(expected.keys() - held)} lost")


@history(ttl=5.0, timeout=10.0)
async def sessions_move_during_a_linger(fleet):
    """10,000 sessions move during a linger: nobody sees them destroyed. The rest end exactly once."""
    old, new = fleet.gateways
    fleet.linger = 10.0
    await old.crash()
    await old.start()
    await connect_many(fleet, old, 0, 10_100)
    await settle_many(fleet, {id_: old.name for id_ in range(10_100)})
    await old.agent.call("stop")
    await connect_many(fleet, new, 0, 10_000)
    counts = fleet.observers[0].stream.counts
    await until(fleet, "the rest has ended", lambda: counts.get("destroyed", 0) >= 100)
    if (counts.get("created"), counts.get("moved"), counts.get("destroyed")) != (10_100, 10_000, 100):
        fleet.fault(f"the watch has seen {counts}")


async def close_during_reregistration(fleet, count):
    gateway = fleet.gateways[0]
    await connect_many(fleet, gateway, 0, count)
    half = count // 2

    async def comes_back():
        return len(await fleet.back_end.snapshot()) > 0

    await fleet.registry.lose(0)
    fleet.note("the registry is lost")
    await until(fleet, "the first sessions are registered again", comes_back)
    await gateway.agent.call("close_many", first=0, count=half)
    fleet.note(f"{half} connections are closed")
    await settle_many(fleet, {id_: gateway.name for id_ in range(half, count)})


@history(gateways=1, ttl=5.0, timeout=60.0)
async def sixty_thousand_reregister_while_half_of_them_close(fleet):
    """Closing during the re-registration of 60,000 sessions: no ghost."""
    await close_during_reregistration(fleet, MANY)


@history(gateways=1, storages=("memory", "file"), flags=("--outage-grace", "1s", "--retain-events", "200000"), timeout=30.0)
async def slow_consumer(fleet):
    """An observer that stops reading costs bounded memory, is reset, and is exact again."""
    observer = fleet.observers[0]
    await observer.agent.call("pause", what="watch")
    await observer.agent.call("pause", what="changes")
    # The mirror itself goes on reading: only its reader of changes is slow.
    before, registry_id = observer.agent.rss(), await fleet.back_end.registry_id()
    for round_ in range(20):
        sessions = [(round_, id_) for id_ in range(20_000)]
        await fleet.back_end.create(*sessions)
        answer = await fleet.back_end.destroy(*sessions, with_place=True)
        for place in answer.places:
            await wait_until(observer, place, registry_id)
    grown = (observer.agent.rss() - before) / 2**20
    fleet.note(f"800,000 events later, the observer has grown by {grown:.0f} MiB")
    if grown > 150:
        fleet.fault(f"a slow reader costs {grown:.0f} MiB")
    await observer.agent.call("resume", what="watch")
    await observer.agent.call("resume", what="changes")
    await settle(fleet)
    if not observer.stream.counts.get("reset"):
        fleet.fault("the watch was not reset: it has buffered everything")
    if not observer.changes.resyncs:
        fleet.fault("the reader of changes was not told to resync")


async def wait_until(observer, place, registry_id):
    """Waits until the observer's mirror has reached this place."""
    place = {"partition": place.partition, "position": str(place.position), "registry_id": registry_id}
    await observer.agent.call("wait_until", timeout=60, place=place)


@history(gateways=1)
async def mirror_waits_for_a_write(fleet):
    """A mirror that has waited for the place of a write has seen it."""
    observer = fleet.observers[0]
    registry_id = await fleet.back_end.registry_id()
    for id_ in range(100):
        answer = await fleet.back_end.create((0, id_), with_place=True)
        await wait_until(observer, answer.places[0], registry_id)
        dump = await observer.agent.call("dump")
        if ["0", str(id_)] not in [item[:2] for item in dump["mirror"]["sessions"]]:
            fleet.fault(f"the mirror has passed the place of session {id_}, but does not hold it")
    await fleet.back_end.destroy(*[(0, id_) for id_ in range(100)])
    await settle(fleet)
    answer = await fleet.back_end.create((0, 1), with_place=True)
    place = answer.places[0]
    far = {"partition": place.partition, "position": str(place.position + 1000), "registry_id": registry_id}
    waiting = observer.agent.send("wait_until", place=far)
    await asyncio.sleep(0.2)
    await fleet.registry.lose(0)
    with contextlib.suppress(Refused):
        await asyncio.wait_for(waiting, 30)
        fleet.fault("a wait for a place of the lost registry has succeeded")


@history(gateways=1, tokens=True)
async def token_changes(fleet):
    """The token is changed under open connections: nothing is lost."""
    fleet.add_devices([(0, id_) for id_ in range(5)])
    for device in fleet.devices:
        await online(fleet, device, fleet.gateways[0])
    for _ in range(2):
        line = fleet.grant_token()
        await asyncio.sleep(3)
        fleet.hand_out_token()
        await asyncio.sleep(0.5)
        fleet.revoke_old_tokens(line)
        await asyncio.sleep(3)
    await settle(fleet)
    for device in fleet.devices:
        if device.newest.name != f"{device.name}.1":
            fleet.fault(f"{device.name} was told to close")


async def absence(fleet, seconds):
    """Cuts everyone off for some seconds. Nobody is told to close, and nothing is lost."""
    fleet.add_devices([(0, id_) for id_ in range(10)])
    for index, device in enumerate(fleet.devices):
        await online(fleet, device, fleet.gateways[index % len(fleet.gateways)])
    fleet.note(f"everyone is cut off for {seconds} s")
    for member in fleet.members:
        member.proxy.set(accepts=False)
        member.proxy.cut()
    await asyncio.sleep(seconds)
    for member in fleet.members:
        member.proxy.heal()
    await settle(fleet)
    for device in fleet.devices:
        if device.newest.name != f"{device.name}.1" or device.newest.state != "open":
            fleet.fault(f"{device.name} has lost its connection: {device.newest}")


@history()
async def absence_of_three_ttls(fleet):
    """What 75 s are to a ttl of 30 s."""
    await absence(fleet, 3 * fleet.ttl)


async def outage(fleet, seconds):
    """The registry is away for some seconds and remembers everything. Nobody is told to close, nobody sees a session end."""
    fleet.add_devices([(0, id_) for id_ in range(10)])
    for index, device in enumerate(fleet.devices):
        await online(fleet, device, fleet.gateways[index % len(fleet.gateways)])
    servers = fleet.registry.servers
    fleet.note(f"the servers are killed for {seconds} s")
    await asyncio.gather(*(server.kill() for server in servers))
    await asyncio.sleep(seconds)
    for server in servers:
        await server.start()
    await settle(fleet)
    for device in fleet.devices:
        if device.newest.name != f"{device.name}.1" or device.newest.state != "open":
            fleet.fault(f"{device.name} has lost its connection: {device.newest}")
    return fleet.observers[0].stream.counts


@history(storages=("file", "redis"), ttl=3.0, flags=("--outage-grace", "15s"))
async def outage_of_three_ttls(fleet):
    """75 s of outage are three ttls. The leases survive it."""
    counts = await outage(fleet, 3 * fleet.ttl)
    if counts.get("destroyed"):
        fleet.fault(f"an outage has ended sessions: {counts}")


# With a long ttl, the stream of the lease learns of the loss before the keeper of the lease does.
@history(ttl=10.0)
async def registry_is_lost(fleet):
    """A registry is lost and starts anew: all sessions are registered again, and nobody is told to close."""
    fleet.add_devices([(0, id_) for id_ in range(10)])
    for index, device in enumerate(fleet.devices):
        await online(fleet, device, fleet.gateways[index % len(fleet.gateways)])
    await fleet.registry.lose(0.5)
    fleet.note("the registry is lost")
    await settle(fleet)
    for device in fleet.devices:
        if device.newest.name != f"{device.name}.1" or device.newest.state != "open":
            fleet.fault(f"{device.name} has lost its connection: {device.newest}")


@history(by_default=False, ttl=30.0, linger=30.0, timeout=10.0, flags=())
async def absence_of_75_seconds(fleet):
    """Not scaled: everyone is away for 75 s with a ttl of 30 s."""
    await absence(fleet, 75)


@history(by_default=False, storages=("file", "redis"), ttl=30.0, linger=30.0, timeout=10.0, flags=())
async def outage_of_75_seconds(fleet):
    """Not scaled: the servers are away for 75 s with a ttl of 30 s. The leases survive it."""
    counts = await outage(fleet, 75)
    if counts.get("destroyed"):
        fleet.fault(f"an outage has ended sessions: {counts}")


@history(gateways=1, ttl=5.0)
async def frozen_gateway_reads_what_it_missed(fleet):
    """A gateway is frozen past its ttl and its heartbeats. Its devices stay connected, and nobody else took them."""
    fleet.add_devices([(0, id_) for id_ in range(5)])
    gateway = fleet.gateways[0]
    for device in fleet.devices:
        await online(fleet, device, gateway)
    gateway.stop_process()
    await asyncio.sleep(fleet.ttl * 1.6)
    gateway.continue_process()
    await settle(fleet)
    for device in fleet.devices:
        if device.newest.name != f"{device.name}.1" or device.newest.state != "open":
            fleet.fault(f"{device.name} has lost its connection: {device.newest}")


@history(gateways=1)
async def connections_die_silently(fleet):
    """The peer of each connection vanishes without a word. Heartbeats and keepalive notice, and new connections work."""
    fleet.add_devices([(0, 1), (0, 2)])
    gateway, observer = fleet.gateways[0], fleet.observers[0]
    for device in fleet.devices:
        await online(fleet, device, gateway)
    gateway.proxy.die()
    observer.proxy.die()
    kicked = fleet.devices[0]
    kicked.disturb()
    kicked.wants = False
    connection = kicked.newest
    await fleet.back_end.destroy(kicked.session)
    await until(fleet, f"{connection.name} is closed", closes(connection), 30)
    await settle(fleet)


@history()
async def old_connection_closes_late(fleet):
    """A client has moved while its gateway was cut off. The gateway learns that its client has left before it learns of the move."""
    device, source, old, new = await moves_while_cut_off(fleet)
    device.close(old)
    source.proxy.heal()
    await settle(fleet)
    if device.newest is not new:
        fleet.fault(f"{new} was closed")
    if fleet.observers[0].stream.counts.get("destroyed"):
        fleet.fault("the late close has destroyed the session")
