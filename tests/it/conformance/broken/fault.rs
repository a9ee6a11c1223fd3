//! The faults.

/// What a broken storage does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
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
