//! What is said when the configuration is wrong: the key, the problem, what to do.

use std::path::PathBuf;

/// The configuration is wrong. The process exits with [`crate::exit::CONFIG`].
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// `--config` names a file that is not there.
    #[error("the config file {0} does not exist or is no file")]
    NoFile(PathBuf),
    /// A key that nobody knows.
    #[error("unknown key {key:?}{place}{suggestion}")]
    UnknownKey {
        /// The key as written.
        key: String,
        /// Where it stands.
        place: String,
        /// The key that was probably meant.
        suggestion: String,
    },
    /// A value of the wrong type or out of range.
    #[error("{key}: {problem}")]
    Wrong {
        /// The key with its section.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

impl ConfigError {
    pub(super) fn wrong(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Wrong {
            key: key.into(),
            problem: problem.into(),
        }
    }

    pub(super) fn from_figment(error: &figment::Error) -> Self {
        use figment::error::Kind;
        let place = match &error.metadata {
            Some(source) => match &source.source {
                Some(file) => format!(" in {file}"),
                None => format!(" in {}", source.name),
            },
            None => String::new(),
        };
        match &error.kind {
            // The path leads to the key itself.
            Kind::UnknownField(key, known) => Self::UnknownKey {
                key: error.path.join("."),
                place,
                suggestion: suggest(key, known),
            },
            kind => Self::Wrong {
                key: format!("{}{place}", error.path.join(".")),
                problem: kind.to_string(),
            },
        }
    }
}

/// "did you mean", or the list of what there is when nothing is near.
fn suggest(key: &str, known: &[&str]) -> String {
    const NEAR: f64 = 0.7;
    let nearness = |other: &str| strsim::jaro_winkler(key, other);
    let nearest = known
        .iter()
        .max_by(|a, b| nearness(a).total_cmp(&nearness(b)));
    match nearest {
        Some(name) if nearness(name) > NEAR => format!("; did you mean {name:?}?"),
        _ => format!("; known here are {}", known.join(", ")),
    }
}
