//! CORS: the origins that may use the API from a browser, and security headers of every response.

use std::collections::BTreeSet;

use peal_shared::config::{OriginSettings, Settings};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder};
use serde_json::json;

use crate::harness::app::{Answer, App, Options, answer};
use crate::harness::document::Document;
use crate::sign_in::quiet;

const DASHBOARD: &str = "https://app.example.com";
const STRANGER: &str = "https://evil.example.net";
const CARRIERS: &str = "Carrier callbacks";

fn with_a_dashboard(settings: &mut Settings) {
    settings.origins = OriginSettings {
        cors_origins: Some(format!("{DASHBOARD},http://localhost:5173")),
    };
    // One failed authentication limits the address.
    settings.limits.limit_refusals_per_min = Some("1".to_owned());
}

async fn with_pages() -> App {
    App::with(Options {
        workers: 0,
        settings: with_a_dashboard,
        ..Options::default()
    })
    .await
}

fn said(headers: &HeaderMap, name: &str) -> String {
    let values = headers.get_all(name).iter();
    let values = values.map(|value| value.to_str().expect("text").to_lowercase());
    values.collect::<Vec<_>>().join(",")
}

/// Items of a list header.
fn words(headers: &HeaderMap, name: &str) -> BTreeSet<String> {
    let text = said(headers, name);
    text.split(',').map(|word| word.trim().to_owned()).collect()
}

fn is_silent(headers: &HeaderMap) -> bool {
    let mut names = headers.keys();
    names.all(|name| !name.as_str().starts_with("access-control-"))
}

/// A browser's preflight request.
fn preflight(app: &App, path: &str, method: &str, origin: &str) -> RequestBuilder {
    app.anonymous(Method::OPTIONS, path)
        .header("Origin", origin)
        .header("Access-Control-Request-Method", method)
        .header(
            "Access-Control-Request-Headers",
            "authorization,content-type",
        )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_page_is_let_in_on_every_route_but_those_of_carriers() {
    let app = with_pages().await;
    let document = Document::of_this_build();
    let (mut wrong, mut carriers) = (Vec::new(), 0);

    for operation in document.operations() {
        let path = operation.path.replace(['{', '}'], "");
        let method = operation.method.as_str();
        let preflighted = answer(preflight(&app, &path, method, DASHBOARD)).await;

        let allowed = said(&preflighted.headers, "access-control-allow-origin");
        let right = match operation.told["tags"][0] == CARRIERS {
            true => {
                carriers += 1;
                is_silent(&preflighted.headers)
            }
            false => {
                let methods = words(&preflighted.headers, "access-control-allow-methods");
                preflighted.status == 200
                    && allowed == DASHBOARD
                    && methods.contains(&method.to_lowercase())
            }
        };

        if !right {
            let name = operation.name();
            wrong.push(format!(
                "{name}: {} {:?}",
                preflighted.status, preflighted.headers
            ));
        }
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(carriers >= 4, "{carriers} routes of carriers");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_is_told_what_a_page_may_send_and_read() {
    let app = with_pages().await;
    let preflighted = answer(preflight(&app, "/api/v1/agents", "POST", DASHBOARD)).await;
    let headers = words(&preflighted.headers, "access-control-allow-headers");
    for name in [
        "authorization",
        "x-api-key",
        "content-type",
        "idempotency-key",
        "last-event-id",
    ] {
        assert!(headers.contains(name), "{name} is not in {headers:?}");
    }

    assert_eq!(said(&preflighted.headers, "access-control-max-age"), "3600");
    assert!(words(&preflighted.headers, "vary").contains("origin"));
    // No cookies: pages send credentials in headers.
    assert!(
        !preflighted
            .headers
            .contains_key("access-control-allow-credentials")
    );

    let read = |answer: &Answer| {
        assert_eq!(
            said(&answer.headers, "access-control-allow-origin"),
            DASHBOARD,
            "{}",
            answer.text
        );
        words(&answer.headers, "access-control-expose-headers")
    };
    let get = |path: &str| app.request(Method::GET, path).header("Origin", DASHBOARD);

    let exposed = read(&answer(get("/api/v1/agents")).await);
    for name in [
        "x-request-id",
        "x-truncated",
        "retry-after",
        "ratelimit-limit",
        "ratelimit-remaining",
        "ratelimit-reset",
        "idempotent-replayed",
    ] {
        assert!(exposed.contains(name), "{name} is not in {exposed:?}");
    }

    // Pages can read error responses too: 422, 401, 429, 404.
    let refused = answer(get("/api/v1/agents?page=0")).await;
    refused.expect(422);
    read(&refused);

    let anonymous = || {
        let request = app.anonymous(Method::GET, "/api/v1/agents");
        answer(request.header("Origin", DASHBOARD))
    };
    let (first, second) = (anonymous().await, anonymous().await);
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (401, 429));
    read(&first);
    read(&second);

    let nowhere = answer(get("/api/v1/nowhere")).await;
    nowhere.expect(404);
    read(&nowhere);

    // A preflight request is not rate-limited.
    let again = answer(preflight(&app, "/api/v1/agents", "GET", DASHBOARD)).await;
    assert_eq!(again.status, 200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_page_is_told_nothing() {
    let app = with_pages().await;
    for origin in [
        STRANGER,
        "null",
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://app.example.com.evil.example.net",
    ] {
        let response = answer(preflight(&app, "/api/v1/agents", "GET", origin)).await;
        assert!(!response.headers.contains_key("access-control-allow-origin"));

        let read = app.request(Method::GET, "/api/v1/agents");
        let read = answer(read.header("Origin", origin)).await;
        assert_eq!(read.status, 200);
        assert!(
            !read.headers.contains_key("access-control-allow-origin"),
            "{origin}"
        );
    }
    app.finish().await;

    let closed = quiet().await;
    let response = answer(preflight(&closed, "/api/v1/agents", "GET", DASHBOARD)).await;
    assert_eq!(response.status, 405);
    let read = closed.request(Method::GET, "/api/v1/agents");
    let read = answer(read.header("Origin", DASHBOARD)).await;
    assert!(is_silent(&response.headers) && is_silent(&read.headers));
    closed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_known_pages_place_a_call() {
    let app = with_pages().await;
    let path = format!(
        "/api/call/create_call?phoneNumber=%2B12125550123&agent_id={}",
        app.tenant.agent
    );
    let call = |origin: &str| {
        let request = app.request(Method::POST, &path).json(&json!({}));
        answer(request.header("Origin", origin))
    };

    for origin in [STRANGER, "null", "", "https://app.example.com."] {
        let refused = call(origin).await.expect(403);
        assert_eq!(refused["code"], "bad_origin", "{origin}");
        let detail = refused["detail"].as_str().expect("a text");
        assert!(detail.starts_with("bad Origin"), "{detail}");
    }
    assert_eq!(app.count("select count(*) from calls").await, 0);

    let called = call(DASHBOARD).await;
    called.expect(202);
    assert_eq!(
        said(&called.headers, "access-control-allow-origin"),
        DASHBOARD
    );

    // The API's own page, and a client that is no browser.
    app.drop_calls().await;
    call(&app.url).await.expect(202);
    app.drop_calls().await;
    app.post(&path, json!({})).await.expect(202);
    app.drop_calls().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_keeps_browsers_from_guessing_and_names_no_program() {
    let app = quiet().await;
    let body = json!({"name": ""});

    for (request, status) in [
        (app.anonymous(Method::GET, "/health"), 200),
        (app.anonymous(Method::GET, "/docs"), 200),
        (app.request(Method::GET, "/api/v1/agents"), 200),
        (app.anonymous(Method::GET, "/api/v1/agents"), 401),
        (app.anonymous(Method::GET, "/nowhere"), 404),
        (app.anonymous(Method::PUT, "/health"), 405),
        (
            app.request(Method::POST, "/api/v1/agents/simple")
                .json(&body),
            422,
        ),
        (
            app.anonymous(Method::POST, "/api/v1/batch-call/status-callback"),
            400,
        ),
    ] {
        let response = answer(request).await;
        assert_eq!(response.status.as_u16(), status, "{}", response.text);
        assert_eq!(said(&response.headers, "x-content-type-options"), "nosniff");
        assert!(response.headers.contains_key("cache-control"));
        assert!(response.headers.contains_key("x-request-id"));

        for banner in ["server", "x-powered-by", "via"] {
            assert!(!response.headers.contains_key(banner), "{banner}");
        }
    }

    app.finish().await;
}
