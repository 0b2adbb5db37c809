//! Whose word counts for where a request comes from.
//!
//! Behind a load balancer every connection comes from the balancer. It writes the client's
//! address into `X-Forwarded-For`, and so can anybody else; the header counts as far as
//! addresses that are trusted have written it.

use std::net::IpAddr;

use clap::Args;
use ipnet::IpNet;

use super::Complaints;

/// Settings of what stands before the API, as they are typed.
#[derive(Args, Clone, Debug, Default)]
pub struct ProxySettings {
    /// Networks of the load balancers before the API, such as 10.0.0.0/8: their
    /// `X-Forwarded-For` says where a request comes from. Unset: none.
    #[arg(long, env = "PEAL_TRUSTED_PROXIES", global = true)]
    pub trusted_proxies: Option<String>,
}

/// What stands before the API.
#[derive(Clone, Debug, Default)]
pub struct Proxies(Vec<IpNet>);

impl ProxySettings {
    pub(super) fn check(&self, bad: &mut Complaints) -> Option<Proxies> {
        let text = self.trusted_proxies.as_deref().unwrap_or_default();
        let items = text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty());
        let networks: Option<Vec<IpNet>> = items.map(network).collect();
        let told = || "must be networks such as 10.0.0.0/8,192.0.2.7".to_owned();
        let networks = bad.check("PEAL_TRUSTED_PROXIES", networks.ok_or_else(told))?;
        Some(Proxies(networks))
    }
}

/// A network, or one address.
fn network(text: &str) -> Option<IpNet> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(|_not_a_network| address()).ok()
}

impl Proxies {
    /// Where a request comes from: the last address that no trusted proxy has. `forwarded` are
    /// the lines of its `X-Forwarded-For`, in their order.
    #[must_use]
    pub fn client<'a>(&self, peer: IpAddr, forwarded: impl Iterator<Item = &'a str>) -> IpAddr {
        let hops: Vec<&str> = forwarded.flat_map(|line| line.split(',')).collect();
        let mut client = peer.to_canonical();
        for hop in hops.into_iter().rev() {
            if !self.0.iter().any(|network| network.contains(&client)) {
                break;
            }
            let Ok(before) = hop.trim().parse::<IpAddr>() else {
                break;
            };
            client = before.to_canonical();
        }
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(text: &str) -> Option<Proxies> {
        let mut bad = Complaints::default();
        let settings = ProxySettings {
            trusted_proxies: Some(text.to_owned()),
        };
        settings.check(&mut bad)
    }

    #[test]
    fn only_a_trusted_proxy_says_where_a_request_comes_from() {
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
            // What the client wrote itself stands before what the proxy wrote.
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
            let found = proxies.client(peer.parse().unwrap(), [forwarded].into_iter());
            assert_eq!(found.to_string(), client, "{trusted} {peer} {forwarded}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        assert!(proxies("everybody").is_none());
        assert!(proxies("10.0.0.0/8, ,fd00::/8").is_some());
    }
}
