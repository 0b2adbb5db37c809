//! TCP listener whose connections can be cut by a request handler, and which reports when the
//! kernel received a request.
//!
//! An HTTP server always answers; a carrier whose connection breaks does not. Cutting a
//! connection makes every later write fail, so the server closes the socket and the client sees
//! the connection end without an answer.
//!
//! On a busy machine a request may be read long after its arrival, and the next one at once. A
//! rate measured by reads then shows a burst that was never sent, so the arrival is the kernel's
//! receive time where the system reports it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

pub(crate) struct StampedListener(pub(crate) TcpListener);

pub(crate) struct StampedStream {
    stream: TcpStream,
    connection: ConnectionHandle,
}

/// The connection of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionHandle(Arc<ConnectionState>);

#[derive(Debug, Default)]
struct ConnectionState {
    cut: AtomicBool,
    /// Receive time of the last read, in microseconds of Unix time; 0 where the kernel does not
    /// report it.
    received: AtomicU64,
}

impl ConnectionHandle {
    pub(crate) fn cut(&self) {
        self.0.cut.store(true, Ordering::Release);
    }

    /// Time since the request was received.
    pub(crate) fn received_ago(&self) -> Duration {
        let received = match self.0.received.load(Ordering::Acquire) {
            0 => return Duration::ZERO,
            micros => UNIX_EPOCH + Duration::from_micros(micros),
        };
        // Zero if the clock was set back meanwhile.
        SystemTime::now()
            .duration_since(received)
            .unwrap_or_default()
    }
}

impl Listener for StampedListener {
    type Io = StampedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (StampedStream, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok((stream, address)) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "cannot set TCP_NODELAY");
                    }
                    if let Err(error) = stamped::enable(&stream) {
                        tracing::debug!(%error, "the kernel does not report receive times");
                    }
                    let connection = ConnectionHandle::default();
                    return (StampedStream { stream, connection }, address);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Out of file descriptors: give open connections time to close.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Connected<IncomingStream<'_, StampedListener>> for ConnectionHandle {
    fn connect_info(stream: IncomingStream<'_, StampedListener>) -> Self {
        stream.io().connection.clone()
    }
}

impl StampedStream {
    fn ensure_not_cut(&self) -> io::Result<()> {
        if self.connection.0.cut.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl AsyncRead for StampedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let unfilled = buf.initialize_unfilled();
            let read = self
                .stream
                .try_io(Interest::READABLE, || stamped::read(&self.stream, unfilled));
            match read {
                Ok((bytes, received)) => {
                    buf.advance(bytes);
                    if let Some(micros) = received {
                        let known = &self.connection.0;
                        known.received.store(micros, Ordering::Release);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for StampedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.ensure_not_cut()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.ensure_not_cut()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Reads with the kernel's receive time of their last byte, in microseconds of Unix time.
#[cfg(target_os = "linux")]
mod stamped {
    use std::io;
    use std::os::fd::AsRawFd;

    use nix::cmsg_space;
    use nix::sys::socket::sockopt::ReceiveTimestampns;
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};
    use nix::sys::time::TimeSpec;
    use tokio::net::TcpStream;

    pub(super) fn enable(stream: &TcpStream) -> io::Result<()> {
        Ok(setsockopt(stream, ReceiveTimestampns, &true)?)
    }

    pub(super) fn read(stream: &TcpStream, buf: &mut [u8]) -> io::Result<(usize, Option<u64>)> {
        let mut buffers = [io::IoSliceMut::new(buf)];
        let mut control = cmsg_space!(TimeSpec);
        let message = recvmsg::<SockaddrStorage>(
            stream.as_raw_fd(),
            &mut buffers,
            Some(&mut control),
            MsgFlags::empty(),
        )?;
        let messages = message.cmsgs().into_iter().flatten();
        let received = messages
            .filter_map(|control| match control {
                ControlMessageOwned::ScmTimestampns(at) => micros(at),
                _ => None,
            })
            .last();
        Ok((message.bytes, received))
    }

    fn micros(at: TimeSpec) -> Option<u64> {
        let seconds = u64::try_from(at.tv_sec()).ok()?;
        let nanos = u64::try_from(at.tv_nsec()).ok()?;
        seconds.checked_mul(1_000_000)?.checked_add(nanos / 1000)
    }
}

#[cfg(not(target_os = "linux"))]
mod stamped {
    use std::io;

    use tokio::net::TcpStream;

    pub(super) fn enable(_stream: &TcpStream) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn read(stream: &TcpStream, buf: &mut [u8]) -> io::Result<(usize, Option<u64>)> {
        Ok((stream.try_read(buf)?, None))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_request_has_arrived_before_it_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let (mut accepted, _) = StampedListener(listener).accept().await;
        for request in [b"first", b"other"] {
            client.write_all(request).await.unwrap();
            accepted.stream.readable().await.unwrap();
            let arrived = Instant::now();
            tokio::time::sleep(Duration::from_millis(20)).await;
            let mut bytes = [0; 5];
            accepted.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, request);
            let waited = arrived.elapsed();
            assert!(accepted.connection.received_ago() >= waited);
        }
    }
}
