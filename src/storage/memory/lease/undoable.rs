//! Ended leases whose end a crash may still undo.

use std::collections::{HashMap, VecDeque};

use super::Ended;
use crate::{session::LeaseId, storage::journal::Lsn};

/// The leases that ended last, in the order in which their ends were recorded.
#[derive(Default)]
pub(super) struct Undoable {
    ends: VecDeque<(Lsn, Ended)>,
    records: HashMap<LeaseId, Lsn>,
}

impl Undoable {
    /// Adds a lease whose end has the record `lsn`.
    pub(super) fn add(&mut self, lsn: Lsn, ended: Ended) {
        self.records.insert(ended.lease.id, lsn);
        self.ends.push_back((lsn, ended));
    }

    /// Returns the record of a lease's end. 0 if the record has become durable, or the lease has not ended.
    pub(super) fn end_of(&self, id: LeaseId) -> Lsn {
        self.records.get(&id).copied().unwrap_or_default()
    }

    /// Removes and returns the leases whose end is durable.
    pub(super) fn take_durable(&mut self, is_durable: impl Fn(Lsn) -> bool) -> Vec<Ended> {
        let count = self.ends.partition_point(|(lsn, _)| is_durable(*lsn));
        let durable: Vec<_> = self.ends.drain(..count).map(|(_, ended)| ended).collect();
        for ended in &durable {
            self.records.remove(&ended.lease.id);
        }
        durable
    }

    /// Returns how many leases have an end that is not durable.
    pub(super) fn count(&self, is_durable: impl Fn(Lsn) -> bool) -> usize {
        self.ends.len() - self.ends.partition_point(|(lsn, _)| is_durable(*lsn))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}
