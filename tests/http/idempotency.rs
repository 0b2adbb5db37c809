//! Requests that call an external server before they change anything: two concurrent ones under
//! one `Idempotency-Key` call it once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{Json, Router};
use peal_shared::access::{Credential, Principal, Role};
use peal_shared::idempotency::KeyHold;
use peal_shared::platform::ids::UserId;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::auth::login::without_workers;
use crate::harness::app::{App, TEST_TIMEOUT, Tenant, send_request};
use crate::harness::eventually;
use crate::harness::members::{create_member, send_as};

const TOOLS: &str = "/api/v1/tool-endpoint-defs";
const SERVERS: &str = "/api/v1/tools-mcp-server-defs";
const TRUNKS: &str = "/api/v1/trunks";

/// A server that counts requests and answers none until it is opened.
struct SlowServer {
    url: String,
    requests: Arc<AtomicUsize>,
    open: watch::Sender<bool>,
}

impl SlowServer {
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
        Self {
            url,
            requests: heard,
            open,
        }
    }

    fn request_count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Sends the request twice at once and once more after that. Returns the response.
async fn send_three_times(
    app: &App,
    slow: &SlowServer,
    who: &Tenant,
    path: &str,
    body: &Value,
) -> Value {
    let before = slow.request_count();
    slow.open.send_replace(false);

    let send = || {
        let request = app.request_as(who, Method::POST, path);
        send_request(request.header("Idempotency-Key", path).json(body))
    };

    let first = send();
    let others = async {
        eventually("the server is called", TEST_TIMEOUT, || async {
            slow.request_count() == before + 1
        })
        .await;
        let second = send().await.expect(409);
        assert_eq!(second["code"], "idempotency_key_in_use", "{path}");
        assert_eq!(
            slow.request_count(),
            before + 1,
            "{path} calls the server twice"
        );
        slow.open.send_replace(true);
    };

    let (first, ()) = tokio::join!(first, others);
    assert!(first.status.is_success(), "{path}: {}", first.text);

    let asked = slow.request_count();
    let third = send().await;
    assert_eq!(third.headers["idempotent-replayed"], "true", "{path}");
    assert_eq!(third.status, first.status);
    assert_eq!(
        slow.request_count(),
        asked,
        "{path}, sent again, calls the server again"
    );
    assert_eq!(third.json(), first.json());

    first.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_under_one_key_call_the_external_server_once() {
    let app = without_workers().await;
    let root = create_member(&app, "root@example.com", Role::SuperAdmin).await;
    let slow = SlowServer::start().await;

    let tool = json!({"name": "find", "description": "Finds", "url": slow.url});
    let tool = app.post(TOOLS, tool).await.expect(201);
    let test = format!("{TOOLS}/{}/test", tool["id"].as_str().expect("an id"));
    send_three_times(&app, &slow, &app.tenant, &test, &json!({})).await;

    let server_url = format!("{}/mcp", slow.url);
    let server = json!({"name": "Shop", "server_url": server_url});
    send_three_times(&app, &slow, &app.tenant, SERVERS, &server).await;
    let fetch = format!("{SERVERS}/fetch_mcp_tools");
    let at = json!({ "server_url": server_url });
    send_three_times(&app, &slow, &app.tenant, &fetch, &at).await;

    let trunk = json!({
        "name": "Second", "account_id": "ACbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "password": "a secret",
        "cps": 1, "max_concurrent": 10, "api_base_url": slow.url,
    });
    let trunk = send_three_times(&app, &slow, &root, TRUNKS, &trunk).await;
    let trunk = format!("{TRUNKS}/{}", trunk["id"].as_str().expect("an id"));
    send_three_times(&app, &slow, &root, &format!("{trunk}/check"), &Value::Null).await;

    let secret = json!({"password": "another secret"});
    send_three_times(&app, &slow, &root, &format!("{trunk}/rotate"), &secret).await;

    let made = "select (select count(*) from mcp_servers) + (select count(*) from trunks)";
    assert_eq!(app.count(made).await, 3, "each was made once");
    assert_eq!(app.count("select count(*) from idempotency_holds").await, 0);
    // A key is held only within its own organisation, and is free once it is answered.
    let other = app.create_tenant("Other").await;
    let theirs = app.request_as(&other, Method::POST, &fetch);
    let theirs = theirs.header("Idempotency-Key", &fetch).json(&at);
    send_request(theirs).await.expect(200);
    let list = send_as(&app, &root, Method::GET, TRUNKS, Value::Null).await;
    assert_eq!(list.expect(200).as_array().map(Vec::len), Some(3));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_panics_releases_its_key() {
    let app = without_workers().await;
    let principal = Principal {
        user: UserId::new(),
        org: app.tenant.org,
        role: Role::User,
        email: None,
        credential: Credential::Session,
    };

    let pool = app.context.pool.clone();
    let take = || KeyHold::acquire_unscoped(&pool, &principal, "k-1");

    let hold = take().await.expect("a hold");
    assert!(take().await.is_err(), "the key is held");
    let work = async { panic!("as a bug would") };
    let ended = tokio::spawn(hold.run::<()>(work)).await;
    assert!(ended.expect_err("a panic").is_panic());

    let again = take().await.expect("the key is free");
    again.run(async {}).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_completed_after_its_client_has_disconnected() {
    let app = without_workers().await;
    let slow = SlowServer::start().await;
    let tool = json!({"name": "find", "description": "Finds", "url": slow.url});
    let tool = app.post(TOOLS, tool).await.expect(201);
    let test = format!("{TOOLS}/{}/test", tool["id"].as_str().expect("an id"));

    slow.open.send_replace(false);
    let send = || {
        let request = app.request(Method::POST, &test).json(&json!({}));
        send_request(request.header("Idempotency-Key", "k-1"))
    };

    tokio::select! {
        _ = send() => panic!("the server is closed"),
        () = eventually("the server is called", TEST_TIMEOUT, || async { slow.request_count() == 1 }) => {}
    }
    slow.open.send_replace(true);

    // The key is released a moment after the audit row is written.
    let written = "select (select count(*) from audit_log where action = 'tool.test')
                        - (select count(*) from idempotency_holds)";
    eventually("the test is recorded", TEST_TIMEOUT, || async {
        app.count(written).await == 1
    })
    .await;

    let again = send().await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    again.expect(200);
    assert_eq!(slow.request_count(), 1);
    app.finish().await;
}
