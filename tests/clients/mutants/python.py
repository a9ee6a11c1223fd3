"""The Python client, broken on purpose. Each function breaks one promise, and MUTANTS in suite.py says what notices it."""

import asyncio

from sessiond import client, gateway, lease, mirror, watch
from sessiond import _channel as channel


def takes_from_anyone():
    """Registers sessions with whatever lease they are under now as only_from."""
    take = client.Client.batch_take

    async def batch_take(self, sessions, lease_id, *, only_from=0, **options):
        sessions = list(sessions)
        holders = await self.batch_lookup(sessions)
        answers = [await take(self, [session], lease_id, only_from=holder or 0, **options) for session, holder in zip(sessions, holders)]
        return answers[0]._replace(lease_ids=[answer.lease_ids[0] for answer in answers])

    client.Client.batch_take = batch_take


def leaves_ghosts():
    """Does not end sessions that appear without a connection."""
    gateway.Gateway._hint_present = lambda self, session, lease_id: None


def destroys_under_any_lease():
    destroy = client.Client.batch_destroy
    client.Client.batch_destroy = lambda self, sessions, *, lease=0, **options: destroy(self, sessions, **options)


def never_closes():
    """Ignores that sessions leave its lease."""
    gateway.Gateway._hint_absent = lambda self, session, reason: None


def restores_nothing():
    """Does not register its sessions again under a new lease."""
    gateway.Gateway._is_to_restore = staticmethod(lambda entry, lease_id: False)


def closes_all_when_the_lease_is_lost():
    async def is_alive(self, lease_id):
        return True

    gateway.Gateway._is_alive = is_alive


def stops_without_linger():
    revoke = lease.Lease.revoke
    lease.Lease.revoke = lambda self, *, linger=0: revoke(self)


def first_close_ends_the_session():
    close = gateway.Connection.close

    def ends(self):
        close(self)
        task = asyncio.ensure_future(self._gateway._client.batch_destroy([self.session], lease=self._gateway.lease_id))
        task.add_done_callback(lambda done: done.exception())

    gateway.Connection.close = ends


def forgets_the_cursor():
    """After a break, starts with the next change."""
    open_ = watch.Watch._open

    def start_now(self):
        if self._cursor is not None:
            self._cursor = None
            self._snapshot = False
        return open_(self)

    watch.Watch._open = start_now


def keeps_the_old_token():
    token = channel.TokenFile.token
    channel.TokenFile.token = lambda self: self._token or token(self)


def ignores_moves():
    """The mirror keeps the lease that a session was created under."""
    apply = mirror.Mirror._apply_events

    async def apply_events(self, message):
        kept = [event for event in message.events if event.type != watch.pb.SESSION_EVENT_TYPE_MOVED]
        del message.events[:]
        message.events.extend(kept)
        await apply(self, message)

    mirror.Mirror._apply_events = apply_events


def reads_ahead():
    """The watch reads without waiting for its reader."""
    next_ = watch.Watch.__anext__

    async def anext_(self):
        if not hasattr(self, "_ahead"):
            self._ahead = asyncio.Queue()

            async def read():
                while True:
                    self._ahead.put_nowait(await next_(self))

            self._reading_ahead = asyncio.ensure_future(read())
        return await self._ahead.get()

    watch.Watch.__anext__ = anext_


def never_notices_silence():
    watch._SILENT_HEARTBEATS = 1_000_000
    for name, value in vars(channel).items():
        if isinstance(value, (list, tuple)) and any("keepalive" in str(option) for option in value):
            setattr(channel, name, type(value)(option for option in value if "keepalive" not in str(option)))
