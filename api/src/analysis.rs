//! `/api/v1/post-analysis/rules`: rules of post-call analysis.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::analysis::rules::FieldType;
use peal_shared::analysis::{AnalysisType, NewRule, Rule, RuleField, rules};
use peal_shared::audit::AuditEntry;
use peal_shared::context::Context;
use peal_shared::outbound::OutboundClient;
use peal_shared::platform::ids::{RuleId, ToolId, UserId};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, PathIds, ValidJson, ValidQuery};
use crate::http::force::ForceUpdate;
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::http::paging::{ListResponse, OwnedListParams};
use crate::state::AppState;
use crate::tools::{ActionMessage, reject_owner_change, yes};

const MAX_FIELDS: usize = 50;
const MAX_PROMPT_CHARS: usize = 8000;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, replace, delete))
        .routes(routes!(duplicate))
}

/// List analysis rules
///
/// Newest first.
#[utoipa::path(
    get,
    path = "/api/v1/post-analysis/rules",
    tag = "Analysis rules",
    params(OwnedListParams),
    responses((status = 200, body = [Rule], headers(("X-Truncated" = bool, description = "True when more rows follow"))), CommonErrors)
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<OwnedListParams>,
) -> Result<ListResponse<Vec<Rule>>> {
    let (scope, owners) = query.scope_and_owners(&caller)?;
    let page = query.parse_page()?;

    let mut db = caller.begin_read(&context).await?;
    let rules = rules::list(&mut db, &scope, &owners, page).await?;
    Ok(rules.into())
}

/// Create an analysis rule
#[utoipa::path(
    post,
    path = "/api/v1/post-analysis/rules",
    tag = "Analysis rules",
    request_body = RuleBody,
    responses(
        (status = 200, body = Rule),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such tool_id or user_id"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The Idempotency-Key is in use"),
        CommonErrors
    )
)]
async fn create(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<RuleBody>,
) -> Result<(StatusCode, Json<Rule>)> {
    let owner = body.user_id.unwrap_or(caller.user);
    let scope = caller.scope_of(owner)?;
    let new = body.validate(&context.outbound)?;

    let mut db = caller.begin_write(&context).await?;
    let rule = rules::create(&mut db, &scope, owner, &new).await?;

    let note = rule_audit_entry("analysis_rule.create", &rule).after(&rule)?;
    db.commit(note, StatusCode::OK, Json(rule)).await
}

/// Show an analysis rule
#[utoipa::path(
    get,
    path = "/api/v1/post-analysis/rules/{rule_id}",
    tag = "Analysis rules",
    params(("rule_id" = RuleId, Path)),
    responses(
        (status = 200, body = Rule),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such rule"),
        CommonErrors
    )
)]
async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<RuleId>,
) -> Result<Json<Rule>> {
    let mut db = caller.begin_read(&context).await?;
    Ok(Json(rules::find(&mut db, &caller.scope(), id).await?))
}

/// Replace an analysis rule
#[utoipa::path(
    put,
    path = "/api/v1/post-analysis/rules/{rule_id}",
    tag = "Analysis rules",
    params(("rule_id" = RuleId, Path), ForceUpdate),
    request_body = RuleBody,
    responses(
        (status = 200, body = Rule),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such rule or tool_id"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "A running batch or a call uses it, and force_update was not sent"),
        CommonErrors
    )
)]
async fn replace(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<RuleId>,
    ValidQuery(query): ValidQuery<ForceUpdate>,
    ValidJson(body): ValidJson<RuleBody>,
) -> Result<(StatusCode, Json<Rule>)> {
    let mut fields = FieldErrors::default();
    reject_owner_change(&mut fields, body.user_id);
    fields.finish()?;

    let new = body.validate(&context.outbound)?;
    let scope = caller.scope();

    let mut db = caller.begin_write(&context).await?;
    let before = rules::find(&mut db, &scope, id).await?;
    let rule = rules::replace(&mut db, &scope, id, &new, query.requested()).await?;

    let note = rule_audit_entry("analysis_rule.update", &rule)
        .before(&before)?
        .after(&rule)?;
    db.commit(note, StatusCode::OK, Json(rule)).await
}

/// Delete an analysis rule
///
/// Agents that have the rule lose it.
#[utoipa::path(
    delete,
    path = "/api/v1/post-analysis/rules/{rule_id}",
    tag = "Analysis rules",
    params(("rule_id" = RuleId, Path), ForceUpdate),
    responses(
        (status = 200, body = ActionMessage),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such rule"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "A running batch or a call uses it, and force_update was not sent"),
        CommonErrors
    )
)]
async fn delete(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<RuleId>,
    ValidQuery(query): ValidQuery<ForceUpdate>,
) -> Result<(StatusCode, Json<ActionMessage>)> {
    let mut db = caller.begin_write(&context).await?;
    let rule = rules::delete(&mut db, &caller.scope(), id, query.requested()).await?;

    let note = rule_audit_entry("analysis_rule.delete", &rule).before(&rule)?;
    db.commit(note, StatusCode::OK, ActionMessage::json("rule deleted"))
        .await
}

/// Copy an analysis rule
///
/// The copy has the same owner, and is attached to no agent.
#[utoipa::path(
    post,
    path = "/api/v1/post-analysis/rules/{rule_id}/duplicate",
    tag = "Analysis rules",
    params(("rule_id" = RuleId, Path)),
    responses(
        (status = 200, body = Rule),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such rule"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The Idempotency-Key is in use"),
        CommonErrors
    )
)]
async fn duplicate(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<RuleId>,
) -> Result<(StatusCode, Json<Rule>)> {
    let mut db = caller.begin_write(&context).await?;
    let copy = rules::duplicate(&mut db, &caller.scope(), id).await?;

    let note = rule_audit_entry("analysis_rule.duplicate", &copy).after(&copy)?;
    db.commit(note, StatusCode::OK, Json(copy)).await
}

/// Audit entry of a change of a rule.
fn rule_audit_entry(action: &'static str, rule: &Rule) -> AuditEntry {
    AuditEntry::new(action, rule.org_id, rule.id.0)
}

/// Settings of an analysis rule.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "Intent", "analysis_type": "structured_output", "prompt": "What does the caller want?",
    "fields": [{"name": "intent", "type": "enum", "description": "the intent", "enum_values": ["buy", "complain"]}]
}))]
struct RuleBody {
    name: String,
    description: Option<String>,
    analysis_type: AnalysisType,
    /// Prompt of the model; optional for an integration.
    prompt: Option<String>,
    model_name: Option<String>,
    /// Fields of a structured output.
    #[serde(default)]
    fields: Vec<RuleField>,
    /// The HTTP tool of an integration.
    tool_id: Option<ToolId>,
    /// URL to which results are also posted.
    webhook_url: Option<String>,
    #[serde(default = "yes")]
    is_active: bool,
    /// Owner of the rule, by default the caller; an administrator may name a member.
    user_id: Option<UserId>,
}

impl RuleBody {
    fn validate(self, outbound: &OutboundClient) -> Result<NewRule> {
        let mut fields = FieldErrors::default();
        let name = self.name.trim();
        fields.check_text(name, "name", 1, 200);
        let description = self.description.as_deref().unwrap_or_default();
        fields.check_text(description, "description", 0, 2000);

        let prompt = self.prompt.as_deref().map(str::trim);
        let prompt = prompt.filter(|prompt| !prompt.is_empty());
        fields.check_text(prompt.unwrap_or_default(), "prompt", 0, MAX_PROMPT_CHARS);

        let model = self.model_name.as_deref().unwrap_or_default();
        fields.check_text(model, "model_name", 0, 200);

        if let Some(Err(why)) = self
            .webhook_url
            .as_deref()
            .map(|url| outbound.parse_url(url))
        {
            fields.check(false, "webhook_url", "url", why);
        }

        check_type(
            &mut fields,
            self.analysis_type,
            prompt,
            &self.fields,
            self.tool_id,
        );
        check_fields(&mut fields, &self.fields);

        fields.finish()?;
        Ok(NewRule {
            name: name.to_owned(),
            prompt: prompt.map(str::to_owned),
            description: self.description,
            analysis_type: self.analysis_type,
            model_name: self.model_name,
            fields: self.fields,
            tool: self.tool_id,
            webhook_url: self.webhook_url,
            is_active: self.is_active,
        })
    }
}

/// Checks the fields that each type requires and forbids.
fn check_type(
    errors: &mut FieldErrors,
    kind: AnalysisType,
    prompt: Option<&str>,
    fields: &[RuleField],
    tool: Option<ToolId>,
) {
    let is_integration = kind == AnalysisType::Integration;
    errors.check(
        is_integration || prompt.is_some(),
        "prompt",
        "missing",
        "is missing: describe the result that the model should extract",
    );

    errors.check(
        is_integration == tool.is_some(),
        "tool_id",
        "value_error",
        "names the HTTP tool of an integration; send it for that type and for no other",
    );

    let is_structured = kind == AnalysisType::StructuredOutput;
    errors.check(
        is_structured != fields.is_empty(),
        "fields",
        "value_error",
        "are those of a structured_output; send at least one for that type and none for others",
    );
}

fn check_fields(errors: &mut FieldErrors, fields: &[RuleField]) {
    errors.check(
        fields.len() <= MAX_FIELDS,
        "fields",
        "length",
        "must be 50 or fewer",
    );

    let mut seen = HashSet::new();
    for (place, field) in fields.iter().enumerate() {
        let path = format!("fields.{place}");

        let is_plain = (1..=64).contains(&field.name.len())
            && field
                .name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_');
        errors.check(
            is_plain,
            &format!("{path}.name"),
            "identifier",
            "must be 1 to 64 letters, digits and underscores",
        );
        errors.check(
            seen.insert(field.name.as_str()),
            &format!("{path}.name"),
            "duplicate",
            "is a duplicate; remove one",
        );

        errors.check_text(&field.description, &format!("{path}.description"), 0, 1000);

        let values = field.enum_values.as_deref().unwrap_or_default();
        let path = format!("{path}.enum_values");
        errors.check(
            (field.kind == FieldType::Enum) != values.is_empty(),
            &path,
            "value_error",
            "are those of an enum; send at least one for that type and none for others",
        );
        errors.check(values.len() <= 100, &path, "length", "must be 100 or fewer");

        for value in values {
            errors.check_text(value, &path, 1, 200);
        }
    }
}
