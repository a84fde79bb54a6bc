//! `POST /token`: the OAuth token endpoint.

use hyper::Method;
use jiff::Timestamp;
use serde_json::json;

use crate::api::{ApiError, Call, Reply, draw, refusal};
use crate::app::App;
use crate::auth::{READ_ONLY_SCOPE, user};
use crate::fault::{Endpoint, Fault, Subject};

/// Gives a token or says why not, and counts either.
pub(crate) fn answer(app: &App, call: Call<'_>, emulator_url: &str) -> Reply {
    app.stats().call("token");
    let reply = decide(app, call, emulator_url);
    app.stats().status(reply.status);
    reply
}

fn decide(app: &App, call: Call<'_>, emulator_url: &str) -> Reply {
    if *call.method != Method::POST {
        return ApiError::method_not_allowed().into();
    }
    let config = app.config();
    let subject = Subject {
        endpoint: Endpoint::Token,
        label: "token",
        ..Subject::default()
    };
    let fault: Option<Fault> = draw(app, &config, &subject);
    if let Some(reply) = fault.as_ref().and_then(refusal) {
        return reply;
    }
    let own_uri = format!("{emulator_url}/token");
    let reply = match user(&config, call.body, &own_uri, Timestamp::now().as_second()) {
        Ok(user) => Reply::json(
            200,
            &json!({
                "access_token": app.issue_token(&user),
                "expires_in": config.token_life_s,
                "token_type": "Bearer",
                "scope": READ_ONLY_SCOPE,
            }),
        ),
        Err(refused) => Reply::json(
            refused.status,
            &json!({ "error": refused.error, "error_description": refused.description }),
        ),
    };
    Reply {
        wire: fault,
        ..reply
    }
}
