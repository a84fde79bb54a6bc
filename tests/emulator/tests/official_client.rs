//! Google's official Python client works against the emulator without a change to it.
//!
//! The client is installed once, into a virtual environment below cargo's target folder. Needs `python3` with
//! `venv` and, the first time, a package index.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use emulator::{
    Config, Emulator, OauthClient, Permission, Site, TestAccount, generator::Profile,
    write_user_file,
};

/// What is installed. Pinned, so that a new release of the client is a change that somebody makes.
const PACKAGES: [&str; 2] = [
    "google-api-python-client==2.202.0",
    "google-auth[requests]==2.62.2",
];
/// Written into the environment once it is complete.
const COMPLETE: &str = "complete";

fn run(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}; apt install python3"))
}

fn succeeded(output: &Output, what: &str) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    assert!(
        output.status.success(),
        "{what}:\n{}",
        String::from_utf8_lossy(&text)
    );
}

/// The interpreter of an environment that has the client.
fn python() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("official-client");
    let python = folder.join("bin/python");
    let complete = folder.join(COMPLETE);
    if std::fs::read_to_string(&complete).is_ok_and(|packages| packages == PACKAGES.join(" ")) {
        return python;
    }
    let made = run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&folder));
    succeeded(
        &made,
        "python3 cannot make a virtual environment; apt install python3-venv",
    );
    let installed = run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet"])
        .args(PACKAGES));
    succeeded(
        &installed,
        "pip cannot install Google's client; it needs a package index",
    );
    std::fs::write(complete, PACKAGES.join(" ")).expect("the target folder can be written");
    python
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unmodified_official_client_works() {
    let account = TestAccount::generate("robot@official-client.example").unwrap();
    let large = Site {
        url: "sc-domain:large.example".to_owned(),
        permission: Permission::SiteOwner,
        profile: Some(Profile::Large),
        users: Vec::new(),
    };
    let mut config = Config {
        service_accounts: vec![account.registration()],
        ..Config::default().unlimited()
    };
    config.sites.push(large);
    let emulator = Emulator::start(config).await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let account_file = folder.path().join("account.json");
    let user_file = folder.path().join("user.json");
    account
        .write_key_file(&account_file, &emulator.url())
        .unwrap();
    write_user_file(&user_file, &OauthClient::default(), &emulator.url()).unwrap();

    let mut client = Command::new(python());
    client.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/official_client.py"));
    client.arg(emulator.url()).arg(account_file).arg(user_file);
    let output = tokio::task::spawn_blocking(move || run(&mut client))
        .await
        .unwrap();
    succeeded(&output, "a check failed");
    let lines = String::from_utf8_lossy(&output.stdout);
    assert_eq!(lines.lines().last(), Some("all ok"), "{lines}");
    assert_eq!(lines.lines().count(), 9, "{lines}");
    emulator.stop().await;
}
