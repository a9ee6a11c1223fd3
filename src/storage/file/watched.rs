//! The open file, and checks that nobody else has changed it.

use std::{fmt, io, ops::Bound, path::Path, sync::Arc};

use parking_lot::Mutex;
use redb::{BackendError, StorageBackend};

use super::{
    FileError,
    disk::{Disk, FileId, OpenFile},
};

/// The database's header. Each commit rewrites it with a new checksum.
pub(super) const HEAD: usize = 320;

/// An open file. It remembers the header and length that the file must have, and whether a sync has failed.
///
/// After a failed sync, the kernel may treat pages as written that are not on disk. The next sync then succeeds, and
/// reads return those pages. Such a file can still be read, but must not be written any more.
pub(super) struct Watched {
    file: Box<dyn StorageBackend>,
    id: FileId,
    written: Mutex<Written>,
}

struct Written {
    head: [u8; HEAD],
    len: u64,
    /// A page written since the last check of the file, and one written before that. If another process writes to the
    /// file during a commit, the commit may rewrite the header and the length correctly, so these alone do not reveal
    /// the damage.
    new_page: Option<Page>,
    page: Option<Page>,
    sync_failed: bool,
    /// Another process has replaced or changed the file, so nothing may be written to it any more.
    is_lost: bool,
}

/// Bytes written at an offset.
struct Page {
    offset: u64,
    bytes: Vec<u8>,
}

impl Page {
    fn overlaps(&self, offset: u64, len: usize) -> bool {
        self.offset < offset + len as u64 && offset < self.offset + self.bytes.len() as u64
    }
}

/// The largest page that is remembered.
const MAX_PAGE: usize = 16 << 10;

impl Written {
    fn write(&mut self, offset: u64, data: &[u8]) {
        self.len = self.len.max(offset + data.len() as u64);
        if let Some(head) = usize::try_from(offset).ok().and_then(|offset| self.head.get_mut(offset..)) {
            let len = head.len().min(data.len());
            head[..len].copy_from_slice(&data[..len]);
        }
        for page in [&mut self.page, &mut self.new_page] {
            page.take_if(|page| page.overlaps(offset, data.len()));
        }
        if self.new_page.is_none() && offset >= HEAD as u64 && data.len() <= MAX_PAGE {
            self.new_page = Some(Page { offset, bytes: data.to_vec() });
        }
    }

    /// Returns whether a file of length `len` holds what is remembered.
    fn is_in(&self, file: &dyn StorageBackend, len: u64) -> io::Result<bool> {
        let holds = |offset, bytes: &[u8]| {
            let mut found = vec![0; bytes.len()];
            match file.read(offset, &mut found) {
                Ok(()) => Ok(found == bytes),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
                Err(error) => Err(error),
            }
        };
        let head = &self.head[..HEAD.min(usize::try_from(len).unwrap_or(HEAD))];
        let page = self.page.as_ref().map_or(Ok(true), |page| holds(page.offset, &page.bytes));
        Ok(len == self.len && holds(0, head)? && page?)
    }
}

impl Watched {
    pub(super) fn new(OpenFile { file, id }: OpenFile) -> io::Result<Self> {
        let len = file.len()?;
        let mut head = [0; HEAD];
        let known = HEAD.min(usize::try_from(len).unwrap_or(HEAD));
        file.read(0, &mut head[..known])?;
        let written = Written { head, len, new_page: None, page: None, sync_failed: false, is_lost: false };
        Ok(Self { file, id, written: Mutex::new(written) })
    }

    pub(super) fn id(&self) -> FileId {
        self.id
    }

    pub(super) fn sync_failed(&self) -> bool {
        self.written.lock().sync_failed
    }

    /// Checks that the file is still at `path`, and that nobody else has changed it. If the check finds otherwise, all
    /// later writes to the file fail.
    pub(super) fn check(&self, disk: &dyn Disk, path: &Path) -> Result<(), FileError> {
        let failed = |error| FileError::from_io(path, error);
        let found = disk.find(path).map_err(failed)?;
        let mut written = self.written.lock();
        let path = || path.to_owned();
        let error = match found {
            None => FileError::Removed { path: path() },
            Some(found) if found.id != self.id => FileError::Replaced { path: path() },
            Some(found) if written.is_in(&*self.file, found.len).map_err(failed)? => {
                written.page = written.new_page.take().or(written.page.take());
                return Ok(());
            }
            Some(_) => FileError::Overwritten { path: path() },
        };
        written.is_lost = true;
        Err(error)
    }

    /// Fails if the file must not be written any more.
    fn admit(&self) -> io::Result<()> {
        if self.written.lock().is_lost {
            return Err(io::Error::other("the file is no longer the one that was opened"));
        }
        Ok(())
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

/// The database's access to a watched file.
#[derive(Debug)]
pub(super) struct Backend(pub(super) Arc<Watched>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.admit()?;
        self.0.file.set_len(len)?;
        let mut written = self.0.written.lock();
        let Written { page, new_page, .. } = &mut *written;
        for page in [page, new_page] {
            page.take_if(|page| page.offset + page.bytes.len() as u64 > len);
        }
        written.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.file.sync_data().inspect_err(|_| self.0.written.lock().sync_failed = true)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.admit()?;
        self.0.file.write(offset, data)?;
        self.0.written.lock().write(offset, data);
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.0.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.query_lock_range(start, end)
    }
}
