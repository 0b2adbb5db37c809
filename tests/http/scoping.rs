//! Whose rows a list shows: every list that can be narrowed by its rows' owners is narrowed by
//! each parameter, for everybody, and never shows more than a role sees.

use std::collections::{BTreeMap, BTreeSet};

use peal_shared::access::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::app::{App, Tenant, phone_number, send_request};
use crate::harness::document::Document;
use crate::harness::members::{create_member, send_as, with_session};
use crate::purse::settled;

const SCOPING: [&str; 4] = [
    "organization_ids",
    "owner_user_ids",
    "platform_roles",
    "scope",
];
/// The users themselves, who are nobody's things.
const USERS: &str = "/api/v1/me/users";

/// Somebody whose rows there are, and who looks.
struct Owner {
    tenant: Tenant,
    user: String,
    role: Role,
    /// Of each kind; every sum of these is another one.
    things: i64,
}

impl Owner {
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
            things,
        }
    }

    fn sees(&self, other: &Self) -> bool {
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

    /// Makes so many of everything that is listed, and calls as many people.
    async fn make(&self, app: &App) {
        for n in 0..self.things {
            let (n, digit) = (format!("{}_{n}", self.things), 10 * self.things + n);
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
            // Nobody listens there, so it is not waited for.
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

/// What a list is asked, and whether an owner's rows are in the answer for who asks.
type Query = (String, Box<dyn Fn(&Owner, &Owner) -> bool>);

fn queries(owners: &[Owner]) -> Vec<Query> {
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

/// The lists of the document that take any of the parameters.
fn lists() -> BTreeSet<String> {
    let document = Document::current();
    let mut found = BTreeSet::new();
    for operation in document.operations() {
        let query = operation.parameters("query");
        let taken = query.iter().filter_map(|told| told["name"].as_str());
        let taken: BTreeSet<_> = taken.filter(|name| SCOPING.contains(name)).collect();
        if !taken.is_empty() {
            let all = BTreeSet::from(SCOPING);
            assert_eq!(taken, all, "{} takes them all or none", operation.name());
            found.insert(operation.path.to_owned());
        }
    }
    found
}

/// How many rows a list has for somebody.
async fn count(app: &App, who: &Owner, path: &str, query: &str) -> i64 {
    let path = format!("{path}?{query}");
    let told = send_request(app.request_as(&who.tenant, Method::GET, &path)).await;
    let total = told.headers.get("x-total-count");
    let total = total.map(|total| total.to_str().expect("digits").parse().expect("a number"));
    let body = told.expect(200);
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

async fn refuses_what_is_odd(app: &App, root: &Owner, lists: &BTreeSet<String>) {
    for path in lists {
        for odd in [
            "organization_ids=acme",
            "owner_user_ids=bob",
            "platform_roles=king",
            "scope=everything",
        ] {
            let path = format!("{path}?{odd}");
            let told = send_as(app, &root.tenant, Method::GET, &path, Value::Null).await;
            told.expect(422);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_list_is_narrowed_by_the_owners_of_its_rows() {
    let app = App::start_with(crate::harness::app::AppOptions::default()).await;
    let bob = create_member(&app, "bob@example.com", Role::User).await;
    let eve = app.create_tenant("Other").await;
    let root = create_member(&app, "root@example.com", Role::SuperAdmin).await;
    let owners = [
        Owner::new(&app, with_session(&app, &app.tenant).await, 1).await,
        Owner::new(&app, bob, 2).await,
        Owner::new(&app, with_session(&app, &eve).await, 4).await,
        Owner::new(&app, root, 0).await,
    ];
    let (lists, queries) = (lists(), queries(&owners));
    assert!(lists.len() > 10, "{lists:?}");
    let counts = async || {
        let mut counts = BTreeMap::new();
        for path in &lists {
            for who in &owners {
                for (query, _) in &queries {
                    let rows = count(&app, who, path, query).await;
                    counts.insert((path.as_str(), who.user.as_str(), query.as_str()), rows);
                }
            }
        }
        counts
    };
    let before = counts().await;
    for owner in &owners {
        owner.make(&app).await;
    }
    settled(&app).await;

    let mut wrong = Vec::new();
    for ((path, user, query), rows) in counts().await {
        let who = owners
            .iter()
            .find(|who| who.user == user)
            .expect("somebody");
        let (_, is_meant) = queries.iter().find(|(text, _)| text == query).expect("one");
        let shown = owners
            .iter()
            .filter(|owner| who.sees(owner) && is_meant(owner, who));
        let (found, expected) = match path {
            // Users are told that this is for administrators, with an empty list.
            USERS if who.role == Role::User => (rows, 0),
            USERS => (rows, shown.map(|_| 1).sum()),
            _ => (
                rows - before[&(path, user, query)],
                shown.map(|owner| owner.things).sum(),
            ),
        };
        if found != expected {
            let role = who.role;
            wrong.push(format!(
                "{path}?{query} as {role:?}: {found}, not {expected}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let [.., root] = &owners;
    refuses_what_is_odd(&app, root, &lists).await;
    app.finish().await;
}
