//! The background task of a lease. Keeps the lease alive and replaces it if it is gone.

use std::{convert::Infallible, future::Future, pin::pin, sync::Arc, time::Duration};

use futures_util::future::{Either, select};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, sleep_until, timeout_at},
};

use super::{calls::LeaseGrant, events::LeaseState};
use crate::{
    client::{ClientError, backoff::Backoff},
    session::LeaseId,
};

/// The range that the protocol allows. An answer outside it must cause neither a busy loop nor an overflow.
const SHORTEST_TTL: Duration = Duration::from_secs(1);
const LONGEST_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Keep-alives per ttl. Two of them may fail before the lease is lost.
const KEEP_ALIVES_PER_TTL: u32 = 3;
/// The earliest a keep-alive is made, as a part of its interval. The random rest spreads gateways that started
/// together.
const EARLIEST_KEEP_ALIVE: f64 = 0.8;
/// While the lease can still be saved, tries are at most this part of the ttl apart.
const RETRIES_PER_TTL: u32 = 10;

/// Ends the lease, at once or after a linger.
#[derive(Debug)]
pub(super) struct Revoke {
    pub(super) linger: Duration,
    /// Receives the number of sessions destroyed with the lease.
    pub(super) reply: oneshot::Sender<Result<u64, ClientError>>,
}

/// The calls that a keeper makes. A trait, so that tests run without a server and on a paused clock.
pub(super) trait Registry: Send + Sync + 'static {
    fn grant(&self) -> impl Future<Output = Result<LeaseGrant, ClientError>> + Send;
    fn keep_alive(&self, lease: LeaseId) -> impl Future<Output = Result<Duration, ClientError>> + Send;
    fn revoke(&self, lease: LeaseId, linger: Duration) -> impl Future<Output = Result<u64, ClientError>> + Send;
    /// Replaces the connection, which may be dead without either end having noticed.
    fn reconnect(&mut self);
}

/// Keeps one lease alive for as long as its [`Lease`](super::Lease) lives.
pub(super) struct Keeper<R> {
    registry: R,
    state: watch::Sender<LeaseState>,
    ttl: Duration,
    /// The lease certainly lives until then. Counted from before the call, because the registry counts from a moment
    /// during it.
    expires: Instant,
    /// Whether the registry has reported that the lease is gone.
    is_gone: bool,
    /// Woken by someone who suspects that the lease is gone.
    check: Arc<Notify>,
    backoff: Backoff,
}

impl<R: Registry> Keeper<R> {
    /// Grants the first lease.
    pub(super) async fn start(registry: R) -> Result<Self, ClientError> {
        let before = Instant::now();
        let LeaseGrant { id, ttl } = registry.grant().await?;
        let ttl = ttl.clamp(SHORTEST_TTL, LONGEST_TTL);
        let (state, _) = watch::channel(LeaseState { id, is_held: true });
        let check = Arc::default();
        Ok(Self { registry, state, ttl, expires: before + ttl, is_gone: false, check, backoff: Backoff::default() })
    }

    /// Returns what makes the keeper call the registry at once.
    pub(super) fn check(&self) -> Arc<Notify> {
        Arc::clone(&self.check)
    }

    pub(super) fn state(&self) -> watch::Receiver<LeaseState> {
        self.state.subscribe()
    }

    /// Keeps the lease alive until `stop` receives a message or its sender is dropped, and then revokes it with a
    /// single call.
    pub(super) async fn run(mut self, stop: oneshot::Receiver<Revoke>) {
        let revoke = match select(stop, pin!(self.keep())).await {
            Either::Left((revoke, _)) => revoke.ok(),
            Either::Right((never, _)) => match never {},
        };
        let id = self.state.borrow().id;
        // End the streams of events now, however long the call takes.
        drop(self.state);
        let linger = revoke.as_ref().map_or(Duration::ZERO, |revoke| revoke.linger);
        let result = self.registry.revoke(id, linger).await;
        if let Err(error) = &result {
            tracing::debug!(lease_id = id.number(), %error, "cannot revoke the lease: it will expire after its ttl");
        }
        if let Some(Revoke { reply, .. }) = revoke {
            // The caller may no longer be waiting.
            let _ = reply.send(result);
        }
    }

    async fn keep(&mut self) -> Infallible {
        let mut wait = self.interval();
        loop {
            let check = Arc::clone(&self.check);
            select(pin!(check.notified()), pin!(self.wait_until(Instant::now() + wait))).await;
            wait = match self.try_once().await {
                Ok(()) => {
                    self.backoff.reset();
                    self.interval()
                }
                Err(error) => self.after_failure(&error),
            };
        }
    }

    async fn wait_until(&mut self, next: Instant) {
        sleep_until(next.min(self.expires)).await;
        if self.expires <= Instant::now() {
            self.lose("the registry was unreachable for the ttl");
        }
        sleep_until(next).await;
    }

    /// Keeps the lease alive, or grants a new one if it is gone.
    async fn try_once(&mut self) -> Result<(), ClientError> {
        let LeaseState { id, is_held } = *self.state.borrow();
        if !self.is_gone {
            let before = Instant::now();
            let after = self.try_timeout(is_held);
            match timeout_at(before + after, self.registry.keep_alive(id)).await {
                Ok(Ok(ttl)) => {
                    self.hold(LeaseGrant { id, ttl }, before);
                    return Ok(());
                }
                Ok(Err(error)) if error.is_lease_gone() => {
                    self.is_gone = true;
                    self.lose("the registry reports that it is gone");
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(ClientError::Timeout { after }),
            }
        }
        let before = Instant::now();
        let after = self.try_timeout(false);
        match timeout_at(before + after, self.registry.grant()).await {
            Ok(grant) => self.hold(grant?, before),
            Err(_) => return Err(ClientError::Timeout { after }),
        }
        Ok(())
    }

    /// How long a try may take.
    fn try_timeout(&self, is_held: bool) -> Duration {
        let longest = self.ttl / KEEP_ALIVES_PER_TTL;
        if !is_held {
            return longest;
        }
        // Half of the remaining time leaves room for another try. At the end use all of it, so that `Lost` is not late.
        let left = self.expires.saturating_duration_since(Instant::now());
        (left / 2).clamp(self.ttl / RETRIES_PER_TTL, longest).min(left)
    }

    fn after_failure(&mut self, error: &ClientError) -> Duration {
        tracing::debug!(lease_id = self.state.borrow().id.number(), %error, "cannot keep the lease alive: retrying");
        if matches!(error, ClientError::Timeout { .. }) {
            self.registry.reconnect();
        }
        // Once the lease is lost, there is time to wait as long as the server asks.
        let tries_per_ttl = if self.state.borrow().is_held { RETRIES_PER_TTL } else { KEEP_ALIVES_PER_TTL };
        self.backoff.after_failure_within(self.ttl / tries_per_ttl, error.retry_after())
    }

    fn interval(&self) -> Duration {
        (self.ttl / KEEP_ALIVES_PER_TTL).mul_f64(EARLIEST_KEEP_ALIVE + (1.0 - EARLIEST_KEEP_ALIVE) * fastrand::f64())
    }

    fn hold(&mut self, LeaseGrant { id, ttl }: LeaseGrant, before: Instant) {
        self.ttl = ttl.clamp(SHORTEST_TTL, LONGEST_TTL);
        self.expires = before + self.ttl;
        self.is_gone = false;
        let held = LeaseState { id, is_held: true };
        let lost = self.state.send_replace(held);
        if lost.id != id {
            tracing::info!(lease_id = id.number(), lost_lease_id = lost.id.number(), "granted a new lease");
        } else if !lost.is_held {
            tracing::info!(lease_id = id.number(), "the lease has survived the outage");
        }
    }

    fn lose(&mut self, why: &'static str) {
        let was_held = self.state.send_if_modified(|state| std::mem::replace(&mut state.is_held, false));
        if was_held {
            tracing::warn!(lease_id = self.state.borrow().id.number(), why, "lost the lease");
        }
    }
}

#[cfg(test)]
mod tests;
