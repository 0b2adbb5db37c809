//! Storage of files that are too large for a row: uploads and exports.
//!
//! A [`Store`] is a directory (`file:///var/lib/peal`), a bucket (`s3://bucket/prefix`, with the
//! usual `AWS_*` variables) or the process's memory (`memory:///`, for tests). A file is written
//! once, under a generated key, and appears under that key only when it is complete: a broken or
//! oversized upload leaves nothing behind. If the process dies during an upload, a directory keeps
//! a hidden part file, which [`Store::delete_parts`] removes, and a bucket an unfinished multipart
//! upload; give the bucket a lifecycle rule that removes those.
//!
//! This module knows neither the content of a file nor its readers' rights.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{Stream, TryStreamExt as _};
use futures::{StreamExt as _, pin_mut, stream};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, WriteMultipart};
use sha2::{Digest as _, Sha256};
use tokio::fs;
use url::Url;

use crate::platform::error::{Error, Result};

/// Bytes per read. Each read is a request of its own, so that a reader may pause between two
/// without a limit.
const READ_BYTES: u64 = 1024 * 1024;
/// Maximum parts of an upload, of 5 MiB each, that are sent concurrently.
const PARTS_IN_FLIGHT: usize = 2;

/// Directory, bucket or memory that holds files.
#[derive(Clone, Debug)]
pub struct FileStore {
    inner: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Set for a `file:` URL.
    directory: Option<PathBuf>,
}

/// Size and digest of a stored file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredFile {
    pub bytes: u64,
    pub sha256: [u8; 32],
}

impl FileStore {
    /// Opens the store at a URL; creates the directory of a `file:` URL.
    ///
    /// # Errors
    /// [`Error::Rejected`] when the URL names no supported store.
    pub fn open(url: &str) -> Result<Self> {
        let unusable = |why: String| Error::rejected("store_url_unusable", why);
        let url = Url::parse(url).map_err(|error| unusable(format!("the store URL: {error}")))?;
        let path = Path::from_url_path(url.path())
            .map_err(|error| unusable(format!("the path of the store URL: {error}")))?;

        let mut directory = None;
        let (inner, prefix): (Arc<dyn ObjectStore>, Path) = match url.scheme() {
            "file" => {
                let path = url
                    .to_file_path()
                    .map_err(|()| unusable("a file URL needs an absolute path".to_owned()))?;
                std::fs::create_dir_all(&path)
                    .map_err(|error| unusable(format!("{}: {error}", path.display())))?;
                let files = LocalFileSystem::new_with_prefix(&path)
                    .map_err(|error| unusable(error.to_string()))?
                    .with_fsync(true);
                directory = Some(path);
                (Arc::new(files), Path::default())
            }
            "s3" => {
                let bucket = AmazonS3Builder::from_env()
                    .with_url(url.as_str())
                    .build()
                    .map_err(|error| unusable(error.to_string()))?;
                (Arc::new(bucket), path)
            }
            "memory" => (Arc::new(InMemory::new()), path),
            other => {
                return Err(unusable(format!(
                    "{other} is not supported; use file:///directory or s3://bucket/prefix"
                )));
            }
        };

        Ok(Self {
            inner,
            prefix,
            directory,
        })
    }

    /// Streams `body` into a new file. Holds at most a few parts in memory, and stops reading
    /// at the first byte over the limit.
    ///
    /// # Errors
    /// [`Error::TooLarge`] over `limit_bytes`, the body's own error, or [`Error::Outside`]; in
    /// every case no file remains.
    pub async fn put_stream(
        &self,
        key: &str,
        body: impl Stream<Item = Result<Bytes>> + Send,
        limit_bytes: u64,
    ) -> Result<StoredFile> {
        let path = self.path(key)?;
        let upload = self.inner.put_multipart(&path).await.map_err(store_error)?;
        let mut writer = WriteMultipart::new(upload);

        match write_all(&mut writer, body, limit_bytes).await {
            Ok(stored) => {
                if let Err(error) = writer.finish().await {
                    // The store may have made the file appear before it failed.
                    if let Err(left_over) = self.delete(key).await {
                        tracing::warn!(file.key = key, error = %left_over, "an upload could not be removed");
                    }
                    return Err(store_error(error));
                }
                Ok(stored)
            }
            Err(error) => {
                if let Err(left_over) = writer.abort().await {
                    tracing::warn!(file.key = key, error = %left_over, "an upload could not be removed");
                }
                Err(error)
            }
        }
    }

    /// Reads the file from `from_offset` on; empty when the file ends there. The stream yields
    /// [`Error::NotFound`] when there is no such file.
    pub fn read(
        &self,
        key: &str,
        from_offset: u64,
    ) -> impl Stream<Item = Result<Bytes>> + Send + Unpin + 'static {
        let inner = Arc::clone(&self.inner);

        let path = self.path(key);
        stream::once(async move {
            let path = path?;
            let size = inner.head(&path).await.map_err(store_error)?.size;
            Ok::<_, Error>(stream::try_unfold(from_offset, move |offset| {
                let inner = Arc::clone(&inner);
                let path = path.clone();
                async move {
                    if offset >= size {
                        return Ok(None);
                    }
                    let end = size.min(offset.saturating_add(READ_BYTES));
                    let bytes = inner
                        .get_range(&path, offset..end)
                        .await
                        .map_err(store_error)?;
                    Ok(Some((bytes, end)))
                }
            }))
        })
        .try_flatten()
        .boxed()
    }

    /// Removes the file. Succeeds when there is none.
    ///
    /// # Errors
    /// [`Error::Outside`].
    pub async fn delete(&self, key: &str) -> Result<()> {
        match self.inner.delete(&self.path(key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(store_error(error)),
        }
    }

    /// Removes the part files of a process that died while it wrote the file to a directory.
    ///
    /// # Errors
    /// [`Error::Outside`].
    pub async fn delete_parts(&self, key: &str) -> Result<()> {
        let Some(directory) = &self.directory else {
            return Ok(());
        };
        let whole = directory.join(self.path(key)?.as_ref());
        let (Some(folder), Some(name)) = (whole.parent(), whole.file_name()) else {
            return Ok(());
        };

        // The local store writes to `name#1`, or the next number that is free, and renames.
        let parts = [name.as_encoded_bytes(), b"#"].concat();
        let failed = |error: std::io::Error| Error::Outside {
            service: "store",
            retryable: true,
            detail: error.to_string(),
        };

        let mut entries = match fs::read_dir(folder).await {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };

        while let Some(entry) = entries.next_entry().await.map_err(failed)? {
            if entry.file_name().as_encoded_bytes().starts_with(&parts) {
                fs::remove_file(entry.path()).await.map_err(failed)?;
            }
        }
        Ok(())
    }

    fn path(&self, key: &str) -> Result<Path> {
        let key = Path::parse(key).map_err(|error| Error::Unexpected(error.into()))?;
        Ok(self.prefix.parts().chain(key.parts()).collect())
    }
}

async fn write_all(
    writer: &mut WriteMultipart,
    body: impl Stream<Item = Result<Bytes>> + Send,
    limit_bytes: u64,
) -> Result<StoredFile> {
    let mut hash = Sha256::new();
    let mut bytes = 0_u64;
    pin_mut!(body);

    while let Some(piece) = body.try_next().await? {
        bytes = bytes.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        if bytes > limit_bytes {
            return Err(Error::TooLarge(format!(
                "the file is larger than {} MB; split it and upload the parts one by one",
                limit_bytes / 1_000_000
            )));
        }

        hash.update(&piece);
        writer
            .wait_for_capacity(PARTS_IN_FLIGHT)
            .await
            .map_err(store_error)?;
        writer.put(piece);
    }

    Ok(StoredFile {
        bytes,
        sha256: hash.finalize().into(),
    })
}

fn store_error(error: object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => Error::NotFound("file"),
        error => Error::Outside {
            service: "store",
            retryable: true,
            detail: error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(pieces: Vec<Result<Bytes>>) -> impl Stream<Item = Result<Bytes>> + Send {
        stream::iter(pieces)
    }

    async fn text(store: &FileStore, key: &str, from: u64) -> Result<String> {
        let bytes: Vec<Bytes> = store.read(key, from).try_collect().await?;
        Ok(String::from_utf8(bytes.concat()).unwrap())
    }

    fn directory() -> (std::path::PathBuf, FileStore) {
        let name = crate::platform::ids::IngestId::new().to_string();
        let directory = std::env::temp_dir().join(format!("peal-store-{name}"));
        let store = FileStore::open(&format!("file://{}", directory.display())).unwrap();
        (directory, store)
    }

    #[tokio::test]
    async fn a_file_is_written_read_from_any_place_and_removed() {
        let (path, local) = directory();
        for store in [local, FileStore::open("memory:///some/prefix").unwrap()] {
            let body = pieces(vec![
                Ok("hello ".into()),
                Ok(Bytes::new()),
                Ok("world".into()),
            ]);
            let stored = store.put_stream("a/b.csv", body, 11).await.unwrap();
            assert_eq!(stored.bytes, 11);
            assert_eq!(
                hex::encode(stored.sha256),
                "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"
            );
            assert_eq!(text(&store, "a/b.csv", 0).await.unwrap(), "hello world");
            assert_eq!(text(&store, "a/b.csv", 6).await.unwrap(), "world");
            assert_eq!(text(&store, "a/b.csv", 11).await.unwrap(), "");
            assert_eq!(text(&store, "a/b.csv", 99).await.unwrap(), "");

            store.delete("a/b.csv").await.unwrap();
            store.delete("a/b.csv").await.unwrap();
            let gone = text(&store, "a/b.csv", 0).await.unwrap_err();
            assert!(matches!(gone, Error::NotFound("file")));
        }
        std::fs::remove_dir_all(path).unwrap();
    }

    #[tokio::test]
    async fn a_large_file_comes_back_whole() {
        let (path, store) = directory();
        let piece = Bytes::from("0123456789".repeat(70_000));
        let body = pieces((0..10).map(|_| Ok(piece.clone())).collect());
        let stored = store.put_stream("large", body, 7_000_000).await.unwrap();
        assert_eq!(stored.bytes, 7_000_000);
        let read = text(&store, "large", 0).await.unwrap();
        assert_eq!(read.len(), 7_000_000);
        assert_eq!(
            <[u8; 32]>::from(Sha256::digest(read.as_bytes())),
            stored.sha256
        );
        std::fs::remove_dir_all(path).unwrap();
    }

    #[tokio::test]
    async fn a_broken_or_oversized_upload_leaves_nothing() {
        let (path, store) = directory();
        let over = pieces(vec![Ok("hello ".into()), Ok("world".into())]);
        let error = store.put_stream("over", over, 10).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge(_)), "{error}");
        let broken = pieces(vec![Ok("hello".into()), Err(Error::Busy("gone".into()))]);
        let error = store.put_stream("broken", broken, 10).await.unwrap_err();
        assert!(matches!(error, Error::Busy(_)), "{error}");
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
        std::fs::remove_dir_all(path).unwrap();
    }

    #[tokio::test]
    async fn a_key_stays_inside_the_store() {
        let store = FileStore::open("memory:///").unwrap();
        for key in ["../escape", "a/../../b", "a//b"] {
            assert!(text(&store, key, 0).await.is_err(), "{key}");
            assert!(store.delete(key).await.is_err(), "{key}");
        }
        for url in ["", "relative", "ftp://host/", "s3://"] {
            assert!(FileStore::open(url).is_err(), "{url}");
        }
    }
}
