//! An observer on its own task, which keeps the set of sessions it receives.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use sessiond::{
    session::{SessionChange, SessionKey},
    subject::{Observer, ResetReason, Update},
};
use tokio::task::JoinHandle;

#[derive(Default)]
struct State {
    held: BTreeSet<SessionKey>,
    is_synced: bool,
    resets: Vec<ResetReason>,
    broken: Option<String>,
}

/// The set of sessions held by an observer that started with a snapshot.
pub(super) struct Mirror {
    state: Arc<Mutex<State>>,
    watching: JoinHandle<()>,
}

impl Mirror {
    pub(super) fn of(mut observer: Observer) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let watched = Arc::clone(&state);
        let watching = tokio::spawn(async move {
            while let Some(update) = observer.next().await {
                watched.lock().apply(&update);
            }
            watched.lock().broken = Some("the stream ended".to_owned());
        });
        Self { state, watching }
    }

    /// Returns the held sessions, or None while a snapshot is incomplete. Fails if an update contradicted the held set.
    pub(super) fn held(&self) -> Result<Option<BTreeSet<SessionKey>>, String> {
        let state = self.state.lock();
        match &state.broken {
            Some(broken) => Err(broken.clone()),
            None => Ok(state.is_synced.then(|| state.held.clone())),
        }
    }

    pub(super) fn resets(&self) -> Vec<ResetReason> {
        self.state.lock().resets.clone()
    }
}

impl State {
    fn apply(&mut self, update: &Update) {
        let broken = match update {
            Update::Subscribed => None,
            Update::Closed => Some("the server closed the stream".to_owned()),
            Update::Reset(reason) => {
                self.resets.push(*reason);
                self.held.clear();
                self.is_synced = false;
                None
            }
            Update::Snapshot(sessions) => {
                let held = sessions.sessions().iter().find(|session| !self.held.insert(**session));
                held.map(|session| format!("{session:?} is in the snapshot but was already held"))
            }
            Update::Synced { session_count } => {
                self.is_synced = true;
                let count = self.held.len();
                (count as u64 != *session_count)
                    .then(|| format!("synced with {session_count} sessions but holds {count}"))
            }
            Update::Events(events) => {
                let unfit = events.events().iter().find(|event| match event.change {
                    SessionChange::Created => !self.held.insert(event.session),
                    SessionChange::Destroyed(_) => !self.held.remove(&event.session),
                    SessionChange::Moved { .. } => !self.held.contains(&event.session),
                });
                unfit.map(|event| format!("{event:?} contradicts the held set"))
            }
            other => Some(format!("{other:?} was not requested")),
        };
        if self.broken.is_none() {
            self.broken = broken;
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.watching.abort();
    }
}
