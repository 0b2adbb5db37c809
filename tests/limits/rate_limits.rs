//! Rate limits: one for each API key, and one for each address without a valid credential.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use reqwest::Method;
use serde_json::json;

use crate::auth::login::without_workers;
use crate::harness::app::{ApiClient, ApiResponse, send_request};
use crate::harness::eventually;

const MY_BATCHES: &str = "/api/v1/batch-call/me";

async fn get_with_key(client: &ApiClient, key: &str) -> ApiResponse {
    send_request(
        client
            .anonymous(Method::GET, MY_BATCHES)
            .header("x-api-key", key),
    )
    .await
}

fn header_number(answer: &ApiResponse, header: &str) -> u32 {
    let value = answer.headers.get(header);
    let value = value.unwrap_or_else(|| panic!("no {header} in {:?}", answer.headers));
    let value = value.to_str().expect("text");
    value
        .parse()
        .unwrap_or_else(|_| panic!("{header}: {value}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_over_its_rate_limit_waits_and_others_do_not() {
    let mut app = without_workers().await;
    let (client, _) = app
        .start_api(|settings| settings.limits.limit_requests_per_sec = Some("3".to_owned()))
        .await;
    let other = app.create_tenant("Other").await;

    let first = client.get(MY_BATCHES).await;
    first.expect(200);
    assert_eq!(header_number(&first, "ratelimit-limit"), 3);
    assert!(header_number(&first, "ratelimit-remaining") <= 2);
    assert_eq!(header_number(&first, "ratelimit-reset"), 1);

    let mut last = first;
    for _ in 0..200 {
        last = client.get(MY_BATCHES).await;
        if last.status == 429 {
            break;
        }
    }

    let refused = last.expect(429);
    assert_eq!(refused["code"], "too_many_requests");
    assert_eq!(header_number(&last, "retry-after"), 1);
    assert_eq!(header_number(&last, "ratelimit-limit"), 3);
    assert_eq!(header_number(&last, "ratelimit-remaining"), 0);

    get_with_key(&client, &other.api_key).await.expect(200);

    // Probes and the OpenAPI document have no rate limit.
    for path in ["/health", "/openapi.json"] {
        let open = send_request(client.anonymous(Method::GET, path)).await;
        assert_eq!(open.status, 200);
        assert!(open.headers.get("ratelimit-limit").is_none());
    }

    let again = || async { client.get(MY_BATCHES).await.status == 200 };
    eventually("the key is accepted again", Duration::from_secs(5), again).await;
    app.finish().await;
}

/// A random text in the form of a caller's own key.
fn random_key(n: u64) -> String {
    let mut state = n;
    let letters = (0..40).map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + u8::try_from((state >> 33) % 26).expect("a letter"))
    });
    letters.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_at_keys_fail_and_are_rate_limited() {
    let mut app = without_workers().await;
    let (client, _) = app
        .start_api(|settings| settings.limits.limit_refusals_per_min = Some("60".to_owned()))
        .await;

    let statuses: Vec<u16> = stream::iter(0..10_000)
        .map(async |n| get_with_key(&client, &random_key(n)).await.status.as_u16())
        .buffer_unordered(32)
        .collect()
        .await;

    let mut counts = BTreeMap::new();
    for status in statuses {
        *counts.entry(status).or_insert(0) += 1;
    }
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [401, 429]);
    assert!(counts[&401] < 500, "{counts:?}");

    // A valid key from the same address is not limited by the guesses.
    client.get(MY_BATCHES).await.expect(200);

    // The limit refills one guess a second, so the next may still be allowed.
    let guess = async || {
        send_request(
            client
                .anonymous(Method::GET, MY_BATCHES)
                .bearer_auth("guess"),
        )
        .await
    };
    let mut refused = guess().await;
    for _ in 0..50 {
        if refused.status == 429 {
            break;
        }
        refused = guess().await;
    }

    refused.expect(429);
    assert!(header_number(&refused, "retry-after") >= 1);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_trusted_proxy_each_client_has_its_own_rate_limit() {
    let mut app = without_workers().await;
    let (client, _) = app
        .start_api(|settings| {
            settings.limits.limit_refusals_per_min = Some("1".to_owned());
            settings.proxies.trusted_proxies = Some("127.0.0.1".to_owned());
        })
        .await;

    let from = async |address: &str| {
        let request = client.anonymous(Method::GET, MY_BATCHES);
        let answer = send_request(request.header("x-forwarded-for", address)).await;
        answer.status.as_u16()
    };

    assert_eq!(from("198.51.100.1").await, 401);
    assert_eq!(from("198.51.100.1").await, 429);
    assert_eq!(from("203.0.113.7, 198.51.100.1").await, 429);
    assert_eq!(from("198.51.100.2").await, 401);

    let named = client
        .request(Method::POST, "/api/v1/agents/simple")
        .header("x-forwarded-for", "198.51.100.9")
        .json(&json!({"name": "Grace"}));
    send_request(named).await.expect(201);
    let log = "select count(*) from audit_log where host(ip) = '198.51.100.9'";
    assert_eq!(app.count(log).await, 1);

    // Without a trusted proxy the header is ignored.
    let direct = app
        .request(Method::POST, "/api/v1/agents/simple")
        .header("x-forwarded-for", "198.51.100.9")
        .json(&json!({"name": "Hopper"}));
    send_request(direct).await.expect(201);
    assert_eq!(app.count(log).await, 1);
    app.finish().await;
}
