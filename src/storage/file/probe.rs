//! Finds out whether the disk accepts new data while nothing else is written.
//!
//! A disk may fill up, fail or stop answering while no gateway changes anything. Operators should hear of it before the next
//! change fails.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redb::StorageBackend;

use super::{FileError, disk::Disk, making::aside};
use crate::storage::{RefusalCause, WriteRefusal};

/// A probe is made when nothing else has been written for this long. It writes a page and the file system's metadata, some
/// half a gigabyte a day on an idle server. An SSD endures hundreds of terabytes.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_secs(4);

/// After a probe that failed, the next one comes sooner.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A write that takes longer counts as stalled. Together with [`PROBE_INTERVAL`] it stays below the ten seconds in which a
/// storage must notice that it cannot be changed.
const STALLED: Duration = Duration::from_secs(5);

/// What is written: a page of a file system.
const PAGE: [u8; 4096] = [0x5e; 4096];

/// Writes to a file of its own beside the registry's.
pub(super) struct Probe {
    disk: Arc<dyn Disk>,
    /// The registry's.
    path: PathBuf,
    /// None before the first probe, and after one that failed.
    file: Option<Box<dyn StorageBackend>>,
    last: Instant,
    has_failed: bool,
}

impl Probe {
    pub(super) fn new(disk: Arc<dyn Disk>, registry: &Path) -> Self {
        Self { disk, path: registry.to_owned(), file: None, last: Instant::now(), has_failed: false }
    }

    /// Notes that something else was written. After a probe that has failed only another one can tell that the reason is gone.
    pub(super) fn wrote(&mut self) {
        if !self.has_failed {
            self.last = Instant::now();
        }
    }

    pub(super) fn is_due(&self) -> bool {
        self.last.elapsed() >= if self.has_failed { RETRY_INTERVAL } else { PROBE_INTERVAL }
    }

    /// Makes a probe. Tells why the disk does not accept data; none if it does.
    pub(super) fn run(&mut self) -> Option<WriteRefusal> {
        let result = self.write();
        self.last = Instant::now();
        self.has_failed = result.is_err();
        let Err(error) = result else { return None };
        // Opened anew the next time: what a file says after a failed sync means nothing.
        self.file = None;
        Some(FileError::from_io(&self.path, error).refusal())
    }

    /// Puts a page on disk that was not part of the file, so that the disk needs room for it.
    fn write(&mut self) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => match self.open() {
                Ok(file) => self.file.insert(file),
                // The registry's file may lie in a folder that this user may not write in, or that is gone. Then only a change
                // can tell.
                Err(error) if [io::ErrorKind::PermissionDenied, io::ErrorKind::NotFound].contains(&error.kind()) => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            },
        };
        file.write(0, &PAGE)?;
        file.sync_data()?;
        file.set_len(0)
    }

    /// Opens a file that has no name: whatever ends this process, nothing is left of it.
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        let path = aside(&self.path);
        let file = self.disk.create(&path)?.file;
        self.disk.remove(&path)?;
        Ok(file)
    }
}

/// What the writer knows of its disk, for those who ask.
#[derive(Debug, Default)]
pub(super) struct DiskStatus(Mutex<Status>);

#[derive(Debug, Default)]
struct Status {
    /// Why no change can be written any more.
    lost: Option<WriteRefusal>,
    /// Why the last probe failed; none if it did not.
    probed: Option<WriteRefusal>,
    /// When the write began that is in progress.
    write_began: Option<Instant>,
}

impl DiskStatus {
    /// Notes that a write is in progress until the answer is dropped.
    pub(super) fn write(&self) -> impl Drop + use<'_> {
        self.0.lock().write_began = Some(Instant::now());
        Writing(self)
    }

    /// Notes what a probe has told.
    pub(super) fn set_probed(&self, refusal: Option<WriteRefusal>) {
        self.0.lock().probed = refusal;
    }

    /// Notes that the registry's file is lost.
    pub(super) fn set_lost(&self, refusal: WriteRefusal) {
        self.0.lock().lost = Some(refusal);
    }

    /// Why the disk does not accept data; none if it does, as far as is known.
    pub(super) fn refusal(&self) -> Option<WriteRefusal> {
        let status = self.0.lock();
        let is_stalled = status.write_began.is_some_and(|began| began.elapsed() >= STALLED);
        let stalled = || {
            let detail = format!("a write has not completed for {STALLED:?}");
            WriteRefusal::new(RefusalCause::DiskStalled, &detail)
        };
        status.lost.clone().or_else(|| status.probed.clone()).or_else(|| is_stalled.then(stalled))
    }
}

struct Writing<'a>(&'a DiskStatus);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.0.lock().write_began = None;
    }
}
