//! The scripts: their effects on Redis, and their answers.

use super::{
    ACKNOWLEDGED, Entry, Guard, KEPT, Leases, Life, MOVED, Mark, OTHER, PROTECTED, Promise, SWEPT, State, agent::Goal,
};

/// A script with its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Command {
    /// `apply`: creates the session of a partition under a lease.
    Create { partition: u8, lease: u8 },
    /// `apply`: creates the session of a partition under the other lease, unless the session is under a live lease
    /// (`only_from_lease_id = 0`). `over` is a lease that the replica knows to protect nothing.
    Take { partition: u8, over: Option<u8> },
    /// `lease_attach` and `lease_keep`: ask the first partition about a lease.
    Ask { lease: u8, goal: Goal },
    /// `lease_adopt`.
    Adopt { partition: u8, lease: u8, closing: u8 },
    /// `lease_look` and `lease_revoke`: mark a lease.
    Mark { lease: u8, to: Life, is_of_call: bool },
    /// `lease_close`.
    Close { partition: u8, lease: u8 },
    /// `lease_ended`. `knows_mark`: it names the number of the current mark.
    Record { lease: u8, knows_mark: bool },
    /// `lease_sweep` and `lease_swept`.
    Sweep { partition: u8, lease: u8 },
    /// `lease_done`. `knows_mark`: it names the number of the newest mark.
    Done { lease: u8, knows_mark: bool },
    /// Sets a partition's `closing` and lists its leases.
    List { partition: u8 },
    /// `lease_orphans`: names one of a partition's leases to the first partition.
    Orphan { lease: u8 },
}

/// The answer of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Done,
    Refused,
    /// The partition cannot tell whether this lease lives.
    Meets {
        lease: u8,
        closing: u8,
    },
    Life(Life),
    Marked,
}

impl Command {
    /// Returns whether the command may change anything.
    pub(super) fn has_effect(self) -> bool {
        !matches!(self, Self::Ask { .. })
    }

    /// Returns the partition's `closing` that the command names.
    pub(super) fn closing(&mut self, of: u8) -> Option<&mut u8> {
        match self {
            Self::Adopt { partition, closing, .. } if *partition == of => Some(closing),
            _ => None,
        }
    }

    /// Makes the number that the command names stale, because the lease's mark was replaced or taken back.
    fn forget_mark(&mut self, of: u8) {
        if let Self::Record { lease, knows_mark } | Self::Done { lease, knows_mark } = self
            && *lease == of
        {
            *knows_mark = false;
        }
    }
}

impl Leases {
    /// Runs a script.
    pub(super) fn run(&self, state: &mut State, command: Command) -> Result<Reply, Promise> {
        match command {
            Command::Create { partition, lease } => Ok(self.create(state, partition, lease)),
            Command::Take { partition, over } => self.take(state, partition, over),
            Command::Ask { lease, goal } => Ok(self.ask(state, lease, goal)),
            Command::Adopt { partition, lease, closing } => Ok(self.adopt(state, partition, lease, closing)),
            Command::Mark { lease, to, is_of_call } => Ok(self.mark(state, lease, to, is_of_call)),
            Command::Close { partition, lease } => {
                self.renew_closing(state, partition);
                let entry = &mut state.partitions[partition as usize].entries[lease as usize];
                if *entry == Entry::Attached {
                    *entry = Entry::Closed;
                }
                Ok(Reply::Done)
            }
            Command::Record { lease, knows_mark } => self.record(state, lease, knows_mark),
            Command::Sweep { partition, lease } => self.sweep(state, partition, lease),
            Command::Done { lease, knows_mark } => {
                let first = &mut state.partitions[0];
                let has_ended = first.lives[lease as usize] == Life::Ended && first.marks[lease as usize].is_none();
                if has_ended && (knows_mark || !self.have(Guard::DoneNamesMark)) {
                    first.lives[lease as usize] = Life::Unknown;
                }
                Ok(Reply::Done)
            }
            Command::List { partition } => {
                if self.have(Guard::ReconcileCloses) {
                    self.renew_closing(state, partition);
                }
                Ok(Reply::Done)
            }
            Command::Orphan { lease } => {
                self.orphan(state, lease);
                Ok(Reply::Done)
            }
        }
    }

    fn create(&self, state: &mut State, partition: u8, lease: u8) -> Reply {
        let here = &mut state.partitions[partition as usize];
        if here.entries[lease as usize] != Entry::Attached {
            return Reply::Meets { lease, closing: here.closing };
        }
        (here.session, here.is_fresh) = (Some(lease), true);
        Reply::Done
    }

    fn take(&self, state: &mut State, partition: u8, over: Option<u8>) -> Result<Reply, Promise> {
        let here = &mut state.partitions[partition as usize];
        let Some(lease) = here.session.filter(|lease| *lease != OTHER) else {
            return Ok(Reply::Done);
        };
        let is_attached = here.entries[lease as usize] == Entry::Attached;
        if is_attached && self.have(Guard::OnlyFrom) {
            // It is protected.
            return Ok(Reply::Done);
        }
        if !is_attached && over != Some(lease) && self.have(Guard::ClosedAsks) {
            return Ok(Reply::Meets { lease, closing: here.closing });
        }
        here.session = Some(OTHER);
        let lives = state.partitions[0].lives[lease as usize] == Life::Live;
        if lives && state.losses == 0 { Err(PROTECTED) } else { Ok(Reply::Done) }
    }

    fn ask(&self, state: &State, lease: u8, goal: Goal) -> Reply {
        let first = &state.partitions[0];
        let is_stopped = match goal {
            Goal::Keep { .. } => self.have(Guard::MarkStopsKeeping),
            Goal::Create { .. } | Goal::Take { .. } => self.have(Guard::MarkStopsAttaching),
            _ => true,
        };
        if first.marks[lease as usize].is_some() && is_stopped {
            return Reply::Marked;
        }
        Reply::Life(first.lives[lease as usize])
    }

    fn adopt(&self, state: &mut State, partition: u8, lease: u8, closing: u8) -> Reply {
        let here = &mut state.partitions[partition as usize];
        if here.closing != closing && self.have(Guard::Closings) {
            return Reply::Refused;
        }
        here.entries[lease as usize] = Entry::Attached;
        Reply::Done
    }

    fn mark(&self, state: &mut State, lease: u8, to: Life, is_of_call: bool) -> Reply {
        let first = &state.partitions[0];
        let life = first.lives[lease as usize];
        let may_change = life == Life::Live || life == Life::Lingering && to == Life::Ended;
        if first.marks[lease as usize].is_some() || !may_change {
            return Reply::Refused;
        }
        self.set_mark(state, lease, Some(new_mark(to, is_of_call)));
        Reply::Done
    }

    /// Sets or removes the mark of a lease. No agent knows the number of a new one.
    fn set_mark(&self, state: &mut State, lease: u8, mark: Option<Mark>) {
        state.partitions[0].marks[lease as usize] = mark;
        for agent in state.agents.iter_mut().flatten().filter(|agent| agent.is_about(lease)) {
            agent.knows_mark = false;
            agent.after_failure &= !(1 << lease);
            agent.sent.forget_mark(lease);
        }
        state.late.iter_mut().for_each(|late| late.forget_mark(lease));
    }

    fn record(&self, state: &mut State, lease: u8, knows_mark: bool) -> Result<Reply, Promise> {
        let l = lease as usize;
        let Some(mark) = state.partitions[0].marks[l] else {
            return Ok(Reply::Refused);
        };
        if !knows_mark && self.have(Guard::MarkNumber) {
            return Ok(Reply::Refused);
        }
        if mark.is_late && self.have(Guard::DecideInTime) {
            // Its call has failed.
            let life = state.partitions[0].lives[l];
            self.set_mark(state, lease, None);
            return Ok(Reply::Life(life));
        }
        if mark.is_contradicted {
            return Err(if mark.is_of_call { ACKNOWLEDGED } else { KEPT });
        }
        state.partitions[0].lives[l] = mark.to;
        // The mark is removed, but its number stays for `lease_done`.
        state.partitions[0].marks[l] = None;
        for agent in state.agents.iter_mut().flatten().filter(|agent| agent.is_about(lease)) {
            agent.after_failure &= !(1 << lease);
        }
        Ok(Reply::Life(mark.to))
    }

    fn sweep(&self, state: &mut State, partition: u8, lease: u8) -> Result<Reply, Promise> {
        let l = lease as usize;
        let first = state.partitions[0];
        let here = &mut state.partitions[partition as usize];
        let is_attached = here.entries[l] == Entry::Attached;
        if here.entries[l] != Entry::Closed && self.have(Guard::SweepsClosed) {
            return Ok(Reply::Refused);
        }
        here.entries[l] = Entry::Absent;
        let Some(held) = here.session else {
            return Ok(Reply::Done);
        };
        if held != lease && self.have(Guard::SweepComparesSlot) {
            return Ok(Reply::Done);
        }
        here.session = None;
        if held != lease {
            return Err(MOVED);
        }
        let lives = first.lives[l] == Life::Live && first.marks[l].is_none();
        if lives && (state.losses == 0 || is_attached && here.is_fresh) {
            return Err(SWEPT);
        }
        state.was_swept = true;
        // Observers see the events.
        self.report_ended(state, lease);
        Ok(Reply::Done)
    }

    fn orphan(&self, state: &mut State, lease: u8) {
        let first = &state.partitions[0];
        let (life, mark) = (first.lives[lease as usize], first.marks[lease as usize]);
        if life == Life::Live && mark.is_none() || mark.is_some() && !self.have(Guard::OrphanRenewsMark) {
            return;
        }
        // Partitions that were closed for an older mark may be open again.
        let to = if life == Life::Lingering { Life::Lingering } else { Life::Ended };
        self.set_mark(state, lease, Some(mark.unwrap_or(new_mark(to, false))));
    }

    /// Sets a partition's `closing` to a number that occurs nowhere else.
    pub(super) fn renew_closing(&self, state: &mut State, partition: u8) {
        let p = partition as usize;
        let mut newest = state.partitions[p].closing;
        if self.have(Guard::ClosingsAreRandom) {
            newest = newest.max(state.saved[p].closing);
            let of_agents = state.agents.iter_mut().flatten().flat_map(|agent| agent.closings(partition));
            let of_late = state.late.iter_mut().filter_map(|late| late.closing(partition));
            newest = of_agents.chain(of_late).fold(newest, |newest, closing| newest.max(*closing));
        }
        state.partitions[p].closing = newest + 1;
    }

    /// Reports that a lease ended.
    pub(super) fn report_ended(&self, state: &mut State, lease: u8) {
        state.reported |= 1 << lease;
        state.reported_ended |= 1 << lease;
    }
}

fn new_mark(to: Life, is_of_call: bool) -> Mark {
    Mark { to, is_of_call, is_late: false, has_failed: false, is_contradicted: false }
}
