//! Tests that the protocol keeps its promises, and that each guard is needed.

use super::{ACKNOWLEDGED, BATCH_ORDER, LINEARIZABLE, Shape, Steps};
use crate::{
    check::{Promise, breaks, holds, sized},
    guard::{Guard, Guards},
};

const ONE: Steps = Steps {
    guards: Guards::ALL,
    shape: Shape::One,
    calls: 2,
    breaks: 1,
    sets: 1,
    pauses: 0,
    set: 4,
    set_forward: false,
};
const TWO_STEPS: Steps = Steps { shape: Shape::TwoSteps, ..ONE };
const TWO_PARTITIONS: Steps = Steps { shape: Shape::TwoPartitions, ..ONE };

/// No connection breaks, so only the timeout makes a call fail.
const UNBROKEN: Steps = Steps { breaks: 0, ..ONE };

fn mutant(guard: Guard, model: Steps, promise: Promise) {
    breaks(&Steps { guards: Guards::without(guard), ..model }, promise);
}

#[test]
fn calls_about_one_session_keep_the_promises() {
    let short = vec![ONE, Steps { sets: 2, set_forward: true, ..ONE }];
    sized(short, vec![Steps { calls: 3, sets: 2, set_forward: true, ..ONE }]).iter().for_each(holds);
}

#[test]
fn batches_of_two_steps_keep_the_promises() {
    sized(vec![TWO_STEPS], vec![Steps { sets: 2, calls: 3, ..TWO_STEPS }]).iter().for_each(holds);
}

#[test]
fn batches_over_two_partitions_keep_the_promises() {
    let short = vec![Steps { breaks: 0, ..TWO_PARTITIONS }];
    sized(short, vec![Steps { sets: 2, ..TWO_PARTITIONS }]).iter().for_each(holds);
}

#[test]
fn step_without_until_is_executed_after_its_failure() {
    mutant(Guard::Until, UNBROKEN, ACKNOWLEDGED);
}

#[test]
fn failure_that_is_reported_immediately_is_contradicted() {
    mutant(Guard::FailureWaits, Steps { sets: 0, ..ONE }, ACKNOWLEDGED);
}

#[test]
fn lane_that_does_not_wait_reorders_a_batch() {
    mutant(Guard::LaneWaits, TWO_STEPS, BATCH_ORDER);
}

#[test]
fn step_that_is_sent_twice_gives_a_wrong_answer() {
    mutant(Guard::NoHiddenRetry, Steps { sets: 0, ..ONE }, LINEARIZABLE);
}

#[test]
fn batch_that_fails_before_all_its_parts_are_over_is_contradicted() {
    mutant(Guard::BatchWaits, Steps { breaks: 0, sets: 0, ..TWO_PARTITIONS }, ACKNOWLEDGED);
}

#[test]
fn clock_that_goes_back_lets_a_step_run_late() {
    mutant(Guard::ClockNeverGoesBack, UNBROKEN, ACKNOWLEDGED);
}

#[test]
fn clock_that_stops_when_it_is_set_back_lets_a_step_run_late() {
    mutant(Guard::SetBackCounts, UNBROKEN, ACKNOWLEDGED);
}

#[test]
fn clock_that_is_not_stored_lets_a_step_run_late() {
    mutant(Guard::ClockIsStored, UNBROKEN, ACKNOWLEDGED);
}

#[test]
fn time_that_is_reported_but_not_stored_lets_a_step_run_late() {
    mutant(Guard::ReportedTimeIsStored, UNBROKEN, ACKNOWLEDGED);
}

#[test]
fn estimate_that_counts_from_sending_lets_a_step_run_late() {
    mutant(Guard::EstimateIsLower, Steps { calls: 3, sets: 0, ..UNBROKEN }, ACKNOWLEDGED);
}

#[test]
fn clock_set_back_by_less_than_a_second_is_not_excluded() {
    breaks(&Steps { set: 1, ..UNBROKEN }, ACKNOWLEDGED);
}

#[test]
fn clock_set_back_while_redis_is_paused_is_not_excluded() {
    breaks(&Steps { pauses: 1, ..UNBROKEN }, ACKNOWLEDGED);
}
