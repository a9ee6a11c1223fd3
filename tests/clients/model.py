"""What must hold: streams and mirrors are exact at any time, and at the end everyone agrees."""

import asyncio
import traceback

SETTLE = 40  # seconds, in which everyone must agree after the last fault
STABLE = 0.5  # seconds, after which they must still agree


def session_of(item):
    return int(item[0]), int(item[1])


class Stream:
    """Applies the updates of a watch with placements, and checks each against the contract."""

    def __init__(self, member):
        self.member, self.held, self.in_snapshot, self.synced = member, {}, True, False
        self.counts = {}

    def fault(self, text):
        self.member.world.fault(f"the watch of {self.member.name}: {text}")

    def apply(self, update):
        kind = update["kind"]
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind == "reset":
            self.member.world.note(f"the watch of {self.member.name} gets a reset: {update.get('reason')}")
            self.held, self.in_snapshot, self.synced = {}, True, False
        elif kind == "snapshot":
            if not self.in_snapshot:
                self.fault("a snapshot after it was synced, without a reset")
            for item in update["sessions"]:
                self._insert(session_of(item), int(item[2] or 0))
        elif kind == "synced":
            self.in_snapshot, self.synced = False, True
            if int(update["count"]) != len(self.held):
                self.fault(f"synced with {update['count']} sessions, but it was sent {len(self.held)}")
        elif kind == "events":
            for event in update["events"]:
                self._event(*event)
        elif kind in ("disconnected", "failed"):
            self.member.world.note(f"the watch of {self.member.name} is {kind}: {update.get('reason')}")
            if kind == "failed":
                self.fault(f"it gives up: {update.get('reason')}")

    def _event(self, kind, key, id_, lease, previous, _reason):
        session, lease = (int(key), int(id_)), int(lease or 0)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind == "created":
            self._insert(session, lease)
        elif kind == "moved":
            if self.held.get(session, None) != int(previous or 0):
                self.fault(f"{session} moves from {previous}, but was under {self.held.get(session)}")
            self.held[session] = lease
        elif session not in self.held:
            self.fault(f"{session} is destroyed but was not held")
        elif self.held.pop(session) != lease:
            self.fault(f"{session} is destroyed under {lease}, but was under another lease")

    def _insert(self, session, lease):
        if session in self.held:
            self.fault(f"{session} is inserted but was already held")
        self.held[session] = lease


class Changes:
    """Applies the changes that a mirror reports. They must lead to what the mirror holds."""

    def __init__(self, member):
        # It does not report what it held at first, so that is read like after a resync.
        self.member, self.held, self.is_late = member, {}, True
        self.resyncs, self.difference = 0, ""

    def apply(self, changes):
        for key, id_, lease in changes:
            session = int(key), int(id_)
            if lease is None:
                if self.held.pop(session, None) is None and not self.is_late:
                    self.member.world.fault(f"the mirror of {self.member.name} removes {session}, which it did not hold")
            elif self.held.get(session) == int(lease) and not self.is_late:
                self.member.world.fault(f"the mirror of {self.member.name} reports {session} under {lease} twice")
            else:
                self.held[session] = int(lease)

    def resync(self):
        self.resyncs += 1
        self.is_late = True
        self.member.world.note(f"the changes of {self.member.name} come too late: resync")

    def compare(self, sessions):
        """Compares them with what the mirror holds now. After a resync, this is what is read again."""
        self.difference = "" if self.held == sessions else difference(self.held, sessions)
        if self.is_late:
            # Changes that wait for their reader may be among these sessions already.
            self.is_late = bool(self.difference)
            self.held = dict(sessions)


def matches(session, lease, filters):
    return all(
        not filters.get(name) or value in filters[name]
        for name, value in (("session_ids", session[1]), ("auth_key_ids", session[0]), ("lease_ids", lease))
    )


async def disagreements(world):
    """Returns how registry, gateways, mirrors and devices disagree now."""
    wrong = []
    dumps = dict(zip(world.members, await asyncio.gather(*(member.dump() for member in world.members))))
    registries = [await world.back_end.snapshot(index) for index in range(len(world.registry.servers))]
    registry, owners = registries[0], await world.back_end.owners()
    if any(other != registry for other in registries):
        wrong.append("the replicas differ")

    expected = {}
    for device in world.devices:
        connection = device.newest
        if not device.wants:
            continue
        if connection is None or connection.state != "open":
            wrong.append(f"{device.name} has no connection: {connection}")
            continue
        dump = dumps[connection.gateway]["gateway"]
        expected[device.session] = int(dump["lease"] or 0)
        if connection.name not in dump["connections"]:
            wrong.append(f"{connection} is not in the gateway's book")
    if expected:
        for session, lease in zip(expected, await world.back_end.lookup(*expected)):
            if lease != expected[session]:
                wrong.append(f"a lookup of {session} returns {lease} instead of {expected[session]}")
    for session in registry.keys() - expected.keys():
        wrong.append(f"ghost: {session} is under {registry[session]} ({owners.get(registry[session])}), but no device is connected")
    for session in expected.keys() - registry.keys():
        wrong.append(f"lost: {session} is not in the registry")
    for session in expected.keys() & registry.keys():
        if registry[session] != expected[session]:
            wrong.append(f"{session} is under {registry[session]} ({owners.get(registry[session])}) instead of {expected[session]}")

    open_names = {device.newest.name: device for device in world.devices if device.wants and device.newest is not None}
    for gateway in world.gateways:
        dump = dumps[gateway]["gateway"]
        for name in dump["connections"]:
            device = world.devices[int(name[1:].split(".")[0])]
            if name not in open_names and not (device.wants and device.newest and device.newest.gateway is gateway):
                wrong.append(f"{gateway.name} holds {name}, which should be closed")
    for member, dump in dumps.items():
        wrong += mirror_disagreements(member, dump["mirror"], registry, owners)
    return wrong


def mirror_disagreements(member, mirror, registry, owners):
    wrong = []
    if member.changes is not None:
        held = {session_of(item): int(item[2] or 0) for item in mirror["sessions"]}
        if len(held) != len(mirror["sessions"]):
            wrong.append(f"the mirror of {member.name} holds a session twice")
        expected = {session: lease for session, lease in registry.items() if matches(session, lease, member.mirror_filter)}
        if held != expected:
            wrong.append(f"the mirror of {member.name} differs: {difference(held, expected)}")
        for item in mirror["sessions"]:
            owner = owners.get(int(item[2] or 0))
            if int(item[2] or 0) and item[3] != owner:
                wrong.append(f"the mirror of {member.name} has {session_of(item)} at {item[3]} instead of {owner}")
        if not mirror["synced"]:
            wrong.append(f"the mirror of {member.name} is not synced")
        if mirror["staleness_ms"]:
            wrong.append(f"the mirror of {member.name} is {mirror['staleness_ms']} ms stale")
        if member.changes.difference:
            wrong.append(f"the changes of {member.name} lead elsewhere: {member.changes.difference}")
    if member.stream is not None and (not member.stream.synced or member.stream.held != registry):
        wrong.append(f"the watch of {member.name} differs: {difference(member.stream.held, registry)}")
    return wrong


def difference(held, expected):
    texts = [f"{session} under {held.get(session, 'no lease: missing')} instead of {expected.get(session, 'none: should be missing')}"
             for session in held.keys() | expected.keys() if held.get(session) != expected.get(session)]
    return "; ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")


async def settle(world, limit=SETTLE):
    """Waits until all agree, and still do a moment later. If they do not in time, each disagreement is a fault."""
    end = world.now() + limit
    agreed = False
    while True:
        try:
            wrong = await disagreements(world)
        except Exception as error:  # the registry may still be coming back
            wrong = ["".join(traceback.format_exception(error))]
        if not wrong and agreed:
            world.note("all agree")
            return
        if world.faults:
            return
        if wrong and world.now() > end:
            for text in wrong:
                world.fault(text)
            return
        agreed = not wrong
        await asyncio.sleep(STABLE if agreed else 0.2)
