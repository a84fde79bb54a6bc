//! The closed words of the API: search types, dimensions, data states, aggregations.
//!
//! Google's documents spell them in camel case, its discovery document in upper snake case; both are
//! accepted, as the API accepts both. What we say ourselves is the documents' spelling.

/// Compares the way the API does: letters only, in any case.
fn same_word(text: &str, word: &str) -> bool {
    fn letters(text: &str) -> impl Iterator<Item = u8> {
        text.bytes()
            .filter(|byte| *byte != b'_')
            .map(|byte| byte.to_ascii_lowercase())
    }
    letters(text).eq(letters(word))
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The spelling of the API's documents.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// Reads either spelling; `None` for a word the API does not know.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| same_word(text, value.word()))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words! {
    /// What kind of search the rows come from; the order is the generator's type index.
    SearchType {
        /// Ordinary results, the default.
        Web = "web",
        /// The image tab.
        Image = "image",
        /// The video tab.
        Video = "video",
        /// The news tab.
        News = "news",
        /// Discover, which has neither queries nor positions.
        Discover = "discover",
        /// news.google.com, which has neither queries nor positions.
        GoogleNews = "googleNews",
    }
}

words! {
    /// What rows are grouped by.
    Dimension {
        /// The Pacific day.
        Date = "date",
        /// The words searched for.
        Query = "query",
        /// The page shown.
        Page = "page",
        /// ISO 3166-1 alpha-3, lower case.
        Country = "country",
        /// `DESKTOP`, `MOBILE` or `TABLET`.
        Device = "device",
        /// The kind of search result; only ever alone.
        SearchAppearance = "searchAppearance",
        /// The Pacific hour; only with [`DataState::HourlyAll`].
        Hour = "hour",
    }
}

words! {
    /// How fresh the served days may be.
    DataState {
        /// Only days that are complete, the default.
        Final = "final",
        /// Partial days too.
        All = "all",
        /// Partial days too, by the hour.
        HourlyAll = "hourly_all",
    }
}

words! {
    /// What counts as one result.
    Aggregation {
        /// Each page of the site that was shown.
        ByPage = "byPage",
        /// The site as a whole.
        ByProperty = "byProperty",
        /// Panels of News Showcase; counted like `byProperty` here.
        ByNewsShowcasePanel = "byNewsShowcasePanel",
    }
}

impl SearchType {
    /// Discover and Google News answer without a position.
    #[must_use]
    pub fn has_position(self) -> bool {
        !matches!(self, Self::Discover | Self::GoogleNews)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read() {
        for word in ["googleNews", "GOOGLE_NEWS"] {
            assert_eq!(SearchType::parse(word), Some(SearchType::GoogleNews));
        }
        assert_eq!(DataState::parse("HOURLY_ALL"), Some(DataState::HourlyAll));
        assert_eq!(Aggregation::parse("BY_PAGE"), Some(Aggregation::ByPage));
        assert_eq!(Dimension::parse("pages"), None);
        assert_eq!(Dimension::parse("pag"), None);
    }
}
