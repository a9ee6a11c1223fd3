//! Plans the calls of one round, and records their answers in the book.

use super::{Book, CloseReason, FRESH, Instant, Left, Step};
use crate::{
    client::ClientError,
    session::{LeaseId, SessionKey},
};

/// The maximum number of sessions in a round.
const SESSIONS_A_ROUND: usize = 4096;

/// The calls of one round. Each session is in one of the lists.
#[derive(Debug)]
pub(in crate::client::gateway) struct Plan {
    /// The gateway's lease.
    pub(in crate::client::gateway) lease: LeaseId,
    pub(in crate::client::gateway) lookups: Vec<Lookup>,
    pub(in crate::client::gateway) claims: Vec<Claim>,
    /// The sessions to destroy, each with a lease that it may be under. A session may be listed with several leases.
    pub(in crate::client::gateway) destroys: Vec<(SessionKey, LeaseId)>,
}

/// A session whose holder must be looked up.
#[derive(Clone, Copy, Debug)]
pub(in crate::client::gateway) struct Lookup {
    pub(in crate::client::gateway) session: SessionKey,
    hint: Option<Left>,
}

/// A session to put under the gateway's lease.
#[derive(Clone, Copy, Debug)]
pub(in crate::client::gateway) struct Claim {
    pub(in crate::client::gateway) session: SessionKey,
    pub(in crate::client::gateway) only_from: Option<LeaseId>,
    /// Whether the session was registered under an earlier lease.
    is_restore: bool,
}

impl Plan {
    pub(in crate::client::gateway) fn is_empty(&self) -> bool {
        self.lookups.is_empty() && self.claims.is_empty() && self.destroys.is_empty()
    }
}

impl Book {
    /// Returns the calls to make next. The caller must record an answer or a failure for every session in the plan:
    /// otherwise the session is never queued again.
    pub(in crate::client::gateway) fn plan(&mut self) -> Plan {
        let lease = self.lease;
        let mut plan = Plan { lease, lookups: Vec::new(), claims: Vec::new(), destroys: Vec::new() };
        for _ in 0..SESSIONS_A_ROUND.min(self.queue.len()) {
            let Some(session) = self.queue.pop_front() else { break };
            let Some(entry) = self.entries.get_mut(&session) else { continue };
            entry.is_queued = false;
            entry.has_appeared = false;
            if entry.open.is_empty() {
                plan.destroys.extend(entry.under.iter().map(|lease| (session, *lease)));
                if entry.under.is_empty() {
                    self.entries.remove(&session);
                }
                continue;
            }
            let claimed = entry.openings().find_map(|opening| match opening.step {
                Step::Claims(only_from) => Some(only_from),
                _ => None,
            });
            if entry.is_registered() && entry.registered != Some(lease) {
                entry.may_be_under(lease);
                plan.claims.push(Claim { session, only_from: None, is_restore: true });
            } else if let Some(only_from) = claimed {
                entry.may_be_under(lease);
                plan.claims.push(Claim { session, only_from, is_restore: false });
            } else if entry.has_work(lease) {
                entry.openings().for_each(|opening| opening.step = Step::LooksUp);
                plan.lookups.push(Lookup { session, hint: entry.hint.take() });
            }
        }
        plan
    }

    /// Returns whether a registered session was found under no lease. Either the session was destroyed, or the
    /// gateway's lease is gone. The caller must ask for the lease to find out which.
    pub(in crate::client::gateway) fn may_have_left(&self, lookup: &Lookup, found: Option<LeaseId>) -> bool {
        found.is_none() && self.entries.get(&lookup.session).is_some_and(|entry| entry.is_registered())
    }

    /// Records which lease a session was found under, and returns the claim to make next, if any. `is_held` says
    /// whether the gateway's lease still existed after the lookup.
    pub(in crate::client::gateway) fn found(
        &mut self,
        lookup: &Lookup,
        lease: LeaseId,
        found: Option<LeaseId>,
        is_held: bool,
    ) -> Option<Claim> {
        let session = lookup.session;
        let entry = self.entries.get_mut(&session)?;
        let mut claim = None;
        if found == Some(lease) {
            entry.is_under(lease);
            entry.answer(|step| step == Step::LooksUp, || Ok(()));
        } else {
            let reason = match found {
                Some(to) => Some(CloseReason::Moved { to }),
                None if is_held => Some(lookup.hint.unwrap_or(Left::Missing).reason()),
                // The session ended with the lease. It will be registered again under the next lease.
                None => None,
            };
            if let Some(reason) = reason {
                entry.close_registered(reason);
                entry.is_not_under(lease);
            }
            let is_fresh = |since: Instant| since.elapsed() < FRESH;
            let mut waiting: Vec<_> = entry.openings().filter(|opening| opening.step == Step::LooksUp).collect();
            if !waiting.is_empty() {
                let only_from = found.filter(|_| waiting.iter().any(|opening| is_fresh(opening.since)));
                waiting.iter_mut().for_each(|opening| opening.step = Step::Claims(only_from));
                entry.may_be_under(lease);
                claim = Some(Claim { session, only_from, is_restore: false });
            }
        }
        if claim.is_none() {
            self.settle(session);
        }
        claim
    }

    /// Records which lease a session is under after a claim.
    pub(in crate::client::gateway) fn claimed(&mut self, claim: &Claim, lease: LeaseId, answer: Option<LeaseId>) {
        let Some(entry) = self.entries.get_mut(&claim.session) else { return };
        let is_due = |step| matches!(step, Step::Claims(_));
        match answer {
            Some(to) if to != lease => {
                entry.close_registered(CloseReason::Moved { to });
                entry.is_not_under(lease);
                if !claim.is_restore {
                    entry.answer(is_due, || Err(ClientError::SessionElsewhere { lease: to }));
                }
            }
            Some(_) => {
                entry.is_under(lease);
                entry.answer(is_due, || Ok(()));
            }
            // The gateway's lease has ended since. The session will be claimed again under the next lease.
            None => {}
        }
        self.settle(claim.session);
    }

    /// Records that a session was destroyed under `lease`, or was not under it.
    pub(in crate::client::gateway) fn destroyed(&mut self, session: SessionKey, lease: LeaseId) {
        if let Some(entry) = self.entries.get_mut(&session) {
            entry.is_not_under(lease);
            entry.registered = entry.registered.filter(|registered| *registered != lease);
        }
        self.settle(session);
    }

    /// Records that a lookup has failed.
    pub(in crate::client::gateway) fn lookup_failed(&mut self, lookup: &Lookup, error: &ClientError) {
        if let Some(entry) = self.entries.get_mut(&lookup.session) {
            entry.hint = entry.hint.or(lookup.hint);
        }
        self.failed(lookup.session, error);
    }

    /// Records that a call about a session has failed, and queues the session again. If neither a retry nor a new lease
    /// can help, the `connect` calls that waited for the answer fail with the error.
    pub(in crate::client::gateway) fn failed(&mut self, session: SessionKey, error: &ClientError) {
        if let Some(entry) = self.entries.get_mut(&session)
            && !error.is_retryable()
            && !error.is_lease_gone()
        {
            entry.answer(|step| step != Step::Waits, || Err(error.clone()));
        }
        self.settle(session);
    }
}
