//! The end of stderr, whatever its length.

use shared::outcome::MAX_ERROR_BYTES;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::handlers::rows::Flood;

/// How much is kept: an error text less what is said in front of it.
const KEPT_BYTES: usize = MAX_ERROR_BYTES - 512;
/// How much is read at a time.
const READ_BYTES: usize = 16 * 1024;

/// Keeps the last bytes of what it reads.
#[derive(Debug, Clone, Default)]
pub(super) struct Tail {
    kept: Vec<u8>,
}

impl Tail {
    /// Reads to the end. Never a flood: what is too much is forgotten.
    pub(super) async fn read(&mut self, mut stderr: impl AsyncRead + Unpin) -> Result<(), Flood> {
        let mut piece = vec![0; READ_BYTES];
        while let Ok(length @ 1..) = stderr.read(&mut piece).await {
            self.push(&piece[..length]);
        }
        Ok(())
    }

    pub(super) fn push(&mut self, piece: &[u8]) {
        self.kept.extend_from_slice(piece);
        let excess = self.kept.len().saturating_sub(KEPT_BYTES);
        self.kept.drain(..excess);
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
    }

    /// What is kept, as text.
    pub(super) fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        let text = text.trim();
        // Replacing bad bytes made it longer.
        let start = text.ceil_char_boundary(text.len().saturating_sub(KEPT_BYTES));
        text[start..].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_is_kept() {
        let mut tail = Tail::default();
        assert_eq!(tail.text(), "");
        for n in 0..100_000 {
            tail.push(format!("line {n}\n").as_bytes());
        }
        assert!(tail.text().ends_with("line 99998\nline 99999"));
        assert!(tail.text().len() <= KEPT_BYTES);
    }

    #[test]
    fn bad_bytes_and_cut_characters_are_text_all_the_same() {
        let mut tail = Tail::default();
        tail.push(&[0xff; 10_000]);
        tail.push("ä".repeat(10_000).as_bytes());
        tail.push(&[0xff; 3_000]);
        assert!(tail.text().len() <= KEPT_BYTES);
    }
}
