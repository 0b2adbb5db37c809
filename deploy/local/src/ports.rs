//! Free ports on the loopback interface.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use anyhow::{Context, Result};

/// How often a server is tried on another port when somebody took the one it was given.
pub const ATTEMPTS: usize = 5;

/// A port that nobody listens on at this moment. Between this answer and its use another
/// process may take it, so whoever starts a server on it tries again on a clash.
pub fn free() -> Result<u16> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}

/// The port that `file` remembers if it is still free, else a free one, remembered: an
/// address that people copied stays good when they start Peal again.
pub fn remembered(file: &Path) -> Result<u16> {
    if let Ok(text) = fs::read_to_string(file)
        && let Ok(port) = text.trim().parse::<u16>()
        && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
    {
        return Ok(port);
    }
    let port = free()?;
    fs::write(file, port.to_string()).with_context(|| format!("writing {file:?}"))?;
    Ok(port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_port_is_remembered_while_it_is_free() {
        let file = std::env::temp_dir().join(format!("peal-port-{}", Uuid::new_v4().simple()));
        let port = remembered(&file).unwrap();
        assert_eq!(remembered(&file).unwrap(), port);

        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let other = remembered(&file).unwrap();
        assert_ne!(other, port);
        drop(taken);
        assert_eq!(remembered(&file).unwrap(), other);
        fs::remove_file(&file).unwrap();
    }
}
