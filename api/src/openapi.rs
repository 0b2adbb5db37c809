//! The description of the API, made from the same declarations as its routes.
//!
//! A handler is declared with `#[utoipa::path(...)]` and put into its router with `routes!`, so
//! that a route without a description cannot be. What a handler answers stands in its
//! `responses(...)`, with the small types here for refusals. What goes around every ordinary
//! route (limits of time and size, `Idempotency-Key`) is described by [`surrounded`], beside
//! the layers that do it.

use peal_shared::error::Blocker;
use peal_shared::ids::TrunkId;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, Ref, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Components, Content, OpenApi, RefOr, Required, Response, ResponseBuilder};
use utoipa::{IntoResponses, Modify, OpenApi as _, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use crate::state::Api;

use crate::page::Sight;

/// A problem document (RFC 9457).
#[derive(ToSchema)]
#[expect(dead_code, reason = "its fields are read by the macro alone")]
pub struct ProblemDocument {
    /// Always `about:blank`: the code says which problem it is.
    r#type: String,
    /// The status in words.
    title: String,
    status: u16,
    /// What is wrong and how to put it right.
    detail: String,
    /// A stable, snake_case name of the problem.
    code: String,
    /// To be named when asking for help.
    request_id: String,
    /// Each wrong field, when the input is invalid.
    #[schema(nullable = false)]
    errors: Option<Vec<WrongField>>,
    /// Each reason, when a batch cannot start.
    #[schema(nullable = false)]
    blockers: Option<Vec<Blocker>>,
}

/// A wrong field of the input.
#[derive(ToSchema)]
#[expect(dead_code, reason = "its fields are read by the macro alone")]
pub struct WrongField {
    /// Where it stands: `["body", "records", "3", "to_phonenumber"]`.
    loc: Vec<String>,
    msg: String,
    /// A stable, snake_case kind.
    r#type: String,
}

/// What any operation that needs a caller may be refused with. An operation adds what is its
/// own: 400, 402, 404, 409 ...
#[derive(IntoResponses)]
#[expect(dead_code, reason = "its variants are read by the macro alone")]
pub enum Refusals {
    /// Nobody is known by this key or token.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(ProblemDocument),
    /// The caller may not do this.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(ProblemDocument),
    /// The input is invalid.
    #[response(status = 422, content_type = "application/problem+json")]
    Invalid(ProblemDocument),
    /// Too many requests; `Retry-After` says when to come again.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(ProblemDocument),
    /// Too busy, or the database is away; `Retry-After` says when to come again.
    #[response(status = 503, content_type = "application/problem+json")]
    Busy(ProblemDocument),
}

/// The input is well-formed, but breaks a rule across fields or with what is there.
#[derive(IntoResponses)]
#[response(status = 400, content_type = "application/problem+json")]
#[expect(dead_code, reason = "read by the macro alone")]
pub struct Rejected(ProblemDocument);

/// There is no money for it: `insufficient_credits`, or `monthly_cap_reached`.
#[derive(IntoResponses)]
#[response(status = 402, content_type = "application/problem+json")]
#[expect(dead_code, reason = "read by the macro alone")]
pub struct Unpaid(ProblemDocument);

/// It does not exist, or not for the caller.
#[derive(IntoResponses)]
#[response(status = 404, content_type = "application/problem+json")]
#[expect(dead_code, reason = "read by the macro alone")]
pub struct Missing(ProblemDocument);

/// The state of the thing does not allow this.
#[derive(IntoResponses)]
#[response(status = 409, content_type = "application/problem+json")]
#[expect(dead_code, reason = "read by the macro alone")]
pub struct Conflicting(ProblemDocument);

/// What the document says before its first route.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Peal",
        description = "Calls everybody on a list: batches, their people, single calls.\n\n\
            Send an API key as `x-api-key`, or a session token as `Authorization: Bearer`. \
            Refusals are problem documents (RFC 9457): `detail` says what to do, `code` is \
            stable, and `X-Request-Id`, which every answer carries, is what to name when asking \
            for help. A POST may carry an `Idempotency-Key`: sent again under the same key, it \
            does nothing and is answered as before.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    // What no body holds and a parameter or a refusal refers to.
    components(schemas(ProblemDocument, WrongField, Blocker, TrunkId, Sight)),
    modifiers(&Schemes),
    tags(
        (name = "Sign in", description = "With an e-mail address and a password."),
        (name = "Me", description = "Who the caller is, and whom they see."),
        (name = "Organizations", description = "Organizations, their members, and who is invited."),
        (name = "API keys", description = "Keys that open this API, and secrets of providers."),
        (name = "Feature flags", description = "What users may use."),
        (name = "Audit log", description = "Who changed what."),
        (name = "Batches", description = "Campaigns, from their creation to their end."),
        (name = "Batch rows", description = "The people of a batch, one by one."),
        (name = "Uploads", description = "The people of a batch, by the file."),
        (name = "Calls", description = "One call to one person, outside any batch."),
        (name = "Agents", description = "Who speaks, and how."),
        (name = "Phone numbers", description = "The numbers that calls show."),
        (name = "Phone mapping", description = "Which agent speaks on which number."),
        (name = "Trunks", description = "Accounts at carriers, and their pace."),
        (name = "Tools", description = "HTTP endpoints that agents call."),
        (name = "MCP servers", description = "Servers of the Model Context Protocol, each with several tools."),
        (name = "Agent tools", description = "Which tools an agent has."),
        (name = "Analysis rules", description = "What is found out about conversations that have ended."),
        (name = "Agent analysis", description = "Which analysis rules an agent has."),
        (name = "Workflows", description = "Conversations that follow a graph."),
        (name = "Providers", description = "What agents can be made with."),
        (name = "Voices", description = "The voices that carriers speak with."),
        (name = "Wallets", description = "Who may spend how much: grants, caps, and the ledger. Keys only look."),
        (name = "Billing", description = "What calls cost. Keys only look. The same under `/billing`."),
        (name = "Service prices", description = "What things cost."),
        (name = "Organization pricing", description = "How resellers earn."),
        (name = "Earnings", description = "What resellers earn."),
        (name = "Carrier callbacks", description = "What carriers call. They have no key: the token in the path and the carrier's signature prove them."),
        (name = "Health", description = "For load balancers and people."),
        (name = "Description", description = "The API, described."),
    )
)]
struct Head;

struct Schemes;

impl Modify for Schemes {
    fn modify(&self, document: &mut OpenApi) {
        let key = ApiKeyValue::with_description(
            crate::auth::API_KEY_HEADER,
            "Acts for its user, on what is that user's own.",
        );
        let session = Http::builder()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .description(Some("Of a user who has signed in."))
            .build();
        let components = document.components.get_or_insert_with(Components::new);
        components.add_security_scheme("api_key", SecurityScheme::ApiKey(ApiKey::Header(key)));
        components.add_security_scheme("session", SecurityScheme::Http(session));
    }
}

/// A document without routes.
pub fn head() -> OpenApi {
    Head::openapi()
}

/// Routes that stand in a second place as well: their operations need other names there.
pub fn alias(mut router: OpenApiRouter<Api>) -> OpenApiRouter<Api> {
    let items = router.get_openapi_mut().paths.paths.values_mut();
    for (_, operation) in items.flat_map(operations_of) {
        let name = operation.operation_id.take();
        operation.operation_id = name.map(|name| format!("{name}_alias"));
    }
    router
}

/// Completes the document of all routes: whoever does not say otherwise takes a key or a
/// session, and every operation is named after its tag and its handler, and its method where
/// one handler takes several.
pub fn complete(document: &mut OpenApi) {
    let refusals = shared_refusals();
    let components = document.components.get_or_insert_with(Components::new);
    let named = refusals.iter().cloned();
    components.responses.extend(named);
    for item in document.paths.paths.values_mut() {
        let handlers: Vec<_> = operations_of(item)
            .map(|(_, operation)| operation.operation_id.clone())
            .collect();
        for (method, operation) in operations_of(item) {
            operation.security.get_or_insert_with(|| {
                ["api_key", "session"]
                    .map(|scheme| SecurityRequirement::new(scheme, Vec::<String>::new()))
                    .into()
            });
            for (status, response) in &mut operation.responses.responses {
                if let RefOr::T(response) = response
                    && response.description.is_empty()
                {
                    response.description = match status.as_str() {
                        "201" => "Created",
                        "202" => "Accepted",
                        _ => "Done",
                    }
                    .to_owned();
                }
            }
            for response in operation.responses.responses.values_mut() {
                if let Some(name) = refusals
                    .iter()
                    .find_map(|(name, same)| (same == response).then_some(name))
                {
                    *response = RefOr::Ref(Ref::from_response_name(name));
                }
            }
            let tag = operation.tags.iter().flatten().next();
            let handler = operation.operation_id.take();
            let shared = handlers.iter().filter(|other| **other == handler).count() > 1;
            let words = [tag.cloned(), handler, shared.then(|| method.to_owned())];
            let words: Vec<_> = words.into_iter().flatten().collect();
            operation.operation_id = Some(words.join("_").to_lowercase().replace(' ', "_"));
        }
    }
}

/// Describes what goes around ordinary routes: how long they may take, how large their bodies
/// may be, and that a POST of a known caller may be sent again.
pub fn surrounded(document: &mut OpenApi) {
    let items = document.paths.paths.values_mut();
    for (_, operation) in items.flat_map(operations_of) {
        let mut refuse = |status: &str, why: &str| {
            let responses = &mut operation.responses.responses;
            let entry = responses.entry(status.to_owned());
            entry.or_insert_with(|| RefOr::T(problem(why)));
        };
        refuse("408", "The request took too long.");
        if operation.request_body.is_some() {
            refuse("413", "The body is too large.");
            refuse("415", "The body has the wrong type.");
        }
    }
    sent_again(document);
}

/// Describes that a POST of a known caller may be sent again.
pub fn sent_again(document: &mut OpenApi) {
    let items = document.paths.paths.values_mut();
    for (method, operation) in items.flat_map(operations_of) {
        let is_open = operation.security == Some(vec![SecurityRequirement::default()]);
        if method != "post" || is_open {
            continue;
        }
        let responses = &mut operation.responses.responses;
        let conflict = responses.entry("409".to_owned());
        let under_way = "A request with this `Idempotency-Key` is under way.";
        conflict.or_insert_with(|| RefOr::T(problem(under_way)));
        let text = ObjectBuilder::new()
            .schema_type(Type::String)
            .min_length(Some(1))
            .max_length(Some(255))
            .build();
        let key = ParameterBuilder::new()
            .name("Idempotency-Key")
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some(
                "Sent again under the same key within two days, the request does nothing and \
                 is answered as before, with `Idempotent-Replayed: true`.",
            ))
            .schema(Some(text))
            .build();
        let parameters = operation.parameters.get_or_insert_default();
        parameters.push(RefOr::T(key));
    }
}

/// The refusals that most operations have, by name: written once and referred to.
fn shared_refusals() -> Vec<(String, RefOr<Response>)> {
    let refusals = [
        Refusals::responses(),
        Rejected::responses(),
        Unpaid::responses(),
        Missing::responses(),
        Conflicting::responses(),
    ];
    refusals
        .into_iter()
        .flatten()
        .map(|(status, response)| (format!("Refused{status}"), response))
        .collect()
}

fn problem(why: &str) -> Response {
    let document = Content::new(Some(Ref::from_schema_name("ProblemDocument")));
    ResponseBuilder::new()
        .description(why)
        .content("application/problem+json", document)
        .build()
}

fn operations_of(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    [
        ("get", item.get.as_mut()),
        ("post", item.post.as_mut()),
        ("put", item.put.as_mut()),
        ("patch", item.patch.as_mut()),
        ("delete", item.delete.as_mut()),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation?)))
}
