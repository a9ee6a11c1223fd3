//! Checks the answers of calls against the model, at the places where they claim to be true.

use std::collections::BTreeSet;

use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{Answers, Creation, Places},
};

use super::{
    checker::{Broken, Promise},
    model::Model,
};

/// The answer of a call about one session.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    session: SessionKey,
    claim: Claim,
    places: Places,
    /// Whether the call named only this session. A batch may be changed in several steps.
    is_single: bool,
}

#[derive(Clone, Copy, Debug)]
enum Claim {
    Exists(Option<LeaseId>),
    Gone,
    NotUnder(LeaseId),
}

pub(crate) fn of_create(sessions: &[SessionKey], answers: &Answers<Creation>) -> Vec<Answer> {
    let claims = answers.sessions.iter().map(|creation| Claim::Exists(creation.lease));
    collect(sessions, claims, &answers.places)
}

pub(crate) fn of_destroy(sessions: &[SessionKey], lease: Option<LeaseId>, answers: &Answers<bool>) -> Vec<Answer> {
    let claims = answers.sessions.iter().map(|destroyed| match lease {
        Some(lease) if !destroyed => Claim::NotUnder(lease),
        _ => Claim::Gone,
    });
    collect(sessions, claims, &answers.places)
}

fn collect(sessions: &[SessionKey], claims: impl Iterator<Item = Claim>, places: &Places) -> Vec<Answer> {
    let is_single = sessions.len() == 1;
    let answer =
        |(session, claim): (&SessionKey, _)| Answer { session: *session, claim, places: places.clone(), is_single };
    sessions.iter().zip(claims).map(answer).collect()
}

impl Answer {
    /// Returns how the answer disagrees with the model, if it does. `live` are the leases that had not ended when it
    /// was given; `alone` says that no other writer changed anything meanwhile.
    pub(crate) fn judge(&self, model: &Model, live: &BTreeSet<LeaseId>, alone: bool) -> Option<Broken> {
        let partition = model.partition_of(&self.session);
        let place =
            self.places.iter().find(|place| place.partition as usize == partition).map(|place| place.position.0);
        let held_at = |position| model.lease_at(&self.session, position);
        let is_true = place.is_some_and(|place| {
            let first = if alone || self.is_single { place } else { 0 };
            place <= model.ends()[partition] && (first..=place).any(|position| self.is_true(held_at(position), live))
        });
        let how = || format!("{self:?}, but the model has {:?}", place.map(held_at));
        (!is_true).then(|| Broken::new(Promise::Comparable, how()))
    }

    fn is_true(&self, held: Option<Option<LeaseId>>, live: &BTreeSet<LeaseId>) -> bool {
        let has_ended = |lease: LeaseId| !live.contains(&lease);
        match self.claim {
            // Calls do not report a lease that has ended.
            Claim::Exists(reported) => {
                held.is_some_and(|held| held == reported || reported.is_none() && held.is_some_and(has_ended))
            }
            Claim::Gone => held.is_none(),
            Claim::NotUnder(lease) => held != Some(Some(lease)) || has_ended(lease),
        }
    }
}
