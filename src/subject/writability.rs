//! Logs when the storage starts and stops refusing changes.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::Inner;
use crate::storage::WriteRefusal;

const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Watches whether the storage accepts changes. Never returns.
pub(super) async fn watch(inner: Arc<Inner>) -> Infallible {
    let mut outage: Option<Outage> = None;
    loop {
        outage = match (outage, inner.storage.writability().refusal()) {
            (Some(outage), Some(refusal)) if outage.refusal.cause == refusal.cause => Some(outage),
            // An outage whose cause changes is still the same outage.
            (outage, Some(refusal)) => {
                tracing::warn!(
                    cause = refusal.cause.name(),
                    detail = &*refusal.detail,
                    advice = refusal.cause.advice(),
                    "the storage refuses changes"
                );
                let began = outage.map_or_else(Instant::now, |outage| outage.began);
                Some(Outage { began, refusal: refusal.clone() })
            }
            (Some(Outage { began, refusal }), None) => {
                let seconds = began.elapsed().as_secs_f64();
                tracing::info!(cause = refusal.cause.name(), seconds, "the storage accepts changes again");
                None
            }
            (None, None) => None,
        };
        sleep(CHECK_INTERVAL).await;
    }
}

struct Outage {
    began: Instant,
    refusal: WriteRefusal,
}
