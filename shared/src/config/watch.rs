//! Telemetry: the metrics listener and the trace exporter. Both are off by default.

use std::net::SocketAddr;

use clap::Args;
use url::Url;

use super::ConfigErrors;

/// Telemetry settings, as typed.
#[derive(Args, Clone, Debug, Default)]
pub struct TelemetrySettings {
    /// Address that serves /metrics: 127.0.0.1:9464. Unset: none. The endpoint has no
    /// authentication: restrict access to Prometheus.
    #[arg(long, env = "PEAL_METRICS_LISTEN", global = true)]
    pub metrics_listen: Option<String>,
    /// OpenTelemetry collector for OTLP over HTTP: http://127.0.0.1:4318. Unset: no traces.
    #[arg(long, env = "PEAL_OTLP_URL", global = true)]
    pub otlp_url: Option<String>,
    /// Traced fraction of all calls, 0 to 1; the same in every process [default: 0.1].
    #[arg(long, env = "PEAL_OTLP_RATIO", global = true)]
    pub otlp_ratio: Option<String>,
}

/// Trace exporter settings.
#[derive(Clone, Debug)]
pub struct TracesConfig {
    /// Collector's URL, with the path for spans.
    pub url: Url,
    /// Traced fraction of all calls.
    pub ratio: f64,
}

/// Validated telemetry settings.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    pub metrics_listen: Option<SocketAddr>,
    pub traces: Option<TracesConfig>,
}

impl TelemetrySettings {
    pub(super) fn validate(&self, errors: &mut ConfigErrors) -> Option<TelemetryConfig> {
        let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let listen = set(&self.metrics_listen)
            .map(|text| text.parse().map_err(|_e| "must be address:port".to_owned()))
            .transpose();
        let url = set(&self.otlp_url)
            .map(|text| parse_spans_url(&text))
            .transpose();

        let ratio = set(&self.otlp_ratio).map_or(Ok(0.1), |text| {
            text.parse()
                .ok()
                .filter(|ratio| (0.0..=1.0).contains(ratio))
                .ok_or_else(|| "must be a number from 0 to 1".to_owned())
        });

        let listen = errors.record("PEAL_METRICS_LISTEN", listen);
        let url = errors.record("PEAL_OTLP_URL", url);
        let ratio = errors.record("PEAL_OTLP_RATIO", ratio);
        Some(TelemetryConfig {
            metrics_listen: listen?,
            traces: url?
                .zip(ratio)
                .map(|(url, ratio)| TracesConfig { url, ratio }),
        })
    }
}

/// Parses the collector's URL and appends the OTLP path for spans.
fn parse_spans_url(text: &str) -> Result<Url, String> {
    let message = || "must be an http(s):// URL without a query".to_owned();
    let mut url = Url::parse(text).map_err(|_e| message())?;
    if !matches!(url.scheme(), "http" | "https") || url.query().is_some() {
        return Err(message());
    }
    let base = url.path().trim_end_matches('/').to_owned();
    if !base.ends_with("/v1/traces") {
        url.set_path(&format!("{base}/v1/traces"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_go_to_the_otlp_path() {
        for (typed, url) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            (
                "https://otel.example.com/base/",
                "https://otel.example.com/base/v1/traces",
            ),
            ("http://a/v1/traces", "http://a/v1/traces"),
        ] {
            assert_eq!(parse_spans_url(typed).unwrap().as_str(), url);
        }
        assert!(parse_spans_url("127.0.0.1:4318").is_err());
    }
}
