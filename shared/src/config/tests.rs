use super::*;

fn settings() -> Settings {
    Settings {
        database_url: Some("postgres://peal@localhost/peal".into()),
        database_pool: "20".into(),
        redis_prefix: "peal".into(),
        master_key: Some(STANDARD.encode([7; 32])),
        public_url: Some("https://peal.example.com".into()),
        listen: "127.0.0.1:8080".into(),
        upload_max_mb: "200".into(),
        upload_stall_secs: "30".into(),
        batch_max_rows: "2000000".into(),
        csv_max_columns: "50".into(),
        csv_max_cell: "2000".into(),
        unknown_deadline_secs: "300".into(),
        reconcile_secs: "30".into(),
        inbox_capacity: "512".into(),
        store_url: "file:///var/lib/peal/store".into(),
        mail_from: "Peal <peal@localhost>".into(),
        ..Settings::default()
    }
}

#[test]
fn valid_settings_are_accepted() {
    let config = Config::from_settings(settings()).unwrap();
    assert_eq!(config.uploads.max_bytes, 200_000_000);
    assert!(config.sign_in.external_issuer.is_none());
    assert!(!format!("{config:?}").contains("postgres://"));
}

#[test]
fn all_invalid_settings_are_reported_at_once() {
    let message = Config::from_settings(Settings {
        database_url: Some("mysql://x".into()),
        master_key: Some("short".into()),
        public_url: None,
        jwt_secret: Some("short".into()),
        upload_max_mb: "many".into(),
        store_url: "ftp://store".into(),
        redis_url: Some("localhost".into()),
        smtp_url: Some("mail".into()),
        mail_from: "nobody".into(),
        egress_networks: Some("everything".into()),
        proxies: ProxySettings {
            trusted_proxies: Some("everybody".into()),
        },
        origins: CorsSettings {
            cors_origins: Some("*".into()),
        },
        ..settings()
    })
    .unwrap_err()
    .to_string();

    for name in [
        "PEAL_DATABASE_URL",
        "PEAL_MASTER_KEY",
        "PEAL_PUBLIC_URL",
        "PEAL_JWT_SECRET",
        "PEAL_UPLOAD_MAX_MB",
        "PEAL_STORE_URL",
        "PEAL_REDIS_URL",
        "PEAL_SMTP_URL",
        "PEAL_MAIL_FROM",
        "PEAL_EGRESS_NETWORKS",
        "PEAL_TRUSTED_PROXIES",
        "PEAL_CORS_ORIGINS",
    ] {
        assert!(message.contains(name), "{name} is missing from: {message}");
    }
}
