//! What other Rust programs use to talk to a sessiond: gateways to say which sessions exist, others to ask and to
//! observe. A gateway holds its sessions under a lease, so that they end with it: see [`Lease`].
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

/// In a request to create or destroy: whatever the lease.
const NO_LEASE: u64 = 0;

/// A connection to a sessiond, shared by its clones: cloning is cheap, and any number of calls may be under way.
///
/// It connects when it is first used and again whenever the connection broke. No method retries by itself: every call
/// is idempotent, so it is safe to make again where [`ClientError::is_retryable`] says that it may help. (A call that
/// is made again after its first answer was lost tells `false`, as the first one did the work.)
///
/// Every method is cancel-safe in that nothing of the client breaks. A call that is dropped may or may not have been
/// carried out.
#[derive(Clone, Debug)]
pub struct Client {
    /// Kept beside the channel because every watch opens a connection of its own.
    target: Target,
    channel: Channel,
    calls: SessionServiceClient<Transport>,
    leases: LeaseServiceClient<Transport>,
    timeout: Duration,
}

impl Client {
    /// A client of the server at `addr` (`http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`), with the defaults of
    /// [`ClientBuilder`]. Connects when it is first used.
    ///
    /// # Errors
    ///
    /// [`ClientError::InvalidAddress`] when `addr` is no such address, [`ClientError::InvalidTls`] when the system's
    /// roots cannot be used.
    ///
    /// # Panics
    ///
    /// When called outside of a Tokio runtime.
    pub fn connect_lazy(addr: &str) -> Result<Self, ClientError> {
        Self::builder(addr)?.connect_lazy()
    }

    /// Starts to build a client of the server at `addr` (`http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`).
    ///
    /// # Errors
    ///
    /// [`ClientError::InvalidAddress`] when `addr` is no such address.
    pub fn builder(addr: &str) -> Result<ClientBuilder, ClientError> {
        ClientBuilder::new(addr)
    }

    fn new(target: Target, timeout: Duration) -> Self {
        let channel = target.endpoint.connect_lazy();
        let calls = SessionServiceClient::new(target.over(channel.clone()));
        let leases = LeaseServiceClient::new(target.over(channel.clone()));
        Self { target, channel, calls, leases, timeout }
    }

    /// The connection that calls go over, for other services of the same server, such as `grpc.health.v1`. What is called
    /// over it goes without the client's token.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Makes a session exist. True when this call created it, false when it existed already.
    ///
    /// A new session is under no lease and lives until it is destroyed; one that existed keeps its lease. A gateway
    /// uses [`create_under`](Self::create_under) and leaves no ghosts when it crashes.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call.
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

    /// Tells whether a session exists.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call.
    pub async fn has(&self, session: SessionKey) -> Result<bool, ClientError> {
        let request =
            proto::HasSessionRequest { session_id: Some(session.session_id.0), auth_key_id: session.auth_key_id.0 };
        Ok(self.within_timeout(self.calls.clone().has_session(request)).await?.exists)
    }

    /// Makes a session not exist, whatever lease it is under. True when this call destroyed it, false when there was
    /// none.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call.
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

    /// [`create`](Self::create) for many sessions; the answers are in their order.
    ///
    /// Each session is atomic by itself, the batch is not. More than [`MAX_BATCH`] sessions take several calls, one
    /// after the other.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call. Sessions of the calls before the one that failed are created then; to make the
    /// whole call again is safe.
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
            created.extend(one_each(part, answer.created)?);
        }
        Ok(created)
    }

    /// [`has`](Self::has) for many sessions; the answers are in their order.
    ///
    /// More than [`MAX_BATCH`] sessions take several calls, one after the other.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call.
    pub async fn batch_has(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, ClientError> {
        let mut exists = Vec::with_capacity(sessions.len());
        for part in sessions.chunks(MAX_BATCH) {
            let (session_ids, auth_key_ids) = convert::ids(part);
            let request = proto::BatchHasSessionsRequest { session_ids, auth_key_ids };
            let answer = self.within_timeout(self.calls.clone().batch_has_sessions(request)).await?;
            exists.extend(one_each(part, answer.exists)?);
        }
        Ok(exists)
    }

    /// [`destroy`](Self::destroy) for many sessions; the answers are in their order.
    ///
    /// Each session is atomic by itself, the batch is not. More than [`MAX_BATCH`] sessions take several calls, one
    /// after the other.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call. Sessions of the calls before the one that failed are destroyed then; to make the
    /// whole call again is safe.
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
            destroyed.extend(one_each(part, answer.destroyed)?);
        }
        Ok(destroyed)
    }

    /// Observes the registry. Nothing is sent before [`Watch::next`] is called.
    ///
    /// Each watch has a connection of its own, so that one that is read slowly cannot use up the flow control that
    /// calls and other watches need, and so that a dead connection is left behind rather than waited for.
    pub fn watch(&self, options: WatchOptions) -> Watch {
        Watch::new(self.target.clone(), self.timeout, options)
    }

    /// Gives up after the client's timeout, which covers connecting too. The call is dropped then, which tells the
    /// server.
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

fn one_each(sessions: &[SessionKey], answers: Vec<bool>) -> Result<Vec<bool>, ClientError> {
    if answers.len() == sessions.len() {
        Ok(answers)
    } else {
        Err(ClientError::Protocol("a batch was not answered with one value a session"))
    }
}
