//! The records of the journal, and their encoding on disk.
//!
//! A record starts with a tag, followed by the session's two numbers and up to two leases, as little-endian integers of
//! eight bytes. Flags in the tag say which leases follow: the session's lease after the change (for a destroy, the
//! lease that it was under), and the lease before a move. A record about a lease consists of the tag only, because the
//! lease has a row of its own. It exists so that the records of a batch can be counted.

use std::time::Duration;

use super::WallTime;
use crate::session::{AuthKeyId, DestroyReason, LeaseId, SessionChange, SessionEvent, SessionId, SessionKey};

const CREATED: u8 = 1;
const MOVED: u8 = 2;
const DESTROYED: u8 = 3;
const DESTROYED_LEASE_EXPIRED: u8 = 4;
const DESTROYED_LEASE_REVOKED: u8 = 5;
const LEASE: u8 = 6;
const RELEASED: u8 = 7;

/// Flag of a tag: the session's lease follows.
const UNDER_LEASE: u8 = 0x10;
/// Flag of a tag: the lease before a move follows.
const FROM_LEASE: u8 = 0x20;

/// Something that must outlive the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) enum Record<'a> {
    /// A log entry.
    Event(SessionEvent),
    LeaseGranted {
        lease: LeaseId,
        ttl: Duration,
        owner: &'a str,
    },
    /// No session can come under the lease any more, and it ends later.
    LeaseLingers {
        lease: LeaseId,
        ttl: Duration,
        owner: &'a str,
        lingers_until: WallTime,
    },
    /// No session can come under the lease any more. The sessions under it are being destroyed.
    LeaseEnded {
        lease: LeaseId,
        reason: DestroyReason,
    },
    /// No session is under the lease any more.
    LeaseSwept {
        lease: LeaseId,
    },
}

/// What is stored of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::storage) enum LeaseRow {
    Live {
        ttl: Duration,
        owner: String,
        lingers_until: Option<WallTime>,
    },
    /// The lease has ended. Its sessions must be destroyed for that reason.
    Ended(DestroyReason),
}

impl Record<'_> {
    /// Returns whether this is a log entry.
    pub(super) fn is_event(&self) -> bool {
        matches!(self, Self::Event(_))
    }

    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        let Self::Event(SessionEvent { session, change, lease }) = *self else {
            bytes.push(LEASE);
            return;
        };
        let (tag, previous) = match change {
            SessionChange::Created => (CREATED, None),
            SessionChange::Moved { previous } => (MOVED, previous),
            SessionChange::Destroyed(DestroyReason::Requested) => (DESTROYED, None),
            SessionChange::Destroyed(DestroyReason::Released) => (RELEASED, None),
            SessionChange::Destroyed(DestroyReason::LeaseExpired) => (DESTROYED_LEASE_EXPIRED, None),
            SessionChange::Destroyed(DestroyReason::LeaseRevoked) => (DESTROYED_LEASE_REVOKED, None),
        };
        let mut record = [0; 33];
        record[0] = tag;
        record[1..17].copy_from_slice(&session_bytes(&session));
        let mut len = 17;
        for (lease, flag) in [(lease, UNDER_LEASE), (previous, FROM_LEASE)] {
            if let Some(lease) = lease {
                record[0] |= flag;
                record[len..len + 8].copy_from_slice(&lease.number().to_le_bytes());
                len += 8;
            }
        }
        bytes.extend_from_slice(&record[..len]);
    }

    /// Returns the lease whose row changes, and its new row. The row is `None` if it is to be removed.
    pub(super) fn lease_row(&self) -> Option<(u64, Option<LeaseRow>)> {
        match *self {
            Self::LeaseGranted { lease, ttl, owner } => {
                let row = LeaseRow::Live { ttl, owner: owner.to_owned(), lingers_until: None };
                Some((lease.number(), Some(row)))
            }
            Self::LeaseLingers { lease, ttl, owner, lingers_until } => {
                let row = LeaseRow::Live { ttl, owner: owner.to_owned(), lingers_until: Some(lingers_until) };
                Some((lease.number(), Some(row)))
            }
            Self::LeaseEnded { lease, reason } => Some((lease.number(), Some(LeaseRow::Ended(reason)))),
            Self::LeaseSwept { lease } => Some((lease.number(), None)),
            _ => None,
        }
    }
}

/// Encodes the two numbers of a session.
pub(in crate::storage) fn session_bytes(session: &SessionKey) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&session.auth_key_id.0.to_le_bytes());
    bytes[8..].copy_from_slice(&session.session_id.0.to_le_bytes());
    bytes
}

/// Decodes what was written. Each read returns `None` if too few bytes remain.
pub(in crate::storage) struct Reader<'a>(pub(in crate::storage) &'a [u8]);

impl<'a> Reader<'a> {
    pub(in crate::storage) fn u64(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    pub(in crate::storage) fn session(&mut self) -> Option<SessionKey> {
        let (auth_key_id, session_id) = (self.u64()?.cast_signed(), self.u64()?.cast_signed());
        Some(SessionKey { auth_key_id: AuthKeyId(auth_key_id), session_id: SessionId(session_id) })
    }

    fn lease(&mut self) -> Option<LeaseId> {
        LeaseId::from_number(self.u64()?)
    }

    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }
}

/// A decoded record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) enum ReadRecord {
    Event(SessionEvent),
    /// A lease changed. Its row has the details.
    Lease,
}

/// Decodes the records of a batch. Ends with [`Malformed`] at bytes that are not a record.
pub(in crate::storage) struct Records<'a>(Reader<'a>);

/// The bytes are not valid records.
#[derive(Debug, thiserror::Error)]
#[error("a batch of the log is malformed")]
pub(in crate::storage) struct Malformed;

impl<'a> Records<'a> {
    pub(in crate::storage) fn new(bytes: &'a [u8]) -> Self {
        Self(Reader(bytes))
    }

    fn read(&mut self) -> Option<ReadRecord> {
        let reader = &mut self.0;
        let tag = reader.byte()?;
        if tag == LEASE {
            return Some(ReadRecord::Lease);
        }
        let session = reader.session()?;
        let mut lease = |flag| if tag & flag == 0 { Some(None) } else { reader.lease().map(Some) };
        let (lease, previous) = (lease(UNDER_LEASE)?, lease(FROM_LEASE)?);
        let change = match tag & !(UNDER_LEASE | FROM_LEASE) {
            CREATED => SessionChange::Created,
            DESTROYED => SessionChange::Destroyed(DestroyReason::Requested),
            RELEASED => SessionChange::Destroyed(DestroyReason::Released),
            DESTROYED_LEASE_EXPIRED => SessionChange::Destroyed(DestroyReason::LeaseExpired),
            DESTROYED_LEASE_REVOKED => SessionChange::Destroyed(DestroyReason::LeaseRevoked),
            MOVED if lease.is_some() => SessionChange::Moved { previous },
            _ => return None,
        };
        Some(ReadRecord::Event(SessionEvent { session, change, lease }))
    }
}

impl Iterator for Records<'_> {
    type Item = Result<ReadRecord, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.0.is_empty() {
            return None;
        }
        let record = self.read().ok_or(Malformed);
        if record.is_err() {
            self.0.0 = &[];
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_records_are_read_back_and_truncated_ones_are_errors() {
        let session = SessionKey::new(-7, i64::MAX);
        let lease = LeaseId::from_number(u64::MAX).unwrap();
        let mut pairs = vec![(Record::LeaseSwept { lease }, ReadRecord::Lease)];
        for other in [None, LeaseId::from_number(1)] {
            let mut events = vec![SessionEvent::created(session, other), SessionEvent::moved(session, lease, other)];
            for reason in [
                DestroyReason::Requested,
                DestroyReason::Released,
                DestroyReason::LeaseExpired,
                DestroyReason::LeaseRevoked,
            ] {
                events.push(SessionEvent::destroyed(session, reason, other));
            }
            pairs.extend(events.into_iter().map(|event| (Record::Event(event), ReadRecord::Event(event))));
        }
        let mut bytes = Vec::new();
        for &(written, read) in &pairs {
            let start = bytes.len();
            written.write(&mut bytes);
            assert!(Records::new(&bytes[start..]).map(Result::unwrap).eq([read]));
            for end in start + 1..bytes.len() {
                assert!(Records::new(&bytes[start..end]).all(|record| record.is_err()), "{written:?}");
            }
        }
        assert!(Records::new(&bytes).map(Result::unwrap).eq(pairs.into_iter().map(|(_, read)| read)));
        assert!(Records::new(&[0; 17]).all(|record| record.is_err()));
    }
}
