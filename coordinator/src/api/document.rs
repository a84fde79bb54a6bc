//! The description of the API (OpenAPI), made from the routes themselves: a route exists together with its
//! description, its role and its refusals, or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::middleware::from_fn_with_state;
use shared::config::Role;
use utoipa::OpenApi;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, ResponseBuilder};
use utoipa_axum::router::UtoipaMethodRouter;

use super::Api;
use super::access::{self, Tokens};
use super::extract::{Nothing, Parameters};
use super::problem::{Code, ProblemDocument};

/// What the description calls the token.
const TOKEN: &str = "token";
/// What any request can be refused with.
const USUAL: [Code; 7] = [
    Code::BadParameter,
    Code::BadHost,
    Code::UnknownHost,
    Code::ForeignOrigin,
    Code::HeadersTooLarge,
    Code::Unauthorized,
    Code::Internal,
];

/// The description without its routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tidegate",
        description = "Runs of batches: submit, watch, cancel, pause, redrive. Errors are `application/problem+json` \
                       with a `code` out of a closed list; unknown parameters are errors. Ids sort by time of creation."
    ),
    components(schemas(ProblemDocument)),
    modifiers(&Bearer)
)]
pub(super) struct Description;

struct Bearer;

impl utoipa::Modify for Bearer {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = api.components.get_or_insert_default();
        components.add_security_scheme(TOKEN, scheme);
    }
}

/// A path with its methods: which role may use it, and what it refuses besides the usual.
pub(super) fn route(
    tokens: &Tokens,
    role: Role,
    refusals: &[Code],
    (schemas, mut paths, methods): UtoipaMethodRouter<Arc<Api>>,
) -> UtoipaMethodRouter<Arc<Api>> {
    for item in paths.paths.values_mut() {
        for operation in operations(item) {
            describe(operation, role, refusals);
        }
    }
    let guard = from_fn_with_state((tokens.clone(), role), access::require);
    (schemas, paths, methods.route_layer(guard))
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    item.get.iter_mut().chain(item.post.iter_mut())
}

fn describe(operation: &mut Operation, role: Role, refusals: &[Code]) {
    operation.security = Some(vec![SecurityRequirement::new(TOKEN, [role.as_str()])]);
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    // Nobody whose token is known lacks the first role.
    let forbidden = (role > Role::Read).then_some(Code::Forbidden);
    for code in USUAL.iter().chain(&forbidden).chain(refusals) {
        by_status
            .entry(code.status().as_u16())
            .or_default()
            .push(*code);
    }
    for (status, codes) in by_status {
        let lines: Vec<String> = codes
            .iter()
            .map(|code| format!("`{}`: {}", code.as_str(), code.meaning()))
            .collect();
        let problem = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name("Problem")))
            .build();
        let response = ResponseBuilder::new()
            .description(lines.join("\n"))
            .content("application/problem+json", problem);
        operation
            .responses
            .responses
            .insert(status.to_string(), response.build().into());
    }
}

/// This description
#[utoipa::path(
    get,
    path = "/api/v1/openapi.json",
    tag = "about",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value))
)]
pub(super) async fn openapi(
    State(api): State<Arc<Api>>,
    Parameters(Nothing {}): Parameters<Nothing>,
) -> Json<utoipa::openapi::OpenApi> {
    Json(super::router(&api).1)
}
