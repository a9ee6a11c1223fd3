//! The tables of the database.

use std::num::NonZeroU64;

use redb::{Table, TableDefinition, WriteTransaction};
use sessiond::session::{DestroyReason, LeaseId, SessionChange, SessionEvent, SessionKey};

use super::BUCKETS;

/// The bucket, the auth key id and the session id.
pub(super) type SessionRow = (u32, i64, i64);
/// The auth key id, the session id, the kind of change, the lease after it and the lease before it.
pub(super) type EventRow = (i64, i64, u8, u64, u64);
/// The ttl in milliseconds, the owner, the end of the linger in milliseconds since 1970 (0 if the lease does not
/// linger), and the state: 0 live, 1 expired, 2 revoked. An ended lease keeps its row until its sessions are destroyed.
pub(super) type LeaseRow<'a> = (u64, &'a str, u64, u8);

/// The lease that each session is under, 0 for none.
const SESSIONS: TableDefinition<'_, SessionRow, u64> = TableDefinition::new("sessions");
/// The sessions under each lease.
const UNDER: TableDefinition<'_, (u64, i64, i64), ()> = TableDefinition::new("under");
/// The changes by their positions.
const LOG: TableDefinition<'_, u64, EventRow> = TableDefinition::new("log");
/// The marks, each by the first position that has it. A mark holds up to the position of the next one.
const MARKS: TableDefinition<'_, u64, u64> = TableDefinition::new("marks");
const LEASES: TableDefinition<'_, u64, LeaseRow<'static>> = TableDefinition::new("leases");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

pub(super) struct Tables<'t> {
    pub(super) sessions: Table<'t, SessionRow, u64>,
    pub(super) under: Table<'t, (u64, i64, i64), ()>,
    pub(super) log: Table<'t, u64, EventRow>,
    pub(super) marks: Table<'t, u64, u64>,
    pub(super) leases: Table<'t, u64, LeaseRow<'static>>,
    pub(super) meta: Table<'t, &'static str, u64>,
}

impl<'t> Tables<'t> {
    /// Opens the tables, and creates those that are missing.
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            sessions: transaction.open_table(SESSIONS)?,
            under: transaction.open_table(UNDER)?,
            log: transaction.open_table(LOG)?,
            marks: transaction.open_table(MARKS)?,
            leases: transaction.open_table(LEASES)?,
            meta: transaction.open_table(META)?,
        })
    }
}

/// Returns the bucket of a session. It must be the same in every process, because the bucket is part of a session's
/// row.
pub(super) fn bucket_of(session: &SessionKey) -> u32 {
    let mixed = (session.auth_key_id.0 as u64).rotate_left(32) ^ session.session_id.0 as u64;
    (mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32 % BUCKETS
}

pub(super) fn session_row(session: &SessionKey) -> SessionRow {
    (bucket_of(session), session.auth_key_id.0, session.session_id.0)
}

pub(super) fn lease_number(lease: Option<LeaseId>) -> u64 {
    lease.map_or(0, LeaseId::number)
}

pub(super) fn event_row(event: &SessionEvent) -> EventRow {
    let (kind, previous) = match event.change {
        SessionChange::Created => (0, None),
        SessionChange::Moved { previous } => (1, previous),
        SessionChange::Destroyed(DestroyReason::Released) => (3, None),
        SessionChange::Destroyed(DestroyReason::LeaseExpired) => (4, None),
        SessionChange::Destroyed(DestroyReason::LeaseRevoked) => (5, None),
        // Requested: this storage destroys sessions for no other reason.
        SessionChange::Destroyed(_) => (2, None),
    };
    let SessionKey { auth_key_id, session_id } = event.session;
    (auth_key_id.0, session_id.0, kind, lease_number(event.lease), lease_number(previous))
}

pub(super) fn event((auth_key, session, kind, lease, previous): EventRow) -> SessionEvent {
    let lease_id = |number| NonZeroU64::new(number).map(LeaseId);
    let change = match kind {
        0 => SessionChange::Created,
        1 => SessionChange::Moved { previous: lease_id(previous) },
        2 => SessionChange::Destroyed(DestroyReason::Requested),
        3 => SessionChange::Destroyed(DestroyReason::Released),
        4 => SessionChange::Destroyed(DestroyReason::LeaseExpired),
        _ => SessionChange::Destroyed(DestroyReason::LeaseRevoked),
    };
    SessionEvent::new(SessionKey::new(auth_key, session), change, lease_id(lease))
}
