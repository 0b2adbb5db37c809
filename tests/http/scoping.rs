//! Owner filters of lists: every list with these parameters applies each of them for every role, and
//! never shows more than the role may see.

use std::collections::{BTreeMap, BTreeSet};

use peal_shared::access::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::app::{App, Tenant, phone_number, send_request};
use crate::harness::document::Document;
use crate::harness::members::{create_member, send_as, with_session};
use crate::purse::wait_until_charged;

const OWNER_PARAMETERS: [&str; 4] = [
    "organization_ids",
    "owner_user_ids",
    "platform_roles",
    "scope",
];
/// List of users, whose rows have no owner.
const USERS_PATH: &str = "/api/v1/me/users";

/// A user who owns rows and requests lists.
struct RowOwner {
    tenant: Tenant,
    user: String,
    role: Role,
    /// Number of owned resources of each kind; all sums over owners differ.
    resource_count: i64,
}

impl RowOwner {
    async fn new(app: &App, tenant: Tenant, things: i64) -> Self {
        let me = send_as(app, &tenant, Method::GET, "/api/v1/me", Value::Null).await;
        let user = me.expect(200)["user_id"]
            .as_str()
            .expect("an id")
            .to_owned();
        let role = sqlx::query_scalar("select role from users where id::text = $1")
            .bind(&user)
            .fetch_one(&app.context.pool)
            .await
            .expect("a role");
        Self {
            tenant,
            user,
            role,
            resource_count: things,
        }
    }

    fn may_see(&self, other: &Self) -> bool {
        match self.role {
            Role::User => self.user == other.user,
            Role::OrgAdmin => self.tenant.org == other.tenant.org,
            Role::SuperAdmin => true,
        }
    }

    async fn post(&self, app: &App, path: &str, body: Value) -> Value {
        let made = send_as(app, &self.tenant, Method::POST, path, body).await;
        assert!(made.status.is_success(), "{path}: {}", made.text);
        made.json()
    }

    /// Creates the owned resources of every listed kind, and as many calls.
    async fn create_resources(&self, app: &App) {
        for n in 0..self.resource_count {
            let (n, digit) = (
                format!("{}_{n}", self.resource_count),
                10 * self.resource_count + n,
            );
            let agent = json!({"name": n});
            let agent = self.post(app, "/api/v1/agents/simple", agent).await;
            let agent = &agent["agent"]["id"];

            let phone = phone_number(70_000 + u32::try_from(digit).expect("a number"));
            let phone = json!({"phone_number": phone, "trunk_id": self.tenant.trunk});
            let phone = self.post(app, "/api/v1/phone", phone).await;
            let phone = phone["phone_number"]["id"].as_str().expect("an id");

            let batch = json!({"batch_name": n, "agent_id": agent, "caller_phone_id": phone});
            self.post(app, "/api/v1/batch-call/create", batch).await;

            let tool = json!({"name": format!("t_{n}"), "description": "d", "url": "https://shop.invalid"});
            self.post(app, "/api/v1/tool-endpoint-defs", tool).await;
            // No server listens there, so the request fails at once.
            let server = json!({"name": n, "server_url": "http://127.0.0.2:1/mcp"});
            self.post(app, "/api/v1/tools-mcp-server-defs", server)
                .await;

            let rule = json!({"name": n, "analysis_type": "summary", "prompt": "Sum up"});
            self.post(app, "/api/v1/post-analysis/rules", rule).await;
            let nodes = json!([{"id": "bye", "start": true, "type": "hangup"}]);
            let workflow = json!({"name": n, "nodes": nodes});
            self.post(app, "/api/v1/workflows", workflow).await;

            let agent = agent.as_str().expect("an id");
            let call = format!(
                "/api/call/create_call?phoneNumber=%2B121255501{digit:02}&agent_id={agent}&phone_number_id={phone}"
            );
            self.post(app, &call, json!({})).await;
        }
    }
}

/// Query string of a list, and a predicate: true when it selects rows of the first owner for the
/// second as the caller.
type OwnerQuery = (String, Box<dyn Fn(&RowOwner, &RowOwner) -> bool>);

fn owner_queries(owners: &[RowOwner]) -> Vec<OwnerQuery> {
    let [ada, bob, eve, _root] = owners else {
        panic!("four owners")
    };
    let (acme, other) = (ada.tenant.org, eve.tenant.org);
    let (ada, bob, eve) = (ada.user.clone(), bob.user.clone(), eve.user.clone());
    let ada_and_eve = [ada.clone(), eve];

    vec![
        (String::new(), Box::new(|_, _| true)),
        ("scope=all".to_owned(), Box::new(|_, _| true)),
        (
            "scope=mine".to_owned(),
            Box::new(|owner, me| owner.user == me.user),
        ),
        (
            format!("organization_ids={acme}"),
            Box::new(move |owner, _| owner.tenant.org == acme),
        ),
        (
            format!("organization_ids={other}"),
            Box::new(move |owner, _| owner.tenant.org == other),
        ),
        (
            format!("organization_ids={acme},{other}"),
            Box::new(|_, _| true),
        ),
        (
            format!("owner_user_ids={}", ada_and_eve.join(",")),
            Box::new(move |owner, _| ada_and_eve.contains(&owner.user)),
        ),
        (
            format!("scope=mine&owner_user_ids={bob}"),
            Box::new(move |owner, me| owner.user == me.user && owner.user == bob),
        ),
        (
            "platform_roles=user".to_owned(),
            Box::new(|owner, _| owner.role == Role::User),
        ),
        (
            "platform_roles=user,org_admin".to_owned(),
            Box::new(|owner, _| owner.role != Role::SuperAdmin),
        ),
        (
            format!("organization_ids={acme}&platform_roles=org_admin"),
            Box::new(move |owner, _| owner.tenant.org == acme && owner.role == Role::OrgAdmin),
        ),
    ]
}

/// Lists of the document with owner filters.
fn owner_filtered_lists() -> BTreeSet<String> {
    let document = Document::current();
    let mut found = BTreeSet::new();
    for operation in document.operations() {
        let query = operation.parameters("query");
        let accepted = query
            .iter()
            .filter_map(|parameter| parameter["name"].as_str());
        let accepted: BTreeSet<_> = accepted
            .filter(|name| OWNER_PARAMETERS.contains(name))
            .collect();
        if !accepted.is_empty() {
            let all = BTreeSet::from(OWNER_PARAMETERS);
            assert_eq!(accepted, all, "{} takes them all or none", operation.name());
            found.insert(operation.path.to_owned());
        }
    }
    found
}

/// Number of rows of a list for a caller.
async fn count_rows(app: &App, caller: &RowOwner, path: &str, query: &str) -> i64 {
    let path = format!("{path}?{query}");
    let response = send_request(app.request_as(&caller.tenant, Method::GET, &path)).await;
    let total = response.headers.get("x-total-count");
    let total = total.map(|total| total.to_str().expect("digits").parse().expect("a number"));
    let body = response.expect(200);
    let rows = |value: &Value| {
        let rows = value.as_array()?;
        i64::try_from(rows.len()).ok()
    };
    total
        .or_else(|| body["total"].as_i64())
        .or_else(|| body["data"]["total"].as_i64())
        .or_else(|| body["totals"]["calls"].as_i64())
        .or_else(|| rows(&body))
        .or_else(|| body.as_object()?.values().find_map(rows))
        .unwrap_or_else(|| panic!("{path}: no rows in {body}"))
}

async fn assert_invalid_filters_refused(app: &App, root: &RowOwner, lists: &BTreeSet<String>) {
    for path in lists {
        for invalid in [
            "organization_ids=acme",
            "owner_user_ids=bob",
            "platform_roles=king",
            "scope=everything",
        ] {
            let path = format!("{path}?{invalid}");
            let response = send_as(app, &root.tenant, Method::GET, &path, Value::Null).await;
            response.expect(422);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_list_applies_its_owner_filters() {
    let app = App::start_with(crate::harness::app::AppOptions::default()).await;
    let bob = create_member(&app, "bob@example.com", Role::User).await;
    let eve = app.create_tenant("Other").await;
    let root = create_member(&app, "root@example.com", Role::SuperAdmin).await;
    let owners = [
        RowOwner::new(&app, with_session(&app, &app.tenant).await, 1).await,
        RowOwner::new(&app, bob, 2).await,
        RowOwner::new(&app, with_session(&app, &eve).await, 4).await,
        RowOwner::new(&app, root, 0).await,
    ];
    let (lists, queries) = (owner_filtered_lists(), owner_queries(&owners));
    assert!(lists.len() > 10, "{lists:?}");

    let counts = async || {
        let mut counts = BTreeMap::new();
        for path in &lists {
            for caller in &owners {
                for (query, _) in &queries {
                    let rows = count_rows(&app, caller, path, query).await;
                    counts.insert((path.as_str(), caller.user.as_str(), query.as_str()), rows);
                }
            }
        }
        counts
    };

    let before = counts().await;
    for owner in &owners {
        owner.create_resources(&app).await;
    }
    wait_until_charged(&app).await;

    let mut wrong = Vec::new();
    for ((path, user, query), rows) in counts().await {
        let caller = owners
            .iter()
            .find(|caller| caller.user == user)
            .expect("a caller");
        let (_, selects) = queries.iter().find(|(text, _)| text == query).expect("one");
        let shown = owners
            .iter()
            .filter(|owner| caller.may_see(owner) && selects(owner, caller));
        let (found, expected) = match path {
            // The list of users is for administrators; others get an empty list.
            USERS_PATH if caller.role == Role::User => (rows, 0),
            USERS_PATH => (rows, shown.map(|_| 1).sum()),
            _ => (
                rows - before[&(path, user, query)],
                shown.map(|owner| owner.resource_count).sum(),
            ),
        };
        if found != expected {
            let role = caller.role;
            wrong.push(format!(
                "{path}?{query} as {role:?}: {found}, not {expected}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let [.., root] = &owners;
    assert_invalid_filters_refused(&app, root, &lists).await;
    app.finish().await;
}
