//! Parquet: a file is one row group, compressed with Snappy. (Apache Parquet format: types and logical types.)

use std::io::{self, Write};
use std::sync::Arc;

use jiff::civil::{Date, date};
use parquet::basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{Type, TypePtr};
use shared::config::{Column, ColumnType};

use crate::handler::Rows;
use crate::sink::table::{Cell, Shape, days_since};

/// Parquet counts days from here.
const EPOCH: Date = date(1970, 1, 1);

/// The values of a column, and for each row whether it has one.
struct Values {
    values: Kind,
    present: Vec<i16>,
}

enum Kind {
    Int(Vec<i32>),
    Bigint(Vec<i64>),
    Float(Vec<f64>),
    Bool(Vec<bool>),
    Bytes(Vec<ByteArray>),
}

/// Writes all rows.
pub(super) fn write(
    shape: &Shape,
    all_rows: &[Arc<Rows>],
    out: &mut (impl Write + Send),
) -> io::Result<()> {
    let mut columns: Vec<Values> = shape.columns().iter().map(Values::of).collect();
    for rows in all_rows {
        let added = shape.each_row(rows, |cells| {
            for (column, cell) in columns.iter_mut().zip(cells) {
                column.push(cell);
            }
            Ok(())
        });
        added.map_err(io::Error::other)?;
    }
    write_columns(shape, &columns, out).map_err(|error| match error {
        // A full disk should be seen as one.
        ParquetError::External(error) => match error.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(error) => io::Error::other(error),
        },
        other => io::Error::other(other),
    })
}

fn write_columns(shape: &Shape, columns: &[Values], out: &mut (impl Write + Send)) -> Result<()> {
    let fields = shape.columns().iter().map(field).collect::<Result<_>>()?;
    let schema = Type::group_type_builder("row")
        .with_fields(fields)
        .build()?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .build();
    let mut file = SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties))?;
    let mut group = file.next_row_group()?;
    for values in columns {
        let Some(mut column) = group.next_column()? else {
            break;
        };
        values.write(column.untyped())?;
        column.close()?;
    }
    group.close()?;
    file.close().map(drop)
}

fn field(column: &Column) -> Result<TypePtr> {
    let (physical, logical) = match column.kind {
        ColumnType::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        ColumnType::Json => (Physical::BYTE_ARRAY, Some(LogicalType::Json)),
        ColumnType::Int => (Physical::INT32, None),
        ColumnType::Bigint => (Physical::INT64, None),
        ColumnType::Float => (Physical::DOUBLE, None),
        ColumnType::Bool => (Physical::BOOLEAN, None),
        ColumnType::Date => (Physical::INT32, Some(LogicalType::Date)),
        ColumnType::Timestamp => (
            Physical::INT64,
            Some(LogicalType::timestamp(true, TimeUnit::MICROS)),
        ),
    };
    let repetition = if column.is_nullable {
        Repetition::OPTIONAL
    } else {
        Repetition::REQUIRED
    };
    Type::primitive_type_builder(&column.name, physical)
        .with_logical_type(logical)
        .with_repetition(repetition)
        .build()
        .map(Arc::new)
}

impl Values {
    fn of(column: &Column) -> Self {
        let values = match column.kind {
            ColumnType::Int | ColumnType::Date => Kind::Int(Vec::new()),
            ColumnType::Bigint | ColumnType::Timestamp => Kind::Bigint(Vec::new()),
            ColumnType::Float => Kind::Float(Vec::new()),
            ColumnType::Bool => Kind::Bool(Vec::new()),
            ColumnType::Text | ColumnType::Json => Kind::Bytes(Vec::new()),
        };
        Self {
            values,
            present: Vec::new(),
        }
    }

    /// Cells are of their column's type.
    fn push(&mut self, cell: &Cell<'_>) {
        match (&mut self.values, cell) {
            (_, Cell::Null) => return self.present.push(0),
            (Kind::Int(all), Cell::Integer(number)) => all.extend(i32::try_from(*number)),
            (Kind::Int(all), Cell::Date(day)) => all.push(days_since(EPOCH, *day)),
            (Kind::Bigint(all), Cell::Integer(number)) => all.push(*number),
            (Kind::Bigint(all), Cell::Timestamp(at)) => all.push(at.as_microsecond()),
            (Kind::Float(all), Cell::Float(number)) => all.push(*number),
            (Kind::Bool(all), Cell::Bool(is_true)) => all.push(*is_true),
            (Kind::Bytes(all), Cell::Text(text)) => all.push(text.as_bytes().to_vec().into()),
            (Kind::Bytes(all), Cell::Json(text)) => all.push(text.as_bytes().to_vec().into()),
            (_, cell) => unreachable!("{cell:?} was read for another column"),
        }
        self.present.push(1);
    }

    fn write(&self, column: &mut ColumnWriter<'_>) -> Result<()> {
        // Ignored where the column is required.
        let present = Some(&self.present[..]);
        match (&self.values, column) {
            (Kind::Int(all), ColumnWriter::Int32ColumnWriter(out)) => {
                out.write_batch(all, present, None)
            }
            (Kind::Bigint(all), ColumnWriter::Int64ColumnWriter(out)) => {
                out.write_batch(all, present, None)
            }
            (Kind::Float(all), ColumnWriter::DoubleColumnWriter(out)) => {
                out.write_batch(all, present, None)
            }
            (Kind::Bool(all), ColumnWriter::BoolColumnWriter(out)) => {
                out.write_batch(all, present, None)
            }
            (Kind::Bytes(all), ColumnWriter::ByteArrayColumnWriter(out)) => {
                out.write_batch(all, present, None)
            }
            _ => return Err(ParquetError::General("a column of another type".to_owned())),
        }
        .map(drop)
    }
}
