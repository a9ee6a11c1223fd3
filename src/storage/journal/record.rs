//! What a record is, and its bytes on disk.
//!
//! A record is a tag, then the session's two numbers and, where the tag says so, the lease's, as little-endian integers
//! of eight bytes. A record about a lease alone has no bytes but its tag: the lease's row says the rest. It has its tag
//! so that the records of a batch can be numbered.

use std::time::Duration;

use crate::session::{AuthKeyId, DestroyReason, LeaseId, SessionChange, SessionEvent, SessionId, SessionKey};

const CREATED: u8 = 1;
const CREATED_UNDER_LEASE: u8 = 2;
const MOVED: u8 = 3;
const DESTROYED: u8 = 4;
const DESTROYED_LEASE_EXPIRED: u8 = 5;
const DESTROYED_LEASE_REVOKED: u8 = 6;
const LEASE: u8 = 7;

/// Something that must outlive the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) enum Record<'a> {
    Created {
        session: SessionKey,
        lease: Option<LeaseId>,
    },
    Destroyed {
        session: SessionKey,
        reason: DestroyReason,
    },
    /// A session that existed came under another lease, which no observer hears of.
    Moved {
        session: SessionKey,
        lease: LeaseId,
    },
    LeaseGranted {
        lease: LeaseId,
        ttl: Duration,
        owner: &'a str,
    },
    /// Nothing comes under the lease any more; the sessions under it are being destroyed.
    LeaseEnded {
        lease: LeaseId,
        reason: DestroyReason,
    },
    /// No session is under the lease any more.
    LeaseSwept {
        lease: LeaseId,
    },
}

/// What is kept of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::storage) enum LeaseRow {
    Live {
        ttl: Duration,
        owner: String,
    },
    /// Its sessions are to be destroyed for that reason.
    Ended(DestroyReason),
}

impl Record<'_> {
    /// Whether it is an entry of the log.
    pub(super) fn is_event(&self) -> bool {
        matches!(self, Self::Created { .. } | Self::Destroyed { .. })
    }

    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        let (tag, session, lease) = match *self {
            Self::Created { session, lease: None } => (CREATED, session, None),
            Self::Created { session, lease } => (CREATED_UNDER_LEASE, session, lease),
            Self::Moved { session, lease } => (MOVED, session, Some(lease)),
            Self::Destroyed { session, reason } => {
                let tag = match reason {
                    DestroyReason::Requested => DESTROYED,
                    DestroyReason::LeaseExpired => DESTROYED_LEASE_EXPIRED,
                    DestroyReason::LeaseRevoked => DESTROYED_LEASE_REVOKED,
                };
                (tag, session, None)
            }
            Self::LeaseGranted { .. } | Self::LeaseEnded { .. } | Self::LeaseSwept { .. } => {
                bytes.push(LEASE);
                return;
            }
        };
        let mut record = [0; 25];
        record[0] = tag;
        record[1..17].copy_from_slice(&session_bytes(&session));
        let len = match lease {
            Some(lease) => {
                record[17..].copy_from_slice(&lease.number().to_le_bytes());
                25
            }
            None => 17,
        };
        bytes.extend_from_slice(&record[..len]);
    }

    /// The lease whose row changes, and to what; none where it goes.
    pub(super) fn lease_row(&self) -> Option<(u64, Option<LeaseRow>)> {
        match *self {
            Self::LeaseGranted { lease, ttl, owner } => {
                Some((lease.number(), Some(LeaseRow::Live { ttl, owner: owner.to_owned() })))
            }
            Self::LeaseEnded { lease, reason } => Some((lease.number(), Some(LeaseRow::Ended(reason)))),
            Self::LeaseSwept { lease } => Some((lease.number(), None)),
            _ => None,
        }
    }
}

/// The two numbers of a session as they are on disk.
pub(in crate::storage) fn session_bytes(session: &SessionKey) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&session.auth_key_id.0.to_le_bytes());
    bytes[8..].copy_from_slice(&session.session_id.0.to_le_bytes());
    bytes
}

/// Reads what was written; each read is none when there is not enough.
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

/// A record as it is read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) enum ReadRecord {
    Event(SessionEvent, Option<LeaseId>),
    Moved(SessionKey, LeaseId),
    /// A lease changed: its row says how.
    Lease,
}

/// The records of a batch's bytes. Ends with [`Malformed`] when they are none.
pub(in crate::storage) struct Records<'a>(Reader<'a>);

/// The bytes are no records.
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
        let event = |change| SessionEvent { session, change };
        let destroyed = |reason| Some(ReadRecord::Event(event(SessionChange::Destroyed(reason)), None));
        match tag {
            CREATED => Some(ReadRecord::Event(event(SessionChange::Created), None)),
            CREATED_UNDER_LEASE => Some(ReadRecord::Event(event(SessionChange::Created), Some(reader.lease()?))),
            MOVED => Some(ReadRecord::Moved(session, reader.lease()?)),
            DESTROYED => destroyed(DestroyReason::Requested),
            DESTROYED_LEASE_EXPIRED => destroyed(DestroyReason::LeaseExpired),
            DESTROYED_LEASE_REVOKED => destroyed(DestroyReason::LeaseRevoked),
            _ => None,
        }
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
    fn what_is_written_is_read_back_and_what_is_cut_is_not() {
        let session = SessionKey::new(-7, i64::MAX);
        let lease = LeaseId::from_number(u64::MAX).unwrap();
        let destroyed = |reason| Record::Destroyed { session, reason };
        let event = |change| SessionEvent { session, change };
        let read_destroyed = |reason| ReadRecord::Event(event(SessionChange::Destroyed(reason)), None);
        let pairs = [
            (Record::Created { session, lease: None }, ReadRecord::Event(event(SessionChange::Created), None)),
            (
                Record::Created { session, lease: Some(lease) },
                ReadRecord::Event(event(SessionChange::Created), Some(lease)),
            ),
            (Record::Moved { session, lease }, ReadRecord::Moved(session, lease)),
            (Record::LeaseSwept { lease }, ReadRecord::Lease),
            (destroyed(DestroyReason::Requested), read_destroyed(DestroyReason::Requested)),
            (destroyed(DestroyReason::LeaseExpired), read_destroyed(DestroyReason::LeaseExpired)),
            (destroyed(DestroyReason::LeaseRevoked), read_destroyed(DestroyReason::LeaseRevoked)),
        ];
        let mut bytes = Vec::new();
        for (written, read) in pairs {
            let start = bytes.len();
            written.write(&mut bytes);
            assert!(Records::new(&bytes[start..]).map(Result::unwrap).eq([read]));
            for end in start + 1..bytes.len() {
                assert!(Records::new(&bytes[start..end]).all(|record| record.is_err()), "{written:?}");
            }
        }
        assert!(Records::new(&bytes).map(Result::unwrap).eq(pairs.map(|(_, read)| read)));
        assert!(Records::new(&[0; 17]).all(|record| record.is_err()));
    }
}
