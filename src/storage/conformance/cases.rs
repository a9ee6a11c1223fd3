//! The list of cases, and the macro that generates a test for each.

use super::*;

/// Generates a test for each case of the [conformance suite](crate::storage::conformance). Takes the attributes of the
/// tests, in brackets, and the [`StorageFactory`](crate::storage::conformance::StorageFactory).
///
/// Each test is an `async fn` with the name of its case. The attributes must turn it into a test, such as
/// `#[tokio::test]`. Invoke the macro in a separate module for each factory.
#[macro_export]
macro_rules! storage_conformance_tests {
    ([$($attribute:tt)*] $factory:expr) => {
        $crate::storage_conformance_tests! { @each tests [[$($attribute)*] [$factory]] }
    };
    (@tests $given:tt $($module:ident { $($case:ident)* })*) => {
        $($($crate::storage_conformance_tests! { @test $given $case })*)*
    };
    (@test [[$($attribute:tt)*] [$factory:expr]] $case:ident) => {
        $($attribute)*
        async fn $case() {
            $crate::storage::conformance::check(stringify!($case), &$factory).await;
        }
    };
    (@table [] $($module:ident { $($case:ident)* })*) => {
        &[$($(Case { name: stringify!($case), run: |factory| Box::pin($module::$case(factory)) }),*),*]
    };
    (@each $then:ident $given:tt) => {
        $crate::storage_conformance_tests! { @$then $given
            sessions {
                calls_report_whether_they_changed_anything
                batch_answers_in_order_and_counts_duplicates_once
                empty_batch_does_nothing
                every_id_is_a_distinct_session
                large_batch_is_processed_completely
                session_count_follows_changes
                full_registry_refuses_only_new_sessions
            }
            bounds {
                empty_lists_are_answered_with_nothing
                duplicates_are_answered_each
                a_limit_of_zero_counts_as_one
                a_ttl_or_linger_beyond_the_longest_is_cut
                an_owner_is_any_text
            }
            model {
                random_calls_match_the_model
            }
            log {
                new_log_is_empty_and_keeps_its_registry_id
                changes_are_numbered_from_one_and_alternate
                batch_keeps_its_order
                changes_can_be_read_in_parts
                follower_waits_idly_and_wakes
                all_followers_read_the_same_changes
                follower_dropped_while_waiting_loses_nothing
                changes_before_the_start_are_reported_as_trimmed
                position_ahead_of_the_log_is_refused
                log_of_another_registry_is_refused
            }
            history {
                marks_are_known_for_all_held_changes
                trimmed_log_has_marks_from_its_start
                marks_never_change
                changes_have_the_mark_at_their_end
                follower_from_another_history_is_refused
                read_from_another_history_is_refused
            }
            buckets {
                buckets_and_partitions_never_change
                reading_all_buckets_returns_each_session_once
                read_ends_with_the_bucket_that_reaches_the_limit
                reads_are_exact_while_sessions_change
            }
            concurrency {
                concurrent_callers_agree_on_each_change
                change_and_log_entry_are_atomic
                change_is_visible_after_its_call_returns
                dropped_call_leaves_set_and_log_consistent
                session_limit_holds_for_concurrent_calls
            }
            leases {
                lease_lives_until_revoked
                gone_lease_takes_no_sessions
                create_moves_session_to_its_lease
                create_without_lease_keeps_the_sessions_lease
                recreated_session_is_not_under_its_old_lease
                destroy_under_a_lease_spares_other_sessions
                revoke_destroys_each_session_once
                batch_under_a_lease_counts_duplicates_once
                leases_over_the_limit_are_refused
                dropped_revoke_is_finished_by_expiry
            }
            placement {
                lookup_returns_the_lease_of_each_session
                create_returns_the_lease_of_each_session
                takeover_takes_only_from_the_named_lease
                ended_lease_protects_nothing
                one_of_concurrent_takeovers_succeeds
                answers_name_a_place_at_which_they_are_true
            }
            linger {
                lingering_lease_takes_no_sessions
                lingering_lease_protects_nothing
                lingering_lease_ends_after_its_linger
                second_revoke_only_brings_the_end_forward
                creates_racing_a_linger_stop_at_its_start
                moves_racing_the_end_of_a_linger_keep_their_sessions
            }
            listing {
                list_has_each_lease_with_its_session_count
                buckets_of_leases_have_all_their_sessions
                non_adjacent_buckets_can_be_read
            }
            expiry {
                lease_expires_soon_after_its_ttl
                lease_kept_alive_does_not_expire
                expired_lease_is_gone
                many_leases_expire_together
                session_moved_before_expiry_survives
                expiry_continues_after_a_dropped_call
            }
            writability {
                writable_storage_reports_it
                refused_changes_change_nothing
                leases_are_kept_and_end_without_room
            }
            races {
                revoke_racing_expiry_destroys_once
                creates_racing_expiry_leave_no_ghost
                creates_racing_a_revoke_leave_no_ghost
                moves_racing_a_revoke_keep_their_sessions
                destroys_racing_a_revoke_destroy_once
                late_destroy_under_an_ended_lease_spares_new_sessions
                restarting_gateways_leave_no_ghost
            }
        }
    };
}

/// Returns all cases of the suite.
#[must_use]
pub fn cases() -> &'static [Case] {
    const CASES: &[Case] = crate::storage_conformance_tests! { @each table [] };
    CASES
}
