//! How a registry's file is made: under a name of its own, and whole before it takes its place.
//!
//! A process that is killed meanwhile leaves a file `.NAME.….tmp` and nothing else. Nobody reads it again, and it may be deleted.

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
    watched::{Backend, Watched},
};
use crate::random::random_u64;

/// The database's mark comes last: until then its first bytes are zeros, then what it knows of its pages, then zeros.
const MARK: usize = 9;
const PAGE_SIZE_AT: usize = 12;
const HEAD: usize = 320;

/// The making of a database writes less than this.
const MAX_BLANK: u64 = 64 << 20;

/// Makes a file that `fill` fills, and lets `put` put it at `path`. If that fails, nothing is left of it.
pub(super) fn make(
    disk: &dyn Disk,
    path: &Path,
    fill: impl FnOnce(&Database) -> Result<(), redb::Error>,
    put: impl FnOnce(&Path, &Path, FileId) -> io::Result<()>,
) -> Result<(), FileError> {
    let path = &target(path);
    let aside = aside(path);
    let failed = |error| FileError::from_io(path, error);
    let file = Arc::new(disk.create(&aside).and_then(Watched::new).map_err(failed)?);
    let id = file.id();
    let made = builder()
        .create_with_backend(Backend(file))
        .map_err(redb::Error::from)
        .and_then(|database| fill(&database))
        .map_err(|error| FileError::from_database(path, error))
        .and_then(|()| put(&aside, path, id).map_err(failed));
    if made.is_err() {
        // What is told is why there is no file, not that a part of one cannot be removed.
        let _ = disk.remove(&aside);
    }
    made
}

/// Makes a file with what `fill` writes, unless there is one at `path` that holds something.
pub(super) fn make_if_missing(
    disk: &dyn Disk,
    path: &Path,
    fill: impl FnOnce(&Database) -> Result<(), redb::Error>,
) -> Result<(), FileError> {
    let failed = |error| FileError::from_io(path, error);
    if disk.find(path).map_err(failed)?.is_none() {
        let made = make(disk, path, fill, |aside, path, _| disk.name(aside, path));
        // Another process may have been faster.
        let is_there = |error: &FileError| matches!(error, FileError::Exists { .. });
        return made.or_else(|error| if is_there(&error) { Ok(()) } else { Err(error) });
    }
    let blank = disk.open(path).map_err(failed)?;
    if !is_blank(&*blank.file).map_err(failed)? {
        return Ok(());
    }
    // Two processes may find it. While this one has it locked, nobody else puts another in its place.
    if let Ok(false) = blank.file.try_lock_range(Bound::Unbounded, Bound::Unbounded) {
        return Err(FileError::InUse { path: path.to_owned() });
    }
    match disk.find(path).map_err(failed)? {
        Some(found) if found.id == blank.id => make(disk, path, fill, |aside, path, _| disk.replace(aside, path)),
        _ => Err(FileError::InUse { path: path.to_owned() }),
    }
}

/// Whether a file holds nothing: it is empty, or its making as a database was cut short.
fn is_blank(file: &dyn StorageBackend) -> io::Result<bool> {
    let len = file.len()?;
    if len > MAX_BLANK {
        return Ok(false);
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read(0, &mut bytes)?;
    let head = bytes.len().min(HEAD);
    if bytes.get(PAGE_SIZE_AT..PAGE_SIZE_AT + 4) == Some(&4096u32.to_le_bytes()) {
        bytes[MARK..head].fill(0);
    }
    Ok(bytes.iter().all(|byte| *byte == 0))
}

/// A name beside `path` that nobody else uses.
pub(super) fn aside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{:016x}.tmp", random_u64()));
    path.with_file_name(name)
}

/// The file that a path leads to. What takes its place must not take that of a link.
fn target(path: &Path) -> PathBuf {
    const MAX_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(link) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(link);
    }
    path
}
