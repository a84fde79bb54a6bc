//! The description of the API agrees with what it answers.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;

#[tokio::test]
async fn the_description_is_served_and_whole() {
    let api = Fixture::new().await;
    let served = api.get("/api/v1/openapi.json").await.body;
    assert_eq!(served, serde_json::to_value(&api.document).unwrap());
    assert!(served["openapi"].as_str().unwrap().starts_with("3.1"));
    // Everything that is referred to is there.
    let text = served.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(!served["components"]["schemas"][name].is_null(), "{name}");
    }
    assert_eq!(
        served["components"]["securitySchemes"]["token"]["scheme"],
        "bearer"
    );
}

#[tokio::test]
async fn every_operation_is_described_with_its_refusals() {
    let api = Fixture::new().await;
    let document = serde_json::to_value(&api.document).unwrap();
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let at = format!("{method} {path}");
            assert!(
                ids.insert(operation["operationId"].to_string()),
                "{at} has a name of its own"
            );
            assert!(!operation["summary"].as_str().unwrap().is_empty(), "{at}");
            let responses = operation["responses"].as_object().unwrap();
            assert!(
                responses.keys().any(|status| status.starts_with('2')),
                "{at}"
            );
            for status in ["400", "401", "403", "421", "431", "500"] {
                assert!(responses.contains_key(status), "{at} lists {status}");
            }
            for (status, response) in responses {
                assert!(
                    !response["description"].as_str().unwrap().is_empty(),
                    "{at} {status}"
                );
                if status.starts_with(['4', '5']) {
                    let schema = &response["content"]["application/problem+json"]["schema"];
                    assert_eq!(
                        *schema,
                        json!({ "$ref": "#/components/schemas/Problem" }),
                        "{at}"
                    );
                }
            }
            let named = path.matches('{').count();
            let parameters = operation["parameters"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let in_path = parameters.iter().filter(|p| p["in"] == "path").count();
            assert_eq!(named, in_path, "{at} describes the names in its path");
        }
    }
}

#[tokio::test]
async fn what_is_not_described_is_not_there() {
    let api = Fixture::new().await;
    let document = serde_json::to_value(&api.document).unwrap();
    for (template, item) in document["paths"].as_object().unwrap() {
        let path = template
            .replace("{run}", "00000000-0000-7000-8000-000000000000")
            .replace("{batch}", "00000000-0000-7000-8000-000000000000")
            .replace("{pipeline}", "hashes");
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let answer = api
                .send(Method::from_bytes(method.as_bytes()).unwrap(), &path, |r| r)
                .await;
            if item[method.to_lowercase()].is_null() {
                assert_eq!(answer.code(), "method_not_allowed", "{method} {path}");
                let allowed = answer.header("allow");
                for (described, _) in item.as_object().unwrap() {
                    assert!(
                        allowed.contains(&described.to_uppercase()),
                        "{path}: {allowed}"
                    );
                }
            } else {
                assert_ne!(answer.status, 405, "{method} {path}");
            }
        }
    }
}

/// Parameters that a request takes are those that it describes: each is accepted or found wrong by name,
/// and any other is unknown.
#[tokio::test]
async fn described_parameters_are_taken_and_others_are_refused() {
    let api = Fixture::new().await;
    let document = serde_json::to_value(&api.document).unwrap();
    for (template, item) in document["paths"].as_object().unwrap() {
        if template == "/metrics" {
            continue;
        }
        let path = template
            .replace("{run}", "00000000-0000-7000-8000-000000000000")
            .replace("{batch}", "00000000-0000-7000-8000-000000000000")
            .replace("{pipeline}", "hashes");
        for (method, operation) in item.as_object().unwrap() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let described = operation["parameters"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let names: BTreeSet<String> = described
                .iter()
                .filter(|parameter| parameter["in"] == "query")
                .map(|parameter| parameter["name"].as_str().unwrap().to_owned())
                .collect();
            let unknown = api
                .send(method.clone(), &format!("{path}?odd=1"), |r| r)
                .await;
            assert_eq!(
                unknown.code(),
                "bad_parameter",
                "{method} {path}: {unknown:?}"
            );
            assert!(
                unknown.body["detail"].as_str().unwrap().contains("odd"),
                "{unknown:?}"
            );
            for name in names {
                let answer = api
                    .send(method.clone(), &format!("{path}?{name}=%00"), |r| r)
                    .await;
                let detail = answer.body["detail"].as_str().unwrap_or_default();
                assert!(
                    !detail.contains("unknown field"),
                    "{method} {path} {name}: {detail}"
                );
            }
        }
    }
}
