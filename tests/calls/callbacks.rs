//! Carrier callbacks, genuine and forged.

use peal_shared::calls::urls::CallUrls;
use peal_shared::platform::ids::{CallId, TrunkId};
use peal_simulator::{CallOutcome, OutcomeMix, sign};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::app::{
    ACCOUNT, AUTH_TOKEN, ApiResponse, App, AppOptions, TEST_TIMEOUT, Tenant,
    carrier_where_all_answer, end_call_at_carrier, send_request,
};
use crate::harness::eventually;

/// A call that rings for the whole test, with a way to send callbacks as its carrier.
struct RingingCall {
    app: App,
    call: CallId,
    carrier_call_id: String,
    urls: CallUrls,
}

type CallbackForm = Vec<(&'static str, String)>;

impl RingingCall {
    async fn start() -> Self {
        let mut carrier = carrier_where_all_answer();
        carrier.behavior.mix = OutcomeMix::only(CallOutcome::NoAnswer);
        carrier.speed = 1.0;
        let app = App::start_with(AppOptions {
            carrier,
            ..AppOptions::default()
        })
        .await;

        // Keeps the call ringing for the whole test.
        sqlx::query("update trunks set ring_timeout_secs = 600")
            .execute(&app.context.pool)
            .await
            .unwrap();

        let path = format!(
            "/api/call/create_call?phoneNumber=%2B12125557777&agent_id={}",
            app.tenant.agent
        );
        let queued = app
            .post(&path, json!({"variable_values": {"name": "Ada"}}))
            .await
            .expect(202);

        let call: CallId = queued["call_session_id"]
            .as_str()
            .expect("an id")
            .parse()
            .expect("an id");

        let rings = || async {
            app.count("select count(*) from calls where status = 'ringing'")
                .await
                == 1
        };
        eventually("the phone rings", TEST_TIMEOUT, rings).await;

        let (trunk, carrier_call_id): (TrunkId, String) =
            sqlx::query_as("select trunk_id, carrier_call_id from calls")
                .fetch_one(&app.context.pool)
                .await
                .unwrap();
        let config = &app.context.config;
        let urls = CallUrls::new(&config.public_url, &config.keys, trunk, call);

        Self {
            app,
            call,
            carrier_call_id,
            urls,
        }
    }

    fn form(&self, sequence: u32, status: &str) -> CallbackForm {
        vec![
            ("CallSid", self.carrier_call_id.clone()),
            ("AccountSid", ACCOUNT.to_owned()),
            ("CallStatus", status.to_owned()),
            ("CallbackSource", "call-progress-events".to_owned()),
            ("SequenceNumber", sequence.to_string()),
            ("CallDuration", "7".to_owned()),
        ]
    }

    async fn post(&self, url: &str, form: &CallbackForm, signature: Option<&str>) -> ApiResponse {
        let path = url.strip_prefix(&self.app.url).expect("our own address");
        let mut request = self.app.anonymous(Method::POST, path).form(form);
        if let Some(signature) = signature {
            request = request.header("x-twilio-signature", signature);
        }
        send_request(request).await
    }

    /// Sends a correctly signed callback.
    async fn send_signed(&self, form: &CallbackForm) -> ApiResponse {
        let url = self.urls.status.as_str();
        self.post(url, form, Some(&sign(AUTH_TOKEN, url, form)))
            .await
    }

    async fn call(&self) -> Value {
        self.app
            .get(&format!("/api/call/{}", self.call))
            .await
            .expect(200)
    }

    async fn count_events(&self) -> i64 {
        self.app.count("select count(*) from call_events").await
    }

    async fn wait_until_applied(&self) {
        let waiting = || async {
            self.app
                .count("select count(*) from call_events where applied_at is null")
                .await
                == 0
        };
        eventually("every event is applied", TEST_TIMEOUT, waiting).await;
    }

    /// Ends the call at the simulator, which does not know of the test's own callbacks.
    async fn finish(self) {
        end_call_at_carrier(&self.app, &self.carrier_call_id).await;
        self.app.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_callback_changes_nothing() {
    let ringing = RingingCall::start().await;
    let before = ringing.count_events().await;
    let form = ringing.form(9, "completed");
    let url = ringing.urls.status.to_string();
    let good = sign(AUTH_TOKEN, &url, &form);

    let mut changed = form.clone();
    changed[2].1 = "busy".to_owned();
    let mut truncated = good.clone();
    truncated.pop();
    let foreign_url = url.replace("status-callback", "status_callback");
    let refused = [
        ringing.post(&url, &form, None).await,
        ringing.post(&url, &form, Some("")).await,
        ringing.post(&url, &form, Some(&truncated)).await,
        ringing.post(&url, &changed, Some(&good)).await,
        ringing
            .post(&url, &form, Some(&sign("another secret", &url, &form)))
            .await,
        ringing
            .post(&url, &form, Some(&sign(AUTH_TOKEN, &foreign_url, &form)))
            .await,
        ringing
            .post(&format!("{url}?more=1"), &form, Some(&good))
            .await,
    ];

    for answer in refused {
        assert_eq!(answer.status.as_u16(), 403, "{}", answer.text);
    }

    // A valid signature for a URL that is not the call's own.
    let config = &ringing.app.context.config;
    let token = config
        .keys
        .call_token(ringing.app.tenant.trunk, ringing.call);
    let last = if token.ends_with('A') { 'B' } else { 'A' };
    let guessed = url.replace(&token, &format!("{}{last}", &token[..token.len() - 1]));
    let other = CallUrls::new(
        &config.public_url,
        &config.keys,
        ringing.app.tenant.trunk,
        CallId::new(),
    );

    for url in [guessed, other.status.to_string()] {
        let answer = ringing
            .post(&url, &form, Some(&sign(AUTH_TOKEN, &url, &form)))
            .await;
        assert_eq!(answer.status.as_u16(), 404, "{}", answer.text);
    }

    assert_eq!(ringing.count_events().await, before);
    assert_eq!(ringing.call().await["status"], "ringing");
    ringing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicate_callbacks_are_one_event() {
    let ringing = RingingCall::start().await;
    let before = ringing.count_events().await;
    let form = ringing.form(5, "in-progress");
    let answers = futures::future::join_all((0..5).map(|_| ringing.send_signed(&form))).await;
    assert!(answers.iter().all(|answer| answer.status.as_u16() == 204));
    assert_eq!(ringing.count_events().await, before + 1);
    ringing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_no_answer_does_not_reopen_a_completed_call() {
    let ringing = RingingCall::start().await;
    ringing.send_signed(&ringing.form(6, "completed")).await;
    ringing.wait_until_applied().await;

    let call = ringing.call().await;
    assert_eq!(call["outcome"], "completed");
    assert_eq!(call["duration_seconds"], 7);

    for (sequence, status) in [(7, "no-answer"), (2, "ringing"), (3, "in-progress")] {
        let answer = ringing.send_signed(&ringing.form(sequence, status)).await;
        assert_eq!(answer.status.as_u16(), 204);
    }

    ringing.wait_until_applied().await;
    assert_eq!(ringing.call().await["outcome"], "completed");
    assert_eq!(
        ringing
            .app
            .count("select conflicts::bigint from calls")
            .await,
        1
    );
    ringing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_status_is_stored_and_changes_nothing() {
    let ringing = RingingCall::start().await;
    let answer = ringing.send_signed(&ringing.form(4, "levitating")).await;
    assert_eq!(answer.status.as_u16(), 204);
    ringing.wait_until_applied().await;
    assert_eq!(ringing.call().await["status"], "ringing");
    let kept = "select count(*) from call_events where carrier_status = 'levitating'";
    assert_eq!(ringing.app.count(kept).await, 1);
    ringing.finish().await;
}

/// Row path that a trunk's credentials are sealed to.
fn credentials_row_path(tenant: &Tenant) -> String {
    format!("trunks/{}/{}/credentials", tenant.org, tenant.trunk)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_secrets_of_a_rotation_are_valid_and_a_retired_one_is_not() {
    let ringing = RingingCall::start().await;
    let context = &ringing.app.context;

    // 1. Store two signing secrets beside the account's own.
    let sealed = context
        .config
        .keys
        .seal(
            &credentials_row_path(&ringing.app.tenant),
            json!({"password": AUTH_TOKEN, "signing_secrets": ["old secret", "new secret"]})
                .to_string()
                .as_bytes(),
        )
        .unwrap();
    sqlx::query("update trunks set credentials = $1")
        .bind(sealed)
        .execute(&context.pool)
        .await
        .unwrap();

    // 2. Both of them sign, and the account's own does not.
    let url = ringing.urls.status.to_string();
    let form = ringing.form(4, "ringing");
    let rotated = || async {
        let signed = sign("new secret", &url, &form);
        ringing
            .post(&url, &form, Some(&signed))
            .await
            .status
            .as_u16()
            == 204
    };
    eventually("the new secret takes effect", TEST_TIMEOUT, rotated).await;

    let old = ringing
        .post(&url, &form, Some(&sign("old secret", &url, &form)))
        .await;
    assert_eq!(old.status.as_u16(), 204);
    let retired = ringing
        .post(&url, &form, Some(&sign(AUTH_TOKEN, &url, &form)))
        .await;
    assert_eq!(retired.status.as_u16(), 403);

    // 3. Without signing secrets the account's own signs again.
    let sealed = context
        .config
        .keys
        .seal(
            &credentials_row_path(&ringing.app.tenant),
            json!({"password": AUTH_TOKEN}).to_string().as_bytes(),
        )
        .unwrap();
    sqlx::query("update trunks set credentials = $1")
        .bind(sealed)
        .execute(&context.pool)
        .await
        .unwrap();

    let back = || async {
        ringing
            .send_signed(&ringing.form(4, "ringing"))
            .await
            .status
            .as_u16()
            == 204
    };
    eventually("the account's own secret signs again", TEST_TIMEOUT, back).await;
    ringing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_document_has_the_rows_variables_and_is_idempotent() {
    let ringing = RingingCall::start().await;
    let url = ringing.urls.answer.to_string();
    let form = ringing.form(3, "in-progress");
    let signature = sign(AUTH_TOKEN, &url, &form);

    let first = ringing.post(&url, &form, Some(&signature)).await;
    assert_eq!(first.status.as_u16(), 200);
    assert!(
        first.text.contains("Hello Ada, this is Peal."),
        "{}",
        first.text
    );
    let content_type = first.headers["content-type"].to_str().unwrap();
    assert!(content_type.contains("xml"), "{content_type}");

    let second = ringing.post(&url, &form, Some(&signature)).await;
    assert_eq!(first.text, second.text);
    ringing.wait_until_applied().await;
    assert_eq!(
        ringing.app.count("select count(*) from call_turns").await,
        1
    );
    ringing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_carrier_call_for_one_attempt_is_hung_up() {
    let ringing = RingingCall::start().await;
    let url = ringing.urls.answer.to_string();
    let mut form = ringing.form(3, "in-progress");
    form[0].1 = "CAffffffffffffffffffffffffffffffff".to_owned();
    let heard = ringing
        .post(&url, &form, Some(&sign(AUTH_TOKEN, &url, &form)))
        .await;
    assert_eq!(heard.status.as_u16(), 200);
    assert!(heard.text.contains("<Hangup"), "{}", heard.text);
    assert!(!heard.text.contains("<Say"), "{}", heard.text);
    ringing.wait_until_applied().await;
    assert_eq!(
        ringing
            .app
            .count("select conflicts::bigint from calls")
            .await,
        1
    );
    ringing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_larger_than_any_carrier_sends_is_refused() {
    let ringing = RingingCall::start().await;
    let mut form = ringing.form(5, "completed");
    form.push(("Padding", "x".repeat(100_000)));
    let answer = ringing.send_signed(&form).await;
    assert_eq!(answer.status.as_u16(), 413, "{}", answer.text);
    ringing.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bare_callback_url_finds_the_call_by_its_carrier_id() {
    let ringing = RingingCall::start().await;
    let url = format!("{}/api/v1/batch-call/status-callback", ringing.app.url);
    let form = ringing.form(6, "busy");
    let forged = ringing.post(&url, &form, Some("forged")).await;
    assert_eq!(forged.status.as_u16(), 403, "{}", forged.text);

    let mut strange = form.clone();
    for (name, value) in &mut strange {
        if *name == "CallSid" {
            *value = format!("CA{}", "0".repeat(32));
        }
    }

    let events = "select count(*) from call_events";
    let before = ringing.app.count(events).await;
    let unknown = ringing
        .post(&url, &strange, Some(&sign(AUTH_TOKEN, &url, &strange)))
        .await;
    assert_eq!(unknown.status.as_u16(), 202, "{}", unknown.text);
    let forged = ringing.post(&url, &strange, Some("forged")).await;
    assert_eq!(forged.status.as_u16(), 403, "{}", forged.text);
    assert_eq!(ringing.app.count(events).await, before);

    let good = ringing
        .post(&url, &form, Some(&sign(AUTH_TOKEN, &url, &form)))
        .await;
    assert_eq!(good.status.as_u16(), 204, "{}", good.text);
    ringing.wait_until_applied().await;
    assert_eq!(ringing.call().await["outcome"], "busy");
    ringing.finish().await;
}
