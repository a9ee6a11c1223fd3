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
    /// The path is a folder's.
    #[error("{} is a folder: name a file in it, as in {}", .path.display(), .path.join("registry").display())]
    Folder {
        /// The path.
        path: PathBuf,
    },
    /// The folder that the file is to be in is not there and cannot be made.
    #[error("cannot make the folder {} ({source}): make it, and let this user write there", .folder.display())]
    MakeFolder {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file cannot be written, or not be made in its folder.
    #[error(
        "cannot write {} ({source}): let this user write that file, and in the folder {}",
        .path.display(), .path.parent().unwrap_or(Path::new(".")).display()
    )]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process has the file open.
    #[error("another process uses {}: stop it, or use another file", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file holds something else.
    #[error("{} is no registry of sessiond: use another file, or move that one away", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file is of a later version of sessiond.
    #[error(
        "{} has format {found}, and this version of sessiond reads format {known}: use the version that wrote it, or later",
        .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format that is known here.
        known: u64,
    },
    /// The file was written by an earlier version of sessiond, in a format that this one does not read.
    #[error(
        "{} has format {found}, and this version of sessiond reads format {known}: use the version that wrote it, or begin anew without it",
        .path.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format that is known here.
        known: u64,
    },
    /// The file that was open is no longer at its path.
    #[error(
        "{} was removed or moved while it was open: restart sessiond after putting it, or a backup, in its place",
        .path.display()
    )]
    Removed {
        /// The path.
        path: PathBuf,
    },
    /// Another file was put in the place of the one that was open.
    #[error("another file was put in the place of {} while it was open: restart sessiond to use that one", .path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else wrote to the file that was open.
    #[error(
        "{} was emptied or written to by another process while it was open: restart sessiond after putting a backup in its place",
        .path.display()
    )]
    Overwritten {
        /// The file.
        path: PathBuf,
    },
    /// There is no such file.
    #[error("there is no file {}: name the file of a registry", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The copy would overwrite a file.
    #[error("{} is there already: name a file that is not, or remove it", .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file is not as it was left.
    #[error(
        "{} is damaged ({}): move it away and put a backup in its place, or begin anew without it",
        .path.display(), .source
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The disk failed.
    #[error("cannot use {} ({source}): see that its disk is well and not full", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl FileError {
    pub(super) fn damaged(path: &Path, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Damaged { path: path.to_owned(), source: source.into() }
    }

    /// What an error of the database means for the file at `path`.
    pub(super) fn from_database(path: &Path, error: redb::Error) -> Self {
        let path = path.to_owned();
        match error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Self::InUse { path },
            redb::Error::Io(source) => Self::from_io(&path, source),
            redb::Error::UpgradeRequired(_) => Self::Foreign { path },
            error => Self::damaged(&path, error),
        }
    }

    /// Whether the file that was open is lost to this process.
    pub(super) fn is_loss(&self) -> bool {
        matches!(self, Self::Removed { .. } | Self::Replaced { .. } | Self::Overwritten { .. })
    }

    /// What it means for those who want to change the registry.
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
