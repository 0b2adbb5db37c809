//! Effects of injected faults at the dialer.

use super::*;
use crate::{CreateVerdict, FaultChance, Faults};

async fn with_faults(faults: Faults) -> TestRig {
    let mut config = quick_config();
    config.faults = faults;
    TestRig::start(config).await
}

fn numbers(seen: &[ReceivedRequest]) -> Vec<&str> {
    seen.iter().map(|s| s.get("SequenceNumber")).collect()
}

#[tokio::test]
async fn a_dropped_connection_gives_no_answer_and_may_leave_a_call() {
    let stage = with_faults(Faults {
        drop_before: FaultChance::next(1),
        ..Faults::default()
    })
    .await;
    let fields = stage.fields("+14155551000");
    assert!(stage.create_with(&fields).await.is_err());
    assert_eq!(stage.sim.oracle().accepted, 0);

    stage.sim.set_faults(Faults {
        drop_after: FaultChance::next(1),
        ..Faults::default()
    });
    assert!(stage.create_with(&fields).await.is_err());
    stage.wait_idle().await;
    let oracle = stage.sim.oracle();
    assert_eq!((oracle.accepted, oracle.outcomes["completed"]), (1, 1));
    assert_eq!(stage.dialer.seen("/status").len(), 4);
    assert_eq!(oracle.blind_retries, [stage.hook("/answer")]);
    assert!(oracle.duplicates.is_empty());

    // The next create has no fault and duplicates the call.
    assert_eq!(stage.create_with(&fields).await.unwrap().0, 201);
    let oracle = stage.sim.oracle();
    assert_eq!(oracle.duplicates, [stage.hook("/answer")]);
    let verdicts: Vec<_> = stage.sim.creates().iter().map(|c| c.verdict).collect();
    assert_eq!(
        verdicts,
        [
            CreateVerdict::Dropped,
            CreateVerdict::AcceptedThenDropped,
            CreateVerdict::Accepted
        ]
    );
}

#[tokio::test]
async fn errors_and_refusals_strike_before_or_after_acceptance() {
    let stage = with_faults(Faults {
        refuse_429: FaultChance::next(1),
        ..Faults::default()
    })
    .await;
    let fields = stage.fields("+14155551000");
    let (status, body) = stage.create_with(&fields).await.unwrap();
    assert_eq!((status, &body["code"]), (429, &Value::from(20429)));

    stage.sim.set_faults(Faults {
        error_before: FaultChance::next(1),
        ..Faults::default()
    });
    assert_eq!(stage.create_with(&fields).await.unwrap().0, 503);
    assert_eq!(stage.sim.oracle().accepted, 0);
    // A refusal with 429 proves that nothing happened; a 503 does not.
    assert!(stage.sim.oracle().blind_retries.is_empty());

    stage.sim.set_faults(Faults {
        error_after: FaultChance::next(1),
        ..Faults::default()
    });
    assert_eq!(stage.create_with(&fields).await.unwrap().0, 503);
    stage.wait_idle().await;
    let oracle = stage.sim.oracle();
    assert_eq!((oracle.creates, oracle.accepted), (3, 1));
    assert_eq!(oracle.blind_retry_count, 1);
    assert_eq!(oracle.verdicts["accepted_then_error"], 1);
}

#[tokio::test]
async fn the_early_callback_is_there_before_the_create_is_answered() {
    let mut config = quick_config();
    // Slow enough that only the fault can post a callback early.
    config.speed = 0.001;
    config.faults.early_callback = FaultChance::ALWAYS;
    let stage = TestRig::start(config).await;
    let sid = stage.create("+14155551000", &[]).await;
    let seen = stage.dialer.seen("/status");
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].get("CallSid"), sid);
    assert_eq!(seen[0].get("CallStatus"), "initiated");
}

#[tokio::test]
async fn a_hidden_call_is_missing_from_lists_for_a_while() {
    let stage = with_faults(Faults {
        hide_from_list: FaultChance::next(1),
        hide_for_ms: 600_000,
        ..Faults::default()
    })
    .await;
    let hidden = stage.create("+14155551000", &[]).await;
    assert!(sids(&stage.list("To=%2B14155551000").await).is_empty());
    assert_eq!(stage.fetch(&hidden).await["sid"], Value::from(&*hidden));
    stage.sim.set_faults(Faults {
        hide_from_list: FaultChance::next(1),
        hide_for_ms: 1,
        ..Faults::default()
    });
    let shown = stage.create("+14155551001", &[]).await;
    // The second call appears soon, the first one stays hidden.
    let found = tokio::time::timeout(WAIT_DEADLINE, async {
        while sids(&stage.list("").await) != [&*shown] {}
    });
    found.await.unwrap();
}

#[tokio::test]
async fn lost_callbacks_are_counted_and_kept_but_never_posted() {
    let stage = with_faults(Faults {
        callbacks_lost: FaultChance::ALWAYS,
        ..Faults::default()
    })
    .await;
    let sid = stage.create("+14155551000", &[]).await;
    stage.wait_idle().await;
    assert!(stage.dialer.seen("/status").is_empty());
    assert_eq!(stage.dialer.seen("/answer").len(), 1);
    let counts = stage.sim.oracle().callbacks;
    assert_eq!((counts.lost, counts.sent), (4, 0));
    let logged = stage.sim.callbacks(&sid);
    assert_eq!(logged.iter().filter(|c| c.lost).count(), 4);
    assert_eq!(stage.fetch(&sid).await["status"], "completed");
}

#[tokio::test]
async fn duplicated_callbacks_carry_the_same_sequence_number() {
    let stage = with_faults(Faults {
        callbacks_duplicated: FaultChance::ALWAYS,
        ..Faults::default()
    })
    .await;
    stage.create("+14155551000", &[]).await;
    stage.wait_idle().await;
    let seen = stage.dialer.seen("/status");
    assert_eq!(numbers(&seen), ["0", "0", "1", "1", "2", "2", "3", "3"]);
}

#[tokio::test]
async fn reordered_callbacks_come_after_their_successors() {
    let stage = with_faults(Faults {
        callbacks_reordered: FaultChance::next(1),
        ..Faults::default()
    })
    .await;
    stage.create("+14155551000", &[]).await;
    stage.wait_idle().await;
    assert_eq!(numbers(&stage.dialer.seen("/status")), ["1", "0", "2", "3"]);
    assert_eq!(stage.sim.oracle().callbacks.reordered, 1);
}

#[tokio::test]
async fn late_callbacks_are_overtaken() {
    let stage = with_faults(Faults {
        callbacks_late: FaultChance::next(1),
        late_by_ms: 600_000,
        ..Faults::default()
    })
    .await;
    stage.create("+14155551000", &[]).await;
    let seen = stage.dialer.wait_for("/status", 3).await;
    assert_eq!(numbers(&seen), ["1", "2", "3"]);
    // A shorter delay ends within the test. The reset discards the first call.
    stage.sim.reset();
    stage.sim.set_faults(Faults {
        callbacks_late: FaultChance::next(1),
        late_by_ms: 1,
        ..Faults::default()
    });
    let sid = stage.create("+14155551001", &[]).await;
    stage.wait_idle().await;
    let mut seen = stage.dialer.seen("/status");
    seen.retain(|s| s.get("CallSid") == sid);
    let mut all = numbers(&seen);
    all.sort_unstable();
    assert_eq!(all, ["0", "1", "2", "3"]);
    assert_eq!(stage.sim.oracle().callbacks.late, 1);
}

#[tokio::test]
async fn a_suppressed_answer_leaves_the_callee_in_silence() {
    let stage = with_faults(Faults {
        suppress_answer: FaultChance::ALWAYS,
        ..Faults::default()
    })
    .await;
    let (sid, words) = stage.run_call("+14155551000", &[]).await;
    assert_eq!(words.last().unwrap(), "completed");
    assert!(stage.dialer.seen("/answer").is_empty());
    assert_eq!(stage.sim.oracle().documents.answers_suppressed, 1);
    let duration = stage.fetch(&sid).await["duration"].clone();
    assert!(duration.as_str().unwrap().parse::<u32>().unwrap() >= 30);
}

#[tokio::test]
async fn the_fragment_decides_what_is_retried() {
    let stage = TestRig::start(quick_config()).await;
    for (path, fragment, tries) in [
        ("/a", "", 1),
        ("/b", "#rc=2&rp=5xx", 3),
        ("/c", "#rc=5&rp=4xx", 1),
        ("/d", "#rc=3&rp=all", 2),
    ] {
        let answers: &[_] = if path == "/d" {
            &[(500, "")]
        } else {
            &[(500, ""), (503, ""), (500, "")]
        };
        stage.dialer.script(path, answers);

        let mut fields = stage.fields("+14155550001");
        fields.retain(|(name, _)| !name.starts_with("StatusCallback"));
        fields.push((
            "StatusCallback",
            format!("{}{path}{fragment}", stage.dialer.url),
        ));
        assert_eq!(stage.create_with(&fields).await.unwrap().0, 201);
        stage.wait_idle().await;

        let seen = stage.dialer.seen(path);
        assert_eq!(seen.len(), tries, "{path}");
        let tokens: std::collections::HashSet<_> = seen.iter().map(|s| &s.idempotency).collect();
        assert_eq!(tokens.len(), 1);
    }
    let counts = stage.sim.oracle().callbacks;
    assert_eq!((counts.sent, counts.failed, counts.requests), (1, 3, 7));
}

#[tokio::test]
async fn a_refused_connection_is_retried_once_by_default_and_given_up() {
    let stage = TestRig::start(quick_config()).await;
    // The bound port is reserved, and without a listener it refuses connections.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let gone = format!("http://{}/", closed.local_addr().unwrap());
    let mut fields = stage.fields("+14155550001");
    fields.retain(|(name, _)| !name.starts_with("StatusCallback"));
    fields.push(("StatusCallback", gone));
    let (_, body) = stage.create_with(&fields).await.unwrap();
    stage.wait_idle().await;
    let logged = stage.sim.callbacks(body["sid"].as_str().unwrap());
    assert_eq!(logged.len(), 1);
    assert_eq!((logged[0].attempts, logged[0].response_status), (2, None));
    assert_eq!(logged[0].error.as_deref(), Some("connection failed"));
    assert_eq!(stage.sim.oracle().callbacks.failed, 1);
}

#[tokio::test]
async fn latency_holds_the_answer_back_but_not_the_call() {
    let stage = with_faults(Faults {
        create_latency_ms: 600_000,
        ..Faults::default()
    })
    .await;
    let fields = stage.fields("+14155551000");
    let create = stage.create_with(&fields);
    tokio::select! {
        _ = create => panic!("the create was answered"),
        seen = stage.dialer.wait_for("/status", 4) => {
            assert_eq!(seen[3].get("CallStatus"), "completed");
        }
    }
    assert_eq!(stage.sim.oracle().accepted, 1);
}
