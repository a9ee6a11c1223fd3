//! The thread that owns the database.
//!
//! It runs all calls that wait in one transaction, and answers them once that is on disk. So a busy storage syncs its
//! disk once for many calls, and an idle one does not let a call wait for others.
//!
//! If the database fails, the transaction is gone, and so is what was kept in memory beside it. The thread opens the
//! database again, until it can.

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

/// A call. Its caller is told that the database failed if the answer is dropped.
pub(super) type Job = Box<dyn FnOnce(&mut Registry<'_, '_>) -> Result<Answer, redb::Error> + Send>;

/// The most calls of one transaction.
const CALLS_A_TRANSACTION: usize = 256;

const RETRY: Duration = Duration::from_millis(500);

/// 1 GiB by default, which is a lot for an example.
const CACHE_BYTES: usize = 64 << 20;

/// What others know of the thread without asking it.
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

    /// Runs some calls, and answers them.
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

/// Runs calls until nobody can make any more.
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
            // These calls fail. The next may find the database open again.
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
