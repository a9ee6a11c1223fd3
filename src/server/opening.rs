//! Opens the storage when the server starts, and waits for one that is away.

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

/// While the server waits, the log says so this often.
const REMINDER: Duration = Duration::from_secs(60);

/// Where a server's sessions are.
///
/// Both kinds are made with `into`:
///
/// ```
/// use std::sync::Arc;
/// use sessiond::{
///     server::StorageSource,
///     storage::{SessionStorage, StorageUrl, memory::MemoryStorage},
/// };
///
/// let named: StorageSource = StorageUrl::Memory.into();
/// let of_ones_own: Arc<dyn SessionStorage> = Arc::new(MemoryStorage::new(Default::default()));
/// let open: StorageSource = of_ones_own.into();
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum StorageSource {
    /// The server opens the storage that a URL names, within the limits of its configuration.
    Url(StorageUrl),
    /// The server uses a storage that is open already. The limits are the storage's own.
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

/// Writes a URL without its password. A storage that is open already is written as its `Debug` does.
impl fmt::Display for StorageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => url.fmt(f),
            Self::Open(storage) => storage.fmt(f),
        }
    }
}

/// How long a server that starts waits for a storage that cannot be opened yet.
///
/// It waits only for what can pass by itself, such as a Redis that is away or loads its data; see
/// [`OpenError::may_pass`](crate::storage::OpenError::may_pass).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageWait {
    /// Until the storage is there.
    Forever,
    /// No longer than this; not at all if zero.
    AtMost(Duration),
}

impl StorageWait {
    /// The default for a storage: forever for one on another machine, which may come later than the server, and not at all for the
    /// others.
    #[must_use]
    pub fn default_for(storage: &StorageUrl) -> Self {
        match storage {
            #[cfg(feature = "redis")]
            StorageUrl::Redis(_) => Self::Forever,
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

/// The subject once its storage is open, and until then why it is not.
#[derive(Debug, Default)]
pub(super) struct Opening {
    subject: OnceLock<Arc<SessionSubject>>,
    /// Why the last try to open the storage failed; none during the first.
    failure: Mutex<Option<String>>,
}

impl Opening {
    /// The subject, or why there is none yet.
    pub(super) fn subject(&self) -> Result<&Arc<SessionSubject>, String> {
        self.subject.get().ok_or_else(|| match &*self.failure.lock() {
            Some(failure) => format!("waiting for the storage: {failure}\n"),
            None => "the storage is being opened\n".to_owned(),
        })
    }

    /// Opens the storage and starts the subject on it. Tries again for as long as `config` says.
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
        // The storage keeps them a second time until the subject has taken them.
        retain_events: config.subject.retain_events.min(config.subject.retain_bytes / size_of::<SessionEvent>()),
        max_sessions: config.max_sessions,
        max_leases: config.max_leases,
        outage_grace: config.outage_grace,
    };
    let storage = config.storage.open(options).await?;
    Ok(Arc::new(SessionSubject::start(storage, config.subject, WireEncoder).await?))
}
