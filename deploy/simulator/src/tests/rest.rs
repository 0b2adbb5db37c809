//! The REST contract: responses, errors, lists, updates, calls per second.

use super::*;
use crate::{AccountConfig, OverCps};

const SECOND: u64 = 1_000_000;

#[tokio::test]
async fn a_create_answers_with_the_documented_resource() {
    let stage = TestRig::start(quick_config()).await;
    let (status, body) = stage
        .create_with(&stage.fields("+14155551000"))
        .await
        .unwrap();
    assert_eq!(status, 201);
    let sid = body["sid"].as_str().unwrap();
    assert!(sid.starts_with("CA") && sid.len() == 34);
    assert_eq!(body["status"], "queued");
    assert_eq!(body["queue_time"], "0");
    assert_eq!(body["direction"], "outbound-api");
    assert_eq!(body["account_sid"], ACCOUNT);
    assert_eq!(body["start_time"], Value::Null);
    assert_eq!(body["price"], Value::Null);
    assert_eq!(
        body["uri"],
        format!("/2010-04-01/Accounts/{ACCOUNT}/Calls/{sid}.json")
    );
    let created = body["date_created"].as_str().unwrap();
    chrono::DateTime::parse_from_rfc2822(created).unwrap();
}

#[tokio::test]
async fn refusals_have_twilios_shape() {
    let stage = TestRig::start(quick_config()).await;
    let mut typo = stage.fields("+14155551000");
    typo.push(("StatusCalback", "x".to_owned()));
    let (status, body) = stage.create_with(&typo).await.unwrap();
    assert_eq!((status, body["status"].as_u64()), (400, Some(400)));
    assert_eq!(body["code"], 20001);
    assert!(body["message"].as_str().unwrap().contains("StatusCalback"));
    assert!(body["more_info"].is_string());

    let response = stage
        .http
        .post(format!("{}.json", stage.calls_url()))
        .basic_auth(ACCOUNT, Some("wrong"))
        .form(&stage.fields("+14155551000"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 401);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["code"], 20003);

    let (status, body) = stage
        .get(&format!("{}/CA{}.json", stage.calls_url(), "0".repeat(32)))
        .await;
    assert_eq!((status, &body["code"]), (404, &Value::from(20404)));
    let (status, _) = stage
        .get(&format!("{}.json?Too=1", stage.calls_url()))
        .await;
    assert_eq!(status, 400);
    let oracle = stage.sim.oracle();
    assert_eq!(oracle.verdicts["refused_20001"], 1);
    assert_eq!(oracle.verdicts["refused_20003"], 1);
    assert_eq!(oracle.creates, 2);
}

#[tokio::test]
async fn lists_filter_and_page_from_new_to_old() {
    let mut config = quick_config();
    config.speed = 1.0;
    let stage = TestRig::start(config).await;
    let mut created = Vec::new();
    for n in 0..7 {
        created.push(
            stage
                .create(&format!("+1415555{}", 1000 + n % 3), &[])
                .await,
        );
    }
    created.reverse();
    let all = stage.list("").await;
    assert_eq!(sids(&all), created);
    assert_eq!(all["next_page_uri"], Value::Null);

    let to = stage.list("To=%2B14155551000").await;
    assert_eq!(sids(&to), [&*created[0], &*created[3], &*created[6]]);
    assert!(sids(&stage.list("To=%2B14155551000&From=%2B19995550000").await).is_empty());

    let mut paged = Vec::new();
    let mut page = stage.list("PageSize=3").await;
    loop {
        paged.extend(sids(&page).into_iter().map(str::to_owned));
        let Some(next) = page["next_page_uri"].as_str() else {
            break;
        };
        // A call created between pages does not shift them.
        if paged.len() == 3 {
            stage.create("+14155551009", &[]).await;
        }
        page = stage.get(&format!("{}{next}", stage.sim.url())).await.1;
    }
    assert_eq!(paged, created);
    assert_eq!(sids(&stage.list("PageSize=3&Page=2").await).len(), 2);
}

#[tokio::test]
async fn lists_filter_by_status_and_day() {
    let stage = TestRig::start(quick_config()).await;
    let (busy, _) = stage.run_call("+14155550001", &[]).await;
    let (answered, _) = stage.run_call("+14155551000", &[]).await;
    assert_eq!(sids(&stage.list("Status=busy").await), [&*busy]);
    assert_eq!(sids(&stage.list("Status=completed").await), [&*answered]);

    let day = async |sid: &str| {
        let start = stage.fetch(sid).await["start_time"].clone();
        let start = chrono::DateTime::parse_from_rfc2822(start.as_str().unwrap()).unwrap();
        start.date_naive()
    };
    // The calls may be on different days.
    let (first, last) = (day(&busy).await, day(&answered).await);
    let both = [&*answered, &*busy];
    let of_first = if first == last { &both[..] } else { &both[1..] };

    for (query, expected) in [
        (format!("StartTime={first}"), of_first),
        (format!("StartTime>={}", last.succ_opt().unwrap()), &[]),
        (format!("StartTime<={last}"), &both),
        (format!("EndTime<={}", first.pred_opt().unwrap()), &[]),
        (format!("StartTime>={first}T00:00:00Z"), &both),
    ] {
        assert_eq!(sids(&stage.list(&query).await), expected, "{query}");
    }

    // A queued call has no start time.
    stage.sim.set_account(
        ACCOUNT,
        AccountConfig {
            cps: 1,
            ..AccountConfig::default()
        },
    );
    // With this many before it, its slot is a minute away.
    for n in 2000..2060 {
        stage.create(&format!("+1415555{n}"), &[]).await;
    }
    let queued = stage.create("+14155551006", &[]).await;
    let by_day = stage
        .list(&format!("To=%2B14155551006&StartTime>={first}"))
        .await;
    assert!(sids(&by_day).is_empty());
    assert_eq!(sids(&stage.list("To=%2B14155551006").await), [&*queued]);
}

#[tokio::test]
async fn a_call_can_be_canceled_before_the_answer_and_completed_after() {
    let mut config = quick_config();
    config.speed = 0.001;
    let stage = TestRig::start(config).await;
    let ringing = stage.create("+14155551000", &[]).await;
    let (status, body) = stage.update(&ringing, ("Status", "canceled".into())).await;
    assert_eq!((status, &body["status"]), (200, &Value::from("canceled")));
    stage.wait_idle().await;
    let words: Vec<_> = stage
        .dialer
        .seen("/status")
        .iter()
        .map(|s| s.get("CallStatus").to_owned())
        .collect();
    assert_eq!(words.last().unwrap(), "canceled");
    let (status, body) = stage.update(&ringing, ("Status", "completed".into())).await;
    assert_eq!((status, &body["code"]), (400, &Value::from(21220)));
    let (status, _) = stage.update(&ringing, ("Status", "done".into())).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn an_answered_call_is_redirected_or_completed_but_not_canceled() {
    let mut config = quick_config();
    config.behavior.talk_secs = SecondsRange::new(1e6, 1e6).unwrap();
    let stage = TestRig::start(config).await;
    let hold = (200, "<Response><Connect/></Response>");
    stage.dialer.script("/answer", &[hold]);
    stage.dialer.script("/other", &[hold]);
    let sid = stage.create("+14155551000", &[]).await;
    stage.dialer.wait_for("/answer", 1).await;
    let (status, body) = stage.update(&sid, ("Status", "canceled".into())).await;
    assert_eq!((status, &body["code"]), (400, &Value::from(21220)));
    let (status, _) = stage.update(&sid, ("Url", stage.hook("/other"))).await;
    assert_eq!(status, 200);
    stage.dialer.wait_for("/other", 1).await;
    let (status, body) = stage.update(&sid, ("Status", "completed".into())).await;
    assert_eq!((status, &body["status"]), (200, &Value::from("completed")));
    stage.wait_idle().await;
}

#[tokio::test]
async fn creates_above_the_cps_limit_are_queued_or_refused() {
    let stage = TestRig::start(quick_config()).await;
    let limited = |over_cps| AccountConfig {
        cps: 2,
        over_cps,
        ..AccountConfig::default()
    };
    stage.sim.set_account(ACCOUNT, limited(OverCps::Queue));
    let mut queue_times = Vec::new();
    for n in 1000..1120 {
        let fields = stage.fields(&format!("+1415555{n}"));
        let (status, body) = stage.create_with(&fields).await.unwrap();
        assert_eq!(status, 201);
        let queue_ms: u64 = body["queue_time"].as_str().unwrap().parse().unwrap();
        queue_times.push(queue_ms);
    }

    let mut slots: Vec<u64> = Vec::new();
    let mut expected = Vec::new();
    for (n, create) in stage.sim.creates().iter().enumerate() {
        let free = n.checked_sub(2).map_or(0, |before| slots[before] + SECOND);
        slots.push(free.max(create.at_micros));
        expected.push((slots[n] - create.at_micros) / 1000);
    }
    assert_eq!(queue_times, expected);

    // The last slot is a minute away, so another create exceeds the limit.
    stage.sim.set_account(ACCOUNT, limited(OverCps::Refuse));
    let create = async |to: &str| {
        let fields = stage.fields(to);
        stage.create_with(&fields).await.unwrap().0
    };
    assert_eq!(create("+14155551000").await, 429);
    assert_eq!(stage.sim.oracle().verdicts["refused_20429"], 1);
    stage.sim.reset();
    assert_eq!(create("+14155551000").await, 201);
    assert_eq!(create("+14155551001").await, 201);
    let third = create("+14155551002").await;
    let log = stage.sim.creates();
    let too_soon = log[2].at_micros < log[0].at_micros + SECOND;
    assert_eq!(third, if too_soon { 429 } else { 201 });
}

#[tokio::test]
async fn a_call_belongs_to_its_account() {
    let stage = TestRig::start(quick_config()).await;
    let sid = stage.create("+14155551000", &[]).await;
    let other = "AC00000000000000000000000000000002";
    let url = format!("{}/2010-04-01/Accounts/{other}/Calls", stage.sim.url());
    let get = async |path: String| {
        let request = stage.http.get(path).basic_auth(other, Some(&stage.token));
        request.send().await.unwrap()
    };
    assert_eq!(get(format!("{url}/{sid}.json")).await.status(), 404);
    let list: Value = get(format!("{url}.json")).await.json().await.unwrap();
    assert!(sids(&list).is_empty());
    assert_eq!(stage.sim.account_oracle(other).creates, 0);
    assert_eq!(stage.sim.account_oracle(ACCOUNT).creates, 1);
}
