//! An observer on its own task, which keeps the set of sessions it receives.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use sessiond::{
    session::SessionKey,
    subject::{Observer, ResetReason},
};
use tokio::task::JoinHandle;

use crate::held::View;

#[derive(Default)]
struct State {
    view: View,
    /// The first update that contradicted the view.
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
                let mut state = watched.lock();
                if let Err(broken) = state.view.apply(&update) {
                    state.broken.get_or_insert(broken);
                }
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
            None => Ok(state.view.is_synced.then(|| state.view.sessions.keys().copied().collect())),
        }
    }

    pub(super) fn resets(&self) -> Vec<ResetReason> {
        self.state.lock().view.resets.clone()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.watching.abort();
    }
}
