//! The disk as the database sees it, so that tests can put one in its place that fails.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use redb::{StorageBackend, backends::FileBackend};

/// Registries are read and written by their own user: they name sessions, and whoever writes there can change them.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// Where files are.
pub(super) trait Disk: Send + Sync + 'static {
    /// Opens a file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<OpenFile>;

    /// Makes a file for reading and writing. Fails if there is anything at the path.
    fn create(&self, path: &Path) -> io::Result<OpenFile>;

    /// Returns which file is at the path and how long it is. None if there is no file.
    fn find(&self, path: &Path) -> io::Result<Option<Found>>;

    /// Gives a file another name, for good. Fails if there is anything with that name.
    fn name(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file another name, in place of the one that has it, for good.
    fn replace(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// A file that is open.
pub(super) struct OpenFile {
    pub(super) file: Box<dyn StorageBackend>,
    pub(super) id: FileId,
}

/// Tells one file from another, whatever their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    pub(super) device: u64,
    pub(super) inode: u64,
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: FileId,
    pub(super) len: u64,
}

/// The files of this machine.
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
            // Some file systems have no links.
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

/// Makes the folder that a file is to be in, and those above it, for good.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let missing: Vec<_> = folder.ancestors().take_while(is_missing).collect();
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
    missing.into_iter().try_for_each(sync_folder)
}

/// Puts a file's name on disk.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
