//! Session tokens of an external issuer: accepted tokens, and every known way to forge one.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm,
};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chrono::TimeDelta;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use peal_api::cli::admin::AdminRole;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::auth::login::{create_user_with_password, without_workers};
use crate::harness::app::{ApiClient, App, JWT_SECRET, send_request};

const ISSUER: &str = "https://project.example.com/auth/v1";
const MY_BATCHES_PATH: &str = "/api/v1/batch-call/me";

/// An external issuer with its keys and a JWKS server.
struct ExternalIssuer {
    url: String,
    ec: EncodingKey,
    rsa: EncodingKey,
    served: Arc<JwksState>,
}

#[derive(Default)]
struct JwksState {
    document: Mutex<Value>,
    requests: AtomicUsize,
    is_down: AtomicBool,
}

fn ec_key(algorithm: &'static EcdsaSigningAlgorithm) -> EncodingKey {
    let pair = EcdsaKeyPair::generate(algorithm).expect("a key");
    EncodingKey::from_ec_der(pair.to_pkcs8v1().expect("pkcs8").as_ref())
}

fn rsa_key() -> EncodingKey {
    let pair = KeyPair::generate(KeySize::Rsa2048).expect("a key");
    let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().expect("pkcs8");
    let body = STANDARD.encode(der.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
    EncodingKey::from_rsa_pem(pem.as_bytes()).expect("a key")
}

fn public_jwk(key: &EncodingKey, algorithm: Algorithm, id: &str) -> Value {
    let mut jwk = Jwk::from_encoding_key(key, algorithm).expect("a public key");
    jwk.common.key_id = Some(id.to_owned());
    serde_json::to_value(jwk).expect("json")
}

impl ExternalIssuer {
    async fn start() -> Self {
        let served = Arc::new(JwksState::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!(
            "http://{}/jwks.json",
            listener.local_addr().expect("address")
        );

        let (ec, rsa) = (ec_key(&ECDSA_P256_SHA256_FIXED_SIGNING), rsa_key());
        let keys = [
            public_jwk(&ec, Algorithm::ES256, "ec-1"),
            public_jwk(&rsa, Algorithm::RS256, "rsa-1"),
            json!({"kty": "oct", "kid": "oct-1", "alg": "HS256", "k": "c2hhcmVkIHNlY3JldA"}),
        ];
        *served.document.lock().unwrap() = json!({"keys": keys});

        let shared = Arc::clone(&served);
        let handler = async move || {
            shared.requests.fetch_add(1, Ordering::SeqCst);
            if shared.is_down.load(Ordering::SeqCst) {
                return Err(StatusCode::BAD_GATEWAY);
            }
            Ok(Json(shared.document.lock().unwrap().clone()))
        };

        let routes = Router::new().route("/jwks.json", get(handler));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self {
            url,
            ec,
            rsa,
            served,
        }
    }

    /// Signs a token in the format of Supabase.
    fn sign_token(&self, claims: &Value) -> String {
        sign_with(Algorithm::ES256, "ec-1", &self.ec, claims)
    }

    fn request_count(&self) -> usize {
        self.served.requests.load(Ordering::SeqCst)
    }
}

fn sign_with(algorithm: Algorithm, id: &str, key: &EncodingKey, claims: &Value) -> String {
    let header = Header {
        kid: Some(id.to_owned()),
        ..Header::new(algorithm)
    };
    encode(&header, claims, key).expect("a token")
}

fn token_claims(subject: &str, email: &str) -> Value {
    let now = chrono::Utc::now().timestamp();
    json!({
        "sub": subject, "iss": ISSUER, "aud": "authenticated", "iat": now, "exp": now + 7200,
        "email": email, "role": "authenticated", "session_id": uuid::Uuid::nil(), "is_anonymous": false,
        "aal": "aal1", "amr": [{"method": "password", "timestamp": now}],
        "app_metadata": {"provider": "email"}, "user_metadata": {"role": "super_admin"},
    })
}

async fn batches_status(client: &ApiClient, token: &str) -> u16 {
    let request = client
        .anonymous(Method::GET, MY_BATCHES_PATH)
        .bearer_auth(token);
    send_request(request).await.status.as_u16()
}

/// Starts an API that accepts the issuer's tokens; returns it and the id of a user.
async fn api_with_issuer(app: &mut App, issuer: &ExternalIssuer) -> (ApiClient, String) {
    let url = issuer.url.clone();
    let (client, _) = app
        .start_api(|settings| {
            settings.jwt_issuer = ISSUER.to_owned();
            settings.jwt_secret = None;
            settings.sign_in.jwt_jwks_url = Some(url);
        })
        .await;
    let user: uuid::Uuid = sqlx::query_scalar("select id from users limit 1")
        .fetch_one(&app.context.pool)
        .await
        .expect("a user");
    (client, user.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn ec_and_rsa_tokens_are_accepted() {
    let mut app = without_workers().await;
    let issuer = ExternalIssuer::start().await;
    let (client, user) = api_with_issuer(&mut app, &issuer).await;
    let claims = token_claims(&user, "acme@example.com");
    assert_eq!(
        batches_status(&client, &issuer.sign_token(&claims)).await,
        200
    );
    let rsa = sign_with(Algorithm::RS256, "rsa-1", &issuer.rsa, &claims);
    assert_eq!(batches_status(&client, &rsa).await, 200);
    assert_eq!(issuer.request_count(), 1, "keys are cached");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_and_invalid_tokens_are_refused() {
    let mut app = without_workers().await;
    let issuer = ExternalIssuer::start().await;
    let (client, user) = api_with_issuer(&mut app, &issuer).await;
    let valid = token_claims(&user, "acme@example.com");
    assert_eq!(
        batches_status(&client, &issuer.sign_token(&valid)).await,
        200
    );

    let forged = forged_without_key(&issuer, &valid)
        .into_iter()
        .chain(forged_with_other_keys(&issuer, &valid));
    for (case, token) in forged {
        assert_eq!(batches_status(&client, &token).await, 401, "{case}");
    }

    let now = chrono::Utc::now().timestamp();
    for (claim, value) in [
        ("exp", json!(now - 60)),
        ("exp", json!((now + 600).to_string())),
        ("exp", Value::Null),
        ("nbf", json!(now + 120)),
        ("nbf", json!("0")),
        ("iat", json!(now + 120)),
        ("iat", Value::Null),
        ("aud", json!("anon")),
        ("aud", Value::Null),
        ("iss", json!("https://other.example.com/auth/v1")),
        ("iss", Value::Null),
        ("sub", Value::Null),
        ("sub", json!("")),
        ("role", json!("service_role")),
        ("role", json!("anon")),
        ("role", json!(["service_role"])),
        ("is_anonymous", json!(true)),
    ] {
        let mut changed = valid.clone();
        match &value {
            Value::Null => drop(changed.as_object_mut().unwrap().remove(claim)),
            value => changed[claim] = value.clone(),
        }
        let status = batches_status(&client, &issuer.sign_token(&changed)).await;
        assert_eq!(status, 401, "{claim} = {value}");
    }

    let mut expired = valid.clone();
    expired["exp"] = json!(chrono::Utc::now().timestamp() - 10);
    assert_eq!(
        batches_status(&client, &issuer.sign_token(&expired)).await,
        200,
        "within the leeway"
    );
    app.finish().await;
}

fn encode_header(head: Value) -> String {
    URL_SAFE_NO_PAD.encode(head.to_string())
}

/// Tokens forged from a genuine one without any key.
fn forged_without_key(issuer: &ExternalIssuer, claims: &Value) -> Vec<(&'static str, String)> {
    let genuine = issuer.sign_token(claims);
    let parts: Vec<&str> = genuine.split('.').collect();
    let none = encode_header(json!({"alg": "none"}));
    let none_with_id = encode_header(json!({"alg": "none", "kid": "ec-1"}));
    let zeros = URL_SAFE_NO_PAD.encode([0; 64]);
    let critical = encode_header(json!({"alg": "ES256", "kid": "ec-1", "crit": ["exp"]}));
    let mut other = claims.clone();
    other["sub"] = json!(uuid::Uuid::nil());
    let other = URL_SAFE_NO_PAD.encode(other.to_string());
    vec![
        ("none", format!("{none}.{}.", parts[1])),
        ("none with a kid", format!("{none_with_id}.{}.", parts[1])),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("two parts", format!("{}.{}", parts[0], parts[1])),
        ("zeros", format!("{}.{}.{zeros}", parts[0], parts[1])),
        ("critical", format!("{critical}.{}.{}", parts[1], parts[2])),
        ("claims", format!("{}.{other}.{}", parts[0], parts[2])),
        ("very long", "a".repeat(100_000)),
    ]
}

/// Tokens forged with the attacker's own keys or with public values.
fn forged_with_other_keys(issuer: &ExternalIssuer, claims: &Value) -> Vec<(&'static str, String)> {
    let document = issuer.served.document.lock().unwrap().clone();
    let ec_text = document["keys"][0].to_string();
    let modulus = document["keys"][1]["n"].as_str().unwrap().to_owned();
    let attacker_key = ec_key(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let long_curve = ec_key(&ECDSA_P384_SHA384_FIXED_SIGNING);
    let zeros = EncodingKey::from_secret(&[0; 32]);
    let embedded_key = Header {
        kid: Some("ec-1".into()),
        jwk: Jwk::from_encoding_key(&attacker_key, Algorithm::ES256).ok(),
        jku: Some("https://evil.example.com/jwks".into()),
        ..Header::new(Algorithm::ES256)
    };

    let own = json!({"sub": claims["sub"], "sid": uuid::Uuid::nil(), "iss": "peal", "aud": "peal",
                     "iat": claims["iat"], "exp": claims["exp"]});

    let sign = |algorithm, id: &str, key: &EncodingKey| sign_with(algorithm, id, key, claims);
    let sign_with_secret =
        |algorithm, id: &str, secret: &[u8]| sign(algorithm, id, &EncodingKey::from_secret(secret));
    let (hs256, hs384) = (Algorithm::HS256, Algorithm::HS384);
    let secret = JWT_SECRET.as_bytes();

    vec![
        (
            "public key as secret",
            sign_with_secret(hs256, "ec-1", ec_text.as_bytes()),
        ),
        (
            "modulus as secret",
            sign_with_secret(hs256, "rsa-1", modulus.as_bytes()),
        ),
        (
            "published secret",
            sign_with_secret(hs256, "oct-1", b"shared secret"),
        ),
        ("HS384", sign_with_secret(hs384, "ec-1", secret)),
        (
            "secret that is not set",
            sign_with_secret(hs256, "x", secret),
        ),
        (
            "own key embedded",
            encode(&embedded_key, claims, &attacker_key).unwrap(),
        ),
        ("own key", sign(Algorithm::ES256, "ec-1", &attacker_key)),
        ("unknown kid", sign(Algorithm::ES256, "ec-2", &issuer.ec)),
        ("another curve", sign(Algorithm::ES384, "ec-1", &long_curve)),
        (
            "EC key, RSA kid",
            sign(Algorithm::ES256, "rsa-1", &issuer.ec),
        ),
        (
            "RSA key, EC kid",
            sign(Algorithm::RS256, "ec-1", &issuer.rsa),
        ),
        ("RS384", sign(Algorithm::RS384, "rsa-1", &issuer.rsa)),
        ("our kid", sign_with(hs256, "peal", &zeros, &own)),
        (
            "our kid, their key",
            sign_with(Algorithm::ES256, "peal", &issuer.ec, &own),
        ),
        (
            "no kid",
            encode(&Header::new(Algorithm::ES256), claims, &issuer.ec).unwrap(),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_key_ids_do_not_refetch_the_keys() {
    let mut app = without_workers().await;
    let issuer = ExternalIssuer::start().await;
    let started = Instant::now();
    let (client, user) = api_with_issuer(&mut app, &issuer).await;
    let claims = token_claims(&user, "acme@example.com");
    for n in 0..1000 {
        let unknown = sign_with(Algorithm::ES256, &format!("k-{n}"), &issuer.ec, &claims);
        let status = batches_status(&client, &unknown).await;
        assert!(matches!(status, 401 | 429), "{status}");
    }
    // One request, and one more every half minute.
    let limit = 1 + started.elapsed().as_secs() / 30;
    let asked = u64::try_from(issuer.request_count()).expect("few");
    assert!(asked <= limit, "asked {asked} times");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_keys_survive_an_outage_of_the_issuer_but_not_their_withdrawal() {
    let mut app = without_workers().await;
    let issuer = ExternalIssuer::start().await;
    let url = issuer.url.clone();
    let (client, context) = app
        .start_api(|settings| {
            settings.jwt_issuer = ISSUER.to_owned();
            settings.sign_in.jwt_jwks_url = Some(url);
        })
        .await;

    let user: uuid::Uuid = sqlx::query_scalar("select id from users limit 1")
        .fetch_one(&app.context.pool)
        .await
        .expect("a user");
    let mut claims = token_claims(&user.to_string(), "acme@example.com");
    claims["exp"] = json!(chrono::Utc::now().timestamp() + 86_400);
    let token = issuer.sign_token(&claims);
    assert_eq!(batches_status(&client, &token).await, 200);

    issuer.served.is_down.store(true, Ordering::SeqCst);
    context.clock.shift(TimeDelta::minutes(30));
    assert_eq!(
        batches_status(&client, &token).await,
        200,
        "down for half an hour"
    );
    context.clock.shift(TimeDelta::minutes(31));
    assert_eq!(
        batches_status(&client, &token).await,
        401,
        "down for an hour"
    );

    issuer.served.is_down.store(false, Ordering::SeqCst);
    context.clock.shift(TimeDelta::seconds(31));
    assert_eq!(batches_status(&client, &token).await, 200, "back again");

    let rsa = sign_with(Algorithm::RS256, "rsa-1", &issuer.rsa, &claims);
    let remaining = issuer.served.document.lock().unwrap()["keys"][1].clone();
    *issuer.served.document.lock().unwrap() = json!({"keys": [remaining]});
    context.clock.shift(TimeDelta::minutes(10));
    assert_eq!(batches_status(&client, &token).await, 401, "withdrawn");
    assert_eq!(batches_status(&client, &rsa).await, 200);

    // A new key is fetched on its first use.
    let new = public_jwk(&issuer.ec, Algorithm::ES256, "ec-2");
    *issuer.served.document.lock().unwrap() = json!({"keys": [remaining, new]});
    context.clock.shift(TimeDelta::seconds(31));
    let rotated = sign_with(Algorithm::ES256, "ec-2", &issuer.ec, &claims);
    assert_eq!(batches_status(&client, &rotated).await, 200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_token_creates_only_invited_users() {
    let mut app = without_workers().await;
    let issuer = ExternalIssuer::start().await;
    let (client, _) = api_with_issuer(&mut app, &issuer).await;
    let (bob, eve) = (uuid::Uuid::from_u128(1), uuid::Uuid::from_u128(2));
    let bobs = issuer.sign_token(&token_claims(&bob.to_string(), "Bob@example.com"));
    assert_eq!(batches_status(&client, &bobs).await, 401);

    sqlx::query(
        "insert into invites (id, org_id, invited_by, email, role, expires_at)
         select gen_random_uuid(), org_id, id, 'bob@example.com', 'org_admin', now() + interval '1 day' from users",
    )
    .execute(&app.context.pool)
    .await
    .expect("an invite");
    let all = futures::future::join_all((0..8).map(|_| batches_status(&client, &bobs))).await;
    assert!(all.iter().all(|status| *status == 200), "{all:?}");

    let made = "select count(*) from users where email = 'Bob@example.com' and role = 'org_admin'";
    assert_eq!(app.count(made).await, 1);

    // A member's e-mail address does not prove the identity.
    let eves = issuer.sign_token(&token_claims(&eve.to_string(), "bob@example.com"));
    assert_eq!(batches_status(&client, &eves).await, 401);

    let log = "select count(*) from audit_log where action = 'user.sign_up'";
    assert_eq!(app.count(log).await, 1);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_equal_to_the_id_of_a_password_user_does_not_sign_in() {
    let mut app = without_workers().await;
    let issuer = ExternalIssuer::start().await;
    let (client, imported) = api_with_issuer(&mut app, &issuer).await;
    let ada = create_user_with_password(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let token = issuer.sign_token(&token_claims(&ada, "ada@example.com"));
    assert_eq!(batches_status(&client, &token).await, 401);
    let other_address = issuer.sign_token(&token_claims(&ada, "eve@example.com"));
    assert_eq!(batches_status(&client, &other_address).await, 401);

    // Imported users and linked users sign in by their subject.
    let theirs = issuer.sign_token(&token_claims(&imported, "acme@example.com"));
    assert_eq!(batches_status(&client, &theirs).await, 200);

    let linked = "update users set external_subject = $2 where id = $1::uuid";
    sqlx::query(linked)
        .bind(&ada)
        .bind(format!("{ISSUER}|{ada}"))
        .execute(&app.context.pool)
        .await
        .expect("a link");
    assert_eq!(batches_status(&client, &token).await, 200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unverified_address_accepts_no_invitation() {
    let mut app = without_workers().await;
    let issuer = ExternalIssuer::start().await;
    let (client, _) = api_with_issuer(&mut app, &issuer).await;
    sqlx::query(
        "insert into invites (id, org_id, invited_by, email, role, expires_at)
         select gen_random_uuid(), org_id, id, 'bob@example.com', 'user', now() + interval '1 day' from users",
    )
    .execute(&app.context.pool)
    .await
    .expect("an invite");
    let bob = uuid::Uuid::from_u128(1).to_string();
    let token_with = |top: Value, metadata: Value| {
        let mut claims = token_claims(&bob, "bob@example.com");
        claims["email_verified"] = top;
        claims["user_metadata"] = metadata;
        issuer.sign_token(&claims)
    };
    let unverified = [
        (json!(false), json!({})),
        (json!("false"), json!({})),
        (json!(0), json!({})),
        (json!(null), json!({"email_verified": false})),
        (json!(true), json!({"email_verified": false})),
        (json!(false), json!({"email_verified": true})),
    ];

    for (top, metadata) in unverified {
        let token = token_with(top.clone(), metadata.clone());
        assert_eq!(
            batches_status(&client, &token).await,
            401,
            "{top} {metadata}"
        );
    }

    let accepted = "select count(*) from invites where accepted_at is not null";
    assert_eq!(app.count(accepted).await, 0);

    let verified = token_with(json!("true"), json!({"email_verified": true}));
    assert_eq!(batches_status(&client, &verified).await, 200);
    assert_eq!(app.count(accepted).await, 1);

    // An existing user is identified by the subject.
    let known = token_with(json!(false), json!(null));
    assert_eq!(batches_status(&client, &known).await, 200);
    app.finish().await;
}

/// Starts an API with open sign-up for the issuer's users.
async fn api_with_open_sign_up() -> (App, ExternalIssuer, ApiClient) {
    let mut app = without_workers().await;
    let issuer = ExternalIssuer::start().await;
    let url = issuer.url.clone();
    let (client, _) = app
        .start_api(|settings| {
            settings.jwt_issuer = ISSUER.to_owned();
            settings.sign_in.jwt_jwks_url = Some(url);
            settings.sign_in.sign_up = Some("open".to_owned());
        })
        .await;
    (app, issuer, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn open_sign_up_creates_an_organisation_for_each_user() {
    let (app, issuer, client) = api_with_open_sign_up().await;
    let subject = uuid::Uuid::from_u128(7).to_string();
    let token = issuer.sign_token(&token_claims(&subject, "carol@example.com"));
    assert_eq!(batches_status(&client, &token).await, 200);
    assert_eq!(batches_status(&client, &token).await, 200);

    let own = "select count(*) from users u join organizations o on o.id = u.org_id
               where u.email = 'carol@example.com' and u.role = 'org_admin' and o.name = u.email";
    assert_eq!(app.count(own).await, 1);

    let mut nameless = token_claims("someone", "x");
    nameless.as_object_mut().unwrap().remove("email");
    assert_eq!(
        batches_status(&client, &issuer.sign_token(&nameless)).await,
        401
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn profile_claims_are_stored_and_shown_to_their_user() {
    let (app, issuer, client) = api_with_open_sign_up().await;
    let subject = uuid::Uuid::from_u128(9).to_string();
    let mut first = token_claims(&subject, "dora@example.com");
    let now = first["iat"].as_i64().expect("a moment");
    let me = async |first: &Value| {
        let request = client.anonymous(Method::GET, "/api/v1/me");
        let me = send_request(request.bearer_auth(issuer.sign_token(first))).await;
        let me = me.expect(200);
        ["full_name", "phone", "profile_image_url", "user_metadata"].map(|name| me[name].clone())
    };

    first["phone"] = json!("12125550123");
    first["user_metadata"] = json!({
        "full_name": "Dora", "avatar_url": "https://img.test/d.png", "email_verified": true, "role": "super_admin",
    });

    let profile = [
        json!("Dora"),
        json!("12125550123"),
        json!("https://img.test/d.png"),
        first["user_metadata"].clone(),
    ];
    assert_eq!(me(&first).await, profile);

    // A newer token updates the profile; the older one no longer changes it.
    let mut next = first.clone();
    next["iat"] = json!(now + 1);
    next["phone"] = json!("");
    next["user_metadata"] = json!({"name": "Dora D.", "note": "x".repeat(4096)});
    let mut updated = [json!("Dora D."), Value::Null, Value::Null, json!({})];
    assert_eq!(me(&next).await, updated);
    assert_eq!(me(&first).await, updated);

    // A locked row is skipped without waiting; the next request updates it.
    let mut lock = app.context.pool.begin().await.expect("a transaction");
    sqlx::query("select from users where email = 'dora@example.com' for share")
        .execute(&mut *lock)
        .await
        .expect("a lock");
    let mut later = next.clone();
    later["iat"] = json!(now + 2);
    later["phone"] = json!("12125550124");
    assert_eq!(me(&later).await, updated);

    lock.rollback().await.expect("a rollback");
    updated[1] = json!("12125550124");
    assert_eq!(me(&later).await, updated);

    // A token without profile claims changes nothing.
    let without_profile = next.as_object_mut().expect("claims");
    without_profile.insert("iat".to_owned(), json!(now + 3));
    without_profile.remove("phone");
    without_profile.remove("user_metadata");
    assert_eq!(me(&next).await, updated);

    let key = app.get("/api/v1/me").await.expect(200);
    assert_eq!(
        (
            &key["phone"],
            &key["profile_image_url"],
            &key["user_metadata"]
        ),
        (&Value::Null, &Value::Null, &json!({}))
    );
    app.finish().await;
}
