//! A checked model of the protocol between replicas and Redis.
//!
//! Replicas of sessiond share a registry by running scripts in Redis (`src/storage/redis/scripts`). This model is that
//! protocol as state machines. [stateright](https://www.stateright.rs) visits every state that they can reach and
//! asserts the promises of the contract in each. It is documentation, too: each script is here in a few lines, with the
//! reason for each of its conditions.
//!
//! | model | what it is about | scripts |
//! |---|---|---|
//! | [`steps`] | time limits of steps, lanes, batches | `apply`, `extent` |
//! | [`history`] | marks of the log, tails, snapshots, cursors, ids, BEHIND | `extent`, `marks`, `read`, `registry_move` |
//! | [`leases`] | the end of a lease in every partition, linger, takeover, losses | `lease_*` |
//! | [`lease_clock`] | the clock that leases go by | `lease_look`, `lease_keep`, `lease_grant` |
//! | [`quota`] | the limit of sessions over several partitions | `quota_*` |
//! | [`registry`] | how a registry is made, joined and replaced | `registry_*`, `partition_*` |
//!
//! Each condition that the protocol relies on is a [`Guard`](guard::Guard). For each guard, one test leaves it out and
//! asserts that the checker finds a broken promise. To read how, run that test with `--nocapture`.
//!
//! # How it is run
//!
//! `cargo test --test model` visits about a million states. `SESSIOND_MODEL=long cargo test --release --test model`
//! visits some thirty million: more calls, leases, crashes and losses at once. It takes several minutes and up to 4 GB
//! of memory.
//!
//! # What can happen
//!
//! - A replica may crash between any two commands. Its last command may be executed much later, or never.
//! - A connection may break. A command that was sent over it may still be executed.
//! - Redis may stand still, so that commands wait.
//! - Redis may lose the newest changes of one partition and go on from an older state, under open connections or not.
//! - Redis' wall clock may be set in either direction.
//!
//! # What is simplified
//!
//! - There are two replicas, two partitions, one or two leases, and a session or two. Times are small numbers.
//! - A random number is one that no other number in the state equals.
//! - Replicas' own clocks run at the right speed.
//! - An entry of the log holds one change, and the log is never trimmed.
//! - One end of a lease is one sweep of each partition.
//!
//! # What is not excluded
//!
//! - **A clock that is set back while Redis stands still.** Redis stores a partition's clock once a second. While it
//!   stands still it stores nothing. So a wall clock that is set back meanwhile takes the logical clock back by more
//!   than a second, and a step is good for longer than its caller waits
//!   (`steps::tests::a_clock_set_back_while_redis_stands_still_is_not_excluded`):
//!   1. Redis stands still. A create is sent.
//!   2. Two seconds pass. The create's caller is told that it failed.
//!   3. A destroy of the same session is sent.
//!   4. The wall clock is set back. Redis goes on.
//!   5. Redis executes the destroy, whose caller is answered.
//!   6. Redis executes the create: by the partition's clock there is time left.
//! - **A clock that is set back by less than a second.** It still reads more than when it was stored, so nobody notices.
//!   A step is good for up to that much longer (`…::a_clock_set_back_by_less_than_a_second_is_not_excluded`).
//! - **A small step forward of Redis' clock, with several replicas.** A replica notices that the clock was set when the
//!   time since the newest look is longer than the time since its own. A smaller step ends a lease early, by less than
//!   the time between two looks of a replica (`lease_clock::tests::a_small_step_forward_is_not_excluded`): one replica
//!   looks, the clock is set forward by a quarter of a second, and the other replica looks and counts that, too.
//! - **Two servers that both take changes for the same partition.** The model has one Redis. `min-replicas-to-write`
//!   bounds how long two servers can do so.
//! - **A replica that dies.** Its callers learn that at once, from their connections, and its last step may still be
//!   executed until its time is over.
//! - **A sweep during a loss.** A sweep that is under way while Redis loses the end of its lease may destroy sessions
//!   of that lease, which lives again.
//! - **Quotas and losses.** When Redis loses a quota, the partitions may hold more than the limit together.

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
