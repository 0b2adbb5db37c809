//! Whole life cycles of calls for each kind of callee.

use super::*;

#[tokio::test]
async fn every_suffix_has_its_outcome() {
    let stage = TestRig::start(quick_config()).await;
    let answered = ["initiated", "ringing", "in-progress", "completed"].as_slice();
    for (suffix, words, sip) in [
        ("0000", answered, "200"),
        ("0001", &["initiated", "busy"], "486"),
        ("0002", &["initiated", "ringing", "no-answer"], "487"),
        ("0003", answered, "200"),
        ("0005", &["initiated", "ringing", "failed"], "603"),
        ("0006", answered, "200"),
        ("0007", &["initiated", "failed"], "503"),
        ("0008", &["initiated", "failed"], "404"),
        ("0009", answered, "200"),
        ("1234", answered, "200"),
    ] {
        let (sid, seen) = stage.run_call(&format!("+1415555{suffix}"), &[]).await;
        assert_eq!(seen, words, "{suffix}");
        let resource = stage.fetch(&sid).await;
        assert_eq!(resource["status"], *words.last().unwrap(), "{suffix}");
        let last = stage.dialer.seen("/status").pop().unwrap();
        assert_eq!(last.get("SipResponseCode"), sip, "{suffix}");
        let answers = stage.dialer.seen("/answer");
        let fetched = answers.iter().any(|s| s.get("CallSid") == sid);
        assert_eq!(fetched, words.contains(&"in-progress"), "{suffix}");
    }

    let (status, body) = stage
        .create_with(&stage.fields("+14155550004"))
        .await
        .unwrap();
    assert_eq!((status, &body["code"]), (400, &Value::from(21211)));
    let oracle = stage.sim.oracle();
    assert_eq!(
        (oracle.creates, oracle.accepted, oracle.refused),
        (11, 10, 1)
    );
    assert_eq!(oracle.outcomes["completed"], 5);
    assert_eq!(oracle.outcomes["failed"], 3);
    assert_eq!(oracle.live, 0);
}

#[tokio::test]
async fn only_the_events_asked_for_are_posted_and_the_default_is_completed() {
    let stage = TestRig::start(quick_config()).await;
    let fields: Vec<_> = stage
        .fields("+14155551000")
        .into_iter()
        .filter(|(name, _)| *name != "StatusCallbackEvent")
        .collect();
    assert_eq!(stage.create_with(&fields).await.unwrap().0, 201);
    stage.wait_idle().await;
    let seen = stage.dialer.seen("/status");
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].get("CallStatus"), "completed");
    assert_eq!(seen[0].get("SequenceNumber"), "0");
    assert_eq!(seen[0].get("CallbackSource"), "call-progress-events");
}

#[tokio::test]
async fn a_conversation_follows_the_script_over_several_turns() {
    let mut config = quick_config();
    // The document ends the call, even if its server is slow.
    config.behavior.talk_secs = SecondsRange::new(1e6, 1e6).unwrap();
    config.behavior.scripts = vec!["Hello?|Yes please.".to_owned()];
    let stage = TestRig::start(config).await;
    let turn = r#"<Response><Gather input="speech" action="/turn?n=1"><Say>Well?</Say></Gather>
        <Redirect>/silent</Redirect></Response>"#;
    stage.dialer.script("/answer", &[(200, turn)]);
    stage.dialer.script("/turn", &[(200, turn), (200, turn)]);
    stage.create("+14155551000", &[]).await;
    stage.wait_idle().await;
    let answer = &stage.dialer.seen("/answer")[0];
    assert_eq!(answer.get("CallStatus"), "in-progress");
    assert_eq!(answer.get("Direction"), "outbound-api");
    assert_eq!(answer.get("AccountSid"), ACCOUNT);
    let speech: Vec<_> = stage
        .dialer
        .seen("/turn")
        .iter()
        .map(|s| s.get("SpeechResult").to_owned())
        .collect();
    assert_eq!(speech, ["Hello?", "Yes please."]);
    assert_eq!(stage.dialer.seen("/turn")[0].get("Confidence"), "0.93");
    assert_eq!(stage.dialer.seen("/silent").len(), 1);
    let oracle = stage.sim.oracle();
    assert_eq!((oracle.documents.answers, oracle.documents.later), (1, 3));
}

#[tokio::test]
async fn a_person_hangs_up_on_a_stream_after_their_talk_time() {
    let mut config = quick_config();
    config.speed = 50.0;
    let stage = TestRig::start(config).await;
    let stream = r#"<Response><Connect><Stream url="wss://x"/></Connect></Response>"#;
    stage
        .dialer
        .script("/answer", &[(200, stream), (200, stream)]);
    let (sid, _) = stage.run_call("+14155551000", &[]).await;
    assert_eq!(stage.fetch(&sid).await["duration"], "30");
    let last = stage.dialer.seen("/status").pop().unwrap();
    assert_eq!(last.get("CallDuration"), "30");
    assert_eq!(last.get("Duration"), "1");
    let (limited, _) = stage.run_call("+14155551001", &[("TimeLimit", "5")]).await;
    assert_eq!(stage.fetch(&limited).await["duration"], "5");
}

#[tokio::test]
async fn the_ring_timeout_of_the_create_ends_a_slow_ring() {
    let stage = TestRig::start(quick_config()).await;
    let (_, words) = stage.run_call("+14155551000", &[("Timeout", "2")]).await;
    assert_eq!(words, ["initiated", "ringing", "no-answer"]);
}

#[tokio::test]
async fn asynchronous_detection_calls_back_and_names_who_answered() {
    let stage = TestRig::start(quick_config()).await;
    let hook = stage.hook("/amd");
    let pause = (200, r#"<Response><Pause length="60"/></Response>"#);
    stage.dialer.script("/answer", &[pause, pause]);
    let detect = [
        ("MachineDetection", "Enable"),
        ("AsyncAmd", "true"),
        ("AsyncAmdStatusCallback", hook.as_str()),
    ];

    let (sid, _) = stage.run_call("+14155550003", &detect).await;
    let amd = stage.dialer.seen("/amd");
    assert_eq!(amd.len(), 1);
    assert_eq!(amd[0].get("AnsweredBy"), "machine_start");
    assert!(
        amd[0]
            .get("MachineDetectionDuration")
            .parse::<u32>()
            .unwrap()
            >= 2000
    );
    assert!(
        !stage.dialer.seen("/answer")[0]
            .params
            .contains_key("AnsweredBy")
    );

    let last = stage.dialer.seen("/status").pop().unwrap();
    assert_eq!(last.get("AnsweredBy"), "machine_start");
    assert_eq!(stage.fetch(&sid).await["answered_by"], "machine_start");
    let (_, _) = stage.run_call("+14155551000", &detect).await;
    assert_eq!(stage.dialer.seen("/amd")[1].get("AnsweredBy"), "human");
}

#[tokio::test]
async fn synchronous_detection_delays_the_answer_document() {
    let stage = TestRig::start(quick_config()).await;
    stage
        .run_call("+14155550009", &[("MachineDetection", "Enable")])
        .await;
    assert_eq!(stage.dialer.seen("/answer")[0].get("AnsweredBy"), "fax");
}

#[tokio::test]
async fn a_recorded_call_reports_its_recording_and_serves_it() {
    let stage = TestRig::start(quick_config()).await;
    let hook = stage.hook("/recording");
    let record = [
        ("Record", "true"),
        ("RecordingStatusCallback", hook.as_str()),
    ];
    let (sid, _) = stage.run_call("+14155551000", &record).await;
    let recording = &stage.dialer.seen("/recording")[0];
    assert_eq!(recording.get("RecordingStatus"), "completed");
    assert_eq!(recording.get("CallSid"), sid);
    let last = stage.dialer.seen("/status").pop().unwrap();
    assert_eq!(last.get("RecordingUrl"), recording.get("RecordingUrl"));
    let url = recording.get("RecordingUrl");
    let (status, metadata) = stage.get(&format!("{url}.json")).await;
    assert_eq!((status, &metadata["call_sid"]), (200, &Value::from(sid)));
    let sound = stage
        .http
        .get(url)
        .basic_auth(ACCOUNT, Some(&stage.token))
        .send()
        .await
        .unwrap();
    assert_eq!(sound.headers()["content-type"], "audio/x-wav");
    let (_, _) = stage.run_call("+14155550001", &record).await;
    assert_eq!(stage.dialer.seen("/recording").len(), 1);
}

#[tokio::test]
async fn an_inline_document_needs_no_answer_url() {
    let stage = TestRig::start(quick_config()).await;
    let twiml = "<Response><Say>Hi</Say></Response>".to_owned();
    let fields = [
        ("To", "+14155551000".to_owned()),
        ("From", FROM.to_owned()),
        ("Twiml", twiml),
    ];
    let (status, body) = stage.create_with(&fields).await.unwrap();
    assert_eq!(status, 201);
    stage.wait_idle().await;
    let resource = stage.fetch(body["sid"].as_str().unwrap()).await;
    assert_eq!(resource["status"], "completed");
    assert!(stage.dialer.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_bad_document_goes_to_the_fallback_and_then_ends_the_call() {
    let mut config = quick_config();
    // Every call ends by its documents, not by the talk time of the callee.
    config.behavior.talk_secs = SecondsRange::new(1e6, 1e6).unwrap();
    let stage = TestRig::start(config).await;
    stage.dialer.script(
        "/answer",
        &[(200, "<Response><Sya/></Response>"), (500, "")],
    );
    let fallback = stage.hook("/fallback");
    stage
        .run_call("+14155551000", &[("FallbackUrl", &fallback)])
        .await;
    assert_eq!(stage.dialer.seen("/fallback")[0].get("ErrorCode"), "12100");
    let (_, words) = stage.run_call("+14155551001", &[]).await;
    assert_eq!(words.last().unwrap(), "completed");
    let nowhere = (200, r#"<Response><Redirect>ftp://x/</Redirect></Response>"#);
    stage.dialer.script("/answer", &[nowhere]);
    stage.run_call("+14155551002", &[]).await;
    let oracle = stage.sim.oracle();
    assert_eq!(oracle.documents.answers_failed, 2);
    assert_eq!(oracle.documents.later, 2);
    assert_eq!(oracle.documents.later_failed, 1);
}

#[tokio::test]
async fn the_price_appears_after_the_end_and_is_negative() {
    let mut config = quick_config();
    config.behavior.price_after_secs = 0.0;
    let stage = TestRig::start(config).await;
    let (sid, _) = stage.run_call("+14155551000", &[]).await;
    assert_eq!(stage.fetch(&sid).await["price"], "-0.014000");
    let (sid, _) = stage.run_call("+14155550001", &[]).await;
    assert_eq!(stage.fetch(&sid).await["price"], Value::Null);
    let mut later = stage.sim.behavior();
    later.price_after_secs = 1e6;
    stage.sim.set_behavior(later);
    let (sid, _) = stage.run_call("+14155551001", &[]).await;
    assert_eq!(stage.fetch(&sid).await["price"], Value::Null);
}

#[tokio::test]
async fn a_redirect_loop_ends() {
    let stage = TestRig::start(quick_config()).await;
    let again = (200, "<Response><Redirect/></Response>");
    stage.dialer.script("/answer", &vec![again; 2000]);
    let mut behavior = stage.sim.behavior();
    behavior.talk_secs = SecondsRange::new(1e6, 1e6).unwrap();
    stage.sim.set_behavior(behavior);
    stage.create("+14155551000", &[]).await;
    stage.wait_idle().await;
    assert_eq!(stage.dialer.seen("/answer").len(), 501);
}

#[tokio::test]
async fn two_runs_with_one_seed_have_the_same_outcomes() {
    let mut outcomes = Vec::new();
    for _ in 0..2 {
        let mut config = quick_config();
        config.speed = 2000.0;
        config.behavior.mix = OutcomeMix::default();
        let stage = TestRig::start(config).await;
        for n in 1000..1060 {
            stage.create(&format!("+1415555{n}"), &[]).await;
        }
        stage.wait_idle().await;
        let by_number = stage.list("PageSize=100").await["calls"]
            .as_array()
            .unwrap()
            .iter()
            .map(|call| (call["to"].clone(), call["status"].clone()))
            .collect::<Vec<_>>();
        outcomes.push(by_number);
        stage.sim.stop().await;
    }
    assert_eq!(outcomes[0], outcomes[1]);
    assert!(outcomes[0].iter().any(|(_, status)| status != "completed"));
}
