//! Access matrix: the callers that may use each operation of the OpenAPI document, checked against
//! the running API. An operation without a line fails the test, and so does a line without an
//! operation.
//!
//! Then callers of every kind try every operation on another organisation's resources: these must
//! appear not to exist, and no row of that organisation may change. This runs once against the
//! normal API, and once with the API's own filters off, where only row-level security protects the
//! rows. Then colleagues try the same inside one organisation.

use std::collections::{BTreeMap, BTreeSet};

use peal_shared::context::Context;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::harness::actors::{Actor, ActorKind};
use crate::harness::app::{App, AppOptions};
use crate::harness::client::ApiClient;
use crate::harness::digest::{digest_org, digest_user};
use crate::harness::document::{Document, Operation};
use crate::harness::example_request::send_example;
use crate::harness::second_api::SecondApi;

/// Callers that may use each operation. `anyone` needs no credential, `key` is any API key, and the
/// others are sessions.
const ACCESS_TABLE: &str = "
GET    /health                                                    anyone
GET    /health/ready                                              anyone
GET    /openapi.json                                              anyone
GET    /docs                                                      anyone
GET    /docs/rapidoc-9.3.8.min.js                                 anyone

GET    /callbacks/{trunk}/{call}/{token}/answer                   anyone
POST   /callbacks/{trunk}/{call}/{token}/answer                   anyone
GET    /callbacks/{trunk}/{call}/{token}/machine                  anyone
POST   /callbacks/{trunk}/{call}/{token}/machine                  anyone
GET    /callbacks/{trunk}/{call}/{token}/recording                anyone
POST   /callbacks/{trunk}/{call}/{token}/recording                anyone
POST   /api/v1/batch-call/status-callback                         anyone
GET    /api/v1/batch-call/status-callback/{trunk}/{call}/{token}  anyone
POST   /api/v1/batch-call/status-callback/{trunk}/{call}/{token}  anyone

POST   /api/v1/auth/login                                         anyone
POST   /api/v1/auth/logout                                        user org_admin super_admin
POST   /api/v1/auth/password                                      user org_admin super_admin

GET    /api/v1/me                                                 key user org_admin super_admin
GET    /api/v1/me/users                                           key user org_admin super_admin
GET    /api/v1/organizations                                      key user org_admin super_admin
POST   /api/v1/organizations                                      super_admin
GET    /api/v1/organizations/{id}/detail                          key user org_admin super_admin
PATCH  /api/v1/organizations/{id}                                 org_admin super_admin
GET    /api/v1/organizations/{id}/users                           org_admin super_admin
PATCH  /api/v1/organizations/{id}/users/{user_id}/org-role        org_admin super_admin
DELETE /api/v1/organizations/{id}/users/{user_id}                 org_admin super_admin
GET    /api/v1/organizations/{id}/invites                         org_admin super_admin
POST   /api/v1/organizations/{id}/invites                         org_admin super_admin
DELETE /api/v1/organizations/{id}/invites/{invite_id}             org_admin super_admin
POST   /api/v1/organizations/invites/accept                       anyone

GET    /api/v1/api-keys/fetch                                     key user org_admin super_admin
GET    /api/v1/api-keys/fetch/{user_id}                           key user org_admin super_admin
POST   /api/v1/api-keys/exists                                    key user org_admin super_admin
POST   /api/v1/api-keys                                           user org_admin super_admin
PATCH  /api/v1/api-keys/{key_id}                                  user org_admin super_admin
DELETE /api/v1/api-keys/{key_id}                                  user org_admin super_admin

GET    /api/v1/feature-flags/me                                   key user org_admin super_admin
GET    /api/v1/feature-flags/{user_id}                            key user org_admin super_admin
PUT    /api/v1/feature-flags/{user_id}                            org_admin super_admin

GET    /api/v1/audit-log                                          org_admin super_admin

GET    /api/v1/providers/all                                      key user org_admin super_admin
GET    /api/v1/providers/model                                    key user org_admin super_admin
GET    /api/v1/providers/tts                                      key user org_admin super_admin
GET    /api/v1/providers/stt                                      key user org_admin super_admin
GET    /api/v1/providers/vad                                      key user org_admin super_admin

GET    /api/v1/noise-assets                                       key user org_admin super_admin

GET    /api/v1/tts-voices                                         key user org_admin super_admin
POST   /api/v1/tts-voices                                         super_admin
GET    /api/v1/tts-voices/provider/{provider_id}                  key user org_admin super_admin
GET    /api/v1/tts-voices/{voice_id}                              key user org_admin super_admin

POST   /api/call/create_call                                      key user org_admin super_admin
GET    /api/call/{call_id}                                        key user org_admin super_admin

POST   /api/v1/batch-call/create                                  key user org_admin super_admin
GET    /api/v1/batch-call/me                                      key user org_admin super_admin
GET    /api/v1/batch-call/browse                                  key user org_admin super_admin
GET    /api/v1/batch-call/user/{user_id}                          key user org_admin super_admin
GET    /api/v1/batch-call/{batch_id}                              key user org_admin super_admin
DELETE /api/v1/batch-call/{batch_id}                              key user org_admin super_admin
GET    /api/v1/batch-call/{batch_id}/status                       key user org_admin super_admin
GET    /api/v1/batch-call/{batch_id}/readiness                    key user org_admin super_admin
PATCH  /api/v1/batch-call/{batch_id}/variables                    key user org_admin super_admin
POST   /api/v1/batch-call/start/{batch_id}                        key user org_admin super_admin
POST   /api/v1/batch-call/pause/{batch_id}                        key user org_admin super_admin
POST   /api/v1/batch-call/resume/{batch_id}                       key user org_admin super_admin
POST   /api/v1/batch-call/stop/{batch_id}                         key user org_admin super_admin
GET    /api/v1/batch-call/{batch_id}/events                       key user org_admin super_admin
GET    /api/v1/batch-call/{batch_id}/data                         key user org_admin super_admin
POST   /api/v1/batch-call/{batch_id}/data/upsert                  key user org_admin super_admin
DELETE /api/v1/batch-call/{batch_id}/data/{item_id}               key user org_admin super_admin
POST   /api/v1/batch-call/upload/{batch_id}                       key user org_admin super_admin
POST   /api/v1/batch-call/upload-json/{batch_id}                  key user org_admin super_admin
GET    /api/v1/batch-call/template/{batch_id}                     key user org_admin super_admin
GET    /api/v1/batch-call/{batch_id}/template                     key user org_admin super_admin
GET    /api/v1/batch-call/{batch_id}/ingests                      key user org_admin super_admin
GET    /api/v1/batch-call/{batch_id}/ingests/{ingest_id}          key user org_admin super_admin
GET    /api/v1/batch-call/{batch_id}/ingests/{ingest_id}/errors   key user org_admin super_admin

GET    /api/v1/agents                                             key user org_admin super_admin
POST   /api/v1/agents                                             key user org_admin super_admin
POST   /api/v1/agents/simple                                      key user org_admin super_admin
GET    /api/v1/agents/stats                                       key user org_admin super_admin
GET    /api/v1/agents/{agent_id}                                  key user org_admin super_admin
PUT    /api/v1/agents/{agent_id}                                  key user org_admin super_admin
PATCH  /api/v1/agents/{agent_id}/model-config                     key user org_admin super_admin
PATCH  /api/v1/agents/{agent_id}/tts-config                       key user org_admin super_admin
PATCH  /api/v1/agents/{agent_id}/transcriber-config               key user org_admin super_admin
PATCH  /api/v1/agents/{agent_id}/vad-config                       key user org_admin super_admin
DELETE /api/v1/agents/{agent_id}                                  key user org_admin super_admin
POST   /api/v1/agents/{agent_id}/clone                            key user org_admin super_admin

GET    /api/v1/phone                                              key user org_admin super_admin
GET    /api/v1/phone/active                                       key user org_admin super_admin
GET    /api/v1/phone/browse                                       key user org_admin super_admin
GET    /api/v1/phone/user/{user_id}                               key user org_admin super_admin
GET    /api/v1/phone/{phone_id}                                   key user org_admin super_admin
POST   /api/v1/phone                                              key user org_admin super_admin
PUT    /api/v1/phone/{phone_id}                                   key user org_admin super_admin
DELETE /api/v1/phone/{phone_id}                                   key user org_admin super_admin
GET    /api/v1/phone/mapping                                      key user org_admin super_admin
GET    /api/v1/phone/mapping/agent/{agent_id}                     key user org_admin super_admin
GET    /api/v1/phone/mapping/{id}                                 key user org_admin super_admin
POST   /api/v1/phone/mapping                                      key user org_admin super_admin
PUT    /api/v1/phone/mapping/{id}                                 key user org_admin super_admin
DELETE /api/v1/phone/mapping/{id}                                 key user org_admin super_admin

GET    /api/v1/trunks                                             key user org_admin super_admin
GET    /api/v1/trunks/{trunk_id}                                  key user org_admin super_admin
POST   /api/v1/trunks                                             org_admin super_admin
PUT    /api/v1/trunks/{trunk_id}                                  org_admin super_admin
POST   /api/v1/trunks/{trunk_id}/check                            org_admin super_admin
POST   /api/v1/trunks/{trunk_id}/rotate                           org_admin super_admin
POST   /api/v1/trunks/{trunk_id}/pause                            org_admin super_admin
POST   /api/v1/trunks/{trunk_id}/resume                           org_admin super_admin
DELETE /api/v1/trunks/{trunk_id}                                  org_admin super_admin

POST   /api/v1/tool-endpoint-defs                                 key user org_admin super_admin
GET    /api/v1/tool-endpoint-defs                                 key user org_admin super_admin
GET    /api/v1/tool-endpoint-defs/active/endpoints                key user org_admin super_admin
GET    /api/v1/tool-endpoint-defs/{tool_id}                       key user org_admin super_admin
PUT    /api/v1/tool-endpoint-defs/{tool_id}                       key user org_admin super_admin
DELETE /api/v1/tool-endpoint-defs/{tool_id}                       key user org_admin super_admin
POST   /api/v1/tool-endpoint-defs/{tool_id}/test                  key user org_admin super_admin

POST   /api/v1/tools-mcp-server-defs                              key user org_admin super_admin
GET    /api/v1/tools-mcp-server-defs                              key user org_admin super_admin
GET    /api/v1/tools-mcp-server-defs/active/servers               key user org_admin super_admin
POST   /api/v1/tools-mcp-server-defs/fetch_mcp_tools              key user org_admin super_admin
GET    /api/v1/tools-mcp-server-defs/{server_id}                  key user org_admin super_admin
PUT    /api/v1/tools-mcp-server-defs/{server_id}                  key user org_admin super_admin
DELETE /api/v1/tools-mcp-server-defs/{server_id}                  key user org_admin super_admin
DELETE /api/v1/tools-mcp-server-defs/user/all                     key user org_admin super_admin
POST   /api/v1/tools-mcp-server-defs/{server_id}/clone            key user org_admin super_admin
PUT    /api/v1/tools-mcp-server-defs/{server_id}/filter-tools     key user org_admin super_admin
GET    /api/v1/agents/{agent_id}/tools                            key user org_admin super_admin
POST   /api/v1/agents/{agent_id}/tools                            key user org_admin super_admin
PATCH  /api/v1/agents/{agent_id}/tools                            key user org_admin super_admin
DELETE /api/v1/agents/{agent_id}/tools/{tool_id}                  key user org_admin super_admin
GET    /api/v1/post-analysis/rules                                key user org_admin super_admin
POST   /api/v1/post-analysis/rules                                key user org_admin super_admin
GET    /api/v1/post-analysis/rules/{rule_id}                      key user org_admin super_admin
PUT    /api/v1/post-analysis/rules/{rule_id}                      key user org_admin super_admin
DELETE /api/v1/post-analysis/rules/{rule_id}                      key user org_admin super_admin
POST   /api/v1/post-analysis/rules/{rule_id}/duplicate            key user org_admin super_admin
GET    /api/v1/agents/{agent_id}/post-analysis                    key user org_admin super_admin
POST   /api/v1/agents/{agent_id}/post-analysis                    key user org_admin super_admin
GET    /api/v1/agents/{agent_id}/post-analysis/attached-rules     key user org_admin super_admin
PUT    /api/v1/agents/{agent_id}/post-analysis/attached-rules     key user org_admin super_admin
GET    /api/v1/agents/{agent_id}/post-analysis/attached-rule-ids  key user org_admin super_admin
GET    /api/v1/workflows                                          key user org_admin super_admin
POST   /api/v1/workflows                                          key user org_admin super_admin
GET    /api/v1/workflows/{workflow_id}                            key user org_admin super_admin
PATCH  /api/v1/workflows/{workflow_id}                            key user org_admin super_admin
DELETE /api/v1/workflows/{workflow_id}                            key user org_admin super_admin
POST   /api/v1/workflows/{workflow_id}/clone                      key user org_admin super_admin

GET    /api/v1/service-prices                                     key user org_admin super_admin
GET    /api/v1/service-prices/{price_id}                          key user org_admin super_admin
POST   /api/v1/service-prices                                     super_admin
PATCH  /api/v1/service-prices/{price_id}                          super_admin
DELETE /api/v1/service-prices/{price_id}                          super_admin
POST   /api/v1/orgs/{org_id}/business-model                       super_admin
POST   /api/v1/orgs/{org_id}/commission                           super_admin
POST   /api/v1/orgs/{org_id}/markup                               org_admin super_admin
GET    /api/v1/wallets/me                                         key user org_admin super_admin
GET    /api/v1/wallets/users                                      super_admin
GET    /api/v1/wallets/orgs                                       super_admin
GET    /api/v1/wallets/orgs/{org_id}/members                      org_admin super_admin
GET    /api/v1/wallets/{wallet_id}                                key user org_admin super_admin
POST   /api/v1/wallets/{wallet_id}/grants                         org_admin super_admin
PATCH  /api/v1/wallets/grants/{grant_id}                          org_admin super_admin
POST   /api/v1/wallets/{wallet_id}/cap                            org_admin super_admin
POST   /api/v1/wallets/{wallet_id}/adjust                         super_admin
GET    /api/v1/billing/usage-records                              key user org_admin super_admin
GET    /api/v1/billing/usage/records                              key user org_admin super_admin
GET    /api/v1/billing/usage/summary                              key user org_admin super_admin
GET    /api/v1/billing/usage/overview                             key user org_admin super_admin
GET    /api/v1/billing/usage/sessions/{session_id}                key user org_admin super_admin
GET    /api/v1/billing/usage/export                               key user org_admin super_admin
GET    /api/v1/billing/exports/{export_id}/download               key user org_admin super_admin
GET    /api/v1/billing/credit-balance                             key user org_admin super_admin
GET    /billing/usage-records                                     key user org_admin super_admin
GET    /billing/usage/records                                     key user org_admin super_admin
GET    /billing/usage/summary                                     key user org_admin super_admin
GET    /billing/usage/overview                                    key user org_admin super_admin
GET    /billing/usage/sessions/{session_id}                       key user org_admin super_admin
GET    /billing/usage/export                                      key user org_admin super_admin
GET    /billing/exports/{export_id}/download                      key user org_admin super_admin
GET    /billing/credit-balance                                    key user org_admin super_admin
GET    /api/v1/earnings/me                                        org_admin super_admin
GET    /api/v1/earnings/me/breakdown                              org_admin super_admin
GET    /api/v1/earnings/orgs/{org_id}                             super_admin
POST   /api/v1/organizations/{id}/billing/assign-credits          anyone
POST   /organizations/{id}/billing/assign-credits                 anyone
";

/// Parses the table: names of callers, by operation.
fn access_table() -> BTreeMap<String, BTreeSet<&'static str>> {
    let lines = ACCESS_TABLE.lines().filter(|line| !line.is_empty());
    let entries = lines.map(|line| {
        let mut words = line.split_whitespace();
        let (method, path) = (
            words.next().expect("a method"),
            words.next().expect("a path"),
        );
        (format!("{method} {path}"), words.collect())
    });
    let table: BTreeMap<_, BTreeSet<_>> = entries.collect();

    let known = ActorKind::ALL.map(ActorKind::name);
    for (operation, words) in &table {
        let odd = words.iter().find(|word| !known.contains(word));
        assert!(odd.is_none(), "{operation}: unknown caller {odd:?}");
        assert!(!words.is_empty(), "{operation}: no caller");
    }
    table
}

/// Parameters that do not name a resource of one organisation.
const SHARED_PARAMETERS: [&str; 6] = [
    "voice_id",
    "provider_id",
    "price_id",
    "force",
    "force_update",
    "force_delete",
];

/// True when an operation's path names a resource of one organisation.
fn names_owned_resource(operation: &Operation<'_>) -> bool {
    let names = operation.parameters("path").into_iter();
    let mut names = names.filter_map(|parameter| parameter["name"].as_str());
    names.any(|name| !SHARED_PARAMETERS.contains(&name))
}

async fn without_workers() -> App {
    App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_caller_may_use_exactly_the_operations_in_the_table() {
    let app = without_workers().await;
    let document = Document::current();
    let mut table = access_table();

    // 1. Create one actor of each kind, with its resources.
    let mut actors = Vec::new();
    for kind in ActorKind::ALL {
        actors.push(Actor::new(&app.context, app.carrier.url(), kind, kind.name()).await);
    }
    let mut all_path_ids = Vec::new();
    for actor in &actors {
        all_path_ids.push(actor.path_ids(&app.context, &app).await);
    }

    // The API key of a super_admin, for operations that no key may do.
    let mut root = actors.last().expect("actors").clone();
    root.kind = ActorKind::Key;

    // 2. Compare every operation with the table and the document.
    let mut wrong = Vec::new();
    for operation in document.operations() {
        let name = operation.name();
        let Some(allowed) = table.remove(&name) else {
            wrong.push(format!("{name} is not in the table"));
            continue;
        };

        let open = allowed.contains(ActorKind::Anonymous.name());
        let schemes = operation.spec["security"].to_string();
        if open != (schemes == "[{}]") || allowed.contains("key") != schemes.contains("api_key") {
            wrong.push(format!(
                "{name}: the table says {allowed:?}, the document {schemes}"
            ));
        }

        let denied_root = (!open && !allowed.contains("key")).then_some(&root);
        for (at, actor) in actors.iter().chain(denied_root).enumerate() {
            // The last two actors share their resources.
            let path_ids = &mut all_path_ids[at.min(ActorKind::ALL.len() - 1)];
            let (status, text) = send_example(&app, actor, &operation, path_ids).await;
            if operation.method == Method::DELETE && status.is_success() {
                // A resource is deleted, so create a fresh set.
                *path_ids = actor.path_ids(&app.context, &app).await;
            }
            // A 401 of the login is about the password, not about access.
            let known = !matches!(status.as_u16(), 401 | 403) || text.contains("wrong_credentials");
            let right = match (open || allowed.contains(actor.kind.name()), actor.kind) {
                (true, _) => known,
                (false, ActorKind::Anonymous) => status == 401,
                (false, _) => status == 403,
            };
            if !right {
                wrong.push(format!("{name} of {}: {status} {text}", actor.kind.name()));
            }
        }
    }

    wrong.extend(
        table
            .keys()
            .map(|name| format!("{name} is not in the document")),
    );

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    app.drop_jobs().await;
    app.finish().await;
}

/// Fails when callers of other organisations reach or change a resource of `victim`.
async fn assert_foreign_access_denied(
    context: &Context,
    client: &ApiClient,
    strangers: &[Actor],
    victim: &Actor,
) {
    let pool = &context.pool;
    let path_ids = victim.path_ids(context, client).await;
    let org = victim.tenant.org.to_string();

    let theirs = path_ids.iter().filter(|(name, _)| {
        let name = name.rsplit('.').next().unwrap_or(name);
        !SHARED_PARAMETERS.contains(&name)
    });
    let mut secrets: BTreeSet<&String> = theirs.map(|(_, id)| id).collect();
    secrets.insert(&org);

    let document = Document::current();
    let before = digest_org(pool, &org).await;
    assert!(before.len() > 10, "{before:?}");
    let mut wrong = Vec::new();

    for operation in document.operations() {
        for stranger in strangers {
            let (status, text) = send_example(client, stranger, &operation, &path_ids).await;

            let response = format!(
                "{} of {}: {status} {text}",
                operation.name(),
                stranger.kind.name()
            );

            let open = operation.spec["security"] == json!([{}]);
            let names_theirs = names_owned_resource(&operation);
            if names_theirs && !open && !matches!(status.as_u16(), 403 | 404) {
                wrong.push(format!("{response} (another organisation's resource)"));
            }
            if let Some(secret) = secrets.iter().find(|secret| text.contains(**secret)) {
                wrong.push(format!("{response} (it reveals {secret})"));
            }
        }

        let after = digest_org(pool, &org).await;
        let changed: Vec<_> = before
            .keys()
            .filter(|t| before.get(*t) != after.get(*t))
            .collect();
        assert!(
            changed.is_empty(),
            "{} changed {changed:?} of another organisation",
            operation.name()
        );
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Operations on resources that every member of an organisation may see.
const ORG_WIDE_OPERATIONS: [&str; 2] = [
    "GET /api/v1/organizations/{id}/detail",
    "GET /api/v1/trunks/{trunk_id}",
];
/// Parameters that name such resources.
const ORG_WIDE_PARAMETERS: [&str; 5] = ["id", "org_id", "organization_ids", "trunk_id", "price_id"];

/// True when an operation on a colleague's resource has the expected status: 404 when the role may
/// use the operation, else 403. Ids of users are no secret inside their organisation, so operations
/// that name a user may also be answered with 403.
fn is_expected_for_colleague(operation: &Operation<'_>, may: bool, status: StatusCode) -> bool {
    let in_query = operation.parameters("query").into_iter();
    let names_user = operation.path.contains("{user_id}")
        || in_query
            .into_iter()
            .any(|parameter| parameter["name"] == "user_id");
    match may {
        true if ORG_WIDE_OPERATIONS.contains(&operation.name().as_str()) => status.is_success(),
        true => status == 404 || names_user && status == 403,
        false => status == 403,
    }
}

/// Row-level security separates organisations, not users, so inside one organisation only the API's
/// own filters are tested.
#[tokio::test(flavor = "multi_thread")]
async fn a_colleagues_resources_are_not_found() {
    let app = without_workers().await;
    let url = app.carrier.url();
    let victim = Actor::new(&app.context, url, ActorKind::OrgAdmin, "Victim").await;
    let path_ids = victim.path_ids(&app.context, &app).await;

    let colleagues = [
        victim.create_colleague(&app.context, ActorKind::User).await,
        victim.create_colleague(&app.context, ActorKind::Key).await,
    ];

    let secrets = path_ids.iter().filter(|(name, _)| {
        let name = name.rsplit('.').next().unwrap_or(name);
        !SHARED_PARAMETERS.contains(&name) && !ORG_WIDE_PARAMETERS.contains(&name)
    });
    let secrets: BTreeSet<&String> = secrets.map(|(_, id)| id).collect();

    let (pool, user) = (&app.context.pool, victim.user.to_string());
    let before = digest_user(pool, &user).await;
    assert!(before.len() > 10, "{before:?}");

    let (document, table) = (Document::current(), access_table());
    let mut wrong = Vec::new();
    for operation in document.operations() {
        let allowed = &table[&operation.name()];
        if allowed.contains(ActorKind::Anonymous.name()) {
            continue;
        }

        for colleague in &colleagues {
            let word = colleague.kind.name();
            let (status, text) = send_example(&app, colleague, &operation, &path_ids).await;
            let response = format!("{} of {word}: {status} {text}", operation.name());
            let may = allowed.contains(word);
            if names_owned_resource(&operation)
                && !is_expected_for_colleague(&operation, may, status)
            {
                wrong.push(format!("{response} (a colleague's resource)"));
            }
            if let Some(secret) = secrets.iter().find(|secret| text.contains(**secret)) {
                wrong.push(format!("{response} (it reveals {secret})"));
            }
        }

        let after = digest_user(pool, &user).await;
        if before != after {
            let changed = before.keys().filter(|t| before.get(*t) != after.get(*t));
            let changed: Vec<_> = changed.collect();
            panic!("{} changed {changed:?} of a colleague", operation.name());
        }
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    assert_owner_can_read(&app.context, &app, &victim).await;
    app.drop_jobs().await;
    app.finish().await;
}

/// Checks that `victim` can read the resources, so that the 404s before were about access.
async fn assert_owner_can_read(context: &Context, client: &ApiClient, victim: &Actor) {
    let path_ids = victim.path_ids(context, client).await;
    let document = Document::current();
    let reads = document.operations();
    let table = access_table();
    let reads = reads.iter().filter(|operation| {
        operation.method == Method::GET
            && names_owned_resource(operation)
            && table[&operation.name()].contains(victim.kind.name())
    });

    for operation in reads {
        let (status, text) = send_example(client, victim, operation, &path_ids).await;
        // Without workers an export is not ready (409), but it exists.
        let found = status.is_success() || status == StatusCode::CONFLICT;
        assert!(found, "{}: {status} {text}", operation.name());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_organisations_resources_are_not_found() {
    let app = without_workers().await;
    let actor = async |kind, org| Actor::new(&app.context, app.carrier.url(), kind, org).await;
    let victim = actor(ActorKind::OrgAdmin, "Victim").await;
    let strangers = [
        actor(ActorKind::User, "Stranger").await,
        actor(ActorKind::OrgAdmin, "Rival").await,
        actor(ActorKind::Key, "Robot").await,
    ];
    assert_foreign_access_denied(&app.context, &app, &strangers, &victim).await;
    assert_owner_can_read(&app.context, &app, &victim).await;
    app.drop_jobs().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_level_security_alone_keeps_organisations_apart() {
    let app = without_workers().await;
    let blind = SecondApi::start(&app, "scope.blind=1").await;
    let client = ApiClient::new(blind.url.clone(), app.tenant.clone());
    let actor = async |kind, org| Actor::new(&app.context, app.carrier.url(), kind, org).await;
    let victim = actor(ActorKind::OrgAdmin, "Victim").await;
    let strangers = [
        actor(ActorKind::User, "Stranger").await,
        actor(ActorKind::OrgAdmin, "Rival").await,
        actor(ActorKind::Key, "Robot").await,
    ];
    assert_foreign_access_denied(&app.context, &client, &strangers, &victim).await;
    assert_owner_can_read(&app.context, &client, &victim).await;
    blind.stop().await;
    app.drop_jobs().await;
    app.finish().await;
}
