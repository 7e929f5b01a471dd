//! Bugs that etcd and its kin have had, each as one named scenario (reliability.md 2).
//!
//! A test's name begins with the bug's number and stands beside the code that it is about; here are those that need real
//! processes.
//!
//! | bug | where its tests are |
//! | --- | --- |
//! | B1 | `b01_applied_index_is_committed_with_its_data` (checkpoint/store/crash_tests.rs) |
//! | B1 | `b01_killing_any_one_member_loses_nothing` (it/cluster_faults.rs) |
//! | B2 | `b02_a_lone_member_answers_no_write_before_its_sync_returned` (it/contract.rs) |
//! | B2 | `b02_b13_what_was_acknowledged_survives_a_power_cut` (it/contract.rs) |
//! | B3 | `b03_defragment_changes_nothing_and_may_be_killed` (durability.rs) |
//! | B3 | No file is swapped while a member runs; the offline `utl defrag` comes later |
//! | B4 | `b04_the_revision_never_goes_back` (mvcc/tests/restart.rs) |
//! | B4 | `b04_marks_of_compactions_count_as_revisions` (mvcc/tests/restart.rs) |
//! | B5 | not yet: no authentication, entries of it are refused |
//! | B6 | `b06_leases_and_their_keys_are_the_same_after_an_image_and_after_a_restart` (run/historic_tests.rs) |
//! | B7 | not yet: no authentication, that leases come with an image is B6 |
//! | B8 | `b08_ranges_below_a_compaction_are_refused_on_every_member_alike` (apply/txn/tests.rs) |
//! | B9 | `b09_a_crash_between_any_two_steps_of_an_install_leaves_old_or_new` (snapshot/install/tests.rs) |
//! | B9 | `b09_every_operation_of_one_life_may_be_the_last` (raft/wal/tests/crash.rs) |
//! | B10 | `b10_snapshots_may_cross` (snapshot/install/tests.rs) |
//! | B10 | `b10_snapshots_close_together_end_at_the_newest_and_old_reports_are_harmless` (raft/testing/scenarios.rs) |
//! | B11 | `b11_a_member_that_defragments_may_be_sent_snapshots` (durability.rs) |
//! | B12 | `b12_raft_database_and_image_name_the_same_members` (run/historic_tests.rs) |
//! | B12 | `b12_members_agree_on_who_they_are_whatever_happened` (it/historic_members.rs) |
//! | B12 | Restore comes later |
//! | B13 | `b13_the_first_entry_of_a_new_file_outlives_the_power` (raft/wal/tests/crash.rs) |
//! | B13 | `b02_b13_what_was_acknowledged_survives_a_power_cut` (it/contract.rs) |
//! | B14 | `b14_nothing_acknowledged_is_lost_and_nothing_else_appears` (raft/wal/tests/crash.rs) |
//! | B15 | `b15_length_without_body_is_torn` (raft/wal/tests/damage.rs) |
//! | B16 | `b16_all_members_lose_their_power_at_once_and_no_acknowledged_write` (durability.rs) |
//! | B17 | `b17_a_full_disk_ends_the_process_and_space_brings_it_back` (it/contract.rs) |
//! | B17 | `b17_first_error_stops_the_log_for_good` (raft/wal/tests/round_trip.rs) |
//! | B18 | `b18_a_missing_record_is_damage` (mvcc/tests/restart.rs) |
//! | B19 | `b19_damaged_pages_are_noticed_and_never_served` (durability.rs) |
//! | B19 | `b19_a_damaged_member_is_removed_and_comes_back_as_a_new_one` (it/historic_members.rs) |
//! | B20 | `b20_error_in_any_step_of_a_cut_or_release_stops_the_log_and_loses_nothing` (raft/wal/tests/round_trip.rs) |
//! | B21 | `b21_misdelivered_and_forged_messages_never_reach_raft` (peer/cluster_tests.rs) |
//! | B22 | `b22_a_retry_uses_a_new_context_and_answers_to_either_count` (server/read/tests.rs) |
//! | B22 | `b22_a_paused_leader_never_serves_what_is_no_longer_true` (it/cluster_faults.rs) |
//! | B23 | `b23_a_change_of_leader_wins_over_an_index_that_came_with_it` (server/read/tests.rs) |
//! | B24 | `b24_one_question_serves_all_who_wait_and_none_who_come_later` (server/read/tests.rs) |
//! | B24 | `b24_a_fresh_leader_serves_no_read_before_it_committed_in_its_term` (raft/testing/scenarios.rs) |
//! | B25 | `b25_a_leader_without_followers_answers_no_linearizable_read` (it/contract.rs) |
//! | B26 | `b26_a_restarted_member_says_nothing_old` (linearizability.rs) |
//! | B27 | `b27_a_write_that_may_have_been_applied_is_sent_once` (client/tests.rs) |
//! | B27 | `b27_no_append_is_doubled_when_members_are_killed` (linearizability.rs) |
//! | B28 | `b28_three_members_keep_every_promise` (raft/testing/chaos.rs) |
//! | B29 | `b29_a_member_that_crashed_two_hundred_times_still_writes` (run/powercut_tests.rs) |
//! | B29 | `b29_a_put_with_an_unknown_lease_is_answered_and_holds_nobody_up` (linearizability.rs) |
//! | B30 | `b30_a_progress_notice_never_overtakes_an_event` (it/historic_watch.rs) |
//! | B31 | `b31_b35_a_snapshot_takes_no_watcher_back_and_no_future_one_forward` (it/historic_watch.rs) |
//! | B32 | `b32_seven_hundred_slow_watchers_lose_nothing_and_cost_little` (it/historic_watch.rs) |
//! | B33 | `b33_b34_a_deletion_at_the_compaction_is_seen` (it/historic_watch.rs) |
//! | B34 | `b33_b34_a_deletion_at_the_compaction_is_seen` (it/historic_watch.rs) |
//! | B35 | `b31_b35_a_snapshot_takes_no_watcher_back_and_no_future_one_forward` (it/historic_watch.rs) |
//! | B36 | `b36_a_transaction_comes_once_and_whole` (it/historic_watch.rs) |
//! | B37 | `b37_no_start_revision_is_too_small_or_too_great` (it/historic_watch.rs) |
//! | B38 | `b38_large_reads_on_the_same_connection_hold_up_no_event` (it/historic_watch.rs) |
//! | B38 | `b38_large_reads_over_tls_hold_up_no_event` (it/historic_watch.rs) |
//! | B39 | `b39_watchers_that_begin_amid_writes_miss_nothing` (it/historic_watch.rs) |
//! | B40 | `b40_compacting_everything_keeps_live_keys` (mvcc/tests/restart.rs) |
//! | B41 | `b41_a_leader_that_slept_revokes_nothing_that_lives_at_the_next` (it/lease.rs); its disk is not stalled yet |
//! | B42 | `b42_no_renewal_succeeds_behind_an_acknowledged_revoke` (it/historic_lease.rs) |
//! | B43 | `b43_over_ten_changes_of_the_leader_a_lease_lives_little_longer_than_it_was_granted` (duties/expiry) |
//! | B44 | `b44_a_session_that_ended_in_the_queue_gets_no_lock` (it/lock.rs) |
//! | B45 | `b45_leases_that_came_and_went_leave_nothing_behind` (it/historic_lease.rs) |
//! | B46 | `b46_a_member_is_added_while_another_is_down` (raft/testing/conf_changes.rs) |
//! | B46 | `b46_a_member_is_added_beside_a_dead_one_only_while_a_quorum_is_left` (it/historic_members.rs) |
//! | B47 | `b47_update_keeps_the_learner_flag_and_promotion_keeps_the_addresses` (cluster/membership.rs) |
//! | B48 | `b48_a_removed_leader_tells_its_peers_and_a_new_one_takes_over` (raft/testing/conf_changes.rs) |
//! | B48 | `b48_the_rest_has_a_leader_at_once_when_the_leader_is_removed` (it/historic_members.rs) |
//! | B49 | `b49_one_member_of_five_goes_on_alone_with_all_its_data` (it/historic_members.rs) |
//! | B49 | `b49_a_learner_goes_on_alone_with_a_vote` (it/historic_members.rs) |
//! | B50 | `b50_nothing_is_left_however_it_ends` (it/supervisor.rs) |
//!
//! The simulator and the torture runs meet most of these by chance as well; a scenario here is there every time.

mod durability;
mod linearizability;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;

const BUGS: usize = 50;

/// The rows of the table above: what stands behind each number.
fn rows() -> BTreeMap<usize, Vec<&'static str>> {
    let mut rows: BTreeMap<usize, Vec<&'static str>> = BTreeMap::new();
    for row in include_str!("mod.rs").lines().filter_map(|line| line.strip_prefix("//! | B")) {
        let (number, text) = row.split_once(" | ").expect("a row has two columns");
        rows.entry(number.parse().expect("a number")).or_default().push(text);
    }
    rows
}

/// Names in backquotes.
fn named(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.split('`').skip(1).step_by(2).filter(|name| name.starts_with('b'))
}

/// All functions below `dir` that are called after a bug, with the lines of their doc comments.
fn tests_below(dir: &Path, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(dir).expect("a readable directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            tests_below(&path, found);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut doc = String::new();
        for line in text.lines().map(str::trim) {
            let function = line.trim_start_matches("async ").strip_prefix("fn ");
            match function.and_then(|rest| rest.split(['(', '<']).next()) {
                Some(name) if bug_of(name).is_some() => drop(found.insert(name.to_owned(), std::mem::take(&mut doc))),
                None if line.starts_with("///") => doc.push_str(line),
                None if line.starts_with("#[") => {}
                _ => doc.clear(),
            }
        }
    }
}

/// `b07_…`: 7.
fn bug_of(name: &str) -> Option<usize> {
    let (number, _) = name.strip_prefix('b')?.split_once('_')?;
    let digits = number.len() == 2 && number.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| number.parse().ok()).flatten()
}

#[test]
fn the_table_names_every_bug_and_its_tests() {
    let rows = rows();
    assert!(rows.keys().copied().eq(1..=BUGS), "{:?}", rows.keys());
    let mut tests = BTreeMap::new();
    for part in ["src", "tests"] {
        tests_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join(part), &mut tests);
    }
    for (number, texts) in &rows {
        let names: Vec<&str> = texts.iter().copied().flat_map(named).collect();
        assert_eq!(names.is_empty(), texts[0].starts_with("not yet: "), "B{number}: tests, or why there are none");
        for name in names {
            let doc = tests.get(name).unwrap_or_else(|| panic!("B{number}: there is no test {name}"));
            assert!(name.contains(&format!("b{number:02}_")), "B{number}: {name}");
            assert!(doc.contains(&format!("B{number},")), "{name} does not say where B{number} comes from");
        }
    }
    let listed: BTreeSet<&str> = rows.values().flatten().copied().flat_map(named).collect();
    let unlisted: Vec<&String> = tests.keys().filter(|name| !listed.contains(name.as_str())).collect();
    assert!(unlisted.is_empty(), "tests that the table in tests/it/historic/mod.rs does not name: {unlisted:?}");
}
