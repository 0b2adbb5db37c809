//! Public addresses: those that users' URLs may reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// IPv4 networks outside the public internet: this host, private and shared ranges,
/// link-local (the metadata services of clouds), documentation, benchmarks, relays, multicast
/// and reserved ranges. Source: IANA's registry of special-purpose addresses.
pub(super) const NON_PUBLIC_V4: [Ipv4Net; 15] = [
    v4([0, 0, 0, 0], 8),
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 0, 0, 0], 24),
    v4([192, 0, 2, 0], 24),
    v4([192, 88, 99, 0], 24),
    v4([192, 168, 0, 0], 16),
    v4([198, 18, 0, 0], 15),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    v4([224, 0, 0, 0], 4),
    v4([240, 0, 0, 0], 4),
];

/// IPv6 network of public addresses. Everything outside is closed: `::`,
/// `::1`, IPv4 in its old forms, NAT64 (64:ff9b::/96, 64:ff9b:1::/48), discard (100::/64),
/// SRv6 (5f00::/16), private (fc00::/7), link-local and site-local (fe80::/10, fec0::/10) and
/// multicast (ff00::/8).
const PUBLIC_V6: Ipv6Net = v6([0x2000, 0], 3);

/// Networks inside it that are not the public internet: protocol assignments with Teredo
/// (2001::/32), documentation, and 6to4, which hides an IPv4 address.
pub(super) const NON_PUBLIC_V6: [Ipv6Net; 4] = [
    v6([0x2001, 0], 23),
    v6([0x2001, 0xdb8], 32),
    v6([0x2002, 0], 16),
    v6([0x3fff, 0], 20),
];

/// True for an address of the public internet. IPv4-mapped IPv6 counts as IPv4.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => !NON_PUBLIC_V4.iter().any(|net| net.contains(&address)),
        IpAddr::V6(address) => {
            PUBLIC_V6.contains(&address) && !NON_PUBLIC_V6.iter().any(|net| net.contains(&address))
        }
    }
}

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6([first, second]: [u16; 2], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, 0), prefix)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every network that must be closed, as its registry writes it.
    const SPECIAL_NETWORKS: [&str; 32] = [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "255.255.255.255/32",
        "::/128",
        "::1/128",
        "::/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/32",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
        "5f00::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
        "fd00:ec2::254/128",
    ];

    fn special_networks() -> Vec<ipnet::IpNet> {
        SPECIAL_NETWORKS
            .iter()
            .map(|net| net.parse().unwrap())
            .collect()
    }

    fn ipv4_mapped(address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
            v6 => v6,
        }
    }

    #[test]
    fn both_edges_of_every_listed_network_are_closed() {
        for net in special_networks() {
            for edge in [net.network(), net.broadcast()] {
                assert!(!is_public(edge), "{edge} of {net}");
                assert!(!is_public(ipv4_mapped(edge)), "{edge} of {net}, mapped");
            }
        }
    }

    #[test]
    fn neighbours_of_closed_networks_are_open() {
        // Table: the addresses just before and after each listed network.
        for open in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "191.255.255.255",
            "192.0.1.0",
            "192.0.3.0",
            "192.88.98.255",
            "192.88.100.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "198.51.99.255",
            "198.51.101.0",
            "203.0.112.255",
            "203.0.114.0",
            "223.255.255.255",
            // IPv6.
            "2001:200::",
            "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:db9::",
            "2003::",
            "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "3fff:1000::",
            "2606:4700:4700::1111",
        ] {
            let address: IpAddr = open.parse().unwrap();

            assert!(is_public(address), "{open}");
            assert!(is_public(ipv4_mapped(address)), "{open}, mapped");
        }
    }

    /// Classification by the standard library, independent of the table.
    fn is_special(address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(v4) => {
                v4.is_private()
                    || v4.is_loopback()
                    || v4.is_link_local()
                    || v4.is_broadcast()
                    || v4.is_documentation()
                    || v4.is_multicast()
                    || v4.octets()[0] == 0
                    || v4.octets()[0] >= 240
            }
            IpAddr::V6(v6) => {
                v6.is_loopback()
                    || v6.is_unspecified()
                    || v6.is_multicast()
                    || v6.is_unique_local()
                    || v6.is_unicast_link_local()
                    || v6.to_ipv4().is_some()
            }
        }
    }

    /// Any address: of IPv4, of IPv6, or one that shares its first bits with a listed network.
    fn addresses() -> impl Strategy<Value = IpAddr> {
        let near =
            (0..SPECIAL_NETWORKS.len(), any::<u128>(), 0..4_u8).prop_map(|(which, host, more)| {
                match special_networks()[which] {
                    ipnet::IpNet::V4(net) => {
                        let bits = u32::try_from(host & u128::from(u32::MAX)).unwrap();
                        let keep = net.prefix_len().saturating_sub(more);
                        let mask = u32::MAX.checked_shl(u32::from(32 - keep)).unwrap_or(0);
                        Ipv4Addr::from(u32::from(net.network()) & mask | bits & !mask).into()
                    }
                    ipnet::IpNet::V6(net) => {
                        let keep = net.prefix_len().saturating_sub(more);
                        let mask = u128::MAX.checked_shl(u32::from(128 - keep)).unwrap_or(0);
                        Ipv6Addr::from(u128::from(net.network()) & mask | host & !mask).into()
                    }
                }
            });
        prop_oneof![
            any::<u32>().prop_map(|bits| Ipv4Addr::from(bits).into()),
            any::<u128>().prop_map(|bits| Ipv6Addr::from(bits).into()),
            near,
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn an_open_address_is_in_no_listed_network(address in addresses()) {
            if is_public(address) {
                let canonical = address.to_canonical();
                prop_assert!(!special_networks().iter().any(|net| net.contains(&canonical)), "{address}");
                prop_assert!(!is_special(address), "{address}");
            }
        }
    }
}
