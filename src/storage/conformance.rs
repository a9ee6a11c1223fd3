//! The conformance suite: tests for a storage of your own.
//!
//! Every storage must pass it, and those of this crate do. It checks the obligations of [`SessionStorage`] and nothing
//! else. It makes no assumption about where sessions are stored or how many buckets and partitions there are.
//!
//! Implement [`StorageFactory`], which creates empty registries, and generate a test for each [`Case`] with
//! [`storage_conformance_tests`](crate::storage_conformance_tests). A test that fails reports a [`Violation`]: the
//! [`Obligation`] that the storage breaks, and what the case observed.
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
//! The suite takes real time, because leases must expire; the shortest last one second. If a storage runs in the
//! process and uses tokio's clock, like the one above, pause that clock, and the suite need not wait. Also run the
//! suite on a multi-threaded runtime, where calls run in parallel. To run it without the macro, use [`cases`] or
//! [`run`].
//!
//! Some cases make the storage refuse changes, as a full disk does. They run only if the factory supports it: see
//! [`StorageFactory::open_refusable`].

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

/// The timeout of a case, for calls that hang. Far longer than any case takes otherwise.
const CASE_DEADLINE: Duration = Duration::from_secs(300);

/// Creates the registries that the suite tests.
#[async_trait]
pub trait StorageFactory: Send + Sync {
    /// Creates an empty registry that nothing else uses, and returns handles to it: one, or several if several
    /// processes can share the storage. The suite uses the handles in turn, and runs
    /// [`expire_leases`](SessionStorage::expire_leases) on each.
    ///
    /// Each partition must keep at least [`StorageOptions::retain_events`] changes. `max_sessions` and `max_leases`
    /// must be exact.
    ///
    /// # Panics
    ///
    /// Panics if the registry cannot be created.
    async fn open(&self, options: StorageOptions) -> Vec<Arc<dyn SessionStorage>>;

    /// Creates a registry like [`open`](Self::open), which the suite can make refuse changes while it can still be
    /// read. Returns `None` if the factory does not support this. The cases that need it then pass without being run.
    async fn open_refusable(&self, _options: StorageOptions) -> Option<Refusable> {
        None
    }

    /// Returns how late a lease may expire on a busy machine. The suite adds this to the second after the ttl within
    /// which a lease must expire. 10 s by default. Zero is enough if the clock is paused.
    fn slack(&self) -> Duration {
        Duration::from_secs(10)
    }

    /// Returns the names of the cases that this storage need not pass; none by default. Give the reason for each in a
    /// comment.
    fn skipped(&self) -> &'static [&'static str] {
        &[]
    }
}

type Running<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// One case of the suite. It creates its own registries, and checks some obligations on them.
#[derive(Clone, Copy)]
pub struct Case {
    name: &'static str,
    run: for<'a> fn(&'a dyn StorageFactory) -> Running<'a>,
}

impl Case {
    /// Returns the name of the case, which describes the tested behavior.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs the case, unless the factory [skips](StorageFactory::skipped) it. Needs a tokio runtime with time enabled.
    /// If the future is dropped, the case's registry remains as it is.
    ///
    /// # Errors
    ///
    /// Returns the [`Violation`] if the storage breaks an obligation.
    pub async fn run(&self, factory: &dyn StorageFactory) -> Result<(), Violation> {
        if factory.skipped().contains(&self.name) {
            return Ok(());
        }
        let outcome = tokio::time::timeout(CASE_DEADLINE, (self.run)(factory)).await.unwrap_or_else(|_| {
            let detail = format!("a call hangs: the case was not finished after {CASE_DEADLINE:?}");
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

/// Runs all cases, one after the other.
///
/// # Errors
///
/// Returns the [`Violation`]s found, at most one for each case.
///
/// # Panics
///
/// Panics if the factory skips a case that does not exist.
pub async fn run(factory: &dyn StorageFactory) -> Result<(), Vec<Violation>> {
    assert_skipped_exist(factory);
    let mut violations = Vec::new();
    for case in cases() {
        violations.extend(case.run(factory).await.err());
    }
    if violations.is_empty() { Ok(()) } else { Err(violations) }
}

/// Runs the named case. The tests generated by [`storage_conformance_tests`](crate::storage_conformance_tests) call
/// this.
///
/// # Panics
///
/// Panics with the [`Violation`] if the storage breaks an obligation. Also panics if this case does not exist, or if
/// the factory skips a case that does not exist.
pub async fn check(case: &str, factory: &dyn StorageFactory) {
    assert_skipped_exist(factory);
    let found = cases().iter().find(|known| known.name == case);
    let Some(found) = found else { panic!("there is no case {case}") };
    if let Err(violation) = found.run(factory).await {
        panic!("{violation}");
    }
}

/// Checks that every skipped case exists, so that a skip cannot silently outlive the case's name.
fn assert_skipped_exist(factory: &dyn StorageFactory) {
    for skipped in factory.skipped() {
        assert!(cases().iter().any(|case| case.name == *skipped), "there is no case {skipped} to skip");
    }
}
