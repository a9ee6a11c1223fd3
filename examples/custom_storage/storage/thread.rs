//! The thread that owns the database.
//!
//! The thread runs all waiting calls in one transaction, and answers them once the transaction is on disk. So a busy
//! storage syncs its disk once for many calls, and in an idle one no call waits for others.
//!
//! If the database fails, the thread discards the transaction and the state in memory. It reopens the database, and
//! retries until that succeeds.

use std::{path::Path, thread::sleep, time::Duration};

use redb::{Builder, Database};
use sessiond::storage::{RefusalCause, StorageOptions, Writability, WriteRefusal};
use tokio::sync::{mpsc, watch};

use super::{
    registry::{Memory, Registry},
    tables::Tables,
};

/// Sends the answer of a call.
pub(super) type Answer = Box<dyn FnOnce() + Send>;

/// A call. If the job or its answer is dropped, the caller gets the error that the database failed.
pub(super) type Job = Box<dyn FnOnce(&mut Registry<'_, '_>) -> Result<Answer, redb::Error> + Send>;

/// The maximum number of calls in one transaction.
const CALLS_A_TRANSACTION: usize = 256;

/// How long to wait before the database is reopened.
const RETRY: Duration = Duration::from_millis(500);

/// The size of the database's cache. redb's default of 1 GiB is too much for an example.
const CACHE_BYTES: usize = 64 << 20;

/// The state of the storage that can be read without a call to the thread.
#[derive(Clone, Debug)]
pub(super) struct Status {
    /// The end of the log. Followers wait for it to grow.
    end: u64,
    refusal: Option<WriteRefusal>,
}

impl Status {
    pub(super) fn writability(&self) -> Writability {
        self.refusal.clone().map_or(Writability::Writable, Writability::Refused)
    }
}

/// An open database.
pub(super) struct Opened {
    database: Database,
    memory: Memory,
}

impl Opened {
    pub(super) fn open(path: &Path, options: StorageOptions) -> Result<Self, redb::Error> {
        let database = Builder::new().set_cache_size(CACHE_BYTES).create(path)?;
        let transaction = database.begin_write()?;
        let memory = Memory::load(&mut Tables::open(&transaction)?, options)?;
        transaction.commit()?;
        Ok(Self { database, memory })
    }

    pub(super) fn status(&self) -> Status {
        Status { end: self.memory.end(), refusal: None }
    }

    /// Runs some calls in one transaction, and answers them.
    fn run(&mut self, jobs: Vec<Job>) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        let mut registry = Registry::new(Tables::open(&transaction)?, &mut self.memory);
        let answers = jobs.into_iter().map(|job| job(&mut registry)).collect::<Result<Vec<_>, _>>()?;
        let has_changed = registry.has_changed();
        drop(registry);
        if has_changed {
            transaction.commit()?;
        } else {
            transaction.abort()?;
        }
        answers.into_iter().for_each(|answer| answer());
        Ok(())
    }
}

/// Runs calls until the storage is dropped.
pub(super) fn run(
    path: &Path,
    options: StorageOptions,
    opened: Opened,
    mut queue: mpsc::Receiver<Job>,
    status: &watch::Sender<Status>,
) {
    let mut opened = Some(opened);
    while let Some(job) = queue.blocking_recv() {
        let mut jobs = vec![job];
        while jobs.len() < CALLS_A_TRANSACTION
            && let Ok(job) = queue.try_recv()
        {
            jobs.push(job);
        }
        let outcome = match &mut opened {
            Some(opened) => opened.run(jobs).map(|()| opened.status()),
            // The database is closed: these calls fail, and the database is reopened for the next ones.
            None => {
                drop(jobs);
                sleep(RETRY);
                Opened::open(path, options).map(|again| opened.insert(again).status())
            }
        };
        let news = outcome.unwrap_or_else(|error| {
            opened = None;
            Status { refusal: Some(refusal(&error)), ..status.borrow().clone() }
        });
        status.send_if_modified(|status| {
            let is_news = status.end != news.end || status.refusal != news.refusal;
            *status = news;
            is_news
        });
    }
}

fn refusal(error: &redb::Error) -> WriteRefusal {
    let cause = match error {
        redb::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => RefusalCause::DiskFull,
        redb::Error::Io(_) | redb::Error::PreviousIo => RefusalCause::DiskFailed,
        _ => RefusalCause::Other,
    };
    WriteRefusal::new(cause, &error.to_string())
}
