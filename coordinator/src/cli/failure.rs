//! Why a command did not do what was asked, and the exit code that says so.

use shared::exit;

use crate::client::ApiError;
use crate::items::ItemsError;

/// Left with Ctrl-C while watching: 128 + SIGINT, as shells have it. The run itself goes on.
pub(crate) const INTERRUPTED: u8 = 130;

/// What is told to the user, and how the process ends.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// One of [`shared::exit`], or [`INTERRUPTED`].
    pub(crate) exit: u8,
    /// What went wrong and what to do about it.
    pub(crate) message: String,
}

impl Failure {
    /// The command line asks for something that makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            exit: exit::USAGE,
            message: message.into(),
        }
    }

    /// The file or stdin holds something that cannot be submitted.
    pub(crate) fn input(source: &str, error: &ItemsError) -> Self {
        Self {
            exit: exit::BAD_INPUT,
            message: format!("{source}: {error}; nothing was submitted"),
        }
    }

    /// URL or token cannot work.
    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self {
            exit: exit::CONFIG,
            message: message.into(),
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let exit = match &error {
            ApiError::Unreachable { .. } | ApiError::Busy { .. } | ApiError::NotTidegate { .. } => {
                exit::UNAVAILABLE
            }
            ApiError::Unauthorized { .. } | ApiError::Untrusted { .. } => exit::CONFIG,
            ApiError::Refused(_) => exit::BAD_INPUT,
        };
        Self {
            exit,
            message: error.to_string(),
        }
    }
}
