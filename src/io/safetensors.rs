//! Safetensors files: named tensors, with text metadata.
//!
//! The header ([`header`]) is checked by the `safetensors` crate: offsets, sizes and dtypes; this module adds what the crate
//! leaves out: duplicate names, a header that does not begin with `{`, and files that are something else altogether.
//!
//! Tensors are read by position when they are asked for, straight into their memory, by all threads; not through a memory map: their
//! bytes have to be copied into aligned memory in any case (the format does not align them), so a map would save nothing, and it turns
//! a file that is cut short or lost with the network into a signal that ends the process instead of an error.

use super::header::{self, Header, METADATA};
use super::open::zeros;
use super::{failed, open, replace};
use crate::array::Array;
use crate::backend::Device;
use crate::backend::cpu::par::*;
use crate::backend::cpu::{bytes, bytes_mut};
use crate::dtype::{DType, Element, with_dtype};
use crate::error::{Error, Result, bail};
use crate::memory;
use crate::shape::Shape;
use crate::tensor::Tensor;
use ::safetensors::tensor::{Dtype, TensorInfo};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::panic::Location;
use std::path::{Path, PathBuf};

/// Longest header, as in the reference implementation.
const LONGEST_HEADER: u64 = 100_000_000;
/// Bytes read or written at a time.
const PIECE: usize = 1 << 20;
/// Bytes of a tensor that are copied at a time where they are not in order.
const LARGEST_COPY: usize = 1 << 24;
/// The text that holds the CRC-32C of the whole file, in which its own digits count as zeros.
const SEAL: &str = "cotangent.crc32c";
/// What precedes the digits in a header; a text in it would have its quotes escaped.
const BEFORE_SEAL: &str = "\"cotangent.crc32c\":\"";
const NO_SEAL: &str = "00000000";

/// A safetensors file: the header is read and checked at once, tensors when they are asked for.
///
/// ```
/// use cotangent::{io::{TensorFile, save_safetensors}, Tensor};
/// # let folder = std::env::temp_dir().join(format!("cotangent-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// let path = folder.join("two.safetensors");
/// let (a, b) = (Tensor::from_slice(&[1f32, 2.0], [2])?, Tensor::scalar(3i64)?);
/// save_safetensors(&path, [("a", &a), ("b", &b)], &[("made by", "hand")])?;
///
/// let file = TensorFile::open(&path)?;
/// assert_eq!(file.metadata()["made by"], "hand");
/// assert_eq!(file.tensor("a")?.to_vec::<f32>()?, [1.0, 2.0]);
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    /// Where reading moves the file's one position, one reads at a time.
    #[cfg(not(unix))]
    reading: std::sync::Mutex<()>,
    header: Header,
    /// Where the tensors' bytes begin.
    start: u64,
}

impl TensorFile {
    /// Opens a file and checks its header against the length of the file.
    ///
    /// # Errors
    /// I/O error when it cannot be read; corrupt-file error that says what is wrong and where: a header beyond the end of
    /// the file, no JSON, duplicate names, unknown dtypes, tensors that overlap, leave holes or do not end with the file.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let at = std::panic::Location::caller();
        Self::read_header(path.as_ref()).map_err(|e| e.in_op("open", at))
    }

    fn read_header(path: &Path) -> Result<Self> {
        let mut file = open(path)?;
        let length = file.metadata().map_err(|e| failed("read", path, e))?.len();
        let shown = path.display();
        let mut first = [0; 8];
        if length < 8 {
            bail!(corrupt_file, "{shown} has {length} bytes; a safetensors file has at least 8");
        }
        file.read_exact(&mut first).map_err(|e| failed("read", path, e))?;
        let n = u64::from_le_bytes(first);
        if n > LONGEST_HEADER || n > length - 8 {
            let found =
                if n > LONGEST_HEADER { format!("the limit of {LONGEST_HEADER}") } else { format!("the {length} bytes of the file") };
            bail!(corrupt_file, "{shown}: the header's length at byte 0 is {n}, beyond {found}{}", looks_like(first));
        }
        let mut bytes = zeros(n)?;
        file.read_exact(&mut bytes).map_err(|e| failed("read", path, e))?;
        let header = header::parse(&bytes, &shown)?;
        let (have, want) = (length - 8 - n, header.tensors.data_len() as u64);
        if have != want {
            let what = if have < want { "the file is cut short" } else { "something follows the last tensor" };
            bail!(corrupt_file, "{shown}: {what}: the header describes {want} bytes of tensors from byte {} on, there are {have}", 8 + n);
        }
        Ok(TensorFile {
            path: path.to_owned(),
            file,
            #[cfg(not(unix))]
            reading: std::sync::Mutex::new(()),
            header,
            start: 8 + n,
        })
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, in the order of the file.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.header.names.iter().map(String::as_str)
    }

    /// The texts stored beside the tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.texts
    }

    /// Shape of a tensor, without reading it.
    ///
    /// # Errors
    /// Argument error when there is none of that name.
    #[track_caller]
    pub fn shape(&self, name: &str) -> Result<Shape> {
        let at = Location::caller();
        self.info(name).map(|info| Shape::from(&info.shape[..])).map_err(|e| e.in_op("shape", at))
    }

    /// The dtype that a tensor will have, without reading it.
    ///
    /// # Errors
    /// Argument error when there is none of that name; dtype error when tensors here cannot hold its type.
    #[track_caller]
    pub fn dtype(&self, name: &str) -> Result<DType> {
        let at = Location::caller();
        self.dtype_of(name).map_err(|e| e.in_op("dtype", at))
    }

    /// [`TensorFile::dtype`] for callers that name themselves.
    pub(crate) fn dtype_of(&self, name: &str) -> Result<DType> {
        Ok(match self.info(name)?.dtype {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64 | Dtype::U64 => DType::I64,
            Dtype::U16 | Dtype::U32 => DType::U32,
            Dtype::U8 | Dtype::BOOL => DType::U8,
            other => bail!(dtype, "`{name}` in {} is of the type {other:?}, for which there is no dtype", self.path.display()),
        })
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        let found = self.header.tensors.info(name);
        found.ok_or_else(|| {
            let names = memory::some(self.names());
            Error::argument(format!("{} has no tensor `{name}`; it has: {names}", self.path.display()))
        })
    }

    /// [`TensorFile::names`], copied.
    pub(crate) fn all_names(&self) -> Result<Vec<String>> {
        memory::try_collect_ok(self.names().map(memory::text))
    }

    /// Reads a tensor into host memory. Integers that have no dtype here come widened: 8, 16 and 32 bits with sign as `i64`,
    /// 16 bits without as `u32`, 64 bits without as `i64`; truth values as `u8`.
    ///
    /// # Errors
    /// Argument error when there is none of that name; dtype error when its type has no counterpart; corrupt-file error for a
    /// `u64` beyond `i64`; I/O error; out of memory.
    #[track_caller]
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let at = std::panic::Location::caller();
        self.read(name).map_err(|e| e.in_op("tensor", at))
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let (dtype, info) = (self.dtype_of(name)?, self.info(name)?);
        let shape = Shape::from(&info.shape[..]);
        shape.checked_numel()?;
        let begin = self.start + info.data_offsets.0 as u64;
        let array = match info.dtype {
            Dtype::I8 => self.fill(shape, begin, |[b]: [u8; 1]| i64::from(b as i8)),
            Dtype::I16 => self.fill(shape, begin, |b| i64::from(i16::from_le_bytes(b))),
            Dtype::I32 => self.fill(shape, begin, |b| i64::from(i32::from_le_bytes(b))),
            Dtype::U16 => self.fill(shape, begin, |b| u32::from(u16::from_le_bytes(b))),
            Dtype::U64 => {
                let mut largest = 0;
                let array = self.fill(shape, begin, |b| {
                    let x = u64::from_le_bytes(b);
                    largest = largest.max(x);
                    x as i64
                })?;
                if i64::try_from(largest).is_err() {
                    bail!(corrupt_file, "`{name}` in {} holds {largest}, which does not fit i64", self.path.display());
                }
                Ok(array)
            }
            _ if cfg!(target_endian = "little") => with_dtype!(dtype, T => self.copy::<T>(shape, begin)),
            _ => with_dtype!(dtype, T => self.fill(shape, begin, <T>::from_le_bytes)),
        };
        Ok(Tensor::from_array(array?))
    }

    /// An array of `shape` from the bytes at `begin`, `N` to an element.
    fn fill<T: Element, const N: usize>(&self, shape: Shape, begin: u64, mut convert: impl FnMut([u8; N]) -> T) -> Result<Array> {
        let mut result = Ok(());
        let mut bytes = memory::vec_of(0, PIECE.min(shape.checked_numel()?.saturating_mul(N)))?;
        let array = Array::build::<T>(shape, Device::Cpu, |out| {
            result = out.chunks_mut(PIECE / N).enumerate().try_for_each(|(i, piece)| {
                let bytes = &mut bytes[..piece.len() * N];
                self.read_at(begin + (i * PIECE) as u64, bytes)?;
                for (x, b) in piece.iter_mut().zip(bytes.as_chunks::<N>().0) {
                    *x = convert(*b);
                }
                Ok(())
            });
        })?;
        result.map_err(|e| failed("read", &self.path, e))?;
        Ok(array)
    }

    /// The same for elements that are stored as they are in memory, by all threads.
    fn copy<T: Element>(&self, shape: Shape, begin: u64) -> Result<Array> {
        let mut result = Ok(());
        let array = Array::build::<T>(shape, Device::Cpu, |out| {
            let pieces = bytes_mut(out).par_chunks_mut(PIECE).enumerate();
            result = pieces.try_for_each(|(i, piece)| self.read_at(begin + (i * PIECE) as u64, piece));
        })?;
        result.map_err(|e| failed("read", &self.path, e))?;
        Ok(array)
    }

    #[cfg(unix)]
    fn read_at(&self, from: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, from)
    }

    #[cfg(not(unix))]
    fn read_at(&self, from: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        use std::io::{Seek, SeekFrom};
        let _alone = self.reading.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(bytes)
    }

    /// Whether the file is, byte for byte, what [`write_sealed`] wrote.
    ///
    /// # Errors
    /// I/O error; out of memory.
    pub(crate) fn seal(&self) -> Result<Seal> {
        let fail = |e| failed("read", &self.path, e);
        let mut header = zeros(self.start)?;
        self.read_at(0, &mut header).map_err(fail)?;
        let Some(at) = seal_place(&header) else { return Ok(Seal::None) };
        let digits = header[at..at + NO_SEAL.len()].to_vec();
        header[at..at + NO_SEAL.len()].copy_from_slice(NO_SEAL.as_bytes());
        let mut sum = crc32c::crc32c(&header);
        let (mut from, end) = (self.start, self.start + self.header.tensors.data_len() as u64);
        let mut piece = zeros((end - from).min(PIECE as u64))?;
        while from < end {
            let n = piece.len().min((end - from) as usize);
            self.read_at(from, &mut piece[..n]).map_err(fail)?;
            sum = crc32c::crc32c_append(sum, &piece[..n]);
            from += n as u64;
        }
        Ok(if format!("{sum:08x}").as_bytes() == digits { Seal::Whole } else { Seal::Broken })
    }

    /// Reads all tensors.
    ///
    /// # Errors
    /// As [`TensorFile::tensor`].
    #[track_caller]
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let at = std::panic::Location::caller();
        let read = |name: String| Ok((name.clone(), self.read(&name)?));
        let all = || memory::map(self.all_names()?.into_iter().map(read), memory::TENSOR);
        all().map_err(|e: Error| e.in_op("tensors", at))
    }
}

/// What [`TensorFile::seal`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seal {
    /// The file has no checksum of itself.
    None,
    /// It is not what was written.
    Broken,
    /// It is what was written.
    Whole,
}

/// The offset of the digits of the seal.
fn seal_place(header: &[u8]) -> Option<usize> {
    let at = header.windows(BEFORE_SEAL.len()).position(|w| w == BEFORE_SEAL.as_bytes())? + BEFORE_SEAL.len();
    (at + NO_SEAL.len() <= header.len()).then_some(at)
}

/// What a file that begins like this may be.
fn looks_like(first: [u8; 8]) -> &'static str {
    match &first {
        b"version " => ": it looks like a Git LFS pointer, so the file itself is still to be fetched",
        [b'G', b'G', b'U', b'F', ..] => ": it looks like a GGUF file",
        [b'P', b'K', 3, 4, ..] => ": it looks like a zip archive, as PyTorch writes",
        [b'<', ..] => ": it looks like a web page",
        text if text.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) => ": it looks like text, not like a safetensors file",
        _ => ": it is not a safetensors file, or a damaged one",
    }
}

/// Writes named tensors, in the order given, and texts beside them; see [`write_atomically`](crate::io::write_atomically) for what happens to an old file.
///
/// The bytes depend on the arguments alone. Tensors on a device are copied to the host one at a time.
///
/// # Errors
/// Argument error when a name occurs twice or is `__metadata__`, which the format reserves; I/O error; out of memory.
#[track_caller]
pub fn save_safetensors<'a>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: &[(&str, &str)],
) -> Result<()> {
    let at = std::panic::Location::caller();
    let write = || write_tensors(path.as_ref(), &memory::try_collect(tensors)?, metadata);
    write().map_err(|e| e.in_op("save_safetensors", at))
}

pub(crate) fn write_tensors(path: &Path, tensors: &[(&str, &Tensor)], metadata: &[(&str, &str)]) -> Result<()> {
    write(path, tensors, &header(tensors, metadata)?, None)
}

/// [`write_tensors`] with a checksum of the whole file among the texts; [`TensorFile::seal`] compares it.
pub(crate) fn write_sealed(path: &Path, tensors: &[(&str, &Tensor)], metadata: &[(&str, &str)]) -> Result<()> {
    let header = header(tensors, &[metadata, &[(SEAL, NO_SEAL)]].concat())?;
    let Some(place) = seal_place(&header) else { bail!(argument, "the header has no place for its checksum") };
    write(path, tensors, &header, Some(8 + place))
}

fn write(path: &Path, tensors: &[(&str, &Tensor)], header: &[u8], seal: Option<usize>) -> Result<()> {
    replace(path, |out| {
        let mut sum = 0;
        let mut put = |bytes: &[u8]| {
            sum = crc32c::crc32c_append(sum, bytes);
            out.write_all(bytes).map_err(|e| failed("write", path, e))
        };
        put(&(header.len() as u64).to_le_bytes())?;
        put(header)?;
        tensors.iter().try_for_each(|(_, t)| pieces(&t.array, &mut put))?;
        if let Some(at) = seal {
            let written = out.seek(SeekFrom::Start(at as u64)).and_then(|_| write!(out, "{sum:08x}"));
            written.map_err(|e| failed("write", path, e))?;
        }
        Ok(())
    })
}

fn header(tensors: &[(&str, &Tensor)], metadata: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut infos = memory::room(tensors.len())?;
    let mut end = 0usize;
    for (name, t) in tensors {
        if *name == METADATA {
            bail!(argument, "a tensor cannot be called `{METADATA}`: the format reserves the name");
        }
        let dtype = match t.dtype() {
            DType::F64 => Dtype::F64,
            DType::F32 => Dtype::F32,
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            DType::I64 => Dtype::I64,
            DType::U32 => Dtype::U32,
            DType::U8 => Dtype::U8,
        };
        let start = end;
        let bytes = t.numel().checked_mul(t.dtype().size()).and_then(|n| end.checked_add(n));
        end = bytes.ok_or_else(|| Error::out_of_memory(format!("the tensors up to `{name}` have more bytes than can be counted")))?;
        infos.push((*name, dtype, t.shape(), (start, end)));
    }
    // Sorted by name, so that equal content gives equal bytes.
    infos.sort_unstable_by_key(|(name, ..)| *name);
    if let Some(two) = infos.windows(2).find(|two| two[0].0 == two[1].0) {
        bail!(argument, "two tensors are called `{}`", two[0].0);
    }
    // Written an entry at a time: as a table each would be ten pieces of memory that nobody asked for.
    let mut header = String::from("{");
    let mut entry = |name: &str, value: Value| {
        let before = if header.len() > 1 { "," } else { "" };
        [before, &Value::from(name).to_string(), ":", &value.to_string()].iter().try_for_each(|part| memory::append(&mut header, part))
    };
    let mut texts = (!metadata.is_empty()).then(|| metadata.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect::<Map<_, _>>());
    for (name, dtype, shape, data_offsets) in infos {
        if let Some(texts) = texts.take_if(|_| name > METADATA) {
            entry(METADATA, texts.into())?;
        }
        let info = TensorInfo { dtype, shape: shape.dims().to_vec(), data_offsets };
        entry(name, serde_json::to_value(info).map_err(|e| Error::argument("the header cannot be written").with_source(e))?)?;
    }
    if let Some(texts) = texts {
        entry(METADATA, texts.into())?;
    }
    // The tensors begin at a multiple of 8: readers that map the file like that.
    let filling = (header.len() + 1).next_multiple_of(8) - header.len() - 1;
    memory::append(&mut header, &["}", &"       "[..filling]].concat())?;
    let bytes = header.into_bytes();
    if bytes.len() as u64 > LONGEST_HEADER {
        bail!(argument, "{} tensors make a header of {} bytes; {LONGEST_HEADER} are allowed", tensors.len(), bytes.len());
    }
    Ok(bytes)
}

/// Hands the little-endian bytes of the elements, in row-major order, to `put`: from where they lie, where they lie in order; else
/// copied a piece at a time.
fn pieces(x: &Array, put: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let in_order = x.device() == Device::Cpu && x.layout().is_contiguous();
    if !in_order
        && x.numel().saturating_mul(x.dtype().size()) > LARGEST_COPY
        && let Some(axis) = x.shape().iter().position(|&d| d > 1)
    {
        // The axes before it have one element: halves of it are halves of the row-major order.
        let (all, half) = (x.shape()[axis], x.shape()[axis] / 2);
        for (start, length) in [(0, half), (half, all - half)] {
            pieces(&x.with_layout(x.layout().slice(axis, start, length, 1)?)?, put)?;
        }
        return Ok(());
    }
    with_dtype!(x.dtype(), T => {
        if x.device() == Device::Cpu {
            little_endian(&x.cpu()?.contiguous::<T>()?, put)
        } else {
            little_endian(&x.to_vec::<T>()?, put)
        }
    })
}

fn little_endian<T: Element>(values: &[T], put: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    if cfg!(target_endian = "little") {
        return bytes(values).chunks(PIECE).try_for_each(put);
    }
    let mut turned = memory::room(PIECE)?;
    values.chunks(PIECE / size_of::<T>()).try_for_each(|piece| {
        turned.clear();
        piece.iter().for_each(|x| turned.extend(bytes(&[*x]).iter().rev()));
        put(&turned)
    })
}
