//! The conditions that the protocol relies on.

/// A condition in a script or in a replica. A test of its model leaves it out and names the promise that breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    // Steps.
    /// `apply`: a step whose time is over is refused (LATE) and changes nothing.
    Until,
    /// Replica: a failure is reported to the caller only once the step's time is over.
    FailureWaits,
    /// Replica: a lane sends nothing more until its last step was answered or that step's time is over.
    LaneWaits,
    /// Replica: a step is sent again only if it was certainly not executed.
    NoHiddenRetry,
    /// Replica: a batch over several partitions answers once every part was answered or has failed.
    BatchWaits,
    /// All scripts: the logical clock does not follow the wall clock backwards.
    ClockNeverGoesBack,
    /// All scripts: if the wall clock went back, the longest possible time since the last store is added instead: a
    /// second, or slightly more.
    SetBackCounts,
    /// `extent`: stores the clock once a second, even when nothing changes.
    ClockIsStored,
    /// All scripts: a time is stored before it is reported to a replica.
    ReportedTimeIsStored,
    /// Replica: a time from Redis is counted from when the answer arrived, not from when the step was sent.
    EstimateIsLower,

    // History.
    /// Tail: an entry names the mark of the entry before it. It must match the mark that was read last.
    PredecessorMark,
    /// Tail: if the log is quiet, it is compared once a second with what was read.
    QuietCheck,
    /// `extent`: that comparison is of marks, not only of positions.
    CheckComparesMarks,
    /// `read`: refuses unless the log contains the point that the observer has reached.
    KnownMark,
    /// Observer: when it passes the point at which a bucket was read, the marks there must be equal.
    RunMark,
    /// `marks`: a cursor's marks are compared, not only its registry id and positions.
    CursorMarks,
    /// `marks`: refuses unless the log contains the point that the tail has reached.
    KnownMarkOfCursor,
    /// Replica: the marks are compared only once the tail has reached the cursor.
    CursorAfterTail,
    /// Replica: the marks are compared again if all observers were reset meanwhile.
    EpochAroundCheck,
    /// `registry_move`: changes the id only if it is still the id under which the loss was noticed.
    CompareAndSetMove,
    /// Replica: moves the registry to a new id when it notices a loss.
    RegistryIdMoves,
    /// All scripts: refused (BEHIND) if the log ends before a place that this replica knows.
    Behind,
    /// Replica: the places that it knows include those in its own answers, not only those that its tail has read.
    BehindCountsAnswers,

    // Leases.
    /// `lease_adopt`: refuses if any lease was closed in the partition since before the first partition was asked.
    Closings,
    /// `lease_close`: closings are identified by random numbers. A count could repeat after a loss.
    ClosingsAreRandom,
    /// Replica: a lease is closed in every partition before its end is recorded.
    CloseEverywhere,
    /// `apply`: a closed lease may still live, so the first partition is asked before anything depends on it.
    ClosedAsks,
    /// `apply`: leaves a session under a live lease, unless that is the lease named by `only_from_lease_id`.
    OnlyFrom,
    /// `lease_keep`: refuses a lease that is marked.
    MarkStopsKeeping,
    /// `lease_attach`: refuses a lease that is marked.
    MarkStopsAttaching,
    /// `lease_ended`: names the mark that the lease was closed for.
    MarkNumber,
    /// `lease_ended`: takes back the mark of a call whose time is over.
    DecideInTime,
    /// `lease_sweep`: does nothing unless the lease is closed in the partition.
    SweepsClosed,
    /// `lease_sweep`: destroys only sessions under the slot of the lease.
    SweepComparesSlot,
    /// `lease_done`: names the mark that the lease was swept for.
    DoneNamesMark,
    /// Replica: after a new connection to a partition, the partition's leases are compared with the first partition's.
    Reconcile,
    /// Replica: after a new connection to the first partition, this is done for every partition.
    ReconcileAll,
    /// `lease_orphans`: gives a lease that is ending, or has ended, a new mark.
    OrphanRenewsMark,
    /// Replica: reconciling a partition counts as a close there, or is repeated once all earlier commands are past
    /// their time.
    ReconcileCloses,

    // The clock of leases.
    /// `lease_look`: moves the clock by 350 ms at most.
    LookIsCapped,
    /// `lease_look`: if the newest look was the replica's own, the replica's own clock counts the time since.
    OwnLook,
    /// `lease_look`: a time since the newest look is ignored if it is negative, or longer than the time since the
    /// replica's own look.
    SetIsNoticed,
    /// `lease_keep`, `lease_grant`: count the ttl from the latest time to which the next look can move the clock.
    KeepRoundsUp,
    /// `lease_look`: after an outage, every lease gets its ttl and its grace from the outage's end.
    OutageRevives,

    // Quotas.
    /// `quota_raise`: ignores a quota with an older number than the register's.
    RaiseNumber,
    /// `quota_set`: sets only a quota with a newer number.
    SetNumber,
    /// `quota_return`: does not record a quota with an older number than the register's.
    ReturnNumber,
    /// Replica: room that was granted to a partition but never reached it is delivered before it is taken back.
    LowersAgain,

    // The registry.
    /// All scripts: refused for a registry of another birth.
    Birth,
    /// `partition_disown`: names the birth that it deletes.
    DisownNamesBirth,
    /// Replica: reads a partition's birth before it reads which registry exists, and disowns no other birth.
    BirthBeforeHead,
    /// Replica: deletes the leftovers of an older registry from a partition before it creates the partition.
    WipesFirst,
    /// `partition_wipe`: deletes nothing once the partition belongs to a registry.
    WipesNoRegistry,
    /// `partition_join`: creates a partition only if it was not disowned since before it was wiped.
    MakeNamesDisown,
    /// `registry_mark`: records that a partition has joined, so that its loss is noticed.
    JoinIsNoted,
}

/// The guards of a model: all, or all but one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guards {
    without: Option<Guard>,
}

impl Guards {
    /// All guards: the real protocol.
    pub(crate) const ALL: Self = Self { without: None };

    /// All guards but one: a mutant of the protocol.
    pub(crate) const fn without(guard: Guard) -> Self {
        Self { without: Some(guard) }
    }

    /// Returns whether the guard is in place.
    pub(crate) fn have(self, guard: Guard) -> bool {
        self.without != Some(guard)
    }
}
