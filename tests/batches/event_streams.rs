//! Event streams end when their viewer loses the access they began with.

use std::time::Duration;

use peal_api::cli::admin::AdminRole;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::auth::login::{SessionUser, without_workers};
use crate::harness::actors;
use crate::harness::app::{App, TEST_TIMEOUT, send_request};

const KEYS: &str = "/api/v1/api-keys";

async fn open_stream(request: RequestBuilder) -> Response {
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status().as_u16(), 200);
    response
}

/// Text of a stream until it ends; without a change it would go on for an hour.
async fn read_to_end(stream: Response) -> String {
    let text = timeout(TEST_TIMEOUT, stream.text()).await;
    text.expect("the stream ends").expect("a text")
}

/// Fails unless a stream's last event is `unauthorized`.
#[track_caller]
fn assert_ends_unauthorized(stream: &str) {
    let last = stream.trim_end().rsplit("\n\n").next().expect("an event");
    assert!(last.contains("event: unauthorized"), "{stream}");
    let data = last.split("data: ").nth(1).expect("data");
    let event: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(event["code"], "unauthorized");
}

/// Creates a batch owned by a person, and returns the path of its event stream.
async fn create_event_stream_path(app: &App, person: &SessionUser<'_>) -> String {
    let batch = json!({
        "caller_phone_id": app.tenant.phone, "agent_id": app.tenant.agent, "batch_name": "Theirs",
        "user_id": person.id,
    });
    let admin = app
        .anonymous(Method::POST, "/api/v1/batch-call/create")
        .bearer_auth(actors::jwt_for_user(admin_id(app).await));
    let made = send_request(admin.json(&batch)).await.expect(201);
    let batch = made["data"]["id"].as_str().expect("an id").to_owned();
    format!("/api/v1/batch-call/{batch}/events")
}

async fn admin_id(app: &App) -> peal_shared::platform::ids::UserId {
    sqlx::query_scalar("select id from users where email = 'acme@example.com'")
        .fetch_one(&app.context.pool)
        .await
        .expect("a user")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_viewer_loses_access() {
    let app = without_workers().await;

    let person = async |email, role| SessionUser::new(&app, email, "Acme", role).await;
    let admin = person("ada@example.com", AdminRole::OrgAdmin).await;
    let bob = person("bob@example.com", AdminRole::User).await;
    let carol = person("carol@example.com", AdminRole::User).await;
    let dave = person("dave@example.com", AdminRole::OrgAdmin).await;
    let erin = person("erin@example.com", AdminRole::User).await;
    let (bobs, carols) = (
        create_event_stream_path(&app, &bob).await,
        create_event_stream_path(&app, &carol).await,
    );
    let erins = create_event_stream_path(&app, &erin).await;

    let watch = |path: &str, token: &str| app.anonymous(Method::GET, path).bearer_auth(token);
    let made = bob.send(Method::POST, KEYS, json!({})).await.expect(200);
    let key = made["api_key"]["api_key"].as_str().expect("a key");
    let by_key = app.anonymous(Method::GET, &bobs).header("x-api-key", key);

    // A viewer whose access does not change keeps its stream.
    let mut lasting = open_stream(watch(&bobs, &admin.token)).await;
    let by_key = open_stream(by_key).await;

    let path = format!("{KEYS}/{}", made["api_key"]["id"].as_str().expect("an id"));
    bob.delete(&path).await.expect(200);
    assert_ends_unauthorized(&read_to_end(by_key).await);

    let by_session = open_stream(watch(&bobs, &bob.token)).await;
    bob.send(Method::POST, "/api/v1/auth/logout", json!({}))
        .await
        .expect(200);
    assert_ends_unauthorized(&read_to_end(by_session).await);

    let members = format!("/api/v1/organizations/{}/users", app.tenant.org);
    let of_carol = open_stream(watch(&carols, &carol.token)).await;
    let removed = format!("{members}/{}", carol.id);
    admin.delete(&removed).await.expect(200);
    assert_ends_unauthorized(&read_to_end(of_carol).await);

    let of_dave = open_stream(watch(&bobs, &dave.token)).await;
    let role = format!("{members}/{}/org-role", dave.id);
    admin
        .send(Method::PATCH, &role, json!({"role": "user"}))
        .await
        .expect(200);
    assert_ends_unauthorized(&read_to_end(of_dave).await);

    let of_erin = open_stream(watch(&erins, &erin.token)).await;
    let flags = format!("/api/v1/feature-flags/{}", erin.id);
    admin
        .send(Method::PUT, &flags, json!({"outbound": false}))
        .await
        .expect(200);
    assert_ends_unauthorized(&read_to_end(of_erin).await);

    let first = lasting.chunk().await.expect("a chunk").expect("an event");
    assert!(first.starts_with(b"event: progress"));
    // Keep-alive comments are not events.
    let event = async {
        loop {
            let piece = lasting.chunk().await.expect("a chunk");
            let piece = piece.expect("it goes on");
            if !piece.starts_with(b":") {
                return piece;
            }
        }
    };
    let more = timeout(Duration::from_secs(1), event).await;
    assert!(
        more.is_err(),
        "the stream must stay open without events: {more:?}"
    );
    drop(lasting);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_an_external_token_expires() {
    let app = without_workers().await;
    let batch = app.create_batch(json!({})).await;
    let path = format!("/api/v1/batch-call/{batch}/events");
    let token = actors::jwt_for_user(admin_id(&app).await);
    let stream = open_stream(app.anonymous(Method::GET, &path).bearer_auth(token)).await;
    app.context.clock.shift(chrono::TimeDelta::hours(2));
    assert_ends_unauthorized(&read_to_end(stream).await);
    app.finish().await;
}
