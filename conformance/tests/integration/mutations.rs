//! Every defect is found by the case that is there for it, and every case finds one.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use tesk_conformance::storage::{CASES, Case, NOTHING_IS_LEFT, Outcome, Subject};
use tesk_core::storage::{Capabilities, Storage, StorageUrl};

use super::defects::{Defect, Defect as D, Defective};
use super::memory::{Memory, PASSWORD, echo};

/// Each defect, and the cases that must find it.
const FOUND: &[(Defect, &[&str])] = &[
    (D::ClaimIsLost, &["it_claims_what_it_must"]),
    (
        D::UnclaimedWorks,
        &[
            "listing_is_refused_if_not_claimed",
            "writing_is_refused_if_not_claimed",
            "parts_are_refused_if_not_claimed",
            "making_directories_is_refused_if_not_claimed",
            "renaming_is_refused_if_not_claimed",
            "removing_is_refused_if_not_claimed",
        ],
    ),
    (
        D::UnclaimedIsCalledOther,
        &[
            "listing_is_refused_if_not_claimed",
            "writing_is_refused_if_not_claimed",
        ],
    ),
    (
        D::UnclaimedRangeIsIgnored,
        &["a_range_is_exactly_its_bytes_or_refused_if_not_claimed"],
    ),
    (
        D::MissingIsAnError,
        &[
            "nothing_is_none_and_no_error",
            "a_file_below_nothing_is_none",
        ],
    ),
    (D::RefusalIsNothing, &["wrong_credentials_are_told_apart"]),
    (
        D::GoneIsNothing,
        &[
            "a_server_that_is_gone_is_unavailable",
            "an_answer_of_noise_is_an_error",
        ],
    ),
    (D::DirectoriesAreNotSeen, &["a_directory_is_a_directory"]),
    (
        D::VersionsStay,
        &["another_version_is_corrupt", "writing_changes_the_version"],
    ),
    (
        D::ShortReadIsWhole,
        &[
            "a_reading_cut_midway_is_an_error_and_no_short_file",
            "an_answer_of_noise_is_an_error",
        ],
    ),
    (D::RangeIsClipped, &["a_range_beyond_the_end_is_an_error"]),
    (D::RangeBeginsOneLate, &["a_range_is_exactly_its_bytes"]),
    (
        D::RangeIsIgnored,
        &[
            "a_range_is_exactly_its_bytes",
            "core_resumes_over_a_line_that_keeps_breaking",
        ],
    ),
    (
        D::EmptyRangeIsAnError,
        &["a_range_from_the_end_on_is_empty"],
    ),
    (D::DirectoryReadsAsNothing, &["a_directory_is_not_read"]),
    (D::MissingIsRetryable, &["a_missing_file_is_not_found"]),
    (D::VersionIsIgnored, &["another_version_is_corrupt"]),
    (
        D::ChecksumIsOfTheRange,
        &["a_checksum_that_is_told_is_of_the_whole_file"],
    ),
    (D::VersionNeverFits, &["the_present_version_is_read"]),
    (
        D::SecretInAnError,
        &["an_error_holds_no_secret_of_its_address"],
    ),
    (
        D::ConfiguredSecretInAnError,
        &["a_listing_of_nothing_is_not_found"],
    ),
    (D::NewlinesAreTranslated, &["every_byte_is_kept_as_it_is"]),
    (D::OneReadingAtATime, &["sixteen_readings_at_once"]),
    (
        D::DroppingSpoilsAll,
        &[
            "a_reading_that_is_dropped_disturbs_nothing",
            "a_listing_that_is_dropped_disturbs_nothing",
            "a_cut_connection_does_not_spoil_the_next",
            "core_gets_over_a_server_that_falls_silent",
        ],
    ),
    (
        D::NetworkErrorsAreFinal,
        &[
            "a_connection_cut_at_once_is_worth_a_retry",
            "a_writing_cut_midway_is_an_error",
        ],
    ),
    (
        D::WholeReadHasATimeLimit,
        &["a_slow_server_is_not_a_failed_one"],
    ),
    (
        D::NamesAreDecodedTwice,
        &[
            "names_mean_exactly_one_file",
            "a_listed_path_leads_to_its_file",
        ],
    ),
    (D::NamesEndAtQuestionMarks, &["names_mean_exactly_one_file"]),
    (D::CaseIsFolded, &["names_mean_exactly_one_file"]),
    (D::ListingIsCutAt1000, &["a_listing_of_1500_files_is_whole"]),
    (
        D::ListingHasOneLevel,
        &[
            "a_listing_has_every_file_with_its_size",
            "core_fetches_a_directory",
        ],
    ),
    (
        D::ListingTakesNamePrefixes,
        &["a_listing_is_of_this_directory_only"],
    ),
    (
        D::ListingOfNothingIsEmpty,
        &["a_listing_of_nothing_is_not_found"],
    ),
    (
        D::ListingOfAFileIsEmpty,
        &["a_listing_of_a_file_is_invalid"],
    ),
    (
        D::ListedSizesAreWrong,
        &["a_listing_has_every_file_with_its_size"],
    ),
    (
        D::ListedNamesAreEscaped,
        &["a_listed_path_leads_to_its_file"],
    ),
    (
        D::EmptyDirectoriesAreLost,
        &["an_empty_directory_is_made_and_listed"],
    ),
    (D::EmptyFileIsLost, &["an_empty_file_is_a_file"]),
    (
        D::FinishIsNotChecked,
        &[
            "a_writing_cut_midway_is_an_error",
            "core_writes_over_a_line_that_breaks",
        ],
    ),
    (
        D::FailedSourceIsDelivered,
        &["a_source_that_fails_fails_the_writing"],
    ),
    (
        D::SourceErrorIsFinal,
        &["a_source_that_fails_fails_the_writing"],
    ),
    (
        D::TailOfTheLongerStays,
        &["writing_shorter_leaves_nothing_of_the_longer"],
    ),
    (
        D::HalfIsSeenAfterFailure,
        &["a_writing_that_failed_leaves_what_was_there"],
    ),
    (
        D::HalfIsSeenMeanwhile,
        &["a_writing_that_is_dropped_leaves_what_was_there"],
    ),
    (D::ParentsAreNotMade, &["writing_makes_parents"]),
    (D::ModesAreLost, &["modes_are_kept"]),
    (
        D::DirectoryIsOverwritten,
        &["a_directory_is_not_overwritten"],
    ),
    (D::FilesHaveFilesBelow, &["nothing_is_written_below_a_file"]),
    (D::CountIsWrong, &["one_byte_is_kept"]),
    (
        D::OnlyOneChunkIsWritten,
        &[
            "usual_part_sizes_and_one_byte_more_or_less_are_kept",
            "a_local_file_is_written",
            "a_file_of_a_storage_is_written",
            "core_brings_a_file_there_and_back",
        ],
    ),
    (D::WritersShareATemporaryName, &["sixteen_writings_at_once"]),
    (
        D::WritersOfOneNameMix,
        &["two_writings_of_one_name_leave_one_of_them_whole"],
    ),
    (
        D::TemporaryIsLeft,
        &[
            "a_writing_that_failed_leaves_what_was_there",
            "a_writing_that_is_dropped_leaves_what_was_there",
        ],
    ),
    (
        D::RenameLeavesTheSource,
        &["a_renamed_file_has_its_new_name_only"],
    ),
    (D::RenameDoesNotReplace, &["renaming_replaces_a_file"]),
    (D::RenameOfNothingIsFine, &["nothing_cannot_be_renamed"]),
    (
        D::RemoveTakesAllBelow,
        &["only_an_empty_directory_is_removed"],
    ),
    (D::RemoveOfNothingIsAnError, &["removing_nothing_is_fine"]),
    (D::RemoveDoesNothing, &["a_removed_file_is_gone"]),
    (
        D::MakingTwiceIsAnError,
        &["a_directory_is_made_twice_and_with_parents"],
    ),
    (D::LocalPathIsAnother, &["a_local_path_is_the_same_file"]),
    (
        D::PartsAreInOrderOfArrival,
        &["parts_make_a_whole_in_any_order"],
    ),
    (D::PartSentAgainIsAdded, &["a_part_is_sent_again"]),
    (
        D::UploadIsSeenBeforeItsEnd,
        &["an_upload_is_not_seen_before_it_is_complete"],
    ),
    (D::AbortedUploadStays, &["an_aborted_upload_leaves_nothing"]),
    (D::EmptyUploadIsLost, &["an_empty_upload_is_an_empty_file"]),
];

fn cases() -> impl Iterator<Item = &'static Case> {
    CASES.iter().flat_map(|group| group.iter())
}

/// The subject that a plugin around `memory` is.
async fn subject<S: Storage>(plugin: fn(Memory, Defect) -> S, defect: Defect) -> Subject {
    let memory = Memory::default();
    let scratch: StorageUrl = "memory://m/scratch".parse().unwrap();
    let mut locked = memory.clone();
    locked.asks_for_password = true;
    let secret = scratch.join("secret");
    memory.put(&secret, "x".into(), None);
    let wrong = secret.with_credentials(Some("me".into()), Some(format!("not {PASSWORD}")));
    let mut claims = Capabilities::read_only();
    claims.rename = true;
    let (seeded, far, there) = (memory.clone(), memory.clone(), scratch.clone());
    let server = memory.clone();
    Subject::new("memory", Arc::new(plugin(memory, defect)), scratch)
        .at_least(claims)
        .seeded(move |url, content| {
            let memory = seeded.clone();
            async move {
                memory.put(&url, content, None);
                Ok(())
            }
        })
        .reached_through(echo().await, move |proxy| {
            let plugin = plugin(far.over(proxy), defect);
            Ok((Arc::new(plugin), there.clone()))
        })
        .locked_out(Arc::new(plugin(locked, defect)), wrong)
        .secrets([PASSWORD])
        .leftovers(move || {
            let left = server.uploads().iter().cloned().collect();
            async { left }
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_without_defects_passes_every_case() {
    let subject = subject(|memory, _| memory, D::ClaimIsLost).await;
    let subject = &subject;
    let judged = stream::iter(cases())
        .map(|case| async move { (case, subject.judge(case).await.outcome) })
        .buffer_unordered(8)
        .collect::<Vec<_>>()
        .await;
    let mut ignored = BTreeSet::new();
    for (case, verdict) in judged {
        match verdict {
            Outcome::Passed => {}
            Outcome::Ignored(_) => drop(ignored.insert(case.name)),
            Outcome::Failed(error) => panic!("{}: {error}", case.name),
        }
    }
    // Those for what is not claimed: all is.
    let expected = [
        "a_local_path_is_the_same_file",
        "a_range_is_exactly_its_bytes_or_refused_if_not_claimed",
        "listing_is_refused_if_not_claimed",
        "making_directories_is_refused_if_not_claimed",
        "parts_are_refused_if_not_claimed",
        "removing_is_refused_if_not_claimed",
        "renaming_is_refused_if_not_claimed",
        "writing_is_refused_if_not_claimed",
    ];
    assert_eq!(ignored.into_iter().collect::<Vec<_>>(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_defect_makes_the_suite_fail() {
    let missed = stream::iter(FOUND)
        .map(|(defect, names)| async move {
            let subject = subject(Defective::new, *defect).await;
            let mut missed = Vec::new();
            for name in *names {
                let case = cases().find(|case| case.name == *name);
                let verdict = subject.judge(case.expect(name)).await.outcome;
                // Cleaning up must not be what fails, in place of the case.
                let cleaning = *defect == D::TemporaryIsLeft;
                if !matches!(&verdict, Outcome::Failed(why) if why.contains("cannot be removed: ") == cleaning)
                {
                    missed.push(format!("{defect:?}: {name}: {verdict:?}"));
                }
            }
            missed
        })
        .buffer_unordered(16)
        .concat()
        .await;
    assert!(missed.is_empty(), "{missed:#?}");
}

#[tokio::test]
async fn an_upload_that_stays_at_the_server_is_found_in_the_end() {
    for (defect, stays) in [(D::UploadIsLeft, true), (D::ClaimIsLost, false)] {
        let subject = subject(Defective::new, defect).await;
        let aborted = |case: &Case| case.name == "an_aborted_upload_leaves_nothing";
        let report = subject.judge_all(aborted, 1, |_| ()).await;
        let [aborted, left] = report.cases.as_slice() else {
            panic!("{:?}", report.cases);
        };
        assert_eq!(aborted.outcome, Outcome::Passed);
        assert_eq!(left.case, NOTHING_IS_LEFT);
        let found = matches!(left.outcome, Outcome::Failed(_));
        assert_eq!(found, stays, "{:?}", left.outcome);
    }
}

#[test]
fn every_case_finds_a_defect() {
    let found: BTreeSet<_> = FOUND
        .iter()
        .flat_map(|(_, names)| *names)
        .copied()
        .collect();
    let idle: Vec<_> = cases()
        .map(|case| case.name)
        .filter(|name| !found.contains(name))
        .collect();
    assert!(
        idle.is_empty(),
        "no defect is known that these find: {idle:?}"
    );
}
