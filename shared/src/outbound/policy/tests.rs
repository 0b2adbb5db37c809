use super::*;

#[test]
fn ordinary_urls_are_accepted() {
    for text in [
        "https://example.com",
        "https://api.example.com:8443/v1/leads?source=peal",
        "https://8.8.8.8/x",
        "https://[2606:4700:4700::1111]/x",
        "https://bücher.example/x",
    ] {
        assert!(OutboundPolicy::default().parse_url(text).is_ok(), "{text}");
    }
}

/// URLs of closed or ambiguously written addresses.
const REFUSED_URLS: [&str; 65] = [
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
    // Public, but in a form that other parsers may read differently.
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
];

#[test]
fn closed_and_ambiguous_urls_are_refused() {
    for text in REFUSED_URLS {
        assert!(OutboundPolicy::default().parse_url(text).is_err(), "{text}");
    }
    let long = format!("https://example.com/{}", "a".repeat(MAX_URL_BYTES));
    assert!(OutboundPolicy::default().parse_url(&long).is_err());
}

#[test]
fn settings_open_and_close_ports_and_networks() {
    let policy = OutboundPolicy::default()
        .with_http()
        .with_ports("443,9000-9100")
        .and_then(|policy| policy.with_networks("10.20.0.0/16, ::1/128"))
        .unwrap()
        .without_own_service(&"https://peal.example.com/".parse().unwrap())
        .without_own_service(&"postgres://u:p@db.example.com/peal".parse().unwrap())
        .without_own_service(&"redis://10.20.0.9".parse().unwrap());

    for open in [
        "http://example.com",
        "http://10.20.0.1:9000",
        "https://10.20.255.255",
        "https://[::1]:9100",
        "https://peal.example.com:9000",
    ] {
        assert!(policy.parse_url(open).is_ok(), "{open}");
    }
    for closed in [
        "https://10.21.0.1",
        "http://127.0.0.1",
        "https://example.com:8443",
        "http://10.20.0.1:8080",
        "https://peal.example.com/api/v1/me",
        "https://PEAL.example.com:443/",
    ] {
        assert!(policy.parse_url(closed).is_err(), "{closed}");
    }

    // This installation's own services stay closed.
    let wide = policy.with_ports("1-65535").unwrap();
    assert!(wide.parse_url("http://db.example.com:5432").is_err());
    assert!(wide.parse_url("http://10.20.0.9:6379").is_err());

    for odd in ["", "x", "0", "9-1", "70000", "443,"] {
        assert!(OutboundPolicy::default().with_ports(odd).is_err(), "{odd}");
    }
    for odd in ["", "10.0.0.0", "10.0.0.0/33", "localhost"] {
        assert!(
            OutboundPolicy::default().with_networks(odd).is_err(),
            "{odd}"
        );
    }
}
