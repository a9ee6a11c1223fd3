//! The client for Rust programs.
//!
//! Gateways use it to register their sessions under a [`Lease`], which ends the sessions if the gateway dies. Other
//! services use it to look up sessions and to [`watch`](Client::watch) them come and go.
//!
//! ```no_run
//! # async fn example() -> Result<(), sessiond::client::ClientError> {
//! use sessiond::{client::{Client, WatchOptions, WatchUpdate}, session::SessionKey};
//!
//! let client = Client::connect_lazy("http://127.0.0.1:50051")?;
//! let session = SessionKey::new(0, 42);
//! assert!(client.create(session).await?);
//! assert!(client.has(session).await?);
//!
//! let mut watch = client.watch(WatchOptions::snapshot());
//! loop {
//!     match watch.next().await? {
//!         WatchUpdate::Snapshot(sessions) => println!("{sessions:?}"),
//!         WatchUpdate::Events(events) => println!("{events:?}"),
//!         _ => {}
//!     }
//! }
//! # }
//! ```

mod backoff;
mod builder;
mod convert;
mod error;
mod lease;
mod lookup;
mod resend;
mod transport;
mod watch;

use std::{future::Future, time::Duration};

use tonic::{Response, Status, transport::Channel};

use self::transport::{Target, Transport};
pub use self::{
    builder::ClientBuilder,
    error::ClientError,
    lease::{Lease, LeaseEvent, LeaseEvents, LeaseGrant, LeasePage, LeaseQuery, LeaseStatus},
    lookup::{LeaseHolder, Located, Placed, Taken},
    watch::{EventType, Place, SnapshotSession, Watch, WatchOptions, WatchStart, WatchUpdate},
};
use crate::{
    proto::{self, lease_service_client::LeaseServiceClient, session_service_client::SessionServiceClient},
    session::SessionKey,
};

pub use crate::{reset::ResetReason, session::MAX_BATCH};

/// The `lease_id` of a request that applies to a session under any lease or none.
const NO_LEASE: u64 = 0;

/// A client of one sessiond server.
///
/// A `Client` is a handle to one connection. Clones share that connection and are cheap, and any number of calls may be
/// in flight. The connection is opened on first use and reopened after it breaks.
///
/// The methods do not retry failed calls. Every call is idempotent, so you may retry it if
/// [`ClientError::is_retryable`] returns true. If the answer to the first try was lost, the retry returns `false`
/// because the first try has already made the change.
///
/// # Cancel safety
///
/// You may drop the future of any method and continue to use the client. The server may or may not have executed the
/// dropped call.
#[derive(Clone, Debug)]
pub struct Client {
    /// Kept beside the channel because each watch opens its own connection.
    target: Target,
    channel: Channel,
    calls: SessionServiceClient<Transport>,
    leases: LeaseServiceClient<Transport>,
    timeout: Duration,
}

impl Client {
    /// Creates a client of the server at `addr` with the defaults of [`ClientBuilder`].
    ///
    /// `addr` is `http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`. The client connects on first use.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError::InvalidAddress`] if `addr` has none of these forms, and [`ClientError::InvalidTls`] if
    /// the system's root certificates cannot be loaded.
    ///
    /// # Panics
    ///
    /// Panics if called outside a Tokio runtime.
    pub fn connect_lazy(addr: &str) -> Result<Self, ClientError> {
        Self::builder(addr)?.connect_lazy()
    }

    /// Returns a builder for a client of the server at `addr`.
    ///
    /// `addr` is `http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError::InvalidAddress`] if `addr` has none of these forms.
    pub fn builder(addr: &str) -> Result<ClientBuilder, ClientError> {
        ClientBuilder::new(addr)
    }

    fn new(target: Target, timeout: Duration) -> Self {
        let channel = target.endpoint.connect_lazy();
        let calls = SessionServiceClient::new(target.over(channel.clone()));
        let leases = LeaseServiceClient::new(target.over(channel.clone()));
        Self { target, channel, calls, leases, timeout }
    }

    /// Returns the connection that calls use, for other services of the same server such as `grpc.health.v1`.
    ///
    /// Calls that you make over it do not carry the client's token.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Creates a session. Returns true if this call created it, false if it existed already.
    ///
    /// A new session is under no lease and lives until it is destroyed. An existing session keeps its lease. Gateways
    /// should use [`create_under`](Self::create_under), so that a crash leaves no ghosts.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails.
    pub async fn create(&self, session: SessionKey) -> Result<bool, ClientError> {
        self.create_with(session, NO_LEASE).await
    }

    async fn create_with(&self, session: SessionKey, lease_id: u64) -> Result<bool, ClientError> {
        let request = proto::CreateSessionRequest {
            session_id: Some(session.session_id.0),
            auth_key_id: session.auth_key_id.0,
            lease_id,
            ..Default::default()
        };
        Ok(self.within_timeout(self.calls.clone().create_session(request)).await?.created)
    }

    /// Returns whether a session exists.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails.
    pub async fn has(&self, session: SessionKey) -> Result<bool, ClientError> {
        let request =
            proto::HasSessionRequest { session_id: Some(session.session_id.0), auth_key_id: session.auth_key_id.0 };
        Ok(self.within_timeout(self.calls.clone().has_session(request)).await?.exists)
    }

    /// Destroys a session, whatever lease it is under. Returns true if this call destroyed it, false if it did not
    /// exist.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails.
    pub async fn destroy(&self, session: SessionKey) -> Result<bool, ClientError> {
        self.destroy_with(session, NO_LEASE).await
    }

    async fn destroy_with(&self, session: SessionKey, lease_id: u64) -> Result<bool, ClientError> {
        let request = proto::DestroySessionRequest {
            session_id: Some(session.session_id.0),
            auth_key_id: session.auth_key_id.0,
            lease_id,
            ..Default::default()
        };
        Ok(self.within_timeout(self.calls.clone().destroy_session(request)).await?.destroyed)
    }

    /// Does what [`create`](Self::create) does for many sessions, and returns one value per session, in order.
    ///
    /// Each session is created atomically, but the batch as a whole is not atomic. More than [`MAX_BATCH`] sessions are
    /// sent as several calls, one after another.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if a call fails. The sessions of earlier calls have then been created. It is safe to
    /// retry the whole batch.
    pub async fn batch_create(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, ClientError> {
        self.batch_create_with(sessions, NO_LEASE).await
    }

    async fn batch_create_with(&self, sessions: &[SessionKey], lease_id: u64) -> Result<Vec<bool>, ClientError> {
        let mut created = Vec::with_capacity(sessions.len());
        for part in sessions.chunks(MAX_BATCH) {
            let (session_ids, auth_key_ids) = convert::ids(part);
            let request =
                proto::BatchCreateSessionsRequest { session_ids, auth_key_ids, lease_id, ..Default::default() };
            let answer = self.within_timeout(self.calls.clone().batch_create_sessions(request)).await?;
            created.extend(one_per_session(part, answer.created)?);
        }
        Ok(created)
    }

    /// Does what [`has`](Self::has) does for many sessions, and returns one value per session, in order.
    ///
    /// More than [`MAX_BATCH`] sessions are sent as several calls, one after another.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if a call fails.
    pub async fn batch_has(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, ClientError> {
        let mut exists = Vec::with_capacity(sessions.len());
        for part in sessions.chunks(MAX_BATCH) {
            let (session_ids, auth_key_ids) = convert::ids(part);
            let request = proto::BatchHasSessionsRequest { session_ids, auth_key_ids };
            let answer = self.within_timeout(self.calls.clone().batch_has_sessions(request)).await?;
            exists.extend(one_per_session(part, answer.exists)?);
        }
        Ok(exists)
    }

    /// Does what [`destroy`](Self::destroy) does for many sessions, and returns one value per session, in order.
    ///
    /// Each session is destroyed atomically, but the batch as a whole is not atomic. More than [`MAX_BATCH`] sessions
    /// are sent as several calls, one after another.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if a call fails. The sessions of earlier calls have then been destroyed. It is safe to
    /// retry the whole batch.
    pub async fn batch_destroy(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, ClientError> {
        self.batch_destroy_with(sessions, NO_LEASE).await
    }

    async fn batch_destroy_with(&self, sessions: &[SessionKey], lease_id: u64) -> Result<Vec<bool>, ClientError> {
        let mut destroyed = Vec::with_capacity(sessions.len());
        for part in sessions.chunks(MAX_BATCH) {
            let (session_ids, auth_key_ids) = convert::ids(part);
            let request =
                proto::BatchDestroySessionsRequest { session_ids, auth_key_ids, lease_id, ..Default::default() };
            let answer = self.within_timeout(self.calls.clone().batch_destroy_sessions(request)).await?;
            destroyed.extend(one_per_session(part, answer.destroyed)?);
        }
        Ok(destroyed)
    }

    /// Returns an observer of the registry. It sends nothing until [`Watch::next`] is called.
    ///
    /// Each watch has its own connection. A watch that is read slowly therefore cannot use up the flow-control window
    /// of calls and other watches, and a dead connection can be abandoned without waiting for it.
    pub fn watch(&self, options: WatchOptions) -> Watch {
        Watch::new(self.target.clone(), self.timeout, options)
    }

    /// Makes a call and drops it after the client's timeout, which includes connecting. Dropping the call cancels it at
    /// the server.
    async fn within_timeout<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, ClientError> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(ClientError::Timeout { after: self.timeout }),
        }
    }
}

fn one_per_session(sessions: &[SessionKey], answers: Vec<bool>) -> Result<Vec<bool>, ClientError> {
    if answers.len() == sessions.len() {
        Ok(answers)
    } else {
        Err(ClientError::Protocol("a batch response does not have one value for each session"))
    }
}
