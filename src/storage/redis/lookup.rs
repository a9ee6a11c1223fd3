//! Looks up which leases the sessions of one partition are under.
//!
//! Reading a session's slot is as cheap as reading whether the session exists (`reads.rs`). A slot always stands for
//! the same lease, and an attached lease has not ended. A replica therefore remembers the leases of attached slots,
//! together with the number of the partition's latest closing at that time. It runs a script only for unknown slots, or
//! if a lease was closed since.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

use super::{
    ending::State,
    fault::Fault,
    lease::lease_number,
    partition::{ASK, Partition},
    reads::{Found, Reads, What},
    registry::{Identity, Registry},
};
use crate::{
    session::{LeaseId, SessionKey},
    storage::Lookup,
};

/// The maximum number of slots that a replica remembers for a partition.
const REMEMBERED: usize = 1 << 16;

/// The maximum number of slots in one script. Redis takes at most a millisecond for them.
const SLOTS_A_SCRIPT: usize = 256;

/// The leases of a partition's attached slots, as far as this replica remembers them.
#[derive(Default)]
pub(super) struct Attached(Mutex<Remembered>);

#[derive(Default)]
struct Remembered {
    /// The registry's birth, and the number of the partition's latest closing, for which `leases` is true.
    as_of: (String, String),
    leases: HashMap<u64, LeaseId>,
}

impl Attached {
    /// Returns the remembered leases if they are true for this birth and latest closing.
    pub(super) fn leases(&self, birth: &str, closing: &str) -> Option<MappedMutexGuard<'_, HashMap<u64, LeaseId>>> {
        let leases = MutexGuard::try_map(self.0.lock(), |remembered| {
            let (known_birth, known_closing) = &remembered.as_of;
            (known_birth == birth && known_closing == closing).then_some(&mut remembered.leases)
        });
        leases.ok()
    }

    fn add(&self, birth: &str, closing: &str, leases: &HashMap<u64, LeaseId>) {
        let as_of = (birth.to_owned(), closing.to_owned());
        let mut remembered = self.0.lock();
        if remembered.as_of != as_of || remembered.leases.len() >= REMEMBERED {
            *remembered = Remembered { as_of, leases: HashMap::new() };
        }
        remembered.leases.extend(leases);
    }
}

impl Registry {
    /// Looks up sessions, which belong to `partition` by `identity`.
    pub(super) async fn lookup(
        &self,
        reads: &Reads,
        partition: &Partition,
        identity: &Arc<Identity>,
        sessions: &[SessionKey],
    ) -> Result<Vec<Lookup>, Fault> {
        let mut ended = BTreeSet::new();
        loop {
            let found = reads.ask(What::Leases, identity, sessions.to_vec()).await?;
            let slots = found.iter().filter_map(|found| if let Found::Slot(slot) = found { Some(*slot) } else { None });
            let asked: BTreeSet<u64> = slots.filter(|slot| !ended.contains(slot)).collect();
            let living = self.living(&reads.attached, partition, identity, &asked).await?;
            if living.len() == asked.len() {
                let lease = |found| match found {
                    Found::Under(lease) => Some(lease),
                    Found::Slot(slot) => living.get(&slot).copied(),
                    Found::Missing | Found::Exists => None,
                };
                let lookup = |found: Found| Lookup { exists: found.exists(), lease: lease(found) };
                return Ok(found.into_iter().map(lookup).collect());
            }
            // Some of the leases have ended. Their sessions may have moved before that, so read all sessions again.
            ended.extend(asked.into_iter().filter(|slot| !living.contains_key(slot)));
        }
    }

    /// Returns the leases of the slots, without those that have ended.
    async fn living(
        &self,
        attached: &Attached,
        partition: &Partition,
        identity: &Identity,
        slots: &BTreeSet<u64>,
    ) -> Result<HashMap<u64, LeaseId>, Fault> {
        let (mut living, mut closed) = (HashMap::new(), Vec::new());
        let slots: Vec<u64> = slots.iter().copied().collect();
        for slots in slots.chunks(SLOTS_A_SCRIPT) {
            let found = partition.run::<Vec<Vec<u8>>>(ASK, |_| {
                let call = self.call(&self.scripts.lease_slots, partition, &["attached", "slots"], 0);
                call.arg(&identity.birth).arg(partition.read_up_to()).arg(slots)
            });
            let found = found.await?;
            let Some((closing, found)) = found.split_first() else {
                return Err(Fault::malformed("a script did not return the latest closing"));
            };
            let mut known = HashMap::new();
            for (slot, found) in slots.iter().zip(found) {
                let lease = found.get(1..).and_then(|lease| LeaseId::from_number(lease_number(lease)));
                match (found.first(), lease) {
                    (Some(b'S'), Some(lease)) => drop(known.insert(*slot, lease)),
                    (Some(b'Z'), Some(lease)) => closed.push((*slot, lease)),
                    _ => {}
                }
            }
            attached.add(&identity.birth, &String::from_utf8_lossy(closing), &known);
            living.extend(known);
        }
        for (slot, lease) in closed {
            if self.lives(lease).await? {
                living.insert(slot, lease);
            }
        }
        Ok(living)
    }

    /// Returns whether a lease has not ended, though a partition may have closed it. If the answer is false, the lease
    /// has ended in all partitions.
    pub(super) async fn lives(&self, lease: LeaseId) -> Result<bool, Fault> {
        Ok(!matches!(self.settled_state_of(lease).await?, State::Ended(_) | State::Gone))
    }

    /// Asks the first partition for the state of a lease. If the lease is marked, ends it first.
    pub(super) async fn settled_state_of(&self, lease: LeaseId) -> Result<State, Fault> {
        loop {
            match self.state_of(lease).await? {
                State::Ending(known) => self.finish_ending(lease, &known).await?,
                state => return Ok(state),
            }
        }
    }
}
