//! From method and path to what is meant.

use hyper::Method;
use percent_encoding::percent_decode_str;

use super::error::ApiError;
use crate::fault::Endpoint;

/// A call that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    Sites,
    Site { site: String },
    Query { site: String },
    Sitemaps { site: String },
    Sitemap { site: String, feed: String },
    Inspect,
}

impl Route {
    pub(crate) fn find(method: &Method, path: &str) -> Result<Self, ApiError> {
        // The site is one segment, so its slashes are encoded and splitting comes before decoding.
        let segments: Vec<String> = path
            .split('/')
            .skip(1)
            .map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned())
            .collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let owned = |text: &str| text.to_owned();
        let (wanted, route) = match segments[..] {
            ["webmasters", "v3", "sites"] => (Method::GET, Self::Sites),
            ["webmasters", "v3", "sites", site] => (Method::GET, Self::Site { site: owned(site) }),
            [
                "webmasters",
                "v3",
                "sites",
                site,
                "searchAnalytics",
                "query",
            ] => (Method::POST, Self::Query { site: owned(site) }),
            ["webmasters", "v3", "sites", site, "sitemaps"] => {
                (Method::GET, Self::Sitemaps { site: owned(site) })
            }
            ["webmasters", "v3", "sites", site, "sitemaps", feed] => (
                Method::GET,
                Self::Sitemap {
                    site: owned(site),
                    feed: owned(feed),
                },
            ),
            ["v1", "urlInspection", "index:inspect"] => (Method::POST, Self::Inspect),
            _ => return Err(ApiError::not_found()),
        };
        if *method == wanted {
            Ok(route)
        } else {
            Err(ApiError::method_not_allowed())
        }
    }

    /// The site that the path names.
    pub(crate) fn site(&self) -> Option<&str> {
        match self {
            Self::Sites | Self::Inspect => None,
            Self::Site { site }
            | Self::Query { site }
            | Self::Sitemaps { site }
            | Self::Sitemap { site, .. } => Some(site),
        }
    }

    /// The name in the statistics, and what fault rules call it.
    pub(crate) fn endpoint(&self) -> (&'static str, Endpoint) {
        match self {
            Self::Sites => ("sites.list", Endpoint::Sites),
            Self::Site { .. } => ("sites.get", Endpoint::Sites),
            Self::Query { .. } => ("searchanalytics.query", Endpoint::Query),
            Self::Sitemaps { .. } => ("sitemaps.list", Endpoint::Sitemaps),
            Self::Sitemap { .. } => ("sitemaps.get", Endpoint::Sitemaps),
            Self::Inspect => ("urlInspection.index.inspect", Endpoint::Inspection),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_are_one_encoded_segment() {
        let path =
            "/webmasters/v3/sites/https%3A%2F%2Fgamma.example%2Fshop%2F/searchAnalytics/query";
        let site = "https://gamma.example/shop/".to_owned();
        assert_eq!(Route::find(&Method::POST, path), Ok(Route::Query { site }));
        let status = |method, path| Route::find(&method, path).map_err(|error| error.status);
        assert_eq!(status(Method::GET, path), Err(405));
        assert_eq!(
            status(Method::GET, "/webmasters/v3/sites/https://beta.example/"),
            Err(404)
        );
        assert_eq!(
            status(Method::POST, "/v1/urlInspection/index:inspect"),
            Ok(Route::Inspect)
        );
    }
}
