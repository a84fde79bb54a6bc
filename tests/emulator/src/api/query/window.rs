//! Which rows a page has, and the ways in which pages of the real service went wrong.

use crate::fault::Kind;
use crate::generator::RowSet;
use rand::seq::SliceRandom as _;

/// How a page departs from the plain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Twist {
    kind: Option<Kind>,
    shuffles_ties: bool,
}

impl Twist {
    pub(super) fn new(kind: Option<Kind>, shuffles_ties: bool) -> Self {
        let twists = [
            Kind::DuplicateRowBetweenPages,
            Kind::ShiftedPage,
            Kind::ShortPageNotLast,
        ];
        Self {
            kind: kind.filter(|kind| twists.contains(kind)),
            shuffles_ties,
        }
    }

    pub(super) fn is_none(self) -> bool {
        self.kind.is_none() && !self.shuffles_ties
    }

    /// The places of the page's rows among all rows.
    pub(super) fn places(self, set: &RowSet, start: usize, limit: usize) -> Vec<usize> {
        let window = |start: usize, limit: usize| {
            let first = start.min(set.len());
            first..first.saturating_add(limit).min(set.len())
        };
        if self.shuffles_ties {
            return shuffled(set)[window(start, limit)].to_vec();
        }
        let mut places: Vec<usize> = window(start, limit).collect();
        match self.kind {
            Some(Kind::ShiftedPage) if start > 0 => window(start - 1, limit).collect(),
            Some(Kind::ShortPageNotLast) => {
                window(start, limit.min(places.len()).div_ceil(2)).collect()
            }
            Some(Kind::DuplicateRowBetweenPages) if start > 0 => {
                if let Some(first) = places.first_mut() {
                    *first -= 1;
                }
                places
            }
            _ => places,
        }
    }
}

/// All places, in random order where the clicks are equal.
fn shuffled(set: &RowSet) -> Vec<usize> {
    let rows = set.rows();
    let mut places: Vec<usize> = (0..set.len()).collect();
    let is_tied = |one: &usize, other: &usize| {
        rows[*one].clicks == rows[*other].clicks
            && set.layout().same_date(rows[*one].key, rows[*other].key)
    };
    for run in places.chunk_by_mut(is_tied) {
        run.shuffle(&mut rand::rng());
    }
    places
}
