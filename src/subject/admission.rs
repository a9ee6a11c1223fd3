//! Enforces the limits on observers and on the ids in their filters.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::{Inner, ObserveError, SubjectOptions};

/// One observer's share of the limits. Dropping it frees the share.
pub(super) struct Admission {
    inner: Arc<Inner>,
    filter_ids: usize,
}

impl Admission {
    /// Admits an observer whose filter names `filter_ids` ids.
    pub(super) fn new(inner: &Arc<Inner>, filter_ids: usize) -> Result<Self, ObserveError> {
        let SubjectOptions { max_observers, max_filter_ids, max_total_filter_ids, .. } = inner.options;
        if filter_ids > max_filter_ids {
            return Err(ObserveError::TooManyFilterIds { limit: max_filter_ids });
        }
        if !take(&inner.observers, 1, max_observers) {
            return Err(ObserveError::TooManyObservers { limit: max_observers });
        }
        // On failure below, dropping this frees the observer's slot.
        let mut admission = Self { inner: Arc::clone(inner), filter_ids: 0 };
        if !take(&inner.filter_ids, filter_ids, max_total_filter_ids) {
            return Err(ObserveError::TooManyTotalFilterIds { count: filter_ids, limit: max_total_filter_ids });
        }
        admission.filter_ids = filter_ids;
        Ok(admission)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.inner.observers.fetch_sub(1, Ordering::Relaxed);
        self.inner.filter_ids.fetch_sub(self.filter_ids, Ordering::Relaxed);
    }
}

/// Adds `count` to `taken` unless that would exceed `limit`.
fn take(taken: &AtomicUsize, count: usize, limit: usize) -> bool {
    let more = |taken: usize| taken.checked_add(count).filter(|taken| *taken <= limit);
    taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
}
