"""A lease that is kept alive in the background, and replaced if it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

import grpc
import grpc.aio

from ._backoff import Backoff
from ._channel import call
from ._proto import lease_service_pb2 as pb
from ._signal import Signal
from .client import duration, seconds
from .errors import SessiondError

if TYPE_CHECKING:
    from .client import Client

# The range that the protocol allows. An answer outside it must not cause a busy loop.
_SHORTEST_TTL, _LONGEST_TTL = 1.0, 86_400.0
# Keep-alives per ttl. Two of them may fail before the lease is lost.
_KEEP_ALIVES_PER_TTL = 3
# The earliest a keep-alive is made, as a part of its interval. The random rest spreads gateways that started together.
_EARLIEST_KEEP_ALIVE = 0.8
# While the lease can still be saved, tries are at most this part of the ttl apart.
_RETRIES_PER_TTL = 10

_logger = logging.getLogger("sessiond")


@dataclass(frozen=True)
class Lost:
    """The lease is gone, or may be gone because the registry could not be reached for a whole ttl.

    One of the other events follows as soon as the registry answers.
    """


@dataclass(frozen=True)
class Recovered:
    """The registry answers again, and the lease and its sessions have survived."""


@dataclass(frozen=True)
class Regranted:
    """A new lease has replaced the one that is gone, and no session is under it yet.

    Register all sessions again with `Client.batch_take` and `only_from=0`.
    """

    lease_id: int


LeaseEvent: TypeAlias = Lost | Recovered | Regranted


class Lease:
    """A lease that a background task keeps alive, created by `Client.lease`.

    The task makes a keep-alive three times per ttl, over its own connection, and retries failed ones at least ten
    times per ttl. If the lease is gone (it expired, someone revoked it, or the registry lost it), the task grants a new
    one. A process that ends without calling `revoke` leaves a lease that expires after its ttl.
    """

    def __init__(self, client: Client, owner: str, ttl: float) -> None:
        self._client = client
        self._target = client._target
        self._channel = self._target.connect()
        self._owner = owner
        self._ttl = ttl
        self._id = 0
        self._granted = 0
        self._is_held = False
        self._is_revoked = False
        # Whether the registry has reported that the lease is gone.
        self._is_gone = True
        # The lease certainly lives until then. Counted from before the call, because the registry counts from a moment
        # during it.
        self._expires = 0.0
        self._backoff = Backoff()
        self._changed = Signal()
        self._check = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def granted(cls, client: Client, owner: str, ttl: float) -> Lease:
        """Grants the first lease and keeps it alive."""
        before = asyncio.get_running_loop().time()
        grant = await client.grant_lease(ttl, owner)
        self = cls(client, owner, ttl)
        self._hold(grant.lease_id, grant.ttl, before)
        self._granted = grant.lease_id
        self._task = asyncio.create_task(self._keep(), name="sessiond lease")
        return self

    @property
    def id(self) -> int:
        """The lease under which to create sessions. While no lease is held, this is the last one."""
        return self._id

    @property
    def is_held(self) -> bool:
        """Whether the lease is held, as far as the client knows: False from `Lost` until the next event."""
        return self._is_held

    async def events(self) -> AsyncIterator[LeaseEvent]:
        """Iterates over the events since the lease was first granted, until it is revoked.

        Events that are out of date when you read them are left out. A `Regranted` is left out only in favour of a newer
        one.
        """
        reported_id, reported_held = self._granted, True
        while not self._is_revoked:
            if not self._is_held:
                # Keep the id that was reported: a lease granted and lost in between must come as `Regranted` if it
                # recovers.
                was_held, reported_held = reported_held, False
                if was_held:
                    yield Lost()
                    continue
            elif self._id != reported_id:
                reported_id, reported_held = self._id, True
                yield Regranted(reported_id)
                continue
            elif not reported_held:
                reported_held = True
                yield Recovered()
                continue
            await self._changed.wait()

    def check(self) -> None:
        """Makes a keep-alive now. Call this if a create failed because the lease is gone."""
        self._check.set()

    async def revoke(self, *, linger: float = 0) -> int:
        """Revokes the lease after `linger` seconds, and returns how many sessions were destroyed with it.

        Ends the background task. If the call fails, the lease expires after its ttl.
        """
        self._is_revoked = True
        self._changed.notify()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._channel.close()
        return await self._client.revoke_lease(self._id, linger=linger)

    async def __aenter__(self) -> Lease:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_revoked:
            await self.revoke()

    async def _keep(self) -> None:
        wait = self._interval()
        while True:
            await self._wait(wait)
            try:
                await self._try_once()
            except SessiondError as error:
                wait = await self._after_failure(error)
            else:
                self._backoff.reset()
                wait = self._interval()

    async def _wait(self, wait: float) -> None:
        """Waits until the next try is due, or `check` is called. Notes when the ttl has passed meanwhile."""
        loop = asyncio.get_running_loop()
        due = loop.time() + wait
        while (now := loop.time()) < due:
            if self._expires <= now:
                self._lose("the registry was unreachable for the ttl")
            until = due if self._expires <= now else min(due, self._expires)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._check.wait(), until - now)
                break
        self._check.clear()
        if self._expires <= loop.time():
            self._lose("the registry was unreachable for the ttl")

    async def _try_once(self) -> None:
        """Keeps the lease alive, or grants a new one if it is gone."""
        loop = asyncio.get_running_loop()
        if not self._is_gone:
            before = loop.time()
            keep = pb.KeepLeaseAliveRequest(lease_id=self._id)
            try:
                kept = await call(
                    self._target,
                    self._channel,
                    "LeaseService/KeepLeaseAlive",
                    keep,
                    pb.KeepLeaseAliveResponse,
                    timeout=self._try_timeout(),
                )
            except SessiondError as error:
                if not error.is_lease_gone:
                    raise
                self._is_gone = True
                self._lose("the registry reports that it is gone")
            else:
                self._hold(self._id, seconds(kept.ttl), before)
                return
        before = loop.time()
        grant = pb.GrantLeaseRequest(ttl=duration(self._ttl), owner=self._owner)
        granted = await call(
            self._target,
            self._channel,
            "LeaseService/GrantLease",
            grant,
            pb.GrantLeaseResponse,
            timeout=self._try_timeout(),
        )
        self._hold(granted.lease_id, seconds(granted.ttl), before)

    def _try_timeout(self) -> float:
        longest = self._ttl / _KEEP_ALIVES_PER_TTL
        if not self._is_held:
            return longest
        # Half of the remaining time leaves room for another try. At the end use all of it, so that `Lost` is not late.
        left = max(0.0, self._expires - asyncio.get_running_loop().time())
        return min(max(left / 2, self._ttl / _RETRIES_PER_TTL), longest, left)

    async def _after_failure(self, error: SessiondError) -> float:
        _logger.debug("cannot keep lease %d alive, retrying: %s", self._id, error)
        if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            # The connection may be dead without either end having noticed.
            dead, self._channel = self._channel, self._target.connect()
            await dead.close()
        # Once the lease is lost there is no hurry: call an unreachable registry no more often than a healthy one.
        tries_per_ttl = _RETRIES_PER_TTL if self._is_held else _KEEP_ALIVES_PER_TTL
        return self._backoff.after_failure_within(self._ttl / tries_per_ttl, error.retry_after)

    def _interval(self) -> float:
        part = _EARLIEST_KEEP_ALIVE + (1 - _EARLIEST_KEEP_ALIVE) * random.random()
        return self._ttl / _KEEP_ALIVES_PER_TTL * part

    def _hold(self, lease_id: int, ttl: float, before: float) -> None:
        self._ttl = min(max(ttl, _SHORTEST_TTL), _LONGEST_TTL)
        self._expires = before + self._ttl
        self._is_gone = False
        if self._id not in (0, lease_id):
            _logger.info("granted lease %d to replace lease %d", lease_id, self._id)
        elif self._id and not self._is_held:
            _logger.info("lease %d has survived the outage", lease_id)
        self._id, self._is_held = lease_id, True
        self._changed.notify()

    def _lose(self, why: str) -> None:
        if self._is_held:
            _logger.warning("lost lease %d: %s", self._id, why)
            self._is_held = False
            self._changed.notify()
