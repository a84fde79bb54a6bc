//! Collects rows for columns: each is read as it comes, and kept as the sink stores it.

use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

use shared::config::Column;
use shared::payload::check_json;

use super::read::Reader;
use super::{Cell, Shape};
use crate::collect::{BadRow, Collector, RowForm};
use crate::handler::Rows;
use crate::json_rows::JsonRows;

/// A form of rows that fit.
pub(in crate::sink) trait Kept: Debug + Default + Send + 'static {
    /// Adds a row, which was read as these cells.
    fn add(&mut self, row: &str, cells: &[Cell<'_>], columns: &[Column]);

    /// How many there are.
    fn count(&self) -> usize;

    /// All of them.
    fn into_rows(self) -> Rows;
}

/// Rows that fit a shape, kept as `K`.
#[derive(Debug)]
pub(in crate::sink) struct Fitting<K> {
    shape: Arc<Shape>,
    kept: PhantomData<fn() -> K>,
}

#[derive(Debug)]
struct Collecting<K> {
    shape: Arc<Shape>,
    reader: Reader,
    /// The memory of the last row's.
    cells: Vec<Cell<'static>>,
    kept: K,
}

impl<K: Kept> Fitting<K> {
    pub(in crate::sink) fn form(shape: &Arc<Shape>) -> Arc<dyn RowForm> {
        Arc::new(Self {
            shape: Arc::clone(shape),
            kept: PhantomData,
        })
    }
}

impl<K: Kept> RowForm for Fitting<K> {
    fn collector(&self) -> Box<dyn Collector> {
        Box::new(Collecting {
            shape: Arc::clone(&self.shape),
            reader: Reader::new(&self.shape),
            cells: Vec::new(),
            kept: K::default(),
        })
    }
}

impl<K: Kept> Collector for Collecting<K> {
    fn push(&mut self, row: &str) -> Result<(), BadRow> {
        let cells = std::mem::take(&mut self.cells);
        match self.reader.read(&self.shape, row, cells) {
            Ok(cells) => {
                self.kept.add(row, &cells, self.shape.columns());
                self.cells = emptied(cells);
                Ok(())
            }
            Err(problem) => {
                // What is no JSON at all is told as such.
                check_json(row)?;
                Err(BadRow::Unfit(problem))
            }
        }
    }

    fn count(&self) -> usize {
        self.kept.count()
    }

    fn finish(self: Box<Self>) -> Rows {
        self.kept.into_rows()
    }
}

/// The memory of these cells, for those of a row that lives elsewhere: collecting in place allocates nothing.
fn emptied(mut cells: Vec<Cell<'_>>) -> Vec<Cell<'static>> {
    cells.clear();
    cells.into_iter().map(|_| Cell::Null).collect()
}

impl Kept for JsonRows {
    fn add(&mut self, row: &str, _: &[Cell<'_>], _: &[Column]) {
        self.add(row);
    }

    fn count(&self) -> usize {
        self.len()
    }

    fn into_rows(self) -> Rows {
        Rows::Json(self.complete())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cells_of_each_row_lie_in_the_same_memory() {
        let text = "text".to_owned();
        let cells = vec![Cell::Text(text.as_str().into()); 7];
        let memory = cells.as_ptr() as usize;
        let emptied = emptied(cells);
        assert_eq!(emptied.as_ptr() as usize, memory);
        assert!(emptied.is_empty() && emptied.capacity() >= 7);
    }
}
