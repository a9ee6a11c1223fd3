//! Checks whether the disk accepts new data while nothing else is written.
//!
//! A disk may fill up, fail or stop responding while no gateway changes anything. Operators should learn of it before
//! the next change fails.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redb::StorageBackend;

use super::{FileError, creation::temporary_path, disk::Disk};
use crate::storage::{RefusalCause, WriteRefusal};

/// How long nothing must be written before a probe is due. A probe writes a page and the file system's metadata. On an
/// idle server, probes add up to about half a gigabyte a day, while an SSD endures hundreds of terabytes.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_secs(4);

/// How soon after a failed probe the next one is due.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How long a write takes before it counts as stalled. Together with [`PROBE_INTERVAL`], this stays below the ten
/// seconds in which a storage must notice that it cannot be changed.
const STALLED: Duration = Duration::from_secs(5);

/// The data that a probe writes: one page of a file system.
const PAGE: [u8; 4096] = [0x5e; 4096];

/// Probes the disk with a file next to the registry's.
pub(super) struct Probe {
    disk: Arc<dyn Disk>,
    /// The path of the registry's file.
    path: PathBuf,
    /// `None` before the first probe and after a failed one.
    file: Option<Box<dyn StorageBackend>>,
    last: Instant,
    has_failed: bool,
}

impl Probe {
    pub(super) fn new(disk: Arc<dyn Disk>, registry: &Path) -> Self {
        Self { disk, path: registry.to_owned(), file: None, last: Instant::now(), has_failed: false }
    }

    /// Notes that something else was written. That counts as a probe, unless the last probe failed: only another probe
    /// can tell that the problem is gone.
    pub(super) fn wrote(&mut self) {
        if !self.has_failed {
            self.last = Instant::now();
        }
    }

    pub(super) fn is_due(&self) -> bool {
        self.last.elapsed() >= if self.has_failed { RETRY_INTERVAL } else { PROBE_INTERVAL }
    }

    /// Probes the disk. Returns why it does not accept data; `None` if it does.
    pub(super) fn run(&mut self) -> Option<WriteRefusal> {
        let result = self.write();
        self.last = Instant::now();
        self.has_failed = result.is_err();
        let Err(error) = result else { return None };
        // The next probe opens a new file: after a failed sync, the results of this one mean nothing.
        self.file = None;
        Some(FileError::from_io(&self.path, error).refusal())
    }

    /// Writes and syncs a page that was not part of the file, so that the disk needs room for it.
    fn write(&mut self) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => match self.open() {
                Ok(file) => self.file.insert(file),
                // This user may lack write access to the folder of the registry's file, or the folder may be gone. Only
                // a real change can show then whether the disk accepts data.
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

    /// Opens an unnamed file, of which nothing remains once this process ends.
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        let path = temporary_path(&self.path);
        let file = self.disk.create(&path)?.file;
        self.disk.remove(&path)?;
        Ok(file)
    }
}

/// What the writer knows about its disk.
#[derive(Debug, Default)]
pub(super) struct DiskStatus(Mutex<Status>);

#[derive(Debug, Default)]
struct Status {
    /// Why no change can be written any more.
    lost: Option<WriteRefusal>,
    /// Why the last probe failed; `None` if it succeeded.
    probed: Option<WriteRefusal>,
    /// When the write in progress began.
    write_began: Option<Instant>,
}

impl DiskStatus {
    /// Marks a write as in progress until the returned guard is dropped.
    pub(super) fn write(&self) -> impl Drop + use<'_> {
        self.0.lock().write_began = Some(Instant::now());
        Writing(self)
    }

    /// Sets the result of the last probe.
    pub(super) fn set_probed(&self, refusal: Option<WriteRefusal>) {
        self.0.lock().probed = refusal;
    }

    /// Notes that the registry's file is lost.
    pub(super) fn set_lost(&self, refusal: WriteRefusal) {
        self.0.lock().lost = Some(refusal);
    }

    /// Returns why the disk does not accept data; `None` if it accepts data, as far as is known.
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
