//! The disk beneath the database, behind a trait so that tests can simulate a failing one.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use redb::{StorageBackend, backends::FileBackend};

/// Only the server's own user may read or write a registry: it names sessions, and write access can change them.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// A place that holds files.
pub(super) trait Disk: Send + Sync + 'static {
    /// Opens a file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<OpenFile>;

    /// Creates a file for reading and writing. Fails if the path exists.
    fn create(&self, path: &Path) -> io::Result<OpenFile>;

    /// Returns the identity and length of the file at `path`. `None` if there is no file.
    fn find(&self, path: &Path) -> io::Result<Option<Found>>;

    /// Renames a file durably. Fails if `to` exists.
    fn name(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Renames a file durably, replacing the file at `to`.
    fn replace(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// An open file.
pub(super) struct OpenFile {
    pub(super) file: Box<dyn StorageBackend>,
    pub(super) id: FileId,
}

/// The identity of a file, independent of its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    pub(super) device: u64,
    pub(super) inode: u64,
}

/// The file at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: FileId,
    pub(super) len: u64,
}

/// The file systems of this machine.
pub(super) struct Files;

impl Files {
    fn opened(file: File) -> io::Result<OpenFile> {
        let id = FileId::of(&file.metadata()?);
        let backend = FileBackend::new(file).map_err(io::Error::other)?;
        Ok(OpenFile { file: Box::new(backend), id })
    }
}

impl FileId {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

impl Disk for Files {
    fn open(&self, path: &Path) -> io::Result<OpenFile> {
        Self::opened(OpenOptions::new().read(true).write(true).open(path)?)
    }

    fn create(&self, path: &Path) -> io::Result<OpenFile> {
        Self::opened(OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(path)?)
    }

    fn find(&self, path: &Path) -> io::Result<Option<Found>> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Some(Found { id: FileId::of(&metadata), len: metadata.len() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn name(&self, from: &Path, to: &Path) -> io::Result<()> {
        match fs::hard_link(from, to) {
            Ok(()) => fs::remove_file(from)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
            // Some file systems have no hard links.
            Err(_) if fs::symlink_metadata(to).is_err() => fs::rename(from, to)?,
            Err(error) => return Err(error),
        }
        sync_folder(to)
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)?;
        sync_folder(to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

/// Creates a file's folder and its missing parents durably.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let missing: Vec<_> = folder.ancestors().take_while(is_missing).collect();
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
    missing.into_iter().try_for_each(sync_folder)
}

/// Makes a file's name durable by syncing its folder.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
