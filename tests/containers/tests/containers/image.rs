//! What is in the images, and what is not.

use std::process::Command;
use std::time::Duration;

use containers::broker::Size;
use containers::docker::{docker, label, output};
use containers::images;
use containers::installation::{Installation, Plan};

const MIB: u64 = 1024 * 1024;
const MOST: u64 = 30 * MIB;
/// Programs by which somebody who got in would go on.
const TOOLS: [&str; 14] = [
    "sh", "bash", "dash", "ash", "busybox", "env", "cat", "ls", "apt", "apt-get", "dpkg", "curl",
    "wget", "perl",
];
/// What private keys and stored credentials begin with.
const SECRETS: [&str; 4] = [
    "-----BEGIN RSA PRIVATE",
    "-----BEGIN PRIVATE",
    "amqp://tidegate",
    "api-token=",
];

/// The files of an image: mode, owner, and name, as `tar` lists them.
fn files(image: &str) -> Vec<(String, String, String)> {
    let container = docker(&["create", "--label", &label(), image]).unwrap();
    let list = format!("docker export {container} | tar --list --verbose --numeric-owner");
    let listed = Command::new("bash")
        .args(["-o", "pipefail", "-c", &list])
        .output()
        .unwrap();
    docker(&["rm", &container]).unwrap();
    assert!(listed.status.success(), "{listed:?}");
    let text = String::from_utf8(listed.stdout).unwrap();
    text.lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let mode = words.next().unwrap().to_owned();
            let owner = words.next().unwrap().to_owned();
            (mode, owner, words.nth(3).unwrap().to_owned())
        })
        .collect()
}

fn of_image(image: &str, template: &str) -> String {
    docker(&["image", "inspect", "--format", template, image]).unwrap()
}

#[test]
fn images_are_small_and_say_what_they_are() {
    for program in images::PROGRAMS {
        let image = images::of(program);
        let size: u64 = of_image(&image, "{{.Size}}").parse().unwrap();
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let mib = size as f64 / MIB as f64;
        eprintln!("{image}: {mib:.1} MiB");
        assert!(size < MOST, "{image} has {mib:.1} MiB");
        for label in ["title", "version", "revision", "licenses"] {
            let template =
                format!(r#"{{{{index .Config.Labels "org.opencontainers.image.{label}"}}}}"#);
            assert!(
                !of_image(&image, &template).is_empty(),
                "{image} has no {label}"
            );
        }
    }
}

#[test]
fn images_have_no_root_no_shell_and_nothing_that_everybody_may_change() {
    for program in images::PROGRAMS {
        let image = images::of(program);
        assert_eq!(of_image(&image, "{{.Config.User}}"), "65532:65532");
        for (mode, owner, name) in files(&image) {
            let file = name.rsplit('/').next().unwrap();
            assert!(!TOOLS.contains(&file), "{image} has {name}");
            assert!(
                !mode.contains(['s', 'S']),
                "{image}: {name} changes who runs it: {mode}"
            );
            // Links have no mode of their own; a folder that everybody writes to has to be sticky.
            let open = mode.as_bytes()[8] == b'w' && !mode.starts_with('l');
            assert!(!open || mode.ends_with('t'), "{image}: {name} is {mode}");
            if !mode.starts_with('d') {
                assert_ne!(
                    owner, "65532/65532",
                    "{image}: {name} belongs to who runs in it"
                );
            }
        }
    }
}

#[test]
fn images_run_with_nothing_that_can_be_written() {
    for program in images::PROGRAMS {
        let image = images::of(program);
        let confined = [
            "run",
            "--rm",
            "--read-only",
            "--cap-drop",
            "ALL",
            "--network",
            "none",
        ];
        let label = label();
        let mut arguments = confined.to_vec();
        arguments.extend([
            "--security-opt",
            "no-new-privileges",
            "--label",
            &label,
            &image,
        ]);
        let version = docker(&[&arguments[..], &["--version"]].concat()).unwrap();
        assert!(
            version.ends_with(env!("CARGO_PKG_VERSION")),
            "{image}: {version}"
        );
    }
}

#[test]
fn images_hold_no_secret() {
    for program in images::PROGRAMS {
        let image = images::of(program);
        let variables = of_image(&image, "{{range .Config.Env}}{{println .}}{{end}}");
        for variable in variables.lines().filter(|line| !line.is_empty()) {
            let name = variable.split('=').next().unwrap();
            assert!(
                ["PATH", "SSL_CERT_FILE"].contains(&name),
                "{image}: {variable}"
            );
        }
        let history = docker(&[
            "history",
            "--no-trunc",
            "--format",
            "{{.CreatedBy}}",
            &image,
        ])
        .unwrap();
        let saved = output(&["save", &image]).unwrap();
        assert!(saved.status.success(), "{image} cannot be saved");
        let content = saved.stdout;
        let holds = |text: &str| {
            let needle = text.as_bytes();
            content.windows(needle.len()).any(|window| window == needle)
        };
        assert!(holds("etc/ssl/certs"), "{image}: its layers cannot be read");
        for secret in SECRETS {
            assert!(
                !history.contains(secret),
                "{image}: {secret} is in its history"
            );
            assert!(!holds(secret), "{image}: {secret} is in its layers");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn running_containers_show_no_secret() {
    let plan = Plan {
        broker: Size::Single,
        properties: 1,
        latency: Duration::ZERO,
        slots: 1,
    };
    let mut all = Installation::start(plan).await.unwrap();
    all.start_worker("worker").await.unwrap();
    let secrets = all.secrets().unwrap();
    for container in all.workers().chain([all.coordinator()]) {
        let (stdout, stderr) = container.logs().unwrap();
        let known = container.inspect("{{json .Config}}").unwrap();
        for secret in &secrets {
            for said in [&stdout, &stderr, &known] {
                assert!(!said.contains(secret), "{} shows a secret", container.name);
            }
        }
    }
}
