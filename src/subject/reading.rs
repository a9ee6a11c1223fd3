//! A read of a run that any number of observers wait for.

use std::sync::Arc;

use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use tokio::{sync::watch, task::AbortHandle};

use super::run::Run;

/// What a read returns. `None` if it failed.
type Outcome = Option<Arc<Run>>;

/// A read in progress. Dropping it ends the read, so those who wait share it.
pub(super) struct Reading {
    outcome: watch::Receiver<Option<Outcome>>,
    task: Mutex<Option<AbortHandle>>,
}

/// Says what a read returned.
pub(super) struct Ending(watch::Sender<Option<Outcome>>);

impl Reading {
    pub(super) fn new() -> (Arc<Self>, Ending) {
        let (ending, outcome) = watch::channel(None);
        (Arc::new(Self { outcome, task: Mutex::default() }), Ending(ending))
    }

    /// Drives the read: now as far as it gets, and then in a task. So no observer that stops or leaves delays others.
    pub(super) fn drive(&self, mut read: BoxFuture<'static, ()>) {
        if read.as_mut().now_or_never().is_none() {
            *self.task.lock() = Some(tokio::spawn(read).abort_handle());
        }
    }

    /// Waits for what the read returns.
    pub(super) async fn outcome(&self) -> Outcome {
        // Without an outcome, the task has panicked or its runtime has ended.
        self.outcome.clone().wait_for(Option::is_some).await.ok()?.clone().flatten()
    }
}

impl Ending {
    pub(super) fn set(self, outcome: Outcome) {
        self.0.send_replace(Some(outcome));
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut() {
            task.abort();
        }
    }
}
