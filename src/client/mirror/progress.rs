//! How far a mirror has come, and how stale it is.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::client::{ClientError, Place};

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
            failure: None,
        }
    }

    pub(super) fn staleness(&self) -> Duration {
        let silent = self.exact_at.elapsed();
        if self.is_live && silent <= self.heartbeat + SLACK { Duration::ZERO } else { silent }
    }

    pub(super) fn subscribed(&mut self, registry_id: String, heartbeat: Duration) {
        if self.registry_id != registry_id {
            self.registry_id = registry_id;
            self.places.clear();
        }
        self.heartbeat = heartbeat;
        self.failure = None;
    }

    /// Records that the contents follow the stream and have reached these places.
    pub(super) fn reached(&mut self, places: &[Place]) {
        self.is_live = true;
        self.exact_at = Instant::now();
        self.places.extend(places.iter().map(|place| (place.partition, place.position)));
    }

    pub(super) fn has_reached(&self, places: &[Place]) -> bool {
        let reached = |place: &Place| self.places.get(&place.partition).is_some_and(|at| *at >= place.position);
        self.has_synced && places.iter().all(reached)
    }
}
