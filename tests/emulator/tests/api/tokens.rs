//! Tokens over the wire, with the assertion a service account signs.

use emulator::{Config, TestAccount};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::support::{ALPHA, Fixture, day, start};

async fn ask(fixture: &Fixture, form: &[(&str, &str)]) -> (u16, Value) {
    let answer = fixture
        .client
        .post(fixture.emulator.token_uri())
        .form(form)
        .send()
        .await
        .unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

fn assertion(account: &TestAccount) -> String {
    let now = jiff::Timestamp::now().as_second();
    let claims = json!({
        "iss": account.email(), "iat": now, "exp": now + 3600,
        "scope": "https://www.googleapis.com/auth/webmasters.readonly",
        "aud": "https://oauth2.googleapis.com/token",
    });
    let key = EncodingKey::from_rsa_pem(account.private_key().as_bytes()).unwrap();
    jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &key).unwrap()
}

#[tokio::test]
async fn a_registered_account_gets_a_token_that_works() {
    let mut fixture = start().await;
    let account = TestAccount::generate("robot@project.example").unwrap();
    let assertion = assertion(&account);
    let form = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
        ("assertion", &assertion),
    ];
    let (status, body) = ask(&fixture, &form).await;
    assert_eq!((status, &body["error"]), (400, &json!("invalid_grant")));

    fixture.emulator.register(&account).unwrap();
    let (status, body) = ask(&fixture, &form).await;
    assert_eq!(
        (status, &body["expires_in"], &body["token_type"]),
        (200, &json!(3599), &json!("Bearer"))
    );
    fixture.token = body["access_token"].as_str().unwrap().to_owned();
    assert_eq!(fixture.ask(ALPHA, &day(&["date"])).await.0, 200);
}

#[tokio::test]
async fn a_revoked_refresh_token_is_refused_in_google_s_words() {
    let fixture = start().await;
    let client = Config::default().oauth_clients.remove(0);
    let form = |token| {
        [
            ("grant_type", "refresh_token"),
            ("client_id", client.client_id.as_str()),
            ("client_secret", client.client_secret.as_str()),
            ("refresh_token", token),
        ]
    };
    assert_eq!(ask(&fixture, &form("1//good")).await.0, 200);
    let expected = json!({"error": "invalid_grant", "error_description": "Token has been expired or revoked."});
    assert_eq!(ask(&fixture, &form("revoked")).await, (400, expected));
    let stranger = [
        ("grant_type", "refresh_token"),
        ("client_id", "stranger"),
        ("refresh_token", "x"),
    ];
    let (status, body) = ask(&fixture, &stranger).await;
    assert_eq!((status, &body["error"]), (401, &json!("invalid_client")));
}

#[tokio::test]
async fn tokens_die_in_time_and_before_their_time() {
    let mut fixture = start().await;
    fixture.faults(&json!([{"kind": "token_expired_early"}]));
    assert_eq!(fixture.ask(ALPHA, &day(&["date"])).await.0, 401);
    // The rule has fired its one time; the token stays dead.
    assert_eq!(fixture.ask(ALPHA, &day(&["date"])).await.0, 401);
    fixture.token = fixture.emulator.issue_token("robot");
    assert_eq!(fixture.ask(ALPHA, &day(&["date"])).await.0, 200);
    fixture
        .emulator
        .configure(json!({"token_life_s": 0}))
        .unwrap();
    fixture.token = fixture.emulator.issue_token("robot");
    assert_eq!(fixture.ask(ALPHA, &day(&["date"])).await.0, 401);
}

#[tokio::test]
async fn sites_can_belong_to_some_users_only() {
    let mut fixture = start().await;
    let sites = json!([{"url": ALPHA, "permission": "siteOwner", "users": ["owner"]}]);
    fixture
        .emulator
        .configure(json!({ "sites": sites }))
        .unwrap();
    assert_eq!(fixture.ask(ALPHA, &day(&["date"])).await.0, 403);
    fixture.token = fixture.emulator.issue_token("owner");
    assert_eq!(fixture.ask(ALPHA, &day(&["date"])).await.0, 200);
}

#[tokio::test]
async fn the_token_endpoint_can_fail_too() {
    let fixture = start().await;
    fixture.faults(&json!([{"kind": "503", "endpoint": "token", "times": 1}]));
    assert_eq!(ask(&fixture, &[("grant_type", "password")]).await.0, 503);
    let (status, body) = ask(&fixture, &[("grant_type", "password")]).await;
    assert_eq!(
        (status, &body["error"]),
        (400, &json!("unsupported_grant_type"))
    );
}
