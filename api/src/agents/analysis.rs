//! `/api/v1/agents/{agent_id}/post-analysis`: the analysis rules of an agent.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::analysis::attached::{Attachment, MAX_RULES};
use peal_shared::analysis::{Rule, attached};
use peal_shared::audit::AuditEntry;
use peal_shared::context::Context;
use peal_shared::platform::ids::{AgentId, RuleId};
use peal_shared::{Error, agents};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, PathIds, ValidJson, ValidQuery};
use crate::http::force::ForceUpdate;
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::state::AppState;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, attach))
        .routes(routes!(rules, set))
        .routes(routes!(rule_ids))
}

/// List the attachments of analysis rules to an agent
#[utoipa::path(
    get,
    path = "/api/v1/agents/{agent_id}/post-analysis",
    tag = "Agent analysis",
    params(("agent_id" = AgentId, Path)),
    responses(
        (status = 200, body = [Attachment]),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such agent"),
        CommonErrors
    )
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(agent): PathIds<AgentId>,
) -> Result<Json<Vec<Attachment>>> {
    let mut db = caller.begin_read(&context).await?;
    Ok(Json(attached::list(&mut db, &caller.scope(), agent).await?))
}

/// Attach an analysis rule to an agent
///
/// A rule that is already attached moves to its new position. An agent has at most 50 rules.
#[utoipa::path(
    post,
    path = "/api/v1/agents/{agent_id}/post-analysis",
    tag = "Agent analysis",
    params(("agent_id" = AgentId, Path), ForceUpdate),
    request_body = AttachBody,
    responses(
        (status = 200, body = Attachment),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json", description = "The body names another agent than the path"),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such agent, or its owner cannot see the rule"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "A running batch or a call uses the agent, and force_update was not sent; or it would have too many rules"),
        CommonErrors
    )
)]
async fn attach(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(agent): PathIds<AgentId>,
    ValidQuery(query): ValidQuery<ForceUpdate>,
    ValidJson(body): ValidJson<AttachBody>,
) -> Result<(StatusCode, Json<Attachment>)> {
    if body.agent_id != agent {
        let message = "agent_id in the body must be the agent in the path";
        return Err(Error::rejected("agents_differ", message).into());
    }

    let mut fields = FieldErrors::default();
    fields.check_range(body.sort_order.unwrap_or_default(), "sort_order", 0, 10_000);
    fields.finish()?;

    let scope = caller.scope();
    let mut db = caller.begin_write(&context).await?;
    let org = agents::find(&mut db, &scope, agent).await?.org_id;

    let rule = (body.rule_id, body.sort_order);
    let attachment = attached::attach(&mut db, &scope, agent, rule, query.requested()).await?;

    let note = AuditEntry::new("agent.attach_rule", org, agent.0).after(&attachment)?;
    db.commit(note, StatusCode::OK, Json(attachment)).await
}

/// List the analysis rules of an agent
///
/// In the order in which they run.
#[utoipa::path(
    get,
    path = "/api/v1/agents/{agent_id}/post-analysis/attached-rules",
    tag = "Agent analysis",
    params(("agent_id" = AgentId, Path)),
    responses(
        (status = 200, body = [Rule]),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such agent"),
        CommonErrors
    )
)]
async fn rules(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(agent): PathIds<AgentId>,
) -> Result<Json<Vec<Rule>>> {
    let mut db = caller.begin_read(&context).await?;
    Ok(Json(
        attached::rules(&mut db, &caller.scope(), agent).await?,
    ))
}

/// Replace the analysis rules of an agent
///
/// The rules run in the order of the request. An unknown rule rejects the whole request.
#[utoipa::path(
    put,
    path = "/api/v1/agents/{agent_id}/post-analysis/attached-rules",
    tag = "Agent analysis",
    params(("agent_id" = AgentId, Path), ForceUpdate),
    request_body = RuleIds,
    responses(
        (status = 200, body = [Rule]),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such agent, or its owner cannot see a rule"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "A running batch or a call uses the agent, and force_update was not sent"),
        CommonErrors
    )
)]
async fn set(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(agent): PathIds<AgentId>,
    ValidQuery(query): ValidQuery<ForceUpdate>,
    ValidJson(body): ValidJson<RuleIds>,
) -> Result<(StatusCode, Json<Vec<Rule>>)> {
    let mut fields = FieldErrors::default();
    fields.check(
        body.rule_ids.len() <= MAX_RULES,
        "rule_ids",
        "length",
        format!("must be {MAX_RULES} rules or fewer"),
    );
    fields.finish()?;

    let scope = caller.scope();
    let mut db = caller.begin_write(&context).await?;
    let org = agents::find(&mut db, &scope, agent).await?.org_id;

    let before = attached::rules(&mut db, &scope, agent).await?;
    let rules =
        attached::replace_all(&mut db, &scope, agent, &body.rule_ids, query.requested()).await?;

    let note = AuditEntry::new("agent.set_rules", org, agent.0)
        .before(&before)?
        .after(&rules)?;
    db.commit(note, StatusCode::OK, Json(rules)).await
}

/// List the ids of an agent's analysis rules
#[utoipa::path(
    get,
    path = "/api/v1/agents/{agent_id}/post-analysis/attached-rule-ids",
    tag = "Agent analysis",
    params(("agent_id" = AgentId, Path)),
    responses(
        (status = 200, body = [RuleId], example = json!(["0198c0de-0000-7000-8000-000000000006"])),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such agent"),
        CommonErrors
    )
)]
async fn rule_ids(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(agent): PathIds<AgentId>,
) -> Result<Json<Vec<RuleId>>> {
    let mut db = caller.begin_read(&context).await?;

    let attachments = attached::list(&mut db, &caller.scope(), agent).await?;
    let ids = attachments.into_iter().map(|attachment| attachment.rule_id);
    Ok(Json(ids.collect()))
}

/// An analysis rule to attach.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "agent_id": "0198c0de-0000-7000-8000-000000000001", "rule_id": "0198c0de-0000-7000-8000-000000000002"
}))]
struct AttachBody {
    /// The agent in the path.
    agent_id: AgentId,
    rule_id: RuleId,
    /// Position among the agent's rules; by default a new rule comes last and an attached one
    /// stays.
    sort_order: Option<i32>,
}

/// All analysis rules of an agent, in their order.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"rule_ids": ["0198c0de-0000-7000-8000-000000000002"]}))]
struct RuleIds {
    rule_ids: Vec<RuleId>,
}
