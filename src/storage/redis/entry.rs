//! Entries of a partition's log. An entry holds the changes of one script: see `scripts/append.lua`.
//!
//! An entry's id consists of the position of its last change and the number of its changes. Its only field holds the
//! mark of the previous entry, the entry's own mark, and the changes. A change is a letter, the session and, if the
//! letter is uppercase, the session's lease. A move also has the previous lease, or zeros for none.

use redis::Value;

use super::{fault::Fault, registry::session_of};
use crate::{
    session::{DestroyReason, LeaseId, SessionChange, SessionEvent},
    storage::{LogPoint, Mark, Position},
};

const SESSION_BYTES: usize = 16;

/// A parsed entry.
#[derive(Debug)]
pub(super) struct Entry {
    /// The point of the log just before the entry.
    pub(super) after: LogPoint,
    /// The point of its last change.
    pub(super) end: LogPoint,
    pub(super) events: Vec<SessionEvent>,
}

impl Entry {
    /// Parses an entry that XRANGE or XREAD returned.
    pub(super) fn parse(entry: Value) -> Result<Self, Fault> {
        parse(entry).ok_or_else(|| Fault::malformed("a log entry was not written by sessiond"))
    }
}

fn parse(entry: Value) -> Option<Entry> {
    let Value::Array(entry) = entry else { return None };
    let mut parts = entry.into_iter();
    let (Some(Value::BulkString(id)), Some(Value::Array(fields))) = (parts.next(), parts.next()) else { return None };
    let [_, Value::BulkString(bytes)] = fields.as_slice() else { return None };
    let (end, count) = std::str::from_utf8(&id).ok()?.split_once('-')?;
    let (end, count): (u64, u64) = (end.parse().ok()?, count.parse().ok()?);
    let (before, rest) = bytes.split_first_chunk::<8>()?;
    let (own, changes) = rest.split_first_chunk::<8>()?;
    let events = events(changes)?;
    if events.len() as u64 != count {
        return None;
    }
    let point = |position, mark: &[u8; 8]| LogPoint { position: Position(position), mark: mark_of(mark) };
    Some(Entry { after: point(end.checked_sub(count)?, before), end: point(end, own), events })
}

fn events(mut bytes: &[u8]) -> Option<Vec<SessionEvent>> {
    let mut events = Vec::with_capacity(bytes.len() / (1 + SESSION_BYTES));
    while let Some((letter, rest)) = bytes.split_first() {
        let change = match letter.to_ascii_lowercase() {
            b'c' => SessionChange::Created,
            b'm' => SessionChange::Moved { previous: None },
            b'r' => SessionChange::Destroyed(DestroyReason::Requested),
            b'l' => SessionChange::Destroyed(DestroyReason::Released),
            b'x' => SessionChange::Destroyed(DestroyReason::LeaseExpired),
            b'v' => SessionChange::Destroyed(DestroyReason::LeaseRevoked),
            _ => return None,
        };
        let (session, rest) = rest.split_at_checked(SESSION_BYTES)?;
        let (lease, rest) = if letter.is_ascii_uppercase() { lease(rest)? } else { (None, rest) };
        let (change, rest) = match change {
            SessionChange::Moved { .. } => {
                let (previous, rest) = self::lease(rest)?;
                (SessionChange::Moved { previous }, rest)
            }
            change => (change, rest),
        };
        events.push(SessionEvent { session: session_of(session)?, change, lease });
        bytes = rest;
    }
    Some(events)
}

/// Parses a lease, where zeros mean none. Also returns the bytes after it.
fn lease(bytes: &[u8]) -> Option<(Option<LeaseId>, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((LeaseId::from_number(u64::from_be_bytes(*number)), rest))
}

/// Parses a mark.
pub(super) fn mark_of(bytes: &[u8; 8]) -> Mark {
    Mark(u64::from_be_bytes(*bytes))
}

/// Encodes a mark for a script.
pub(super) fn mark_bytes(mark: Mark) -> [u8; 8] {
    mark.0.to_be_bytes()
}

/// Parses a mark from a script's answer. Returns `None` if the script returned no mark.
pub(super) fn mark_in(bytes: &[u8]) -> Option<Mark> {
    bytes.try_into().ok().map(mark_of)
}
