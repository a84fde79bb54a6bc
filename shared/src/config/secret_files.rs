//! Secrets from files: every key that holds a secret has a twin, the same with `_file`, that names a file with it, such
//! as `ledger.url_file`, `TIDEGATE_LEDGER__URL_FILE`. Here these files are read, once, and take the place of the key, so
//! that all that follows sees one kind of secret.
//!
//! Not among them, because they are read again when they change: the broker's password ([`super::BrokerConfig`]) and
//! the API's tokens ([`super::ApiConfig`]).

use std::path::PathBuf;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use secrecy::{ExposeSecret, SecretString};

use super::{ConfigError, secret};

/// Where secrets stand; `*` is every name.
const SECRETS: [&[&str]; 7] = [
    &["broker", "url"],
    &["ledger", "url"],
    &["sink", "url"],
    &["sinks", "*", "url"],
    &["pipelines", "*", "token"],
    &["pipelines", "*", "secret"],
    &["webhooks", "secret"],
];

/// One secret that was read, for figment to put in its place.
struct SecretFile {
    place: Vec<String>,
    path: PathBuf,
    secret: SecretString,
}

/// Which keys came from which files.
pub(super) struct SecretFiles(Vec<(String, PathBuf)>);

/// The same configuration with the secrets that its files hold.
///
/// # Errors
/// [`ConfigError`] names the key and the file, never what is in it.
pub(super) fn read_all(figment: Figment) -> Result<(Figment, SecretFiles), ConfigError> {
    let mut found = Vec::new();
    for pattern in SECRETS {
        let (section, rest) = pattern.split_first().expect("each names a section");
        if let Ok(value) = figment.find_value(section) {
            find(&value, &[(*section).to_owned()], rest, &mut found)?;
        }
    }
    let origins = found
        .iter()
        .map(|file| (file.place.join("."), file.path.clone()));
    let origins = SecretFiles(origins.collect());
    Ok((found.into_iter().fold(figment, Figment::merge), origins))
}

impl SecretFiles {
    /// Adds the file to an error about one of these keys.
    pub(super) fn locate(&self, error: ConfigError) -> ConfigError {
        let ConfigError::Wrong { key, problem } = error else {
            return error;
        };
        let key = match self.0.iter().find(|(of_file, _)| *of_file == key) {
            Some((_, path)) => format!("{key} in the file {}", path.display()),
            None => key,
        };
        ConfigError::Wrong { key, problem }
    }
}

fn find(
    value: &Value,
    place: &[String],
    pattern: &[&str],
    found: &mut Vec<SecretFile>,
) -> Result<(), ConfigError> {
    // What has another shape is refused later, by its own name.
    let (Some(dict), Some((name, rest))) = (value.as_dict(), pattern.split_first()) else {
        return Ok(());
    };
    let below = |name: &str| [place, &[name.to_owned()]].concat();
    if *name == "*" {
        for (name, value) in dict {
            find(value, &below(name), rest, found)?;
        }
    } else if let Some(Value::String(_, path)) = dict.get(&format!("{name}_file")) {
        let (place, path) = (below(name), PathBuf::from(path));
        let key = place.join(".");
        if dict.contains_key(*name) {
            let problem = format!("is set together with {key}_file: leave one of them out");
            return Err(ConfigError::wrong(key, problem));
        }
        let secret = secret::read(&format!("{key}_file"), &path)?;
        found.push(SecretFile {
            place,
            path,
            secret,
        });
    }
    Ok(())
}

impl Provider for SecretFile {
    fn metadata(&self) -> Metadata {
        Metadata::named(format!("the file {}", self.path.display()))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut value = Value::from(self.secret.expose_secret());
        for name in self.place.iter().rev() {
            value = Value::from(Dict::from([(name.clone(), value)]));
        }
        let dict = value.into_dict().unwrap_or_default();
        Ok(Map::from([(Profile::Default, dict)]))
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;

    use super::super::Config;
    use super::super::tests::{problem, read};
    use super::*;
    use crate::name::{PipelineName, SinkName};

    /// A folder with this in the file `secret`, and that file's path.
    fn file(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, text).unwrap();
        let path = path.display().to_string();
        (folder, path)
    }

    const URL: &str = "postgres://u:hunter2@db/x\n";

    #[test]
    fn every_secret_can_be_in_a_file() {
        let (_amqp, amqp) = file("amqps://u:hunter2@mq/x\n");
        let (_database, database) = file(URL);
        let (_secret, secret) = file(" 0123456789abcdef \n");
        let hook = format!("whsec_{}", BASE64_STANDARD.encode([7; 24]));
        let (_hook, hook) = file(&hook);
        let config = read(&format!(
            "[broker]\nurl_file = {amqp:?}\n[ledger]\nurl_file = {database:?}\n[sink]\nurl_file = {database:?}\n\
             [sinks.more]\nurl_file = {database:?}\n[webhooks]\nsecret_file = {hook:?}\n\
             [pipelines.\"a.b\"]\nhandler = \"http\"\nurl = \"https://a.example\"\ntoken_file = {secret:?}\n\
             secret_file = {secret:?}\n"
        ))
        .unwrap();
        assert_eq!(config.broker.address(), "amqps://mq:5671/x");
        let holds = |url: &super::super::DatabaseUrl| match url {
            super::super::DatabaseUrl::Postgres(url) => url.expose_secret() == URL.trim(),
            super::super::DatabaseUrl::Sqlite(_) => false,
        };
        assert!(holds(&config.ledger_url()) && holds(&config.sink_url()));
        let more = &config.sinks[&SinkName::new("more").unwrap()];
        assert!(holds(more.url.as_ref().unwrap()));
        assert_eq!(config.webhooks.secret.as_ref().unwrap().expose(), [7; 24]);
        let pipeline = &config.pipelines[&PipelineName::new("a.b").unwrap()];
        for secret in [&pipeline.token, &pipeline.secret] {
            let secret = secret.as_ref().unwrap().expose_secret();
            assert_eq!(secret, "0123456789abcdef");
        }
        let printed = format!("{config:?}");
        assert!(!printed.contains("hunter2"), "{printed}");
    }

    #[test]
    #[expect(
        clippy::result_large_err,
        reason = "figment's jail wants its own error"
    )]
    fn the_environment_names_files_too() {
        figment::Jail::expect_with(|jail| {
            jail.clear_env();
            jail.create_file("secret", "amqp://u:hunter2@mq/x")?;
            jail.set_env("TIDEGATE_BROKER__URL_FILE", "secret");
            let config = Config::load(None).map_err(|error| error.to_string())?;
            assert_eq!(config.broker.address(), "amqp://mq:5672/x");
            Ok(())
        });
    }

    #[test]
    fn what_is_wrong_is_said_with_key_and_file_and_without_the_secret() {
        let (_folder, wrong) = file("hunter2\n");
        let (_empty, empty) = file(" \n");
        let (_long, long) = file(&"hunter2".repeat(10_000));
        let cases = [
            (
                format!("[broker]\nurl = \"amqp://x\"\nurl_file = {wrong:?}"),
                "broker.url: is set together with broker.url_file",
            ),
            (
                "[ledger]\nurl_file = \"/does/not/exist\"".into(),
                "ledger.url_file: cannot read /does/not/exist",
            ),
            (format!("[sink]\nurl_file = {empty:?}"), "is empty"),
            (format!("[sink]\nurl_file = {long:?}"), "is longer than"),
            (format!("[sink]\nurl_file = {wrong:?}"), wrong.as_str()),
            (format!("[webhooks]\nsecret_file = {wrong:?}"), "base64"),
            (
                format!("[broker]\nurl_file = {wrong:?}"),
                "broker.url in the file",
            ),
            ("[broker]\nurl_file = 7".into(), "broker.url_file"),
            ("[broker]\nurl_fill = 7".into(), "did you mean"),
        ];
        for (toml, expected) in cases {
            let problem = problem(&toml);
            assert!(problem.contains(expected), "{toml}: {problem}");
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }
}
