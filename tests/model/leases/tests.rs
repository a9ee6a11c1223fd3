//! Tests that the protocol keeps its promises, and that each guard is needed.

use super::{ACKNOWLEDGED, ALL_PARTITIONS, GHOST, KEPT, Leases, MOVED, PROTECTED, REPORTED, SWEPT};
use crate::{
    check::{Promise, breaks, holds, sized},
    guard::{Guard, Guards},
};

/// A lease expires.
const EXPIRY: Leases = Leases {
    guards: Guards::ALL,
    leases: 1,
    calls: 2,
    takes: true,
    keeps: true,
    revokes: false,
    lingers: false,
    crashes: 1,
    expiries: 1,
    closes: 0,
    losses: 0,
    lossy: ALL_PARTITIONS,
    saves: 0,
};

/// A lease is revoked.
const REVOKE: Leases = Leases { revokes: true, expiries: 0, ..EXPIRY };

/// Redis loses what it has not saved.
const LOSS: Leases = Leases { losses: 1, saves: 1, calls: 1, takes: false, keeps: false, crashes: 0, ..EXPIRY };

/// Redis loses everything in a partition since the lease was granted, and a command arrives late.
const LATE: Leases = Leases { saves: 0, crashes: 1, ..LOSS };

fn mutant(guard: Guard, model: Leases, promise: Promise) {
    breaks(&Leases { guards: Guards::without(guard), ..model }, promise);
}

#[test]
fn expiring_lease_keeps_the_promises() {
    let two = Leases { leases: 2, expiries: 2, keeps: false, crashes: 0, ..EXPIRY };
    sized(vec![EXPIRY], vec![EXPIRY, two]).iter().for_each(holds);
}

#[test]
fn revoked_lease_keeps_the_promises() {
    let long = Leases { calls: 3, expiries: 1, lingers: true, ..REVOKE };
    sized(vec![REVOKE], vec![long]).iter().for_each(holds);
}

#[test]
fn lingering_lease_keeps_the_promises() {
    holds(&Leases { lingers: true, ..EXPIRY });
}

#[test]
fn leases_leave_no_ghosts_after_a_loss() {
    sized(vec![LOSS], vec![Leases { crashes: 1, closes: 1, ..LOSS }]).iter().for_each(holds);
}

#[test]
fn leases_leave_no_ghosts_when_a_command_arrives_after_a_loss() {
    holds(&LATE);
}

#[test]
fn lease_is_attached_after_it_was_closed() {
    mutant(Guard::Closings, EXPIRY, REPORTED);
}

#[test]
fn lease_that_is_not_closed_everywhere_accepts_sessions_after_its_end() {
    mutant(Guard::CloseEverywhere, EXPIRY, REPORTED);
}

#[test]
fn live_lease_that_is_closed_loses_a_session_to_a_takeover() {
    mutant(Guard::ClosedAsks, EXPIRY, PROTECTED);
}

#[test]
fn takeover_takes_sessions_of_a_live_lease() {
    mutant(Guard::OnlyFrom, EXPIRY, PROTECTED);
}

#[test]
fn marked_lease_that_is_kept_alive_still_ends() {
    mutant(Guard::MarkStopsKeeping, EXPIRY, KEPT);
}

#[test]
fn marked_lease_that_is_attached_accepts_sessions_after_its_end() {
    mutant(Guard::MarkStopsAttaching, EXPIRY, REPORTED);
}

#[test]
fn end_is_recorded_for_a_mark_that_no_partition_was_closed_for() {
    mutant(Guard::MarkNumber, Leases { expiries: 1, ..REVOKE }, REPORTED);
}

#[test]
fn failed_revocation_ends_the_lease_later() {
    mutant(Guard::DecideInTime, REVOKE, ACKNOWLEDGED);
}

#[test]
fn revocation_whose_failure_is_reported_immediately_ends_the_lease_later() {
    mutant(Guard::FailureWaits, REVOKE, ACKNOWLEDGED);
}

#[test]
fn sweep_destroys_sessions_of_other_leases() {
    mutant(Guard::SweepComparesSlot, EXPIRY, MOVED);
}

#[test]
fn sweep_destroys_sessions_of_a_lease_that_a_loss_brought_back() {
    mutant(Guard::SweepsClosed, LOSS, SWEPT);
}

#[test]
fn lease_is_forgotten_before_its_last_sweep() {
    mutant(Guard::DoneNamesMark, LOSS, GHOST);
}

#[test]
fn lease_that_a_loss_brought_back_never_ends() {
    mutant(Guard::Reconcile, LOSS, GHOST);
}

#[test]
fn lease_that_the_first_partition_lost_never_ends() {
    mutant(Guard::ReconcileAll, LOSS, GHOST);
}

#[test]
fn end_is_recorded_although_a_close_was_lost() {
    mutant(Guard::OrphanRenewsMark, LOSS, GHOST);
}

#[test]
fn lease_is_attached_after_its_partition_was_reconciled() {
    mutant(Guard::ReconcileCloses, LOSS, GHOST);
}

#[test]
fn count_of_closings_repeats_after_a_loss() {
    mutant(Guard::ClosingsAreRandom, Leases { closes: 1, lossy: 0b10, ..LATE }, GHOST);
}
