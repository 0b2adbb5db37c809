//! Which URLs may be asked for at all, judged by their text. The same parser reads the URL here
//! and when it is used, so that nobody can mean two things with one text.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use url::{Host, Url};

use super::address::is_public;

const DEFAULT_PORTS: [RangeInclusive<u16>; 2] = [443..=443, 8443..=8443];
const MAX_URL_BYTES: usize = 2048;

/// What this installation lets users' URLs reach.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Plain HTTP, for development.
    http: bool,
    ports: Vec<RangeInclusive<u16>>,
    /// Networks that may be reached although they are not public.
    networks: Vec<IpNet>,
    /// Hosts and ports of this installation itself.
    own: Vec<(String, u16)>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            http: false,
            ports: DEFAULT_PORTS.to_vec(),
            networks: Vec::new(),
            own: Vec::new(),
        }
    }
}

/// A URL whose text is in order. Whether its host may be reached shows when it is resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target(Url);

impl Target {
    /// The URL.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.0
    }
}

impl Policy {
    /// The default, and plain HTTP as well.
    #[must_use]
    pub fn with_http(mut self) -> Self {
        self.http = true;
        self
    }

    /// Ports instead of the default ones: numbers and ranges, separated by commas.
    ///
    /// # Errors
    /// What the list must look like.
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

    /// Networks that may be reached although they are not public, separated by commas.
    ///
    /// # Errors
    /// What the list must look like.
    pub fn with_networks(mut self, text: &str) -> Result<Self, String> {
        self.networks = text
            .split(',')
            .map(|item| item.trim().parse().ok())
            .collect::<Option<Vec<IpNet>>>()
            .ok_or_else(|| format!("must be networks such as 10.20.0.0/16, not {text:?}"))?;
        Ok(self)
    }

    /// Closes the address of a part of this installation.
    #[must_use]
    pub fn without(mut self, own: &Url) -> Self {
        let port = own.port_or_known_default().or(match own.scheme() {
            "postgres" | "postgresql" => Some(5432),
            "redis" | "rediss" => Some(6379),
            _ => None,
        });
        if let (Some(host), Some(port)) = (own.host_str(), port) {
            self.own.push((host.to_ascii_lowercase(), port));
        }
        self
    }

    /// Whether an address may be connected to.
    #[must_use]
    pub fn opens(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_public(address) || self.networks.iter().any(|net| net.contains(&address))
    }

    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with its text, for whoever wrote it. What the name leads to is not told.
    pub fn target(&self, text: &str) -> Result<Target, &'static str> {
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
            "http" if self.http => {}
            _ => return Err("must begin with https://"),
        }
        if !url.username().is_empty() || url.password().is_some() || has_userinfo(text) {
            return Err("must not have a user name or password; send them as auth");
        }
        if url.fragment().is_some() {
            return Err("must not have a fragment (#)");
        }
        let port = url.port_or_known_default().unwrap_or_default();
        // Plain HTTP is opened for development as a whole, with its port.
        let is_plain = url.scheme() == "http" && port == 80;
        if !is_plain && !self.ports.iter().any(|range| range.contains(&port)) {
            return Err("has a port that is not open here; use 443");
        }
        self.judge_host(&url, text, port)?;
        Ok(Target(url))
    }

    fn judge_host(&self, url: &Url, text: &str, port: u16) -> Result<(), &'static str> {
        const CLOSED: &str = "leads to an address that is not open here";
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
                    return Err("must have a host without a dot at its end");
                }
                if name == "localhost" || name.ends_with(".localhost") {
                    let loopback = IpAddr::from([127, 0, 0, 1]);
                    if !self.opens(loopback) {
                        return Err(CLOSED);
                    }
                }
                None
            }
        };
        let is_own = url.host_str().is_some_and(|host| {
            self.own
                .iter()
                .any(|own| (own.0.as_str(), own.1) == (host, port))
        });
        if is_own || address.is_some_and(|ip| !self.opens(ip)) {
            return Err(CLOSED);
        }
        Ok(())
    }
}

/// The authority as it is written, between `//` and what ends it.
fn authority(text: &str) -> &str {
    let rest = text.split_once("//").map_or(text, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

/// Also an empty user name, which the parser drops.
fn has_userinfo(text: &str) -> bool {
    authority(text).contains('@')
}

fn written_host(text: &str) -> &str {
    authority(text).split(':').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_urls_are_read() {
        for text in [
            "https://example.com",
            "https://api.example.com:8443/v1/leads?source=peal",
            "https://8.8.8.8/x",
            "https://[2606:4700:4700::1111]/x",
            "https://bücher.example/x",
        ] {
            assert!(Policy::default().target(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn every_trick_with_the_text_is_refused() {
        for text in [
            "http://example.com",
            "ftp://example.com",
            "file:///etc/passwd",
            "gopher://example.com",
            "https://",
            "example.com",
            "https://example.com:22",
            "https://example.com:80",
            "https://example.com:6379",
            "https://user@example.com",
            "https://user:password@example.com",
            "https://@example.com",
            "https://:@example.com",
            "https://a@127.0.0.1",
            "https://example.com@127.0.0.1/",
            "https://127.0.0.1#@example.com",
            "https://example.com#fragment",
            "https://example.com\\@127.0.0.1",
            "https://exa\tmple.com",
            " https://example.com",
            "https://example.com/a b",
            "https://localhost",
            "https://LOCALHOST",
            "https://localhost.",
            "https://a.localhost",
            "https://example.com.",
            "https://127.0.0.1",
            "https://127.1",
            "https://127.0.1",
            "https://127.0.0.1.",
            "https://0",
            "https://0.0.0.0",
            "https://0x7f000001",
            "https://0x7f.0.0.1",
            "https://2130706433",
            "https://0177.0.0.1",
            "https://017700000001",
            // Public, but written so that others may read it otherwise.
            "https://0x08080808",
            "https://134744072",
            "https://010.8.8.8",
            "https://[::1]",
            "https://[::]",
            "https://[0:0:0:0:0:0:0:1]",
            "https://[::ffff:127.0.0.1]",
            "https://[::ffff:7f00:1]",
            "https://[::127.0.0.1]",
            "https://[64:ff9b::7f00:1]",
            "https://[2002:7f00:1::]",
            "https://[2001:0:7f00:1::]",
            "https://[fe80::1]",
            "https://[fe80::1%25eth0]",
            "https://[fe80::1%eth0]",
            "https://[fd00:ec2::254]",
            "https://169.254.169.254/latest/meta-data/",
            "https://10.0.0.1",
            "https://172.16.0.1",
            "https://192.168.1.1",
            "https://100.64.0.1",
            "https://127。0。0。1",
            "https://127．0．0．1",
            "https://127｡0｡0｡1",
            "https://①②⑦.⓪.⓪.①",
            "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
            "https://%6c%6f%63%61%6c%68%6f%73%74",
            "https://%31%32%37.0.0.1",
        ] {
            assert!(Policy::default().target(text).is_err(), "{text}");
        }
        let long = format!("https://example.com/{}", "a".repeat(MAX_URL_BYTES));
        assert!(Policy::default().target(&long).is_err());
    }

    #[test]
    fn an_installation_opens_and_closes_what_it_says() {
        let policy = Policy::default()
            .with_http()
            .with_ports("443,9000-9100")
            .and_then(|policy| policy.with_networks("10.20.0.0/16, ::1/128"))
            .unwrap()
            .without(&"https://peal.example.com/".parse().unwrap())
            .without(&"postgres://u:p@db.example.com/peal".parse().unwrap())
            .without(&"redis://10.20.0.9".parse().unwrap());
        for open in [
            "http://example.com",
            "http://10.20.0.1:9000",
            "https://10.20.255.255",
            "https://[::1]:9100",
            "https://peal.example.com:9000",
        ] {
            assert!(policy.target(open).is_ok(), "{open}");
        }
        for closed in [
            "https://10.21.0.1",
            "http://127.0.0.1",
            "https://example.com:8443",
            "http://10.20.0.1:8080",
            "https://peal.example.com/api/v1/me",
            "https://PEAL.example.com:443/",
        ] {
            assert!(policy.target(closed).is_err(), "{closed}");
        }
        let wide = policy.with_ports("1-65535").unwrap();
        assert!(wide.target("http://db.example.com:5432").is_err());
        assert!(wide.target("http://10.20.0.9:6379").is_err());
        for odd in ["", "x", "0", "9-1", "70000", "443,"] {
            assert!(Policy::default().with_ports(odd).is_err(), "{odd}");
        }
        for odd in ["", "10.0.0.0", "10.0.0.0/33", "localhost"] {
            assert!(Policy::default().with_networks(odd).is_err(), "{odd}");
        }
    }
}
