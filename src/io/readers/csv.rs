//! Tables of comma-separated values.

use super::open_regular;
use crate::array::Array;
use crate::backend::Device;
use crate::dtype::{DType, Element, with_dtype};
use crate::error::{Error, Result, bail};
use crate::io::failed;
use crate::memory;
use crate::tensor::Tensor;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::panic::Location;
use std::path::{Path, PathBuf};

/// Bytes of one row, at most: a file without line ends is no table.
const LONGEST_ROW: u64 = 1 << 28;
/// Bytes that are read at a time.
const BUFFER: usize = 1 << 16;

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
    /// What may separate the cells instead, when the first row has one cell.
    other: Option<u8>,
}

/// What else may separate cells, when a row that is one cell has it.
fn other_delimiter(row: &str, delimiter: u8) -> Option<u8> {
    [b';', b'\t', b'|', b','].into_iter().find(|&d| d != delimiter && row.as_bytes().contains(&d))
}

/// The hint about another delimiter, for the end of a message.
fn delimiter_hint(delimiter: u8, other: Option<u8>) -> String {
    let shown = |d: u8| format!("b'{}'", d.escape_ascii());
    other.map_or_else(String::new, |other| {
        let (now, other) = (shown(delimiter), shown(other));
        format!("; the first row has no {now}, which was to separate cells, but {other}: CsvOptions {{ delimiter: {other}, .. }}?")
    })
}

impl CsvFile {
    /// Reads a table with a header and commas; with tabs when the file's name ends in `.tsv`.
    ///
    /// # Errors
    /// As [`CsvFile::open_with`].
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let (at, path) = (Location::caller(), path.as_ref());
        let mut options = CsvOptions::default();
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv")) {
            options.delimiter = b'\t';
        }
        Self::read(path, &options).map_err(|e| e.in_op("open", at))
    }

    /// Reads a table.
    ///
    /// # Errors
    /// I/O error when it cannot be read or is not a regular file; corrupt-file error when it has no row at all, and with the line when it
    /// is not UTF-8, or a row has another number of cells than the first; out of memory.
    #[track_caller]
    pub fn open_with(path: impl AsRef<Path>, options: &CsvOptions) -> Result<Self> {
        let at = Location::caller();
        Self::read(path.as_ref(), options).map_err(|e| e.in_op("open_with", at))
    }

    fn read(path: &Path, options: &CsvOptions) -> Result<Self> {
        let (file, length) = open_regular(path)?;
        let mut rows = Rows {
            path,
            from: BufReader::with_capacity(BUFFER, file),
            parser: csv_core::ReaderBuilder::new().delimiter(options.delimiter).comment(options.comment).build(),
            // All cells are at most as long as the file.
            text: memory::room(usize::try_from(length).unwrap_or(usize::MAX).saturating_add(1))?,
            used: 0,
            ends: Vec::new(),
            cells: 0,
        };
        let mut names: Vec<String> = Vec::new();
        if options.header
            && let Some(line) = rows.next()?
        {
            let mut start = 0;
            for &end in &rows.ends[..rows.cells] {
                let cell = &rows.text[start..end];
                let name = std::str::from_utf8(cell).map_err(|e| rows.no_text(line, cell.get(e.valid_up_to())))?;
                memory::push(&mut names, memory::text(name.trim())?)?;
                start = end;
            }
            (rows.used, rows.cells) = (0, 0);
        }
        let mut other = if let [name] = names.as_slice() { other_delimiter(name, options.delimiter) } else { None };
        let (mut lines, mut before) = (Vec::new(), 0);
        while let Some(line) = rows.next()? {
            let cells = rows.cells - before;
            if names.is_empty() {
                names = memory::try_collect_ok((0..cells).map(|i| memory::text(&i.to_string())))?;
                let row = std::str::from_utf8(&rows.text[..rows.used]).ok().filter(|_| cells == 1);
                other = row.and_then(|row| other_delimiter(row, options.delimiter));
            }
            if cells != names.len() {
                let columns = names.len();
                let hint = delimiter_hint(options.delimiter, other);
                bail!(corrupt_file, "{} is not a table: line {line} has {cells} cells, the first row {columns}{hint}", path.display());
            }
            memory::push(&mut lines, line)?;
            before = rows.cells;
        }
        if names.is_empty() {
            let shown = path.display();
            match length {
                0 => bail!(corrupt_file, "{shown} is empty: a table has at least a row{}", if options.header { " of names" } else { "" }),
                _ => bail!(corrupt_file, "{shown} has no row: nothing but empty lines and comments"),
            }
        }
        let text = std::str::from_utf8(&rows.text[..rows.used]);
        // A delimiter beyond ASCII could cut a character.
        let wrong = match &text {
            Ok(text) => rows.ends[..rows.cells].iter().position(|&end| !text.is_char_boundary(end)),
            Err(e) => Some(rows.ends[..rows.cells].partition_point(|&end| end <= e.valid_up_to())),
        };
        if let Some(cell) = wrong {
            let byte = text.err().and_then(|e| rows.text.get(e.valid_up_to()));
            return Err(rows.no_text(lines.get(cell / names.len().max(1)).copied().unwrap_or(0), byte));
        }
        let Rows { mut text, used, mut ends, cells, .. } = rows;
        text.truncate(used);
        ends.truncate(cells);
        let text = String::from_utf8(text).map_err(|e| Error::corrupt_file("it is not UTF-8").with_source(e))?;
        Ok(CsvFile { path: path.to_owned(), names, options: options.clone(), text, ends, lines, other })
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
        memory::try_collect((0..self.rows()).map(|row| self.cell(row, column))).map_err(|e| e.in_op("texts", at))
    }

    /// Columns as numbers: `[rows, columns]`. `&[]` means all columns.
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
        let mut names: Vec<&str> = memory::try_collect(cells())?;
        names.sort_unstable();
        names.dedup();
        let array = Array::build::<i64>([self.rows()].into(), Device::Cpu, |out| {
            for (class, cell) in out.iter_mut().zip(cells()) {
                // Every cell is among its own column's names.
                *class = names.binary_search(&cell).map_or(-1, |i| i as i64);
            }
        })?;
        Ok((Tensor::from_array(array), memory::try_collect_ok(names.into_iter().map(memory::text))?))
    }

    fn parse(&self, columns: &[&str], dtype: DType) -> Result<Tensor> {
        if !self.options.missing.is_empty() && !dtype.is_float() {
            bail!(argument, "missing cells are read as NaN, which {dtype} does not have");
        }
        let columns = match columns {
            [] => memory::try_collect(0..self.names.len())?,
            named => memory::try_collect_ok(named.iter().map(|n| self.column(n)))?,
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
            let other = delimiter_hint(self.options.delimiter, self.other);
            Error::corrupt_file(format!(
                "{}, line {line}, column `{name}`: {cell:?} is not a number of {}{hint}{other}",
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
            (None, _) => {
                let names = memory::some(self.names.iter().map(String::as_str));
                let hint = delimiter_hint(self.options.delimiter, self.other);
                bail!(argument, "{} has no column `{name}`; it has: {names}{hint}", self.path.display())
            }
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

/// The rows of a file. `csv-core` takes no memory of its own: cells go straight into these lists.
struct Rows<'a> {
    path: &'a Path,
    from: BufReader<File>,
    parser: csv_core::Reader,
    /// All cells, one after the other, and after the used part a piece to write into.
    text: Vec<u8>,
    used: usize,
    /// Where each cell ends, and likewise.
    ends: Vec<usize>,
    cells: usize,
}

impl Rows<'_> {
    /// Adds the next row and says on which line it begins; nothing at the end.
    fn next(&mut self) -> Result<Option<u64>> {
        use csv_core::ReadRecordResult::{End, Record};
        let (start, first, mut line) = (self.used, self.cells, self.parser.line());
        let mut taken = 0;
        loop {
            lengthen(&mut self.text, self.used)?;
            lengthen(&mut self.ends, self.cells)?;
            let input = self.from.fill_buf().map_err(|e| failed("read", self.path, e))?;
            if taken == 0 {
                // The end of the row before, and empty lines, are passed over.
                line += input.iter().take_while(|b| matches!(b, b'\n' | b'\r')).filter(|b| **b == b'\n').count() as u64;
            }
            let (text, ends) = (&mut self.text[self.used..], &mut self.ends[self.cells..]);
            let (found, read, wrote, ended) = self.parser.read_record(input, text, ends);
            self.from.consume(read);
            taken += read as u64;
            self.used += wrote;
            self.cells += ended;
            if found == End {
                return Ok(None);
            }
            if found == Record {
                // They were counted from the row's first byte.
                self.ends[first..self.cells].iter_mut().for_each(|end| *end += start);
                return Ok(Some(line));
            }
            if taken > LONGEST_ROW {
                bail!(corrupt_file, "{} is not a table: the row on line {line} has more than {LONGEST_ROW} bytes", self.path.display());
            }
        }
    }

    fn no_text(&self, line: u64, byte: Option<&u8>) -> Error {
        let byte = byte.map_or_else(String::new, |b| format!(" (byte 0x{b:02x})"));
        let convert = "tables are read as UTF-8; one in Latin-1 or Windows-1252 is converted by `iconv -f WINDOWS-1252 -t UTF-8`, and what is no text at \
                       all (`.npy`, `.npz`, an image) has a reader of its own";
        Error::corrupt_file(format!("{} is not a table: line {line} is not UTF-8{byte}: {convert}", self.path.display()))
    }
}

/// At least one item after the first `used`; as many as there is room for, up to a piece.
fn lengthen<T: Copy + Default>(list: &mut Vec<T>, used: usize) -> Result<()> {
    if list.len() > used {
        return Ok(());
    }
    memory::grow(list, 1)?;
    let more = (list.capacity() - list.len()).min(BUFFER);
    memory::extend(list, std::iter::repeat_n(T::default(), more))
}
