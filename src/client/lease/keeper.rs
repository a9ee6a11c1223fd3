//! The task behind a lease: keeps it alive, and grants a new one when it is gone.

use std::{convert::Infallible, future::Future, pin::pin, time::Duration};

use futures_util::future::{Either, select};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep_until, timeout_at},
};

use super::{calls::LeaseGrant, events::LeaseState};
use crate::{
    client::{ClientError, backoff::Backoff},
    session::LeaseId,
};

/// What the protocol allows. An answer outside of it must make neither a busy loop nor an overflow.
const SHORTEST_TTL: Duration = Duration::from_secs(1);
const LONGEST_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// A lease is kept alive this often in a ttl: two tries may fail before it is lost.
const TURNS_A_TTL: u32 = 3;
/// No turn comes earlier than at this part of its time: gateways that started together shall not stay together.
const EARLIEST_TURN: f64 = 0.8;
/// While the lease may be saved, tries are no further apart than this part of the ttl.
const TRIES_A_TTL: u32 = 10;

/// Where to answer how many sessions were destroyed with the lease.
pub(super) type RevokeReply = oneshot::Sender<Result<u64, ClientError>>;

/// What a keeper asks of a registry. A trait so that it can be tested without a server, on a paused clock.
pub(super) trait Registry: Send + Sync + 'static {
    fn grant(&self) -> impl Future<Output = Result<LeaseGrant, ClientError>> + Send;
    fn keep_alive(&self, lease: LeaseId) -> impl Future<Output = Result<Duration, ClientError>> + Send;
    fn revoke(&self, lease: LeaseId) -> impl Future<Output = Result<u64, ClientError>> + Send;
    /// Leaves the connection behind: it may be dead without either end knowing.
    fn reconnect(&mut self);
}

/// Keeps one lease. Ends when the guard does.
pub(super) struct Keeper<R> {
    registry: R,
    state: watch::Sender<LeaseState>,
    ttl: Duration,
    /// Until then the lease lives for certain. Counted from before the call, as the registry counts from within it.
    expires: Instant,
    /// The registry said that the lease is gone.
    is_gone: bool,
    backoff: Backoff,
}

impl<R: Registry> Keeper<R> {
    /// Grants the first lease.
    pub(super) async fn start(registry: R) -> Result<Self, ClientError> {
        let before = Instant::now();
        let LeaseGrant { id, ttl } = registry.grant().await?;
        let ttl = ttl.clamp(SHORTEST_TTL, LONGEST_TTL);
        let (state, _) = watch::channel(LeaseState { id, is_held: true });
        Ok(Self { registry, state, ttl, expires: before + ttl, is_gone: false, backoff: Backoff::default() })
    }

    pub(super) fn state(&self) -> watch::Receiver<LeaseState> {
        self.state.subscribe()
    }

    /// Keeps the lease until `stop` tells otherwise or its sender is dropped, then revokes it, which takes no longer than
    /// one call may.
    pub(super) async fn run(mut self, stop: oneshot::Receiver<RevokeReply>) {
        let reply = match select(stop, pin!(self.keep())).await {
            Either::Left((reply, _)) => reply.ok(),
            Either::Right((never, _)) => match never {},
        };
        let id = self.state.borrow().id;
        // Whoever waits for events hears that there are no more, however long revoking takes.
        drop(self.state);
        let result = self.registry.revoke(id).await;
        if let Err(error) = &result {
            tracing::debug!(lease_id = id.number(), %error, "a lease could not be revoked and is left to expire");
        }
        if let Some(reply) = reply {
            // Who asked may have gone.
            let _ = reply.send(result);
        }
    }

    async fn keep(&mut self) -> Infallible {
        let mut wait = self.turn();
        loop {
            self.wait_until(Instant::now() + wait).await;
            wait = match self.try_once().await {
                Ok(()) => {
                    self.backoff.reset();
                    self.turn()
                }
                Err(error) => self.after_failure(&error),
            };
        }
    }

    async fn wait_until(&mut self, next: Instant) {
        sleep_until(next.min(self.expires)).await;
        if self.expires <= Instant::now() {
            self.lose("the registry could not be reached for its ttl");
        }
        sleep_until(next).await;
    }

    /// Keeps the lease alive, or grants another when it is gone.
    async fn try_once(&mut self) -> Result<(), ClientError> {
        let LeaseState { id, is_held } = *self.state.borrow();
        if !self.is_gone {
            let before = Instant::now();
            let after = self.patience(is_held);
            match timeout_at(before + after, self.registry.keep_alive(id)).await {
                Ok(Ok(ttl)) => {
                    self.hold(LeaseGrant { id, ttl }, before);
                    return Ok(());
                }
                Ok(Err(error)) if error.is_lease_gone() => {
                    self.is_gone = true;
                    self.lose("it is gone");
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(ClientError::Timeout { after }),
            }
        }
        let before = Instant::now();
        let after = self.patience(false);
        match timeout_at(before + after, self.registry.grant()).await {
            Ok(grant) => self.hold(grant?, before),
            Err(_) => return Err(ClientError::Timeout { after }),
        }
        Ok(())
    }

    /// How long a try may take.
    fn patience(&self, is_held: bool) -> Duration {
        let most = self.ttl / TURNS_A_TTL;
        if !is_held {
            return most;
        }
        // Half of what is left leaves time for another try; in the end, all of it, so that the loss is not told late.
        let left = self.expires.saturating_duration_since(Instant::now());
        (left / 2).clamp(self.ttl / TRIES_A_TTL, most).min(left)
    }

    fn after_failure(&mut self, error: &ClientError) -> Duration {
        tracing::debug!(lease_id = self.state.borrow().id.number(), %error, "a lease was not kept alive");
        if matches!(error, ClientError::Timeout { .. }) {
            self.registry.reconnect();
        }
        // Once it is lost nothing is in a hurry: a registry that is away is asked no more often than one that is there.
        let tries_a_ttl = if self.state.borrow().is_held { TRIES_A_TTL } else { TURNS_A_TTL };
        self.backoff.after_failure_within(self.ttl / tries_a_ttl, error.retry_after())
    }

    fn turn(&self) -> Duration {
        (self.ttl / TURNS_A_TTL).mul_f64(EARLIEST_TURN + (1.0 - EARLIEST_TURN) * fastrand::f64())
    }

    fn hold(&mut self, LeaseGrant { id, ttl }: LeaseGrant, before: Instant) {
        self.ttl = ttl.clamp(SHORTEST_TTL, LONGEST_TTL);
        self.expires = before + self.ttl;
        self.is_gone = false;
        let held = LeaseState { id, is_held: true };
        let lost = self.state.send_replace(held);
        if lost.id != id {
            tracing::info!(lease_id = id.number(), lost_lease_id = lost.id.number(), "a new lease was granted");
        } else if !lost.is_held {
            tracing::info!(lease_id = id.number(), "a lease was not lost");
        }
    }

    fn lose(&mut self, why: &'static str) {
        let is_news = self.state.send_if_modified(|state| std::mem::replace(&mut state.is_held, false));
        if is_news {
            tracing::warn!(lease_id = self.state.borrow().id.number(), why, "a lease is lost");
        }
    }
}

#[cfg(test)]
mod tests;
