//! Limits of open event streams, in total and per organisation.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use peal_shared::Error;
use peal_shared::context::Context;
use peal_shared::ids::OrgId;
use prometheus_client::metrics::gauge::Gauge;

use crate::error::{Problem, Result};

/// Limits and counts of this process's open streams.
#[derive(Clone)]
pub struct Streams {
    most: usize,
    most_per_org: usize,
    open: Arc<Mutex<Open>>,
    shown: Gauge,
}

#[derive(Default)]
struct Open {
    all: usize,
    by_org: HashMap<OrgId, usize>,
}

/// Open stream, counted until dropped.
pub struct OpenStream {
    streams: Streams,
    org: OrgId,
}

impl Streams {
    /// Creates the limits of the settings.
    pub fn new(context: &Context) -> Self {
        let limits = &context.config.limits;
        Self {
            most: limits.streams,
            most_per_org: limits.streams_per_org,
            open: Arc::default(),
            shown: context.metrics.http.streams.clone(),
        }
    }

    /// Opens a stream of `org`.
    ///
    /// # Errors
    /// 503 at the process's limit, 429 at the organisation's.
    pub fn open(&self, org: OrgId) -> Result<OpenStream> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.all >= self.most {
            return Err(
                Error::Busy("too many event streams at once; try again shortly".into()).into(),
            );
        }

        let of_org = open.by_org.entry(org).or_default();
        if *of_org >= self.most_per_org {
            return Err(Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_streams",
                "your organization has too many event streams open; close one first",
            )
            .again_in_secs(10));
        }

        *of_org += 1;
        open.all += 1;
        self.shown.inc();
        Ok(OpenStream {
            streams: self.clone(),
            org,
        })
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let open = &self.streams.open;
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        if let Some(of_org) = open.by_org.get_mut(&self.org) {
            *of_org -= 1;
            if *of_org == 0 {
                open.by_org.remove(&self.org);
            }
        }
        self.streams.shown.dec();
    }
}
