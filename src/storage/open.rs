//! From the URL of a storage to the storage.

#[cfg(feature = "file")]
use std::path::PathBuf;
use std::{fmt, str::FromStr, sync::Arc, time::Duration};

#[cfg(feature = "file")]
use super::file::{FileError, FileStorage};
use super::{
    SessionStorage,
    memory::{MemoryOptions, MemoryStorage},
};
#[cfg(feature = "redis")]
use super::{
    StorageError,
    redis::{RedisStorage, RedisUrl, RedisUrlError},
};

/// Names a storage, as `--storage` does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageUrl {
    /// `memory:`, the sessions live and die with the process.
    Memory,
    /// `file:PATH`, the sessions are in a file and outlive the process and the machine.
    #[cfg(feature = "file")]
    File(PathBuf),
    /// `redis://HOST:PORT` and the like, many replicas share the sessions.
    #[cfg(feature = "redis")]
    Redis(RedisUrl),
}

/// What every storage is opened with.
#[derive(Clone, Copy, Debug)]
pub struct StorageOptions {
    /// How many changes each partition of the log keeps for those who follow it, at least 1. Once some follower has read them, a
    /// storage need keep no more than 65,536 of these.
    pub retain_events: usize,
    /// How many sessions the registry may hold.
    pub max_sessions: u64,
    /// How many leases there may be.
    pub max_leases: u64,
    /// The longest time that an outage of the storage gives to leases with a shorter ttl. After an outage of length T each
    /// lease lives for its ttl again, and for at least T + 20 s or this, whichever is shorter. A restart on a file and a pause of
    /// the process for more than 5 s are such outages, too.
    pub outage_grace: Duration,
}

impl StorageOptions {
    /// The default of [`outage_grace`](Self::outage_grace): gRPC libraries wait up to 120 s and jitter before they reconnect.
    pub const DEFAULT_OUTAGE_GRACE: Duration = Duration::from_secs(150);
}

impl StorageUrl {
    /// Opens the storage, which for a large file takes some seconds. It tells of its progress in the log.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when it cannot be opened. The memory storage always can.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn open(&self, options: StorageOptions) -> Result<Arc<dyn SessionStorage>, OpenError> {
        let StorageOptions { retain_events, max_sessions, max_leases, outage_grace } = options;
        match self {
            Self::Memory => Ok(Arc::new(MemoryStorage::new(MemoryOptions {
                retain_events,
                max_sessions,
                max_leases,
                outage_grace,
                ..MemoryOptions::default()
            }))),
            #[cfg(feature = "file")]
            Self::File(path) => Ok(Arc::new(FileStorage::open(path, options).await?)),
            #[cfg(feature = "redis")]
            Self::Redis(url) => match RedisStorage::open(url, options).await {
                Ok(storage) => Ok(Arc::new(storage)),
                Err(source) => Err(OpenError::Redis { url: url.to_string(), source }),
            },
        }
    }
}

impl FromStr for StorageUrl {
    type Err = OpenError;

    fn from_str(text: &str) -> Result<Self, OpenError> {
        match text.split_once(':') {
            Some(("memory", "")) => Ok(Self::Memory),
            #[cfg(feature = "file")]
            // `file:///var/…` is what a URL of a file looks like elsewhere.
            Some(("file", path)) => match path.strip_prefix("//").unwrap_or(path) {
                "" => Err(OpenError::NoPath),
                path => Ok(Self::File(path.into())),
            },
            #[cfg(feature = "redis")]
            _ if RedisUrl::is_meant(text) && misplaces_login(text) => Err(OpenError::MisplacedLogin),
            #[cfg(feature = "redis")]
            _ if RedisUrl::is_meant(text) => Ok(Self::Redis(text.parse()?)),
            #[cfg(not(feature = "file"))]
            Some(("file", _)) => Err(OpenError::NotBuilt("file")),
            #[cfg(not(feature = "redis"))]
            Some((scheme, _)) if scheme.starts_with("redis") => Err(OpenError::NotBuilt("redis")),
            _ => Err(OpenError::UnknownUrl(shown_part(text))),
        }
    }
}

/// Returns the part of an unknown URL that certainly holds no password.
fn shown_part(text: &str) -> String {
    let is_scheme = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    match text.split_once("://") {
        Some((scheme, _)) if is_scheme(scheme) => format!("{scheme}://"),
        _ => "the URL".to_owned(),
    }
}

/// Whether a login seems to be where it does not belong: behind the host, or cut off by a character in the password that
/// ends the host.
#[cfg(feature = "redis")]
fn misplaces_login(text: &str) -> bool {
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    let behind_host = rest.find(['/', '?', '#']).map_or("", |at| &rest[at..]);
    let is_login = |parameter: &str| {
        let name = parameter.split('=').next().unwrap_or_default();
        ["pass", "pwd", "secret", "token", "auth", "user"].iter().any(|part| name.contains(part))
    };
    behind_host.contains('@') || behind_host.split(['?', '&']).skip(1).any(is_login)
}

impl fmt::Display for StorageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            #[cfg(feature = "file")]
            Self::File(path) => {
                // Two slashes at the beginning would be read as those of a URL, and left out.
                let slashes = if path.as_os_str().as_encoded_bytes().starts_with(b"//") { "//" } else { "" };
                write!(f, "file:{slashes}{}", path.display())
            }
            #[cfg(feature = "redis")]
            Self::Redis(url) => url.fmt(f),
        }
    }
}

/// Why a storage cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The text names no storage. Holds the part of it that may be shown.
    #[error("{0} names no storage: write memory:, file:PATH or redis://HOST:PORT, which is for Valkey too")]
    UnknownUrl(String),
    /// The text names a storage that this build leaves out.
    #[error("this build has no {0} storage: build sessiond with the Cargo feature {0}")]
    NotBuilt(&'static str),
    /// A Redis URL has its login in the wrong place.
    #[cfg(feature = "redis")]
    #[error(
        "the login is not where it belongs: write redis://USER:PASSWORD@HOST:PORT, with %2F for /, %3F for ? and %23 for # in \
         the password"
    )]
    MisplacedLogin,
    /// The text names no file.
    #[cfg(feature = "file")]
    #[error("file: names no file: write its path behind it, as in file:/var/lib/sessiond/registry")]
    NoPath,
    /// The registry's file cannot be opened.
    #[cfg(feature = "file")]
    #[error(transparent)]
    File(#[from] FileError),
    /// The URL of a Redis is wrong.
    #[cfg(feature = "redis")]
    #[error(transparent)]
    RedisUrl(#[from] RedisUrlError),
    /// Redis cannot be reached, or has no registry that can be used.
    #[cfg(feature = "redis")]
    #[error("{url} cannot be opened ({})", cause(.source))]
    Redis {
        /// The storage, without its password.
        url: String,
        /// Why not.
        source: StorageError,
    },
}

impl OpenError {
    /// Whether the storage may open later although nobody has changed anything about the server: it is away for now, or
    /// another process still uses it. A wrong password, a wrong version or foreign data stays wrong.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            #[cfg(feature = "file")]
            Self::File(error) => matches!(error, FileError::InUse { .. } | FileError::Io { .. }),
            #[cfg(feature = "redis")]
            Self::Redis { source, .. } => source.may_pass(),
            _ => false,
        }
    }
}

#[cfg(feature = "redis")]
fn cause(error: &StorageError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "file")]
    #[test]
    fn a_url_is_written_so_that_it_names_the_same_storage() {
        for (text, path) in [
            ("file:/var/registry", "/var/registry"),
            ("file:///var/registry", "/var/registry"),
            ("file:registry", "registry"),
            ("file:////registry", "//registry"),
        ] {
            let url: StorageUrl = text.parse().unwrap();
            assert_eq!(url, StorageUrl::File(path.into()), "{text}");
            assert_eq!(url.to_string().parse::<StorageUrl>().unwrap(), url, "{text}");
        }
        assert_eq!("memory:".parse::<StorageUrl>().unwrap().to_string(), "memory:");
    }

    #[cfg(all(feature = "file", feature = "redis"))]
    #[test]
    fn what_somebody_has_to_mend_does_not_pass() {
        use crate::storage::{RefusalCause, WriteRefusal};

        let cause = || std::io::Error::other("a cause").into();
        let redis = |source| OpenError::Redis { url: "redis://h".to_owned(), source };
        let path = PathBuf::from("registry");
        for (error, may_pass) in [
            (redis(StorageError::Unavailable(cause())), true),
            (redis(StorageError::Refused(WriteRefusal::new(RefusalCause::ReadOnly, ""))), true),
            (redis(StorageError::Broken(cause())), false),
            (redis(StorageError::TooManyLeases { limit: 1 }), false),
            (FileError::InUse { path: path.clone() }.into(), true),
            (FileError::Foreign { path }.into(), false),
            (OpenError::NoPath, false),
        ] {
            assert_eq!(error.may_pass(), may_pass, "{error}");
        }
    }
}
