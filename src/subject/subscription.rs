//! Observers that are called with updates, like those of mtpylon's session subject.

use async_trait::async_trait;
use tokio::task::JoinHandle;

use super::{Observer, Update, cursor::Cursor};

/// An observer that is called with updates. To read a stream instead, see [`Observer`].
#[async_trait]
pub trait SessionObserver: Send + 'static {
    /// Handles one update. The next call waits until this one has returned. `cursor` is the place after the update, if
    /// there is one.
    async fn update(&mut self, update: Update, cursor: Option<Cursor>);
}

/// A task that calls an observer. Dropping it unsubscribes at the observer's next await.
#[derive(Debug)]
#[must_use = "dropping a subscription ends it"]
pub struct Subscription {
    task: JoinHandle<()>,
}

impl Subscription {
    pub(super) fn start(mut stream: Observer, mut observer: impl SessionObserver) -> Self {
        let task = tokio::spawn(async move {
            while let Some(update) = stream.next().await {
                let cursor = stream.cursor();
                observer.update(update, cursor).await;
            }
        });
        Self { task }
    }

    /// Ends the subscription. Once this returns, the observer has been dropped and receives nothing more.
    pub async fn unsubscribe(mut self) {
        self.task.abort();
        // An error means that the task was cancelled or that the observer panicked. Either way it is gone.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}
