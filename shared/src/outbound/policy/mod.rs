//! Policy for users' URLs, applied to their text. The same parser reads the URL here and when
//! the request is sent, so that one text cannot mean two URLs.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use url::{Host, Url};

use super::address::is_public;

const DEFAULT_PORTS: [RangeInclusive<u16>; 2] = [443..=443, 8443..=8443];
const MAX_URL_BYTES: usize = 2048;

/// Addresses that users' URLs may reach in this installation.
#[derive(Clone, Debug)]
pub struct OutboundPolicy {
    /// Allows plain HTTP, for development.
    allows_http: bool,
    ports: Vec<RangeInclusive<u16>>,
    /// Allowed networks that are not public.
    allowed_networks: Vec<IpNet>,
    /// Hosts and ports of this installation's own services.
    own_services: Vec<(String, u16)>,
}

impl Default for OutboundPolicy {
    fn default() -> Self {
        Self {
            allows_http: false,
            ports: DEFAULT_PORTS.to_vec(),
            allowed_networks: Vec::new(),
            own_services: Vec::new(),
        }
    }
}

/// URL whose text is valid. Its host is checked when it is resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundTarget(Url);

impl OutboundTarget {
    /// The URL.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.0
    }
}

impl OutboundPolicy {
    /// Allows plain HTTP as well.
    #[must_use]
    pub fn with_http(mut self) -> Self {
        self.allows_http = true;
        self
    }

    /// Replaces the default ports: numbers and ranges, separated by commas.
    ///
    /// # Errors
    /// A message that shows the expected form.
    pub fn with_ports(mut self, text: &str) -> Result<Self, String> {
        self.ports = text
            .split(',')
            .map(|item| {
                let (first, last) = item.split_once('-').unwrap_or((item, item));
                let range = first.trim().parse().ok()?..=last.trim().parse().ok()?;
                (*range.start() > 0 && !range.is_empty()).then_some(range)
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| format!("must be ports such as 443,8443,9000-9100, not {text:?}"))?;
        Ok(self)
    }

    /// Allows networks that are not public, separated by commas.
    ///
    /// # Errors
    /// A message that shows the expected form.
    pub fn with_networks(mut self, text: &str) -> Result<Self, String> {
        self.allowed_networks = text
            .split(',')
            .map(|item| item.trim().parse().ok())
            .collect::<Option<Vec<IpNet>>>()
            .ok_or_else(|| format!("must be networks such as 10.20.0.0/16, not {text:?}"))?;
        Ok(self)
    }

    /// Closes the host and port of one of this installation's own services.
    #[must_use]
    pub fn without_own_service(mut self, own: &Url) -> Self {
        let port = own.port_or_known_default().or(match own.scheme() {
            "postgres" | "postgresql" => Some(5432),
            "redis" | "rediss" => Some(6379),
            _ => None,
        });
        if let (Some(host), Some(port)) = (own.host_str(), port) {
            self.own_services.push((host.to_ascii_lowercase(), port));
        }
        self
    }

    /// True when connections to the address are allowed.
    #[must_use]
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_public(address)
            || self
                .allowed_networks
                .iter()
                .any(|net| net.contains(&address))
    }

    /// Parses a URL.
    ///
    /// # Errors
    /// A message for its author about the text. It does not reveal what the name resolves to.
    pub fn parse_url(&self, text: &str) -> Result<OutboundTarget, &'static str> {
        if text.len() > MAX_URL_BYTES {
            return Err("is longer than 2048 bytes");
        }
        if text
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || c == '\\')
        {
            return Err("must not have spaces, backslashes or control characters");
        }

        let url = Url::parse(text).map_err(|_reason| "is not a URL such as https://example.com")?;
        match url.scheme() {
            "https" => {}
            "http" if self.allows_http => {}
            _ => return Err("must begin with https://"),
        }

        if !url.username().is_empty() || url.password().is_some() || has_userinfo(text) {
            return Err("must not have a user name or password; send them as auth");
        }
        if url.fragment().is_some() {
            return Err("must not have a fragment (#)");
        }

        let port = url.port_or_known_default().unwrap_or_default();
        // Allowing plain HTTP allows its default port.
        let is_plain = url.scheme() == "http" && port == 80;
        if !is_plain && !self.ports.iter().any(|range| range.contains(&port)) {
            return Err("has a port that is not allowed here; use 443");
        }
        self.check_host(&url, text, port)?;
        Ok(OutboundTarget(url))
    }

    fn check_host(&self, url: &Url, text: &str, port: u16) -> Result<(), &'static str> {
        const CLOSED: &str = "has an address that is not allowed here";
        let address = match url.host().ok_or("must have a host")? {
            Host::Ipv4(ip) => {
                if written_host(text) != ip.to_string() {
                    return Err("must write an IPv4 address as four decimal numbers");
                }
                Some(IpAddr::V4(ip))
            }
            Host::Ipv6(ip) => Some(IpAddr::V6(ip)),
            Host::Domain(name) => {
                if name.ends_with('.') {
                    return Err("must not have a dot at the end of its host");
                }
                if name == "localhost" || name.ends_with(".localhost") {
                    let loopback = IpAddr::from([127, 0, 0, 1]);
                    if !self.allows(loopback) {
                        return Err(CLOSED);
                    }
                }
                None
            }
        };

        let is_own = url.host_str().is_some_and(|host| {
            self.own_services
                .iter()
                .any(|own| (own.0.as_str(), own.1) == (host, port))
        });
        if is_own || address.is_some_and(|ip| !self.allows(ip)) {
            return Err(CLOSED);
        }
        Ok(())
    }
}

/// Authority as written, from `//` to `/`, `?` or `#`.
fn authority(text: &str) -> &str {
    let rest = text.split_once("//").map_or(text, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

/// True also for an empty user name, which the parser drops.
fn has_userinfo(text: &str) -> bool {
    authority(text).contains('@')
}

fn written_host(text: &str) -> &str {
    authority(text).split(':').next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
