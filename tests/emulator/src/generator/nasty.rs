//! The option `nasty_text`: texts that break careless clients.
//!
//! Each rank still has a text of its own, so only texts and order change, never the counts. No NUL: the
//! databases on the other side cannot store it and the API does not send it.

use std::fmt::Write as _;

use super::texts;

/// Queries that look like something else; the most frequent ranks get them.
const LOOKALIKES: [&str; 12] = [
    "007",
    "1e5",
    "null",
    "true",
    "2026-02-10",
    "NaN",
    "-0",
    "0x1F",
    "1,000",
    "\\N",
    "\"\"",
    "' or 1=1 --",
];
/// Together with its base address about as long as addresses get before browsers refuse them.
const LONG_ADDRESS_CHARS: usize = 2_000;
/// How many kinds of oddity alternate; the other ranks keep their plain texts.
const KINDS: u64 = 16;

/// The text of a query.
pub(crate) fn query(rank: u64, out: &mut String) {
    if let Some(text) = usize::try_from(rank)
        .ok()
        .and_then(|index| LOOKALIKES.get(index))
    {
        out.push_str(text);
        return;
    }
    // Writing to a string cannot fail.
    let _ = match rank % KINDS {
        1 => write!(out, "tab\there {rank:x}"),
        2 => write!(out, "\"quoted\" and 'quoted' \\ {rank:x}"),
        3 => write!(out, "emoji 🦀👩‍👩‍👧 {rank:x}"),
        4 => write!(out, "שלום مرحبا {rank:x}"),
        5 => write!(out, "Case {rank:x}"),
        // The same letters as its neighbour, in another case.
        6 => write!(out, "case {:x}", rank - 1),
        7 => write!(out, "{rank}"),
        8 => write!(out, "  spaces  {rank:x}  "),
        9 => write!(out, "line\r\nbreak {rank:x}"),
        _ => {
            texts::query(rank, out);
            Ok(())
        }
    };
}

/// The end of a page's address.
pub(crate) fn page(rank: u64, out: &mut String) {
    let _ = match rank % KINDS {
        1 => write!(out, "p/{rank}?q=\"x\"&t='y'\t"),
        2 => write!(
            out,
            "p/{rank}/{}",
            "long-".repeat(LONG_ADDRESS_CHARS / "long-".len())
        ),
        3 => write!(out, "%D0%BF%D1%80%D0%B8%D0%B2%D0%B5%D1%82/{rank}"),
        4 => write!(out, "привет/🦀/{rank}"),
        5 => write!(out, "p/Case-{rank}"),
        6 => write!(out, "p/case-{}", rank - 1),
        _ => {
            texts::page(rank, out);
            Ok(())
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_rank_keeps_a_text_of_its_own() {
        for text in [query, page] {
            let texts: HashSet<String> = (0..5000)
                .map(|rank| {
                    let mut out = String::new();
                    text(rank, &mut out);
                    assert!(!out.contains('\0'));
                    out
                })
                .collect();
            assert_eq!(texts.len(), 5000);
        }
    }
}
