//! The program: its line, its credentials, its end.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_search-console-emulator"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    line
}

#[tokio::test]
async fn it_prints_its_address_writes_credentials_and_ends_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let (account, user) = (
        folder.path().join("account.json"),
        folder.path().join("user.json"),
    );
    let config = folder.path().join("emu.toml");
    std::fs::write(&config, "profile = \"medium\"\nqps_burst = 8\n").unwrap();
    let mut child = program()
        .arg("--config")
        .arg(config)
        .args(["--listen", "127.0.0.1:0", "--write-credentials"])
        .arg(&account)
        .arg("--write-credentials-user")
        .arg(&user)
        .spawn()
        .unwrap();
    let line = first_line(&mut child);
    let url = line.trim_end().strip_prefix("listening on ").unwrap();
    let read =
        |path| serde_json::from_str::<Value>(&std::fs::read_to_string(path).unwrap()).unwrap();
    for file in [&account, &user] {
        assert_eq!(read(file)["token_uri"], format!("{url}/token"));
    }
    assert_eq!(
        (&read(&account)["type"], &read(&user)["type"]),
        (&"service_account".into(), &"authorized_user".into())
    );
    let settings: Value = reqwest::get(format!("{url}/__emu/config"))
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(
        (&settings["profile"], &settings["qps_burst"]),
        (&"medium".into(), &8.into())
    );
    kill(
        Pid::from_raw(child.id().try_into().unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn it_refuses_public_addresses_and_unknown_keys() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("emu.toml");
    std::fs::write(&config, "qps = 8\n").unwrap();
    let public = program().args(["--listen", "0.0.0.0:0"]).output().unwrap();
    let unknown = program().arg("--config").arg(config).output().unwrap();
    for (output, word) in [(public, "loopback"), (unknown, "unknown field")] {
        assert_eq!(output.status.code(), Some(78));
        assert!(String::from_utf8_lossy(&output.stderr).contains(word));
        assert!(output.stdout.is_empty());
    }
}
