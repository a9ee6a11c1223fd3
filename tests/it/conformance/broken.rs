//! Storages that each break one obligation, and the conformance case that must detect it.

mod buckets;
mod dropped;
mod fault;
mod found;
mod leases;
mod log;
mod sessions;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{
        LogExtent, RefusalCause, SessionStorage, StorageError, StorageOptions, Writability, WriteRefusal,
        conformance::{Refusable, RefusalSwitch, StorageFactory, cases},
    },
};

use self::{
    buckets::Buckets,
    fault::Fault::{self, *},
    found::FOUND,
    leases::Leases,
    log::Log,
    sessions::Sessions,
};
use super::{DEFAULT, Memory};
use crate::twisted::{Twist, Twisted};

/// The time by which leases and lingers are too short.
const SHORT_OF: Duration = Duration::from_millis(50);

#[test]
fn every_case_detects_a_fault() {
    for case in cases() {
        assert!(FOUND.iter().any(|(_, name, _)| *name == case.name()), "no fault tests the case {}", case.name());
    }
}

#[tokio::test(start_paused = true)]
async fn every_fault_is_detected_and_reported_as_the_right_obligation() {
    let mut wrong = Vec::new();
    for (fault, name, obligation) in FOUND {
        let case = cases().iter().find(|case| case.name() == *name);
        let case = case.unwrap_or_else(|| panic!("there is no case {name}"));
        match case.run(&BrokenMemory(*fault)).await {
            Ok(()) => wrong.push(format!("{name} passed a storage that {fault:?}")),
            Err(violation) if violation.case == *name && violation.obligation == *obligation => {}
            Err(violation) => wrong.push(format!("{fault:?} breaks {obligation:?}, but was reported as: {violation}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

mod without_a_fault {
    // Shows that the suite detects the faults, and not something else that the wrapper does.
    sessiond::storage_conformance_tests!(
        [#[tokio::test(start_paused = true)]] super::BrokenMemory(super::Fault::Nothing)
    );
}

struct BrokenMemory(Fault);

#[async_trait]
impl StorageFactory for BrokenMemory {
    async fn open(&self, options: StorageOptions) -> Vec<Arc<dyn SessionStorage>> {
        vec![self.broken(options).0]
    }

    async fn open_refusable(&self, options: StorageOptions) -> Option<Refusable> {
        let (storage, broken) = self.broken(options);
        Some(Refusable::new(vec![storage], Switch(broken)))
    }

    fn slack(&self) -> Duration {
        Duration::ZERO
    }
}

impl BrokenMemory {
    fn broken(&self, mut options: StorageOptions) -> (Arc<dyn SessionStorage>, Arc<Broken>) {
        let shape = Memory { buckets: 16, partitions: 2, ..DEFAULT };
        let max_sessions = options.max_sessions;
        if self.0 == IgnoresItsLimits {
            options = options.retain_events(1 << 20).max_sessions(1 << 20).max_leases(1 << 20);
        }
        let refuses = AtomicBool::new(false);
        let broken = Arc::new(Broken { fault: self.0, max_sessions, state: Mutex::default(), refuses });
        let sessions = Twisted::new(Arc::new(shape.storage(options)), Sessions(broken.clone()));
        let leases = Twisted::new(sessions, Leases(broken.clone()));
        let buckets = Twisted::new(leases, Buckets(broken.clone()));
        let log = Twisted::new(buckets, Log(broken.clone()));
        (Twisted::new(log, Refusals(broken.clone())), broken)
    }
}

/// Makes the storage refuse changes, as one does whose store has run out of memory.
struct Switch(Arc<Broken>);

#[async_trait]
impl RefusalSwitch for Switch {
    fn cause(&self) -> RefusalCause {
        RefusalCause::OutOfMemory
    }

    fn leases_go_on(&self) -> bool {
        true
    }

    async fn refuse(&self) {
        self.0.refuses.store(true, Ordering::Relaxed);
    }

    async fn accept(&self) {
        self.0.refuses.store(false, Ordering::Relaxed);
    }
}

/// What the parts of a broken storage share.
#[derive(Debug)]
struct Broken {
    fault: Fault,
    max_sessions: u64,
    state: Mutex<State>,
    /// Whether changes are refused.
    refuses: AtomicBool,
}

/// What some of the faults need to remember.
#[derive(Debug, Default)]
struct State {
    calls: u32,
    /// Sessions that reads do not show yet.
    hidden: HashSet<SessionKey>,
    /// The lease under which each session was last created.
    leases: HashMap<SessionKey, LeaseId>,
    extent: Option<LogExtent>,
    following: bool,
    missed: usize,
    other_lease: Option<LeaseId>,
    lingering: HashSet<LeaseId>,
    /// A lease that will linger, and after how many more creates under it.
    lingers_late: Option<(LeaseId, u32)>,
    revoked: HashSet<LeaseId>,
    expiry_dropped: bool,
}

impl Broken {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn refuses(&self) -> bool {
        self.refuses.load(Ordering::Relaxed)
    }

    fn refusal() -> WriteRefusal {
        WriteRefusal::new(RefusalCause::OutOfMemory, "no room")
    }

    /// Refuses a change that needs room while changes are refused.
    fn admit(&self) -> Result<(), StorageError> {
        if self.refuses() { Err(StorageError::Refused(Self::refusal())) } else { Ok(()) }
    }
}

/// Breaks the report about whether changes are possible.
#[derive(Debug)]
struct Refusals(Arc<Broken>);

#[async_trait]
impl Twist for Refusals {
    fn writability(&self, _: &dyn SessionStorage) -> Writability {
        match self.0.fault {
            IsNeverWritable => Writability::Refused(Broken::refusal()),
            HidesRefusals => Writability::Writable,
            NamesAnotherCause if self.0.refuses() => Writability::Refused(WriteRefusal::new(RefusalCause::Other, "")),
            _ if self.0.refuses() => Writability::Refused(Broken::refusal()),
            _ => Writability::Writable,
        }
    }
}
