//! Whether the registry can be changed, and if not, why.

use std::{error::Error, fmt, sync::Arc};

/// Whether the registry can currently be changed, as far as its storage knows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Writability {
    /// Changes are accepted.
    Writable,
    /// Changes are refused.
    Refused(WriteRefusal),
}

impl Writability {
    /// Returns why changes are refused. `None` while they are accepted.
    #[must_use]
    pub fn refusal(&self) -> Option<&WriteRefusal> {
        match self {
            Self::Writable => None,
            Self::Refused(refusal) => Some(refusal),
        }
    }
}

/// Why a storage refuses changes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteRefusal {
    /// The kind of cause.
    pub cause: RefusalCause,
    /// What the store or the operating system reported, in one line. For logs and operators; not sent to callers.
    pub detail: Arc<str>,
}

impl WriteRefusal {
    /// Makes a refusal for `cause`. Line breaks in `detail` become spaces.
    #[must_use]
    pub fn new(cause: RefusalCause, detail: &str) -> Self {
        let detail = detail.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        Self { cause, detail: detail.into() }
    }
}

impl fmt::Display for WriteRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cause, detail } = self;
        if detail.is_empty() { cause.fmt(f) } else { write!(f, "{cause} ({detail})") }
    }
}

impl Error for WriteRefusal {}

/// The kinds of cause for which a storage refuses changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusalCause {
    /// The store cannot be reached or does not answer.
    Unreachable,
    /// The store is a read-only replica, or its file system is read-only.
    ReadOnly,
    /// The store has reached its memory limit.
    OutOfMemory,
    /// Fewer replicas are connected to the store than it requires for a write.
    TooFewReplicas,
    /// The store cannot save its data, and refuses writes until it can.
    NotPersisting,
    /// The disk is full, or a quota on it is used up.
    DiskFull,
    /// The disk reports errors.
    DiskFailed,
    /// The disk does not complete writes.
    DiskStalled,
    /// Another process removed, replaced or changed the registry's file.
    FileReplaced,
    /// The account that sessiond uses lacks a permission.
    NotPermitted,
    /// Another cause; the detail says which.
    Other,
}

impl RefusalCause {
    /// All causes.
    pub const ALL: [Self; 11] = [
        Self::Unreachable,
        Self::ReadOnly,
        Self::OutOfMemory,
        Self::TooFewReplicas,
        Self::NotPersisting,
        Self::DiskFull,
        Self::DiskFailed,
        Self::DiskStalled,
        Self::FileReplaced,
        Self::NotPermitted,
        Self::Other,
    ];

    /// Returns its name in metrics and log lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::ReadOnly => "read_only",
            Self::OutOfMemory => "out_of_memory",
            Self::TooFewReplicas => "too_few_replicas",
            Self::NotPersisting => "not_persisting",
            Self::DiskFull => "disk_full",
            Self::DiskFailed => "disk_failed",
            Self::DiskStalled => "disk_stalled",
            Self::FileReplaced => "file_replaced",
            Self::NotPermitted => "not_permitted",
            Self::Other => "other",
        }
    }

    /// Returns what the operator can do about it, as an instruction.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::Unreachable => "check that the store runs and can be reached from the server",
            Self::ReadOnly => "connect to the primary instead, or make the store writable",
            Self::OutOfMemory => "raise the store's memory limit, or remove data that it does not need",
            Self::TooFewReplicas => "bring the store's replicas back, or require fewer of them",
            Self::NotPersisting => "see the store's log for why it cannot save, and free some space on its disk",
            Self::DiskFull => "free some space on the disk that holds the registry's file",
            Self::DiskFailed => "see the system's log for disk errors, and replace the disk if it is failing",
            Self::DiskStalled => "find out why the disk does not complete writes",
            Self::FileReplaced => "put the registry's file or a backup in its place, and restart the server",
            Self::NotPermitted => "grant the missing permission to the account that sessiond uses",
            Self::Other => "see the server's log",
        }
    }
}

impl fmt::Display for RefusalCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "the store cannot be reached",
            Self::ReadOnly => "the store is read-only",
            Self::OutOfMemory => "the store is out of memory",
            Self::TooFewReplicas => "the store has too few replicas",
            Self::NotPersisting => "the store cannot save its data",
            Self::DiskFull => "the disk is full",
            Self::DiskFailed => "the disk reports errors",
            Self::DiskStalled => "the disk does not complete writes",
            Self::FileReplaced => "the registry's file is not the one that was opened",
            Self::NotPermitted => "a permission is missing",
            Self::Other => "the cause is unknown",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_listed_once_and_has_a_unique_name() {
        for (n, cause) in RefusalCause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, n, "{cause:?}");
            let name = cause.name();
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert_eq!(RefusalCause::ALL.into_iter().filter(|other| other.name() == name).count(), 1, "{name}");
        }
    }

    #[test]
    fn refusal_is_displayed_in_one_line() {
        let refusal = WriteRefusal::new(RefusalCause::DiskFull, "No space left\n on device");
        assert_eq!(refusal.to_string(), "the disk is full (No space left on device)");
        assert_eq!(WriteRefusal::new(RefusalCause::Other, "").to_string(), "the cause is unknown");
    }
}
