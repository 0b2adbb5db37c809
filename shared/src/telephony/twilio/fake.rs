//! Fake Twilio: a listener on loopback that answers by a script and records its requests.

use std::sync::{Arc, Mutex};

use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use crate::platform::e164::E164;
use crate::telephony::{CarrierAccount, CarrierCredentials, CarrierKind, NewCall};

pub(super) const ACCOUNT_SID: &str = "AC00000000000000000000000000000001";
pub(super) const CALL_SID: &str = "CA00000000000000000000000000000002";
pub(super) const TOKEN: &str = "000102030405060708090a0b0c0d0e0f";

/// Response of the listener to the next request, after it has read all of it.
pub(super) enum ScriptedReply {
    /// Answers and closes.
    Answer(u16, &'static str, Value),
    /// Answers and waits for another request on the same connection.
    AnswerKeepAlive(u16, Value),
    /// Closes without an answer.
    Drop,
    /// Sends the head of an answer and half of its body, then closes.
    Truncate,
    /// Never answers.
    Hang,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct RecordedRequest {
    pub head: String,
    pub body: String,
}

impl RecordedRequest {
    pub fn request_line(&self) -> &str {
        self.head.lines().next().unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    pub fn form(&self) -> Vec<(String, String)> {
        url::form_urlencoded::parse(self.body.as_bytes())
            .into_owned()
            .collect()
    }
}

pub(super) struct FakeTwilio {
    pub url: Url,
    requests: Arc<Mutex<Vec<RecordedRequest>>>,
}

impl FakeTwilio {
    /// Listens, and answers one request after another by the script. A request after its end is
    /// recorded and dropped without an answer.
    pub async fn start(script: Vec<ScriptedReply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let recorded = requests.clone();

        tokio::spawn(async move {
            let mut script = script.into_iter();
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                while let Some(request) = read_request(&mut stream).await {
                    recorded.lock().unwrap().push(request);
                    let act = script.next().unwrap_or(ScriptedReply::Drop);
                    if matches!(act, ScriptedReply::Hang) {
                        held.push(stream);
                        break;
                    }
                    if !send_reply(&mut stream, act).await {
                        break;
                    }
                }
            }
        });
        Self {
            url: url.parse().unwrap(),
            requests,
        }
    }

    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.requests.lock().unwrap().clone()
    }

    pub fn account(&self) -> CarrierAccount {
        account(Some(self.url.clone()))
    }
}

/// Answers by one step of the script; true when the connection stays open.
async fn send_reply(stream: &mut TcpStream, act: ScriptedReply) -> bool {
    let (stays, text) = match act {
        ScriptedReply::Answer(status, headers, body) => {
            let body = body.to_string();
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n"
            );
            (false, head + &body)
        }
        ScriptedReply::AnswerKeepAlive(status, body) => {
            let body = body.to_string();
            let length = body.len();
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n");
            (true, head + &body)
        }
        ScriptedReply::Truncate => (
            false,
            "HTTP/1.1 201 X\r\ncontent-length: 200\r\n\r\n{\"sid\":".to_owned(),
        ),
        ScriptedReply::Drop | ScriptedReply::Hang => (false, String::new()),
    };
    stream.write_all(text.as_bytes()).await.unwrap();
    stays
}

/// Reads one complete request; `None` when the client sends no more.
async fn read_request(stream: &mut TcpStream) -> Option<RecordedRequest> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let request = RecordedRequest {
                head: head.to_owned(),
                body: body.to_owned(),
            };
            let length = request.header("content-length");
            let length: usize = length.map_or(0, |text| text.parse().unwrap());
            if body.len() >= length {
                return Some(request);
            }
        }
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
        }
    }
}

pub(super) fn client() -> Client {
    crate::platform::http::carrier_client(std::time::Duration::from_secs(10)).unwrap()
}

pub(super) fn account(api_base_url: Option<Url>) -> CarrierAccount {
    CarrierAccount {
        kind: CarrierKind::Twilio,
        account_id: ACCOUNT_SID.to_owned(),
        credentials: CarrierCredentials {
            username: None,
            password: TOKEN.into(),
            signing_secrets: Vec::new(),
        },
        api_base_url,
    }
}

pub(super) fn number(text: &str) -> E164 {
    serde_json::from_value(json!(text)).unwrap()
}

pub(super) fn new_call() -> NewCall {
    let url = |tail: &str| {
        let base = Url::parse("https://dialer.example.com/").unwrap();
        base.join(tail).unwrap()
    };
    NewCall {
        to: number("+15550100002"),
        from: number("+15550100001"),
        answer_url: url("answer?x=1&y=2"),
        status_url: url("status"),
        machine_detection_url: None,
        recording_url: None,
        ring_timeout_secs: 30,
        max_duration_secs: 180,
    }
}

pub(super) fn new_call_with_everything() -> NewCall {
    NewCall {
        machine_detection_url: Some("https://dialer.example.com/amd".parse().unwrap()),
        recording_url: Some("https://dialer.example.com/recording".parse().unwrap()),
        ..new_call()
    }
}
