//! The control API and the equivalent methods of the library.

use super::*;
use crate::oracle::worst_window;
use crate::{CallbackRecord, CreateRecord, FaultChance, Faults, Oracle};

#[tokio::test]
async fn faults_and_behavior_are_read_and_replaced_over_http() {
    let stage = TestRig::start(quick_config()).await;
    let faults = format!("{}/_sim/faults", stage.sim.url());
    let put = async |url: &str, body: Value| {
        let response = stage.http.put(url).json(&body).send().await.unwrap();
        response.status().as_u16()
    };
    let body = serde_json::json!({"drop_after": {"count": 2}, "create_latency_ms": 3});
    assert_eq!(put(&faults, body).await, 200);
    assert_eq!(stage.sim.faults().drop_after, FaultChance::next(2));
    let read: Faults = stage
        .http
        .get(&faults)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(read, stage.sim.faults());
    assert_eq!(put(&faults, serde_json::json!({"typo": 1})).await, 422);
    stage.http.delete(&faults).send().await.unwrap();
    assert_eq!(stage.sim.faults(), Faults::default());

    let behavior = format!("{}/_sim/behavior", stage.sim.url());
    let body = serde_json::json!({"mix": {"busy": 1}, "talk_secs": [1, 2], "suffixes": {}});
    assert_eq!(put(&behavior, body).await, 200);
    assert_eq!(
        stage.sim.behavior().mix,
        OutcomeMix::only(CallOutcome::Busy)
    );
    let (_, words) = stage.run_call("+14155550003", &[]).await;
    assert_eq!(words, ["initiated", "busy"]);

    let account = format!("{}/_sim/accounts/{ACCOUNT}", stage.sim.url());
    let body = serde_json::json!({"auth_token": "other"});
    assert_eq!(put(&account, body).await, 200);
    let refused = stage.create_with(&stage.fields("+14155551000")).await;
    assert_eq!(refused.unwrap().0, 401);
}

#[tokio::test]
async fn the_oracle_sees_overlaps_repeated_rings_and_concurrency() {
    let mut config = quick_config();
    config.speed = 10.0;
    config.behavior.talk_secs = SecondsRange::new(1e6, 1e6).unwrap();
    let stage = TestRig::start(config).await;
    // The first three calls stay until they are ended by an update.
    let hold = (200, "<Response><Connect/></Response>");
    stage.dialer.script("/answer", &[hold; 3]);
    let mut held = Vec::new();
    for to in ["+14155551000", "+14155551000", "+14155551001"] {
        held.push(stage.create(to, &[]).await);
    }
    stage.dialer.wait_for("/answer", 3).await;
    assert_eq!(stage.sim.oracle().max_concurrent, 3);

    for sid in &held {
        let (status, _) = stage.update(sid, ("Status", "completed".into())).await;
        assert_eq!(status, 200);
    }
    stage.wait_idle().await;
    stage.create("+14155551001", &[]).await;
    stage.wait_idle().await;
    stage.create("+14155550001", &[]).await;
    stage.wait_idle().await;

    let oracle: Oracle = stage
        .http
        .get(format!("{}/_sim/oracle?account={ACCOUNT}", stage.sim.url()))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(oracle.overlaps, ["+14155551000"]);
    assert_eq!(oracle.rung_twice, ["+14155551000", "+14155551001"]);
    assert_eq!((oracle.rung, oracle.answered, oracle.live), (4, 4, 0));
    assert_eq!(oracle.max_concurrent, 3);
    assert_eq!(oracle.outcomes["busy"], 1);

    let arrivals = stage.sim.creates().iter().map(|c| c.at_micros).collect();
    let (count, start) = worst_window(arrivals).unwrap();
    let window = oracle.worst_window;
    assert!(count >= 1);
    assert_eq!((window.count, window.start_micros), (count, start));
    assert!(oracle.mean_rate > 0.0);
    assert_eq!(oracle.callbacks.sent, 4 * 4 + 2);
    assert_eq!(
        Oracle {
            account: None,
            mean_rate: stage.sim.oracle().mean_rate,
            ..oracle
        },
        stage.sim.oracle()
    );
}

#[tokio::test]
async fn the_arrival_log_continues_where_it_was_left() {
    let stage = TestRig::start(quick_config()).await;
    let sid = stage.create("+14155551000", &[]).await;
    stage.create("+14155551001", &[]).await;
    let read = async |query: &str| -> Vec<CreateRecord> {
        let url = format!("{}/_sim/creates{query}", stage.sim.url());
        stage
            .http
            .get(url)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    };
    let all = read("").await;
    assert_eq!(all, stage.sim.creates());
    assert_eq!(all[0].sid.as_deref(), Some(&*sid));
    assert_eq!((all[0].n, &*all[0].to), (1, "+14155551000"));
    assert_eq!(all[0].url, stage.hook("/answer"));
    assert!(all[0].at_micros <= all[1].at_micros);
    assert_eq!(read("?after=1").await, all[1..]);
    assert_eq!(read("?limit=1").await, all[..1]);
    assert!(read("?after=2").await.is_empty());
}

#[tokio::test]
async fn a_replayed_callback_equals_the_original() {
    let stage = TestRig::start(quick_config()).await;
    let sid = stage.create("+14155551000", &[]).await;
    stage.wait_idle().await;
    let logged = stage.sim.callbacks(&sid);
    let completed = logged
        .iter()
        .find(|c| c.param("CallStatus").as_deref() == Some("completed"))
        .unwrap();
    assert_eq!(
        (completed.kind.as_str(), completed.response_status),
        ("status", Some(200))
    );

    let url = format!("{}/_sim/calls/{sid}", stage.sim.url());
    let again: CallbackRecord = stage
        .http
        .post(format!("{url}/replay"))
        .json(&serde_json::json!({"index": completed.index}))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(again.body, completed.body);
    assert_eq!(again.replay_of, Some(completed.index));
    assert_eq!(stage.dialer.seen("/status").len(), 5);

    let listed: Vec<CallbackRecord> = stage
        .http
        .get(format!("{url}/callbacks"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(listed, stage.sim.callbacks(&sid));
    assert!(stage.sim.replay(&sid, 99).await.is_none());
}

#[tokio::test]
async fn a_reset_forgets_live_calls_silently() {
    let mut config = quick_config();
    config.speed = 0.001;
    let stage = TestRig::start(config).await;
    let sid = stage.create("+14155551000", &[]).await;
    stage.dialer.wait_for("/status", 1).await;
    assert!(!stage.sim.wait_idle(Duration::ZERO).await);
    let reset = format!("{}/_sim/reset", stage.sim.url());
    stage.http.post(reset).send().await.unwrap();
    assert!(stage.sim.wait_idle(Duration::ZERO).await);
    assert_eq!(stage.sim.oracle(), Oracle::default());
    assert!(stage.sim.callbacks(&sid).is_empty());
    let (status, _) = stage
        .get(&format!("{}/{sid}.json", stage.calls_url()))
        .await;
    assert_eq!(status, 404);
    let (_, health) = stage.get(&format!("{}/_sim/health", stage.sim.url())).await;
    assert_eq!(health["live"], 0);
}

#[tokio::test]
async fn a_disabled_callback_log_stays_empty() {
    let mut config = quick_config();
    config.keep_callbacks = false;
    let stage = TestRig::start(config).await;
    let sid = stage.create("+14155551000", &[]).await;
    let idle = format!("{}/_sim/idle?within_ms=20000", stage.sim.url());
    assert_eq!(stage.get(&idle).await.1["idle"], true);
    assert!(stage.sim.callbacks(&sid).is_empty());
    assert_eq!(stage.sim.oracle().callbacks.sent, 4);
}

#[tokio::test]
async fn a_stopped_simulator_no_longer_answers() {
    let stage = TestRig::start(quick_config()).await;
    stage.create("+14155551000", &[]).await;
    let health = format!("{}/_sim/health", stage.sim.url());
    stage.sim.stop().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    assert!(client.get(health).send().await.is_err());
}
