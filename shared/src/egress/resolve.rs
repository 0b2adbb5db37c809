//! Names to addresses. What comes back is filtered before anybody connects, and the connection
//! goes to the filtered list: there is no second look-up that could answer otherwise.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;

use async_trait::async_trait;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

use super::policy::Policy;

/// The system's resolver occupies a thread for as long as it takes, which strangers' name
/// servers decide.
const LOOKUPS_AT_ONCE: usize = 64;

/// The naming system outside.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// Every address of a host.
    async fn addresses(&self, host: &str) -> anyhow::Result<Vec<IpAddr>>;
}

/// The resolver of the machine.
pub(super) struct System {
    slots: Arc<Semaphore>,
}

impl System {
    pub(super) fn new() -> Self {
        Self {
            slots: Arc::new(Semaphore::new(LOOKUPS_AT_ONCE)),
        }
    }
}

#[async_trait]
impl Resolver for System {
    async fn addresses(&self, host: &str) -> anyhow::Result<Vec<IpAddr>> {
        // The slot goes with the thread: whoever asked may be gone long before it is free.
        let slot = Arc::clone(&self.slots).acquire_owned().await?;
        let host = host.to_owned();
        let found = tokio::task::spawn_blocking(move || {
            let found = (host.as_str(), 0).to_socket_addrs();
            drop(slot);
            found
        });
        Ok(found.await??.map(|address| address.ip()).collect())
    }
}

/// A resolver that keeps quiet about every address that is closed.
#[derive(Clone)]
pub(super) struct Vetted {
    pub resolver: Arc<dyn Resolver>,
    pub policy: Arc<Policy>,
}

impl Resolve for Vetted {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let found = this.resolver.addresses(name.as_str()).await?;
            let count = found.len();
            let open: Vec<SocketAddr> = found
                .into_iter()
                .filter(|address| this.policy.opens(*address))
                .map(|address| SocketAddr::new(address, 0))
                .collect();
            if open.is_empty() {
                return Err(format!("none of its {count} addresses is open").into());
            }
            let open: Addrs = Box::new(open.into_iter());
            Ok(open)
        })
    }
}
