//! Who may do what: every route with every role, with a wrong token and with none.

use super::*;

/// Every route and the role that it needs. A new one has to be written down here too.
const ROUTES: [(&str, &str, Role); 23] = [
    ("get", "/api/v1/runs", Role::Read),
    ("post", "/api/v1/runs", Role::Submit),
    ("get", "/api/v1/runs/{run}", Role::Read),
    ("get", "/api/v1/runs/{run}/batches", Role::Read),
    ("post", "/api/v1/runs/{run}/cancel", Role::Operate),
    ("post", "/api/v1/runs/{run}/pause", Role::Operate),
    ("post", "/api/v1/runs/{run}/resume", Role::Operate),
    ("post", "/api/v1/runs/{run}/priority", Role::Operate),
    ("get", "/api/v1/batches/{batch}", Role::Read),
    ("get", "/api/v1/dead", Role::Read),
    ("get", "/api/v1/dead/count", Role::Read),
    ("post", "/api/v1/dead/redrive", Role::Operate),
    ("post", "/api/v1/dead/discard", Role::Operate),
    ("get", "/api/v1/pipelines", Role::Read),
    ("post", "/api/v1/pipelines/{pipeline}/pause", Role::Operate),
    ("post", "/api/v1/pipelines/{pipeline}/resume", Role::Operate),
    ("get", "/api/v1/schedules", Role::Read),
    ("get", "/api/v1/limits", Role::Read),
    ("get", "/api/v1/workers", Role::Read),
    ("get", "/api/v1/levels", Role::Read),
    ("get", "/api/v1/doctor", Role::Read),
    ("get", "/metrics", Role::Read),
    ("get", "/api/v1/openapi.json", Role::Read),
];

#[tokio::test]
async fn every_route_asks_for_its_role() {
    let tokens = [
        (Role::Read, "look"),
        (Role::Submit, "hand-in"),
        (Role::Operate, "steer"),
        (Role::Operate, "steer-next"),
    ];
    let api = Fixture::with_tokens(&tokens).await;
    for (method, path, needed) in ROUTES {
        // Nothing of these names exists, and required parameters are missing: who gets that far is let in.
        let path = path
            .replace("{run}", "00000000-0000-7000-8000-000000000000")
            .replace("{batch}", "00000000-0000-7000-8000-000000000000")
            .replace("{pipeline}", "nobody");
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let ask = async |authorization: Option<String>| {
            let with = |request: reqwest::RequestBuilder| match authorization {
                Some(value) => request.header("authorization", value),
                None => request,
            };
            api.send(method.clone(), &path, with).await
        };
        let strangers = [
            None,
            Some(String::new()),
            Some("Bearer".into()),
            Some("Bearer ".into()),
            Some("Bearer loo".into()),
            Some("Bearer lookk".into()),
            Some("Basic look".into()),
            Some("look".into()),
        ];
        for stranger in strangers {
            let answer = ask(stranger.clone()).await;
            let got = (answer.status, answer.code());
            assert_eq!(got, (401, "unauthorized"), "{method} {path} {stranger:?}");
        }
        for (role, token) in tokens {
            let answer = ask(Some(format!("bearer {token}"))).await;
            if role < needed {
                let got = (answer.status, answer.code());
                assert_eq!(got, (403, "forbidden"), "{method} {path} {token}");
            } else {
                let let_in = !matches!(answer.status, 401 | 403 | 405);
                assert!(let_in, "{method} {path} {token}: {answer:?}");
            }
        }
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(api.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn the_description_has_these_routes_and_roles_and_no_others() {
    let api = Fixture::new().await;
    let document = serde_json::to_value(&api.document).unwrap();
    let mut described = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let role = operation["security"][0]["token"][0].as_str().unwrap();
            described.push(format!("{method} {path} {role}"));
        }
    }
    described.sort();
    let mut expected =
        ROUTES.map(|(method, path, role)| format!("{method} {path} {}", role.as_str()));
    expected.sort();
    assert_eq!(described, expected);
}

#[tokio::test]
async fn a_token_file_that_is_replaced_holds_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "first").unwrap();
    let config = ApiConfig {
        token_file: Some(file.clone()),
        ..ApiConfig::default()
    };
    let api = Fixture::with(|api| api.tokens = Tokens::new(&config).unwrap()).await;
    let status = async |token: &str| {
        let with = |request: reqwest::RequestBuilder| request.bearer_auth(token);
        api.send(Method::GET, "/api/v1/runs", with).await.status
    };
    assert_eq!((status("first").await, status("second").await), (200, 401));
    std::fs::write(&file, "second").unwrap();
    assert_eq!((status("first").await, status("second").await), (401, 200));
    // Nobody is let in without a token because the file is empty for a moment, and nobody is shut out.
    std::fs::write(&file, "").unwrap();
    assert_eq!((status("first").await, status("second").await), (401, 200));
    assert_eq!(api.get("/api/v1/runs").await.status, 401);
}
