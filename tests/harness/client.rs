//! A client of the API: requests with a tenant's key, and the steps of a campaign.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::app::Tenant;
use super::eventually;

/// Longest wait for any condition before its test fails.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A response with its complete body.
pub struct ApiResponse {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl ApiResponse {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The body as JSON; fails the test unless the status is this one.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self.json()
    }
}

/// An HTTP client that sends a tenant's key.
pub struct ApiClient {
    pub url: String,
    pub tenant: Tenant,
    http: reqwest::Client,
}

impl ApiClient {
    /// A client of the API at `url`.
    pub fn new(url: String, tenant: Tenant) -> Self {
        Self {
            url,
            tenant,
            http: reqwest::Client::builder()
                .no_proxy()
                .build()
                .expect("client"),
        }
    }

    /// A request with the tenant's key.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.request_as(&self.tenant, method, path)
    }

    /// A request with another tenant's session, or with its key when it has none.
    pub fn request_as(
        &self,
        tenant: &Tenant,
        method: Method,
        path: &str,
    ) -> reqwest::RequestBuilder {
        let request = self.anonymous(method, path);
        match &tenant.session {
            Some(token) => request.bearer_auth(token),
            None => request.header("x-api-key", &tenant.api_key),
        }
    }

    /// A request without a credential.
    pub fn anonymous(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    pub async fn get(&self, path: &str) -> ApiResponse {
        send_request(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> ApiResponse {
        send_request(self.request(Method::POST, path).json(&body)).await
    }

    /// Creates a batch with the variable `name`; `extra` overrides the defaults.
    pub async fn create_batch(&self, extra: Value) -> String {
        let mut body = json!({
            "caller_phone_id": self.tenant.phone,
            "agent_id": self.tenant.agent,
            "batch_name": "A campaign",
            "variable_names": ["name"],
            "batch_size": 100,
        });
        for (key, value) in extra.as_object().expect("an object") {
            body[key] = value.clone();
        }
        let created = self
            .post("/api/v1/batch-call/create", body)
            .await
            .expect(201);
        created["data"]["id"].as_str().expect("an id").to_owned()
    }

    /// Uploads a CSV and waits until its ingest has ended.
    pub async fn upload(&self, batch: &str, csv: &str) -> Value {
        let part = reqwest::multipart::Part::text(csv.to_owned())
            .file_name("people.csv")
            .mime_str("text/csv")
            .expect("mime");
        let form = reqwest::multipart::Form::new().part("file", part);

        let path = format!("/api/v1/batch-call/upload/{batch}");
        let uploaded = send_request(self.request(Method::POST, &path).multipart(form)).await;
        assert!(uploaded.status.is_success(), "{}", uploaded.text);

        let data = uploaded.json()["data"].clone();
        let ingest = data["ingest_id"].as_str().expect("an ingest").to_owned();
        let path = format!("/api/v1/batch-call/{batch}/ingests/{ingest}");

        let ended = || async {
            let state = self.get(&path).await.expect(200)["data"]["status"].clone();
            state == "completed" || state == "failed"
        };
        eventually("the ingest has ended", TEST_TIMEOUT, ended).await;

        self.get(&path).await.expect(200)["data"].clone()
    }

    /// Adds `count` people through the row upsert route, a thousand rows a request.
    pub async fn add_people(&self, batch: &str, count: u32) {
        let people: Vec<Value> = (0..count)
            .map(|n| json!({"to_phonenumber": phone_number(n), "variable_values": {"name": format!("Person {n}")}}))
            .collect();
        for items in people.chunks(1000) {
            let path = format!("/api/v1/batch-call/{batch}/data/upsert");
            let added = self
                .post(&path, json!({ "items": items }))
                .await
                .expect(200);
            assert_eq!(added["data"]["inserted"], json!(items.len()), "{added}");
        }
    }

    pub async fn start_batch(&self, batch: &str) -> Value {
        self.post(&format!("/api/v1/batch-call/start/{batch}"), json!({}))
            .await
            .expect(200)
    }

    /// The status object of a batch.
    pub async fn batch_status(&self, batch: &str) -> Value {
        self.get(&format!("/api/v1/batch-call/{batch}/status"))
            .await
            .expect(200)["data"]
            .clone()
    }

    /// Waits until the batch has this status, as long as it makes progress.
    pub async fn wait_for_status(&self, batch: &str, status: &str) -> Value {
        self.wait_for_status_while(batch, status, async || {}).await
    }

    /// Waits like [`Client::wait_for`], and calls `meanwhile` before each poll.
    pub async fn wait_for_status_while(
        &self,
        batch: &str,
        status: &str,
        meanwhile: impl AsyncFn(),
    ) -> Value {
        let (mut seen, mut since) = (Value::Null, Instant::now());
        loop {
            let now = self.batch_status(batch).await;
            if now["batch"]["status"] == status {
                return now["status_counts"].clone();
            }
            if now["status_counts"] != seen["status_counts"] || now["batch"] != seen["batch"] {
                (seen, since) = (now, Instant::now());
            }
            let waited = since.elapsed();
            assert!(
                waited < TEST_TIMEOUT,
                "no progress for {waited:?}, and it is not {status}: {seen}"
            );
            meanwhile().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Sends a request and reads the complete response.
pub async fn send_request(request: reqwest::RequestBuilder) -> ApiResponse {
    let response = request.send().await.expect("an answer");
    ApiResponse {
        status: response.status(),
        headers: response.headers().clone(),
        text: response.text().await.expect("a body"),
    }
}

/// A CSV of people in the United States whose numbers have no scripted behaviour at the simulator.
pub fn people_csv(count: u32) -> String {
    let mut csv = String::from("to_phonenumber,name\n");
    for n in 0..count {
        csv.push_str(&format!("{},Person {n}\n", phone_number(n)));
    }
    csv
}

/// The n-th test number: valid, and without scripted behaviour at the simulator.
pub fn phone_number(n: u32) -> String {
    format!("+1212{:03}{:04}", 200 + n / 5000, 1000 + n % 5000)
}
