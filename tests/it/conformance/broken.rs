//! Storages that each break one obligation, and the conformance case that must detect it.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    future::pending,
    mem::{forget, replace},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sessiond::{
    session::{DestroyReason, LeaseId, SessionChange, SessionKey},
    storage::{
        Answers, BucketRun, Changes, CreateOptions, Creation, Layout, LeaseBuckets, LeasePage, LeaseQuery, LogError,
        LogExtent, LogPoint, Lookup, MAX_LINGER, Mark, Place, Places, Position, RefusalCause, RegistryId,
        SessionStorage, StorageError, StorageOptions, Takeover, Writability, WriteRefusal,
        conformance::{Obligation, Refusable, RefusalSwitch, StorageFactory, cases},
        memory::MemoryStorage,
    },
};
use tokio::{task::yield_now, time::sleep};

use super::{DEFAULT, Memory};

/// What a broken storage does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// No fault: the wrapper itself must pass the suite.
    Nothing,
    CreatesTwice,
    DestroysTwice,
    AnswersOutOfOrder,
    ForgetsAuthKeys,
    CountsOneMore,
    /// When the registry is full, also refuses creates of existing sessions.
    RefusesWhatExistsWhenFull,
    LosesAChange,
    RepeatsAChange,
    /// Reports the log's extent as of the call before.
    ShowsTheLogLate,
    /// Returns more changes than the caller's limit.
    IgnoresTheLimit,
    /// Spins while it waits for changes.
    IsBusy,
    /// Never wakes a follower that waits.
    WakesNobody,
    ServesOneFollower,
    /// Skips a change for each follower that was dropped while it waited.
    ForgetsWhatADroppedFollowerMissed,
    /// Reports a trimmed log as restarted.
    CallsTrimmedRestarted,
    /// Waits instead of refusing a position ahead of the log.
    WaitsAhead,
    /// Assigns a session to different buckets over time.
    WandersBetweenBuckets,
    /// Reports a position before the one at which buckets were read.
    ReadsAtTooLow,
    /// Reports a position after the one at which buckets were read.
    ReadsAtTooHigh,
    /// Leaves out the last session of a read.
    ReadsOneLess,
    ReadsNoLeases,
    ReadsPastTheLimit,
    LogsBeforeItChanges,
    /// Hides the sessions of a create that was dropped, although the log has them.
    LeavesOutWhatWasDropped,
    KeepsRevokedLeases,
    MovesNothing,
    DropsTheLeaseWhenCreatedWithout,
    DestroysUnderAnyLease,
    MiscountsARevoke,
    TakesFromAnyLease,
    /// Never takes a session over from the lease that the caller names.
    TakesNothing,
    /// Answers a create without the lease of the session.
    TellsNoLease,
    LooksUpNoLease,
    LooksUpEndedLeases,
    /// Answers with position 0 as the place of every change.
    NamesTheStart,
    IgnoresALinger,
    ProtectsWhatLingers,
    EndsALingerEarly,
    NeverEndsALinger,
    IgnoresASecondRevoke,
    /// Lets a lease linger only after some more creates under it.
    LingersLate,
    /// Answers that sessions moved from a lingering lease, but does not move them.
    AnswersMovesAndMakesNone,
    ListsNoSessions,
    SkipsALeaseAtAPageEnd,
    LeavesOutABucket,
    /// Reads the buckets that follow the first one instead of those that were asked for.
    ReadsNeighbours,
    ForgetsOwners,
    ConfusesReasons,
    ForgetsWhereASessionMovedFrom,
    ForgetsTheLeaseOfADestroyedSession,
    ForgetsADroppedRevoke,
    ExpiresEarly,
    ExpiresLate,
    /// Answers keep-alives without extending the lease.
    KeepsNothingAlive,
    ForgetsADroppedExpiry,
    /// Attaches sessions to their lease only after creating them, so a session may outlive its lease.
    LeavesAGhost,
    ReordersABatch,
    IgnoresItsLimits,
    LosesTheEndOfALongBatch,
    LogsAnEmptyBatch,
    /// Gives every registry the same id.
    SharesItsIdentity,
    /// Attaches only the first session of a batch to the lease.
    LeasesTheFirstOnly,
    ShowsChangesLate,
    FollowsAnyRegistry,
    ForgetsMarks,
    ForgetsTheMarkAtTheStart,
    /// Returns marks for positions ahead of the log.
    KnowsMarksAhead,
    /// Changes the marks of old positions as the log grows.
    MarksByTheEnd,
    MismarksItsExtent,
    MismarksChanges,
    FollowsAnyHistory,
    /// Waits instead of refusing a follower from another history.
    WaitsInAnotherHistory,
    ReadsAnyHistory,
    /// Reads buckets for a caller whose position is ahead of the log.
    ReadsAhead,
    ReadsAnyRegistry,
    IsNeverWritable,
    HidesRefusals,
    NamesAnotherCause,
    AppliesWhatItRefuses,
    RevokesNothingWithoutRoom,
    ExpiresNothingWithoutRoom,
    RefusesEmptyLists,
    LooksUpDuplicatesOnce,
    EndsAListAtALimitOfZero,
    KeepsALongTtl,
    TrimsOwners,
}

use Fault::*;

/// Each fault, a case that must detect it, and the obligation that the case must report as broken.
const FOUND: &[(Fault, &str, Obligation)] = &[
    (CreatesTwice, "calls_report_whether_they_changed_anything", Obligation::Answers),
    (CreatesTwice, "concurrent_callers_agree_on_each_change", Obligation::Concurrent),
    (DestroysTwice, "calls_report_whether_they_changed_anything", Obligation::Answers),
    (AnswersOutOfOrder, "batch_answers_in_order_and_counts_duplicates_once", Obligation::Answers),
    (ForgetsAuthKeys, "every_id_is_a_distinct_session", Obligation::Answers),
    (CountsOneMore, "session_count_follows_changes", Obligation::Answers),
    (RefusesWhatExistsWhenFull, "full_registry_refuses_only_new_sessions", Obligation::Answers),
    (LosesAChange, "changes_are_numbered_from_one_and_alternate", Obligation::Alternating),
    (RepeatsAChange, "random_calls_match_the_model", Obligation::Ordered),
    (RepeatsAChange, "changes_are_numbered_from_one_and_alternate", Obligation::Alternating),
    (ShowsTheLogLate, "changes_are_numbered_from_one_and_alternate", Obligation::Visible),
    (ShowsTheLogLate, "change_and_log_entry_are_atomic", Obligation::Atomic),
    (IgnoresTheLimit, "changes_can_be_read_in_parts", Obligation::Answers),
    (IsBusy, "follower_waits_idly_and_wakes", Obligation::Answers),
    (WakesNobody, "follower_waits_idly_and_wakes", Obligation::Answers),
    (ServesOneFollower, "all_followers_read_the_same_changes", Obligation::Concurrent),
    (ForgetsWhatADroppedFollowerMissed, "follower_dropped_while_waiting_loses_nothing", Obligation::Cancellable),
    (CallsTrimmedRestarted, "changes_before_the_start_are_reported_as_trimmed", Obligation::Bounded),
    (FollowsAnyRegistry, "log_of_another_registry_is_refused", Obligation::Bounded),
    (WaitsAhead, "position_ahead_of_the_log_is_refused", Obligation::Bounded),
    (WandersBetweenBuckets, "buckets_and_partitions_never_change", Obligation::Divided),
    (ReadsAtTooLow, "reads_are_exact_while_sessions_change", Obligation::ExactReads),
    (ReadsAtTooHigh, "reads_are_exact_while_sessions_change", Obligation::ExactReads),
    (ReadsOneLess, "reading_all_buckets_returns_each_session_once", Obligation::ExactReads),
    (ReadsNoLeases, "create_returns_the_lease_of_each_session", Obligation::ExactReads),
    (ReadsPastTheLimit, "read_ends_with_the_bucket_that_reaches_the_limit", Obligation::Answers),
    (LogsBeforeItChanges, "change_and_log_entry_are_atomic", Obligation::Atomic),
    (LeavesOutWhatWasDropped, "dropped_call_leaves_set_and_log_consistent", Obligation::ExactReads),
    (KeepsRevokedLeases, "lease_lives_until_revoked", Obligation::Leased),
    (KeepsRevokedLeases, "gone_lease_takes_no_sessions", Obligation::Leased),
    (MovesNothing, "create_moves_session_to_its_lease", Obligation::Placed),
    (TakesFromAnyLease, "takeover_takes_only_from_the_named_lease", Obligation::Placed),
    (TakesFromAnyLease, "one_of_concurrent_takeovers_succeeds", Obligation::Placed),
    (TakesFromAnyLease, "random_calls_match_the_model", Obligation::Answers),
    (TakesNothing, "takeover_takes_only_from_the_named_lease", Obligation::Placed),
    (TellsNoLease, "create_returns_the_lease_of_each_session", Obligation::Placed),
    (LooksUpNoLease, "lookup_returns_the_lease_of_each_session", Obligation::Placed),
    (LooksUpNoLease, "random_calls_match_the_model", Obligation::Placed),
    (LooksUpEndedLeases, "ended_lease_protects_nothing", Obligation::Placed),
    (IgnoresALinger, "lingering_lease_takes_no_sessions", Obligation::Leased),
    (ProtectsWhatLingers, "lingering_lease_protects_nothing", Obligation::Placed),
    (EndsALingerEarly, "lingering_lease_ends_after_its_linger", Obligation::Leased),
    (NeverEndsALinger, "lingering_lease_ends_after_its_linger", Obligation::Leased),
    (IgnoresASecondRevoke, "second_revoke_only_brings_the_end_forward", Obligation::Leased),
    (LingersLate, "creates_racing_a_linger_stop_at_its_start", Obligation::Leased),
    (AnswersMovesAndMakesNone, "moves_racing_the_end_of_a_linger_keep_their_sessions", Obligation::Leased),
    (ListsNoSessions, "list_has_each_lease_with_its_session_count", Obligation::Answers),
    (ListsNoSessions, "random_calls_match_the_model", Obligation::Answers),
    (SkipsALeaseAtAPageEnd, "list_has_each_lease_with_its_session_count", Obligation::Answers),
    (LeavesOutABucket, "buckets_of_leases_have_all_their_sessions", Obligation::ExactReads),
    (ReadsNeighbours, "non_adjacent_buckets_can_be_read", Obligation::Answers),
    (ForgetsOwners, "lease_lives_until_revoked", Obligation::Answers),
    (NamesTheStart, "answers_name_a_place_at_which_they_are_true", Obligation::Placed),
    (ForgetsWhereASessionMovedFrom, "create_moves_session_to_its_lease", Obligation::Placed),
    (ForgetsWhereASessionMovedFrom, "random_calls_match_the_model", Obligation::Ordered),
    (ForgetsTheLeaseOfADestroyedSession, "destroy_under_a_lease_spares_other_sessions", Obligation::Placed),
    (MovesNothing, "moves_racing_a_revoke_keep_their_sessions", Obligation::Leased),
    (MovesNothing, "session_moved_before_expiry_survives", Obligation::Leased),
    (DropsTheLeaseWhenCreatedWithout, "create_without_lease_keeps_the_sessions_lease", Obligation::Leased),
    (DestroysUnderAnyLease, "destroy_under_a_lease_spares_other_sessions", Obligation::Leased),
    (DestroysUnderAnyLease, "recreated_session_is_not_under_its_old_lease", Obligation::Leased),
    (DestroysUnderAnyLease, "late_destroy_under_an_ended_lease_spares_new_sessions", Obligation::Leased),
    (MiscountsARevoke, "revoke_destroys_each_session_once", Obligation::Leased),
    (MiscountsARevoke, "creates_racing_a_revoke_leave_no_ghost", Obligation::Leased),
    (MiscountsARevoke, "destroys_racing_a_revoke_destroy_once", Obligation::Leased),
    (ConfusesReasons, "revoke_destroys_each_session_once", Obligation::Leased),
    (ConfusesReasons, "lease_expires_soon_after_its_ttl", Obligation::Leased),
    (ConfusesReasons, "revoke_racing_expiry_destroys_once", Obligation::Leased),
    (ForgetsADroppedRevoke, "dropped_revoke_is_finished_by_expiry", Obligation::Leased),
    (ExpiresEarly, "lease_expires_soon_after_its_ttl", Obligation::Leased),
    (ExpiresEarly, "lease_kept_alive_does_not_expire", Obligation::Leased),
    (ExpiresEarly, "many_leases_expire_together", Obligation::Leased),
    (ExpiresLate, "lease_expires_soon_after_its_ttl", Obligation::Leased),
    (ExpiresLate, "expired_lease_is_gone", Obligation::Leased),
    (KeepsNothingAlive, "lease_kept_alive_does_not_expire", Obligation::Leased),
    (ForgetsADroppedExpiry, "expiry_continues_after_a_dropped_call", Obligation::Leased),
    (LeavesAGhost, "creates_racing_expiry_leave_no_ghost", Obligation::Leased),
    (LeavesAGhost, "creates_racing_a_revoke_leave_no_ghost", Obligation::Leased),
    (LeavesAGhost, "restarting_gateways_leave_no_ghost", Obligation::Leased),
    (ReordersABatch, "batch_keeps_its_order", Obligation::Ordered),
    (IgnoresItsLimits, "full_registry_refuses_only_new_sessions", Obligation::Bounded),
    (IgnoresItsLimits, "session_limit_holds_for_concurrent_calls", Obligation::Bounded),
    (IgnoresItsLimits, "leases_over_the_limit_are_refused", Obligation::Bounded),
    (IgnoresItsLimits, "changes_before_the_start_are_reported_as_trimmed", Obligation::Bounded),
    (LosesTheEndOfALongBatch, "large_batch_is_processed_completely", Obligation::Answers),
    (LogsAnEmptyBatch, "empty_batch_does_nothing", Obligation::Alternating),
    (SharesItsIdentity, "new_log_is_empty_and_keeps_its_registry_id", Obligation::Answers),
    (LeasesTheFirstOnly, "batch_under_a_lease_counts_duplicates_once", Obligation::Leased),
    (ShowsChangesLate, "change_is_visible_after_its_call_returns", Obligation::Visible),
    (ForgetsMarks, "marks_are_known_for_all_held_changes", Obligation::Histories),
    (KnowsMarksAhead, "marks_are_known_for_all_held_changes", Obligation::Histories),
    (MismarksItsExtent, "marks_are_known_for_all_held_changes", Obligation::Histories),
    (ForgetsTheMarkAtTheStart, "trimmed_log_has_marks_from_its_start", Obligation::Histories),
    (MarksByTheEnd, "marks_never_change", Obligation::Histories),
    (MismarksChanges, "changes_have_the_mark_at_their_end", Obligation::Histories),
    (FollowsAnyHistory, "follower_from_another_history_is_refused", Obligation::Histories),
    (WaitsInAnotherHistory, "follower_from_another_history_is_refused", Obligation::Histories),
    (ReadsAnyHistory, "read_from_another_history_is_refused", Obligation::Histories),
    (ReadsAhead, "read_from_another_history_is_refused", Obligation::Histories),
    (ReadsAnyRegistry, "read_from_another_history_is_refused", Obligation::Histories),
    (IsNeverWritable, "writable_storage_reports_it", Obligation::Writable),
    (HidesRefusals, "refused_changes_change_nothing", Obligation::Writable),
    (NamesAnotherCause, "refused_changes_change_nothing", Obligation::Writable),
    (AppliesWhatItRefuses, "refused_changes_change_nothing", Obligation::Writable),
    (RevokesNothingWithoutRoom, "leases_are_kept_and_end_without_room", Obligation::Leased),
    (ExpiresNothingWithoutRoom, "leases_are_kept_and_end_without_room", Obligation::Leased),
    (RefusesEmptyLists, "empty_lists_are_answered_with_nothing", Obligation::Answers),
    (LooksUpDuplicatesOnce, "duplicates_are_answered_each", Obligation::Answers),
    (EndsAListAtALimitOfZero, "a_limit_of_zero_counts_as_one", Obligation::Answers),
    (KeepsALongTtl, "a_ttl_or_linger_beyond_the_longest_is_cut", Obligation::Answers),
    (TrimsOwners, "an_owner_is_any_text", Obligation::Answers),
];

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

#[async_trait::async_trait]
impl StorageFactory for BrokenMemory {
    async fn open(&self, options: StorageOptions) -> Vec<Arc<dyn SessionStorage>> {
        vec![self.broken(options)]
    }

    async fn open_refusable(&self, options: StorageOptions) -> Option<Refusable> {
        let storage = self.broken(options);
        Some(Refusable::new(vec![storage.clone()], Switch(storage)))
    }

    fn slack(&self) -> Duration {
        Duration::ZERO
    }
}

impl BrokenMemory {
    fn broken(&self, mut options: StorageOptions) -> Arc<Broken> {
        let shape = Memory { buckets: 16, partitions: 2, ..DEFAULT };
        let max_sessions = options.max_sessions;
        if self.0 == IgnoresItsLimits {
            options = StorageOptions::DEFAULT.retain_events(1 << 20).max_sessions(1 << 20).max_leases(1 << 20);
        }
        let memory = shape.storage(options);
        let refuses = AtomicBool::new(false);
        Arc::new(Broken { fault: self.0, max_sessions, memory, state: Mutex::default(), refuses })
    }
}

/// Makes the storage refuse changes, as one does whose store has run out of memory.
struct Switch(Arc<Broken>);

#[async_trait::async_trait]
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

/// A memory storage with a fault.
#[derive(Debug)]
struct Broken {
    fault: Fault,
    memory: MemoryStorage,
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

    /// Returns a lease that no caller knows and that does not end during a case.
    async fn other_lease(&self) -> Result<LeaseId, StorageError> {
        let held = self.state().other_lease;
        if let Some(lease) = held {
            return Ok(lease);
        }
        let lease = self.memory.grant_lease(Duration::from_secs(3600), "").await?;
        self.state().other_lease = Some(lease);
        Ok(lease)
    }

    /// Lets a lease linger at last, after a few creates under it that should have been refused.
    async fn linger_when_due(&self, lease: Option<LeaseId>) -> Result<(), StorageError> {
        let late = {
            let mut state = self.state();
            let late = state.lingers_late.take_if(|(late, left)| {
                *left -= u32::from(Some(*late) == lease);
                *left == 0
            });
            late.map(|(lease, _)| lease)
        };
        if let Some(lease) = late {
            self.memory.revoke_lease_with(lease, MAX_LINGER).await?;
        }
        Ok(())
    }

    /// Creates sessions without a takeover condition.
    async fn create_always(&self, sessions: &[SessionKey], lease: Option<LeaseId>) -> Result<Vec<bool>, StorageError> {
        if self.fault == AppliesWhatItRefuses && self.refuses() {
            self.memory.create(sessions, lease).await?;
        }
        self.admit()?;
        let all = |lease: Option<LeaseId>| sessions.iter().map(move |session| (*session, lease));
        match (self.fault, lease) {
            (CreatesTwice, _) => self.memory.create(sessions, lease).await.map(|answers| vec![true; answers.len()]),
            (AnswersOutOfOrder, _) => {
                self.memory.create(sessions, lease).await.map(|answers| answers.into_iter().rev().collect())
            }
            (ForgetsAuthKeys, _) => self.memory.create(&without_auth_keys(sessions), lease).await,
            (RefusesWhatExistsWhenFull, _) if self.session_count().await? >= self.max_sessions => {
                Err(StorageError::TooManySessions { limit: self.max_sessions })
            }
            (LogsBeforeItChanges, _) => {
                self.state().hidden.extend(sessions);
                let created = self.memory.create(sessions, lease).await;
                yield_now().await;
                yield_now().await;
                self.state().hidden.clear();
                created
            }
            (ShowsChangesLate, _) => {
                self.state().hidden.extend(sessions);
                self.memory.create(sessions, lease).await
            }
            (LeavesOutWhatWasDropped, _) => {
                self.state().hidden.extend(sessions);
                let created = self.memory.create(sessions, lease).await?;
                yield_now().await;
                self.state().hidden.clear();
                Ok(created)
            }
            (KeepsRevokedLeases, Some(_)) => match self.memory.create(sessions, lease).await {
                Err(StorageError::UnknownLease(_)) => self.memory.create(sessions, None).await,
                answer => answer,
            },
            (MovesNothing, Some(_)) => {
                let mut created = Vec::new();
                for session in sessions {
                    let exists = self.memory.has(&[*session]).await?[0];
                    created.extend(self.memory.create(&[*session], lease.filter(|_| !exists)).await?);
                }
                Ok(created)
            }
            (DropsTheLeaseWhenCreatedWithout, None) => {
                let created = self.memory.create(sessions, None).await?;
                self.memory.create(sessions, Some(self.other_lease().await?)).await?;
                Ok(created)
            }
            (LeavesAGhost, Some(_)) => {
                self.check_lease(lease).await?;
                sleep(Duration::from_millis(2)).await;
                let created = self.memory.create(sessions, None).await?;
                sleep(Duration::from_millis(2)).await;
                self.memory.create(sessions, lease).await?;
                Ok(created)
            }
            (ReordersABatch, _) => {
                let mut created = self.create_each(all(lease).rev()).await?;
                created.reverse();
                Ok(created)
            }
            (LosesTheEndOfALongBatch, _) => {
                let done = sessions.len().min(10_000);
                let mut created = self.memory.create(&sessions[..done], lease).await?;
                created.resize(sessions.len(), true);
                Ok(created)
            }
            (LogsAnEmptyBatch, _) if sessions.is_empty() => {
                self.memory.create(&[SessionKey::new(9, 9)], lease).await?;
                Ok(Vec::new())
            }
            (LeasesTheFirstOnly, Some(_)) => self.create_each(all(lease).take(1).chain(all(None).skip(1))).await,
            _ => self.memory.create(sessions, lease).await,
        }
    }

    async fn check_lease(&self, lease: Option<LeaseId>) -> Result<(), StorageError> {
        match lease {
            Some(lease) if self.memory.lease_owner(lease).await?.is_none() => Err(StorageError::UnknownLease(lease)),
            _ => Ok(()),
        }
    }

    /// Creates sessions one by one.
    async fn create_each(
        &self,
        sessions: impl IntoIterator<Item = (SessionKey, Option<LeaseId>)> + Send,
    ) -> Result<Vec<bool>, StorageError> {
        let sessions: Vec<_> = sessions.into_iter().collect();
        let mut created = Vec::new();
        for (session, lease) in sessions {
            created.extend(self.memory.create(&[session], lease).await?);
        }
        Ok(created)
    }
}

/// Runs the closure on drop, that is, also when the surrounding future is dropped.
struct WhenDropped<F: FnMut()>(F);

impl<F: FnMut()> Drop for WhenDropped<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn without_auth_keys(sessions: &[SessionKey]) -> Vec<SessionKey> {
    sessions.iter().map(|session| SessionKey::new(0, session.session_id.0)).collect()
}

const SHORT_OF: Duration = Duration::from_millis(50);

#[async_trait::async_trait]
impl SessionStorage for Broken {
    fn layout(&self) -> Layout {
        self.memory.layout()
    }

    fn bucket_of(&self, session: &SessionKey) -> u32 {
        let mut bucket = self.memory.bucket_of(session);
        if self.fault == WandersBetweenBuckets {
            let mut state = self.state();
            state.calls += 1;
            bucket = (bucket + state.calls) % self.layout().buckets;
        }
        bucket
    }

    fn partition_of(&self, bucket: u32) -> u32 {
        self.memory.partition_of(bucket)
    }

    fn writability(&self) -> Writability {
        match self.fault {
            IsNeverWritable => Writability::Refused(Self::refusal()),
            HidesRefusals => Writability::Writable,
            NamesAnotherCause if self.refuses() => Writability::Refused(WriteRefusal::new(RefusalCause::Other, "")),
            _ if self.refuses() => Writability::Refused(Self::refusal()),
            _ => Writability::Writable,
        }
    }

    async fn create_with(
        &self,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Result<Answers<Creation>, StorageError> {
        let mut options = options;
        match self.fault {
            TakesFromAnyLease => options.takeover = Takeover::Always,
            TakesNothing if options.takeover != Takeover::Always => {
                options.takeover = Takeover::OnlyFrom(options.lease)
            }
            _ => {}
        }
        if self.fault == RefusesEmptyLists && sessions.is_empty() {
            self.check_lease(options.lease).await?;
        }
        self.linger_when_due(options.lease).await?;
        if options.takeover != Takeover::Always {
            self.admit()?;
            let found = self.memory.lookup(sessions).await?;
            let lingers =
                found.iter().any(|found| found.lease.is_some_and(|lease| self.state().lingering.contains(&lease)));
            let stay = match self.fault {
                ProtectsWhatLingers if lingers => Some(found.iter().map(|found| found.lease).collect()),
                AnswersMovesAndMakesNone if lingers => Some(vec![options.lease; sessions.len()]),
                _ => None,
            };
            if let Some(leases) = stay {
                let leases: Vec<Option<LeaseId>> = leases;
                let sessions = leases.into_iter().map(|lease| Creation::new(false, lease)).collect();
                return Ok(Answers::new(sessions, Places::default()));
            }
            return self.memory.create_with(sessions, options).await;
        }
        let created = self.create_always(sessions, options.lease).await?;
        if let Some(lease) = options.lease {
            self.state().leases.extend(sessions.iter().map(|session| (*session, lease)));
        }
        let mut places = Places::default();
        let end = self.memory.log().await?.partitions;
        for session in sessions {
            let partition = self.memory.partition_of(self.memory.bucket_of(session));
            let position = end[partition as usize].end.position;
            let position = if self.fault == NamesTheStart { Position(0) } else { position };
            places.add(Place { partition, position });
        }
        let found = self.memory.lookup(sessions).await?;
        let lease = |found: Lookup| found.lease.filter(|_| self.fault != TellsNoLease);
        let answer = |(created, found)| Creation::new(created, lease(found));
        Ok(Answers::new(created.into_iter().zip(found).map(answer).collect(), places))
    }

    async fn lookup(&self, sessions: &[SessionKey]) -> Result<Vec<Lookup>, StorageError> {
        let mut found = self.memory.lookup(sessions).await?;
        if self.fault == LooksUpNoLease {
            found.iter_mut().for_each(|found| found.lease = None);
        }
        if self.fault == LooksUpEndedLeases {
            let state = self.state();
            for (found, session) in found.iter_mut().zip(sessions).filter(|(found, _)| found.exists) {
                found.lease = found.lease.or_else(|| state.leases.get(session).copied());
            }
        }
        if self.fault == LooksUpDuplicatesOnce {
            let mut seen = HashSet::new();
            found.iter_mut().zip(sessions).filter(|(_, session)| !seen.insert(**session)).for_each(|(found, _)| {
                *found = Lookup::default();
            });
        }
        Ok(found)
    }

    async fn has(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, StorageError> {
        if self.fault == ForgetsAuthKeys {
            return self.memory.has(&without_auth_keys(sessions)).await;
        }
        let mut exist = self.memory.has(sessions).await?;
        let mut state = self.state();
        if matches!(self.fault, LogsBeforeItChanges | ShowsChangesLate) {
            for (exists, session) in exist.iter_mut().zip(sessions) {
                *exists &= !state.hidden.contains(session);
            }
        }
        if self.fault == ShowsChangesLate {
            state.hidden.clear();
        }
        Ok(exist)
    }

    async fn destroy_with(
        &self,
        sessions: &[SessionKey],
        lease: Option<LeaseId>,
    ) -> Result<Answers<bool>, StorageError> {
        self.admit()?;
        match self.fault {
            DestroysTwice => {
                let mut answers = self.memory.destroy_with(sessions, lease).await?;
                answers.sessions.fill(true);
                Ok(answers)
            }
            ForgetsAuthKeys => self.memory.destroy_with(&without_auth_keys(sessions), lease).await,
            DestroysUnderAnyLease => self.memory.destroy_with(sessions, None).await,
            _ => self.memory.destroy_with(sessions, lease).await,
        }
    }

    async fn grant_lease(&self, ttl: Duration, owner: &str) -> Result<LeaseId, StorageError> {
        self.admit()?;
        let ttl = match self.fault {
            ExpiresEarly => ttl - SHORT_OF,
            ExpiresLate => ttl + Duration::from_millis(1100),
            _ => ttl,
        };
        self.memory.grant_lease(ttl, owner).await
    }

    async fn keep_lease_alive(&self, lease: LeaseId) -> Result<Duration, StorageError> {
        match self.fault {
            ExpiresEarly => self.memory.keep_lease_alive(lease).await.map(|ttl| ttl + SHORT_OF),
            KeepsALongTtl => self.memory.keep_lease_alive(lease).await.map(|ttl| ttl + SHORT_OF),
            KeepsNothingAlive => Ok(Duration::from_secs(1)),
            KeepsRevokedLeases => Ok(self.memory.keep_lease_alive(lease).await.unwrap_or(Duration::from_secs(3600))),
            _ => self.memory.keep_lease_alive(lease).await,
        }
    }

    async fn lease_owner(&self, lease: LeaseId) -> Result<Option<Arc<str>>, StorageError> {
        let owner = self.memory.lease_owner(lease).await?;
        Ok(match self.fault {
            ForgetsOwners => owner.map(|_| "".into()),
            TrimsOwners => owner.map(|owner| owner.trim().into()),
            _ => owner,
        })
    }

    async fn revoke_lease_with(&self, lease: LeaseId, linger: Duration) -> Result<u64, StorageError> {
        match self.fault {
            RevokesNothingWithoutRoom if self.refuses() => Err(StorageError::Refused(Self::refusal())),
            MiscountsARevoke => self.memory.revoke_lease_with(lease, linger).await.map(|count| count + 1),
            ForgetsADroppedRevoke => {
                if !self.state().revoked.insert(lease) {
                    return Err(StorageError::UnknownLease(lease));
                }
                yield_now().await;
                self.memory.revoke_lease_with(lease, linger).await
            }
            IgnoresALinger if !linger.is_zero() => Ok(0),
            EndsALingerEarly => self.memory.revoke_lease_with(lease, linger.saturating_sub(SHORT_OF)).await,
            NeverEndsALinger if !linger.is_zero() => self.memory.revoke_lease_with(lease, MAX_LINGER).await,
            IgnoresASecondRevoke if !linger.is_zero() && self.state().lingering.contains(&lease) => Ok(0),
            LingersLate if !linger.is_zero() => {
                self.state().lingers_late = Some((lease, 3));
                Ok(0)
            }
            _ => {
                self.state().lingering.insert(lease);
                self.memory.revoke_lease_with(lease, linger).await
            }
        }
    }

    async fn list_leases(&self, query: &LeaseQuery) -> Result<LeasePage, StorageError> {
        if self.fault == EndsAListAtALimitOfZero && query.limit == 0 {
            return Ok(LeasePage::default());
        }
        let mut page = self.memory.list_leases(query).await?;
        match self.fault {
            ListsNoSessions => page.leases.iter_mut().for_each(|status| status.session_count = 0),
            SkipsALeaseAtAPageEnd if page.leases.len() == query.limit && query.limit > 1 => drop(page.leases.pop()),
            _ => {}
        }
        Ok(page)
    }

    async fn buckets_under(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        leases: &[LeaseId],
    ) -> Result<LeaseBuckets, LogError> {
        let mut found = self.memory.buckets_under(registry_id, known, leases).await?;
        if self.fault == LeavesOutABucket {
            found.buckets.pop();
        }
        Ok(found)
    }

    async fn expire_leases(&self) -> Result<Infallible, StorageError> {
        let _dropped = WhenDropped(|| self.state().expiry_dropped = true);
        if self.fault == ExpiresNothingWithoutRoom {
            let refused = async {
                while !self.refuses() {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                ended = self.memory.expire_leases() => return ended,
                () = refused => return Err(StorageError::Refused(Self::refusal())),
            }
        }
        let dropped = self.state().expiry_dropped;
        if self.fault == ForgetsADroppedExpiry && dropped {
            pending::<()>().await;
        }
        self.memory.expire_leases().await
    }

    async fn lease_count(&self) -> Result<u64, StorageError> {
        self.memory.lease_count().await
    }

    async fn session_count(&self) -> Result<u64, StorageError> {
        let count = self.memory.session_count().await?;
        Ok(if self.fault == CountsOneMore { count + 1 } else { count })
    }

    async fn log(&self) -> Result<LogExtent, StorageError> {
        let mut extent = self.memory.log().await?;
        match self.fault {
            SharesItsIdentity => extent.registry_id = RegistryId(1),
            MismarksItsExtent => extent.partitions.iter_mut().for_each(|held| held.end.mark.0 += 1),
            MarksByTheEnd => {
                for held in &mut extent.partitions {
                    held.start.mark.0 ^= held.end.position.0;
                    held.end.mark.0 ^= held.end.position.0;
                }
            }
            ShowsTheLogLate => {
                let before = self.state().extent.replace(extent.clone());
                extent = before.unwrap_or(extent);
            }
            _ => {}
        }
        Ok(extent)
    }

    async fn changes_after(
        &self,
        registry_id: RegistryId,
        partition: u32,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError> {
        let registry_id = match self.fault {
            FollowsAnyRegistry => self.memory.log().await?.registry_id,
            _ => registry_id,
        };
        let after = match self.fault {
            FollowsAnyHistory => LogPoint { mark: self.memory.log().await?.partitions[0].end.mark, ..after },
            _ => after,
        };
        let follow = |limit: usize| self.memory.changes_after(registry_id, partition, after, limit);
        let at_end =
            async || Ok::<_, StorageError>(self.memory.log().await?.partitions[partition as usize].end == after);
        match self.fault {
            LosesAChange if after.position.0 < 3 => {
                let mut changes = follow(limit).await?;
                let lost = 2 - after.position.0 as usize;
                if changes.events.len() > lost {
                    changes.events.remove(lost);
                }
                if changes.events.is_empty() {
                    let after = LogPoint { position: Position(3), ..after };
                    self.memory.changes_after(registry_id, partition, after, limit).await
                } else {
                    Ok(changes)
                }
            }
            RepeatsAChange if after.position == Position(0) => {
                let mut changes = follow(limit).await?;
                changes.events.insert(0, changes.events[0]);
                changes.events.truncate(limit);
                Ok(changes)
            }
            IgnoresTheLimit => follow(usize::MAX).await,
            IsBusy => {
                while at_end().await? {
                    yield_now().await;
                }
                follow(limit).await
            }
            WakesNobody if at_end().await? => pending().await,
            ServesOneFollower => {
                if replace(&mut self.state().following, true) {
                    return pending().await;
                }
                let _done = WhenDropped(|| self.state().following = false);
                follow(limit).await
            }
            ForgetsWhatADroppedFollowerMissed => {
                let dropped = WhenDropped(|| self.state().missed += 1);
                let mut changes = follow(limit).await?;
                forget(dropped);
                let mut state = self.state();
                let lost = state.missed.min(changes.events.len() - 1);
                state.missed -= lost;
                changes.events.drain(..lost);
                Ok(changes)
            }
            CallsTrimmedRestarted => match follow(limit).await {
                Err(LogError::Trimmed) => Err(LogError::Restarted),
                answer => answer,
            },
            MismarksChanges => {
                let mut changes = follow(limit).await?;
                changes.mark.0 += 1;
                Ok(changes)
            }
            WaitsInAnotherHistory if self.memory.log().await?.partitions[0].end.mark != after.mark => pending().await,
            WaitsAhead => match follow(limit).await {
                Err(LogError::Restarted) => pending().await,
                answer => answer,
            },
            ForgetsWhereASessionMovedFrom => {
                let mut changes = follow(limit).await?;
                for event in &mut changes.events {
                    if let SessionChange::Moved { previous } = &mut event.change {
                        *previous = None;
                    }
                }
                Ok(changes)
            }
            ForgetsTheLeaseOfADestroyedSession => {
                let mut changes = follow(limit).await?;
                for event in &mut changes.events {
                    event.lease = event.lease.filter(|_| !matches!(event.change, SessionChange::Destroyed(_)));
                }
                Ok(changes)
            }
            ConfusesReasons => {
                let mut changes = follow(limit).await?;
                for event in &mut changes.events {
                    event.change = match event.change {
                        SessionChange::Destroyed(DestroyReason::LeaseRevoked) => {
                            SessionChange::Destroyed(DestroyReason::Requested)
                        }
                        SessionChange::Destroyed(DestroyReason::LeaseExpired) => {
                            SessionChange::Destroyed(DestroyReason::LeaseRevoked)
                        }
                        change => change,
                    };
                }
                Ok(changes)
            }
            _ => follow(limit).await,
        }
    }

    async fn marks(&self, positions: &[Position]) -> Result<Vec<Option<Mark>>, StorageError> {
        let mut marks = self.memory.marks(positions).await?;
        let extent = self.memory.log().await?;
        for ((mark, position), held) in marks.iter_mut().zip(positions).zip(&extent.partitions) {
            match self.fault {
                ForgetsMarks if *position < held.end.position => *mark = None,
                ForgetsTheMarkAtTheStart if held.start.position > Position(0) && *position <= held.start.position => {
                    *mark = None;
                }
                KnowsMarksAhead => *mark = Some(held.end.mark),
                MarksByTheEnd => *mark = mark.map(|mark| Mark(mark.0 ^ held.end.position.0)),
                _ => {}
            }
        }
        Ok(marks)
    }

    async fn read_buckets(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        buckets: &[u32],
        limit: usize,
        with_leases: bool,
    ) -> Result<BucketRun, LogError> {
        let limit = if self.fault == ReadsPastTheLimit { usize::MAX } else { limit };
        let extent = self.memory.log().await?;
        let mut known = known.to_vec();
        for (point, held) in known.iter_mut().zip(&extent.partitions) {
            match self.fault {
                ReadsAnyHistory => point.mark = held.end.mark,
                ReadsAhead => point.position = point.position.min(held.end.position),
                _ => {}
            }
        }
        let registry_id = if self.fault == ReadsAnyRegistry { extent.registry_id } else { registry_id };
        let neighbours: Vec<u32> =
            buckets.first().map(|first| (*first..self.layout().buckets).collect()).unwrap_or_default();
        let buckets =
            if self.fault == ReadsNeighbours { &neighbours[..buckets.len().min(neighbours.len())] } else { buckets };
        let mut run = self.memory.read_buckets(registry_id, &known, buckets, limit, with_leases).await?;
        match self.fault {
            ReadsAtTooLow => {
                run.points.iter_mut().for_each(|point| point.position.0 = point.position.0.saturating_sub(1))
            }
            ReadsAtTooHigh => run.points.iter_mut().for_each(|point| point.position.0 += 1),
            ReadsOneLess => {
                run.sessions.pop();
                run.leases.pop();
            }
            ReadsNoLeases => run.leases.fill(None),
            LeavesOutWhatWasDropped => {
                let state = self.state();
                let shown: Vec<bool> = run.sessions.iter().map(|session| !state.hidden.contains(session)).collect();
                let (mut of_session, mut of_lease) = (shown.iter(), shown.iter());
                run.sessions.retain(|_| of_session.next() == Some(&true));
                run.leases.retain(|_| of_lease.next() == Some(&true));
            }
            _ => {}
        }
        Ok(run)
    }
}
