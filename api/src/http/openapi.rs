//! OpenAPI document, generated from the declarations of the routes.
//!
//! Handlers are declared with `#[utoipa::path(...)]` and added to their router with `routes!`,
//! so no route lacks a description. A handler lists its responses in `responses(...)`, with the
//! types below for errors. [`add_common_responses`] describes the layers around every ordinary
//! route (limits of time and size, `Idempotency-Key`).

use peal_shared::platform::error::Blocker;
use peal_shared::platform::ids::TrunkId;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, Ref, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Components, Content, OpenApi, RefOr, Required, Response, ResponseBuilder};
use utoipa::{IntoResponses, Modify, OpenApi as _, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use crate::http::paging::Visibility;

/// A problem document (RFC 9457).
#[derive(ToSchema)]
#[expect(dead_code, reason = "its fields are read by the macro alone")]
pub struct ProblemDocument {
    /// Always `about:blank`; `code` identifies the problem.
    r#type: String,
    /// Reason phrase of the status.
    title: String,
    status: u16,
    /// The problem and how to fix it.
    detail: String,
    /// A stable, snake_case name of the problem.
    code: String,
    /// Request id to quote in a support request.
    request_id: String,
    /// Every invalid field.
    #[schema(nullable = false)]
    errors: Option<Vec<WrongField>>,
    /// Every reason why a batch cannot start.
    #[schema(nullable = false)]
    blockers: Option<Vec<Blocker>>,
}

/// An invalid field of the input.
#[derive(ToSchema)]
#[expect(dead_code, reason = "its fields are read by the macro alone")]
pub struct WrongField {
    /// Path of the field: `["body", "records", "3", "to_phonenumber"]`.
    loc: Vec<String>,
    msg: String,
    /// A stable, snake_case kind.
    r#type: String,
}

/// Errors of any operation that needs a caller. An operation adds its own: 400, 402, 404,
/// 409 ...
#[derive(IntoResponses)]
#[expect(dead_code, reason = "its variants are read by the macro alone")]
pub enum CommonErrors {
    /// The key or token is not valid.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(ProblemDocument),
    /// The caller may not do this.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(ProblemDocument),
    /// The input is invalid.
    #[response(status = 422, content_type = "application/problem+json")]
    Invalid(ProblemDocument),
    /// Too many requests; `Retry-After` says when to retry.
    #[response(status = 429, content_type = "application/problem+json")]
    TooManyRequests(ProblemDocument),
    /// Overloaded, or the database is unavailable; `Retry-After` says when to retry.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(ProblemDocument),
}

/// The input is well-formed, but breaks a rule across fields or with existing data.
#[derive(IntoResponses)]
#[response(status = 400, content_type = "application/problem+json")]
#[expect(dead_code, reason = "read by the macro alone")]
pub struct BadRequestResponse(ProblemDocument);

/// Not enough credit: `insufficient_credits` or `monthly_cap_reached`.
#[derive(IntoResponses)]
#[response(status = 402, content_type = "application/problem+json")]
#[expect(dead_code, reason = "read by the macro alone")]
pub struct PaymentRequiredResponse(ProblemDocument);

/// It does not exist, or the caller cannot see it.
#[derive(IntoResponses)]
#[response(status = 404, content_type = "application/problem+json")]
#[expect(dead_code, reason = "read by the macro alone")]
pub struct NotFoundResponse(ProblemDocument);

/// The current state does not allow this.
#[derive(IntoResponses)]
#[response(status = 409, content_type = "application/problem+json")]
#[expect(dead_code, reason = "read by the macro alone")]
pub struct ConflictResponse(ProblemDocument);

/// Head of the document: info, tags and shared components.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Peal",
        description = "Outbound voice calls: batches, their rows, single calls.\n\n\
            Send an API key as `x-api-key`, or a session token as `Authorization: Bearer`. \
            Errors are problem documents (RFC 9457): `detail` says what to do, `code` is stable. \
            Every response carries `X-Request-Id`; quote it in a support request. A POST may \
            carry an `Idempotency-Key`: sent again under the same key, it has no further effect \
            and gets the first response.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    // Schemas that only parameters and errors refer to.
    components(schemas(ProblemDocument, WrongField, Blocker, TrunkId, Visibility)),
    modifiers(&SecuritySchemes),
    tags(
        (name = "Sign in", description = "Login with an e-mail address and a password."),
        (name = "Me", description = "The caller, and the users visible to the caller."),
        (name = "Organizations", description = "Organizations, their members and invitations."),
        (name = "API keys", description = "Keys of this API, and secrets of providers."),
        (name = "Feature flags", description = "Features by user."),
        (name = "Audit log", description = "Record of changes."),
        (name = "Batches", description = "Campaigns, from creation to completion."),
        (name = "Batch rows", description = "Single rows of a batch."),
        (name = "Uploads", description = "Rows of a batch from files."),
        (name = "Calls", description = "Single calls outside a batch."),
        (name = "Agents", description = "Voice agents."),
        (name = "Phone numbers", description = "Caller numbers."),
        (name = "Phone mapping", description = "Agents by caller number."),
        (name = "Trunks", description = "Carrier accounts and their limits."),
        (name = "Tools", description = "HTTP endpoints that agents call."),
        (name = "MCP servers", description = "Servers of the Model Context Protocol, each with several tools."),
        (name = "Agent tools", description = "Tools of an agent."),
        (name = "Analysis rules", description = "Rules that analyse ended conversations."),
        (name = "Agent analysis", description = "Analysis rules of an agent."),
        (name = "Workflows", description = "Conversations that follow a graph."),
        (name = "Providers", description = "Model and voice providers."),
        (name = "Voices", description = "The voices that carriers speak with."),
        (name = "Wallets", description = "Wallets: grants, caps and the ledger. API keys can only read."),
        (name = "Billing", description = "Cost of calls. API keys can only read. Also available under `/billing`."),
        (name = "Service prices", description = "Prices of services."),
        (name = "Organization pricing", description = "Business model, commission and markup of resellers."),
        (name = "Earnings", description = "Earnings of resellers."),
        (name = "Carrier callbacks", description = "Callbacks of carriers, authenticated by the token in the path and the carrier's signature."),
        (name = "Health", description = "Health checks for load balancers and operators."),
        (name = "Description", description = "OpenAPI document."),
    )
)]
struct ApiDocument;

struct SecuritySchemes;

impl Modify for SecuritySchemes {
    fn modify(&self, document: &mut OpenApi) {
        let key = ApiKeyValue::with_description(
            crate::http::request_info::API_KEY_HEADER,
            "Acts for its user, on that user's own resources.",
        );
        let session = Http::builder()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .description(Some("Session token of a user."))
            .build();
        let components = document.components.get_or_insert_with(Components::new);
        components.add_security_scheme("api_key", SecurityScheme::ApiKey(ApiKey::Header(key)));
        components.add_security_scheme("session", SecurityScheme::Http(session));
    }
}

/// Document without routes.
pub fn empty_document() -> OpenApi {
    ApiDocument::openapi()
}

/// Gives the operations of routes that are also mounted elsewhere a distinct `operationId`.
pub fn alias_routes<S>(mut router: OpenApiRouter<S>) -> OpenApiRouter<S>
where
    S: Clone + Send + Sync + 'static,
{
    let items = router.get_openapi_mut().paths.paths.values_mut();
    for (_, operation) in items.flat_map(operations_of) {
        let name = operation.operation_id.take();
        operation.operation_id = name.map(|name| format!("{name}_alias"));
    }
    router
}

/// Completes the document of all routes: an operation takes a key or a session unless it says
/// otherwise, and its `operationId` is its tag and handler, plus the method where one handler
/// serves several.
pub fn complete_document(document: &mut OpenApi) {
    // 1. Add the shared errors as components.
    let responses = common_responses();
    let components = document.components.get_or_insert_with(Components::new);
    let named = responses.iter().cloned();
    components.responses.extend(named);

    // 2. Complete each operation.
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
                if let Some(name) = responses
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

/// Describes the layers around ordinary routes: the timeout, the limit of a body's size, and
/// `Idempotency-Key` on a POST.
pub fn add_common_responses(document: &mut OpenApi) {
    let items = document.paths.paths.values_mut();
    for (_, operation) in items.flat_map(operations_of) {
        let mut add_error = |status: &str, message: &str| {
            let responses = &mut operation.responses.responses;
            let entry = responses.entry(status.to_owned());
            entry.or_insert_with(|| RefOr::T(problem_response(message)));
        };

        add_error("408", "The request took too long.");
        if operation.request_body.is_some() {
            add_error("413", "The body is too large.");
            add_error("415", "The body has the wrong type.");
        }
    }

    add_idempotency_key(document);
}

/// Describes `Idempotency-Key` on each POST of an authenticated caller.
pub fn add_idempotency_key(document: &mut OpenApi) {
    let items = document.paths.paths.values_mut();
    for (method, operation) in items.flat_map(operations_of) {
        let is_anonymous = operation.security == Some(vec![SecurityRequirement::default()]);
        if method != "post" || is_anonymous {
            continue;
        }

        let responses = &mut operation.responses.responses;
        let conflict = responses.entry("409".to_owned());
        let under_way = "A request with this `Idempotency-Key` is in progress.";
        conflict.or_insert_with(|| RefOr::T(problem_response(under_way)));

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
                "Sent again under the same key within two days, the request has no further \
                 effect and gets the first response, with `Idempotent-Replayed: true`.",
            ))
            .schema(Some(text))
            .build();

        let parameters = operation.parameters.get_or_insert_default();
        parameters.push(RefOr::T(key));
    }
}

/// Errors that most operations share, by component name.
fn common_responses() -> Vec<(String, RefOr<Response>)> {
    let responses = [
        CommonErrors::responses(),
        BadRequestResponse::responses(),
        PaymentRequiredResponse::responses(),
        NotFoundResponse::responses(),
        ConflictResponse::responses(),
    ];
    responses
        .into_iter()
        .flatten()
        .map(|(status, response)| (format!("Refused{status}"), response))
        .collect()
}

fn problem_response(message: &str) -> Response {
    let document = Content::new(Some(Ref::from_schema_name("ProblemDocument")));
    ResponseBuilder::new()
        .description(message)
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
