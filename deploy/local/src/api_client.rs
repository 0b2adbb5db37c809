//! HTTP client with the few API requests of the demo.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use reqwest::multipart::{Form, Part};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};

use crate::stack::{BootstrapAccount, Stack};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const INGEST_DEADLINE: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Row counts of an uploaded file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestCounts {
    pub read: u64,
    pub accepted: u64,
    pub duplicates: u64,
    pub rejected: u64,
}

/// Status and row counts of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchProgress {
    pub status: String,
    pub not_started: u64,
    pub calling: u64,
    pub completed: u64,
    pub failed: u64,
    pub no_answer: u64,
}

impl BatchProgress {
    /// Rows that need no further call.
    pub fn done(&self) -> u64 {
        self.completed + self.failed + self.no_answer
    }
}

/// Client of one API, authenticated by one API key.
pub struct ApiClient {
    http: Client,
    base: String,
    key: String,
}

impl ApiClient {
    pub fn new(stack: &Stack) -> Result<Self> {
        let http = Client::builder()
            .no_proxy()
            .timeout(REQUEST_TIMEOUT)
            .build()?;
        Ok(Self {
            http,
            base: format!("{}/api/v1/batch-call", stack.api_url),
            key: stack.account.api_key.clone(),
        })
    }

    /// Creates a batch; returns its id.
    pub async fn create(
        &self,
        account: &BootstrapAccount,
        name: &str,
        variables: &[&str],
        size: u32,
    ) -> Result<String> {
        let body = json!({
            "caller_phone_id": account.phone_id,
            "agent_id": account.agent_id,
            "batch_name": name,
            "variable_names": variables,
            "batch_size": size,
        });
        let answer = send(self.request(Method::POST, "/create").json(&body)).await?;
        let id = answer.pointer("/data/id").and_then(Value::as_str);
        id.map(str::to_owned)
            .ok_or_else(|| anyhow!("the created batch has no id: {answer}"))
    }

    /// Uploads `file` and waits until all its rows are read.
    pub async fn upload(&self, batch: &str, file: &Path) -> Result<IngestCounts> {
        let bytes = tokio::fs::read(file)
            .await
            .with_context(|| format!("reading {file:?}"))?;
        let part = Part::bytes(bytes)
            .file_name("demo.csv")
            .mime_str("text/csv")?;
        let form = Form::new().part("file", part);

        let upload = self.request(Method::POST, &format!("/upload/{batch}"));
        let mut answer = send(upload.multipart(form)).await?;

        let deadline = Instant::now() + INGEST_DEADLINE;
        while is_unfinished(&answer) {
            if Instant::now() > deadline {
                bail!("the upload is unfinished after two minutes: {answer}");
            }
            tokio::time::sleep(POLL_INTERVAL).await;
            let ingest = data(&answer)
                .get("ingest_id")
                .or_else(|| data(&answer).get("id"))
                .and_then(Value::as_str)
                .ok_or_else(|| anyhow!("the upload has no id: {answer}"))?;
            let path = format!("/{batch}/ingests/{ingest}");
            answer = send(self.request(Method::GET, &path)).await?;
        }
        read_ingested(&answer)
    }

    /// Starts dialling.
    pub async fn start(&self, batch: &str) -> Result<()> {
        send(self.request(Method::POST, &format!("/start/{batch}"))).await?;
        Ok(())
    }

    pub async fn progress(&self, batch: &str) -> Result<BatchProgress> {
        let answer = send(self.request(Method::GET, &format!("/{batch}/status"))).await?;
        read_progress(&answer)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base))
            .header("x-api-key", &self.key)
    }
}

/// Fetches a JSON document that needs no key.
pub async fn fetch(url: &str) -> Result<Value> {
    let http = Client::builder()
        .no_proxy()
        .timeout(REQUEST_TIMEOUT)
        .build()?;
    send(http.get(url)).await
}

async fn send(request: RequestBuilder) -> Result<Value> {
    let response = request.send().await?;
    let status = response.status();
    let path = response.url().path().to_owned();
    let text = response.text().await?;
    if !status.is_success() {
        bail!("{path} answered {status}: {text}");
    }
    serde_json::from_str(&text).with_context(|| format!("{path} did not answer JSON: {text}"))
}

fn data(answer: &Value) -> &Value {
    answer.get("data").unwrap_or(answer)
}

fn number(object: &Value, key: &str) -> Result<u64> {
    object
        .get(key)
        .and_then(Value::as_u64)
        .ok_or_else(|| anyhow!("no number `{key}` in {object}"))
}

/// Reports an ingest that still runs in the background, by its `status` (or `state`).
fn is_unfinished(answer: &Value) -> bool {
    let data = data(answer);
    let state = data.get("status").or_else(|| data.get("state"));
    matches!(
        state.and_then(Value::as_str),
        Some("queued" | "running" | "processing")
    )
}

fn read_ingested(answer: &Value) -> Result<IngestCounts> {
    let data = data(answer);
    Ok(IngestCounts {
        read: number(data, "total_rows")?,
        accepted: number(data, "inserted")?,
        duplicates: number(data, "duplicates")?,
        rejected: number(data, "failed").or_else(|_| number(data, "rejected"))?,
    })
}

fn read_progress(answer: &Value) -> Result<BatchProgress> {
    let data = data(answer);
    let counts = data
        .get("status_counts")
        .ok_or_else(|| anyhow!("no status_counts in {answer}"))?;
    let status = data.pointer("/batch/status").and_then(Value::as_str);
    Ok(BatchProgress {
        status: status.unwrap_or_default().to_owned(),
        not_started: number(counts, "not_started")?,
        calling: number(counts, "calling")?,
        completed: number(counts, "completed")?,
        failed: number(counts, "failed")?,
        no_answer: number(counts, "no_answer")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_is_waited_for_only_while_it_is_read() {
        for (answer, unfinished) in [
            (
                json!({"data": {"status": "queued", "ingest_id": "i"}}),
                true,
            ),
            (json!({"data": {"state": "running"}}), true),
            (json!({"data": {"status": "completed"}}), false),
            (json!({"data": {"inserted": 3}}), false),
        ] {
            assert_eq!(is_unfinished(&answer), unfinished, "{answer}");
        }
    }

    #[test]
    fn counts_are_read_from_the_answers() {
        let upload = json!({"success": true, "data": {
            "total_rows": 9, "inserted": 5, "duplicates": 3, "failed": 1, "errors": []}});
        let ingested = read_ingested(&upload).unwrap();
        assert_eq!((ingested.read, ingested.rejected), (9, 1));

        let status = json!({"data": {"batch": {"status": "in_progress"}, "status_counts": {
            "not_started": 1, "calling": 2, "completed": 3, "failed": 4, "no_answer": 5,
            "total": 15}}});
        let progress = read_progress(&status).unwrap();
        assert_eq!(progress.status, "in_progress");
        assert_eq!(progress.done(), 12);
        assert!(read_progress(&json!({"data": {}})).is_err());
    }
}
