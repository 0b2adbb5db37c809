//! Tests of the adapter against a scripted listener: its requests, their number, and the results
//! for each response.

use std::time::Duration;

use reqwest::StatusCode;
use rust_decimal::Decimal;
use serde_json::{Value, json};

use super::create::{classify, create};
use super::fake::{ACCOUNT_SID, CALL_SID, FakeTwilio, ScriptedReply, TOKEN};
use super::wire::{RequestFailure, TwilioReply};
use super::{fake, records};
use crate::Error;
use crate::telephony::{
    AnsweredBy, CallSearch, CallStatus, CallTermination, CarrierKind, CarrierRegistry, Outcome,
    Placement, Reason,
};

fn reply(status: u16, body: &Value) -> Placement {
    reply_bytes(status, body.to_string().into_bytes())
}

fn reply_bytes(status: u16, body: Vec<u8>) -> Placement {
    classify(Ok(TwilioReply {
        status: StatusCode::from_u16(status).unwrap(),
        retry_after_secs: Some(7),
        body,
    }))
}

fn fault(code: u64) -> Value {
    json!({"code": code, "message": "No.", "more_info": "https://x", "status": 400})
}

#[test]
fn a_refusal_is_classified_by_code_and_then_by_status() {
    for (status, code, reason) in [
        (400, 21201, Reason::InvalidNumber),
        (400, 21211, Reason::InvalidNumber),
        (400, 21214, Reason::InvalidNumber),
        (400, 21217, Reason::InvalidNumber),
        (400, 13223, Reason::InvalidNumber),
        (400, 21210, Reason::CallerId),
        (400, 21212, Reason::CallerId),
        (400, 21213, Reason::CallerId),
        (400, 21215, Reason::BlockedGeo),
        (400, 13227, Reason::BlockedGeo),
        (400, 21216, Reason::BlockedCompliance),
        (401, 20003, Reason::Auth),
        (400, 20003, Reason::Auth),
        (403, 20003, Reason::Auth),
        (401, 1, Reason::Auth),
        (403, 1, Reason::Auth),
        (404, 20404, Reason::Auth),
        (404, 1, Reason::Auth),
        (402, 1, Reason::Funds),
        (403, 21216, Reason::BlockedCompliance),
        (400, 21205, Reason::Refused),
        (400, 21208, Reason::Refused),
        (400, 21219, Reason::Refused),
        (400, 573_005, Reason::Refused),
        (405, 20004, Reason::Refused),
        (422, 1, Reason::Refused),
    ] {
        let expected = Placement::Refused {
            reason,
            code: code.to_string(),
            message: "No.".to_owned(),
        };

        assert_eq!(reply(status, &fault(code)), expected, "{status} {code}");
    }
}

#[test]
fn only_documented_rate_limits_prove_that_nothing_ran() {
    for (status, code) in [(429, 20429), (429, 10004), (400, 10004), (403, 10004)] {
        let placement = reply(status, &fault(code));
        let Placement::Deferred {
            throttled: true,
            retry_after_secs: Some(7),
            ..
        } = placement
        else {
            panic!("{status} {code}: {placement:?}");
        };
    }

    let unreached = classify(Err(RequestFailure::NotSent("refused".to_owned())));
    let expected = Placement::Deferred {
        proof: "refused".to_owned(),
        retry_after_secs: None,
        throttled: false,
    };
    assert_eq!(unreached, expected);
}

#[test]
fn a_reply_without_proof_is_unknown() {
    let sid = json!({"sid": CALL_SID, "status": "queued"});
    for (status, body) in [
        // Codes that would be a refusal or a deferral under another status.
        (408, fault(21211)),
        (409, fault(21211)),
        (425, fault(21211)),
        (429, fault(21211)),
        (409, fault(10004)),
        (503, fault(20429)),
        (503, fault(10004)),
        (500, fault(20500)),
        (502, json!({})),
        (504, sid.clone()),
        // Not Twilio's error document.
        (400, json!({"error": "bad request"})),
        (400, json!({"code": "21211", "message": "text for a code"})),
        (400, json!({"code": 21211})),
        (400, json!([fault(21211)])),
        (404, json!(null)),
        (429, json!({})),
        // Success without a call.
        (200, json!({})),
        (201, json!({"sid": null})),
        (201, json!({"sid": "SM00000000000000000000000000000002"})),
        (201, json!({"sid": "CA0002"})),
        (201, json!({"sid": "CAg0000000000000000000000000000002"})),
        (204, json!(null)),
        // Redirects are not followed.
        (301, sid.clone()),
        (307, sid),
    ] {
        let placement = reply(status, &body);
        let unknown = matches!(placement, Placement::Unknown { .. });
        assert!(unknown, "{status} {body}: {placement:?}");
    }

    for status in [200, 201, 400, 401, 404, 429, 500] {
        for body in ["", "<html>Bad gateway</html>", "{\"code\":21211,", "\u{1}"] {
            let placement = reply_bytes(status, body.as_bytes().to_vec());
            let unknown = matches!(placement, Placement::Unknown { .. });
            assert!(unknown, "{status} {body}: {placement:?}");
        }
    }

    let lost = classify(Err(RequestFailure::Lost("reset".to_owned())));
    assert_eq!(
        lost,
        Placement::Unknown {
            detail: "reset".to_owned()
        }
    );
}

#[tokio::test]
async fn an_accepted_call_has_an_id_and_takes_one_request() {
    let record = json!({"sid": CALL_SID, "status": "queued", "price": null});
    let fake = FakeTwilio::start(vec![ScriptedReply::Answer(201, "", record)]).await;
    let carriers = CarrierRegistry::new().unwrap();
    let carrier = carriers.adapter(CarrierKind::Twilio);
    let call = fake::new_call_with_everything();
    let placement = carrier.create(&fake.account(), &call).await;
    let expected = Placement::Accepted {
        carrier_call_id: CALL_SID.to_owned(),
        carrier_status: "queued".to_owned(),
    };
    assert_eq!(placement, expected);

    let requests = fake.requests();
    assert_eq!(requests.len(), 1);
    let path = format!("POST /2010-04-01/Accounts/{ACCOUNT_SID}/Calls.json HTTP/1.1");
    assert_eq!(requests[0].request_line(), path);
    assert_eq!(
        requests[0].header("content-type"),
        Some("application/x-www-form-urlencoded")
    );
    let sent: Vec<_> = super::create::request_form(&call)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    assert_eq!(requests[0].form(), sent);
}

#[tokio::test]
async fn requests_authenticate_as_the_account_or_as_its_api_key() {
    let fake = FakeTwilio::start(vec![]).await;
    let client = fake::client();
    let mut account = fake.account();
    create(&client, &account, &fake::new_call()).await;
    account.credentials.username = Some("SK1".to_owned());
    create(&client, &account, &fake::new_call()).await;
    let sent: Vec<_> = fake
        .requests()
        .iter()
        .map(|request| request.header("authorization").unwrap().to_owned())
        .collect();
    let basic = |username: &str| {
        use base64::prelude::{BASE64_STANDARD, Engine as _};
        let pair = BASE64_STANDARD.encode(format!("{username}:{TOKEN}"));
        format!("Basic {pair}")
    };
    assert_eq!(sent, [basic(ACCOUNT_SID), basic("SK1")]);
}

#[tokio::test]
async fn a_create_request_is_sent_once_after_any_failure() {
    let elsewhere = "location: /2010-04-01/Elsewhere\r\n";
    for act in [
        ScriptedReply::Drop,
        ScriptedReply::Truncate,
        ScriptedReply::Answer(500, "", fault(20500)),
        ScriptedReply::Answer(503, "retry-after: 0\r\n", json!({})),
        ScriptedReply::Answer(307, elsewhere, json!({})),
        ScriptedReply::Answer(308, elsewhere, json!({})),
    ] {
        let fake = FakeTwilio::start(vec![act]).await;
        let placement = create(&fake::client(), &fake.account(), &fake::new_call()).await;
        let unknown = matches!(placement, Placement::Unknown { .. });
        assert!(unknown, "{placement:?}");
        assert_eq!(fake.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_request_on_a_reused_connection_that_breaks_is_not_sent_again() {
    let record = json!({"sid": CALL_SID, "status": "queued"});
    let fake = FakeTwilio::start(vec![
        ScriptedReply::AnswerKeepAlive(201, record),
        ScriptedReply::Drop,
    ])
    .await;
    let client = fake::client();
    let first = create(&client, &fake.account(), &fake::new_call()).await;
    assert!(matches!(first, Placement::Accepted { .. }), "{first:?}");
    let second = create(&client, &fake.account(), &fake::new_call()).await;
    assert!(matches!(second, Placement::Unknown { .. }), "{second:?}");
    assert_eq!(fake.requests().len(), 2);
}

#[tokio::test]
async fn a_create_request_without_an_answer_is_unknown() {
    let fake = FakeTwilio::start(vec![ScriptedReply::Hang]).await;
    let client = crate::platform::http::carrier_client(Duration::from_millis(300)).unwrap();
    let placement = create(&client, &fake.account(), &fake::new_call()).await;
    let Placement::Unknown { detail } = placement else {
        panic!("{placement:?}");
    };
    assert!(!detail.contains(ACCOUNT_SID), "{detail}");
    assert!(fake.requests().len() <= 1);
}

#[tokio::test]
async fn a_call_that_could_not_reach_the_carrier_may_be_sent_again() {
    // Bound, so that no other process gets the port, and not listening, so that it refuses.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = closed.local_addr().unwrap().port();

    // Plain HTTP behind an address that promises TLS.
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let no_tls = format!("https://{}", plain.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = plain.accept().await {
            let answer = b"HTTP/1.1 400 X\r\ncontent-length: 0\r\n\r\n";
            tokio::io::AsyncWriteExt::write_all(&mut stream, answer)
                .await
                .unwrap();
        }
    });

    for base in [
        format!("http://127.0.0.1:{port}"),
        no_tls,
        "mailto:ada".to_owned(),
    ] {
        let account = fake::account(Some(base.parse().unwrap()));
        let placement = create(&fake::client(), &account, &fake::new_call()).await;
        let Placement::Deferred {
            throttled: false,
            retry_after_secs: None,
            ..
        } = placement
        else {
            panic!("{base}: {placement:?}");
        };
    }
}

#[test]
fn a_ring_timeout_is_capped_at_the_carriers_maximum() {
    let mut call = fake::new_call();
    call.ring_timeout_secs = 3600;
    let form = super::create::request_form(&call);
    assert!(form.contains(&("Timeout", "600".to_owned())));
}

fn completed() -> Value {
    json!({
        "sid": CALL_SID, "status": "completed", "answered_by": "machine_start",
        "date_created": "Wed, 04 Mar 2026 09:30:05 +0000",
        "date_updated": "Wed, 04 Mar 2026 09:31:20 +0000",
        "end_time": "Wed, 04 Mar 2026 09:31:19 +0000",
        "duration": "61", "price": "-0.01350", "price_unit": "USD",
    })
}

#[tokio::test]
async fn a_record_becomes_an_event_with_a_positive_price() {
    let fake = FakeTwilio::start(vec![ScriptedReply::Answer(200, "", completed())]).await;
    let call = records::fetch(&fake::client(), &fake.account(), CALL_SID).await;
    let call = call.unwrap().unwrap();
    assert_eq!(call.carrier_call_id, CALL_SID);
    assert_eq!(call.created_at, "2026-03-04T09:30:05Z".parse().ok());
    let event = call.event;
    assert_eq!(event.dedup_key, "poll|completed|61|-0.01350|machine_start");
    assert_eq!(event.status, Some(CallStatus::Final));
    assert_eq!(event.outcome, Some(Outcome::Machine));
    assert_eq!(event.answered_by, Some(AnsweredBy::Machine));
    assert_eq!(event.duration_seconds, Some(61));
    assert_eq!(event.price, Some(Decimal::new(1350, 5)));
    assert_eq!(event.currency.as_deref(), Some("USD"));
    assert_eq!(event.occurred_at, "2026-03-04T09:31:19Z".parse().ok());
    let path = format!("/2010-04-01/Accounts/{ACCOUNT_SID}/Calls/{CALL_SID}.json");
    assert_eq!(
        fake.requests()[0].request_line(),
        format!("GET {path} HTTP/1.1")
    );
}

#[tokio::test]
async fn a_record_with_more_values_is_another_event() {
    let mut early = completed();
    early["price"] = Value::Null;
    early["price_unit"] = json!("USD");
    let fake = FakeTwilio::start(vec![
        ScriptedReply::Answer(200, "", early),
        ScriptedReply::Answer(200, "", completed()),
    ])
    .await;
    let client = fake::client();
    let mut events = Vec::new();
    for _ in 0..2 {
        let call = records::fetch(&client, &fake.account(), CALL_SID).await;
        events.push(call.unwrap().unwrap().event);
    }
    assert_eq!((events[0].price, &events[0].currency), (None, &None));
    assert!(events[1].price.is_some());
    assert_ne!(events[0].dedup_key, events[1].dedup_key);
}

#[tokio::test]
async fn a_record_of_a_queued_call_is_no_progress_beyond_acceptance() {
    let record = json!({"sid": CALL_SID, "status": "queued", "duration": "", "price": null});
    let odd = json!({"sid": CALL_SID, "status": "meditating"});
    let fake = FakeTwilio::start(vec![
        ScriptedReply::Answer(200, "", record),
        ScriptedReply::Answer(200, "", odd),
        ScriptedReply::Answer(404, "", fault(20404)),
    ])
    .await;
    let client = fake::client();
    let account = fake.account();
    let fetch = || records::fetch(&client, &account, CALL_SID);
    let queued = fetch().await.unwrap().unwrap().event;
    assert_eq!(queued.status, Some(CallStatus::Accepted));
    assert_eq!((queued.outcome, queued.reason), (None, None));
    assert_eq!(queued.dedup_key, "poll|queued|||");
    let odd = fetch().await.unwrap().unwrap().event;
    assert_eq!(odd.status, None);
    assert_eq!(odd.carrier_status.as_deref(), Some("meditating"));
    assert!(fetch().await.unwrap().is_none());
}

#[tokio::test]
async fn only_failures_of_the_carrier_are_retryable() {
    for (act, passes) in [
        (ScriptedReply::Drop, true),
        (ScriptedReply::Truncate, true),
        (ScriptedReply::Answer(500, "", json!({})), true),
        (ScriptedReply::Answer(429, "", fault(20429)), true),
        (ScriptedReply::Answer(408, "", json!({})), true),
        (ScriptedReply::Answer(200, "", json!("no record")), true),
        (
            ScriptedReply::Answer(200, "", json!({"status": "queued"})),
            true,
        ),
        (ScriptedReply::Answer(401, "", fault(20003)), false),
        (ScriptedReply::Answer(403, "", json!({})), false),
        (
            ScriptedReply::Answer(302, "location: /x\r\n", json!({})),
            false,
        ),
    ] {
        let fake = FakeTwilio::start(vec![act]).await;
        let error = records::fetch(&fake::client(), &fake.account(), CALL_SID)
            .await
            .unwrap_err();
        let Error::Outside {
            service: "twilio",
            retryable,
            ..
        } = error
        else {
            panic!("{error:?}");
        };
        assert_eq!(retryable, passes, "{error}");
    }
}

fn search() -> CallSearch {
    CallSearch {
        to: fake::number("+15550100002"),
        from: fake::number("+15550100001"),
        created_from: "2026-03-04T09:30:05.900Z".parse().unwrap(),
        created_until: "2026-03-04T09:30:30Z".parse().unwrap(),
    }
}

fn listed(number: u8, second: u8) -> Value {
    json!({
        "sid": format!("CA{number:032}"), "status": "queued",
        "date_created": format!("Wed, 04 Mar 2026 09:30:{second:02} +0000"),
    })
}

#[tokio::test]
async fn a_search_reads_every_page_and_keeps_calls_in_its_window() {
    let next = format!("/2010-04-01/Accounts/{ACCOUNT_SID}/Calls.json?Page=1&PageToken=PA1");
    let mut undated = listed(5, 0);
    undated["date_created"] = Value::Null;
    let first = json!({
        "calls": [listed(1, 4), listed(2, 5)],
        "next_page_uri": next,
    });
    let second = json!({
        "calls": [listed(3, 30), listed(4, 31), undated],
        "next_page_uri": null,
    });
    let fake = FakeTwilio::start(vec![
        ScriptedReply::Answer(200, "", first),
        ScriptedReply::Answer(200, "", second),
    ])
    .await;

    let found = records::search(&fake::client(), &fake.account(), &search()).await;
    let found: Vec<_> = found
        .unwrap()
        .into_iter()
        .map(|call| call.carrier_call_id)
        .collect();
    let expected: Vec<_> = [2, 3, 5].map(|n| format!("CA{n:032}")).to_vec();
    assert_eq!(found, expected);

    let requests = fake.requests();
    let path = format!("GET /2010-04-01/Accounts/{ACCOUNT_SID}/Calls.json");
    let query = "To=%2B15550100002&From=%2B15550100001&PageSize=1000";
    assert_eq!(
        requests[0].request_line(),
        format!("{path}?{query} HTTP/1.1")
    );
    assert_eq!(
        requests[1].request_line(),
        format!("{path}?Page=1&PageToken=PA1 HTTP/1.1")
    );
}

#[tokio::test]
async fn a_next_page_elsewhere_does_not_receive_the_credentials() {
    let elsewhere = FakeTwilio::start(vec![]).await;
    let next = format!("{}steal?Page=1", elsewhere.url);
    let fake = FakeTwilio::start(vec![
        ScriptedReply::Answer(200, "", json!({"calls": [], "next_page_uri": next})),
        ScriptedReply::Answer(200, "", json!({"calls": [], "next_page_uri": null})),
    ])
    .await;
    let found = records::search(&fake::client(), &fake.account(), &search()).await;
    assert_eq!(found.unwrap(), []);
    assert_eq!(elsewhere.requests().len(), 0);
    assert_eq!(fake.requests().len(), 2);
}

#[tokio::test]
async fn a_search_that_cannot_be_complete_fails() {
    let next = "/2010-04-01/Accounts/A/Calls.json?Page=1";
    let endless = (0..20)
        .map(|_| ScriptedReply::Answer(200, "", json!({"calls": [], "next_page_uri": next})))
        .collect();
    let fake = FakeTwilio::start(endless).await;
    let found = records::search(&fake::client(), &fake.account(), &search()).await;
    assert!(matches!(found, Err(Error::Outside { .. })), "{found:?}");
    assert_eq!(fake.requests().len(), 10);

    for body in [json!({}), json!({"calls": [{"status": "queued"}]})] {
        let fake = FakeTwilio::start(vec![ScriptedReply::Answer(200, "", body)]).await;
        let found = records::search(&fake::client(), &fake.account(), &search()).await;
        assert!(matches!(found, Err(Error::Outside { .. })), "{found:?}");
    }
}

#[tokio::test]
async fn ending_a_call_reports_whether_it_was_live() {
    let status =
        |word: &str| ScriptedReply::Answer(200, "", json!({"sid": CALL_SID, "status": word}));
    for (ending, act, expected) in [
        (CallTermination::Cancel, status("canceled"), true),
        (CallTermination::Cancel, status("ringing"), true),
        (CallTermination::Cancel, status("in-progress"), false),
        (CallTermination::Cancel, status("completed"), false),
        (CallTermination::Cancel, status("busy"), false),
        (CallTermination::HangUp, status("in-progress"), true),
        (CallTermination::HangUp, status("completed"), true),
        (CallTermination::HangUp, status("no-answer"), false),
        (
            CallTermination::Cancel,
            ScriptedReply::Answer(400, "", fault(21220)),
            false,
        ),
        (
            CallTermination::HangUp,
            ScriptedReply::Answer(404, "", fault(20404)),
            false,
        ),
    ] {
        let fake = FakeTwilio::start(vec![act]).await;
        let ended = records::end(&fake::client(), &fake.account(), CALL_SID, ending).await;
        assert_eq!(ended.unwrap(), expected, "{ending:?}");
        let sent = match ending {
            CallTermination::Cancel => "canceled",
            CallTermination::HangUp => "completed",
        };

        let requests = fake.requests();
        assert_eq!(requests[0].form(), [("Status".to_owned(), sent.to_owned())]);
        let path = format!("/2010-04-01/Accounts/{ACCOUNT_SID}/Calls/{CALL_SID}.json");
        assert_eq!(requests[0].request_line(), format!("POST {path} HTTP/1.1"));
    }

    let fake = FakeTwilio::start(vec![ScriptedReply::Answer(401, "", fault(20003))]).await;
    let ended = records::end(
        &fake::client(),
        &fake.account(),
        CALL_SID,
        CallTermination::HangUp,
    )
    .await;
    assert!(!ended.unwrap_err().is_retryable());
}
