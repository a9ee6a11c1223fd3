//! How long a server is the master.

use std::io;

use redis::RedisError;
use tokio::sync::watch;

use super::sentinels::Address;

/// The time in which a server is the master that the Sentinels name. Without Sentinel it never ends.
#[derive(Clone, Debug)]
pub(super) struct Term(Option<watch::Receiver<Option<Address>>>);

impl Term {
    pub(super) fn endless() -> Self {
        Self(None)
    }

    /// Returns the term that ends when `master` changes again.
    pub(super) fn of(master: watch::Receiver<Option<Address>>) -> Self {
        Self(Some(master))
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.as_ref().is_some_and(|master| !matches!(master.has_changed(), Ok(false)))
    }

    /// Waits for an answer. Fails as soon as the term is over, and if it ended before the answer arrived.
    pub(super) async fn within<T, E: From<RedisError>>(
        &self,
        asking: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let Some(master) = &self.0 else { return asking.await };
        let mut master = master.clone();
        tokio::select! {
            biased;
            _ = master.changed() => {
                let why = "Sentinel replaces the master";
                Err(RedisError::from(io::Error::new(io::ErrorKind::ConnectionAborted, why)).into())
            }
            answer = asking => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn no_answer_is_believed_after_the_end_of_a_term() {
        let master = watch::Sender::new(Some(("a".to_owned(), 1)));
        let term = Term::of(master.subscribe());
        assert_eq!(term.within(ready(Ok::<_, RedisError>(1))).await.unwrap(), 1);
        let waiting = tokio::spawn({
            let term = term.clone();
            async move { term.within(pending::<Result<(), RedisError>>()).await }
        });
        tokio::task::yield_now().await;
        assert!(!term.is_over());
        master.send_replace(None);
        assert!(term.is_over());
        assert!(waiting.await.unwrap().is_err());
        assert!(term.within(ready(Ok::<_, RedisError>(1))).await.is_err());

        let endless = Term::endless();
        assert!(!endless.is_over());
        assert_eq!(endless.within(ready(Ok::<_, RedisError>(1))).await.unwrap(), 1);
    }
}
