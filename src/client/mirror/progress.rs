//! How far a mirror has come, and how stale it is.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::client::{ClientError, Place, ResetReason};

/// How late a heartbeat may be before the mirror counts as stale.
const SLACK: Duration = Duration::from_secs(1);

/// Which state of the registry the contents of a mirror reflect.
#[derive(Debug)]
pub(super) struct Progress {
    /// The registry that the contents come from. Empty until the first stream has opened.
    pub(super) registry_id: String,
    pub(super) heartbeat: Duration,
    /// Whether a first snapshot is complete.
    pub(super) has_synced: bool,
    /// Whether the stream is open, and the contents follow it.
    pub(super) is_live: bool,
    /// When the contents last equaled the registry, as far as the stream has shown.
    pub(super) exact_at: Instant,
    /// The position in each partition that the contents have reached.
    places: BTreeMap<u32, u64>,
    /// Grows when positions lose their meaning, because the registry was replaced or lost changes.
    pub(super) epoch: u64,
    /// Whether the open stream comes from another registry than the stream before.
    is_other_registry: bool,
    /// Why the stream cannot be opened, if a retry does not help.
    pub(super) failure: Option<ClientError>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            registry_id: String::new(),
            heartbeat: Duration::ZERO,
            has_synced: false,
            is_live: false,
            exact_at: Instant::now(),
            places: BTreeMap::new(),
            epoch: 0,
            is_other_registry: false,
            failure: None,
        }
    }

    pub(super) fn staleness(&self) -> Duration {
        let silent = self.exact_at.elapsed();
        if self.is_live && silent <= self.heartbeat + SLACK { Duration::ZERO } else { silent }
    }

    pub(super) fn subscribed(&mut self, registry_id: String, heartbeat: Duration) {
        self.is_other_registry = !self.registry_id.is_empty() && self.registry_id != registry_id;
        if self.is_other_registry {
            self.lose_places();
        }
        self.registry_id = registry_id;
        self.heartbeat = heartbeat;
        self.failure = None;
    }

    pub(super) fn reset(&mut self, reason: ResetReason) {
        self.is_live = false;
        // A registry that was rolled back may keep its id and use the same positions again.
        if !self.is_other_registry && matches!(reason, ResetReason::CursorForeign | ResetReason::StorageRestarted) {
            self.lose_places();
        }
    }

    fn lose_places(&mut self) {
        self.places.clear();
        self.epoch += 1;
    }

    /// Records that the contents have reached these places. A stream that has resumed catches up before it
    /// `is_current`.
    pub(super) fn reached(&mut self, places: &[Place], is_current: bool) {
        self.is_live |= is_current;
        if self.is_live {
            self.exact_at = Instant::now();
        }
        self.places.extend(places.iter().map(|place| (place.partition, place.position)));
    }

    pub(super) fn has_reached(&self, places: &[Place]) -> bool {
        let reached = |place: &Place| self.places.get(&place.partition).is_some_and(|at| *at >= place.position);
        self.has_synced && places.iter().all(reached)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_lose_their_meaning_once_when_the_registry_is_replaced_or_rolled_back() {
        let place = Place { partition: 0, position: 7 };
        let mut progress = Progress { has_synced: true, ..Progress::new() };
        let mut subscribe = |registry: &str, reset: Option<ResetReason>| {
            progress.subscribed(registry.to_owned(), Duration::ZERO);
            if let Some(reason) = reset {
                progress.reset(reason);
            }
            let had_reached = progress.has_reached(&[place]);
            progress.reached(&[place], true);
            (progress.epoch, had_reached)
        };
        assert_eq!(subscribe("a", None), (0, false));
        assert_eq!(subscribe("a", Some(ResetReason::Lagged)), (0, true));
        assert_eq!(subscribe("b", Some(ResetReason::CursorForeign)), (1, false));
        assert_eq!(subscribe("b", Some(ResetReason::StorageRestarted)), (2, false));
        assert_eq!(subscribe("c", None), (3, false));
    }

    #[test]
    fn a_stream_that_has_resumed_is_live_once_it_has_caught_up() {
        let mut progress = Progress::new();
        progress.subscribed("a".to_owned(), Duration::ZERO);
        for (is_current, is_live) in [(false, false), (true, true), (false, true)] {
            progress.reached(&[], is_current);
            assert_eq!(progress.is_live, is_live);
        }
    }
}
