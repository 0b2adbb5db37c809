//! Event streams end when their viewer loses the access they began with.

use std::time::Duration;

use peal_api::admin::AdminRole;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::harness::app::{App, PATIENCE, answer};
use crate::harness::cast;
use crate::sign_in::{Person, quiet};

const KEYS: &str = "/api/v1/api-keys";

async fn opened(request: RequestBuilder) -> Response {
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status().as_u16(), 200);
    response
}

/// Text of a stream until it ends; without a change it would go on for an hour.
async fn rest(stream: Response) -> String {
    let text = timeout(PATIENCE, stream.text()).await;
    text.expect("the stream ends").expect("a text")
}

/// Fails unless a stream's last event is `unauthorized`.
#[track_caller]
fn ends_unauthorized(stream: &str) {
    let last = stream.trim_end().rsplit("\n\n").next().expect("an event");
    assert!(last.contains("event: unauthorized"), "{stream}");
    let data = last.split("data: ").nth(1).expect("data");
    let event: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(event["code"], "unauthorized");
}

/// Creates a batch owned by a person, and returns the path of its event stream.
async fn batch_of(app: &App, person: &Person<'_>) -> String {
    let batch = json!({
        "caller_phone_id": app.tenant.phone, "agent_id": app.tenant.agent, "batch_name": "Theirs",
        "user_id": person.id,
    });
    let admin = app
        .anonymous(Method::POST, "/api/v1/batch-call/create")
        .bearer_auth(cast::session(admin_of(app).await));
    let made = answer(admin.json(&batch)).await.expect(201);
    let batch = made["data"]["id"].as_str().expect("an id").to_owned();
    format!("/api/v1/batch-call/{batch}/events")
}

async fn admin_of(app: &App) -> peal_shared::ids::UserId {
    sqlx::query_scalar("select id from users where email = 'acme@example.com'")
        .fetch_one(&app.context.pool)
        .await
        .expect("a user")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_key_session_membership_role_or_feature() {
    let app = quiet().await;

    let person = async |email, role| Person::new(&app, email, "Acme", role).await;
    let admin = person("ada@example.com", AdminRole::OrgAdmin).await;
    let bob = person("bob@example.com", AdminRole::User).await;
    let carol = person("carol@example.com", AdminRole::User).await;
    let dave = person("dave@example.com", AdminRole::OrgAdmin).await;
    let erin = person("erin@example.com", AdminRole::User).await;
    let (bobs, carols) = (batch_of(&app, &bob).await, batch_of(&app, &carol).await);
    let erins = batch_of(&app, &erin).await;

    let watch = |path: &str, token: &str| app.anonymous(Method::GET, path).bearer_auth(token);
    let made = bob.send(Method::POST, KEYS, json!({})).await.expect(200);
    let key = made["api_key"]["api_key"].as_str().expect("a key");
    let by_key = app.anonymous(Method::GET, &bobs).header("x-api-key", key);

    // A viewer whose access does not change keeps its stream.
    let mut lasting = opened(watch(&bobs, &admin.token)).await;
    let by_key = opened(by_key).await;

    let path = format!("{KEYS}/{}", made["api_key"]["id"].as_str().expect("an id"));
    bob.delete(&path).await.expect(200);
    ends_unauthorized(&rest(by_key).await);

    let by_session = opened(watch(&bobs, &bob.token)).await;
    bob.send(Method::POST, "/api/v1/auth/logout", json!({}))
        .await
        .expect(200);
    ends_unauthorized(&rest(by_session).await);

    let members = format!("/api/v1/organizations/{}/users", app.tenant.org);
    let of_carol = opened(watch(&carols, &carol.token)).await;
    let removed = format!("{members}/{}", carol.id);
    admin.delete(&removed).await.expect(200);
    ends_unauthorized(&rest(of_carol).await);

    let of_dave = opened(watch(&bobs, &dave.token)).await;
    let role = format!("{members}/{}/org-role", dave.id);
    admin
        .send(Method::PATCH, &role, json!({"role": "user"}))
        .await
        .expect(200);
    ends_unauthorized(&rest(of_dave).await);

    let of_erin = opened(watch(&erins, &erin.token)).await;
    let flags = format!("/api/v1/feature-flags/{}", erin.id);
    admin
        .send(Method::PUT, &flags, json!({"outbound": false}))
        .await
        .expect(200);
    ends_unauthorized(&rest(of_erin).await);

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
async fn a_stream_ends_with_the_token_of_another_issuer() {
    let app = quiet().await;
    let batch = app.create_batch(json!({})).await;
    let path = format!("/api/v1/batch-call/{batch}/events");
    let token = cast::session(admin_of(&app).await);
    let stream = opened(app.anonymous(Method::GET, &path).bearer_auth(token)).await;
    app.context.clock.shift(chrono::TimeDelta::hours(2));
    ends_unauthorized(&rest(stream).await);
    app.finish().await;
}
