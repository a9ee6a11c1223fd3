//! What the registry did, in commit order: the truth that streams are held against.

use std::{collections::BTreeSet, sync::Arc};

use sessiond::{
    session::{DestroyReason, SessionChange, SessionEvent, SessionKey},
    storage::{LogPoint, SessionStorage},
    subject::Filter,
};

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
    alive: BTreeSet<SessionKey>,
}

/// What a stream without placements is told of an event.
pub(crate) fn plain(event: &SessionEvent) -> Option<SessionEvent> {
    let change = match event.change {
        SessionChange::Moved { .. } => return None,
        SessionChange::Destroyed(DestroyReason::Released) => SessionChange::Destroyed(DestroyReason::Requested),
        change => change,
    };
    Some(SessionEvent { change, lease: None, ..*event })
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
        let mut model = Self { storage, registry, changes, ends, alive: BTreeSet::new() };
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
        for event in &news {
            let alternates = match event.change {
                SessionChange::Created => self.alive.insert(event.session),
                SessionChange::Destroyed(_) => self.alive.remove(&event.session),
                SessionChange::Moved { .. } => self.alive.contains(&event.session),
            };
            assert!(alternates, "the storage's log says {event:?} of a session of which that cannot be true");
        }
        news
    }

    /// The sessions that exist.
    pub(crate) fn alive(&self) -> &BTreeSet<SessionKey> {
        &self.alive
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
        let changes = &self.changes[partition];
        let to = changes.len().min(to as usize);
        let from = to.min(from as usize);
        changes[from..to].iter().filter(|event| filter.passes(event)).filter_map(plain).collect()
    }

    /// The sessions that pass `filter` by id and existed at a place.
    pub(crate) fn held_at(&self, places: &[u64], filter: &Filter) -> BTreeSet<SessionKey> {
        let mut held = BTreeSet::new();
        for (changes, place) in self.changes.iter().zip(places) {
            for event in changes.iter().take(*place as usize).filter(|event| filter.passes_session(&event.session)) {
                match event.change {
                    SessionChange::Created => held.insert(event.session),
                    SessionChange::Destroyed(_) => held.remove(&event.session),
                    SessionChange::Moved { .. } => continue,
                };
            }
        }
        held
    }
}
