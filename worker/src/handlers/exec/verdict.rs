//! What an exit means for the batch.
//!
//! | exit | verdict |
//! |---|---|
//! | 0 | completed: stdout is the result |
//! | 64, 65, 66, 77, 78 (`EX_USAGE`, `EX_DATAERR`, `EX_NOINPUT`, `EX_NOPERM`, `EX_CONFIG`) | failed, reason `rejected`: it would fail again |
//! | 126, 127 | failed, reason `command_not_found`: what a shell says of a program that it cannot start |
//! | any other code, 75 (`EX_TEMPFAIL`) and an uncaught exception's 1 among them | retry |
//! | a signal, also as a shell reports it (128 + number) | retry, with the signal's name |

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::sys::signal::Signal;

use crate::handler::HandlerError;

/// What shells add to a signal's number.
const SHELL_SIGNAL_BASE: i32 = 128;

/// What becomes of the batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Completed,
    /// With what to tell.
    Retry(String),
    /// With the reason in one word, and what to tell.
    Fail(&'static str, String),
}

impl Verdict {
    /// What is reported when the batch is not done; an end that only completed batches may have is odd.
    pub(super) fn into_error(self) -> HandlerError {
        match self {
            Self::Completed => HandlerError::retry("the command ended before its batch did"),
            Self::Retry(error) => HandlerError::retry(error),
            Self::Fail(reason, error) => HandlerError::fail(reason, error),
        }
    }
}

pub(super) fn judge(status: ExitStatus) -> Verdict {
    let Some(code) = status.code() else {
        let number = status.signal().unwrap_or_default();
        return Verdict::Retry(format!("the command was ended by {}", signal(number)));
    };
    match code {
        0 => Verdict::Completed,
        64 | 65 | 66 | 77 | 78 => Verdict::Fail(
            "rejected",
            format!("the command rejected the batch with exit code {code}"),
        ),
        126 | 127 => Verdict::Fail(
            "command_not_found",
            format!(
                "the command exited with code {code}: a program that it needs is missing or not executable"
            ),
        ),
        _ => {
            let number = code - SHELL_SIGNAL_BASE;
            let name = match Signal::try_from(number) {
                Ok(_) => format!(", as after {}", signal(number)),
                Err(_) => String::new(),
            };
            Verdict::Retry(format!("the command exited with code {code}{name}"))
        }
    }
}

fn signal(number: i32) -> String {
    match Signal::try_from(number) {
        Ok(Signal::SIGKILL) => "SIGKILL (probably out of memory)".to_owned(),
        Ok(Signal::SIGXCPU) => "SIGXCPU (over its cpu_limit)".to_owned(),
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) => format!("signal {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(code: i32) -> Verdict {
        judge(ExitStatus::from_raw(code << 8))
    }

    fn retried(verdict: &Verdict) -> &str {
        match verdict {
            Verdict::Retry(error) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_exit_code_has_its_verdict() {
        for code in 0..=255 {
            let expected = match code {
                0 => "completed",
                64 | 65 | 66 | 77 | 78 => "rejected",
                126 | 127 => "command_not_found",
                _ => "retry",
            };
            let verdict = match exited(code) {
                Verdict::Completed => "completed",
                Verdict::Retry(error) => {
                    assert!(error.contains(&code.to_string()));
                    "retry"
                }
                Verdict::Fail(reason, _) => reason,
            };
            assert_eq!(verdict, expected, "{code}");
        }
    }

    #[test]
    fn signals_are_named() {
        assert!(
            retried(&judge(ExitStatus::from_raw(9))).contains("SIGKILL (probably out of memory)")
        );
        assert!(retried(&judge(ExitStatus::from_raw(11))).contains("SIGSEGV"));
        assert!(
            retried(&exited(137)).contains("code 137, as after SIGKILL (probably out of memory)")
        );
        assert!(retried(&exited(143)).contains("SIGTERM"));
        assert!(!retried(&exited(128)).contains("after"));
    }
}
