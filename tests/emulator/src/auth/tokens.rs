//! The access tokens that were issued: whose they are and how long they live, by the real clock.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::generator::mix;

/// Every live access token.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    live: HashMap<String, Token>,
}

#[derive(Debug)]
struct Token {
    user: String,
    dies_at: Instant,
}

/// Dead tokens are swept out once there are this many.
const SWEEP_AT: usize = 10_000;

impl Tokens {
    /// A new token of `user`.
    pub(crate) fn issue(&mut self, user: &str, life: Duration, now: Instant) -> String {
        if self.live.len() >= SWEEP_AT {
            self.live.retain(|_, token| now < token.dies_at);
        }
        let readable: String = user
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let random = mix(rand::random());
        let token = format!("ya29.emu-{readable}-{random:016x}");
        self.live.insert(
            token.clone(),
            Token {
                user: user.to_owned(),
                dies_at: now + life,
            },
        );
        token
    }

    /// Whose token this is; `None` when it is unknown or dead.
    pub(crate) fn user(&self, token: &str, now: Instant) -> Option<&str> {
        self.live
            .get(token)
            .filter(|token| now < token.dies_at)
            .map(|token| token.user.as_str())
    }

    /// Ends a token before its time.
    pub(crate) fn kill(&mut self, token: &str) {
        self.live.remove(token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_as_long_as_it_says() {
        let mut tokens = Tokens::default();
        let start = Instant::now();
        let life = Duration::from_secs(7);
        let token = tokens.issue("robot@p.example", life, start);
        assert!(token.starts_with("ya29.emu-robot-p-example-"));
        assert_eq!(tokens.user(&token, start), Some("robot@p.example"));
        assert_eq!(tokens.user(&token, start + life), None);
        tokens.kill(&token);
        assert_eq!(tokens.user(&token, start), None);
    }
}
