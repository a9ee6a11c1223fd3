//! Opens the storage when the server starts, and retries while it is unreachable.

use std::{
    error::Error,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::{
    backoff::Backoff,
    server::{ServerConfig, ServerError},
    service::WireEncoder,
    session::SessionEvent,
    storage::{OpenError, SessionStorage, StorageOptions, StorageUrl},
    subject::SessionSubject,
};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(2);

/// How often a waiting server logs a warning.
const REMINDER: Duration = Duration::from_secs(60);

/// The storage of a server: one that a URL names, or one of your own. Convert either with `into`:
///
/// ```
/// use std::sync::Arc;
/// use sessiond::{
///     server::StorageSource,
///     storage::{SessionStorage, StorageUrl, memory::MemoryStorage},
/// };
///
/// let named: StorageSource = StorageUrl::Memory.into();
/// let own: Arc<dyn SessionStorage> = Arc::new(MemoryStorage::new(Default::default()));
/// let open: StorageSource = own.into();
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum StorageSource {
    /// The server opens the storage that a URL names, within the limits of its configuration.
    Url(StorageUrl),
    /// The server uses this storage, whose own limits hold.
    Open(Arc<dyn SessionStorage>),
}

impl StorageSource {
    async fn open(&self, options: StorageOptions) -> Result<Arc<dyn SessionStorage>, OpenError> {
        match self {
            Self::Url(url) => url.open(options).await,
            Self::Open(storage) => Ok(Arc::clone(storage)),
        }
    }
}

impl From<StorageUrl> for StorageSource {
    fn from(url: StorageUrl) -> Self {
        Self::Url(url)
    }
}

impl From<Arc<dyn SessionStorage>> for StorageSource {
    fn from(storage: Arc<dyn SessionStorage>) -> Self {
        Self::Open(storage)
    }
}

/// Shows a URL without its password, and an open storage as its `Debug` does.
impl fmt::Display for StorageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => url.fmt(f),
            Self::Open(storage) => storage.fmt(f),
        }
    }
}

/// How long a starting server waits for a storage that cannot be opened yet.
///
/// It waits only if the error can go away by itself, for example if Redis is unreachable or still loads its data; see
/// [`OpenError::may_pass`](crate::storage::OpenError::may_pass). Otherwise the server fails immediately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageWait {
    /// Wait until the storage is open.
    Forever,
    /// Wait at most this long. Zero means not to wait.
    AtMost(Duration),
}

impl StorageWait {
    /// Returns the default for a storage: forever for Redis, which may start later than the server, and no wait for the
    /// others.
    #[must_use]
    pub fn default_for(storage: &StorageSource) -> Self {
        match storage {
            #[cfg(feature = "redis")]
            StorageSource::Url(StorageUrl::Redis(_)) => Self::Forever,
            _ => Self::AtMost(Duration::ZERO),
        }
    }

    fn is_over(self, waited: Duration) -> bool {
        match self {
            Self::Forever => false,
            Self::AtMost(limit) => waited >= limit,
        }
    }
}

/// Holds the subject once its storage is open, and the reason for the delay until then.
#[derive(Debug, Default)]
pub(super) struct Opening {
    subject: OnceLock<Arc<SessionSubject>>,
    /// Why the last attempt to open the storage failed. `None` during the first attempt.
    failure: Mutex<Option<String>>,
}

impl Opening {
    /// Returns the subject, or a text for the admin port that says why there is none yet.
    pub(super) fn subject(&self) -> Result<&Arc<SessionSubject>, String> {
        self.subject.get().ok_or_else(|| match &*self.failure.lock() {
            Some(failure) => format!("waiting for the storage: {failure}\n"),
            None => "the storage is being opened\n".to_owned(),
        })
    }

    /// Opens the storage and starts the subject on it. Retries for as long as `config` allows.
    pub(super) async fn run(&self, config: &ServerConfig) -> Result<Arc<SessionSubject>, ServerError> {
        let began = Instant::now();
        let mut reminded = None;
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        let subject = loop {
            let error = match open(config).await {
                Ok(subject) => break subject,
                Err(error) => error,
            };
            let waited = began.elapsed();
            if !error.may_pass() || config.storage_wait.is_over(waited) {
                return Err(error);
            }
            *self.failure.lock() = Some(error.to_string());
            let is_due = reminded.is_none_or(|reminded: Instant| reminded.elapsed() >= REMINDER);
            if is_due {
                reminded = Some(Instant::now());
                let (error, waited_seconds) = (&error as &dyn Error, waited.as_secs());
                tracing::warn!(error, waited_seconds, "the storage cannot be opened yet; waiting for it");
            } else {
                tracing::debug!(error = &error as &dyn Error, "the storage still cannot be opened");
            }
            sleep(backoff.pause()).await;
        };
        if reminded.is_some() {
            tracing::info!(waited_seconds = began.elapsed().as_secs(), "the storage is open");
        }
        Ok(Arc::clone(self.subject.get_or_init(|| subject)))
    }
}

async fn open(config: &ServerConfig) -> Result<Arc<SessionSubject>, ServerError> {
    let options = StorageOptions {
        // The storage keeps its own copy of each event until the subject has read it.
        retain_events: config.subject.retain_events.min(config.subject.retain_bytes / size_of::<SessionEvent>()),
        max_sessions: config.max_sessions,
        max_leases: config.max_leases,
        outage_grace: config.outage_grace,
    };
    let storage = config.storage.open(options).await?;
    Ok(Arc::new(SessionSubject::start(storage, config.subject, WireEncoder).await.map_err(ServerError::Storage)?))
}
