//! Reads Parquet files.

use std::fs::File;
use std::path::Path;

use ::parquet::file::reader::SerializedFileReader;
use ::parquet::record::{Row, RowAccessor};

/// All rows of a file.
pub(crate) fn rows(path: &Path) -> Vec<Row> {
    let reader = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
    reader.into_iter().map(Result::unwrap).collect()
}

/// The `word` and `n` of all rows.
pub(crate) fn words(path: &Path) -> Vec<(String, i64)> {
    let word = |row: &Row| {
        let n = row.get_long(2).unwrap();
        (row.get_string(0).unwrap().clone(), n)
    };
    rows(path).iter().map(word).collect()
}
