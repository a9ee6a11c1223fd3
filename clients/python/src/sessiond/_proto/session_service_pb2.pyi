from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionEventType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_EVENT_TYPE_UNSPECIFIED: _ClassVar[SessionEventType]
    SESSION_EVENT_TYPE_CREATED: _ClassVar[SessionEventType]
    SESSION_EVENT_TYPE_DESTROYED: _ClassVar[SessionEventType]
    SESSION_EVENT_TYPE_MOVED: _ClassVar[SessionEventType]

class DestroyReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DESTROY_REASON_UNSPECIFIED: _ClassVar[DestroyReason]
    DESTROY_REASON_REQUESTED: _ClassVar[DestroyReason]
    DESTROY_REASON_LEASE_EXPIRED: _ClassVar[DestroyReason]
    DESTROY_REASON_LEASE_REVOKED: _ClassVar[DestroyReason]
    DESTROY_REASON_RELEASED: _ClassVar[DestroyReason]

class ResetReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESET_REASON_UNSPECIFIED: _ClassVar[ResetReason]
    RESET_REASON_CURSOR_EXPIRED: _ClassVar[ResetReason]
    RESET_REASON_CURSOR_FOREIGN: _ClassVar[ResetReason]
    RESET_REASON_LAGGED: _ClassVar[ResetReason]
    RESET_REASON_STORAGE_RESTARTED: _ClassVar[ResetReason]
SESSION_EVENT_TYPE_UNSPECIFIED: SessionEventType
SESSION_EVENT_TYPE_CREATED: SessionEventType
SESSION_EVENT_TYPE_DESTROYED: SessionEventType
SESSION_EVENT_TYPE_MOVED: SessionEventType
DESTROY_REASON_UNSPECIFIED: DestroyReason
DESTROY_REASON_REQUESTED: DestroyReason
DESTROY_REASON_LEASE_EXPIRED: DestroyReason
DESTROY_REASON_LEASE_REVOKED: DestroyReason
DESTROY_REASON_RELEASED: DestroyReason
RESET_REASON_UNSPECIFIED: ResetReason
RESET_REASON_CURSOR_EXPIRED: ResetReason
RESET_REASON_CURSOR_FOREIGN: ResetReason
RESET_REASON_LAGGED: ResetReason
RESET_REASON_STORAGE_RESTARTED: ResetReason

class HasSessionRequest(_message.Message):
    __slots__ = ("session_id", "auth_key_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    AUTH_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    auth_key_id: int
    def __init__(self, session_id: _Optional[int] = ..., auth_key_id: _Optional[int] = ...) -> None: ...

class HasSessionResponse(_message.Message):
    __slots__ = ("exists",)
    EXISTS_FIELD_NUMBER: _ClassVar[int]
    exists: bool
    def __init__(self, exists: bool = ...) -> None: ...

class LookupSessionRequest(_message.Message):
    __slots__ = ("session_id", "auth_key_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    AUTH_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    auth_key_id: int
    def __init__(self, session_id: _Optional[int] = ..., auth_key_id: _Optional[int] = ...) -> None: ...

class LookupSessionResponse(_message.Message):
    __slots__ = ("exists", "lease")
    EXISTS_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    exists: bool
    lease: Lease
    def __init__(self, exists: bool = ..., lease: _Optional[_Union[Lease, _Mapping]] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("lease_id", "owner")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    lease_id: int
    owner: str
    def __init__(self, lease_id: _Optional[int] = ..., owner: _Optional[str] = ...) -> None: ...

class Place(_message.Message):
    __slots__ = ("partition", "position")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    partition: int
    position: int
    def __init__(self, partition: _Optional[int] = ..., position: _Optional[int] = ...) -> None: ...

class CreateSessionRequest(_message.Message):
    __slots__ = ("session_id", "auth_key_id", "lease_id", "only_from_lease_id", "with_place")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    AUTH_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    ONLY_FROM_LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    WITH_PLACE_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    auth_key_id: int
    lease_id: int
    only_from_lease_id: int
    with_place: bool
    def __init__(self, session_id: _Optional[int] = ..., auth_key_id: _Optional[int] = ..., lease_id: _Optional[int] = ..., only_from_lease_id: _Optional[int] = ..., with_place: bool = ...) -> None: ...

class CreateSessionResponse(_message.Message):
    __slots__ = ("created", "lease", "place")
    CREATED_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    created: bool
    lease: Lease
    place: Place
    def __init__(self, created: bool = ..., lease: _Optional[_Union[Lease, _Mapping]] = ..., place: _Optional[_Union[Place, _Mapping]] = ...) -> None: ...

class DestroySessionRequest(_message.Message):
    __slots__ = ("session_id", "auth_key_id", "lease_id", "with_place")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    AUTH_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    WITH_PLACE_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    auth_key_id: int
    lease_id: int
    with_place: bool
    def __init__(self, session_id: _Optional[int] = ..., auth_key_id: _Optional[int] = ..., lease_id: _Optional[int] = ..., with_place: bool = ...) -> None: ...

class DestroySessionResponse(_message.Message):
    __slots__ = ("destroyed", "place")
    DESTROYED_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    destroyed: bool
    place: Place
    def __init__(self, destroyed: bool = ..., place: _Optional[_Union[Place, _Mapping]] = ...) -> None: ...

class BatchHasSessionsRequest(_message.Message):
    __slots__ = ("session_ids", "auth_key_ids")
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    AUTH_KEY_IDS_FIELD_NUMBER: _ClassVar[int]
    session_ids: _containers.RepeatedScalarFieldContainer[int]
    auth_key_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session_ids: _Optional[_Iterable[int]] = ..., auth_key_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class BatchHasSessionsResponse(_message.Message):
    __slots__ = ("exists",)
    EXISTS_FIELD_NUMBER: _ClassVar[int]
    exists: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, exists: _Optional[_Iterable[bool]] = ...) -> None: ...

class BatchLookupSessionsRequest(_message.Message):
    __slots__ = ("session_ids", "auth_key_ids")
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    AUTH_KEY_IDS_FIELD_NUMBER: _ClassVar[int]
    session_ids: _containers.RepeatedScalarFieldContainer[int]
    auth_key_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session_ids: _Optional[_Iterable[int]] = ..., auth_key_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class BatchLookupSessionsResponse(_message.Message):
    __slots__ = ("exists", "lease_ids")
    EXISTS_FIELD_NUMBER: _ClassVar[int]
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    exists: _containers.RepeatedScalarFieldContainer[bool]
    lease_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, exists: _Optional[_Iterable[bool]] = ..., lease_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class BatchCreateSessionsRequest(_message.Message):
    __slots__ = ("session_ids", "auth_key_ids", "lease_id", "only_from_lease_id", "with_place")
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    AUTH_KEY_IDS_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    ONLY_FROM_LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    WITH_PLACE_FIELD_NUMBER: _ClassVar[int]
    session_ids: _containers.RepeatedScalarFieldContainer[int]
    auth_key_ids: _containers.RepeatedScalarFieldContainer[int]
    lease_id: int
    only_from_lease_id: int
    with_place: bool
    def __init__(self, session_ids: _Optional[_Iterable[int]] = ..., auth_key_ids: _Optional[_Iterable[int]] = ..., lease_id: _Optional[int] = ..., only_from_lease_id: _Optional[int] = ..., with_place: bool = ...) -> None: ...

class BatchCreateSessionsResponse(_message.Message):
    __slots__ = ("created", "lease_ids", "places")
    CREATED_FIELD_NUMBER: _ClassVar[int]
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    created: _containers.RepeatedScalarFieldContainer[bool]
    lease_ids: _containers.RepeatedScalarFieldContainer[int]
    places: _containers.RepeatedCompositeFieldContainer[Place]
    def __init__(self, created: _Optional[_Iterable[bool]] = ..., lease_ids: _Optional[_Iterable[int]] = ..., places: _Optional[_Iterable[_Union[Place, _Mapping]]] = ...) -> None: ...

class BatchDestroySessionsRequest(_message.Message):
    __slots__ = ("session_ids", "auth_key_ids", "lease_id", "with_place")
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    AUTH_KEY_IDS_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    WITH_PLACE_FIELD_NUMBER: _ClassVar[int]
    session_ids: _containers.RepeatedScalarFieldContainer[int]
    auth_key_ids: _containers.RepeatedScalarFieldContainer[int]
    lease_id: int
    with_place: bool
    def __init__(self, session_ids: _Optional[_Iterable[int]] = ..., auth_key_ids: _Optional[_Iterable[int]] = ..., lease_id: _Optional[int] = ..., with_place: bool = ...) -> None: ...

class BatchDestroySessionsResponse(_message.Message):
    __slots__ = ("destroyed", "places")
    DESTROYED_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    destroyed: _containers.RepeatedScalarFieldContainer[bool]
    places: _containers.RepeatedCompositeFieldContainer[Place]
    def __init__(self, destroyed: _Optional[_Iterable[bool]] = ..., places: _Optional[_Iterable[_Union[Place, _Mapping]]] = ...) -> None: ...

class SubscribeRequest(_message.Message):
    __slots__ = ("snapshot", "cursor", "session_ids", "auth_key_ids", "types", "heartbeat", "placements", "lease_ids")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    AUTH_KEY_IDS_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    PLACEMENTS_FIELD_NUMBER: _ClassVar[int]
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    snapshot: bool
    cursor: str
    session_ids: _containers.RepeatedScalarFieldContainer[int]
    auth_key_ids: _containers.RepeatedScalarFieldContainer[int]
    types: _containers.RepeatedScalarFieldContainer[SessionEventType]
    heartbeat: _duration_pb2.Duration
    placements: bool
    lease_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, snapshot: bool = ..., cursor: _Optional[str] = ..., session_ids: _Optional[_Iterable[int]] = ..., auth_key_ids: _Optional[_Iterable[int]] = ..., types: _Optional[_Iterable[_Union[SessionEventType, str]]] = ..., heartbeat: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., placements: bool = ..., lease_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SubscribeResponse(_message.Message):
    __slots__ = ("events", "subscribed", "snapshot", "synced", "heartbeat", "reset", "cursor")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIBED_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    SYNCED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    events: SessionEvents
    subscribed: Subscribed
    snapshot: Snapshot
    synced: Synced
    heartbeat: Heartbeat
    reset: Reset
    cursor: str
    def __init__(self, events: _Optional[_Union[SessionEvents, _Mapping]] = ..., subscribed: _Optional[_Union[Subscribed, _Mapping]] = ..., snapshot: _Optional[_Union[Snapshot, _Mapping]] = ..., synced: _Optional[_Union[Synced, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., reset: _Optional[_Union[Reset, _Mapping]] = ..., cursor: _Optional[str] = ...) -> None: ...

class Subscribed(_message.Message):
    __slots__ = ("registry_id", "heartbeat", "places")
    REGISTRY_ID_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    registry_id: str
    heartbeat: _duration_pb2.Duration
    places: _containers.RepeatedCompositeFieldContainer[Place]
    def __init__(self, registry_id: _Optional[str] = ..., heartbeat: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., places: _Optional[_Iterable[_Union[Place, _Mapping]]] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ...) -> None: ...

class Synced(_message.Message):
    __slots__ = ("session_count", "places")
    SESSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    session_count: int
    places: _containers.RepeatedCompositeFieldContainer[Place]
    def __init__(self, session_count: _Optional[int] = ..., places: _Optional[_Iterable[_Union[Place, _Mapping]]] = ...) -> None: ...

class SessionEvents(_message.Message):
    __slots__ = ("events", "place")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[SessionEvent]
    place: Place
    def __init__(self, events: _Optional[_Iterable[_Union[SessionEvent, _Mapping]]] = ..., place: _Optional[_Union[Place, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("places",)
    PLACES_FIELD_NUMBER: _ClassVar[int]
    places: _containers.RepeatedCompositeFieldContainer[Place]
    def __init__(self, places: _Optional[_Iterable[_Union[Place, _Mapping]]] = ...) -> None: ...

class Reset(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: ResetReason
    def __init__(self, reason: _Optional[_Union[ResetReason, str]] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("session_id", "auth_key_id", "lease_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    AUTH_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    auth_key_id: int
    lease_id: int
    def __init__(self, session_id: _Optional[int] = ..., auth_key_id: _Optional[int] = ..., lease_id: _Optional[int] = ...) -> None: ...

class SessionEvent(_message.Message):
    __slots__ = ("type", "session_id", "auth_key_id", "reason", "lease_id", "previous_lease_id")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    AUTH_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    type: SessionEventType
    session_id: int
    auth_key_id: int
    reason: DestroyReason
    lease_id: int
    previous_lease_id: int
    def __init__(self, type: _Optional[_Union[SessionEventType, str]] = ..., session_id: _Optional[int] = ..., auth_key_id: _Optional[int] = ..., reason: _Optional[_Union[DestroyReason, str]] = ..., lease_id: _Optional[int] = ..., previous_lease_id: _Optional[int] = ...) -> None: ...
