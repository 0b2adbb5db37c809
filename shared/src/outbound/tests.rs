//! The outbound client against real servers. 127.0.0.2 stands for the public internet; 127.0.0.1
//! and 127.0.0.3 are closed, and servers there must never receive a connection.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;

use super::*;

const OPEN: &str = "127.0.0.2";

/// Resolver that returns the next list at each look-up, and the last one from then on.
struct ScriptedResolver(Mutex<VecDeque<Vec<IpAddr>>>);

#[async_trait]
impl HostResolver for ScriptedResolver {
    async fn addresses(&self, _host: &str) -> anyhow::Result<Vec<IpAddr>> {
        let mut lists = self.0.lock().unwrap();
        if lists.len() > 1 {
            Ok(lists.pop_front().unwrap())
        } else {
            Ok(lists[0].clone())
        }
    }
}

/// Server that sends the same bytes on each connection and closes it.
struct TestServer {
    port: u16,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl TestServer {
    /// Starts a server at a free port.
    fn start(address: &str, answer: impl Into<Vec<u8>>) -> Self {
        Self::serve(TcpListener::bind((address, 0)).unwrap(), answer)
    }

    /// Starts an open server that sends `open` and a closed one that sends `secret`, at the same
    /// port.
    fn start_open_and_closed() -> (Self, Self) {
        loop {
            let open = TcpListener::bind((OPEN, 0)).unwrap();
            let port = open.local_addr().unwrap().port();
            match TcpListener::bind(("127.0.0.1", port)) {
                Ok(closed) => {
                    return (
                        Self::serve(open, ok("open")),
                        Self::serve(closed, ok("secret")),
                    );
                }
                // The port is taken on the closed address: try another one.
                Err(error) => assert_eq!(error.kind(), ErrorKind::AddrInUse),
            }
        }
    }

    fn serve(listener: TcpListener, answer: impl Into<Vec<u8>>) -> Self {
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            connections: Arc::default(),
            requests: Arc::default(),
        };
        let (heard, requests) = (
            Arc::clone(&server.connections),
            Arc::clone(&server.requests),
        );
        let answer = answer.into();

        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                heard.fetch_add(1, Ordering::SeqCst);
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                    head.push(byte[0]);
                }
                requests
                    .lock()
                    .unwrap()
                    .push(String::from_utf8(head).unwrap());
                let _written = stream.write_all(&answer);
            }
        });
        server
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn ok(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn client(lists: &[&[&str]]) -> OutboundClient {
    let lists = lists
        .iter()
        .map(|list| list.iter().map(|ip| ip.parse().unwrap()).collect())
        .collect();
    let policy = OutboundPolicy::default()
        .with_http()
        .with_ports("1-65535")
        .and_then(|policy| policy.with_networks("127.0.0.2/32"))
        .unwrap();
    OutboundClient::with_resolver(policy, Arc::new(ScriptedResolver(Mutex::new(lists)))).unwrap()
}

fn get_request(outbound: &OutboundClient, url: &str) -> OutboundRequest {
    OutboundRequest {
        method: Method::GET,
        target: outbound.parse_url(url).unwrap(),
        headers: HeaderMap::new(),
        body: None,
        timeout: MAX_TIMEOUT,
    }
}

async fn fetch(outbound: &OutboundClient, url: &str) -> Result<OutboundResponse, OutboundFailure> {
    outbound
        .send(OrgId::new(), get_request(outbound, url))
        .await
}

#[tokio::test]
async fn a_request_to_an_open_host_succeeds() {
    let server = TestServer::start(OPEN, ok("hello"));
    let outbound = client(&[&[OPEN]]);
    let answer = fetch(
        &outbound,
        &format!("http://tool.test:{}/x?y=1", server.port),
    )
    .await;
    let answer = answer.unwrap();
    assert_eq!(
        (answer.status.as_u16(), &answer.body[..]),
        (200, &b"hello"[..])
    );
    let request = server.requests.lock().unwrap()[0].to_ascii_lowercase();
    assert!(request.starts_with("get /x?y=1 http/1.1"), "{request}");
    assert!(request.contains("accept-encoding: identity"), "{request}");
    assert!(!request.contains("referer"), "{request}");
}

#[tokio::test]
async fn a_name_that_resolves_inside_is_never_connected_to() {
    let canary = TestServer::start("127.0.0.1", ok("secret"));
    let url = format!("http://tool.test:{}/", canary.port);
    for list in [
        &["127.0.0.1"][..],
        &["::ffff:127.0.0.1"],
        &["127.0.0.1", "10.0.0.1", "169.254.169.254"],
        &[],
    ] {
        let answer = fetch(&client(&[list]), &url).await;
        assert_eq!(
            answer.unwrap_err(),
            OutboundFailure::Unreachable,
            "{list:?}"
        );
    }
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn a_closed_address_among_open_ones_is_left_out() {
    let (server, canary) = TestServer::start_open_and_closed();
    let url = format!("http://tool.test:{}/", server.port);
    for _ in 0..5 {
        let outbound = client(&[&["127.0.0.1", OPEN, "::1"]]);
        assert_eq!(fetch(&outbound, &url).await.unwrap().body, "open");
    }
    assert_eq!((server.connections(), canary.connections()), (5, 0));
}

#[tokio::test]
async fn dns_rebinding_does_not_reach_closed_addresses() {
    let (server, canary) = TestServer::start_open_and_closed();
    let outbound = client(&[&[OPEN], &["127.0.0.1"]]);
    let url = format!("http://tool.test:{}/", server.port);
    assert_eq!(fetch(&outbound, &url).await.unwrap().body, "open");
    for _ in 0..3 {
        assert_eq!(
            fetch(&outbound, &url).await.unwrap_err(),
            OutboundFailure::Unreachable
        );
    }
    assert_eq!((server.connections(), canary.connections()), (1, 0));
}

#[tokio::test]
async fn redirects_are_returned_and_not_followed() {
    let elsewhere = TestServer::start(OPEN, ok("followed"));
    for location in [
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://127.0.0.1/".to_owned(),
        format!("http://tool.test:{}/", elsewhere.port),
    ] {
        for status in [301, 302, 303, 307, 308] {
            let answer = format!(
                "HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            let server = TestServer::start(OPEN, answer);
            let url = format!("http://tool.test:{}/", server.port);
            let answer = fetch(&client(&[&[OPEN]]), &url).await.unwrap();
            assert_eq!(answer.status.as_u16(), status);
        }
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn too_large_responses_fail_with_and_without_a_length() {
    let limit = MAX_RESPONSE_BYTES;
    let outbound = client(&[&[OPEN]]);
    let whole = TestServer::start(OPEN, ok(&"a".repeat(limit)));
    let url = |server: &TestServer| format!("http://tool.test:{}/", server.port);
    assert_eq!(
        fetch(&outbound, &url(&whole)).await.unwrap().body.len(),
        limit
    );
    let announced = TestServer::start(OPEN, ok(&"a".repeat(limit + 1)));
    let silent = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}",
        "a".repeat(limit + 1)
    );
    let silent = TestServer::start(OPEN, silent);
    for server in [announced, silent] {
        assert_eq!(
            fetch(&outbound, &url(&server)).await.unwrap_err(),
            OutboundFailure::TooLarge
        );
    }
}

#[tokio::test]
async fn compressed_and_broken_responses_are_refused() {
    let outbound = client(&[&[OPEN]]);
    for (answer, failure) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
            OutboundFailure::Compressed,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\nabc",
            OutboundFailure::Interrupted,
        ),
        ("SSH-2.0-OpenSSH\r\n", OutboundFailure::Interrupted),
        ("", OutboundFailure::Interrupted),
    ] {
        let server = TestServer::start(OPEN, answer);
        let got = fetch(&outbound, &format!("http://tool.test:{}/", server.port)).await;
        assert_eq!(got.unwrap_err(), failure, "{answer}");
    }
}

#[tokio::test]
async fn a_silent_server_times_out() {
    let listener = TcpListener::bind((OPEN, 0)).unwrap();
    let outbound = client(&[&[OPEN]]);
    let port = listener.local_addr().unwrap().port();
    let request = OutboundRequest {
        timeout: Duration::from_millis(200),
        ..get_request(&outbound, &format!("http://tool.test:{port}/"))
    };
    // Both are polled in this order, and the second one's time begins after the first one's: on
    // however slow a machine, the request times out first.
    tokio::select! {
        biased;
        answer = outbound.send(OrgId::new(), request) => {
            assert_eq!(answer.unwrap_err(), OutboundFailure::TimedOut);
        }
        () = async { tokio::time::sleep(Duration::from_secs(3)).await } => {
            panic!("the request did not time out");
        }
    }
}

#[tokio::test]
async fn one_organisation_cannot_take_all_slots() {
    let listener = TcpListener::bind((OPEN, 0)).unwrap();
    let silent = listener.local_addr().unwrap().port();
    let server = TestServer::start(OPEN, ok("open"));
    let outbound = client(&[&[OPEN]]);
    let (greedy, other) = (OrgId::new(), OrgId::new());

    // One organisation fills its slots.
    let occupied: Vec<_> = (0..MAX_EXCHANGES_PER_ORG)
        .map(|_| {
            let (outbound, request) = (
                outbound.clone(),
                get_request(&outbound, &format!("http://a.test:{silent}/")),
            );
            tokio::spawn(async move { outbound.send(greedy, request).await })
        })
        .collect();
    while outbound
        .org_semaphores
        .lock()
        .unwrap()
        .get(&greedy)
        .is_none_or(|slots| {
            slots
                .upgrade()
                .is_none_or(|slots| slots.available_permits() > 0)
        })
    {
        tokio::task::yield_now().await;
    }
    let url = format!("http://tool.test:{}/", server.port);

    // Its next request finds no slot in time.
    let request = OutboundRequest {
        timeout: Duration::from_millis(200),
        ..get_request(&outbound, &url)
    };
    let waited = outbound.send(greedy, request).await;
    assert_eq!(waited.unwrap_err(), OutboundFailure::TimedOut);
    assert_eq!(server.connections(), 0);

    // Another organisation's request succeeds.
    assert_eq!(
        outbound
            .send(other, get_request(&outbound, &url))
            .await
            .unwrap()
            .body,
        "open"
    );

    for task in occupied {
        task.abort();
    }
}

#[tokio::test]
async fn headers_of_the_connection_and_of_peal_are_not_sent() {
    let server = TestServer::start(OPEN, ok(""));
    let outbound = client(&[&[OPEN]]);
    let mut request = get_request(&outbound, &format!("http://tool.test:{}/", server.port));
    for (name, value) in [
        ("host", "metadata.internal"),
        ("transfer-encoding", "chunked"),
        ("connection", "upgrade"),
        ("upgrade", "h2c"),
        ("proxy-authorization", "Basic x"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-peal-signature", "forged"),
        ("x-api-key", "theirs"),
        ("authorization", "Bearer theirs"),
        ("x-list", "one"),
    ] {
        request.headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    request
        .headers
        .append("x-list", HeaderValue::from_static("two"));

    outbound.send(OrgId::new(), request).await.unwrap();
    let sent = server.requests.lock().unwrap()[0].to_ascii_lowercase();
    for kept in [
        "x-api-key: theirs",
        "authorization: bearer theirs",
        "one",
        "two",
    ] {
        assert!(sent.contains(kept), "{kept}: {sent}");
    }
    for dropped in [
        "metadata",
        "chunked",
        "upgrade",
        "proxy-",
        "forwarded",
        "forged",
    ] {
        assert!(!sent.contains(dropped), "{dropped}: {sent}");
    }
}

#[tokio::test]
async fn the_system_resolver_is_filtered_too() {
    let canary = TestServer::start("127.0.0.1", ok("secret"));
    let policy = OutboundPolicy::default()
        .with_http()
        .with_ports("1-65535")
        .unwrap();
    let outbound = OutboundClient::new(policy).unwrap();
    // The text is refused before; the resolver must refuse the name as well.
    assert!(outbound.parse_url("http://localhost").is_err());
    let vetted = FilteringResolver {
        resolver: Arc::new(SystemResolver::new()),
        policy: Arc::new(OutboundPolicy::default()),
    };
    use reqwest::dns::Resolve as _;
    assert!(vetted.resolve("localhost".parse().unwrap()).await.is_err());
    assert_eq!(canary.connections(), 0);
}
