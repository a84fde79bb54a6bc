//! Lists of words.

use std::fmt::Display;

use serde::{Deserialize, Deserializer};

/// A list in the file, a list or a comma-separated text in the environment. Empty words are left out.
pub(super) fn list_or_commas<'de, T, D>(d: D) -> Result<Vec<T>, D::Error>
where
    T: TryFrom<String, Error: Display>,
    D: Deserializer<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        List(Vec<String>),
        Text(String),
    }
    let words = match Words::deserialize(d)? {
        Words::List(words) => words,
        Words::Text(text) => text.split(',').map(str::to_owned).collect(),
    };
    let words = words.iter().map(|word| word.trim().to_owned());
    let read = words.filter(|word| !word.is_empty()).map(T::try_from);
    read.collect::<Result<_, _>>()
        .map_err(serde::de::Error::custom)
}
