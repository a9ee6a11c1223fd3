//! Leases: sessions that end with the gateway that holds them.

mod calls;
mod events;
mod keeper;
mod list;

use std::time::Duration;

use tokio::sync::{oneshot, watch};

pub use self::{
    calls::LeaseGrant,
    events::{LeaseEvent, LeaseEvents},
    list::{LeasePage, LeaseQuery, LeaseStatus},
};
use self::{
    events::LeaseState,
    keeper::{Keeper, Registry, RevokeReply},
};
use super::{Client, ClientError};
use crate::session::LeaseId;

/// A lease that is kept alive in the background, made by [`Client::lease`]. Dropping it revokes it, and with it the
/// sessions under it.
///
/// A gateway that crashes keeps nothing alive: its sessions are destroyed when the ttl has passed, and no ghosts stay. A
/// short ttl finds that out sooner; a long one outlasts longer troubles of the network.
///
/// # When the registry is away
///
/// Calls to keep the lease alive are made about three times a ttl, on a connection of their own, and again at once
/// (with backoff, at least ten times a ttl) when they fail. What follows depends on what was away:
///
/// - Away for less than the ttl: nothing happens.
/// - The registry restarts, on a durable storage: every lease gets a full ttl again, and no session ends. When it was away
///   for longer than the ttl the events are [`LeaseEvent::Lost`] and then [`LeaseEvent::Recovered`].
/// - The registry restarts and its sessions are lost, as with `memory:`: so are the leases. When the next call finds that
///   out, within a third of the ttl, a new one is granted: [`LeaseEvent::Regranted`].
/// - The gateway is cut off for longer than the ttl, or stands still: [`LeaseEvent::Lost`] at the ttl. The lease has
///   expired and its sessions are destroyed. When the registry can be reached again: [`LeaseEvent::Regranted`].
///
/// A lease that somebody else revokes is replaced too. It is given up only by dropping it.
///
/// # A gateway
///
/// It knows which sessions it holds, and after `Regranted` it registers them all again. Two rules keep that exact: what a
/// gateway says of sessions does not overlap with registering them all, which a lock sees to; and a session is destroyed
/// only under the gateway's own lease, so that one that has moved to another gateway stays.
///
/// ```no_run
// A test runs this gateway, too: tests/it/gateway.rs.
#[doc = include_str!("lease/gateway_example.rs")]
/// ```
///
/// A gateway that was cut off takes no session from another: one whose client has come back through another gateway stays there, and
/// the gateway closes its own connection.
///
/// Methods may be called at once from any number of tasks; put it into an `Arc` to share it.
#[derive(Debug)]
#[must_use = "dropping a lease revokes it"]
pub struct Lease {
    client: Client,
    granted: LeaseId,
    state: watch::Receiver<LeaseState>,
    /// The background task ends, and revokes the lease, when this is used or dropped.
    stop: oneshot::Sender<RevokeReply>,
}

impl Client {
    /// Grants a lease and keeps it alive in the background, until it is dropped. `ttl` is 1 s to 24 h; `owner` is a label
    /// for people, at most 128 bytes.
    ///
    /// When the future is dropped, a lease that was granted already expires by itself.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call: the first grant is not tried again.
    pub async fn lease(&self, ttl: Duration, owner: &str) -> Result<Lease, ClientError> {
        let keeper = Keeper::start(Connection::new(self, ttl, owner)).await?;
        let state = keeper.state();
        let granted = state.borrow().id;
        let (stop, stopped) = oneshot::channel();
        // Owned by the `Lease`: it ends when `stop` is used or dropped.
        tokio::spawn(keeper.run(stopped));
        Ok(Lease { client: self.clone(), granted, state, stop })
    }
}

impl Lease {
    /// The lease that is held, or the last one while none is; another one after each [`LeaseEvent::Regranted`].
    #[must_use]
    pub fn id(&self) -> LeaseId {
        self.state.borrow().id
    }

    /// Whether the lease is held, as far as is known: false from [`LeaseEvent::Lost`] to the next event.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.state.borrow().is_held
    }

    /// What becomes of the lease, beginning with what has become of it since it was granted first.
    #[must_use]
    pub fn events(&self) -> LeaseEvents {
        LeaseEvents::new(self.state.clone(), self.granted)
    }

    /// Ends the lease, whatever the answer, and destroys the sessions under it. Tells how many those were.
    ///
    /// A gateway that shuts down in order waits for this, where dropping would leave the call to a runtime that may end
    /// before it is made. Either takes no longer than the client's timeout.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the lease is revoked all the same.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] of a call: the lease is left to expire then. [`ClientError::is_lease_gone`] when it was.
    pub async fn revoke(self) -> Result<u64, ClientError> {
        let Self { client, state, stop, .. } = self;
        let (reply, answer) = oneshot::channel();
        // Where it cannot be sent, there is no answer either.
        drop(stop.send(reply));
        match answer.await {
            Ok(result) => result,
            // The runtime that the lease was made in has ended, and the task with it.
            Err(_) => {
                let id = state.borrow().id;
                client.revoke_lease(id).await
            }
        }
    }
}

/// The connection of one lease. It has one of its own, so that keeping alive neither waits behind calls nor for a
/// connection that is dead.
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

    async fn revoke(&self, lease: LeaseId) -> Result<u64, ClientError> {
        self.client.revoke_lease(lease).await
    }

    fn reconnect(&mut self) {
        self.client = anew(&self.client);
    }
}

/// The same client on a connection of its own.
fn anew(client: &Client) -> Client {
    Client::new(client.target.clone(), client.timeout)
}
