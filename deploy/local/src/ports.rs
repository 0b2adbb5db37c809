//! Free ports on the loopback interface.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use anyhow::{Context, Result};
use tokio::net::TcpSocket;

/// Most attempts to start a server when its port is taken by another process.
pub const MAX_PORT_ATTEMPTS: usize = 5;

/// A port that the kernel assigns to no other process while this value lives.
///
/// On Linux a bound socket that does not listen reserves the port; connections to it are
/// refused. A server that binds the port explicitly still succeeds, any number of times, because
/// servers set `SO_REUSEADDR`. Other systems would refuse the server too, so there the port is
/// not reserved.
#[derive(Debug)]
pub struct ReservedPort {
    address: SocketAddr,
    _socket: Option<TcpSocket>,
}

impl ReservedPort {
    /// A free port of 127.0.0.1.
    pub fn localhost() -> Result<Self> {
        Self::on_host(Ipv4Addr::LOCALHOST)
    }

    /// A free port of an address of this machine.
    pub fn on_host(host: Ipv4Addr) -> Result<Self> {
        let held = || -> std::io::Result<Self> {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind((host, 0).into())?;
            Ok(Self {
                address: socket.local_addr()?,
                _socket: cfg!(target_os = "linux").then_some(socket),
            })
        };
        held().with_context(|| format!("no free port on {host}"))
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

/// Returns the port saved in `file` if it is free, otherwise a free port, which it saves: an
/// address that a user has copied stays valid after a restart.
pub fn reuse_saved_port(file: &Path) -> Result<u16> {
    if let Ok(text) = fs::read_to_string(file)
        && let Ok(port) = text.trim().parse::<u16>()
        && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
    {
        return Ok(port);
    }
    let port = ReservedPort::localhost()?.port();
    fs::write(file, port.to_string()).with_context(|| format!("writing {file:?}"))?;
    Ok(port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::net::TcpStream;
    use uuid::Uuid;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_reserved_port_is_usable_by_a_server_that_names_it() {
        let held = ReservedPort::localhost().unwrap();
        TcpStream::connect(held.address()).unwrap_err();
        let taken = TcpSocket::new_v4().unwrap().bind(held.address());
        assert_eq!(taken.unwrap_err().kind(), ErrorKind::AddrInUse);
        for _ in 0..2 {
            let server = TcpListener::bind(held.address()).unwrap();
            TcpStream::connect(held.address()).unwrap();
            drop(server);
        }
    }

    #[test]
    fn a_saved_port_is_reused_while_it_is_free() {
        let file = std::env::temp_dir().join(format!("peal-port-{}", Uuid::new_v4().simple()));
        let port = reuse_saved_port(&file).unwrap();
        assert_eq!(reuse_saved_port(&file).unwrap(), port);

        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let other = reuse_saved_port(&file).unwrap();
        assert_ne!(other, port);
        drop(taken);
        assert_eq!(reuse_saved_port(&file).unwrap(), other);
        fs::remove_file(&file).unwrap();
    }
}
