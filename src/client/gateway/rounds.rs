//! The loop that makes all calls about sessions. No two calls about one session are ever in flight together: otherwise
//! a destroy could overtake a create, and the session would stay as a ghost.

use std::{collections::BTreeMap, pin::pin, time::Duration};

use futures_util::future::{Either, select};
use tokio::time::{Instant, sleep_until};

use super::{
    Shared,
    book::{Claim, Lookup, Plan},
};
use crate::{
    client::{Client, ClientError, Lease, LeaseQuery, backoff::Backoff},
    session::{LeaseId, SessionKey},
};

/// The longest pause after a failure, unless the registry asks for a longer one.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause that the registry may ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(10);

pub(super) struct Rounds<'a> {
    shared: &'a Shared,
    lease: &'a Lease,
    /// Has its own connection.
    client: Client,
    backoff: Backoff,
}

impl<'a> Rounds<'a> {
    pub(super) fn new(shared: &'a Shared, lease: &'a Lease, client: Client) -> Self {
        Self { shared, lease, client, backoff: Backoff::default() }
    }

    /// Runs until the gateway is stopped and the sessions whose connections were closed before have been destroyed.
    /// After the stop, a failure ends the loop too: the lease will end with those sessions.
    pub(super) async fn run(mut self) {
        loop {
            let (plan, is_stopped) = {
                let mut book = self.shared.book();
                (book.plan(), book.is_stopped())
            };
            if plan.is_empty() {
                if is_stopped {
                    return;
                }
                self.shared.woken().await;
                continue;
            }
            let lease = plan.lease;
            match self.round(plan).await {
                Ok(()) => self.backoff.reset(),
                Err(error) => {
                    tracing::debug!(lease_id = lease.number(), %error, "cannot reconcile sessions: retrying");
                    if self.shared.book().is_stopped() {
                        return;
                    }
                    self.pause(lease, &error).await;
                }
            }
        }
    }

    /// Waits before the next round. Returns early if the gateway gets a new lease or is stopped.
    async fn pause(&mut self, lease: LeaseId, error: &ClientError) {
        if error.is_lease_gone() {
            self.lease.check();
        }
        let asked = error.retry_after().unwrap_or_default().min(LONGEST_RETRY_AFTER);
        let until = Instant::now() + self.backoff.after_failure_within(LONGEST_PAUSE, None).max(asked);
        loop {
            if let Either::Left(_) = select(pin!(sleep_until(until)), pin!(self.shared.woken())).await {
                return;
            }
            let book = self.shared.book();
            if book.is_stopped() || book.lease() != lease {
                return;
            }
        }
    }

    /// Makes the calls of a plan. Returns the first failure.
    async fn round(&mut self, Plan { lease, lookups, mut claims, destroys }: Plan) -> Result<(), ClientError> {
        let looked_up = self.look_up(&lookups, lease, &mut claims).await;
        self.reconnect_after(&looked_up);
        let claimed = self.claim(&claims, lease).await;
        self.reconnect_after(&claimed);
        let destroyed = self.destroy(&destroys).await;
        self.reconnect_after(&destroyed);
        looked_up.and(claimed).and(destroyed)
    }

    /// Replaces the connection if it may be dead without either end having noticed.
    fn reconnect_after(&mut self, result: &Result<(), ClientError>) {
        if let Err(ClientError::Timeout { .. }) = result {
            self.client = Client::new(self.client.target.clone(), self.client.timeout);
        }
    }

    /// Looks up which leases sessions are under, and adds the resulting claims to `claims`.
    async fn look_up(&self, lookups: &[Lookup], lease: LeaseId, claims: &mut Vec<Claim>) -> Result<(), ClientError> {
        if lookups.is_empty() {
            return Ok(());
        }
        let found = self.holders(lookups, lease).await;
        let mut book = self.shared.book();
        match found {
            Ok((found, is_held)) => {
                let found = lookups.iter().zip(found);
                claims.extend(found.filter_map(|(lookup, found)| book.found(lookup, lease, found, is_held)));
                Ok(())
            }
            Err(error) => {
                lookups.iter().for_each(|lookup| book.lookup_failed(lookup, &error));
                Err(error)
            }
        }
    }

    /// Returns the lease of each session, and whether the gateway's lease still existed after the lookup. It asks for
    /// the lease only if that matters.
    async fn holders(&self, lookups: &[Lookup], lease: LeaseId) -> Result<(Vec<Option<LeaseId>>, bool), ClientError> {
        let sessions: Vec<_> = lookups.iter().map(|lookup| lookup.session).collect();
        let found: Vec<_> = self.client.batch_lookup(&sessions).await?.into_iter().map(|placed| placed.lease).collect();
        let is_doubtful = {
            let book = self.shared.book();
            lookups.iter().zip(&found).any(|(lookup, found)| book.may_have_left(lookup, *found))
        };
        if !is_doubtful {
            return Ok((found, true));
        }
        let is_held = self.is_held(lease).await?;
        if !is_held {
            self.lease.check();
        }
        Ok((found, is_held))
    }

    /// Returns whether a lease exists and does not linger. This asks for the lease's status, because a server may
    /// answer KeepLeaseAlive from memory although the lease was revoked through another replica.
    async fn is_held(&self, lease: LeaseId) -> Result<bool, ClientError> {
        let mut query = LeaseQuery { lease_ids: vec![lease], ..LeaseQuery::default() };
        loop {
            let page = self.client.list_leases(query.clone()).await?;
            if let Some(status) = page.leases.first() {
                return Ok(!status.lingers);
            }
            if page.next.is_empty() {
                return Ok(false);
            }
            query.page_token = page.next;
        }
    }

    /// Puts sessions under the gateway's lease, with one call for each lease to take them from.
    async fn claim(&self, claims: &[Claim], lease: LeaseId) -> Result<(), ClientError> {
        let mut by_holder: BTreeMap<_, Vec<&Claim>> = BTreeMap::new();
        for claim in claims {
            by_holder.entry(claim.only_from).or_default().push(claim);
        }
        let mut result = Ok(());
        for (only_from, claims) in by_holder {
            let sessions: Vec<_> = claims.iter().map(|claim| claim.session).collect();
            let answer = self.client.batch_take(&sessions, lease, only_from).await;
            let mut book = self.shared.book();
            match answer {
                Ok(placed) => {
                    for (claim, placed) in claims.iter().zip(placed) {
                        book.claimed(claim, lease, placed.lease);
                    }
                }
                Err(error) => {
                    claims.iter().for_each(|claim| book.failed(claim.session, &error));
                    result = Err(error);
                }
            }
        }
        result
    }

    /// Destroys sessions, with one call for each lease that they may be under.
    async fn destroy(&self, destroys: &[(SessionKey, LeaseId)]) -> Result<(), ClientError> {
        let mut by_lease: BTreeMap<_, Vec<SessionKey>> = BTreeMap::new();
        for (session, lease) in destroys {
            by_lease.entry(*lease).or_default().push(*session);
        }
        let mut result = Ok(());
        for (lease, sessions) in by_lease {
            let answer = self.client.batch_destroy_under(&sessions, lease).await;
            let mut book = self.shared.book();
            match answer {
                Ok(_) => sessions.iter().for_each(|session| book.destroyed(*session, lease)),
                Err(error) => {
                    sessions.iter().for_each(|session| book.failed(*session, &error));
                    result = Err(error);
                }
            }
        }
        result
    }
}
