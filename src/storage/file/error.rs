//! What can go wrong with the file.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

use crate::storage::{RefusalCause, WriteRefusal};

/// Why a registry's file cannot be opened or copied. The message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The path is that of a folder.
    #[error("{} is a folder: name a file in it, as in {}", .path.display(), .path.join("registry").display())]
    Folder {
        /// The path.
        path: PathBuf,
    },
    /// The file's folder is missing and cannot be created.
    #[error("cannot create the folder {} ({source}): create it, and give this user write access", .folder.display())]
    MakeFolder {
        /// The folder.
        folder: PathBuf,
        /// What the operating system reported.
        source: io::Error,
    },
    /// The user may not write the file, or may not create it in its folder.
    #[error(
        "cannot write {} ({source}): give this user write access to that file and to the folder {}",
        .path.display(), .path.parent().unwrap_or(Path::new(".")).display()
    )]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the operating system reported.
        source: io::Error,
    },
    /// Another process has the file open.
    #[error("another process is using {}: stop it, or use another file", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a registry.
    #[error("{} is not a registry of sessiond: use another file, or move that one away", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a later version of sessiond.
    #[error(
        "{} has format {found}, but this version of sessiond reads format {known}: \
         use the version that wrote the file, or a later one",
        .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format that this version reads.
        known: u64,
    },
    /// The file was written by an earlier version of sessiond, in a format that this version cannot read.
    #[error(
        "{} has format {found}, but this version of sessiond reads format {known}: \
         use the version that wrote the file, or move it away to start with an empty registry",
        .path.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format that this version reads.
        known: u64,
    },
    /// The open file was removed from its path.
    #[error(
        "{} was removed or moved while it was open: restart sessiond after putting it, or a backup, in its place",
        .path.display()
    )]
    Removed {
        /// The path.
        path: PathBuf,
    },
    /// Another file replaced the open one.
    #[error("another file replaced {} while it was open: restart sessiond to use the new one", .path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// Another process wrote to the open file.
    #[error(
        "{} was emptied or written to by another process while it was open: \
         restart sessiond after putting a backup in its place",
        .path.display()
    )]
    Overwritten {
        /// The file.
        path: PathBuf,
    },
    /// The file does not exist.
    #[error("{} does not exist: name the file of a registry", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file already exists at the path of the copy.
    #[error("{} already exists: name a new file, or remove that one", .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The content of the file is damaged.
    #[error(
        "{} is damaged ({}): move it away, then put a backup in its place or start with an empty registry",
        .path.display(), .source
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The disk reported an error.
    #[error("cannot use {} ({source}): check that its disk works and is not full", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system reported.
        source: io::Error,
    },
}

impl FileError {
    pub(super) fn damaged(path: &Path, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Damaged { path: path.to_owned(), source: source.into() }
    }

    /// Converts an error of the database to an error of the file at `path`.
    pub(super) fn from_database(path: &Path, error: redb::Error) -> Self {
        let path = path.to_owned();
        match error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Self::InUse { path },
            redb::Error::Io(source) => Self::from_io(&path, source),
            redb::Error::UpgradeRequired(_) => Self::Foreign { path },
            error => Self::damaged(&path, error),
        }
    }

    /// Returns whether the open file was removed, replaced or overwritten.
    pub(super) fn is_loss(&self) -> bool {
        matches!(self, Self::Removed { .. } | Self::Replaced { .. } | Self::Overwritten { .. })
    }

    /// Returns why this error makes the storage refuse changes.
    pub(super) fn refusal(&self) -> WriteRefusal {
        match self {
            Self::Io { path, source } | Self::Unwritable { path, source } => {
                let cause = match source.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                        RefusalCause::DiskFull
                    }
                    io::ErrorKind::ReadOnlyFilesystem => RefusalCause::ReadOnly,
                    io::ErrorKind::PermissionDenied => RefusalCause::NotPermitted,
                    _ => RefusalCause::DiskFailed,
                };
                WriteRefusal::new(cause, &format!("{}: {source}", path.display()))
            }
            error if error.is_loss() => WriteRefusal::new(RefusalCause::FileReplaced, &error.to_string()),
            error => WriteRefusal::new(RefusalCause::Other, &error.to_string()),
        }
    }

    pub(super) fn from_io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Unwritable { path, source },
            io::ErrorKind::IsADirectory => Self::Folder { path },
            io::ErrorKind::NotFound => Self::Missing { path },
            io::ErrorKind::AlreadyExists => Self::Exists { path },
            _ => Self::Io { path, source },
        }
    }
}
