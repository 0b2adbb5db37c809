//! Name resolution. Addresses are filtered before connecting, and the connection goes to the
//! filtered list: there is no second look-up that could return others.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;

use async_trait::async_trait;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

use super::policy::Policy;

/// Most concurrent look-ups. Each occupies a thread for as long as the users' name servers
/// take.
const LOOKUPS_AT_ONCE: usize = 64;

/// Resolver of host names.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// Returns every address of a host.
    async fn addresses(&self, host: &str) -> anyhow::Result<Vec<IpAddr>>;
}

/// Resolver of the operating system.
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
        // The slot moves into the thread, which may outlive a cancelled request.
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

/// Resolver that drops closed addresses.
#[derive(Clone)]
pub(super) struct Vetted {
    pub resolver: Arc<dyn Resolver>,
    pub policy: Arc<Policy>,
}

impl Resolve for Vetted {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let found = resolver.resolver.addresses(name.as_str()).await?;
            let count = found.len();
            let open: Vec<SocketAddr> = found
                .into_iter()
                .filter(|address| resolver.policy.opens(*address))
                .map(|address| SocketAddr::new(address, 0))
                .collect();
            if open.is_empty() {
                return Err(format!("none of its {count} addresses is allowed").into());
            }
            let open: Addrs = Box::new(open.into_iter());
            Ok(open)
        })
    }
}
