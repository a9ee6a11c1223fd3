//! The conditions that the protocol relies on.

/// A condition in a script or in a replica. A test of its model leaves it out and names the promise that breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    // Steps.
    /// `apply`: a step whose time is over is refused (LATE) and changes nothing.
    Until,
    /// Replica: a caller is told of a failure only when the step's time is over.
    FailureWaits,
    /// Replica: a lane sends nothing more until its last step was answered, or its time is over.
    LaneWaits,
    /// Replica: only a step that was certainly not executed is sent again.
    NoHiddenRetry,
    /// Replica: a batch over several partitions answers when every part was answered or has failed.
    BatchWaits,
    /// All scripts: the logical clock does not follow the wall clock backwards.
    ClockNeverGoesBack,
    /// All scripts: a wall clock that went back counts as the longest time since the last store, a second or a bit
    /// more.
    SetBackCounts,
    /// `extent`: stores the clock once a second, even when nothing changes.
    ClockIsStored,
    /// All scripts: a time is stored before a replica is told of it.
    ToldIsStored,
    /// Replica: a time that Redis told is counted from when the answer came, not from when the step was sent.
    EstimateIsLower,

    // History.
    /// Tail: an entry names the mark of the entry before it, which must be the one that was read last.
    PredecessorMark,
    /// Tail: a quiet log is compared with what was read, once a second.
    QuietCheck,
    /// `extent`: that comparison is of marks, not of positions alone.
    CheckComparesMarks,
    /// `read`: refuses unless the log contains the point that the observer has come to.
    KnownMark,
    /// Observer: when it passes the point at which a bucket was read, the marks there must be equal.
    RunMark,
    /// `marks`: a cursor's marks are compared, not its registry id and positions alone.
    CursorMarks,
    /// `marks`: refuses unless the log contains the point that the tail has come to.
    KnownMarkOfCursor,
    /// Replica: the marks are compared only once the tail has come as far as the cursor.
    CursorAfterTail,
    /// Replica: the marks are compared again if all observers were reset meanwhile.
    EpochAroundCheck,
    /// `registry_move`: moves the id only if it is the one under which the loss was noticed.
    CompareAndSetMove,
    /// Replica: moves the registry to a new id when it notices a loss.
    RegistryIdMoves,
    /// All scripts: refused (BEHIND) if the log ends before a place that this replica knows.
    Behind,
    /// Replica: it knows the places in its own answers, not only what its tail has read.
    BehindCountsAnswers,

    // Leases.
    /// `lease_adopt`: refuses if anything was closed in the partition since before the first partition was asked.
    Closings,
    /// `lease_close`: what tells closings apart is a random number. A count would come back after a loss.
    ClosingsAreRandom,
    /// Replica: a lease is closed in every partition before its end is recorded.
    CloseEverywhere,
    /// `apply`: a closed lease may still live. The first partition is asked before anything depends on it.
    ClosedAsks,
    /// `apply`: leaves a session under a live lease, unless that is the lease to take it from.
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
    /// Replica: whoever connects anew compares the leases of the partition with the first partition's.
    Reconcile,
    /// Replica: whoever connects to the first partition anew does so for every partition.
    ReconcileAll,
    /// `lease_orphans`: gives a lease that is ending, or has ended, a new mark.
    OrphanRenewsMark,
    /// Replica: reconciling a partition counts as a close there, or is repeated once all earlier commands are past
    /// their time.
    ReconcileCloses,

    // The clock of leases.
    /// `lease_look`: moves the clock by 350 ms at most.
    LookIsCapped,
    /// `lease_look`: a replica whose own look was the newest counts the time since by its own clock.
    OwnLook,
    /// `lease_look`: a time since the newest look that is negative, or longer than since the replica's own look, is not
    /// believed.
    SetIsNoticed,
    /// `lease_keep`, `lease_grant`: count the ttl from the latest time that the next look can move the clock to.
    KeepRoundsUp,
    /// `lease_look`: after an outage, every lease gets its ttl and its grace from the outage's end.
    OutageRevives,

    // Quotas.
    /// `quota_raise`: does not believe a quota of an older number than the register's.
    RaiseNumber,
    /// `quota_set`: sets only a quota of a newer number.
    SetNumber,
    /// `quota_return`: does not note a quota of an older number than the register's.
    ReturnNumber,
    /// Replica: room that was given to a partition and never reached it is brought there before it is given up.
    LowersAgain,

    // The registry.
    /// All scripts: nothing is done for a registry of another birth.
    Birth,
    /// `partition_disown`: names the birth that it deletes.
    DisownNamesBirth,
    /// Replica: reads a partition's birth before it reads which registry there is, and disowns no other.
    BirthBeforeHead,
    /// Replica: deletes what an older registry has left in a partition before it makes the partition.
    WipesFirst,
    /// `partition_wipe`: deletes nothing once the partition is of a registry.
    WipesNoRegistry,
    /// `partition_join`: makes a partition only if it was not disowned since before it was wiped.
    MakeNamesDisown,
    /// `registry_mark`: notes that a partition has joined, so that its loss is noticed.
    JoinIsNoted,
}

/// The guards that a model has: all, or all but one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guards {
    without: Option<Guard>,
}

impl Guards {
    /// The protocol as it is.
    pub(crate) const ALL: Self = Self { without: None };

    /// A mutant of the protocol.
    pub(crate) const fn without(guard: Guard) -> Self {
        Self { without: Some(guard) }
    }

    /// Returns whether the guard is in place.
    pub(crate) fn have(self, guard: Guard) -> bool {
        self.without != Some(guard)
    }
}
