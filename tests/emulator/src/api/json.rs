//! The global parameters `fields` and `prettyPrint`: which parts of an answer, and how it is indented.

use std::collections::BTreeMap;

use serde_json::Value;

/// Which members of an object are wanted; no children means all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mask {
    children: BTreeMap<String, Mask>,
}

impl Mask {
    /// Reads `rows(keys,clicks),metadata` or `rows/keys`; `None` when the brackets do not match.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        let mask = Self::parse_list(&mut rest)?;
        rest.is_empty().then_some(mask)
    }

    fn parse_list(rest: &mut &str) -> Option<Self> {
        let mut mask = Self::default();
        loop {
            let end = rest.find([',', '(', ')', '/']).unwrap_or(rest.len());
            let (name, tail) = rest.split_at(end);
            *rest = tail;
            let child = if let Some(inner) = rest.strip_prefix('(') {
                *rest = inner;
                let child = Self::parse_list(rest)?;
                *rest = rest.strip_prefix(')')?;
                child
            } else if let Some(inner) = rest.strip_prefix('/') {
                // A path ends where the list around it goes on.
                let end = inner.find([',', ')']).unwrap_or(inner.len());
                let (path, tail) = inner.split_at(end);
                *rest = tail;
                Self::parse(path)?
            } else {
                Self::default()
            };
            if name.trim().is_empty() {
                return None;
            }
            mask.children.insert(name.trim().to_owned(), child);
            match rest.strip_prefix(',') {
                Some(tail) => *rest = tail,
                None => return Some(mask),
            }
        }
    }

    /// The mask of a member, when that member is wanted.
    pub(crate) fn member(&self, name: &str) -> Option<Self> {
        if self.children.is_empty() || self.children.contains_key("*") {
            return Some(Self::default());
        }
        self.children.get(name).cloned()
    }

    /// Takes away what is not wanted.
    pub(crate) fn apply(&self, value: &mut Value) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| self.apply(item)),
            Value::Object(members) => {
                members.retain(|name, _| self.member(name).is_some());
                for (name, member) in members {
                    if let Some(mask) = self.member(name) {
                        mask.apply(member);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Indents compact JSON by two spaces, which is the API's default; the order of members stays.
pub(crate) fn pretty(compact: &str) -> String {
    let mut out = String::with_capacity(compact.len() * 2);
    let mut depth = 0;
    let mut in_text = false;
    let mut escaped = false;
    let mut before = ' ';
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str("  "));
    };
    for c in compact.chars() {
        if in_text {
            out.push(c);
            in_text = escaped || c != '"';
            escaped = !escaped && c == '\\';
            before = c;
            continue;
        }
        let opened = matches!(before, '{' | '[');
        match c {
            '}' | ']' => {
                depth -= 1;
                if !opened {
                    line(&mut out, depth);
                }
            }
            _ if opened => line(&mut out, depth),
            _ => {}
        }
        out.push(c);
        match c {
            '{' | '[' => depth += 1,
            ',' => line(&mut out, depth),
            ':' => out.push(' '),
            '"' => in_text = true,
            _ => {}
        }
        before = c;
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn masks_keep_what_they_name() {
        let whole = json!({"rows": [{"keys": ["a"], "clicks": 1, "ctr": 0.5}], "metadata": {"x": 1}, "other": 2});
        for (fields, left) in [
            (
                "rows(keys,clicks),metadata",
                json!({"rows": [{"keys": ["a"], "clicks": 1}], "metadata": {"x": 1}}),
            ),
            (
                "rows/keys,other",
                json!({"rows": [{"keys": ["a"]}], "other": 2}),
            ),
            ("*", whole.clone()),
        ] {
            let mut value = whole.clone();
            Mask::parse(fields).unwrap().apply(&mut value);
            assert_eq!(value, left, "{fields}");
        }
        assert_eq!(Mask::parse("rows(keys"), None);
        assert_eq!(Mask::parse("rows)"), None);
        assert_eq!(Mask::parse(""), None);
    }

    #[test]
    fn pretty_is_what_other_printers_make_of_it() {
        let value = json!({"a": [1, {"b": "x\"\\{,:"}], "c": {}, "d": [], "e": null});
        let expected = format!("{}\n", serde_json::to_string_pretty(&value).unwrap());
        assert_eq!(pretty(&value.to_string()), expected);
    }
}
