//! A local copy of the registry.

mod changes;
mod contents;
mod follow;
mod leases;
mod progress;

use std::{fmt, sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinHandle, time::timeout};

pub use self::changes::{MirrorChange, MirrorChanges, MirrorUpdate};
use self::{
    changes::ChangeSender,
    contents::{Contents, TABLES, TABLES_OF_PART},
    follow::Follower,
    leases::Holders,
    progress::Progress,
};
use super::{Client, ClientError, Place, SnapshotSession, WatchOptions};
use crate::session::{AuthKeyId, LeaseId, SessionId, SessionKey};

/// The heartbeat of a mirror's stream.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Which sessions a [`Mirror`] holds. The default is all of them.
///
/// A session must match every filter that is set.
#[derive(Clone, Debug)]
#[must_use]
pub struct MirrorOptions {
    watch: WatchOptions,
}

impl Default for MirrorOptions {
    fn default() -> Self {
        Self { watch: WatchOptions::snapshot().placements().heartbeat(HEARTBEAT) }
    }
}

impl MirrorOptions {
    /// Holds only these sessions, under any auth key.
    pub fn session_ids(mut self, ids: impl IntoIterator<Item = SessionId>) -> Self {
        self.watch = self.watch.session_ids(ids);
        self
    }

    /// Holds only sessions of these auth keys.
    pub fn auth_key_ids(mut self, ids: impl IntoIterator<Item = AuthKeyId>) -> Self {
        self.watch = self.watch.auth_key_ids(ids);
        self
    }

    /// Holds only sessions under these leases.
    pub fn lease_ids(mut self, ids: impl IntoIterator<Item = LeaseId>) -> Self {
        self.watch = self.watch.lease_ids(ids);
        self
    }

    /// Sets the heartbeat of the stream: 100 ms to 1 h, 5 s by default.
    ///
    /// The mirror reconnects after three missed heartbeats, and [`Mirror::wait_until`] may wait for one.
    pub fn heartbeat(mut self, heartbeat: Duration) -> Self {
        self.watch = self.watch.heartbeat(heartbeat);
        self
    }

    fn is_everything(&self) -> bool {
        let WatchOptions { session_ids, auth_key_ids, lease_ids, .. } = &self.watch;
        session_ids.is_empty() && auth_key_ids.is_empty() && lease_ids.is_empty()
    }
}

/// The lease that a session is under, and its owner. Returned by [`Mirror::holder_of`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MirrorHolder {
    /// The lease.
    pub lease: LeaseId,
    /// The lease's owner, by convention the address at which the gateway can be reached. `None` if it could not be
    /// looked up yet, or the lease had ended before it was.
    pub owner: Option<Arc<str>>,
}

/// A local copy of the registry or of a part of it, which answers without the network. Created by [`Client::mirror`].
///
/// ```no_run
/// # use sessiond::{client::{Client, ClientError, MirrorOptions}, session::SessionKey};
/// # async fn example(client: &Client) -> Result<(), ClientError> {
/// let mirror = client.mirror(MirrorOptions::default());
/// mirror.synced().await?;
/// if let Some(holder) = mirror.holder_of(SessionKey::new(0, 42)) {
///     println!("send it to {:?}", holder.owner);
/// }
///
/// // Read your own write:
/// let created = client.with_place().create(SessionKey::new(0, 43)).await?;
/// mirror.wait_until(&created.places).await?;
/// assert!(mirror.has(SessionKey::new(0, 43)));
/// # Ok(())
/// # }
/// ```
///
/// # Exactness
///
/// The mirror is empty until it has [`synced`](Self::synced) for the first time. From then on it holds what the
/// registry held a moment ago. A background task follows the registry's stream, reconnects and resumes by itself. If
/// the stream loses its place, the task reads a new snapshot, and the mirror keeps its old contents until the snapshot
/// is complete. [`staleness`](Self::staleness) says whether the mirror currently follows the registry.
///
/// # Memory and concurrency
///
/// A session takes as much memory as in the server: 21 to 35 bytes if there are a million or more. While a new snapshot
/// replaces the contents, both are in memory.
///
/// All methods take `&self` and may be called from any thread. The sessions are divided over 4,096 tables with a lock
/// each, and a read locks one table for less than a microsecond. The background task locks a table for microseconds, or
/// for up to two milliseconds when a table of tens of thousands of sessions grows.
///
/// Dropping the mirror ends its task and its stream.
pub struct Mirror {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    changes: ChangeSender,
    timeout: Duration,
    task: JoinHandle<()>,
}

/// What the mirror and its task share.
struct Shared {
    contents: Contents,
    holders: Arc<Holders>,
}

impl Client {
    /// Returns a mirror of the registry. It starts to read a snapshot in the background.
    ///
    /// # Panics
    ///
    /// Panics if called outside a Tokio runtime.
    #[must_use]
    pub fn mirror(&self, options: MirrorOptions) -> Mirror {
        let tables = if options.is_everything() { TABLES } else { TABLES_OF_PART };
        let shared = Arc::new(Shared { contents: Contents::new(tables), holders: Arc::default() });
        let (sender, progress) = watch::channel(Progress::new());
        let changes = ChangeSender::new();
        let leases = options.watch.lease_ids.clone();
        let follower = Follower::new(Arc::clone(&shared), sender, changes.clone(), self.clone(), &leases);
        // Ended when the `Mirror` is dropped.
        let task = tokio::spawn(follower.run(self.watch(options.watch)));
        Mirror { shared, progress, changes, timeout: self.timeout, task }
    }
}

impl Mirror {
    /// Returns whether a session exists.
    #[must_use]
    pub fn has(&self, session: SessionKey) -> bool {
        self.shared.contents.contains(&session)
    }

    /// Returns the lease that a session is under, and its owner. `None` if the session does not exist or is under no
    /// lease.
    #[must_use]
    pub fn holder_of(&self, session: SessionKey) -> Option<MirrorHolder> {
        self.shared.contents.read(&session, |slot| self.shared.holders.get(slot)).flatten()
    }

    /// Returns the number of sessions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.contents.len()
    }

    /// Returns whether there are no sessions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns all sessions and their leases, in no particular order.
    ///
    /// The iterator copies a few sessions at a time and holds no lock. Changes made while it runs may be in it or not.
    pub fn iter(&self) -> impl Iterator<Item = SnapshotSession> + '_ {
        let Shared { contents, holders } = &*self.shared;
        (0..contents.tables()).flat_map(move |nth| {
            let mut sessions = Vec::new();
            contents.for_each(nth, |session, slot| {
                sessions.push(SnapshotSession { session, lease: holders.lease(slot) });
            });
            sessions
        })
    }

    /// Returns whether the mirror has read its first snapshot.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.progress.borrow().has_synced
    }

    /// Waits until the mirror has read its first snapshot.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel-safe.
    ///
    /// # Errors
    ///
    /// Returns an error only if it is not [retryable](ClientError::is_retryable), such as a missing permission. The
    /// mirror keeps trying nevertheless.
    pub async fn synced(&self) -> Result<(), ClientError> {
        self.until(|progress| progress.has_synced.then_some(Ok(()))).await
    }

    /// Waits until the mirror holds every change up to these places, which a call
    /// [with a place](Client::with_place) has returned. A later read of the mirror then sees the effect of that call.
    ///
    /// If the changed sessions do not match the mirror's filters, this may wait for the next heartbeat.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel-safe.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError::Timeout`] if this takes longer than the client's timeout, and
    /// [`ClientError::RegistryLost`] if the registry is replaced by a new one or loses changes meanwhile, so that these
    /// places mean nothing. Otherwise like [`synced`](Self::synced).
    pub async fn wait_until(&self, places: &[Place]) -> Result<(), ClientError> {
        let epoch = self.progress.borrow().epoch;
        let reached = self.until(|progress| {
            if progress.epoch != epoch {
                return Some(Err(ClientError::RegistryLost));
            }
            progress.has_reached(places).then_some(Ok(()))
        });
        timeout(self.timeout, reached).await.unwrap_or(Err(ClientError::Timeout { after: self.timeout }))
    }

    /// Returns for how long the mirror may have missed changes. This is zero while its stream is open and not silent,
    /// and otherwise the time since the last message of the stream. Before the first snapshot is complete, it is the
    /// time since the mirror was created.
    #[must_use]
    pub fn staleness(&self) -> Duration {
        self.progress.borrow().staleness()
    }

    /// Returns the changes of the mirror from now on.
    ///
    /// When a new snapshot replaces the contents, the differences are reported as changes. The first snapshot is
    /// reported in the same way, as changes of an empty mirror.
    pub fn changes(&self) -> MirrorChanges {
        self.changes.subscribe()
    }

    /// Waits until `is_done` returns a result.
    async fn until(
        &self,
        mut is_done: impl FnMut(&Progress) -> Option<Result<(), ClientError>>,
    ) -> Result<(), ClientError> {
        let mut progress = self.progress.clone();
        let mut result = Ok(());
        let done = progress.wait_for(|progress| {
            let done = is_done(progress).or_else(|| progress.failure.clone().map(Err));
            let is_done = done.is_some();
            result = done.unwrap_or(Ok(()));
            is_done
        });
        // The task ends only with the mirror or with the runtime.
        let ended = done.await.is_err();
        if ended { Err(ClientError::StreamEnded) } else { result }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").field("len", &self.len()).field("staleness", &self.staleness()).finish_non_exhaustive()
    }
}
