//! Observers that are called, as in the pattern's original.

use async_trait::async_trait;
use tokio::task::JoinHandle;

use super::{Observer, Update, cursor::Cursor};

/// Somebody who is told what happens. For a stream to read from, see [`Observer`].
#[async_trait]
pub trait SessionObserver: Send + 'static {
    /// Takes one update. The next one waits until this has returned. `cursor` is the place after it, where there is one.
    async fn update(&mut self, update: Update, cursor: Option<Cursor>);
}

/// A task that tells an observer. Dropping it unsubscribes, at the observer's next await.
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

    /// Ends the subscription; when this returns the observer is gone and hears no more.
    pub async fn unsubscribe(mut self) {
        self.task.abort();
        // An error tells that the task was cancelled, or that the observer panicked: gone either way.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}
