//! Twilio's vocabulary in canonical values: call statuses, answering machine verdicts, error codes
//! and SIP responses. Pure tables; a word that is not in them changes nothing.

use reqwest::StatusCode;

use crate::telephony::{AnsweredBy, CallStatus, Outcome, Reason};

/// Status for a `CallStatus` of a callback or a `status` of a record.
pub(super) fn status(word: &str) -> Option<CallStatus> {
    Some(match word {
        "queued" => CallStatus::Accepted,
        "initiated" => CallStatus::Dialing,
        "ringing" => CallStatus::Ringing,
        "in-progress" => CallStatus::InProgress,
        "completed" | "busy" | "no-answer" | "canceled" | "failed" => CallStatus::Final,
        _ => return None,
    })
}

/// Answering party. The verdicts on machines differ in the part of the greeting that they are
/// reached in.
pub(super) fn answered_by(word: &str) -> Option<AnsweredBy> {
    Some(match word {
        "human" => AnsweredBy::Human,
        "fax" => AnsweredBy::Fax,
        "unknown" => AnsweredBy::Unknown,
        _ if word == "machine" || word.starts_with("machine_") => AnsweredBy::Machine,
        _ => return None,
    })
}

/// Details that Twilio adds to a final status.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StatusDetails {
    pub sip_code: Option<i32>,
    pub error_code: Option<u64>,
    pub answered_by: Option<AnsweredBy>,
}

/// Outcome and reason of a final status; `None` for a word that is not one.
pub(super) fn outcome_and_reason(
    word: &str,
    signs: StatusDetails,
) -> Option<(Outcome, Option<Reason>)> {
    let by_code = signs.error_code.and_then(reason_of_code);

    Some(match word {
        "completed" => {
            let machine = matches!(
                signs.answered_by,
                Some(AnsweredBy::Machine | AnsweredBy::Fax)
            );
            let outcome = if machine {
                Outcome::Machine
            } else {
                Outcome::Completed
            };
            // The call took place; only a failing answer document is worth a reason.
            let reason = by_code.filter(|reason| *reason == Reason::AnswerDocument);
            (outcome, reason)
        }
        "busy" if signs.sip_code == Some(603) => {
            (Outcome::Rejected, Some(Reason::RejectedByCallee))
        }
        "busy" => (Outcome::Busy, Some(Reason::Busy)),
        "no-answer" => (Outcome::NoAnswer, Some(Reason::NoAnswer)),
        "canceled" => (Outcome::Canceled, Some(Reason::Canceled)),
        "failed" => {
            let (outcome, by_sip) = match signs.sip_code {
                Some(code) => outcome_of_sip_code(code),
                // Twilio adds no details to a call that could not be connected.
                None => (Outcome::Failed, Reason::UnreachableTemp),
            };
            (outcome, Some(by_code.unwrap_or(by_sip)))
        }
        _ => return None,
    })
}

/// Outcome and reason of a failed call, by its last SIP response.
fn outcome_of_sip_code(code: i32) -> (Outcome, Reason) {
    match code {
        402 => (Outcome::Failed, Reason::Funds),
        403 | 603 => (Outcome::Rejected, Reason::RejectedByCallee),
        404 | 410 | 484 | 604 => (Outcome::Failed, Reason::InvalidNumber),
        408 | 487 => (Outcome::NoAnswer, Reason::NoAnswer),
        480 => (Outcome::NoAnswer, Reason::UnreachableTemp),
        486 | 600 => (Outcome::Busy, Reason::Busy),
        415 | 488 | 606 => (Outcome::Failed, Reason::Refused),
        500..=599 => (Outcome::Failed, Reason::Congestion),
        607 | 608 => (Outcome::Rejected, Reason::BlockedCompliance),
        _ => (Outcome::Failed, Reason::UnreachableTemp),
    }
}

/// Reason of a refused create request, by its code, else by its HTTP status.
pub(super) fn refusal_reason(status: StatusCode, code: u64) -> Reason {
    reason_of_code(code).unwrap_or(match status.as_u16() {
        401 | 403 | 404 => Reason::Auth,
        402 => Reason::Funds,
        _ => Reason::Refused,
    })
}

/// Reason for an error code; `None` for codes that change nothing.
fn reason_of_code(code: u64) -> Option<Reason> {
    Some(match code {
        // Account not active, inactive for incoming calls, voice disabled; credentials;
        // suspended; forbidden; no such account.
        10001 | 10003 | 10005 | 20003 | 20005 | 20403 | 20404 => Reason::Auth,
        // Fetching a document (11xxx) and reading it (12xxx).
        11000..=12999 => Reason::AnswerDocument,
        13214 | 21210 | 21212 | 21213 => Reason::CallerId,
        13223 | 13224 | 13226 | 21201 | 21211 | 21214 | 21217 => Reason::InvalidNumber,
        13227 | 21203 | 21215 => Reason::BlockedGeo,
        // Blocked by Twilio for fraud, regulation or premium rates.
        13225 | 21202 | 21216 | 32224 => Reason::BlockedCompliance,
        // No carrier of the route answered within 60 seconds.
        32016 => Reason::UnreachableTemp,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_of_twilio_has_a_canonical_one() {
        for (word, expected) in [
            ("queued", Some(CallStatus::Accepted)),
            ("initiated", Some(CallStatus::Dialing)),
            ("ringing", Some(CallStatus::Ringing)),
            ("in-progress", Some(CallStatus::InProgress)),
            ("completed", Some(CallStatus::Final)),
            ("busy", Some(CallStatus::Final)),
            ("no-answer", Some(CallStatus::Final)),
            ("canceled", Some(CallStatus::Final)),
            ("failed", Some(CallStatus::Final)),
            ("Completed", None),
            ("exploded", None),
            ("", None),
        ] {
            assert_eq!(status(word), expected, "{word}");
            assert_eq!(
                outcome_and_reason(word, StatusDetails::default()).is_some(),
                expected == Some(CallStatus::Final),
                "{word}"
            );
        }
    }

    #[test]
    fn every_verdict_on_who_answered_has_a_canonical_one() {
        for (word, expected) in [
            ("human", Some(AnsweredBy::Human)),
            ("machine", Some(AnsweredBy::Machine)),
            ("machine_start", Some(AnsweredBy::Machine)),
            ("machine_end_beep", Some(AnsweredBy::Machine)),
            ("machine_end_silence", Some(AnsweredBy::Machine)),
            ("machine_end_other", Some(AnsweredBy::Machine)),
            ("fax", Some(AnsweredBy::Fax)),
            ("unknown", Some(AnsweredBy::Unknown)),
            ("machinery", None),
            ("", None),
        ] {
            assert_eq!(answered_by(word), expected, "{word}");
        }
    }

    #[test]
    fn a_completed_call_is_a_machine_when_one_answered() {
        for (answered_by, expected) in [
            (None, Outcome::Completed),
            (Some(AnsweredBy::Human), Outcome::Completed),
            (Some(AnsweredBy::Unknown), Outcome::Completed),
            (Some(AnsweredBy::Machine), Outcome::Machine),
            (Some(AnsweredBy::Fax), Outcome::Machine),
        ] {
            let signs = StatusDetails {
                answered_by,
                ..StatusDetails::default()
            };
            assert_eq!(
                outcome_and_reason("completed", signs),
                Some((expected, None))
            );
        }
    }

    #[test]
    fn a_failed_call_is_explained_by_its_sip_response() {
        for (sip_code, outcome, reason) in [
            (403, Outcome::Rejected, Reason::RejectedByCallee),
            (603, Outcome::Rejected, Reason::RejectedByCallee),
            (607, Outcome::Rejected, Reason::BlockedCompliance),
            (608, Outcome::Rejected, Reason::BlockedCompliance),
            (404, Outcome::Failed, Reason::InvalidNumber),
            (410, Outcome::Failed, Reason::InvalidNumber),
            (484, Outcome::Failed, Reason::InvalidNumber),
            (604, Outcome::Failed, Reason::InvalidNumber),
            (402, Outcome::Failed, Reason::Funds),
            (408, Outcome::NoAnswer, Reason::NoAnswer),
            (480, Outcome::NoAnswer, Reason::UnreachableTemp),
            (487, Outcome::NoAnswer, Reason::NoAnswer),
            (486, Outcome::Busy, Reason::Busy),
            (600, Outcome::Busy, Reason::Busy),
            (488, Outcome::Failed, Reason::Refused),
            (500, Outcome::Failed, Reason::Congestion),
            (503, Outcome::Failed, Reason::Congestion),
            (400, Outcome::Failed, Reason::UnreachableTemp),
        ] {
            let signs = StatusDetails {
                sip_code: Some(sip_code),
                ..StatusDetails::default()
            };
            assert_eq!(
                outcome_and_reason("failed", signs),
                Some((outcome, Some(reason))),
                "{sip_code}"
            );
        }

        assert_eq!(
            outcome_and_reason("failed", StatusDetails::default()),
            Some((Outcome::Failed, Some(Reason::UnreachableTemp)))
        );
    }

    #[test]
    fn an_error_code_says_more_than_a_sip_response() {
        let failed = |error_code, sip_code| {
            outcome_and_reason(
                "failed",
                StatusDetails {
                    sip_code,
                    error_code: Some(error_code),
                    answered_by: None,
                },
            )
        };
        let explained = |reason| Some((Outcome::Failed, Some(reason)));
        assert_eq!(failed(21211, None), explained(Reason::InvalidNumber));
        assert_eq!(failed(13227, Some(500)), explained(Reason::BlockedGeo));
        assert_eq!(failed(32224, None), explained(Reason::BlockedCompliance));
        assert_eq!(failed(32016, Some(503)), explained(Reason::UnreachableTemp));
        assert_eq!(failed(11200, None), explained(Reason::AnswerDocument));
        assert_eq!(failed(31000, Some(503)), explained(Reason::Congestion));
    }

    #[test]
    fn a_broken_document_is_noted_on_a_call_that_took_place() {
        let signs = |code| StatusDetails {
            error_code: Some(code),
            ..StatusDetails::default()
        };
        assert_eq!(
            outcome_and_reason("completed", signs(12100)),
            Some((Outcome::Completed, Some(Reason::AnswerDocument)))
        );
        assert_eq!(
            outcome_and_reason("completed", signs(21211)),
            Some((Outcome::Completed, None))
        );
    }

    #[test]
    fn the_final_words_that_need_no_explanation_have_one_anyway() {
        for (word, sip_code, outcome, reason) in [
            ("busy", None, Outcome::Busy, Reason::Busy),
            ("busy", Some(486), Outcome::Busy, Reason::Busy),
            (
                "busy",
                Some(603),
                Outcome::Rejected,
                Reason::RejectedByCallee,
            ),
            ("no-answer", Some(480), Outcome::NoAnswer, Reason::NoAnswer),
            ("canceled", Some(487), Outcome::Canceled, Reason::Canceled),
        ] {
            let signs = StatusDetails {
                sip_code,
                ..StatusDetails::default()
            };
            assert_eq!(
                outcome_and_reason(word, signs),
                Some((outcome, Some(reason))),
                "{word}"
            );
        }
    }
}
