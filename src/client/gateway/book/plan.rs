//! What one round does, and what its answers change in the book.

use super::{Book, CloseReason, FRESH, Instant, Left, Step};
use crate::{
    client::ClientError,
    session::{LeaseId, SessionKey},
};

/// The most sessions of a round.
const SESSIONS_A_ROUND: usize = 4096;

/// The calls of one round. Each session is in one of the lists.
#[derive(Debug)]
pub(in crate::client::gateway) struct Plan {
    /// The gateway's lease.
    pub(in crate::client::gateway) lease: LeaseId,
    pub(in crate::client::gateway) lookups: Vec<Lookup>,
    pub(in crate::client::gateway) claims: Vec<Claim>,
    /// The sessions to destroy, and a lease that each may be under.
    pub(in crate::client::gateway) destroys: Vec<(SessionKey, LeaseId)>,
}

/// A session whose holder is to be looked up.
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
    /// Returns what to do next. Every session in the plan must be entered again, whether its calls succeed or not.
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

    /// Returns whether an answer that the session is under `found` means that it has left although connections are
    /// registered, or that the gateway's lease is gone. Only a look at the lease tells which.
    pub(in crate::client::gateway) fn may_have_left(&self, lookup: &Lookup, found: Option<LeaseId>) -> bool {
        found.is_none() && self.entries.get(&lookup.session).is_some_and(|entry| entry.is_registered())
    }

    /// Enters where a session was found, and returns the claim that follows. `is_held` says whether the gateway's lease
    /// still existed after the lookup.
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
                // The session ended with the lease. It is registered again under the next one.
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

    /// Enters which lease a session is under after a claim.
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
            // The lease has ended since. Claim the session again under the next one.
            None => {}
        }
        self.settle(claim.session);
    }

    /// The session is certainly not under `lease`, under which it was destroyed.
    pub(in crate::client::gateway) fn destroyed(&mut self, session: SessionKey, lease: LeaseId) {
        if let Some(entry) = self.entries.get_mut(&session) {
            entry.is_not_under(lease);
            entry.registered = entry.registered.filter(|registered| *registered != lease);
        }
        self.settle(session);
    }

    /// A lookup has failed.
    pub(in crate::client::gateway) fn lookup_failed(&mut self, lookup: &Lookup, error: &ClientError) {
        if let Some(entry) = self.entries.get_mut(&lookup.session) {
            entry.hint = entry.hint.or(lookup.hint);
        }
        self.failed(lookup.session, error);
    }

    /// A call about a session has failed. It is made again, unless that cannot help a connection that is opening.
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
