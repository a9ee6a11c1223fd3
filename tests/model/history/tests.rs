//! Tests that the protocol keeps its promises, and that each guard is needed.

use super::{CURSOR, EXACT, Histories, NOTICED, ONE_MOVE, PLACES, SNAPSHOT};
use crate::{
    check::{Promise, breaks, holds, sized},
    guard::{Guard, Guards},
};

const ONE: Histories =
    Histories { guards: Guards::ALL, partitions: 1, writes: 3, saves: 0, losses: 1, leaves: 1, places: false };
const TWO: Histories = Histories { partitions: 2, ..ONE };
const PLACED: Histories = Histories { places: true, leaves: 0, ..ONE };

fn mutant(guard: Guard, model: Histories, promise: Promise) {
    breaks(&Histories { guards: Guards::without(guard), ..model }, promise);
}

#[test]
fn observers_of_one_partition_keep_to_one_history() {
    let twice = Histories { losses: 2, saves: 1, ..ONE };
    sized(vec![ONE], vec![twice, Histories { writes: 4, losses: 2, ..ONE }]).iter().for_each(holds);
}

#[test]
fn observers_of_two_partitions_keep_to_one_history() {
    sized(vec![Histories { writes: 2, ..TWO }], vec![Histories { saves: 1, ..TWO }]).iter().for_each(holds);
}

#[test]
fn places_grow_through_losses() {
    sized(vec![PLACED], vec![Histories { saves: 1, losses: 2, ..PLACED }]).iter().for_each(holds);
}

#[test]
fn tail_that_ignores_marks_mixes_histories() {
    mutant(Guard::PredecessorMark, ONE, EXACT);
}

#[test]
fn tail_that_only_waits_misses_a_loss() {
    mutant(Guard::QuietCheck, ONE, NOTICED);
}

#[test]
fn check_of_positions_alone_misses_a_loss() {
    mutant(Guard::CheckComparesMarks, ONE, NOTICED);
}

#[test]
fn bucket_read_before_the_observers_place_corrupts_a_snapshot() {
    mutant(Guard::KnownMark, ONE, SNAPSHOT);
}

#[test]
fn bucket_read_in_a_lost_history_corrupts_a_snapshot() {
    mutant(Guard::RunMark, ONE, SNAPSHOT);
}

#[test]
fn cursor_without_marks_is_honoured_in_another_history() {
    mutant(Guard::CursorMarks, ONE, CURSOR);
}

#[test]
fn cursor_is_honoured_by_a_tail_that_follows_a_lost_history() {
    mutant(Guard::KnownMarkOfCursor, ONE, CURSOR);
}

#[test]
fn cursor_ahead_of_the_tail_is_honoured_in_another_history() {
    mutant(Guard::CursorAfterTail, ONE, CURSOR);
}

#[test]
fn cursor_that_was_checked_before_a_reset_is_honoured_after_it() {
    mutant(Guard::EpochAroundCheck, ONE, CURSOR);
}

#[test]
fn two_replicas_that_notice_one_loss_move_the_registry_twice() {
    mutant(Guard::CompareAndSetMove, ONE, ONE_MOVE);
}

#[test]
fn registry_that_keeps_its_id_reports_the_same_places_twice() {
    mutant(Guard::RegistryIdMoves, PLACED, PLACES);
}

#[test]
fn log_that_ends_before_what_was_read_reports_older_places() {
    mutant(Guard::Behind, PLACED, PLACES);
}

#[test]
fn log_that_ends_before_an_answer_reports_older_places() {
    mutant(Guard::BehindCountsAnswers, PLACED, PLACES);
}
