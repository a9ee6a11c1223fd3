//! Retries within the time that a call has.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::fault::Fault;

/// The pause before a retry.
const PAUSE: Duration = Duration::from_millis(20);

/// Repeats a step for as long as it certainly was not executed, until `last_try`.
pub(super) async fn retry<T, F>(last_try: Instant, step: impl Fn() -> F) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    loop {
        match step().await {
            Err(Fault::Undone(_)) if Instant::now() + PAUSE < last_try => sleep(PAUSE).await,
            outcome => return outcome,
        }
    }
}
