//! Which slices ought to be there.

use jiff::ToSpan;
use jiff::civil::Date;
use shared::search_console::{DimensionSet, SearchType};

use super::Slice;

/// Days until Google calls a day final.
const FINAL_LAG: i64 = 3;

/// What was asked to be synced.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The properties.
    pub properties: Vec<String>,
    /// The search types.
    pub types: Vec<SearchType>,
    /// The dimension sets; those that Google does not serve for a type are left out.
    pub dimensions: Vec<DimensionSet>,
    /// The last day.
    pub last: Date,
    /// How many days, that one included.
    pub days: u32,
}

/// The newest day that is final when it is `today` in Pacific time.
#[must_use]
pub fn last_final_day(today: Date) -> Date {
    today.saturating_sub(FINAL_LAG.days())
}

impl Wish {
    /// Every slice.
    #[must_use]
    pub fn slices(&self) -> Vec<Slice> {
        let mut slices = Vec::new();
        for property in &self.properties {
            for &search_type in &self.types {
                for dimensions in self
                    .dimensions
                    .iter()
                    .filter(|set| set.is_legal_for(search_type))
                {
                    slices.extend(self.dates().map(|date| Slice {
                        property: property.clone(),
                        search_type,
                        dimensions: dimensions.clone(),
                        date,
                    }));
                }
            }
        }
        slices
    }

    fn dates(&self) -> impl Iterator<Item = Date> {
        (0..i64::from(self.days)).map(|age| self.last.saturating_sub(age.days()))
    }
}
