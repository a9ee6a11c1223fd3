//! A model of the protocol between replicas and Redis, checked exhaustively.
//!
//! Replicas of sessiond share a registry by running scripts in Redis (`src/storage/redis/scripts`). The model expresses
//! this protocol as state machines. [stateright](https://www.stateright.rs) visits every reachable state and checks the
//! contract's promises in each. The model is also documentation: it states each script in a few lines, with the reason
//! for each of its conditions.
//!
//! | model | subject | scripts |
//! |---|---|---|
//! | [`steps`] | time limits of steps, lanes, batches | `apply`, `extent` |
//! | [`history`] | marks of the log, tails, snapshots, cursors, ids, BEHIND | `extent`, `marks`, `read`, `registry_move` |
//! | [`leases`] | the end of a lease in every partition, linger, takeover, losses | `lease_*` |
//! | [`lease_clock`] | the clock that leases run on | `lease_look`, `lease_keep`, `lease_grant` |
//! | [`quota`] | the limit of sessions over several partitions | `quota_*` |
//! | [`registry`] | how a registry is created, joined and replaced | `registry_*`, `partition_*` |
//!
//! Each condition that the protocol relies on is a [`Guard`](guard::Guard). For each guard, a test leaves it out and
//! asserts that the checker finds a broken promise. To see how it breaks, run that test with `--nocapture`.
//!
//! # Running it
//!
//! `cargo test --test model` visits about a million states. `SESSIOND_MODEL=long cargo test --release --test model`
//! visits some thirty million, with more calls, leases, crashes and losses at a time. That takes several minutes and up
//! to 4 GB of memory.
//!
//! # What can happen
//!
//! - A replica may crash between any two commands. Its last command may be executed much later, or never.
//! - A connection may break. A command that was sent over it may still be executed.
//! - Redis may pause, so that commands wait.
//! - Redis may lose the newest changes of one partition and continue from an older state. Open connections may survive
//!   this.
//! - Redis' wall clock may be set in either direction.
//!
//! # Simplifications
//!
//! - There are two replicas, two partitions, one or two leases, and one or two sessions. Times are small numbers.
//! - A random number differs from every other number in the state.
//! - The replicas' own clocks run at the right speed.
//! - An entry of the log holds one change, and the log is never trimmed.
//! - When a lease ends, each partition is swept in one step.
//!
//! # What is not excluded
//!
//! - **A clock that is set back while Redis is paused.** Redis stores a partition's clock once a second, but not while
//!   it is paused. If the wall clock is set back meanwhile, the logical clock goes back by more than a second, and a
//!   step stays valid for longer than its caller waits
//!   (`steps::tests::clock_set_back_while_redis_is_paused_is_not_excluded`):
//!   1. Redis pauses. A create is sent.
//!   2. Two seconds pass. The create fails, and its caller learns that.
//!   3. A destroy of the same session is sent.
//!   4. The wall clock is set back. Redis resumes.
//!   5. Redis executes the destroy, and its caller gets the answer.
//!   6. Redis executes the create: by the partition's clock it is still in time.
//! - **A clock that is set back by less than a second.** It still reads more than when it was stored, so nothing
//!   detects it. A step stays valid for up to that much longer
//!   (`steps::tests::clock_set_back_by_less_than_a_second_is_not_excluded`).
//! - **A small step forward of Redis' clock, with several replicas.** A replica detects that the clock was set if it
//!   shows more time since the newest look than has passed since the replica's own look. A smaller step ends a lease
//!   early, by less than the time between two looks of a replica
//!   (`lease_clock::tests::small_step_forward_is_not_excluded`): one replica looks, the clock is set forward by a
//!   quarter of a second, and the other replica looks and counts that quarter, too.
//! - **Two servers that both accept changes for the same partition.** The model has one Redis. `min-replicas-to-write`
//!   bounds how long two servers can do so.
//! - **A replica that dies.** Its callers learn of it immediately, because their connections break. Its last step may
//!   still be executed until that step's time is over.
//! - **A sweep during a loss.** If Redis loses the end of a lease during that lease's sweep, the lease lives again, but
//!   the sweep may still destroy some of its sessions.
//! - **Quotas and losses.** If Redis loses a quota, the partitions may together hold more than the limit.

// clippy.toml allows these in tests, but not in helpers of tests.
#![allow(clippy::print_stderr, clippy::unwrap_used, clippy::expect_used)]

mod check;
mod clock;
mod guard;
mod history;
mod lease_clock;
mod leases;
mod quota;
mod registry;
mod steps;
