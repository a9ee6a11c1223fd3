//! Parses the URL of a storage, and opens the storage.

#[cfg(feature = "file")]
use std::path::PathBuf;
use std::{fmt, str::FromStr, sync::Arc, time::Duration};

#[cfg(feature = "file")]
use super::file::{FileError, FileStorage};
use super::{SessionStorage, memory::MemoryStorage};
#[cfg(feature = "redis")]
use super::{
    StorageError,
    redis::{RedisStorage, RedisUrl, RedisUrlError, SENTINEL_LOGIN},
};

/// The URL of a storage, as passed to `--storage`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageUrl {
    /// `memory:`. The sessions end with the process.
    Memory,
    /// `file:PATH`. The sessions are in a file and survive restarts of the process and the machine.
    #[cfg(feature = "file")]
    File(PathBuf),
    /// `redis://HOST:PORT` and similar. Many replicas share the sessions.
    #[cfg(feature = "redis")]
    Redis(RedisUrl),
}

/// Options that apply to every storage.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct StorageOptions {
    /// How many changes each partition of the log retains for followers, at least 1. Of the changes that a follower has
    /// already read, a storage may keep only the newest 65,536.
    pub retain_events: usize,
    /// The maximum number of sessions in the registry.
    pub max_sessions: u64,
    /// The maximum number of leases.
    pub max_leases: u64,
    /// Limits how much longer leases with a short ttl live because of an outage of the storage. After an outage of
    /// length T, each lease gets its ttl again, and at least the shorter of T + 20 s and this time. A restart of a file
    /// storage and a pause of the process of more than 5 s also count as outages.
    pub outage_grace: Duration,
}

impl StorageOptions {
    /// The default of [`outage_grace`](Self::outage_grace). gRPC libraries wait up to 120 s plus jitter before they
    /// reconnect.
    pub const DEFAULT_OUTAGE_GRACE: Duration = Duration::from_secs(150);

    /// The defaults of `sessiond serve`.
    pub const DEFAULT: Self = Self {
        retain_events: 1 << 20,
        max_sessions: 200_000_000,
        max_leases: 1_000_000,
        outage_grace: Self::DEFAULT_OUTAGE_GRACE,
    };

    setters!(const retain_events: usize, max_sessions: u64, max_leases: u64, outage_grace: Duration);
}

/// The defaults of `sessiond serve`.
impl Default for StorageOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl StorageUrl {
    /// Opens the storage, and logs its progress. A large file takes some seconds.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenError`] if the storage cannot be opened. Opening the memory storage never fails.
    ///
    /// # Panics
    ///
    /// Panics if called outside a tokio runtime.
    pub async fn open(&self, options: StorageOptions) -> Result<Arc<dyn SessionStorage>, OpenError> {
        match self {
            Self::Memory => Ok(Arc::new(MemoryStorage::new(options.into()))),
            #[cfg(feature = "file")]
            Self::File(path) => Ok(Arc::new(FileStorage::open(path, options).await?)),
            #[cfg(feature = "redis")]
            Self::Redis(url) => match RedisStorage::open(url, options).await {
                Ok(storage) => Ok(Arc::new(storage)),
                Err(cause) => Err(OpenError::Redis { url: url.to_string(), cause }),
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
            // Other tools write file URLs as `file:///var/…`.
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

/// Returns the part of an unknown URL that cannot contain a password.
fn shown_part(text: &str) -> String {
    let is_scheme = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    match text.split_once("://") {
        Some((scheme, _)) if is_scheme(scheme) => format!("{scheme}://"),
        _ => "the URL".to_owned(),
    }
}

/// Returns whether a login seems to be in the wrong place: after the host, or cut off by a character in the password
/// that ends the host.
#[cfg(feature = "redis")]
fn misplaces_login(text: &str) -> bool {
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    let behind_host = rest.find(['/', '?', '#']).map_or("", |at| &rest[at..]);
    let is_login = |parameter: &str| {
        let name = parameter.split('=').next().unwrap_or_default();
        let parts = ["pass", "pwd", "secret", "token", "auth", "user"];
        !SENTINEL_LOGIN.contains(&name) && parts.iter().any(|part| name.contains(part))
    };
    behind_host.contains('@') || behind_host.split(['?', '&']).skip(1).any(is_login)
}

impl fmt::Display for StorageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            #[cfg(feature = "file")]
            Self::File(path) => {
                // A path that starts with two slashes needs two more, because parsing strips the first two.
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
    /// The text does not name a storage. Holds the part of it that may be shown.
    #[error("{0} does not name a storage: write memory:, file:PATH, or redis://HOST:PORT (for Redis and Valkey)")]
    UnknownUrl(String),
    /// The URL names a storage that this build leaves out.
    #[error("this build has no {0} storage: build sessiond with the Cargo feature {0}")]
    NotBuilt(&'static str),
    /// The login is in the wrong place of a Redis URL.
    #[cfg(feature = "redis")]
    #[error(
        "the login is in the wrong place: write redis://USER:PASSWORD@HOST:PORT, \
         with %2F for /, %3F for ?, %23 for # and %40 for @ in the password"
    )]
    MisplacedLogin,
    /// The URL has no file path.
    #[cfg(feature = "file")]
    #[error("file: has no path: add the path of a file, as in file:/var/lib/sessiond/registry")]
    NoPath,
    /// The registry's file cannot be opened.
    #[cfg(feature = "file")]
    #[error(transparent)]
    File(#[from] FileError),
    /// A Redis URL is invalid.
    #[cfg(feature = "redis")]
    #[error(transparent)]
    RedisUrl(#[from] RedisUrlError),
    /// Redis cannot be reached, or has no usable registry.
    #[cfg(feature = "redis")]
    #[error("{url} cannot be opened ({})", cause_text(.cause))]
    Redis {
        /// The storage, without its password.
        url: String,
        /// Why it cannot be opened.
        cause: StorageError,
    },
}

impl OpenError {
    /// Returns whether opening may succeed later without any change to the server: the storage is temporarily
    /// unavailable, or another process still uses it. A wrong password, a wrong version or foreign data is permanent.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            #[cfg(feature = "file")]
            Self::File(error) => matches!(error, FileError::InUse { .. } | FileError::Io { .. }),
            #[cfg(feature = "redis")]
            Self::Redis { cause, .. } => cause.may_pass(),
            _ => false,
        }
    }
}

#[cfg(feature = "redis")]
fn cause_text(error: &StorageError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(all(test, feature = "file"))]
mod tests {
    use super::*;

    #[test]
    fn displayed_url_names_the_same_storage() {
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

    #[cfg(feature = "redis")]
    #[test]
    fn errors_that_need_intervention_are_not_temporary() {
        use crate::storage::{RefusalCause, WriteRefusal};

        let cause = || std::io::Error::other("a cause").into();
        let redis = |cause| OpenError::Redis { url: "redis://h".to_owned(), cause };
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
