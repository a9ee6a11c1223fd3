//! The suite that every storage passes, for storages of your own too.
//!
//! It holds a storage to the obligations of [`SessionStorage`] and nothing more: it neither knows where sessions are kept,
//! nor how many buckets or partitions there are, and it needs no clock but the real one. Leases of one second are the
//! shortest it grants.
//!
//! Say how a fresh registry is made, and let each case be a test:
//!
//! ```
//! use std::sync::Arc;
//! use sessiond::storage::{
//!     SessionStorage, StorageOptions, StorageUrl,
//!     conformance::StorageFactory,
//! };
//!
//! struct Memory;
//!
//! #[async_trait::async_trait]
//! impl StorageFactory for Memory {
//!     async fn open(&self, options: StorageOptions) -> Vec<Arc<dyn SessionStorage>> {
//!         vec![StorageUrl::Memory.open(options).await.expect("memory can always be opened")]
//!     }
//! }
//!
//! sessiond::storage_conformance_tests!([#[tokio::test(start_paused = true)]] Memory);
//! # fn main() {}
//! ```
//!
//! A storage that lives in the process and takes its time from tokio's clock, as the one above, is best run with that
//! clock paused: the suite's waits are over at once then. Run it again on a runtime of several threads, where calls truly
//! meet. Elsewhere [`cases`] and [`run`] do without the macro.

mod audit;
mod bounds;
mod buckets;
mod cases;
mod concurrency;
mod expiry;
mod history;
mod leases;
mod linger;
mod listing;
mod log;
mod model;
mod placement;
mod races;
mod refusal;
mod registry;
mod sessions;
mod tail;
mod violation;
mod writability;

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;

use self::violation::{Broken, Outcome};
use super::{SessionStorage, StorageOptions};

pub use self::{
    cases::cases,
    refusal::{Refusable, RefusalSwitch},
    violation::{Obligation, Violation},
};

/// Far more than any case takes on a storage that answers: it ends a case in which a call hangs.
const CASE_DEADLINE: Duration = Duration::from_secs(300);

/// Makes the registries that the suite is run on.
#[async_trait]
pub trait StorageFactory: Send + Sync {
    /// Makes a registry that is empty and used by nobody else, and gives handles to it: one, or several for a storage that
    /// many processes share. The suite uses them by turns, and runs [`expire_leases`](SessionStorage::expire_leases) on
    /// each.
    ///
    /// Each partition keeps as many changes as [`StorageOptions::retain_events`] says; `max_sessions` and `max_leases` are
    /// exact. Panics when it cannot.
    async fn open(&self, options: StorageOptions) -> Vec<Arc<dyn SessionStorage>>;

    /// Makes a registry as [`open`](Self::open) does, which can be made to refuse changes while it can be read. `None` if this
    /// factory makes no such registries; the cases that need one then pass without being run.
    async fn open_refusable(&self, _options: StorageOptions) -> Option<Refusable> {
        None
    }

    /// By how much expiry may be later than the second after its ttl that a lease is given, for what else keeps the
    /// machine busy. None is needed where the clock is paused.
    fn slack(&self) -> Duration {
        Duration::from_secs(10)
    }

    /// The names of the cases that this storage does not pass, and need not. Whoever names one says why.
    fn skipped(&self) -> &'static [&'static str] {
        &[]
    }
}

type Running<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// One case of the suite: it asks for registries of its own, and holds them to some obligations.
#[derive(Clone, Copy)]
pub struct Case {
    name: &'static str,
    run: for<'a> fn(&'a dyn StorageFactory) -> Running<'a>,
}

impl Case {
    /// What the case is about, as the name of a function.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs the case, unless the factory names it among those [skipped](StorageFactory::skipped). Needs a tokio runtime
    /// with time. Dropped before it is done, it leaves its registry as it is.
    ///
    /// # Errors
    ///
    /// The [`Violation`] found.
    pub async fn run(&self, factory: &dyn StorageFactory) -> Result<(), Violation> {
        if factory.skipped().contains(&self.name) {
            return Ok(());
        }
        let outcome = tokio::time::timeout(CASE_DEADLINE, (self.run)(factory)).await.unwrap_or_else(|_| {
            let detail = format!("some call has not come back: the case is not done after {CASE_DEADLINE:?}");
            Err(Broken { obligation: Obligation::Answers, detail })
        });
        outcome.map_err(|Broken { obligation, detail }| Violation { case: self.name, obligation, detail })
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

/// Runs every case, one after the other.
///
/// # Errors
///
/// Every [`Violation`] found, one a case at most.
///
/// # Panics
///
/// When a case that is to be skipped does not exist.
pub async fn run(factory: &dyn StorageFactory) -> Result<(), Vec<Violation>> {
    assert_skipped_exist(factory);
    let mut violations = Vec::new();
    for case in cases() {
        violations.extend(case.run(factory).await.err());
    }
    if violations.is_empty() { Ok(()) } else { Err(violations) }
}

/// Runs the case of that name: what a test made by [`storage_conformance_tests`](crate::storage_conformance_tests) does.
///
/// # Panics
///
/// With the [`Violation`] found, or when this case, or one that is to be skipped, does not exist.
pub async fn check(case: &str, factory: &dyn StorageFactory) {
    assert_skipped_exist(factory);
    let found = cases().iter().find(|known| known.name == case);
    let Some(found) = found else { panic!("there is no case {case}") };
    if let Err(violation) = found.run(factory).await {
        panic!("{violation}");
    }
}

/// A case that was renamed must not stay skipped in silence.
fn assert_skipped_exist(factory: &dyn StorageFactory) {
    for skipped in factory.skipped() {
        assert!(cases().iter().any(|case| case.name == *skipped), "there is no case {skipped} to skip");
    }
}
