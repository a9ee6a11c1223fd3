//! What the registry did, in commit order: the truth that streams are held against.

use std::{collections::BTreeSet, sync::Arc};

use sessiond::{
    session::{DestroyReason, LeaseId, SessionChange, SessionEvent, SessionKey},
    storage::{self, LeaseQuery, LogPoint, SessionStorage},
    subject::Filter,
};

use super::held::{Held, apply, seen, tells};

/// A position in each partition of the log.
pub(crate) type Places = Vec<u64>;

/// The changes of a storage, read from itself and not through a subject.
#[derive(Debug)]
pub(crate) struct Model {
    storage: Arc<dyn SessionStorage>,
    registry: String,
    /// By partition; the change at position `n` is at `n - 1`.
    changes: Vec<Vec<SessionEvent>>,
    /// The point up to which each partition has been read.
    ends: Vec<LogPoint>,
    held: Held,
    /// The leases that the log has told the end of.
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
    /// The model of a storage whose log still begins with the first change.
    pub(crate) async fn new(storage: Arc<dyn SessionStorage>) -> Self {
        let extent = storage.log().await.unwrap();
        let changes = extent.partitions.iter().map(|_| Vec::new()).collect();
        let ends = extent.partitions.iter().map(|held| held.start).collect();
        let registry = extent.registry_id.to_string();
        let mut model = Self { storage, registry, changes, ends, held: Held::new(), ended: BTreeSet::new() };
        model.catch_up().await;
        model
    }

    /// Reads the changes that were made since the last time, and gives them.
    ///
    /// To be called so often that the storage still holds them.
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
            assert!(fits, "the storage's log says {event:?} of a session of which that cannot be true");
            match (event.change, event.lease) {
                (SessionChange::Destroyed(DestroyReason::LeaseExpired | DestroyReason::LeaseRevoked), lease) => {
                    self.ended.extend(lease);
                }
                (SessionChange::Created | SessionChange::Moved { .. }, Some(lease)) => {
                    assert!(!known_ended.contains(&lease), "{event:?} comes after the end of its lease was told");
                }
                _ => {}
            }
        }
        news
    }

    /// The sessions that exist, and the lease of each.
    pub(crate) fn held(&self) -> &Held {
        &self.held
    }

    /// Whether the log has told the end of a lease.
    pub(crate) fn has_ended(&self, lease: LeaseId) -> bool {
        self.ended.contains(&lease)
    }

    /// The leases that have not ended, as the storage lists them.
    pub(crate) async fn leases(&self) -> Leases {
        let mut leases = Leases::default();
        let mut query = LeaseQuery { after: None, limit: 1000, owner: None, lease_ids: Vec::new() };
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

    /// Where a cursor leads: its text is opaque to users, and documented to those who work on the subject.
    pub(crate) fn place(&self, cursor: &str) -> Place {
        let mut parts: Vec<&str> = cursor.split('-').collect();
        parts.pop();
        match parts.as_slice() {
            [registry, ..] if *registry != self.registry => Place::Foreign,
            [_, "s"] => Place::SnapshotStart,
            [_, places @ .., _history] if places.len() == self.changes.len() => {
                Place::After(places.iter().map(|place| u64::from_str_radix(place, 16).unwrap()).collect())
            }
            _ => panic!("{cursor:?} has another number of partitions"),
        }
    }

    /// What an observer is told of `partition` that goes on after `from`, up to `to`.
    pub(crate) fn told(&self, partition: usize, from: u64, to: u64, filter: &Filter) -> Vec<SessionEvent> {
        self.told_at(partition, from, to, filter).map(|(_, event)| event).collect()
    }

    /// The same, each with its position.
    pub(crate) fn told_at(
        &self,
        partition: usize,
        from: u64,
        to: u64,
        filter: &Filter,
    ) -> impl Iterator<Item = (u64, SessionEvent)> {
        let changes = &self.changes[partition];
        let to = changes.len().min(to as usize);
        let from = to.min(from as usize);
        let told = (from as u64 + 1..).zip(&changes[from..to]).filter(|(_, event)| tells(filter, event));
        told.filter_map(|(position, event)| seen(event, filter).map(|event| (position, event)))
    }

    /// The change at a place.
    pub(crate) fn change_at(&self, place: storage::Place) -> Option<&SessionEvent> {
        self.changes.get(place.partition as usize)?.get(place.position.0.checked_sub(1)? as usize)
    }

    /// The lease that a session was under at a position of its partition, if it existed.
    pub(crate) fn lease_at(&self, session: &SessionKey, position: u64) -> Option<Option<LeaseId>> {
        let changes = self.changes[self.partition_of(session)].iter().take(position as usize);
        let last = changes.rev().find(|event| event.session == *session)?;
        (!matches!(last.change, SessionChange::Destroyed(_))).then_some(last.lease)
    }

    /// What an observer with that filter held at a place.
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
