//! Creates a registry's file under a temporary name, and renames it once it is complete.
//!
//! A process that is killed in between leaves only a file named `.NAME.….tmp`. Nothing reads that file again, and it
//! may be deleted.

use std::{
    fs, io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{Database, StorageBackend};

use super::{
    FileError,
    disk::{Disk, FileId},
    store::builder,
    watched::{Backend, HEAD, Watched},
};
use crate::random::random_u64;

/// The length of the database's magic number, which the database writes last. Until then, the start of the file is zeros,
/// except for its description of the pages.
const MAGIC_LEN: usize = 9;
/// The offset of the page size in the description of the pages.
const PAGE_SIZE_AT: usize = 12;

/// An upper bound on what creating a database writes.
const MAX_BLANK: u64 = 64 << 20;

/// Creates a file, lets `fill` write its content, and lets `put` move it to `path`. On failure, removes the file.
pub(super) fn make(
    disk: &dyn Disk,
    path: &Path,
    fill: impl FnOnce(&Database) -> Result<(), redb::Error>,
    put: impl FnOnce(&Path, &Path, FileId) -> io::Result<()>,
) -> Result<(), FileError> {
    let path = &target(path);
    let temporary = temporary_path(path);
    let failed = |error| FileError::from_io(path, error);
    let file = Arc::new(disk.create(&temporary).and_then(Watched::new).map_err(failed)?);
    let id = file.id();
    let made = builder()
        .create_with_backend(Backend(file))
        .map_err(redb::Error::from)
        .and_then(|database| fill(&database))
        .map_err(|error| FileError::from_database(path, error))
        .and_then(|()| put(&temporary, path, id).map_err(failed));
    if made.is_err() {
        // Report why the file could not be created, not that the partial one could not be removed.
        let _ = disk.remove(&temporary);
    }
    made
}

/// Creates a file with what `fill` writes, unless a file with content exists at `path`.
pub(super) fn make_if_missing(
    disk: &dyn Disk,
    path: &Path,
    fill: impl FnOnce(&Database) -> Result<(), redb::Error>,
) -> Result<(), FileError> {
    let failed = |error| FileError::from_io(path, error);
    if disk.find(path).map_err(failed)?.is_none() {
        let made = make(disk, path, fill, |temporary, path, _| disk.name(temporary, path));
        // Another process may have created the file first.
        let is_there = |error: &FileError| matches!(error, FileError::Exists { .. });
        return made.or_else(|error| if is_there(&error) { Ok(()) } else { Err(error) });
    }
    let blank = disk.open(path).map_err(failed)?;
    if !is_blank(&*blank.file).map_err(failed)? {
        return Ok(());
    }
    // Two processes may find the same blank file. The one that holds its lock is the only one to replace it.
    if let Ok(false) = blank.file.try_lock_range(Bound::Unbounded, Bound::Unbounded) {
        return Err(FileError::InUse { path: path.to_owned() });
    }
    match disk.find(path).map_err(failed)? {
        Some(found) if found.id == blank.id => {
            make(disk, path, fill, |temporary, path, _| disk.replace(temporary, path))
        }
        _ => Err(FileError::InUse { path: path.to_owned() }),
    }
}

/// Returns whether a file is blank: it is empty, or creating the database in it was interrupted.
fn is_blank(file: &dyn StorageBackend) -> io::Result<bool> {
    let len = file.len()?;
    if len > MAX_BLANK {
        return Ok(false);
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read(0, &mut bytes)?;
    let head = bytes.len().min(HEAD);
    if bytes.get(PAGE_SIZE_AT..PAGE_SIZE_AT + 4) == Some(&4096u32.to_le_bytes()) {
        bytes[MAGIC_LEN..head].fill(0);
    }
    Ok(bytes.iter().all(|byte| *byte == 0))
}

/// Returns an unused random name in the folder of `path`.
pub(super) fn temporary_path(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{:016x}.tmp", random_u64()));
    path.with_file_name(name)
}

/// Follows symbolic links to the actual file, so that a rename replaces the file and not the link.
fn target(path: &Path) -> PathBuf {
    const MAX_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(link) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(link);
    }
    path
}
