//! Holds the answers of calls against the model, at the places where the answers are true.

use std::collections::BTreeSet;

use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{Answers, Creation, Places},
};

use super::{
    checker::{Broken, Promise},
    model::Model,
};

/// What a call said of one session.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    session: SessionKey,
    said: Said,
    places: Places,
    /// Whether the call was about no other session. A batch may be made in several steps.
    is_single: bool,
}

#[derive(Clone, Copy, Debug)]
enum Said {
    Exists(Option<LeaseId>),
    Gone,
    NotUnder(LeaseId),
}

pub(crate) fn of_create(sessions: &[SessionKey], answers: &Answers<Creation>) -> Vec<Answer> {
    let said = answers.sessions.iter().map(|creation| Said::Exists(creation.lease));
    collect(sessions, said, &answers.places)
}

pub(crate) fn of_destroy(sessions: &[SessionKey], lease: Option<LeaseId>, answers: &Answers<bool>) -> Vec<Answer> {
    let said = answers.sessions.iter().map(|destroyed| match lease {
        Some(lease) if !destroyed => Said::NotUnder(lease),
        _ => Said::Gone,
    });
    collect(sessions, said, &answers.places)
}

fn collect(sessions: &[SessionKey], said: impl Iterator<Item = Said>, places: &Places) -> Vec<Answer> {
    let is_single = sessions.len() == 1;
    let answer =
        |(session, said): (&SessionKey, _)| Answer { session: *session, said, places: places.clone(), is_single };
    sessions.iter().zip(said).map(answer).collect()
}

impl Answer {
    /// Returns how it disagrees with the model, if it does. `live` are the leases that had not ended when it was given; `alone` says
    /// that nobody else changed anything meanwhile.
    pub(crate) fn judge(&self, model: &Model, live: &BTreeSet<LeaseId>, alone: bool) -> Option<Broken> {
        let partition = model.partition_of(&self.session);
        let place =
            self.places.iter().find(|place| place.partition as usize == partition).map(|place| place.position.0);
        let held_at = |position| model.lease_at(&self.session, position);
        let is_true = place.is_some_and(|place| {
            let first = if alone || self.is_single { place } else { 0 };
            place <= model.ends()[partition] && (first..=place).any(|position| self.is_true(held_at(position), live))
        });
        let how = || format!("{self:?}, and the model has {:?}", place.map(held_at));
        (!is_true).then(|| Broken::new(Promise::Comparable, how()))
    }

    fn is_true(&self, held: Option<Option<LeaseId>>, live: &BTreeSet<LeaseId>) -> bool {
        let has_ended = |lease: LeaseId| !live.contains(&lease);
        match self.said {
            // A lease that has ended is not told.
            Said::Exists(told) => {
                held.is_some_and(|held| held == told || told.is_none() && held.is_some_and(has_ended))
            }
            Said::Gone => held.is_none(),
            Said::NotUnder(lease) => held != Some(Some(lease)) || has_ended(lease),
        }
    }
}
