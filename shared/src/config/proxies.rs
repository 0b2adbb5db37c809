//! Trusted proxies, whose `X-Forwarded-For` gives the client's address.
//!
//! With a load balancer every connection comes from the balancer, which writes the client's
//! address into `X-Forwarded-For`. A client can write the header as well, so only the entries
//! that trusted addresses have appended count.

use std::net::IpAddr;

use clap::Args;
use ipnet::IpNet;

use super::ConfigErrors;

/// Proxy settings, as typed.
#[derive(Args, Clone, Debug, Default)]
pub struct ProxySettings {
    /// Networks of the load balancers in front of the API, such as 10.0.0.0/8: their
    /// `X-Forwarded-For` gives the client's address. Unset: none.
    #[arg(long, env = "PEAL_TRUSTED_PROXIES", global = true)]
    pub trusted_proxies: Option<String>,
}

/// Networks of the trusted proxies.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl ProxySettings {
    pub(super) fn validate(&self, errors: &mut ConfigErrors) -> Option<TrustedProxies> {
        let text = self.trusted_proxies.as_deref().unwrap_or_default();
        let items = text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty());
        let networks: Option<Vec<IpNet>> = items.map(parse_network).collect();
        let message = || "must be networks such as 10.0.0.0/8,192.0.2.7".to_owned();
        let networks = errors.record("PEAL_TRUSTED_PROXIES", networks.ok_or_else(message))?;
        Some(TrustedProxies(networks))
    }
}

/// Parses a network or a single address.
fn parse_network(text: &str) -> Option<IpNet> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(|_not_a_network| address()).ok()
}

impl TrustedProxies {
    /// Client's address: the last one that is no trusted proxy. `forwarded` are the lines of the
    /// request's `X-Forwarded-For`, in order.
    #[must_use]
    pub fn client_address<'a>(
        &self,
        peer: IpAddr,
        forwarded: impl Iterator<Item = &'a str>,
    ) -> IpAddr {
        let hops: Vec<&str> = forwarded.flat_map(|line| line.split(',')).collect();
        let mut client = peer.to_canonical();
        for hop in hops.into_iter().rev() {
            if !self.0.iter().any(|network| network.contains(&client)) {
                break;
            }
            let Ok(address) = hop.trim().parse::<IpAddr>() else {
                break;
            };
            client = address.to_canonical();
        }
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(text: &str) -> Option<TrustedProxies> {
        let mut errors = ConfigErrors::default();
        let settings = ProxySettings {
            trusted_proxies: Some(text.to_owned()),
        };
        settings.validate(&mut errors)
    }

    #[test]
    fn only_trusted_proxies_set_the_client_address() {
        for (trusted, peer, forwarded, client) in [
            ("", "203.0.113.9", "198.51.100.1", "203.0.113.9"),
            ("10.0.0.0/8", "203.0.113.9", "198.51.100.1", "203.0.113.9"),
            ("10.0.0.0/8", "10.1.2.3", "198.51.100.1", "198.51.100.1"),
            (
                "10.0.0.0/8",
                "::ffff:10.1.2.3",
                "198.51.100.1",
                "198.51.100.1",
            ),
            // The client's own entries precede the proxy's.
            (
                "10.0.0.0/8",
                "10.1.2.3",
                "192.0.2.1, 198.51.100.1",
                "198.51.100.1",
            ),
            (
                "10.0.0.0/8,192.0.2.7",
                "10.1.2.3",
                "198.51.100.1,192.0.2.7",
                "198.51.100.1",
            ),
            ("10.0.0.0/8", "10.1.2.3", "unknown", "10.1.2.3"),
            ("10.0.0.0/8", "10.1.2.3", "", "10.1.2.3"),
        ] {
            let proxies = proxies(trusted).unwrap();

            let found = proxies.client_address(peer.parse().unwrap(), [forwarded].into_iter());
            assert_eq!(found.to_string(), client, "{trusted} {peer} {forwarded}");
        }
    }

    #[test]
    fn invalid_networks_are_refused() {
        assert!(proxies("everybody").is_none());
        assert!(proxies("10.0.0.0/8, ,fd00::/8").is_some());
    }
}
