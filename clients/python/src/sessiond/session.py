"""The key of a session, and the types of its changes."""

from __future__ import annotations

import enum
from typing import NamedTuple

_BITS = 64


def _signed(number: int) -> int:
    """Returns the signed number with the same 64 bits."""
    if -(1 << (_BITS - 1)) <= number < 1 << (_BITS - 1):
        return number
    if 0 <= number < 1 << _BITS:
        return number - (1 << _BITS)
    raise ValueError(f"{number} does not fit into 64 bits")


class _Pair(NamedTuple):
    auth_key_id: int
    session_id: int


class SessionKey(_Pair):
    """Identifies a session: the pair of `auth_key_id` and `session_id`, both signed 64-bit numbers.

    `auth_key_id` is 0 in a fleet without auth keys. Unsigned ids are accepted and become the signed ids with the same
    64 bits.
    """

    __slots__ = ()

    def __new__(cls, auth_key_id: int, session_id: int) -> SessionKey:
        """Raises `ValueError` if an id does not fit into 64 bits."""
        return tuple.__new__(cls, (_signed(auth_key_id), _signed(session_id)))


def key_of(auth_key_id: int, session_id: int) -> SessionKey:
    """Returns the key of ids that a message carried and that are therefore signed already."""
    return tuple.__new__(SessionKey, (auth_key_id, session_id))


class EventType(enum.IntEnum):
    """What happened to a session."""

    CREATED = 1
    DESTROYED = 2
    MOVED = 3
    """The session moved to another lease. Only watches with placements report this."""


class DestroyReason(enum.IntEnum):
    """Why a session was destroyed."""

    UNSPECIFIED = 0
    """It was not destroyed, or while the client could not follow the registry."""
    REQUESTED = 1
    """A call destroyed it. Reasons that only a newer server knows count as this one."""
    LEASE_EXPIRED = 2
    """Its lease was not kept alive."""
    LEASE_REVOKED = 3
    """Its lease was revoked."""
    RELEASED = 4
    """Its own gateway destroyed it. Only watches with placements report this; others report `REQUESTED`."""

    @classmethod
    def _missing_(cls, value: object) -> DestroyReason:
        return cls.REQUESTED


class Place(NamedTuple):
    """A position in one partition of the registry's change log.

    Within one partition of one registry, positions only grow.
    """

    partition: int
    position: int
