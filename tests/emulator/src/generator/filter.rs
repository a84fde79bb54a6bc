//! Filters of a request, and their answer for every text at once.

use regex::Regex;

use super::Dimension;

/// One condition of a request.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Whose text is looked at.
    pub dimension: Dimension,
    /// What has to hold.
    pub condition: Condition,
    /// The condition is turned round.
    pub negated: bool,
}

/// What a text is compared with.
#[derive(Debug, Clone)]
pub enum Condition {
    /// The whole text. Countries and devices ignore case, other texts do not.
    Equals(String),
    /// A part of the text, ignoring case; kept in lower case.
    Contains(String),
    /// RE2 syntax, anywhere in the text.
    Matches(Regex),
}

impl Filter {
    /// Reads operator and expression; `None` for an unknown operator or a broken expression.
    #[must_use]
    pub fn parse(dimension: Dimension, operator: &str, expression: &str) -> Option<Self> {
        let word: String = operator
            .chars()
            .filter(|c| *c != '_')
            .collect::<String>()
            .to_ascii_lowercase();
        let (condition, negated) = match word.as_str() {
            "equals" => (Condition::Equals(expression.to_owned()), false),
            "notequals" => (Condition::Equals(expression.to_owned()), true),
            "contains" => (Condition::Contains(expression.to_lowercase()), false),
            "notcontains" => (Condition::Contains(expression.to_lowercase()), true),
            "includingregex" => (Condition::Matches(Regex::new(expression).ok()?), false),
            "excludingregex" => (Condition::Matches(Regex::new(expression).ok()?), true),
            _ => return None,
        };
        Some(Self {
            dimension,
            condition,
            negated,
        })
    }

    pub(crate) fn accepts(&self, text: &str) -> bool {
        let holds = match &self.condition {
            Condition::Equals(wanted)
                if matches!(self.dimension, Dimension::Country | Dimension::Device) =>
            {
                wanted.eq_ignore_ascii_case(text)
            }
            Condition::Equals(wanted) => wanted == text,
            Condition::Contains(part) => text.to_lowercase().contains(part),
            Condition::Matches(regex) => regex.is_match(text),
        };
        holds != self.negated
    }
}

/// Which texts of one dimension pass, by order number; absent when the dimension is not filtered.
#[derive(Debug, Default)]
pub(crate) struct Passing(Option<Vec<bool>>);

impl Passing {
    pub(crate) fn new<'a>(
        filters: &[Filter],
        dimension: Dimension,
        texts: impl Iterator<Item = std::borrow::Cow<'a, str>>,
    ) -> Self {
        let relevant: Vec<&Filter> = filters
            .iter()
            .filter(|filter| filter.dimension == dimension)
            .collect();
        if relevant.is_empty() {
            return Self(None);
        }
        Self(Some(
            texts
                .map(|text| relevant.iter().all(|filter| filter.accepts(&text)))
                .collect(),
        ))
    }

    pub(crate) fn allows(&self, order: u64) -> bool {
        self.0
            .as_ref()
            .is_none_or(|passing| passing[usize::try_from(order).unwrap_or(usize::MAX)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_do_what_they_say() {
        let accepts = |operator, expression, text| {
            Filter::parse(Dimension::Query, operator, expression)
                .unwrap()
                .accepts(text)
        };
        assert!(accepts("equals", "abc", "abc") && !accepts("equals", "abc", "Abc"));
        assert!(accepts("NOT_EQUALS", "abc", "Abc"));
        assert!(accepts("contains", "BC", "abcd") && !accepts("notContains", "bc", "aBCd"));
        assert!(
            accepts("includingRegex", "^a.c$", "abc") && accepts("excludingRegex", "^a.c$", "abcd")
        );
        assert!(Filter::parse(Dimension::Query, "like", "a").is_none());
        assert!(Filter::parse(Dimension::Query, "includingRegex", "(").is_none());
    }
}
