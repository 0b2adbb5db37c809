//! The built-in login: a password opens a session, and a session ends on every replica at once.

use peal_api::cli::admin::{AdminRole, CreateUser, create_user};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::app::{ApiClient, ApiResponse, App, AppOptions, send_request};

pub const PASSWORD: &str = "correct horse battery";
const LOGIN_PATH: &str = "/api/v1/auth/login";
const MY_BATCHES_PATH: &str = "/api/v1/batch-call/me";

pub async fn without_workers() -> App {
    App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await
}

/// Creates a user with [`PASSWORD`] and returns its id.
pub async fn create_user_with_password(
    app: &App,
    email: &str,
    org: &str,
    role: AdminRole,
) -> String {
    let new_user = CreateUser {
        email: email.to_owned(),
        org: org.to_owned(),
        role,
        password: Some(PASSWORD.into()),
    };
    let made = create_user(&app.context, &new_user).await.expect("a user");
    made.user_id.to_string()
}

pub async fn login(client: &ApiClient, email: &str, password: &str) -> ApiResponse {
    let body = json!({"email": email, "password": password});
    send_request(client.anonymous(Method::POST, LOGIN_PATH).json(&body)).await
}

/// Logs in and returns a session token.
pub async fn open_session(client: &ApiClient, email: &str) -> String {
    let opened = login(client, email, PASSWORD).await.expect(200);
    opened["access_token"].as_str().expect("a token").to_owned()
}

/// Sends a request with a session token.
pub async fn send_with_token(
    client: &ApiClient,
    token: &str,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> ApiResponse {
    let mut request = client.anonymous(method, path).bearer_auth(token);
    if let Some(body) = body {
        request = request.json(&body);
    }
    send_request(request).await
}

/// A user with a session.
pub struct SessionUser<'a> {
    pub app: &'a App,
    pub id: String,
    pub token: String,
}

impl<'a> SessionUser<'a> {
    pub async fn new(app: &'a App, email: &str, org: &str, role: AdminRole) -> Self {
        let id = create_user_with_password(app, email, org, role).await;
        let token = open_session(app, email).await;
        Self { app, id, token }
    }

    pub async fn send(&self, method: Method, path: &str, body: Value) -> ApiResponse {
        send_with_token(self.app, &self.token, method, path, Some(body)).await
    }

    pub async fn get(&self, path: &str) -> ApiResponse {
        send_with_token(self.app, &self.token, Method::GET, path, None).await
    }

    pub async fn delete(&self, path: &str) -> ApiResponse {
        send_with_token(self.app, &self.token, Method::DELETE, path, None).await
    }
}

async fn batches_status(client: &ApiClient, token: &str) -> u16 {
    let response = send_with_token(client, token, Method::GET, MY_BATCHES_PATH, None).await;
    response.status.as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_opened_with_a_password_and_ends_on_every_replica() {
    let mut app = without_workers().await;
    let (other, _) = app.start_api(|_| {}).await;
    let user =
        create_user_with_password(&app, "Ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let opened = login(&app, " ada@EXAMPLE.com ", PASSWORD).await.expect(200);
    assert_eq!(opened["token_type"], "bearer");
    assert_eq!(opened["expires_in"], 12 * 3600);
    assert_eq!(opened["user"]["id"], user);
    assert_eq!(opened["user"]["role"], "org_admin");
    let token = opened["access_token"].as_str().unwrap().to_owned();

    let second = open_session(&other, "ada@example.com").await;
    assert_eq!(batches_status(&app, &token).await, 200);
    assert_eq!(batches_status(&other, &token).await, 200);

    send_with_token(&app, &token, Method::POST, "/api/v1/auth/logout", None)
        .await
        .expect(200);
    assert_eq!(batches_status(&app, &token).await, 401);
    assert_eq!(batches_status(&other, &token).await, 401);
    assert_eq!(batches_status(&app, &second).await, 200);

    app.context.clock.shift(chrono::TimeDelta::hours(13));
    assert_eq!(batches_status(&app, &second).await, 401, "sessions expire");

    let log = "select count(*) from audit_log where action in ('session.open', 'session.end')";
    assert_eq!(app.count(log).await, 3);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_and_unknown_addresses_get_the_same_error_and_are_rate_limited() {
    let mut app = without_workers().await;
    create_user_with_password(&app, "ada@example.com", "Acme", AdminRole::User).await;
    let wrong = login(&app, "ada@example.com", "wrong horse battery").await;
    let unknown = login(&app, "nobody@example.com", "wrong horse battery").await;

    // The harness's user has no password.
    let without_password = login(&app, "acme@example.com", "wrong horse battery").await;
    for response in [&wrong, &unknown, &without_password] {
        let body = response.expect(401);
        assert_eq!(body["code"], "wrong_credentials");
        assert_eq!(body["detail"], wrong.json()["detail"]);
    }

    let refused = loop {
        let guess = login(&app, "ada@example.com", "wrong horse battery").await;
        if guess.status != 401 {
            break guess;
        }
    };
    assert_eq!(refused.expect(429)["code"], "too_many_requests");

    let wait: u32 = refused.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=30).contains(&wait), "{wait}");

    // The correct password is refused as well.
    login(&app, "ada@example.com", PASSWORD).await.expect(429);

    // On another replica a client guesses many e-mail addresses: its IP address is limited.
    let (other, _) = app.start_api(|_| {}).await;
    let mut guesses = 0;
    loop {
        let guess = login(&other, &format!("n{guesses}@example.com"), "guess").await;
        guesses += 1;
        match guess.status.as_u16() {
            401 => assert!(guesses < 100, "the client is not limited"),
            429 => break,
            other => panic!("{other}"),
        }
    }

    assert!(guesses > 20, "{guesses}");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_ends_the_other_sessions() {
    let app = without_workers().await;
    create_user_with_password(&app, "ada@example.com", "Acme", AdminRole::User).await;
    let (here, there) = (
        open_session(&app, "ada@example.com").await,
        open_session(&app, "ada@example.com").await,
    );
    let change = async |old: &str, new: &str| {
        let body = json!({"current_password": old, "new_password": new});
        let path = "/api/v1/auth/password";
        send_with_token(&app, &here, Method::POST, path, Some(body)).await
    };
    let weak = change(PASSWORD, "short").await.expect(422);
    assert_eq!(weak["errors"][0]["type"], "weak_password");

    let wrong = change("not my password", "several good words").await;
    assert_eq!(wrong.expect(400)["code"], "wrong_password");

    change(PASSWORD, "several good words").await.expect(200);
    assert_eq!(batches_status(&app, &here).await, 200);
    assert_eq!(batches_status(&app, &there).await, 401);

    login(&app, "ada@example.com", PASSWORD).await.expect(401);
    login(&app, "ada@example.com", "several good words")
        .await
        .expect(200);
    let hashes =
        "select count(*) from passwords where hash like '%good%' or hash not like '$argon2id$%'";
    assert_eq!(app.count(hashes).await, 0);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_have_no_session_and_responses_with_tokens_are_not_stored() {
    let app = without_workers().await;
    create_user_with_password(&app, "ada@example.com", "Acme", AdminRole::User).await;
    let refused = app.post("/api/v1/auth/logout", json!({})).await.expect(403);
    assert!(
        refused["detail"]
            .as_str()
            .unwrap()
            .starts_with("Forbidden: ")
    );
    let body = json!({"current_password": PASSWORD, "new_password": "several good words"});
    app.post("/api/v1/auth/password", body).await.expect(403);

    let body = json!({"email": "ada@example.com", "password": PASSWORD});
    let request = app.anonymous(Method::POST, LOGIN_PATH).json(&body);
    send_request(request.header("Idempotency-Key", "k-1"))
        .await
        .expect(200);
    assert_eq!(app.count("select count(*) from idempotency_keys").await, 0);
    for wrong in [
        json!({}),
        json!({"email": "ada@example.com", "password": "x", "role": "user"}),
    ] {
        send_request(app.anonymous(Method::POST, LOGIN_PATH).json(&wrong))
            .await
            .expect(422);
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_creates_users_and_a_new_role_ends_their_sessions() {
    let app = without_workers().await;
    let user =
        create_user_with_password(&app, "root@example.com", "Platform", AdminRole::User).await;
    let token = open_session(&app, "root@example.com").await;
    let again =
        create_user_with_password(&app, "root@example.com", "Platform", AdminRole::SuperAdmin)
            .await;
    assert_eq!(user, again);
    assert_eq!(batches_status(&app, &token).await, 401);
    let opened = login(&app, "root@example.com", PASSWORD).await.expect(200);
    assert_eq!(opened["user"]["role"], "super_admin");
    for (email, org, password) in [
        ("root@example.com", "Acme", PASSWORD),
        ("new@example.com", "Acme", "short"),
    ] {
        let new_user = CreateUser {
            email: email.to_owned(),
            org: org.to_owned(),
            role: AdminRole::User,
            password: Some(password.into()),
        };
        assert!(
            create_user(&app.context, &new_user).await.is_err(),
            "{email}"
        );
    }
    app.finish().await;
}
