//! Streaming reader of an upload's form: exactly one part, the file.

use axum::body::Bytes;
use axum::extract::multipart::{Field, Multipart, MultipartError};
use futures::stream;
use futures::stream::{Stream, TryStreamExt as _};
use peal_shared::Error;
use peal_shared::campaigns::ingest;
use peal_shared::campaigns::ingest::{IngestTarget, StoredUpload};
use peal_shared::context::Context;
use sha2::{Digest as _, Sha256};

use crate::batches::uploads::body::BodyMeter;
use crate::http::error::{Problem, Result};

/// Name of the form's part with the file.
const FILE_FIELD: &str = "file";

/// Streams the file into the store. A rejected upload leaves nothing there.
///
/// # Errors
/// The form or the file is invalid.
pub async fn receive(
    context: &Context,
    target: &IngestTarget,
    form: &mut Multipart,
    meter: &BodyMeter,
) -> Result<StoredUpload> {
    let (pool, store, limits) = (&context.pool, &context.store, &context.config.uploads);
    let field = file_field(form, meter).await?;

    let file_name = field.file_name().unwrap_or("upload.csv").to_owned();
    let mut interrupted = None;
    let pieces = chunks(field, meter, &mut interrupted);

    let upload = match ingest::receive(pool, store, target, limits, &file_name, pieces).await {
        Ok(upload) => upload,
        Err(error) => return Err(interrupted.unwrap_or_else(|| error.into())),
    };

    match expect_end(form, meter).await {
        Ok(()) => Ok(upload),
        Err(problem) => {
            ingest::discard_upload(pool, store, &upload).await;
            Err(problem)
        }
    }
}

/// Reads the file and returns its SHA-256.
///
/// # Errors
/// The form is invalid.
pub async fn digest(form: &mut Multipart, meter: &BodyMeter) -> Result<[u8; 32]> {
    let mut field = file_field(form, meter).await?;
    let mut digest = Sha256::new();
    while let Some(piece) = next_chunk(&mut field, meter).await? {
        digest.update(&piece);
    }
    drop(field);
    expect_end(form, meter).await?;
    Ok(digest.finalize().into())
}

async fn file_field<'a>(form: &'a mut Multipart, meter: &BodyMeter) -> Result<Field<'a>> {
    let Some(field) = next_field(form, meter).await? else {
        let msg = "is missing: it holds the CSV file";
        return Err(field_error(FILE_FIELD, "missing", msg));
    };
    match field.name() {
        Some(FILE_FIELD) => Ok(field),
        name => {
            let name = name.unwrap_or_default();
            let msg = "is not a field of this form: send the CSV file in the field file, alone";
            Err(field_error(name, "extra_forbidden", msg))
        }
    }
}

async fn expect_end(form: &mut Multipart, meter: &BodyMeter) -> Result<()> {
    let Some(field) = next_field(form, meter).await? else {
        return Ok(());
    };
    let msg = "comes after the file: send one file and nothing else";
    Err(field_error(
        field.name().unwrap_or_default(),
        "extra_forbidden",
        msg,
    ))
}

/// Streams the chunks of a part; the reason of an early end is stored in `interrupted`.
fn chunks<'a>(
    field: Field<'a>,
    meter: &'a BodyMeter,
    interrupted: &'a mut Option<Problem>,
) -> impl Stream<Item = peal_shared::Result<Bytes>> + Send + 'a {
    let whole = stream::try_unfold(field, async move |mut field| {
        let piece = next_chunk(&mut field, meter).await?;
        Ok(piece.map(|piece| (piece, field)))
    });
    whole.map_err(|problem| {
        *interrupted = Some(problem);
        Error::rejected("upload_incomplete", "the upload was interrupted")
    })
}

async fn next_chunk(field: &mut Field<'_>, meter: &BodyMeter) -> Result<Option<Bytes>> {
    let piece = meter.within_deadline(field.chunk()).await?;
    let piece = piece.map_err(|error| interrupted_upload(&error, meter))?;
    if let Some(piece) = &piece {
        meter.count_file_bytes(piece.len());
    }
    Ok(piece)
}

async fn next_field<'a>(form: &'a mut Multipart, meter: &BodyMeter) -> Result<Option<Field<'a>>> {
    let field = meter.within_deadline(form.next_field()).await?;
    field.map_err(|error| interrupted_upload(&error, meter))
}

fn interrupted_upload(error: &MultipartError, meter: &BodyMeter) -> Problem {
    tracing::debug!(error = error.body_text(), "an upload was interrupted");
    meter.rejection().unwrap_or_else(|| {
        Error::rejected(
            "upload_incomplete",
            "the upload was interrupted, or is not a form; send it again",
        )
        .into()
    })
}

fn field_error(name: &str, kind: &'static str, msg: &str) -> Problem {
    Error::field(name, kind, msg).into()
}
