//! Which property may have been meant by one that does not exist.

use super::super::client::Site;

/// `; did you mean …?` with the properties that look most like what was written.
pub(super) fn did_you_mean(written: &str, sites: &[Site]) -> String {
    const SHOWN: usize = 5;
    const ALIKE: f64 = 0.75;
    let host = bare_host(written);
    let mut alike: Vec<(f64, &str)> = sites
        .iter()
        .map(|site| {
            (
                strsim::jaro_winkler(&host, &bare_host(&site.site_url)),
                site.site_url.as_str(),
            )
        })
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .collect();
    alike.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    let names: Vec<&str> = alike
        .into_iter()
        .take(SHOWN)
        .map(|(_, name)| name)
        .collect();
    if names.is_empty() {
        format!(
            "; it can see {} properties, none of a similar name",
            sites.len()
        )
    } else {
        format!("; did you mean {}?", names.join(" or "))
    }
}

/// What is left of a property when scheme, `sc-domain:`, `www.` and slashes are gone.
fn bare_host(property: &str) -> String {
    let lower = property.to_ascii_lowercase();
    let rest = lower
        .rsplit_once("://")
        .map_or(lower.as_str(), |(_, rest)| rest);
    let rest = rest.strip_prefix("sc-domain:").unwrap_or(rest);
    rest.strip_prefix("www.")
        .unwrap_or(rest)
        .trim_end_matches('/')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_are_of_the_same_or_a_similar_host() {
        let sites: Vec<Site> = [
            "sc-domain:alpha.example",
            "https://www.alpha.example/",
            "https://zzz.test/",
        ]
        .map(|url| Site {
            site_url: url.into(),
            permission_level: "siteOwner".into(),
        })
        .into();
        let words = did_you_mean("https://alpha.example/", &sites);
        assert_eq!(
            words,
            "; did you mean https://www.alpha.example/ or sc-domain:alpha.example?"
        );
        assert!(did_you_mean("https://other.org/", &sites).contains("3 properties"));
    }
}
