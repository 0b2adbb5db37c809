use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;

use super::*;

fn at(secs: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + secs, 0).unwrap()
}

fn submitted() -> CallProgress {
    CallProgress {
        status: CallStatus::Submitting,
        outcome: None,
        reason: None,
        error_message: None,
        carrier_call_id: None,
        carrier_status: None,
        carrier_code: None,
        sip_code: None,
        answered_by: None,
        dialed_at: None,
        ringing_at: None,
        answered_at: None,
        ended_at: None,
        duration_seconds: None,
        price: None,
        currency: None,
        recording_url: None,
        conflicts: 0,
    }
}

fn event(status: CallStatus, secs: i64) -> CallEvent {
    CallEvent {
        carrier_call_id: Some("CA1".to_owned()),
        status: Some(status),
        occurred_at: Some(at(secs)),
        ..CallEvent::default()
    }
}

fn end(outcome: Outcome, secs: i64) -> CallEvent {
    CallEvent {
        outcome: Some(outcome),
        duration_seconds: Some(9),
        ..event(CallStatus::Final, secs)
    }
}

fn whole_life() -> Vec<CallEvent> {
    vec![
        event(CallStatus::Accepted, 0),
        event(CallStatus::Dialing, 1),
        event(CallStatus::Ringing, 2),
        event(CallStatus::InProgress, 3),
        CallEvent {
            status: None,
            answered_by: Some(AnsweredBy::Machine),
            ..event(CallStatus::InProgress, 4)
        },
        end(Outcome::Completed, 12),
    ]
}

#[test]
fn every_status_climbs_and_none_falls() {
    use CallStatus::{
        Accepted, Canceling, Deferred, Dialing, Final, InProgress, Queued, Ringing, Submitting,
        Unknown,
    };
    let all = [
        Queued, Submitting, Deferred, Unknown, Accepted, Dialing, Ringing, InProgress, Canceling,
        Final,
    ];

    for from in all {
        for to in all {
            let mut call = CallProgress {
                status: from,
                ..submitted()
            };
            if from == Final {
                call.outcome = Some(Outcome::Busy);
                call.ended_at = Some(at(0));
            }

            call.apply_event(
                &CallEvent {
                    outcome: (to == Final).then_some(Outcome::Busy),
                    ..event(to, 1)
                },
                at(1),
            );

            let expected = if to.rank() > from.rank() { to } else { from };
            assert_eq!(call.status, expected, "{from:?} meets {to:?}");
            assert_eq!(call.outcome.is_some(), call.status == Final);
            assert_eq!(call.ended_at.is_some(), call.status == Final);
        }
    }
}

#[test]
fn a_late_no_answer_does_not_reopen_a_completed_call() {
    let mut call = submitted();
    call.apply_event(&end(Outcome::Completed, 12), at(12));
    call.apply_event(&end(Outcome::NoAnswer, 13), at(13));
    assert_eq!(
        (call.outcome, call.conflicts),
        (Some(Outcome::Completed), 1)
    );
}

#[test]
fn a_machine_found_after_the_end_refines_the_outcome_without_a_conflict() {
    let mut call = submitted();
    call.apply_event(&end(Outcome::Completed, 12), at(12));
    call.apply_event(
        &CallEvent {
            status: None,
            answered_by: Some(AnsweredBy::Machine),
            ..event(CallStatus::InProgress, 4)
        },
        at(13),
    );
    call.apply_event(&end(Outcome::Completed, 14), at(14));
    assert_eq!((call.outcome, call.conflicts), (Some(Outcome::Machine), 0));
}

#[test]
fn evidence_replaces_lost_and_nothing_else() {
    let mut call = submitted();
    call.apply_event(
        &CallEvent {
            outcome: Some(Outcome::Lost),
            carrier_call_id: None,
            ..event(CallStatus::Final, 400)
        },
        at(400),
    );
    assert_eq!(call.outcome, Some(Outcome::Lost));
    call.apply_event(&end(Outcome::Completed, 500), at(500));
    assert_eq!(call.outcome, Some(Outcome::Completed));
}

#[test]
fn a_second_call_at_the_carrier_is_a_duplicate() {
    let mut call = submitted();
    call.apply_event(&event(CallStatus::Ringing, 1), at(1));
    let other = CallEvent {
        carrier_call_id: Some("CA2".to_owned()),
        ..end(Outcome::Busy, 2)
    };
    assert_eq!(call.apply_event(&other, at(2)), EventEffect::DuplicateCall);
    assert_eq!((call.status, call.conflicts), (CallStatus::Ringing, 1));
}

#[test]
fn an_unknown_carrier_status_changes_nothing() {
    let mut call = submitted();
    let odd = CallEvent {
        status: None,
        carrier_status: Some("levitating".to_owned()),
        ..event(CallStatus::Ringing, 1)
    };
    call.apply_event(&odd, at(1));
    assert_eq!(call.status, CallStatus::Submitting);
}

#[test]
fn a_row_ends_as_its_last_call_did() {
    let policy = RetryPolicy {
        max_retries: 0,
        retry_delay_seconds: 60,
        retry_lost: false,
        batch_active: true,
    };
    let table = [
        (Outcome::Completed, "completed"),
        (Outcome::Machine, "completed"),
        (Outcome::Busy, "no_answer"),
        (Outcome::NoAnswer, "no_answer"),
        (Outcome::Rejected, "failed"),
        (Outcome::Failed, "failed"),
        (Outcome::Canceled, "failed"),
        (Outcome::Expired, "failed"),
        (Outcome::Lost, "failed"),
    ];
    for (outcome, status) in table {
        assert_eq!(
            decide_row(outcome, None, 1, policy, at(0)),
            RowVerdict::Done(status)
        );
    }
}

#[test]
fn only_transient_outcomes_are_retried() {
    let policy = RetryPolicy {
        max_retries: 1,
        retry_delay_seconds: 60,
        retry_lost: false,
        batch_active: true,
    };
    let again = RowVerdict::Retry(at(0) + TimeDelta::seconds(60));

    // An attempt is left.
    assert_eq!(decide_row(Outcome::Busy, None, 1, policy, at(0)), again);
    assert_eq!(decide_row(Outcome::NoAnswer, None, 1, policy, at(0)), again);
    assert_eq!(
        decide_row(Outcome::Failed, Some(Reason::Congestion), 1, policy, at(0)),
        again
    );

    // No attempt is left, or the outcome is not transient.
    assert_eq!(
        decide_row(Outcome::Busy, None, 2, policy, at(0)),
        RowVerdict::Done("no_answer")
    );
    assert_eq!(
        decide_row(Outcome::Lost, None, 1, policy, at(0)),
        RowVerdict::Done("failed")
    );
    assert_eq!(
        decide_row(
            Outcome::Failed,
            Some(Reason::InvalidNumber),
            1,
            policy,
            at(0)
        ),
        RowVerdict::Done("failed")
    );

    let stopped = RetryPolicy {
        batch_active: false,
        ..policy
    };
    assert_eq!(
        decide_row(Outcome::Busy, None, 1, stopped, at(0)),
        RowVerdict::Done("no_answer")
    );

    let careless = RetryPolicy {
        retry_lost: true,
        ..policy
    };
    assert_eq!(decide_row(Outcome::Lost, None, 1, careless, at(0)), again);
}

proptest! {
    /// Any order, with any repetitions, leads to the same end as the right order.
    #[test]
    fn order_and_repetition_do_not_matter(
        order in Just((0..6_usize).collect::<Vec<_>>()).prop_shuffle(),
        repeats in proptest::collection::vec(0..6_usize, 0..10),
    ) {
        let events = whole_life();
        let mut straight = submitted();
        for event in &events {
            straight.apply_event(event, at(99));
        }
        let mut shuffled = submitted();
        for n in order.iter().chain(&repeats) {
            shuffled.apply_event(&events[*n], at(99));
        }
        prop_assert_eq!(straight, shuffled);
    }
}
