//! Who calls: tokens, the grants that give them, and credentials to ask with.

mod account;
mod grant;
mod tokens;

pub use account::{AccountError, TestAccount, user_file, write_user_file};
pub(crate) use grant::user;
pub(crate) use tokens::Tokens;

/// The audience that Google's libraries name, whatever the token endpoint's real address.
pub(crate) const GOOGLE_TOKEN_URI: &str = "https://oauth2.googleapis.com/token";
/// The scope for reading and writing; that for reading continues it.
pub(crate) const READ_WRITE_SCOPE: &str = "https://www.googleapis.com/auth/webmasters";
/// The scope that tokens are given.
pub(crate) const READ_ONLY_SCOPE: &str = "https://www.googleapis.com/auth/webmasters.readonly";
