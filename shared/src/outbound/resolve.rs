//! Name resolution. Addresses are filtered before connecting, and the connection goes to the
//! filtered list: there is no second look-up that could return others.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;

use async_trait::async_trait;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

use super::policy::OutboundPolicy;

/// Most concurrent look-ups. Each occupies a thread for as long as the users' name servers
/// take.
const MAX_LOOKUPS: usize = 64;

/// Resolver of host names.
#[async_trait]
pub trait HostResolver: Send + Sync {
    /// Returns every address of a host.
    async fn addresses(&self, host: &str) -> anyhow::Result<Vec<IpAddr>>;
}

/// Resolver of the operating system.
pub(super) struct SystemResolver {
    slots: Arc<Semaphore>,
}

impl SystemResolver {
    pub(super) fn new() -> Self {
        Self {
            slots: Arc::new(Semaphore::new(MAX_LOOKUPS)),
        }
    }
}

#[async_trait]
impl HostResolver for SystemResolver {
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
pub(super) struct FilteringResolver {
    pub resolver: Arc<dyn HostResolver>,
    pub policy: Arc<OutboundPolicy>,
}

impl Resolve for FilteringResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let found = resolver.resolver.addresses(name.as_str()).await?;
            let count = found.len();
            let open: Vec<SocketAddr> = found
                .into_iter()
                .filter(|address| resolver.policy.allows(*address))
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
