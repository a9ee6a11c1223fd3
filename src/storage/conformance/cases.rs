//! The list of the cases, and the macro that makes a test of each.

use super::*;

/// Makes a test of each case of the [conformance suite](crate::storage::conformance): give the attributes that such a test
/// has, in brackets, and the [`StorageFactory`](crate::storage::conformance::StorageFactory).
///
/// Each test is an `async fn` of the case's name, so the attributes must make a test of that. Invoke it in a module of its
/// own for each factory.
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
                calls_answer_whether_they_changed_something
                a_batch_answers_in_order_and_counts_duplicates_once
                an_empty_batch_does_nothing
                every_id_is_a_session_of_its_own
                a_large_batch_is_whole
                the_session_count_follows
                a_full_registry_refuses_new_sessions_only
            }
            bounds {
                empty_lists_are_answered_with_nothing
                duplicates_are_answered_each
                a_limit_of_zero_counts_as_one
                a_ttl_or_linger_beyond_the_longest_is_cut
                an_owner_is_any_text
            }
            model {
                random_calls_answer_as_a_model_does
            }
            log {
                a_new_log_is_empty_and_keeps_its_identity
                changes_are_numbered_from_one_and_alternate
                a_batch_keeps_its_order
                changes_are_read_in_parts
                a_follower_waits_idly_and_wakes
                many_followers_read_the_same
                a_follower_dropped_while_it_waits_loses_nothing
                what_is_no_longer_held_is_trimmed
                a_position_ahead_of_the_log_is_refused
                a_log_of_another_registry_is_refused
            }
            history {
                marks_are_known_where_changes_are_held
                marks_of_a_trimmed_log_are_known_from_its_start_on
                a_mark_never_changes
                changes_come_with_the_mark_at_their_end
                a_follower_from_another_history_is_refused
                a_read_for_another_history_is_refused
            }
            buckets {
                buckets_and_partitions_never_change
                reading_all_buckets_gives_each_session_once
                a_read_ends_with_the_bucket_that_reaches_its_limit
                reads_are_exact_while_sessions_change
            }
            concurrency {
                callers_of_the_same_sessions_agree
                a_change_and_its_log_entry_are_one_step
                a_change_is_seen_once_its_call_returns
                a_dropped_call_leaves_set_and_log_agreed
                a_limit_holds_for_calls_at_once
            }
            leases {
                a_lease_lives_until_it_is_revoked
                a_lease_that_is_gone_takes_no_sessions
                a_session_moves_to_the_lease_it_is_created_under
                a_session_keeps_its_lease_when_created_without
                a_session_created_anew_is_under_no_old_lease
                a_lease_destroys_only_what_is_under_it
                a_revoke_destroys_each_session_once
                a_batch_under_a_lease_counts_duplicates_once
                too_many_leases_are_refused
                a_dropped_revoke_is_finished
            }
            placement {
                a_lookup_tells_the_lease_of_each_session
                a_create_tells_the_lease_of_each_session
                a_takeover_takes_only_from_the_lease_it_names
                an_ended_lease_protects_nothing
                of_takeovers_at_once_one_succeeds
                answers_name_the_place_where_they_are_true
            }
            linger {
                a_lingering_lease_takes_no_sessions
                a_lingering_lease_protects_nothing
                a_lingering_lease_ends_after_its_linger
                a_second_revoke_only_brings_the_end_forward
                no_session_comes_under_a_lease_once_it_lingers
                moves_that_meet_the_end_of_a_linger_keep_the_session
            }
            listing {
                a_list_tells_each_lease_with_its_sessions
                the_buckets_of_leases_have_all_their_sessions
                buckets_are_read_wherever_they_lie
            }
            expiry {
                a_lease_expires_after_its_ttl_and_soon
                a_lease_kept_alive_does_not_expire
                an_expired_lease_is_gone
                many_leases_expire_side_by_side
                a_session_that_moved_in_time_survives
                expiry_goes_on_after_it_was_dropped
            }
            writability {
                a_storage_that_accepts_changes_says_so
                refused_changes_leave_everything_as_it_was
                leases_go_on_while_there_is_no_room
            }
            races {
                a_revoke_that_meets_expiry_destroys_once
                creates_that_meet_the_end_of_a_lease_leave_no_ghost
                creates_that_meet_a_revoke_leave_no_ghost
                moves_that_meet_a_revoke_keep_the_session
                destroys_that_meet_a_revoke_destroy_once
                a_destroy_under_an_ended_lease_spares_later_ones
                gateways_that_come_and_go_leave_no_ghost
            }
        }
    };
}

/// Every case of the suite.
#[must_use]
pub fn cases() -> &'static [Case] {
    const CASES: &[Case] = crate::storage_conformance_tests! { @each table [] };
    CASES
}
