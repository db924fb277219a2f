//! NumPy's `.npy`: one array.

use super::open_regular;
use super::raw::Raw;
use crate::dtype::{DType, with_dtype};
use crate::error::{Error, Result, bail};
use crate::io::{failed, replace};
use crate::shape::Shape;
use crate::tensor::Tensor;
use std::io::{BufReader, Read, Write};
use std::panic::Location;
use std::path::Path;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Longest header: NumPy itself refuses longer ones unless it is made to trust the file.
const LONGEST_HEADER: usize = 10_000;
/// Most axes of an array, as in NumPy 2.
const MOST_AXES: usize = 64;

/// Reads an array that NumPy saved by `np.save`.
///
/// Every format version, byte order and memory order is read. Integers that have no dtype here are widened: 8, 16 and 32 bits with
/// sign become `i64`, 16 bits without `u32`, 64 bits without `i64`; truth values become `u8`.
///
/// ```
/// use cotangent::{Tensor, io::{read_npy, save_npy}};
/// # let folder = std::env::temp_dir().join(format!("cotangent-doc-npy-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// let path = folder.join("x.npy");
/// save_npy(&path, &Tensor::from_rows(&[[1f32, 2.0], [3.0, 4.0]])?)?;
/// let x = read_npy(&path)?;
/// assert_eq!(x.shape().dims(), [2, 2]);
/// assert_eq!(x.to_vec::<f32>()?, [1.0, 2.0, 3.0, 4.0]);
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), cotangent::Error>(())
/// ```
///
/// # Errors
/// I/O error when it cannot be read or is not a regular file; corrupt-file error when it is not in the format, its length does not fit its header, or a
/// number is beyond `i64`; dtype error for complex numbers, texts, dates, objects and records; out of memory.
#[track_caller]
pub fn read_npy(path: impl AsRef<Path>) -> Result<Tensor> {
    let at = Location::caller();
    let path = path.as_ref();
    let read = || {
        let (file, length) = open_regular(path)?;
        read_from(&mut BufReader::new(file), length).map_err(|e| e.about(path.display()))
    };
    read().map_err(|e| crate::io::at_callers_line(e, "read_npy", at))
}

/// One array from a stream of exactly `length` bytes.
pub(super) fn read_from(from: &mut dyn Read, length: u64) -> Result<Tensor> {
    let mut start = [0; 8];
    if length < 10 {
        bail!(corrupt_file, "{length} bytes are too few for an array of NumPy");
    }
    exact(from, &mut start)?;
    if &start[..6] != MAGIC {
        bail!(corrupt_file, "it does not begin as an array of NumPy does (\\x93NUMPY)");
    }
    let (prefix, header_length) = match start[6] {
        1 => {
            let mut n = [0; 2];
            exact(from, &mut n)?;
            (10, usize::from(u16::from_le_bytes(n)))
        }
        2 | 3 => {
            let mut n = [0; 4];
            exact(from, &mut n)?;
            (12, u32::from_le_bytes(n) as usize)
        }
        v => bail!(corrupt_file, "its format has the version {v}.{}; 1 to 3 are known", start[7]),
    };
    if header_length > LONGEST_HEADER || header_length as u64 > length.saturating_sub(prefix) {
        bail!(corrupt_file, "its header's length is {header_length}; the file has {length} bytes and {LONGEST_HEADER} are allowed");
    }
    let mut header = crate::memory::vec_of(0, header_length)?;
    exact(from, &mut header)?;
    let header = Header::parse(&header)?;
    let shape = Shape::from(&header.shape[..]);
    let have = length - prefix - header_length as u64;
    let want = header.raw.bytes(&shape);
    if want != Some(have) {
        let want = want.map_or("more than any memory has".to_owned(), |w| w.to_string());
        bail!(corrupt_file, "an array of shape {shape} needs {want} bytes, but {have} follow the header");
    }
    if !header.fortran {
        return header.raw.read(from, shape, header.big_endian);
    }
    // Column-major is row-major with the axes in reverse.
    let rank = header.shape.len();
    let reversed: Vec<usize> = header.shape.iter().rev().copied().collect();
    let order: Vec<usize> = (0..rank).rev().collect();
    header.raw.read(from, Shape::from(&reversed[..]), header.big_endian)?.permute(&order[..])?.contiguous()
}

fn exact(from: &mut dyn Read, bytes: &mut [u8]) -> Result<()> {
    from.read_exact(bytes).map_err(|e| Error::corrupt_file("it ends inside its header").with_source(e))
}

/// What the header says: a Python dictionary of three entries.
#[derive(Debug)]
struct Header {
    raw: Raw,
    big_endian: bool,
    fortran: bool,
    shape: Vec<usize>,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Header> {
        let text = std::str::from_utf8(bytes).map_err(|e| Error::corrupt_file("its header is not text").with_source(e))?;
        let damaged = |what: &str| Error::corrupt_file(format!("its header {:?} is damaged: {what}", text.trim_end()));
        let (mut kind, mut fortran, mut shape) = (None, None, None);
        let mut p = Literal { rest: text };
        p.symbol("{").ok_or_else(|| damaged("`{` is missing"))?;
        while p.symbol("}").is_none() {
            let key = p.string().ok_or_else(|| damaged("a key is missing"))?;
            p.symbol(":").ok_or_else(|| damaged("`:` is missing"))?;
            let twice = match key {
                "descr" => {
                    if p.peek("[") {
                        bail!(dtype, "its elements are records; a tensor has numbers of one type");
                    }
                    kind.replace(p.string().ok_or_else(|| damaged("`descr` is not a string"))?).is_some()
                }
                "fortran_order" => {
                    let value = if p.symbol("True").is_some() { Some(true) } else { p.symbol("False").map(|()| false) };
                    fortran.replace(value.ok_or_else(|| damaged("`fortran_order` is neither True nor False"))?).is_some()
                }
                "shape" => shape.replace(p.extents().ok_or_else(|| damaged("`shape` is not a tuple of sizes"))?).is_some(),
                other => bail!(corrupt_file, "its header has an unknown key {other:?}"),
            };
            if twice {
                return Err(damaged(&format!("{key:?} occurs twice")));
            }
            if p.symbol(",").is_none() && !p.peek("}") {
                return Err(damaged("`,` or `}` is missing"));
            }
        }
        if !p.rest.trim().is_empty() {
            return Err(damaged("something follows the dictionary"));
        }
        let (Some(kind), Some(fortran), Some(shape)) = (kind, fortran, shape) else {
            return Err(damaged("one of descr, fortran_order and shape is missing"));
        };
        let (raw, big_endian) = type_of(kind)?;
        Ok(Header { raw, big_endian, fortran, shape })
    }
}

/// `<f4` and the like: byte order, kind, bytes.
fn type_of(descr: &str) -> Result<(Raw, bool)> {
    let (big_endian, kind) = match descr.as_bytes() {
        [b'<' | b'|', ..] => (false, &descr[1..]),
        [b'=', ..] => (cfg!(target_endian = "big"), &descr[1..]),
        [b'>', ..] => (true, &descr[1..]),
        _ => (false, descr),
    };
    let raw = match kind {
        "f8" => Raw::F64,
        "f4" => Raw::F32,
        "f2" => Raw::F16,
        "i1" => Raw::I8,
        "i2" => Raw::I16,
        "i4" => Raw::I32,
        "i8" => Raw::I64,
        "u1" => Raw::U8,
        "u2" => Raw::U16,
        "u4" => Raw::U32,
        "u8" => Raw::U64,
        "b1" | "?" => Raw::Bool,
        _ => {
            let what = match kind.as_bytes().first() {
                Some(b'c') => "complex numbers",
                Some(b'O') => "Python objects, which are pickled programs",
                Some(b'U' | b'S') => "texts",
                Some(b'M' | b'm') => "dates or durations",
                Some(b'V') => "raw bytes (bfloat16 of ml_dtypes is stored like that: save it as float32)",
                _ => "of a type that no tensor has",
            };
            bail!(dtype, "its elements are {descr:?}, {what}");
        }
    };
    Ok((raw, big_endian))
}

/// The few literals of Python that a header has.
struct Literal<'a> {
    rest: &'a str,
}

impl<'a> Literal<'a> {
    fn peek(&mut self, symbol: &str) -> bool {
        self.rest = self.rest.trim_start();
        self.rest.starts_with(symbol)
    }

    fn symbol(&mut self, symbol: &str) -> Option<()> {
        if !self.peek(symbol) {
            return None;
        }
        self.rest = &self.rest[symbol.len()..];
        Some(())
    }

    /// A string without escapes.
    fn string(&mut self) -> Option<&'a str> {
        let rest = self.rest.trim_start();
        let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (text, rest) = rest[1..].split_once(quote)?;
        self.rest = rest;
        (!text.contains('\\')).then_some(text)
    }

    /// `()`, `(3,)`, `(2, 3)`; Python 2 wrote long integers with an `L`.
    fn extents(&mut self) -> Option<Vec<usize>> {
        self.symbol("(")?;
        let mut extents = Vec::new();
        while self.symbol(")").is_none() {
            let rest = self.rest.trim_start();
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            extents.push(rest[..end].parse().ok()?);
            self.rest = &rest[end..];
            let _ = self.symbol("L");
            if extents.len() > MOST_AXES || (self.symbol(",").is_none() && !self.peek(")")) {
                return None;
            }
        }
        Some(extents)
    }
}

/// Writes a tensor as `np.save` does, in row-major order; `np.load` reads it. An old file is replaced as
/// [`write_atomically`](crate::io::write_atomically) does it.
///
/// # Errors
/// Dtype error for `bf16`, which NumPy does not have: cast it first; I/O error; out of memory.
#[track_caller]
pub fn save_npy(path: impl AsRef<Path>, x: &Tensor) -> Result<()> {
    let at = Location::caller();
    write(path.as_ref(), x).map_err(|e| e.in_op("save_npy", at))
}

fn write(path: &Path, x: &Tensor) -> Result<()> {
    let descr = match x.dtype() {
        DType::F64 => "<f8",
        DType::F32 => "<f4",
        DType::F16 => "<f2",
        DType::I64 => "<i8",
        DType::U32 => "<u4",
        DType::U8 => "|u1",
        DType::BF16 => bail!(dtype, "NumPy has no bfloat16: cast the tensor to F32 first"),
    };
    let extents: String = x.shape().iter().map(|d| format!("{d}, ")).collect();
    let extents = if x.rank() == 1 { extents.trim_end() } else { extents.trim_end_matches(", ") };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({extents}), }}");
    // Numbers begin at a multiple of 64 bytes, and the header ends with a line.
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 10;
    header.extend(std::iter::repeat_n(' ', padded - header.len() - 1));
    header.push('\n');
    let length = u16::try_from(header.len()).map_err(|e| Error::argument("the tensor has too many axes for the format").with_source(e))?;
    replace(path, |out| {
        let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(|e| failed("write", path, e));
        put(MAGIC)?;
        put(&[1, 0])?;
        put(&length.to_le_bytes())?;
        put(header.as_bytes())?;
        with_dtype!(x.dtype(), T => {
            for part in x.to_vec::<T>()?.chunks(1 << 13) {
                put(&part.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
            }
        });
        Ok(())
    })
}
