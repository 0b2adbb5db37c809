//! Requests that call an external server before they change anything: two concurrent ones under
//! one `Idempotency-Key` call it once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{Json, Router};
use peal_shared::access::{Credential, Principal, Role};
use peal_shared::idempotency::Hold;
use peal_shared::ids::UserId;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::harness::app::{App, PATIENCE, Tenant, answer};
use crate::harness::eventually;
use crate::harness::members::{ask, member};
use crate::sign_in::quiet;

const TOOLS: &str = "/api/v1/tool-endpoint-defs";
const SERVERS: &str = "/api/v1/tools-mcp-server-defs";
const TRUNKS: &str = "/api/v1/trunks";

/// A server that counts requests and answers none until it is opened.
struct Slow {
    url: String,
    heard: Arc<AtomicUsize>,
    open: watch::Sender<bool>,
}

impl Slow {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.2:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let (open, opened) = watch::channel(true);
        let heard = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&heard);
        let app = Router::new().fallback(async move || {
            count.fetch_add(1, Ordering::SeqCst);
            let mut opened = opened.clone();
            let _is_open = opened.wait_for(|open| *open).await;
            Json(json!({"status": "active"}))
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, heard, open }
    }

    fn heard(&self) -> usize {
        self.heard.load(Ordering::SeqCst)
    }
}

/// Sends the request twice at once and once more after that. Returns the response.
async fn thrice(app: &App, slow: &Slow, who: &Tenant, path: &str, body: &Value) -> Value {
    let before = slow.heard();
    slow.open.send_replace(false);

    let send = || {
        let request = app.request_as(who, Method::POST, path);
        answer(request.header("Idempotency-Key", path).json(body))
    };

    let first = send();
    let others = async {
        eventually("the server is called", PATIENCE, || async {
            slow.heard() == before + 1
        })
        .await;
        let second = send().await.expect(409);
        assert_eq!(second["code"], "idempotency_key_in_use", "{path}");
        assert_eq!(slow.heard(), before + 1, "{path} calls the server twice");
        slow.open.send_replace(true);
    };

    let (first, ()) = tokio::join!(first, others);
    assert!(first.status.is_success(), "{path}: {}", first.text);

    let asked = slow.heard();
    let third = send().await;
    assert_eq!(third.headers["idempotent-replayed"], "true", "{path}");
    assert_eq!(third.status, first.status);
    assert_eq!(
        slow.heard(),
        asked,
        "{path}, sent again, calls the server again"
    );
    assert_eq!(third.json(), first.json());

    first.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_under_one_key_ask_the_others_server_once() {
    let app = quiet().await;
    let root = member(&app, "root@example.com", Role::SuperAdmin).await;
    let slow = Slow::start().await;

    let tool = json!({"name": "find", "description": "Finds", "url": slow.url});
    let tool = app.post(TOOLS, tool).await.expect(201);
    let test = format!("{TOOLS}/{}/test", tool["id"].as_str().expect("an id"));
    thrice(&app, &slow, &app.tenant, &test, &json!({})).await;

    let server_url = format!("{}/mcp", slow.url);
    let server = json!({"name": "Shop", "server_url": server_url});
    thrice(&app, &slow, &app.tenant, SERVERS, &server).await;
    let fetch = format!("{SERVERS}/fetch_mcp_tools");
    let at = json!({ "server_url": server_url });
    thrice(&app, &slow, &app.tenant, &fetch, &at).await;

    let trunk = json!({
        "name": "Second", "account_id": "ACbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "password": "a secret",
        "cps": 1, "max_concurrent": 10, "api_base_url": slow.url,
    });
    let trunk = thrice(&app, &slow, &root, TRUNKS, &trunk).await;
    let trunk = format!("{TRUNKS}/{}", trunk["id"].as_str().expect("an id"));
    thrice(&app, &slow, &root, &format!("{trunk}/check"), &Value::Null).await;

    let secret = json!({"password": "another secret"});
    thrice(&app, &slow, &root, &format!("{trunk}/rotate"), &secret).await;

    let made = "select (select count(*) from mcp_servers) + (select count(*) from trunks)";
    assert_eq!(app.count(made).await, 3, "each was made once");
    assert_eq!(app.count("select count(*) from idempotency_holds").await, 0);
    // A key is held only within its own organisation, and is free once it is answered.
    let other = app.another_tenant("Other").await;
    let theirs = app.request_as(&other, Method::POST, &fetch);
    let theirs = theirs.header("Idempotency-Key", &fetch).json(&at);
    answer(theirs).await.expect(200);
    let list = ask(&app, &root, Method::GET, TRUNKS, Value::Null).await;
    assert_eq!(list.expect(200).as_array().map(Vec::len), Some(3));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_panics_lets_go_of_its_key() {
    let app = quiet().await;
    let principal = Principal {
        user: UserId::new(),
        org: app.tenant.org,
        role: Role::User,
        email: None,
        credential: Credential::Session,
    };

    let pool = app.context.pool.clone();
    let take = || Hold::take_unscoped(&pool, &principal, "k-1");

    let hold = take().await.expect("a hold");
    assert!(take().await.is_err(), "the key is held");
    let work = async { panic!("as a bug would") };
    let ended = tokio::spawn(hold.during::<()>(work)).await;
    assert!(ended.expect_err("a panic").is_panic());

    let again = take().await.expect("the key is free");
    again.during(async {}).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_is_written_down_though_its_client_has_gone() {
    let app = quiet().await;
    let slow = Slow::start().await;
    let tool = json!({"name": "find", "description": "Finds", "url": slow.url});
    let tool = app.post(TOOLS, tool).await.expect(201);
    let test = format!("{TOOLS}/{}/test", tool["id"].as_str().expect("an id"));

    slow.open.send_replace(false);
    let send = || {
        let request = app.request(Method::POST, &test).json(&json!({}));
        answer(request.header("Idempotency-Key", "k-1"))
    };

    tokio::select! {
        _ = send() => panic!("the server is closed"),
        () = eventually("the server is called", PATIENCE, || async { slow.heard() == 1 }) => {}
    }
    slow.open.send_replace(true);

    // The key is released a moment after the audit row is written.
    let written = "select (select count(*) from audit_log where action = 'tool.test')
                        - (select count(*) from idempotency_holds)";
    eventually("the test is recorded", PATIENCE, || async {
        app.count(written).await == 1
    })
    .await;

    let again = send().await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    again.expect(200);
    assert_eq!(slow.heard(), 1);
    app.finish().await;
}
