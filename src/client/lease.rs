//! Leases, which end a gateway's sessions if the gateway dies.

mod calls;
mod events;
mod keeper;
mod list;

use std::{sync::Arc, time::Duration};

use tokio::sync::{Notify, oneshot, watch};

pub use self::{
    calls::LeaseGrant,
    events::{LeaseEvent, LeaseEvents},
    list::{LeasePage, LeaseQuery, LeaseStatus},
};
use self::{
    events::LeaseState,
    keeper::{Keeper, Registry, Revoke},
};
use super::{Client, ClientError};
use crate::session::LeaseId;

/// A lease that is kept alive in the background. Created by [`Client::lease`].
///
/// A lease ties sessions to the gateway that holds them. Create sessions under it with [`Client::create_under`] and its
/// [`id`](Self::id). They are destroyed when the lease ends:
///
/// - Dropping this value revokes the lease. Call [`revoke`](Self::revoke) if you can.
/// - If the gateway crashes, nothing keeps the lease alive, and it expires once its ttl has passed.
///
/// A short ttl removes the sessions of a dead gateway sooner; a long one tolerates longer network problems.
///
/// # Outages
///
/// A background task keeps the lease alive about three times per ttl, over its own connection. If a call fails, the
/// task retries with backoff, at least ten times per ttl. What happens depends on the outage:
///
/// - It is shorter than the ttl: nothing happens.
/// - The registry restarts with a durable storage: every lease gets its full ttl again, and no session ends. If the
///   registry was away for longer than the ttl, the events are [`LeaseEvent::Lost`] and then
///   [`LeaseEvent::Recovered`].
/// - The registry restarts and loses its sessions, as with `memory:`. The leases are lost too. The next keep-alive
///   fails within a third of the ttl, and the task grants a new lease: [`LeaseEvent::Regranted`].
/// - The gateway is cut off or paused for longer than the ttl: [`LeaseEvent::Lost`] when the ttl has passed. The lease
///   has expired, and its sessions are destroyed. Once the registry can be reached again: [`LeaseEvent::Regranted`].
///
/// A lease that someone else revokes is also replaced by a new one. Only [`revoke`](Self::revoke) and dropping the
/// `Lease` end it for good.
///
/// # Gateways
///
/// A gateway that only creates and destroys sessions under a lease still has to register them again after
/// `Regranted`, to notice those that moved elsewhere, and to keep calls in order. [`Client::gateway`] does all of it.
///
/// All methods take `&self` or consume the lease. Put the lease into an `Arc` to share it between tasks.
#[derive(Debug)]
#[must_use = "dropping a lease revokes it"]
pub struct Lease {
    client: Client,
    granted: LeaseId,
    state: watch::Receiver<LeaseState>,
    /// Sending or dropping this ends the background task, which then revokes the lease.
    stop: oneshot::Sender<Revoke>,
    /// Makes the background task call the registry at once.
    check: Arc<Notify>,
}

impl Client {
    /// Grants a lease and keeps it alive in the background until the returned [`Lease`] is dropped.
    ///
    /// `ttl` is 1 s to 24 h. `owner` is at most 128 bytes, by convention the address at which the gateway can be
    /// reached.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, a lease that was already granted expires after its ttl.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the grant fails. The first grant is not retried.
    pub async fn lease(&self, ttl: Duration, owner: &str) -> Result<Lease, ClientError> {
        let keeper = Keeper::start(Connection::new(self, ttl, owner)).await?;
        let (state, check) = (keeper.state(), keeper.check());
        let granted = state.borrow().id;
        let (stop, stopped) = oneshot::channel();
        // The task ends with the `Lease`, which owns `stop`.
        tokio::spawn(keeper.run(stopped));
        Ok(Lease { client: self.clone(), granted, state, stop, check })
    }
}

impl Lease {
    /// Returns the id of the lease, under which to create sessions. While no lease is held, this is the id of the last
    /// one.
    ///
    /// The id changes with each [`LeaseEvent::Regranted`].
    #[must_use]
    pub fn id(&self) -> LeaseId {
        self.state.borrow().id
    }

    /// Returns whether the lease is held, as far as the client knows: false from [`LeaseEvent::Lost`] until the next
    /// event.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.state.borrow().is_held
    }

    /// Returns the events of the lease, starting with those since it was first granted.
    pub fn events(&self) -> LeaseEvents {
        LeaseEvents::new(self.state.clone(), self.granted)
    }

    /// Revokes the lease and returns how many sessions were destroyed with it.
    ///
    /// Call this in an orderly shutdown. Dropping the `Lease` also revokes the lease, but in the background, and the
    /// runtime may end before that. This takes no longer than the client's timeout.
    ///
    /// To let clients move to other gateways first, call [`linger`](Self::linger).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the lease is still revoked.
    ///
    /// # Errors
    ///
    /// Returns a [`ClientError`] if the call fails; the lease then expires after its ttl.
    /// [`ClientError::is_lease_gone`] is true if the lease had already ended.
    pub async fn revoke(self) -> Result<u64, ClientError> {
        self.end(Duration::ZERO).await
    }

    /// Lets the lease linger for `linger`, at most 1 h, and stops keeping it alive.
    ///
    /// Use this to shut a gateway down: its clients move to other gateways, and no observer sees their sessions
    /// disappear. See [`Client::linger_lease`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the lease still lingers.
    ///
    /// # Errors
    ///
    /// Like [`revoke`](Self::revoke).
    pub async fn linger(self, linger: Duration) -> Result<(), ClientError> {
        self.end(linger).await.map(drop)
    }

    async fn end(self, linger: Duration) -> Result<u64, ClientError> {
        let Self { client, state, stop, .. } = self;
        let (reply, answer) = oneshot::channel();
        // If the task is gone, sending fails, and so does receiving the answer below.
        drop(stop.send(Revoke { linger, reply }));
        match answer.await {
            Ok(result) => result,
            // The task ended with the runtime that the lease was created in.
            Err(_) => {
                let id = state.borrow().id;
                client.end_lease(id, linger).await
            }
        }
    }

    /// Calls the registry at once, because an answer or an event suggests that the lease is gone.
    pub(super) fn check(&self) {
        self.check.notify_one();
    }
}

/// The connection that keeps one lease alive.
///
/// Each lease has its own connection, so that keep-alives neither queue behind other calls nor wait for a dead
/// connection.
#[derive(Debug)]
struct Connection {
    client: Client,
    ttl: Duration,
    owner: String,
}

impl Connection {
    fn new(client: &Client, ttl: Duration, owner: &str) -> Self {
        Self { client: anew(client), ttl, owner: owner.to_owned() }
    }
}

impl Registry for Connection {
    async fn grant(&self) -> Result<LeaseGrant, ClientError> {
        self.client.grant_lease(self.ttl, &self.owner).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, ClientError> {
        self.client.keep_lease_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId, linger: Duration) -> Result<u64, ClientError> {
        self.client.end_lease(lease, linger).await
    }

    fn reconnect(&mut self) {
        self.client = anew(&self.client);
    }
}

/// Returns a copy of the client with its own connection.
pub(super) fn anew(client: &Client) -> Client {
    Client::new(client.target.clone(), client.timeout)
}
