//! The client for gateways and other services.
//!
//! A [`Client`] is a handle to one server, and makes all the calls.
//!
//! - A gateway registers the sessions of its clients through a [`Gateway`], which [`Client::gateway`] returns. It
//!   handles lost leases, clients that move, and calls that arrive late.
//! - Any service looks up sessions with [`Client::has`] and [`Client::lookup`], which also returns the gateway that
//!   holds the session.
//! - A service that looks up many sessions holds a [`Mirror`] of the registry or of a part of it.
//! - An observer reads a [`Watch`], which reconnects and resumes without losing an event.
//! - A [`Lease`], [`Client::create_under`] and [`Client::take`] are what a gateway consists of, for those who write
//!   their own.
//!
//! A call that fails returns a [`ClientError`], which says whether to [retry](ClientError::is_retryable) it.
//!
//! A gateway serves each of its clients like this:
//!
//! ```no_run
//! # async fn until_it_leaves() {}
//! # async fn example() -> Result<(), sessiond::client::ClientError> {
//! use sessiond::{client::Client, session::SessionKey};
//!
//! let client = Client::connect_lazy("http://127.0.0.1:50051")?;
//! let gateway = client.gateway("10.0.0.2:443").await?;
//!
//! let connection = gateway.connect(SessionKey::new(0, 42)).await?;
//! tokio::select! {
//!     () = until_it_leaves() => {}
//!     reason = connection.closed() => println!("closing the connection: {reason:?}"),
//! }
//! drop(connection);
//!
//! gateway.stop().await
//! # }
//! ```

mod backoff;
mod builder;
mod convert;
mod error;
mod gateway;
mod lease;
mod lookup;
mod mirror;
mod place;
mod resend;
mod transport;
mod watch;

use std::{future::Future, time::Duration};

use tonic::{Response, Status, transport::Channel};

use self::transport::{Target, Transport};
pub use self::{
    builder::ClientBuilder,
    error::ClientError,
    gateway::{CloseReason, Connection, Gateway, GatewayOptions},
    lease::{Lease, LeaseEvent, LeaseEvents, LeaseGrant, LeasePage, LeaseQuery, LeaseStatus},
    lookup::{Claimed, Found, LeaseHolder, Located, Taken},
    mirror::{Mirror, MirrorChange, MirrorChanges, MirrorHolder, MirrorOptions, MirrorUpdate},
    place::{Placed, WithPlace},
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
/// All calls of a `Client` use one connection, which is opened on first use and reopened after it breaks. Any number of
/// calls may be in flight. Clones are cheap and share the connection. Each [`Watch`] and each [`Lease`] opens another
/// connection of its own.
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
        Ok(self.create_with(session, NO_LEASE, false).await?.value)
    }

    async fn create_with(
        &self,
        session: SessionKey,
        lease_id: u64,
        with_place: bool,
    ) -> Result<Placed<bool>, ClientError> {
        let request = proto::CreateSessionRequest {
            session_id: Some(session.session_id.0),
            auth_key_id: session.auth_key_id.0,
            lease_id,
            with_place,
            ..Default::default()
        };
        let answer = self.within_timeout(self.calls.clone().create_session(request)).await?;
        Ok(Placed { value: answer.created, places: convert::places(answer.place) })
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
        Ok(self.destroy_with(session, NO_LEASE, false).await?.value)
    }

    async fn destroy_with(
        &self,
        session: SessionKey,
        lease_id: u64,
        with_place: bool,
    ) -> Result<Placed<bool>, ClientError> {
        let request = proto::DestroySessionRequest {
            session_id: Some(session.session_id.0),
            auth_key_id: session.auth_key_id.0,
            lease_id,
            with_place,
        };
        let answer = self.within_timeout(self.calls.clone().destroy_session(request)).await?;
        Ok(Placed { value: answer.destroyed, places: convert::places(answer.place) })
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
        Ok(self.batch_create_with(sessions, NO_LEASE, false).await?.value)
    }

    async fn batch_create_with(
        &self,
        sessions: &[SessionKey],
        lease_id: u64,
        with_place: bool,
    ) -> Result<Placed<Vec<bool>>, ClientError> {
        let mut created = Placed { value: Vec::with_capacity(sessions.len()), places: Vec::new() };
        for part in sessions.chunks(MAX_BATCH) {
            let (session_ids, auth_key_ids) = convert::ids(part);
            let request = proto::BatchCreateSessionsRequest {
                session_ids,
                auth_key_ids,
                lease_id,
                with_place,
                ..Default::default()
            };
            let answer = self.within_timeout(self.calls.clone().batch_create_sessions(request)).await?;
            created.value.extend(one_per_session(part, answer.created)?);
            place::advance(&mut created.places, convert::places(answer.places));
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
        Ok(self.batch_destroy_with(sessions, NO_LEASE, false).await?.value)
    }

    async fn batch_destroy_with(
        &self,
        sessions: &[SessionKey],
        lease_id: u64,
        with_place: bool,
    ) -> Result<Placed<Vec<bool>>, ClientError> {
        let mut destroyed = Placed { value: Vec::with_capacity(sessions.len()), places: Vec::new() };
        for part in sessions.chunks(MAX_BATCH) {
            let (session_ids, auth_key_ids) = convert::ids(part);
            let request = proto::BatchDestroySessionsRequest { session_ids, auth_key_ids, lease_id, with_place };
            let answer = self.within_timeout(self.calls.clone().batch_destroy_sessions(request)).await?;
            destroyed.value.extend(one_per_session(part, answer.destroyed)?);
            place::advance(&mut destroyed.places, convert::places(answer.places));
        }
        Ok(destroyed)
    }

    /// Returns an observer of the registry. It connects when [`Watch::next`] is first called.
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
