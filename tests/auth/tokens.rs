//! Session tokens of another issuer: whose are taken, and every known way to forge one.

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

use crate::auth::login::{person, quiet};
use crate::harness::app::{ApiClient, App, JWT_SECRET, send_request};

const ISSUER: &str = "https://project.example.com/auth/v1";
const MINE: &str = "/api/v1/batch-call/me";

/// Somebody else's sign-in, with its keys.
struct Issuer {
    url: String,
    ec: EncodingKey,
    rsa: EncodingKey,
    served: Arc<Served>,
}

#[derive(Default)]
struct Served {
    document: Mutex<Value>,
    asked: AtomicUsize,
    down: AtomicBool,
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

fn public(key: &EncodingKey, algorithm: Algorithm, id: &str) -> Value {
    let mut jwk = Jwk::from_encoding_key(key, algorithm).expect("a public key");
    jwk.common.key_id = Some(id.to_owned());
    serde_json::to_value(jwk).expect("json")
}

impl Issuer {
    async fn start() -> Self {
        let served = Arc::new(Served::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!(
            "http://{}/jwks.json",
            listener.local_addr().expect("address")
        );
        let (ec, rsa) = (ec_key(&ECDSA_P256_SHA256_FIXED_SIGNING), rsa_key());
        let keys = [
            public(&ec, Algorithm::ES256, "ec-1"),
            public(&rsa, Algorithm::RS256, "rsa-1"),
            json!({"kty": "oct", "kid": "oct-1", "alg": "HS256", "k": "c2hhcmVkIHNlY3JldA"}),
        ];
        *served.document.lock().unwrap() = json!({"keys": keys});
        let shared = Arc::clone(&served);
        let handler = async move || {
            shared.asked.fetch_add(1, Ordering::SeqCst);
            if shared.down.load(Ordering::SeqCst) {
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

    /// A token as Supabase makes them.
    fn token(&self, claims: &Value) -> String {
        signed(Algorithm::ES256, "ec-1", &self.ec, claims)
    }

    fn asked(&self) -> usize {
        self.served.asked.load(Ordering::SeqCst)
    }
}

fn signed(algorithm: Algorithm, id: &str, key: &EncodingKey, claims: &Value) -> String {
    let header = Header {
        kid: Some(id.to_owned()),
        ..Header::new(algorithm)
    };
    encode(&header, claims, key).expect("a token")
}

fn claims(subject: &str, email: &str) -> Value {
    let now = chrono::Utc::now().timestamp();
    json!({
        "sub": subject, "iss": ISSUER, "aud": "authenticated", "iat": now, "exp": now + 7200,
        "email": email, "role": "authenticated", "session_id": uuid::Uuid::nil(), "is_anonymous": false,
        "aal": "aal1", "amr": [{"method": "password", "timestamp": now}],
        "app_metadata": {"provider": "email"}, "user_metadata": {"role": "super_admin"},
    })
}

async fn seen(client: &ApiClient, token: &str) -> u16 {
    let request = client.anonymous(Method::GET, MINE).bearer_auth(token);
    send_request(request).await.status.as_u16()
}

/// An API that takes the issuer's tokens, and the id of somebody who is known to both.
async fn taking(app: &mut App, issuer: &Issuer) -> (ApiClient, String) {
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
async fn tokens_under_either_kind_of_key_are_taken() {
    let mut app = quiet().await;
    let issuer = Issuer::start().await;
    let (client, user) = taking(&mut app, &issuer).await;
    let claims = claims(&user, "acme@example.com");
    assert_eq!(seen(&client, &issuer.token(&claims)).await, 200);
    let rsa = signed(Algorithm::RS256, "rsa-1", &issuer.rsa, &claims);
    assert_eq!(seen(&client, &rsa).await, 200);
    assert_eq!(issuer.asked(), 1, "keys are kept");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_forged_token_is_taken() {
    let mut app = quiet().await;
    let issuer = Issuer::start().await;
    let (client, user) = taking(&mut app, &issuer).await;
    let good = claims(&user, "acme@example.com");
    assert_eq!(seen(&client, &issuer.token(&good)).await, 200);
    let forged = unsigned(&issuer, &good)
        .into_iter()
        .chain(wrongly_signed(&issuer, &good));
    for (what, token) in forged {
        assert_eq!(seen(&client, &token).await, 401, "{what}");
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
        let mut changed = good.clone();
        match &value {
            Value::Null => drop(changed.as_object_mut().unwrap().remove(claim)),
            value => changed[claim] = value.clone(),
        }
        let status = seen(&client, &issuer.token(&changed)).await;
        assert_eq!(status, 401, "{claim} = {value}");
    }
    let mut late = good.clone();
    late["exp"] = json!(chrono::Utc::now().timestamp() - 10);
    assert_eq!(
        seen(&client, &issuer.token(&late)).await,
        200,
        "within the leeway"
    );
    app.finish().await;
}

fn head(head: Value) -> String {
    URL_SAFE_NO_PAD.encode(head.to_string())
}

/// Tokens made of a genuine one by somebody without any key.
fn unsigned(issuer: &Issuer, claims: &Value) -> Vec<(&'static str, String)> {
    let genuine = issuer.token(claims);
    let parts: Vec<&str> = genuine.split('.').collect();
    let none = head(json!({"alg": "none"}));
    let none_with_id = head(json!({"alg": "none", "kid": "ec-1"}));
    let zeros = URL_SAFE_NO_PAD.encode([0; 64]);
    let critical = head(json!({"alg": "ES256", "kid": "ec-1", "crit": ["exp"]}));
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

/// Tokens that somebody makes with keys of their own, or with what is public.
fn wrongly_signed(issuer: &Issuer, claims: &Value) -> Vec<(&'static str, String)> {
    let document = issuer.served.document.lock().unwrap().clone();
    let ec_text = document["keys"][0].to_string();
    let modulus = document["keys"][1]["n"].as_str().unwrap().to_owned();
    let mine = ec_key(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let long_curve = ec_key(&ECDSA_P384_SHA384_FIXED_SIGNING);
    let zeros = EncodingKey::from_secret(&[0; 32]);
    let brought = Header {
        kid: Some("ec-1".into()),
        jwk: Jwk::from_encoding_key(&mine, Algorithm::ES256).ok(),
        jku: Some("https://evil.example.com/jwks".into()),
        ..Header::new(Algorithm::ES256)
    };
    let own = json!({"sub": claims["sub"], "sid": uuid::Uuid::nil(), "iss": "peal", "aud": "peal",
                     "iat": claims["iat"], "exp": claims["exp"]});
    let by = |algorithm, id: &str, key: &EncodingKey| signed(algorithm, id, key, claims);
    let by_text =
        |algorithm, id: &str, secret: &[u8]| by(algorithm, id, &EncodingKey::from_secret(secret));
    let (hs256, hs384) = (Algorithm::HS256, Algorithm::HS384);
    let secret = JWT_SECRET.as_bytes();
    vec![
        (
            "public key as secret",
            by_text(hs256, "ec-1", ec_text.as_bytes()),
        ),
        (
            "modulus as secret",
            by_text(hs256, "rsa-1", modulus.as_bytes()),
        ),
        (
            "published secret",
            by_text(hs256, "oct-1", b"shared secret"),
        ),
        ("HS384", by_text(hs384, "ec-1", secret)),
        ("secret that is not set", by_text(hs256, "x", secret)),
        ("own key brought", encode(&brought, claims, &mine).unwrap()),
        ("own key", by(Algorithm::ES256, "ec-1", &mine)),
        ("unknown kid", by(Algorithm::ES256, "ec-2", &issuer.ec)),
        ("another curve", by(Algorithm::ES384, "ec-1", &long_curve)),
        ("EC key, RSA kid", by(Algorithm::ES256, "rsa-1", &issuer.ec)),
        ("RSA key, EC kid", by(Algorithm::RS256, "ec-1", &issuer.rsa)),
        ("RS384", by(Algorithm::RS384, "rsa-1", &issuer.rsa)),
        ("our kid", signed(hs256, "peal", &zeros, &own)),
        (
            "our kid, their key",
            signed(Algorithm::ES256, "peal", &issuer.ec, &own),
        ),
        (
            "no kid",
            encode(&Header::new(Algorithm::ES256), claims, &issuer.ec).unwrap(),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_unknown_keys_ask_the_issuer_once() {
    let mut app = quiet().await;
    let issuer = Issuer::start().await;
    let began = Instant::now();
    let (client, user) = taking(&mut app, &issuer).await;
    let claims = claims(&user, "acme@example.com");
    for n in 0..1000 {
        let unknown = signed(Algorithm::ES256, &format!("k-{n}"), &issuer.ec, &claims);
        let status = seen(&client, &unknown).await;
        assert!(matches!(status, 401 | 429), "{status}");
    }
    // Once, and again every half minute.
    let most = 1 + began.elapsed().as_secs() / 30;
    let asked = u64::try_from(issuer.asked()).expect("few");
    assert!(asked <= most, "asked {asked} times");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_outlive_an_issuer_that_is_down_but_not_their_withdrawal() {
    let mut app = quiet().await;
    let issuer = Issuer::start().await;
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
    let mut claims = claims(&user.to_string(), "acme@example.com");
    claims["exp"] = json!(chrono::Utc::now().timestamp() + 86_400);
    let token = issuer.token(&claims);
    assert_eq!(seen(&client, &token).await, 200);
    issuer.served.down.store(true, Ordering::SeqCst);
    context.clock.shift(TimeDelta::minutes(30));
    assert_eq!(seen(&client, &token).await, 200, "down for half an hour");
    context.clock.shift(TimeDelta::minutes(31));
    assert_eq!(seen(&client, &token).await, 401, "down for an hour");
    issuer.served.down.store(false, Ordering::SeqCst);
    context.clock.shift(TimeDelta::seconds(31));
    assert_eq!(seen(&client, &token).await, 200, "back again");

    let rsa = signed(Algorithm::RS256, "rsa-1", &issuer.rsa, &claims);
    let remaining = issuer.served.document.lock().unwrap()["keys"][1].clone();
    *issuer.served.document.lock().unwrap() = json!({"keys": [remaining]});
    context.clock.shift(TimeDelta::minutes(10));
    assert_eq!(seen(&client, &token).await, 401, "withdrawn");
    assert_eq!(seen(&client, &rsa).await, 200);
    // A new key is known as soon as it is used.
    let new = public(&issuer.ec, Algorithm::ES256, "ec-2");
    *issuer.served.document.lock().unwrap() = json!({"keys": [remaining, new]});
    context.clock.shift(TimeDelta::seconds(31));
    let rotated = signed(Algorithm::ES256, "ec-2", &issuer.ec, &claims);
    assert_eq!(seen(&client, &rotated).await, 200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_token_makes_a_user_only_of_whom_was_invited() {
    let mut app = quiet().await;
    let issuer = Issuer::start().await;
    let (client, _) = taking(&mut app, &issuer).await;
    let (bob, eve) = (uuid::Uuid::from_u128(1), uuid::Uuid::from_u128(2));
    let bobs = issuer.token(&claims(&bob.to_string(), "Bob@example.com"));
    assert_eq!(seen(&client, &bobs).await, 401);
    sqlx::query(
        "insert into invites (id, org_id, invited_by, email, role, expires_at)
         select gen_random_uuid(), org_id, id, 'bob@example.com', 'org_admin', now() + interval '1 day' from users",
    )
    .execute(&app.context.pool)
    .await
    .expect("an invite");
    let all = futures::future::join_all((0..8).map(|_| seen(&client, &bobs))).await;
    assert!(all.iter().all(|status| *status == 200), "{all:?}");
    let made = "select count(*) from users where email = 'Bob@example.com' and role = 'org_admin'";
    assert_eq!(app.count(made).await, 1);
    // The address of a member is no proof of being that member.
    let eves = issuer.token(&claims(&eve.to_string(), "bob@example.com"));
    assert_eq!(seen(&client, &eves).await, 401);
    let log = "select count(*) from audit_log where action = 'user.sign_up'";
    assert_eq!(app.count(log).await, 1);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_that_equals_the_id_of_somebody_with_a_password_is_not_them() {
    let mut app = quiet().await;
    let issuer = Issuer::start().await;
    let (client, imported) = taking(&mut app, &issuer).await;
    let ada = person(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let token = issuer.token(&claims(&ada, "ada@example.com"));
    assert_eq!(seen(&client, &token).await, 401);
    let other_address = issuer.token(&claims(&ada, "eve@example.com"));
    assert_eq!(seen(&client, &other_address).await, 401);
    // Whom the issuer brought along is known by it, and so is whom somebody linked.
    let theirs = issuer.token(&claims(&imported, "acme@example.com"));
    assert_eq!(seen(&client, &theirs).await, 200);
    let linked = "update users set external_subject = $2 where id = $1::uuid";
    sqlx::query(linked)
        .bind(&ada)
        .bind(format!("{ISSUER}|{ada}"))
        .execute(&app.context.pool)
        .await
        .expect("a link");
    assert_eq!(seen(&client, &token).await, 200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_nobody_verified_accepts_no_invitation() {
    let mut app = quiet().await;
    let issuer = Issuer::start().await;
    let (client, _) = taking(&mut app, &issuer).await;
    sqlx::query(
        "insert into invites (id, org_id, invited_by, email, role, expires_at)
         select gen_random_uuid(), org_id, id, 'bob@example.com', 'user', now() + interval '1 day' from users",
    )
    .execute(&app.context.pool)
    .await
    .expect("an invite");
    let bob = uuid::Uuid::from_u128(1).to_string();
    let said = |top: Value, metadata: Value| {
        let mut said = claims(&bob, "bob@example.com");
        said["email_verified"] = top;
        said["user_metadata"] = metadata;
        issuer.token(&said)
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
        let token = said(top.clone(), metadata.clone());
        assert_eq!(seen(&client, &token).await, 401, "{top} {metadata}");
    }
    let accepted = "select count(*) from invites where accepted_at is not null";
    assert_eq!(app.count(accepted).await, 0);
    let verified = said(json!("true"), json!({"email_verified": true}));
    assert_eq!(seen(&client, &verified).await, 200);
    assert_eq!(app.count(accepted).await, 1);
    // Who is known is known by their subject.
    let known = said(json!(false), json!(null));
    assert_eq!(seen(&client, &known).await, 200);
    app.finish().await;
}

/// An API that takes everybody in whom the issuer vouches for.
async fn open_to_everybody() -> (App, Issuer, ApiClient) {
    let mut app = quiet().await;
    let issuer = Issuer::start().await;
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
async fn an_open_installation_gives_everybody_an_organisation() {
    let (app, issuer, client) = open_to_everybody().await;
    let subject = uuid::Uuid::from_u128(7).to_string();
    let token = issuer.token(&claims(&subject, "carol@example.com"));
    assert_eq!(seen(&client, &token).await, 200);
    assert_eq!(seen(&client, &token).await, 200);
    let own = "select count(*) from users u join organizations o on o.id = u.org_id
               where u.email = 'carol@example.com' and u.role = 'org_admin' and o.name = u.email";
    assert_eq!(app.count(own).await, 1);
    let mut nameless = claims("someone", "x");
    nameless.as_object_mut().unwrap().remove("email");
    assert_eq!(seen(&client, &issuer.token(&nameless)).await, 401);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_tokens_tell_of_their_user_is_kept_and_shown_to_them() {
    let (app, issuer, client) = open_to_everybody().await;
    let subject = uuid::Uuid::from_u128(9).to_string();
    let mut said = claims(&subject, "dora@example.com");
    let now = said["iat"].as_i64().expect("a moment");
    let me = async |said: &Value| {
        let request = client.anonymous(Method::GET, "/api/v1/me");
        let me = send_request(request.bearer_auth(issuer.token(said))).await;
        let me = me.expect(200);
        ["full_name", "phone", "profile_image_url", "user_metadata"].map(|name| me[name].clone())
    };
    said["phone"] = json!("12125550123");
    said["user_metadata"] = json!({
        "full_name": "Dora", "avatar_url": "https://img.test/d.png", "email_verified": true, "role": "super_admin",
    });
    let told = [
        json!("Dora"),
        json!("12125550123"),
        json!("https://img.test/d.png"),
        said["user_metadata"].clone(),
    ];
    assert_eq!(me(&said).await, told);
    // The next one tells otherwise; the one before changes nothing any more.
    let mut next = said.clone();
    next["iat"] = json!(now + 1);
    next["phone"] = json!("");
    next["user_metadata"] = json!({"name": "Dora D.", "note": "x".repeat(4096)});
    let mut news = [json!("Dora D."), Value::Null, Value::Null, json!({})];
    assert_eq!(me(&next).await, news);
    assert_eq!(me(&said).await, news);
    // Nobody waits for a row that somebody holds: the next request tells it.
    let mut held = app.context.pool.begin().await.expect("a transaction");
    sqlx::query("select from users where email = 'dora@example.com' for share")
        .execute(&mut *held)
        .await
        .expect("a lock");
    let mut later = next.clone();
    later["iat"] = json!(now + 2);
    later["phone"] = json!("12125550124");
    assert_eq!(me(&later).await, news);
    held.rollback().await.expect("it is let go");
    news[1] = json!("12125550124");
    assert_eq!(me(&later).await, news);
    // Nor does one that tells nothing.
    let silent = next.as_object_mut().expect("claims");
    silent.insert("iat".to_owned(), json!(now + 3));
    silent.remove("phone");
    silent.remove("user_metadata");
    assert_eq!(me(&next).await, news);
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
