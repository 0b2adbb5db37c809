//! Callers of the API, one for each credential and role, each with its own resources.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use peal_shared::access::{Principal, Role};
use peal_shared::context::Context;
use peal_shared::platform::ids::{GrantId, UserId, WalletId};
use peal_shared::platform::money::Usd;
use peal_shared::platform::secret::KeyRing;
use peal_shared::telephony::{CarrierAccount, CarrierCredentials, CarrierKind};
use peal_shared::trunks::NewTrunk;
use peal_shared::wallets::grants::NewGrant;
use peal_shared::wallets::{grants, queries};
use peal_shared::{api_keys, trunks, users};
use reqwest::{Method, RequestBuilder, Url};
use serde_json::{Value, json};
use uuid::Uuid;

use super::app::{AUTH_TOKEN, AppOptions, JWT_SECRET, Tenant, create_tenant, send_request};
use super::client::{ApiClient, phone_number};

/// Counter that keeps generated names and numbers unique.
static NEXT_NUMBER: AtomicU32 = AtomicU32::new(0);

/// Credential and role of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ActorKind {
    Anonymous,
    /// The API key of an org_admin, which acts as a plain user.
    Key,
    User,
    OrgAdmin,
    SuperAdmin,
}

impl ActorKind {
    /// Every kind of caller.
    pub const ALL: [Self; 5] = [
        Self::Anonymous,
        Self::Key,
        Self::User,
        Self::OrgAdmin,
        Self::SuperAdmin,
    ];

    /// Name of this kind in the access table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "anyone",
            Self::Key => "key",
            Self::User => "user",
            Self::OrgAdmin => "org_admin",
            Self::SuperAdmin => "super_admin",
        }
    }
}

/// A caller with its own user, organisation, wallet and grant.
#[derive(Clone)]
pub struct Actor {
    pub kind: ActorKind,
    pub user: UserId,
    pub tenant: Tenant,
    /// Wallet of the user, and a grant that was transferred to it.
    wallet: WalletId,
    grant: GrantId,
    carrier: Url,
}

/// Makes an organisation a reseller with credit, and transfers some of it to its user.
async fn fund_wallet(context: &Context, tenant: &Tenant, user: UserId) -> (WalletId, GrantId) {
    let mut db = context.pool.begin().await.expect("transaction");
    sqlx::query("update organizations set org_type = 'distributor' where id = $1")
        .bind(tenant.org)
        .execute(&mut *db)
        .await
        .expect("a reseller");

    let principal = users::principal_unscoped(&mut db, user).await;
    let admin = Principal {
        role: Role::OrgAdmin,
        ..principal.expect("a principal").expect("a user")
    };

    let (scope, now) = (admin.scope(), context.clock.now());
    let company = queries::of_org(&mut db, &scope, tenant.org, now).await;
    let own = queries::of_user(&mut db, &scope, user, now).await;
    let (company, own) = (company.expect("a wallet").id, own.expect("a wallet").id);

    let given = |dollars| NewGrant {
        amount: Usd::dollars(dollars),
        expires_at: None,
        priority: 50,
        note: None,
        idem_key: GrantId::new().to_string(),
    };

    grants::mint(&mut db, &scope, company, &given(1000), user, now)
        .await
        .expect("minted");
    let handed_on = grants::transfer(&mut db, &scope, own, &given(10), user, now)
        .await
        .expect("handed on");

    db.commit().await.expect("commit");
    (own, handed_on.grant.id)
}

impl Actor {
    /// Creates an organisation and returns its first user, in the role of `who`.
    pub async fn new(context: &Context, carrier_url: &str, kind: ActorKind, org: &str) -> Self {
        let tenant = create_tenant(context, org, carrier_url, &AppOptions::default()).await;

        let role = match kind {
            ActorKind::User => Role::User,
            ActorKind::SuperAdmin => Role::SuperAdmin,
            ActorKind::Anonymous | ActorKind::Key | ActorKind::OrgAdmin => Role::OrgAdmin,
        };
        let user = sqlx::query_scalar("update users set role = $2 where org_id = $1 returning id")
            .bind(tenant.org)
            .bind(role)
            .fetch_one(&context.pool)
            .await
            .expect("a user");

        let (wallet, grant) = fund_wallet(context, &tenant, user).await;
        let carrier = carrier_url.parse().expect("a URL");
        Self {
            kind,
            user,
            tenant,
            wallet,
            grant,
            carrier,
        }
    }

    /// Creates another member of the same organisation: a plain user, or an administrator's key.
    pub async fn create_colleague(&self, context: &Context, kind: ActorKind) -> Self {
        let role = match kind {
            ActorKind::Key => Role::OrgAdmin,
            _ => Role::User,
        };

        let email = format!("colleague-{}@example.com", kind.name());
        let mut db = context.pool.acquire().await.expect("a connection");
        let user = users::ensure_user_unscoped(&mut db, self.tenant.org, &email, role)
            .await
            .expect("a user");

        let keys = &context.config.keys;
        let api_key = api_keys::create_unscoped(&mut db, keys, self.tenant.org, user, "tests")
            .await
            .expect("a key");

        let tenant = Tenant {
            api_key,
            ..self.tenant.clone()
        };
        Self {
            kind,
            user,
            tenant,
            ..self.clone()
        }
    }

    /// Authentication header of this caller.
    pub fn credential(&self) -> Option<(&'static str, String)> {
        match self.kind {
            ActorKind::Anonymous => None,
            ActorKind::Key => Some(("x-api-key", self.tenant.api_key.clone())),
            ActorKind::User | ActorKind::OrgAdmin | ActorKind::SuperAdmin => {
                // Capitalised as schemathesis expects it when it repeats requests without it.
                Some((
                    "Authorization",
                    format!("Bearer {}", jwt_for_user(self.user)),
                ))
            }
        }
    }

    /// A request with this caller's credential.
    pub fn request(&self, client: &ApiClient, method: Method, path: &str) -> RequestBuilder {
        let request = client.anonymous(method, path);
        match self.credential() {
            Some((name, value)) => request.header(name, value),
            None => request,
        }
    }

    /// Creates fresh resources in this caller's organisation with the organisation's key, and
    /// returns their ids by the name of the parameter in paths, queries and bodies.
    pub async fn path_ids(
        &self,
        context: &Context,
        client: &ApiClient,
    ) -> BTreeMap<&'static str, String> {
        let tenant = &self.tenant;

        let n = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);

        let agent = json!({"name": format!("Agent {n}")});
        let agent = find_id(&self.post(client, "/api/v1/agents/simple", agent).await);
        let phone = json!({"phone_number": phone_number(90_000 + n), "trunk_id": tenant.trunk});
        let phone = find_id(&self.post(client, "/api/v1/phone", phone).await);
        let mapping = json!({"phone_number_id": phone, "agent_id": agent});
        let mapping = self.post(client, "/api/v1/phone/mapping", mapping).await;

        let call = format!(
            "/api/call/create_call?phoneNumber=%2B12125550112&agent_id={}",
            tenant.agent
        );
        let call = self.post(client, &call, json!({})).await;

        let mut path_ids = self.people_form(context, n).await;
        path_ids.extend(self.batch_ids(client).await);
        path_ids.extend(self.tool_ids(client, n, &agent).await);
        path_ids.extend(self.billing_ids(client, n).await);

        path_ids.extend([
            ("session_id", id(&call["call_session_id"])),
            ("call_id", id(&call["call_session_id"])),
            ("agent_id", agent),
            ("caller_phone_id", phone.clone()),
            ("phone_number_id", phone.clone()),
            ("phone_id", phone.clone()),
            ("GET /api/v1/phone/mapping/{id}.id", phone),
            ("Phone mapping.id", find_id(&mapping)),
            ("trunk_id", self.create_trunk(context, n).await),
            ("Voices.voice_id", "Polly.Joanna".to_owned()),
            ("Voices.provider_id", "polly".to_owned()),
            ("force", "true".to_owned()),
            ("force_update", "true".to_owned()),
            ("force_delete", "true".to_owned()),
        ]);

        path_ids
    }

    async fn post(&self, client: &ApiClient, path: &str, body: Value) -> Value {
        let request = client.request_as(&self.tenant, Method::POST, path);
        let made = send_request(request.json(&body)).await;
        assert!(made.status.is_success(), "{path}: {}", made.text);
        made.json()
    }

    /// Creates a batch with a row and an upload.
    async fn batch_ids(&self, client: &ApiClient) -> [(&'static str, String); 3] {
        let (tenant, batches) = (&self.tenant, "/api/v1/batch-call");
        let batch = json!({
            "caller_phone_id": tenant.phone, "agent_id": tenant.agent, "batch_name": "Theirs",
        });
        let created = self.post(client, &format!("{batches}/create"), batch).await;
        let batch = id(&created["data"]["id"]);

        let person = json!({"items": [{"to_phonenumber": "+12125550111"}]});
        let added = format!("{batches}/{batch}/data/upsert");
        let added = self.post(client, &added, person).await;

        let form = client
            .request_as(tenant, Method::POST, &format!("{batches}/upload/{batch}"))
            .multipart(people_form());
        let uploaded = send_request(form).await.expect(200);

        [
            ("item_id", id(&added["data"]["inserted_ids"][0])),
            ("ingest_id", id(&uploaded["data"]["ingest_id"])),
            ("batch_id", batch),
        ]
    }

    /// Creates a tool, an MCP server, an analysis rule and a workflow, and attaches the tool and
    /// the rule to the agent.
    async fn tool_ids(
        &self,
        client: &ApiClient,
        n: u32,
        agent: &str,
    ) -> [(&'static str, String); 4] {
        let tool = json!({"name": format!("tool_{n}"), "description": "Theirs", "url": "https://shop.invalid"});
        let tool = self.post(client, "/api/v1/tool-endpoint-defs", tool).await;

        // Nothing listens there, so the connection fails at once.
        let server = json!({"name": format!("Server {n}"), "server_url": "http://127.0.0.2:1/mcp"});
        let server = self
            .post(client, "/api/v1/tools-mcp-server-defs", server)
            .await;

        let rule =
            json!({"name": format!("Rule {n}"), "analysis_type": "summary", "prompt": "Sum up"});
        let rule = self.post(client, "/api/v1/post-analysis/rules", rule).await;

        let nodes = json!([{"id": "bye", "start": true, "type": "hangup"}]);
        let workflow = json!({"name": format!("Workflow {n}"), "nodes": nodes});
        let workflow = self.post(client, "/api/v1/workflows", workflow).await;

        let tools = json!([{"tool_id": tool["id"], "tool_type": "endpoint"}]);
        let of_agent = format!("/api/v1/agents/{agent}");
        self.post(client, &format!("{of_agent}/tools"), tools).await;
        let attached = json!({"agent_id": agent, "rule_id": rule["id"]});
        self.post(client, &format!("{of_agent}/post-analysis"), attached)
            .await;

        [
            ("tool_id", id(&tool["id"])),
            ("server_id", id(&server["id"])),
            ("rule_id", id(&rule["id"])),
            ("workflow_id", id(&workflow["id"])),
        ]
    }

    /// Creates a trunk that no other resource uses.
    async fn create_trunk(&self, context: &Context, n: u32) -> String {
        let account = CarrierAccount {
            kind: CarrierKind::Twilio,
            account_id: format!("AC{n:032x}"),
            credentials: CarrierCredentials {
                username: None,
                password: AUTH_TOKEN.into(),
                signing_secrets: Vec::new(),
            },
            api_base_url: Some(self.carrier.clone()),
        };

        let trunk = NewTrunk {
            org: Some(self.tenant.org),
            name: format!("Trunk {n}"),
            account,
            cps: 1.into(),
            max_concurrent: 1,
            ring_timeout_secs: 30,
        };

        let mut db = context.pool.begin().await.expect("a transaction");
        let trunk = trunks::create_unscoped(&mut db, &context.config.keys, &trunk)
            .await
            .expect("a trunk");
        db.commit().await.expect("commit");

        trunk.to_string()
    }

    /// Creates a member, an invitation and an API key. Inserts them directly, because over HTTP
    /// only sessions may create them, at a limited rate.
    async fn people_form(&self, context: &Context, n: u32) -> BTreeMap<&'static str, String> {
        let (org, user) = (self.tenant.org, self.user);
        let mut db = context.pool.acquire().await.expect("a connection");

        let address = format!("member-{n}@example.com");
        let member = users::ensure_user_unscoped(&mut db, org, &address, Role::User)
            .await
            .expect("a member");

        let keys = &context.config.keys;
        api_keys::create_unscoped(&mut db, keys, org, user, &address)
            .await
            .expect("a key");
        let key: Uuid =
            sqlx::query_scalar("select id from api_keys where org_id = $1 and name = $2")
                .bind(org)
                .bind(&address)
                .fetch_one(&mut *db)
                .await
                .expect("its id");

        let invite: Uuid = sqlx::query_scalar(
            "insert into invites (id, org_id, invited_by, email, role, expires_at)
             values (gen_random_uuid(), $1, $2, $3, 'user', now() + interval '1 day')
             returning id",
        )
        .bind(org)
        .bind(user)
        .bind(format!("guest-{n}@example.com"))
        .fetch_one(&mut *db)
        .await
        .expect("an invitation");

        BTreeMap::from([
            ("user_id", user.to_string()),
            ("owner_user_ids", user.to_string()),
            ("organization_ids", org.to_string()),
            ("Organizations.id", org.to_string()),
            ("Organizations.user_id", member.to_string()),
            // Nobody may change their own flags.
            (
                "PUT /api/v1/feature-flags/{user_id}.user_id",
                member.to_string(),
            ),
            ("invite_id", invite.to_string()),
            ("key_id", key.to_string()),
        ])
    }

    /// Ids of this caller's wallet and grant, a price, and a usage export.
    async fn billing_ids(&self, client: &ApiClient, n: u32) -> BTreeMap<&'static str, String> {
        let org = self.tenant.org;
        let path = "/api/v1/billing/usage/export";
        let export = send_request(client.request_as(&self.tenant, Method::GET, path)).await;
        let export = id(&export.expect(202)["export_id"]);
        let keys = KeyRing::derive(&[7; 32]).expect("keys");
        let token = keys.export_token(export.parse().expect("an id"), org, self.user);
        BTreeMap::from([
            ("wallet_id", self.wallet.to_string()),
            ("grant_id", self.grant.to_string()),
            ("org_id", org.to_string()),
            ("price_id", self.price_id(client, n).await),
            ("export_id", export),
            ("token", token),
        ])
    }

    /// Id of a price: a new future price for a super_admin, any existing one for others.
    async fn price_id(&self, client: &ApiClient, n: u32) -> String {
        let path = "/api/v1/service-prices";
        let price = match self.kind {
            ActorKind::SuperAdmin => {
                let body = json!({
                    "service": "model", "match": format!("model {n}"), "price_usd": "0.01",
                    "valid_from": "2099-01-01T00:00:00Z",
                });
                let request = self.request(client, Method::POST, path).json(&body);
                send_request(request).await.expect(201)
            }
            _ => {
                let request = client.request_as(&self.tenant, Method::GET, path);
                send_request(request).await.expect(200)["prices"][0].clone()
            }
        };
        price["id"].as_str().expect("an id").to_owned()
    }
}

fn id(value: &Value) -> String {
    value.as_str().expect("an id").to_owned()
}

/// First id in a response, at any depth of its envelope.
fn find_id(answer: &Value) -> String {
    fn find(value: &Value) -> Option<&str> {
        let parts = value.as_object()?;
        let own = parts.get("id").and_then(Value::as_str);
        own.or_else(|| parts.values().find_map(find))
    }
    find(answer)
        .unwrap_or_else(|| panic!("no id in {answer}"))
        .to_owned()
}

/// An upload form with a small file of people.
pub fn people_form() -> reqwest::multipart::Form {
    let part = reqwest::multipart::Part::text("to_phonenumber\n+12125550113\n")
        .file_name("people.csv")
        .mime_str("text/csv")
        .expect("mime");
    reqwest::multipart::Form::new().part("file", part)
}

/// A session token for a user.
pub fn jwt_for_user(user: UserId) -> String {
    let now = chrono::Utc::now().timestamp();
    let claims = json!({
        "sub": user, "iss": "peal", "aud": "authenticated", "iat": now, "exp": now + 3600,
    });
    jsonwebtoken::encode(
        &jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256),
        &claims,
        &jsonwebtoken::EncodingKey::from_secret(JWT_SECRET.as_bytes()),
    )
    .expect("a token")
}
