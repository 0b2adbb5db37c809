//! Metrics as Prometheus scrapes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use peal_shared::context::Context;
use peal_shared::telemetry_server;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A listener that serves the metrics of one process.
pub struct MetricsServer {
    url: String,
    _shutdown: DropGuard,
}

/// Scraped values by series, written as name and labels.
pub struct MetricsSnapshot {
    pub text: String,
    values: BTreeMap<String, f64>,
}

/// Serves the metrics of one context of the test.
pub async fn serve_metrics(context: &Arc<Context>) -> MetricsServer {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let until = CancellationToken::new();
    tokio::spawn(telemetry_server::serve(
        Arc::clone(context),
        listener,
        until.clone(),
    ));
    MetricsServer {
        url,
        _shutdown: until.drop_guard(),
    }
}

impl MetricsServer {
    /// Scrapes all metrics.
    pub async fn scrape(&self) -> MetricsSnapshot {
        let answer = reqwest::get(format!("{}/metrics", self.url))
            .await
            .expect("an answer");
        assert_eq!(answer.status().as_u16(), 200);
        let kind = answer.headers()["content-type"].to_str().expect("text");
        assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
        let text = answer.text().await.expect("text");
        assert!(text.ends_with("# EOF\n"), "{text}");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let values = lines.map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            (name.to_owned(), value.parse().expect(line))
        });
        MetricsSnapshot {
            values: values.collect(),
            text,
        }
    }

    /// Status of another path.
    pub async fn status(&self, path: &str) -> u16 {
        let answer = reqwest::get(format!("{}{path}", self.url))
            .await
            .expect("an answer");
        answer.status().as_u16()
    }
}

impl MetricsSnapshot {
    /// Value of exactly this series, labels included.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.get(name).copied()
    }

    /// Sum over all series of a name that have all of `labels`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let series = self.values.iter().filter(|(series, _)| {
            let (of, has) = series.split_once('{').unwrap_or((series, ""));
            of == name && labels.iter().all(|label| has.contains(label))
        });
        series.map(|(_, value)| value).sum()
    }
}
