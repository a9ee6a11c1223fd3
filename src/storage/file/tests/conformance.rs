//! Runs the conformance suite on a disk that refuses writes.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::task::JoinSet;

use super::sim::{Fault, Sim};
use crate::storage::{
    RefusalCause, SessionStorage, StorageOptions,
    conformance::{Refusable, RefusalSwitch, StorageFactory, cases},
    file::FileStorage,
};

/// Opens each registry on a disk of its own. The disk gets the fault while changes are to be refused.
#[derive(Clone, Copy, Debug)]
struct Faulty(Fault);

impl Faulty {
    async fn on(disk: &Sim, options: StorageOptions) -> Vec<Arc<dyn SessionStorage>> {
        let opened = FileStorage::open_on(Arc::new(disk.clone()), PathBuf::from("registry"), options).await;
        vec![Arc::new(opened.expect("a new disk has no fault"))]
    }
}

#[async_trait]
impl StorageFactory for Faulty {
    async fn open(&self, options: StorageOptions) -> Vec<Arc<dyn SessionStorage>> {
        Self::on(&Sim::default(), options).await
    }

    async fn open_refusable(&self, options: StorageOptions) -> Option<Refusable> {
        let disk = Sim::default();
        let handles = Self::on(&disk, options).await;
        Some(Refusable { handles, switch: Box::new(Switch { disk, fault: self.0 }) })
    }

    fn slack(&self) -> Duration {
        Duration::from_secs(60)
    }
}

struct Switch {
    disk: Sim,
    fault: Fault,
}

#[async_trait]
impl RefusalSwitch for Switch {
    fn cause(&self) -> RefusalCause {
        match self.fault {
            Fault::Full => RefusalCause::DiskFull,
            Fault::Stalled => RefusalCause::DiskStalled,
            _ => RefusalCause::DiskFailed,
        }
    }

    async fn refuse(&self) {
        self.disk.set_fault(Some(self.fault));
    }

    async fn accept(&self) {
        self.disk.set_fault(None);
    }
}

const ABOUT_REFUSALS: [&str; 3] =
    ["writable_storage_reports_it", "refused_changes_change_nothing", "leases_are_kept_and_end_without_room"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_cases_pass_while_the_disk_refuses_writes() {
    let about = || cases().iter().filter(|case| ABOUT_REFUSALS.contains(&case.name()));
    assert_eq!(about().count(), ABOUT_REFUSALS.len());
    let mut running = JoinSet::new();
    for fault in [Fault::Full, Fault::TornWrites, Fault::Syncs, Fault::Stalled] {
        for case in about() {
            running.spawn(async move { (fault, case.run(&Faulty(fault)).await) });
        }
    }
    for (fault, outcome) in running.join_all().await {
        outcome.unwrap_or_else(|violation| panic!("{fault:?}: {violation}"));
    }
}
