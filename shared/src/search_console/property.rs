//! Reads a property the way people have it at hand, and gives it back the way Google spells it.
//! Google compares byte for byte, so a missing slash or an upper-case host would be another property.

use url::{Host, Url, form_urlencoded};

const DOMAIN_PREFIX: &str = "sc-domain:";

/// Why a text names no property.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PropertyError {
    /// A host without a scheme: several properties may be meant, and only the user knows which.
    #[error("{host:?} could be several properties: write sc-domain:{host} or https://{host}/")]
    BareHost {
        /// The host, in lower case.
        host: String,
    },
    /// Nothing that looks like a property.
    #[error(
        "{text:?} is no property: write https://example.com/ or sc-domain:example.com ({problem})"
    )]
    Malformed {
        /// What was written.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Accepts a property, a percent-encoded one, or the address of a Search Console page that shows one
/// (`…?resource_id=…`); mends an upper-case host and a missing slash at the end. Never guesses between
/// properties.
pub fn normalize_property(text: &str) -> Result<String, PropertyError> {
    let trimmed = text.trim();
    let malformed = |problem| PropertyError::Malformed {
        text: trimmed.chars().take(200).collect(),
        problem,
    };
    if trimmed.is_empty() {
        return Err(malformed("it is empty"));
    }
    if trimmed.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(malformed("it contains a space or a control character"));
    }
    if let Some(inner) = shown_by_console(trimmed) {
        return normalize(&inner, malformed);
    }
    normalize(&decoded(trimmed), malformed)
}

fn normalize(
    text: &str,
    malformed: impl Fn(&'static str) -> PropertyError,
) -> Result<String, PropertyError> {
    if let Some(domain) = strip_prefix_ignoring_case(text, DOMAIN_PREFIX) {
        let domain = domain.trim_end_matches(['/', '.']);
        return match Host::parse(domain) {
            Ok(Host::Domain(domain)) => Ok(format!("{DOMAIN_PREFIX}{domain}")),
            _ => Err(malformed("what follows sc-domain: is no domain")),
        };
    }
    if ["http://", "https://"]
        .iter()
        .any(|scheme| strip_prefix_ignoring_case(text, scheme).is_some())
    {
        return url_prefix(text, malformed);
    }
    let host = text.split('/').next().unwrap_or_default();
    match Host::parse(host) {
        Ok(Host::Domain(host)) if host.contains('.') => Err(PropertyError::BareHost { host }),
        _ => Err(malformed("it has no scheme")),
    }
}

fn url_prefix(
    text: &str,
    malformed: impl Fn(&'static str) -> PropertyError,
) -> Result<String, PropertyError> {
    let mut url = Url::parse(text).map_err(|_| malformed("it is no URL"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(malformed("it names a user"));
    }
    if url.query().is_some() {
        return Err(malformed("a property has no '?'"));
    }
    url.set_fragment(None);
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(url.into())
}

/// The property that a page of the Search Console itself is about.
fn shown_by_console(text: &str) -> Option<String> {
    let url = Url::parse(text).ok()?;
    let is_console = matches!(url.host_str(), Some("search.google.com" | "www.google.com"));
    let mut pairs = url.query_pairs();
    let id = pairs.find(|(name, _)| name == "resource_id" || name == "siteUrl")?;
    is_console.then(|| id.1.into_owned())
}

/// Takes percent-encoding away where the separators themselves are encoded.
fn decoded(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    if !lower.starts_with("http%3a")
        && !lower.starts_with("https%3a")
        && !lower.starts_with("sc-domain%3a")
    {
        return text.to_owned();
    }
    let query = text.replace('+', "%2B").replace('&', "%26");
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs
        .next()
        .map_or_else(String::new, |(decoded, _)| decoded.into_owned())
}

fn strip_prefix_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let start = text.get(..prefix.len())?;
    start
        .eq_ignore_ascii_case(prefix)
        .then(|| &text[prefix.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_paste_becomes_what_google_spells() {
        let cases = [
            ("https://www.example.com/", "https://www.example.com/"),
            (" https://WWW.Example.com ", "https://www.example.com/"),
            ("HTTPS://gamma.example/Shop", "https://gamma.example/Shop/"),
            (
                "https://gamma.example/shop/#top",
                "https://gamma.example/shop/",
            ),
            ("http://example.com:8080", "http://example.com:8080/"),
            ("sc-domain:example.com", "sc-domain:example.com"),
            ("SC-Domain:Example.COM/", "sc-domain:example.com"),
            (
                "sc-domain:bücher.example",
                "sc-domain:xn--bcher-kva.example",
            ),
            (
                "https%3A%2F%2Fwww.example.com%2F",
                "https://www.example.com/",
            ),
            ("sc-domain%3aexample.com", "sc-domain:example.com"),
            (
                "https://search.google.com/search-console/performance/search-analytics?resource_id=sc-domain%3Aexample.com&num_of_days=28",
                "sc-domain:example.com",
            ),
            (
                "https://search.google.com/search-console?resource_id=https://www.example.com/",
                "https://www.example.com/",
            ),
        ];
        for (text, property) in cases {
            let normalized = normalize_property(text);
            assert_eq!(normalized.as_deref(), Ok(property), "{text}");
            assert_eq!(
                normalize_property(property).as_deref(),
                Ok(property),
                "stays as it is"
            );
        }
    }

    #[test]
    fn a_bare_host_is_not_guessed_at() {
        for text in ["example.com", "Example.com/", "example.com/shop"] {
            assert_eq!(
                normalize_property(text),
                Err(PropertyError::BareHost {
                    host: "example.com".into()
                })
            );
        }
    }

    #[test]
    fn what_is_no_property_says_why() {
        for text in [
            "",
            "   ",
            "example",
            "ftp://example.com/",
            "https://",
            "https://a.example/?page=1",
            "https://user:pass@a.example/",
            "sc-domain:",
            "sc-domain:a.example/shop",
            "https://a .example/",
            "a\0b",
        ] {
            assert!(
                matches!(
                    normalize_property(text),
                    Err(PropertyError::Malformed { .. })
                ),
                "{text:?}"
            );
        }
    }
}
