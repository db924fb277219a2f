//! Tables of comma-separated values.

use super::open_regular;
use crate::array::Array;
use crate::backend::Device;
use crate::dtype::{DType, Element, with_dtype};
use crate::error::{Error, Result, bail};
use crate::tensor::Tensor;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::Read;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Bytes of one row, at most: a file without line ends is no table.
const LONGEST_ROW: u64 = 1 << 28;

/// How a table is written; [`CsvFile::open_with`] takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsvOptions {
    /// What separates cells: `b','`, or `b'\t'`, `b';'`.
    pub delimiter: u8,
    /// Whether the first row names the columns; without, they are called `0`, `1` and so on.
    pub header: bool,
    /// Rows that begin with this byte are passed over.
    pub comment: Option<u8>,
    /// Cells with one of these texts are read as NaN by [`CsvFile::numbers`], which takes floats only then. `[""]` is the usual list.
    pub missing: Vec<String>,
}

impl Default for CsvOptions {
    fn default() -> Self {
        CsvOptions { delimiter: b',', header: true, comment: None, missing: Vec::new() }
    }
}

/// A table, as text in memory: columns become tensors when they are asked for.
///
/// ```
/// use cotangent::{F32, io::CsvFile};
/// # let path = std::env::temp_dir().join(format!("cotangent-doc-{}.csv", std::process::id()));
/// std::fs::write(&path, "width,height,kind\n1.5,2,cat\n3.0,4,dog\n2.5,1,cat\n")?;
/// let table = CsvFile::open(&path)?;
/// let x = table.numbers(&["width", "height"], F32)?;
/// let (y, kinds) = table.classes("kind")?;
/// assert_eq!(x.to_vec::<f32>()?, [1.5, 2.0, 3.0, 4.0, 2.5, 1.0]);
/// assert_eq!(y.to_vec::<i64>()?, [0, 1, 0]);
/// assert_eq!(kinds, ["cat", "dog"]);
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Debug)]
pub struct CsvFile {
    path: PathBuf,
    names: Vec<String>,
    options: CsvOptions,
    /// All cells, one after the other, and where each ends.
    text: String,
    ends: Vec<usize>,
    /// The line on which each row begins.
    lines: Vec<u64>,
}

impl CsvFile {
    /// Reads a table with a header and commas.
    ///
    /// # Errors
    /// As [`CsvFile::open_with`].
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let at = Location::caller();
        Self::read(path.as_ref(), &CsvOptions::default()).map_err(|e| e.in_op("open", at))
    }

    /// Reads a table.
    ///
    /// # Errors
    /// I/O error when it cannot be read or is not a regular file; corrupt-file error with the line when it is not UTF-8, or a row has another number of cells
    /// than the first; out of memory.
    #[track_caller]
    pub fn open_with(path: impl AsRef<Path>, options: &CsvOptions) -> Result<Self> {
        let at = Location::caller();
        Self::read(path.as_ref(), options).map_err(|e| e.in_op("open_with", at))
    }

    fn read(path: &Path, options: &CsvOptions) -> Result<Self> {
        let (file, length) = open_regular(path)?;
        let left = Rc::new(Cell::new(LONGEST_ROW));
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(options.delimiter)
            .has_headers(options.header)
            .comment(options.comment)
            .from_reader(Limited { from: file, left: Rc::clone(&left) });
        let damaged = |e: csv::Error| match e.kind() {
            csv::ErrorKind::Io(io) if io.kind() != std::io::ErrorKind::InvalidData => {
                Error::io(format!("cannot read {}", path.display())).with_source(e)
            }
            _ => Error::corrupt_file(format!("{} is not a table", path.display())).with_source(e),
        };
        let mut names: Vec<String> = Vec::new();
        if options.header {
            names.extend(reader.headers().map_err(damaged)?.iter().map(|n| n.trim().to_owned()));
        }
        let full = |_| Error::out_of_memory(format!("the {length} bytes of {} do not fit memory", path.display()));
        let (mut text, mut ends, mut lines) = (String::new(), Vec::new(), Vec::new());
        text.try_reserve_exact(usize::try_from(length).unwrap_or(usize::MAX)).map_err(full)?;
        let mut row = csv::StringRecord::new();
        while reader.read_record(&mut row).map_err(damaged)? {
            left.set(LONGEST_ROW);
            if names.is_empty() {
                names.extend((0..row.len()).map(|i| i.to_string()));
            }
            ends.try_reserve(row.len()).map_err(full)?;
            lines.try_reserve(1).map_err(full)?;
            lines.push(row.position().map_or(0, csv::Position::line));
            for cell in &row {
                text.push_str(cell);
                ends.push(text.len());
            }
        }
        Ok(CsvFile { path: path.to_owned(), names, options: options.clone(), text, ends, lines })
    }

    /// Names of the columns, in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of rows, without the header.
    pub fn rows(&self) -> usize {
        self.lines.len()
    }

    /// The cells of a column, as they are written.
    ///
    /// # Errors
    /// Argument error when no column, or more than one, has the name; out of memory.
    #[track_caller]
    pub fn texts(&self, column: &str) -> Result<Vec<&str>> {
        let at = Location::caller();
        let column = self.column(column).map_err(|e| e.in_op("texts", at))?;
        crate::memory::try_collect((0..self.rows()).map(|row| self.cell(row, column))).map_err(|e| e.in_op("texts", at))
    }

    /// Columns as numbers: `[rows, columns]`. `&[]` stands for all columns.
    ///
    /// # Errors
    /// Argument error when no column, or more than one, has a name, or when `missing` is not empty and `dtype` is not a float;
    /// corrupt-file error with line, column and cell when a cell is not a number of that dtype; out of memory.
    #[track_caller]
    pub fn numbers(&self, columns: &[&str], dtype: DType) -> Result<Tensor> {
        let at = Location::caller();
        self.parse(columns, dtype).map_err(|e| e.in_op("numbers", at))
    }

    /// A column of names as classes: the class of each row, `i64` `[rows]`, and the classes' names, sorted.
    ///
    /// # Errors
    /// Argument error when no column, or more than one, has the name; out of memory.
    #[track_caller]
    pub fn classes(&self, column: &str) -> Result<(Tensor, Vec<String>)> {
        let at = Location::caller();
        self.classify(column).map_err(|e| e.in_op("classes", at))
    }

    fn classify(&self, column: &str) -> Result<(Tensor, Vec<String>)> {
        let column = self.column(column)?;
        let cells = || (0..self.rows()).map(|row| self.cell(row, column).trim());
        let names: Vec<&str> = cells().collect::<BTreeSet<_>>().into_iter().collect();
        let array = Array::build::<i64>([self.rows()].into(), Device::Cpu, |out| {
            for (class, cell) in out.iter_mut().zip(cells()) {
                // Every cell is among its own column's names.
                *class = names.binary_search(&cell).map_or(-1, |i| i as i64);
            }
        })?;
        Ok((Tensor::from_array(array), names.into_iter().map(str::to_owned).collect()))
    }

    fn parse(&self, columns: &[&str], dtype: DType) -> Result<Tensor> {
        if !self.options.missing.is_empty() && !dtype.is_float() {
            bail!(argument, "missing cells are read as NaN, which {dtype} does not have");
        }
        let columns = match columns {
            [] => (0..self.names.len()).collect(),
            named => named.iter().map(|n| self.column(n)).collect::<Result<Vec<_>>>()?,
        };
        let shape = [self.rows(), columns.len()].into();
        let mut result: Result<()> = Ok(());
        let array = with_dtype!(dtype, T => Array::build::<T>(shape, Device::Cpu, |out| {
            let places = (0..self.rows()).flat_map(|row| columns.iter().map(move |&column| (row, column)));
            result = out.iter_mut().zip(places).try_for_each(|(x, (row, column))| {
                *x = self.number::<T>(row, column)?;
                Ok(())
            });
        })?);
        result?;
        Ok(Tensor::from_array(array))
    }

    fn number<T: FromCell>(&self, row: usize, column: usize) -> Result<T> {
        let cell = self.cell(row, column).trim();
        if self.options.missing.iter().any(|m| m == cell) {
            return Ok(T::from_f64(f64::NAN));
        }
        T::from_cell(cell).ok_or_else(|| {
            let (line, name) = (self.lines[row], &self.names[column]);
            let hint = if cell.is_empty() {
                "; if empty cells are to be NaN, say so by CsvOptions { missing: vec![String::new()], .. }"
            } else {
                ""
            };
            Error::corrupt_file(format!(
                "{}, line {line}, column `{name}`: {cell:?} is not a number of {}{hint}",
                self.path.display(),
                T::DTYPE
            ))
        })
    }

    fn cell(&self, row: usize, column: usize) -> &str {
        let i = row * self.names.len() + column;
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.text[start..self.ends[i]]
    }

    fn column(&self, name: &str) -> Result<usize> {
        let mut found = self.names.iter().enumerate().filter(|(_, n)| *n == name).map(|(i, _)| i);
        match (found.next(), found.next()) {
            (Some(i), None) => Ok(i),
            (Some(_), Some(_)) => bail!(argument, "{} has more than one column `{name}`", self.path.display()),
            (None, _) => bail!(argument, "{} has no column `{name}`; it has: {}", self.path.display(), self.names.join(", ")),
        }
    }
}

/// A number from a cell, rounded once; `None` when it is none, or beyond an integer's range.
trait FromCell: Element {
    fn from_cell(cell: &str) -> Option<Self>;
}

macro_rules! from_cell {
    ($($T:ty: $parse:expr;)*) => {
        $(impl FromCell for $T {
            fn from_cell(cell: &str) -> Option<Self> {
                let parse: fn(&str) -> Option<Self> = $parse;
                parse(cell)
            }
        })*
    };
}

from_cell! {
    f64: |c| c.parse().ok();
    // Through f64 the decimal would be rounded twice.
    f32: |c| c.parse().ok();
    half::bf16: |c| c.parse().ok().map(half::bf16::from_f64);
    half::f16: |c| c.parse().ok().map(half::f16::from_f64);
    i64: |c| c.parse().ok();
    u32: |c| c.parse().ok();
    u8: |c| c.parse().ok();
}

/// Ends a row that is longer than any: the reader would take memory for all of it.
struct Limited<R> {
    from: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let n = self.from.read(bytes)?;
        match self.left.get().checked_sub(n as u64) {
            Some(left) => self.left.set(left),
            None => return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, format!("a row has more than {LONGEST_ROW} bytes"))),
        }
        Ok(n)
    }
}
