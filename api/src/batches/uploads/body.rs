//! Metered body of an upload: limits of its size and rate, and draining of a rejected rest.
//!
//! The form's parser keeps everything up to the first boundary, and every part's header, in
//! memory. Bytes that are not the file's data are therefore bounded, and the body is passed on
//! in small slices, one per poll.
//!
//! A client that is rejected early is often still sending, and loses the response when the
//! connection closes. A separate task therefore reads the rest of a dropped body, up to a bound,
//! while the response is sent.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context as Poller, Poll, ready};
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::Response;
use futures::stream::{Stream, StreamExt as _};
use peal_shared::Error;
use peal_shared::context::Context;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use crate::http::error::{Problem, Result};

/// Maximum of bytes around the file: boundaries, part headers, a preamble.
const MAX_FORM_BYTES: u64 = 64 * 1024;
/// Largest slice that is passed on.
const SLICE_BYTES: usize = 16 * 1024;
/// Time of every upload, besides the time of its bytes at the minimum rate.
const BASE_TIME: Duration = Duration::from_secs(60);
/// Minimum rate of an upload.
const MIN_BYTES_PER_SEC: u64 = 50_000;
/// Limits of draining a rejected body: bytes and time.
const MAX_DRAIN_BYTES: usize = 16 * 1024 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// Free slots for uploads; each upload buffers some parts for the store.
#[derive(Clone)]
pub struct UploadSlots(Arc<Semaphore>);

impl UploadSlots {
    /// Creates `most` slots.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    /// Takes a slot.
    ///
    /// # Errors
    /// [`Error::Busy`] when none is free.
    pub fn try_acquire(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().map_err(|_none| {
            Error::Busy("too many uploads at once; try again shortly".into()).into()
        })
    }
}

/// Middleware that meters the body of an upload.
pub async fn meter_body(
    Extension(context): Extension<Arc<Context>>,
    mut request: Request,
    next: Next,
) -> Response {
    let config = &context.config;
    let limit = config.uploads.max_bytes;

    let announced = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok())
        .unwrap_or(0);

    let meter = Arc::new(BodyMeter::new(
        limit.saturating_add(MAX_FORM_BYTES),
        config.upload_stall_timeout,
    ));

    if announced > meter.limit {
        meter.reject(too_large(limit));
    }

    request.extensions_mut().insert(Arc::clone(&meter));
    let request = request.map(|body| Body::from_stream(MeteredBody::new(body, meter)));
    next.run(request).await
}

fn too_large(limit_bytes: u64) -> Problem {
    Error::TooLarge(format!(
        "the file is larger than {} MB; split it and upload the parts one by one",
        limit_bytes / 1_000_000
    ))
    .into()
}

/// Progress and limits of a body.
pub struct BodyMeter {
    started_at: Instant,
    /// Maximum of the whole body.
    limit: u64,
    /// Longest pause between two chunks.
    stall: Duration,
    read_bytes: AtomicU64,
    /// Bytes of the file's data among those read.
    file_bytes: AtomicU64,
    rejection: OnceLock<Problem>,
}

impl BodyMeter {
    fn new(limit: u64, stall: Duration) -> Self {
        Self {
            started_at: Instant::now(),
            limit,
            stall,
            read_bytes: AtomicU64::new(0),
            file_bytes: AtomicU64::new(0),
            rejection: OnceLock::new(),
        }
    }

    /// Counts bytes of the file's data.
    pub fn count_file_bytes(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.file_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Reason when the meter rejected the body.
    pub fn rejection(&self) -> Option<Problem> {
        self.rejection.get().cloned()
    }

    /// Waits for the next chunk of the form, up to the deadline.
    ///
    /// # Errors
    /// 408 after the deadline.
    pub async fn within_deadline<T>(&self, piece: impl Future<Output = T>) -> Result<T> {
        let pause = Instant::now() + self.stall;
        timeout_at(self.deadline().min(pause), piece).await.map_err(|_elapsed| {
            Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "upload_stalled",
                "the upload is too slow or has stalled; send the file again over a better connection",
            )
        })
    }

    /// Deadline of the upload for the bytes read so far.
    fn deadline(&self) -> Instant {
        let bytes = self.read_bytes.load(Ordering::Relaxed);
        self.started_at + BASE_TIME + Duration::from_secs(bytes / MIN_BYTES_PER_SEC)
    }

    fn reject(&self, problem: Problem) {
        let _first_wins = self.rejection.set(problem);
    }

    /// Rejects a body over its limits before more is read.
    fn check(&self) -> Option<MeterRejection> {
        let read = self.read_bytes.load(Ordering::Relaxed);
        if read > self.limit {
            self.reject(too_large(self.limit.saturating_sub(MAX_FORM_BYTES)));
        } else if read.saturating_sub(self.file_bytes.load(Ordering::Relaxed)) > MAX_FORM_BYTES {
            self.reject(
                Error::rejected(
                    "form_unreadable",
                    "the form has no complete part named file; send the CSV file as multipart/form-data, in the field file",
                )
                .into(),
            );
        }
        self.rejection.get().map(|_problem| MeterRejection)
    }
}

/// Rejection by the meter, which holds the reason.
#[derive(Debug)]
struct MeterRejection;

impl std::fmt::Display for MeterRejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the body was rejected")
    }
}

impl std::error::Error for MeterRejection {}

/// Metered body, in slices.
struct MeteredBody {
    /// `None` after its end.
    body: Option<BodyDataStream>,
    chunk: Bytes,
    meter: Arc<BodyMeter>,
    /// The form's parser reads until it has to wait, so it waits after each slice.
    yields: bool,
}

impl MeteredBody {
    fn new(body: Body, meter: Arc<BodyMeter>) -> Self {
        Self {
            body: Some(body.into_data_stream()),
            chunk: Bytes::new(),
            meter,
            yields: false,
        }
    }
}

impl Stream for MeteredBody {
    type Item = std::result::Result<Bytes, axum::BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if std::mem::take(&mut this.yields) {
            poller.waker().wake_by_ref();
            return Poll::Pending;
        }

        if let Some(refused) = this.meter.check() {
            return Poll::Ready(Some(Err(refused.into())));
        }

        while this.chunk.is_empty() {
            let Some(body) = &mut this.body else {
                return Poll::Ready(None);
            };
            match ready!(body.poll_next_unpin(poller)) {
                Some(Ok(piece)) => this.chunk = piece,
                Some(Err(error)) => {
                    this.body = None;
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => this.body = None,
            }
        }

        let slice = this.chunk.split_to(this.chunk.len().min(SLICE_BYTES));
        let bytes = u64::try_from(slice.len()).unwrap_or(u64::MAX);
        this.meter.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        this.yields = true;
        Poll::Ready(Some(Ok(slice)))
    }
}

impl Drop for MeteredBody {
    fn drop(&mut self) {
        if let (Some(body), Ok(runtime)) = (self.body.take(), Handle::try_current()) {
            runtime.spawn(timeout(DRAIN_TIMEOUT, drain(body)));
        }
    }
}

async fn drain(mut body: BodyDataStream) {
    let mut left = MAX_DRAIN_BYTES;
    while let Some(Ok(piece)) = body.next().await {
        match left.checked_sub(piece.len()) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    const STALL: Duration = Duration::from_secs(30);

    fn meter_body(pieces: usize, bytes: usize, limit: u64) -> (MeteredBody, Arc<BodyMeter>) {
        let piece = Bytes::from(vec![b'x'; bytes]);
        let pieces = (0..pieces).map(move |_| Ok::<_, axum::BoxError>(piece.clone()));
        let meter = Arc::new(BodyMeter::new(limit, STALL));
        let body = Body::from_stream(stream::iter(pieces));
        (MeteredBody::new(body, Arc::clone(&meter)), meter)
    }

    #[tokio::test]
    async fn bytes_around_the_file_are_bounded() {
        let (mut body, meter) = meter_body(usize::MAX, 100_000, u64::MAX);
        let mut read = 0;
        while let Some(Ok(slice)) = body.next().await {
            assert!(slice.len() <= SLICE_BYTES);
            read += slice.len();
        }
        assert!(read <= 96 * 1024, "{read}");
        assert!(meter.rejection().is_some());
    }

    #[tokio::test]
    async fn the_file_is_bounded_by_the_limit_of_the_body() {
        let (mut body, meter) = meter_body(100, 100_000, 10_000_000);
        let mut read = 0;
        while let Some(slice) = body.next().await {
            let slice = slice.unwrap();
            meter.count_file_bytes(slice.len());
            read += slice.len();
        }
        assert_eq!(read, 10_000_000);
        let (mut body, meter) = meter_body(usize::MAX, 100_000, 10_000_000);
        while let Some(Ok(slice)) = body.next().await {
            meter.count_file_bytes(slice.len());
        }
        assert!(meter.rejection().is_some());
    }

    #[tokio::test]
    async fn the_deadline_grows_with_the_bytes_read() {
        let meter = BodyMeter::new(1_000_000, STALL);
        for (read, secs) in [(0, 60), (49_999, 60), (100_000, 62), (200_000_000, 4_060)] {
            meter.read_bytes.store(read, Ordering::Relaxed);
            assert_eq!(
                meter.deadline() - meter.started_at,
                Duration::from_secs(secs)
            );
        }
        let late = BodyMeter {
            started_at: Instant::now() - 2 * BASE_TIME,
            ..BodyMeter::new(1_000_000, STALL)
        };
        let problem = late
            .within_deadline(std::future::pending::<()>())
            .await
            .unwrap_err();
        assert!(format!("{problem:?}").contains("upload_stalled"));
    }
}
