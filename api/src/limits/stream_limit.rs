//! Limits of open event streams, in total and per organisation.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use peal_shared::Error;
use peal_shared::context::Context;
use peal_shared::platform::ids::OrgId;
use prometheus_client::metrics::gauge::Gauge;

use crate::http::error::{Problem, Result};

/// Limits and counts of this process's open streams.
#[derive(Clone)]
pub struct StreamLimits {
    max_total: usize,
    max_per_org: usize,
    counts: Arc<Mutex<StreamCounts>>,
    gauge: Gauge,
}

#[derive(Default)]
struct StreamCounts {
    total: usize,
    by_org: HashMap<OrgId, usize>,
}

/// Open stream, counted until dropped.
pub struct OpenStream {
    limits: StreamLimits,
    org: OrgId,
}

impl StreamLimits {
    /// Creates the limits of the settings.
    pub fn new(context: &Context) -> Self {
        let limits = &context.config.limits;
        Self {
            max_total: limits.streams,
            max_per_org: limits.streams_per_org,
            counts: Arc::default(),
            gauge: context.metrics.http.streams.clone(),
        }
    }

    /// Opens a stream of `org`.
    ///
    /// # Errors
    /// 503 at the process's limit, 429 at the organisation's.
    pub fn open(&self, org: OrgId) -> Result<OpenStream> {
        let mut open = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if open.total >= self.max_total {
            return Err(
                Error::Busy("too many event streams at once; try again shortly".into()).into(),
            );
        }

        let of_org = open.by_org.entry(org).or_default();
        if *of_org >= self.max_per_org {
            return Err(Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_streams",
                "your organization has too many event streams open; close one first",
            )
            .retry_after_secs(10));
        }

        *of_org += 1;
        open.total += 1;
        self.gauge.inc();
        Ok(OpenStream {
            limits: self.clone(),
            org,
        })
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let open = &self.limits.counts;
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        open.total -= 1;
        if let Some(of_org) = open.by_org.get_mut(&self.org) {
            *of_org -= 1;
            if *of_org == 0 {
                open.by_org.remove(&self.org);
            }
        }
        self.limits.gauge.dec();
    }
}
