//! CORS: the origins that may use the API from a browser, and security headers of every response.

use std::collections::BTreeSet;

use peal_shared::config::{CorsSettings, Settings};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder};
use serde_json::json;

use crate::auth::login::without_workers;
use crate::harness::app::{ApiResponse, App, AppOptions, send_request};
use crate::harness::document::Document;

const DASHBOARD: &str = "https://app.example.com";
const STRANGER: &str = "https://evil.example.net";
const CARRIERS: &str = "Carrier callbacks";

fn allow_dashboard(settings: &mut Settings) {
    settings.origins = CorsSettings {
        cors_origins: Some(format!("{DASHBOARD},http://localhost:5173")),
    };
    // One failed authentication limits the address.
    settings.limits.limit_refusals_per_min = Some("1".to_owned());
}

async fn app_with_origins() -> App {
    App::start_with(AppOptions {
        workers: 0,
        settings: allow_dashboard,
        ..AppOptions::default()
    })
    .await
}

fn header_text(headers: &HeaderMap, name: &str) -> String {
    let values = headers.get_all(name).iter();
    let values = values.map(|value| value.to_str().expect("text").to_lowercase());
    values.collect::<Vec<_>>().join(",")
}

/// Items of a list header.
fn header_items(headers: &HeaderMap, name: &str) -> BTreeSet<String> {
    let text = header_text(headers, name);
    text.split(',').map(|word| word.trim().to_owned()).collect()
}

fn has_no_cors_headers(headers: &HeaderMap) -> bool {
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
async fn an_allowed_origin_may_use_every_route_except_carrier_callbacks() {
    let app = app_with_origins().await;
    let document = Document::current();
    let (mut wrong, mut carriers) = (Vec::new(), 0);

    for operation in document.operations() {
        let path = operation.path.replace(['{', '}'], "");
        let method = operation.method.as_str();
        let preflighted = send_request(preflight(&app, &path, method, DASHBOARD)).await;

        let allowed = header_text(&preflighted.headers, "access-control-allow-origin");
        let right = match operation.spec["tags"][0] == CARRIERS {
            true => {
                carriers += 1;
                has_no_cors_headers(&preflighted.headers)
            }
            false => {
                let methods = header_items(&preflighted.headers, "access-control-allow-methods");
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
async fn preflight_and_responses_list_the_allowed_and_exposed_headers() {
    let app = app_with_origins().await;
    let preflighted = send_request(preflight(&app, "/api/v1/agents", "POST", DASHBOARD)).await;
    let headers = header_items(&preflighted.headers, "access-control-allow-headers");
    for name in [
        "authorization",
        "x-api-key",
        "content-type",
        "idempotency-key",
        "last-event-id",
    ] {
        assert!(headers.contains(name), "{name} is not in {headers:?}");
    }

    assert_eq!(
        header_text(&preflighted.headers, "access-control-max-age"),
        "3600"
    );
    assert!(header_items(&preflighted.headers, "vary").contains("origin"));
    // No cookies: pages send credentials in headers.
    assert!(
        !preflighted
            .headers
            .contains_key("access-control-allow-credentials")
    );

    let read = |answer: &ApiResponse| {
        assert_eq!(
            header_text(&answer.headers, "access-control-allow-origin"),
            DASHBOARD,
            "{}",
            answer.text
        );
        header_items(&answer.headers, "access-control-expose-headers")
    };
    let get = |path: &str| app.request(Method::GET, path).header("Origin", DASHBOARD);

    let exposed = read(&send_request(get("/api/v1/agents")).await);
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
    let refused = send_request(get("/api/v1/agents?page=0")).await;
    refused.expect(422);
    read(&refused);

    let anonymous = || {
        let request = app.anonymous(Method::GET, "/api/v1/agents");
        send_request(request.header("Origin", DASHBOARD))
    };
    let (first, second) = (anonymous().await, anonymous().await);
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (401, 429));
    read(&first);
    read(&second);

    let nowhere = send_request(get("/api/v1/nowhere")).await;
    nowhere.expect(404);
    read(&nowhere);

    // A preflight request is not rate-limited.
    let again = send_request(preflight(&app, "/api/v1/agents", "GET", DASHBOARD)).await;
    assert_eq!(again.status, 200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_origin_gets_no_cors_headers() {
    let app = app_with_origins().await;
    for origin in [
        STRANGER,
        "null",
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://app.example.com.evil.example.net",
    ] {
        let response = send_request(preflight(&app, "/api/v1/agents", "GET", origin)).await;
        assert!(!response.headers.contains_key("access-control-allow-origin"));

        let read = app.request(Method::GET, "/api/v1/agents");
        let read = send_request(read.header("Origin", origin)).await;
        assert_eq!(read.status, 200);
        assert!(
            !read.headers.contains_key("access-control-allow-origin"),
            "{origin}"
        );
    }
    app.finish().await;

    let closed = without_workers().await;
    let response = send_request(preflight(&closed, "/api/v1/agents", "GET", DASHBOARD)).await;
    assert_eq!(response.status, 405);
    let read = closed.request(Method::GET, "/api/v1/agents");
    let read = send_request(read.header("Origin", DASHBOARD)).await;
    assert!(has_no_cors_headers(&response.headers) && has_no_cors_headers(&read.headers));
    closed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_allowed_origins_may_place_a_call() {
    let app = app_with_origins().await;
    let path = format!(
        "/api/call/create_call?phoneNumber=%2B12125550123&agent_id={}",
        app.tenant.agent
    );
    let call = |origin: &str| {
        let request = app.request(Method::POST, &path).json(&json!({}));
        send_request(request.header("Origin", origin))
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
        header_text(&called.headers, "access-control-allow-origin"),
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
async fn every_response_has_security_headers_and_names_no_server() {
    let app = without_workers().await;
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
        let response = send_request(request).await;
        assert_eq!(response.status.as_u16(), status, "{}", response.text);
        assert_eq!(
            header_text(&response.headers, "x-content-type-options"),
            "nosniff"
        );
        assert!(response.headers.contains_key("cache-control"));
        assert!(response.headers.contains_key("x-request-id"));

        for banner in ["server", "x-powered-by", "via"] {
            assert!(!response.headers.contains_key(banner), "{banner}");
        }
    }

    app.finish().await;
}
