//! Tests of the simulator over HTTP: a dialer that creates calls, and its server, which answers
//! callbacks and documents and checks every signature.

mod control;
mod faults;
mod lives;
mod rest;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::{
    CallOutcome, CalleeBehavior, OutcomeMix, RunningSimulator, SecondsRange, Simulator,
    SimulatorConfig, sign,
};

const ACCOUNT: &str = "AC00000000000000000000000000000001";
const FROM: &str = "+14155550111";
const WAIT_DEADLINE: Duration = Duration::from_secs(20);

/// One request that reached the dialer's server.
#[derive(Clone, Debug)]
struct ReceivedRequest {
    path: String,
    params: HashMap<String, String>,
    idempotency: String,
}

impl ReceivedRequest {
    fn get(&self, name: &str) -> &str {
        self.params.get(name).map_or("", String::as_str)
    }
}

/// The dialer's server: records requests and answers from a script.
struct DialerServer {
    url: String,
    token: String,
    seen: Mutex<Vec<ReceivedRequest>>,
    scripts: Mutex<HashMap<String, VecDeque<(u16, String)>>>,
    arrived: Notify,
}

impl DialerServer {
    async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = Arc::new(Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            token: SimulatorConfig::default().default_account.auth_token,
            seen: Mutex::default(),
            scripts: Mutex::default(),
            arrived: Notify::new(),
        });
        let routes = Router::new()
            .fallback(Self::answer)
            .with_state(Arc::clone(&far));
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        far
    }

    #[expect(clippy::unused_async, reason = "a handler is async")]
    async fn answer(
        State(far): State<Arc<Self>>,
        method: Method,
        uri: Uri,
        headers: HeaderMap,
        body: Bytes,
    ) -> (StatusCode, String) {
        let form = |text: &[u8]| -> Vec<(String, String)> {
            url::form_urlencoded::parse(text).into_owned().collect()
        };
        let url = format!("{}{uri}", far.url);
        let (signed, params) = if method == Method::GET {
            (Vec::new(), form(uri.query().unwrap_or("").as_bytes()))
        } else {
            (form(&body), form(&body))
        };

        let signature = headers["x-twilio-signature"].to_str().unwrap();
        assert_eq!(signature, sign(&far.token, &url, &signed));

        let path = uri.path().to_owned();
        far.seen.lock().unwrap().push(ReceivedRequest {
            path: path.clone(),
            params: params.into_iter().collect(),
            idempotency: headers["i-twilio-idempotency-token"]
                .to_str()
                .unwrap()
                .to_owned(),
        });
        far.arrived.notify_waiters();

        let scripted = far
            .scripts
            .lock()
            .unwrap()
            .get_mut(&path)
            .and_then(VecDeque::pop_front);
        let (status, body) = scripted.unwrap_or((200, "<Response><Hangup/></Response>".into()));
        (StatusCode::from_u16(status).unwrap(), body)
    }

    /// Sets the next answers on a path; later requests get a hangup.
    fn script(&self, path: &str, answers: &[(u16, &str)]) {
        let answers = answers.iter().map(|(s, b)| (*s, (*b).to_owned())).collect();
        self.scripts
            .lock()
            .unwrap()
            .insert(path.to_owned(), answers);
    }

    fn seen(&self, path: &str) -> Vec<ReceivedRequest> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|s| s.path == path).cloned().collect()
    }

    async fn wait_for(&self, path: &str, count: usize) -> Vec<ReceivedRequest> {
        tokio::time::timeout(WAIT_DEADLINE, async {
            loop {
                let arrived = self.arrived.notified();
                tokio::pin!(arrived);
                arrived.as_mut().enable();
                let seen = self.seen(path);
                if seen.len() >= count {
                    return seen;
                }
                arrived.await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{path} was not reached {count} times"))
    }
}

/// A simulator, the dialer's server and an HTTP client.
struct TestRig {
    sim: RunningSimulator,
    dialer: Arc<DialerServer>,
    http: reqwest::Client,
    token: String,
}

/// A fast, deterministic configuration: everybody answers and waits for the hangup.
fn quick_config() -> SimulatorConfig {
    SimulatorConfig {
        speed: 200.0,
        behavior: CalleeBehavior {
            mix: OutcomeMix::only(CallOutcome::Answers),
            setup_secs: SecondsRange::new(0.5, 0.5).unwrap(),
            ring_secs: SecondsRange::new(3.0, 3.0).unwrap(),
            talk_secs: SecondsRange::new(30.0, 30.0).unwrap(),
            machine_secs: SecondsRange::new(20.0, 20.0).unwrap(),
            ..CalleeBehavior::default()
        },
        ..SimulatorConfig::default()
    }
}

impl TestRig {
    async fn start(config: SimulatorConfig) -> Self {
        let token = config.default_account.auth_token.clone();
        Self {
            sim: Simulator::start(config).await.unwrap(),
            dialer: DialerServer::start().await,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            token,
        }
    }

    fn calls_url(&self) -> String {
        format!("{}/2010-04-01/Accounts/{ACCOUNT}/Calls", self.sim.url())
    }

    fn hook(&self, path: &str) -> String {
        format!("{}{path}", self.dialer.url)
    }

    /// Default fields: answer at `/answer`, every status event to `/status`.
    fn fields(&self, to: &str) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("To", to.to_owned()),
            ("From", FROM.to_owned()),
            ("Url", self.hook("/answer")),
            ("StatusCallback", self.hook("/status")),
        ];
        for event in ["initiated", "ringing", "answered", "completed"] {
            fields.push(("StatusCallbackEvent", event.to_owned()));
        }
        fields
    }

    async fn post(
        &self,
        url: String,
        fields: &[(&'static str, String)],
    ) -> reqwest::Result<(u16, Value)> {
        let request = self
            .http
            .post(url)
            .basic_auth(ACCOUNT, Some(&self.token))
            .form(fields);
        let response = request.send().await?;
        Ok((response.status().as_u16(), response.json().await?))
    }

    async fn create_with(
        &self,
        fields: &[(&'static str, String)],
    ) -> reqwest::Result<(u16, Value)> {
        self.post(format!("{}.json", self.calls_url()), fields)
            .await
    }

    /// Creates a call that must be accepted and returns its sid.
    async fn create(&self, to: &str, extra: &[(&'static str, &str)]) -> String {
        let mut fields = self.fields(to);
        fields.extend(extra.iter().map(|(k, v)| (*k, (*v).to_owned())));
        let (status, body) = self.create_with(&fields).await.unwrap();
        assert_eq!(status, 201, "{body}");
        body["sid"].as_str().unwrap().to_owned()
    }

    async fn update(&self, sid: &str, field: (&'static str, String)) -> (u16, Value) {
        let url = format!("{}/{sid}.json", self.calls_url());
        self.post(url, &[field]).await.unwrap()
    }

    async fn get(&self, url: &str) -> (u16, Value) {
        let request = self.http.get(url).basic_auth(ACCOUNT, Some(&self.token));
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn fetch(&self, sid: &str) -> Value {
        let (status, body) = self.get(&format!("{}/{sid}.json", self.calls_url())).await;
        assert_eq!(status, 200);
        body
    }

    async fn list(&self, query: &str) -> Value {
        let (status, body) = self
            .get(&format!("{}.json?{query}", self.calls_url()))
            .await;
        assert_eq!(status, 200, "{body}");
        body
    }

    async fn wait_idle(&self) {
        assert!(
            self.sim.wait_idle(WAIT_DEADLINE).await,
            "calls or callbacks are unfinished"
        );
    }

    /// Runs one call to its end; returns its sid and its statuses in sequence.
    async fn run_call(&self, to: &str, extra: &[(&'static str, &str)]) -> (String, Vec<String>) {
        let sid = self.create(to, extra).await;
        self.wait_idle().await;
        let seen = self.dialer.seen("/status");
        let of_call: Vec<&ReceivedRequest> =
            seen.iter().filter(|s| s.get("CallSid") == sid).collect();
        for (place, event) in of_call.iter().enumerate() {
            assert_eq!(event.get("SequenceNumber"), place.to_string());
        }
        let words = of_call.iter().map(|s| s.get("CallStatus").to_owned());
        (sid, words.collect())
    }
}

fn sids(list: &Value) -> Vec<&str> {
    let calls = list["calls"].as_array().unwrap();
    calls.iter().map(|c| c["sid"].as_str().unwrap()).collect()
}
