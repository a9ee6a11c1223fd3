//! What puts the changes of a group of sessions into the log.

use super::{MemoryStorage, bucket::Bucket, log::Appending};
use crate::{
    session::{LeaseId, SessionChange, SessionEvent},
    storage::{
        SessionStorage,
        journal::{Lsn, Record},
    },
};

/// Locks the log with the first change and keeps it: it is where all threads meet, and a lock for each change would have its
/// memory go from one processor to the other each time.
pub(super) struct Appender<'a> {
    storage: &'a MemoryStorage,
    /// One partition's at a time: two appenders cannot wait for each other.
    log: Option<(u32, Appending<'a>)>,
}

impl<'a> Appender<'a> {
    pub(super) fn new(storage: &'a MemoryStorage) -> Self {
        Self { storage, log: None }
    }

    /// Appends a change that is made under the lock of its bucket, and records it at the same place.
    pub(super) fn append(
        &mut self,
        bucket_index: u32,
        bucket: &mut Bucket,
        event: SessionEvent,
        lease: Option<LeaseId>,
    ) -> Lsn {
        let SessionEvent { session, change } = event;
        let record = match change {
            SessionChange::Created => Record::Created { session, lease },
            SessionChange::Destroyed(reason) => Record::Destroyed { session, reason },
        };
        let partition = self.storage.partition_of(bucket_index);
        self.log.take_if(|(held, _)| *held != partition);
        let (_, log) = self.log.get_or_insert_with(|| (partition, self.storage.logs[partition as usize].appending()));
        log.append(event);
        self.storage.record(bucket, session, record)
    }
}
