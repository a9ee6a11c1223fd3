//! The model: what the registry did, in commit order. Streams are checked against it.

use std::{collections::BTreeSet, sync::Arc};

use sessiond::{
    session::{DestroyReason, LeaseId, SessionChange, SessionEvent, SessionKey},
    storage::{self, LeaseQuery, LogPoint, SessionStorage},
    subject::Filter,
};

use crate::held::{Held, apply, delivers, seen};

/// A position in each partition of the log.
pub(crate) type Places = Vec<u64>;

/// The changes of a storage, read directly and not through a subject.
#[derive(Debug)]
pub(crate) struct Model {
    storage: Arc<dyn SessionStorage>,
    registry: String,
    /// The changes of each partition. The change at position `n` has index `n - 1`.
    changes: Vec<Vec<SessionEvent>>,
    /// The point up to which each partition has been read.
    ends: Vec<LogPoint>,
    held: Held,
    /// The leases whose end is in the log.
    ended: BTreeSet<LeaseId>,
}

/// The leases at one moment.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    pub(crate) live: BTreeSet<LeaseId>,
    lingering: BTreeSet<LeaseId>,
}

impl Leases {
    /// Whether a lease protects its sessions from takeover.
    pub(crate) fn protects(&self, lease: LeaseId) -> bool {
        self.live.contains(&lease) && !self.lingering.contains(&lease)
    }
}

/// Where a cursor leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Foreign,
    SnapshotStart,
    After(Places),
}

impl Model {
    /// Creates the model of a storage. Its log must still begin with the first change.
    pub(crate) async fn new(storage: Arc<dyn SessionStorage>) -> Self {
        let extent = storage.log().await.unwrap();
        let changes = extent.partitions.iter().map(|_| Vec::new()).collect();
        let ends = extent.partitions.iter().map(|held| held.start).collect();
        let registry = extent.registry_id.to_string();
        let mut model = Self { storage, registry, changes, ends, held: Held::new(), ended: BTreeSet::new() };
        model.catch_up().await;
        model
    }

    /// Reads and returns the changes since the last call.
    ///
    /// Must be called often enough that the storage still has them.
    pub(crate) async fn catch_up(&mut self) -> Vec<SessionEvent> {
        let extent = self.storage.log().await.unwrap();
        let registry_id = extent.registry_id;
        let mut news = Vec::new();
        for (partition, held) in (0..).zip(extent.partitions) {
            loop {
                let changes = &mut self.changes[partition as usize];
                let after = &mut self.ends[partition as usize];
                if after.position >= held.end.position {
                    break;
                }
                let read = self.storage.changes_after(registry_id, partition, *after, 4096).await.unwrap();
                *after = after.past(&read);
                changes.extend(&read.events);
                news.extend(read.events);
            }
        }
        let all = Filter::default();
        let known_ended = self.ended.clone();
        for event in &news {
            let fits = apply(&mut self.held, event, &all);
            assert!(fits, "{event:?} in the storage's log contradicts the session's state");
            match (event.change, event.lease) {
                (SessionChange::Destroyed(DestroyReason::LeaseExpired | DestroyReason::LeaseRevoked), lease) => {
                    self.ended.extend(lease);
                }
                (SessionChange::Created | SessionChange::Moved { .. }, Some(lease)) => {
                    assert!(!known_ended.contains(&lease), "{event:?} comes after the end of its lease was logged");
                }
                _ => {}
            }
        }
        news
    }

    /// Returns the existing sessions, each with its lease.
    pub(crate) fn held(&self) -> &Held {
        &self.held
    }

    /// Whether the end of a lease is in the log.
    pub(crate) fn has_ended(&self, lease: LeaseId) -> bool {
        self.ended.contains(&lease)
    }

    /// Returns the leases that the storage lists, which have not ended.
    pub(crate) async fn leases(&self) -> Leases {
        let mut leases = Leases::default();
        let mut query = LeaseQuery::first(1000);
        loop {
            let page = self.storage.list_leases(&query).await.unwrap();
            for status in page.leases {
                leases.live.insert(status.lease);
                if status.lingers {
                    leases.lingering.insert(status.lease);
                }
            }
            if page.next.is_none() {
                return leases;
            }
            query.after = page.next;
        }
    }

    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    pub(crate) fn changes(&self) -> impl Iterator<Item = &SessionEvent> {
        self.changes.iter().flatten()
    }

    pub(crate) fn ends(&self) -> Places {
        self.changes.iter().map(|changes| changes.len() as u64).collect()
    }

    pub(crate) fn partition_of(&self, session: &SessionKey) -> usize {
        self.storage.partition_of(self.storage.bucket_of(session)) as usize
    }

    /// Parses a cursor. Its text is opaque to users, but documented for those who work on the subject.
    pub(crate) fn place(&self, cursor: &str) -> Place {
        let mut parts: Vec<&str> = cursor.split('-').collect();
        parts.pop();
        match parts.as_slice() {
            [registry, ..] if *registry != self.registry => Place::Foreign,
            [_, "s"] => Place::SnapshotStart,
            [_, places @ .., _history] if places.len() == self.changes.len() => {
                Place::After(places.iter().map(|place| u64::from_str_radix(place, 16).unwrap()).collect())
            }
            _ => panic!("{cursor:?} has a different number of partitions"),
        }
    }

    /// Returns the events of `partition` from `from` to `to` that an observer should receive.
    pub(crate) fn expected(&self, partition: usize, from: u64, to: u64, filter: &Filter) -> Vec<SessionEvent> {
        self.expected_at(partition, from, to, filter).map(|(_, event)| event).collect()
    }

    /// Does the same, and returns the position of each event.
    pub(crate) fn expected_at(
        &self,
        partition: usize,
        from: u64,
        to: u64,
        filter: &Filter,
    ) -> impl Iterator<Item = (u64, SessionEvent)> {
        let changes = &self.changes[partition];
        let to = changes.len().min(to as usize);
        let from = to.min(from as usize);
        let matching = (from as u64 + 1..).zip(&changes[from..to]).filter(|(_, event)| delivers(filter, event));
        matching.filter_map(|(position, event)| seen(event, filter).map(|event| (position, event)))
    }

    /// Returns the change at a place.
    pub(crate) fn change_at(&self, place: storage::Place) -> Option<&SessionEvent> {
        self.changes.get(place.partition as usize)?.get(place.position.0.checked_sub(1)? as usize)
    }

    /// Returns the lease that a session was under at a position of its partition, or None if it did not exist.
    pub(crate) fn lease_at(&self, session: &SessionKey, position: u64) -> Option<Option<LeaseId>> {
        let changes = self.changes[self.partition_of(session)].iter().take(position as usize);
        let last = changes.rev().find(|event| event.session == *session)?;
        (!matches!(last.change, SessionChange::Destroyed(_))).then_some(last.lease)
    }

    /// Returns what an observer with this filter holds at these places.
    pub(crate) fn held_at(&self, places: &[u64], filter: &Filter) -> Held {
        let mut held = Held::new();
        for (changes, place) in self.changes.iter().zip(places) {
            for event in changes.iter().take(*place as usize).filter_map(|event| seen(event, filter)) {
                apply(&mut held, &event, filter);
            }
        }
        held
    }
}
