//! Facts of a request that its layers pass on as extensions: id, client address, caller.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use axum::extract::ConnectInfo;
use axum::http::Request;
use peal_shared::audit::DeniedCaller;
use peal_shared::config::TrustedProxies;

/// Header of an API key.
pub const API_KEY_HEADER: &str = "x-api-key";
/// Header in which a proxy forwards the client's address.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// Client address of a request, as its extension.
#[derive(Clone, Copy, Debug)]
pub struct ClientIp(pub IpAddr);

impl ClientIp {
    /// Address of the connection, or the address that a trusted proxy forwards.
    pub fn of<B>(request: &Request<B>, proxies: &TrustedProxies) -> Option<Self> {
        let ConnectInfo(peer) = request.extensions().get::<ConnectInfo<SocketAddr>>()?;
        let forwarded = request.headers().get_all(FORWARDED_FOR).iter();
        let forwarded = forwarded.map(|line| line.to_str().unwrap_or_default());
        Some(Self(proxies.client_address(peer.ip(), forwarded)))
    }
}

/// Id of a request, as its extension.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// Request extension for the caller's identity: set by authentication, read
/// by the audit of denied requests.
#[derive(Clone, Debug, Default)]
pub struct CallerSlot(Arc<OnceLock<DeniedCaller>>);

impl CallerSlot {
    /// Sets the identity.
    pub fn set(&self, who: DeniedCaller) {
        // A request has one caller, even when it is authenticated twice.
        let _already_set = self.0.set(who);
    }

    /// Returns the identity; anonymous while none is set.
    pub fn caller(&self) -> DeniedCaller {
        self.0.get().cloned().unwrap_or(DeniedCaller::Anonymous)
    }
}
