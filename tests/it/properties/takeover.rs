//! The rules of takeover, which hold whatever happens to the leases meanwhile.

use sessiond::{
    session::{SessionChange, SessionEvent, SessionKey},
    storage::{CreateOptions, Creation, Takeover},
};

use super::{
    checker::{Broken, Promise},
    model::Leases,
};

/// Returns how the answers of a create under a lease, or the changes it made, break the rules. `before` and `after` are
/// the leases before and after the call.
pub(crate) fn judge(
    sessions: &[SessionKey],
    options: CreateOptions,
    creations: &[Creation],
    changes: &[SessionEvent],
    (before, after): (&Leases, &Leases),
) -> Vec<Broken> {
    let Some(own) = options.lease else { return Vec::new() };
    let mut broken = Vec::new();
    for (session, creation) in sessions.iter().zip(creations) {
        let may_stay = match (options.takeover, creation.lease) {
            (_, Some(lease)) if lease == own => true,
            (Takeover::OnlyFrom(from), Some(lease)) => Some(lease) != from && before.protects(lease),
            _ => false,
        };
        if !may_stay {
            broken.push(format!("{session:?} is under {:?} after a create with {options:?}", creation.lease));
        }
    }
    if let Takeover::OnlyFrom(from) = options.takeover {
        for event in changes.iter().filter(|event| event.lease == Some(own)) {
            if let SessionChange::Moved { previous: Some(previous) } = event.change
                && Some(previous) != from
                && after.protects(previous)
            {
                broken.push(format!("{event:?} by a create with {options:?}"));
            }
        }
    }
    broken.into_iter().map(|how| Broken::new(Promise::Placed, how)).collect()
}
