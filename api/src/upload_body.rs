//! The body of an upload, metered: how much of it is read, how fast it comes, and what becomes
//! of the rest when nobody wants it any more.
//!
//! The form's parser holds everything up to the first boundary, and every part's header, in
//! memory. So bytes that do not turn out to be the file's data are bounded, and the body is
//! handed over in small slices, one each time it is asked for.
//!
//! A client that is refused early is often still sending, and a connection closed in its face
//! loses the answer. What is left of a body that is dropped is therefore read, up to a bound,
//! by a task of its own, while the answer is on its way.

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

use crate::error::{Problem, Result};

/// What may surround the file: boundaries, part headers, a preamble.
const FORM_BYTES: u64 = 64 * 1024;
/// How much is handed over at once.
const SLICE_BYTES: usize = 16 * 1024;
/// Every upload has this long, and as much longer as its bytes take at the least rate.
const GRACE: Duration = Duration::from_secs(60);
const LEAST_BYTES_PER_SEC: u64 = 50_000;
/// How much of a body that nobody wants is read, and for how long.
const DRAIN_BYTES: usize = 16 * 1024 * 1024;
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

/// How many more uploads may begin; each holds some parts for the store.
#[derive(Clone)]
pub struct UploadSlots(Arc<Semaphore>);

impl UploadSlots {
    /// So many uploads at the same time.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    /// A place for one upload.
    ///
    /// # Errors
    /// [`Error::Busy`] when all are taken.
    pub fn take(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().map_err(|_none| {
            Error::Busy("too many uploads at once; try again shortly".into()).into()
        })
    }
}

/// Puts the meter around the body of an upload.
pub async fn metered(
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
    let meter = Arc::new(Meter::new(
        limit.saturating_add(FORM_BYTES),
        config.upload_stall,
    ));
    if announced > meter.limit {
        meter.refuse(too_large(limit));
    }
    request.extensions_mut().insert(Arc::clone(&meter));
    let request = request.map(|body| Body::from_stream(Metered::new(body, meter)));
    next.run(request).await
}

fn too_large(limit_bytes: u64) -> Problem {
    Error::TooLarge(format!(
        "the file is larger than {} MB; split it and upload the parts one by one",
        limit_bytes / 1_000_000
    ))
    .into()
}

/// What is known of a body on its way.
pub struct Meter {
    began: Instant,
    /// Of the whole body.
    limit: u64,
    /// For how long the upload may pause between two pieces.
    stall: Duration,
    read: AtomicU64,
    /// Of those read, how many were the file's data.
    data: AtomicU64,
    refusal: OnceLock<Problem>,
}

impl Meter {
    fn new(limit: u64, stall: Duration) -> Self {
        Self {
            began: Instant::now(),
            limit,
            stall,
            read: AtomicU64::new(0),
            data: AtomicU64::new(0),
            refusal: OnceLock::new(),
        }
    }

    /// Notes that so many bytes were the file's data.
    pub fn passed(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.data.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Why the body was not read to its end, if it was the meter that refused.
    pub fn refusal(&self) -> Option<Problem> {
        self.refusal.get().cloned()
    }

    /// Waits for the next piece of the form for as long as an upload may take.
    ///
    /// # Errors
    /// 408 when it does not come.
    pub async fn within<T>(&self, piece: impl Future<Output = T>) -> Result<T> {
        let pause = Instant::now() + self.stall;
        timeout_at(self.due().min(pause), piece).await.map_err(|_elapsed| {
            Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "upload_stalled",
                "the file comes too slowly, or not at all; send it again over a better connection",
            )
        })
    }

    /// When the rest of the upload must be there, were this all of it.
    fn due(&self) -> Instant {
        let bytes = self.read.load(Ordering::Relaxed);
        self.began + GRACE + Duration::from_secs(bytes / LEAST_BYTES_PER_SEC)
    }

    fn refuse(&self, problem: Problem) {
        let _first_wins = self.refusal.set(problem);
    }

    /// Refuses the body when it is too much, before any more is read.
    fn check(&self) -> Option<Refused> {
        let read = self.read.load(Ordering::Relaxed);
        if read > self.limit {
            self.refuse(too_large(self.limit.saturating_sub(FORM_BYTES)));
        } else if read.saturating_sub(self.data.load(Ordering::Relaxed)) > FORM_BYTES {
            self.refuse(
                Error::rejected(
                    "form_unreadable",
                    "the form's part file does not begin, or its header does not end; send the CSV file as multipart/form-data, in the field file",
                )
                .into(),
            );
        }
        self.refusal.get().map(|_problem| Refused)
    }
}

/// The meter has refused; it knows why.
#[derive(Debug)]
struct Refused;

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the body was refused")
    }
}

impl std::error::Error for Refused {}

/// The body, in slices.
struct Metered {
    /// None once it has ended.
    body: Option<BodyDataStream>,
    piece: Bytes,
    meter: Arc<Meter>,
    /// The reader of the form reads until it has to wait, so it waits behind each slice.
    pausing: bool,
}

impl Metered {
    fn new(body: Body, meter: Arc<Meter>) -> Self {
        Self {
            body: Some(body.into_data_stream()),
            piece: Bytes::new(),
            meter,
            pausing: false,
        }
    }
}

impl Stream for Metered {
    type Item = std::result::Result<Bytes, axum::BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if std::mem::take(&mut this.pausing) {
            poller.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(refused) = this.meter.check() {
            return Poll::Ready(Some(Err(refused.into())));
        }
        while this.piece.is_empty() {
            let Some(body) = &mut this.body else {
                return Poll::Ready(None);
            };
            match ready!(body.poll_next_unpin(poller)) {
                Some(Ok(piece)) => this.piece = piece,
                Some(Err(error)) => {
                    this.body = None;
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => this.body = None,
            }
        }
        let slice = this.piece.split_to(this.piece.len().min(SLICE_BYTES));
        let bytes = u64::try_from(slice.len()).unwrap_or(u64::MAX);
        this.meter.read.fetch_add(bytes, Ordering::Relaxed);
        this.pausing = true;
        Poll::Ready(Some(Ok(slice)))
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        if let (Some(body), Ok(runtime)) = (self.body.take(), Handle::try_current()) {
            runtime.spawn(timeout(DRAIN_LIMIT, drain(body)));
        }
    }
}

async fn drain(mut body: BodyDataStream) {
    let mut left = DRAIN_BYTES;
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

    fn metered(pieces: usize, bytes: usize, limit: u64) -> (Metered, Arc<Meter>) {
        let piece = Bytes::from(vec![b'x'; bytes]);
        let pieces = (0..pieces).map(move |_| Ok::<_, axum::BoxError>(piece.clone()));
        let meter = Arc::new(Meter::new(limit, STALL));
        let body = Body::from_stream(stream::iter(pieces));
        (Metered::new(body, Arc::clone(&meter)), meter)
    }

    #[tokio::test]
    async fn what_is_not_the_files_data_is_bounded() {
        let (mut body, meter) = metered(usize::MAX, 100_000, u64::MAX);
        let mut read = 0;
        while let Some(Ok(slice)) = body.next().await {
            assert!(slice.len() <= SLICE_BYTES);
            read += slice.len();
        }
        assert!(read <= 96 * 1024, "{read}");
        assert!(meter.refusal().is_some());
    }

    #[tokio::test]
    async fn the_files_data_is_bounded_by_the_whole() {
        let (mut body, meter) = metered(100, 100_000, 10_000_000);
        let mut read = 0;
        while let Some(slice) = body.next().await {
            let slice = slice.unwrap();
            meter.passed(slice.len());
            read += slice.len();
        }
        assert_eq!(read, 10_000_000);
        let (mut body, meter) = metered(usize::MAX, 100_000, 10_000_000);
        while let Some(Ok(slice)) = body.next().await {
            meter.passed(slice.len());
        }
        assert!(meter.refusal().is_some());
    }

    #[tokio::test]
    async fn an_upload_has_the_time_that_its_bytes_take() {
        let meter = Meter::new(1_000_000, STALL);
        for (read, secs) in [(0, 60), (49_999, 60), (100_000, 62), (200_000_000, 4_060)] {
            meter.read.store(read, Ordering::Relaxed);
            assert_eq!(meter.due() - meter.began, Duration::from_secs(secs));
        }
        let late = Meter {
            began: Instant::now() - 2 * GRACE,
            ..Meter::new(1_000_000, STALL)
        };
        let problem = late.within(std::future::pending::<()>()).await.unwrap_err();
        assert!(format!("{problem:?}").contains("upload_stalled"));
    }
}
