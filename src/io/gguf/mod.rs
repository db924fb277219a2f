//! GGUF files: what llama.cpp and its relatives read. Metadata, a tokenizer, tensors in full, half or quantised precision.
//!
//! Files come from strangers. The header is checked whole before anything is believed (`header`), tensors are read by
//! position when they are asked for, as [`TensorFile`](crate::io::TensorFile) does and for the same reasons, and hyper-parameters are validated
//! before a model is made of them ([`GgufFile::config`]).

mod blocks;
mod header;
mod hyper;
mod names;
mod types;
mod value;
mod vocabulary;

pub use types::GgufType;
pub use value::{GgufArray, GgufValue};
pub use vocabulary::GgufTokenizer;

use super::failed;
use crate::array::Array;
use crate::backend::cpu::par::*;
use crate::backend::cpu::simd::dispatch;
use crate::backend::{Device, cpu::Compute, cpu::Real};
use crate::dtype::{DType, with_float};
use crate::error::{Error, Result};
use crate::shape::Shape;
use crate::tensor::Tensor;
use blocks::PIECE;
use header::{Entry, Header};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Elements read at a time: enough for every thread, little beside a tensor.
const STRETCH: usize = 256 * PIECE;

/// A GGUF file: the header is read and checked at once, tensors when they are asked for.
///
/// Shapes are in this crate's order, outermost axis first; files have them the other way round.
///
/// ```no_run
/// use cotangent::{io::GgufFile, BF16};
/// let file = GgufFile::open("qwen2.5-0.5b-q4_k_m.gguf")?;
/// println!("{:?}", file.config()?);
/// for name in file.names() {
///     println!("{name}: {} {}", file.kind(name)?, file.shape(name)?);
/// }
/// let weight = file.tensor("blk.0.attn_q.weight", BF16)?; // dequantized
/// let same = file.hf_tensor("model.layers.0.self_attn.q_proj.weight", BF16)?; // by its Hugging Face name
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    source: Source,
    header: Header,
    index: BTreeMap<String, usize>,
}

/// Where bytes come from.
enum Source {
    // Reading moves the file's one position.
    File(Mutex<File>),
    Memory(Vec<u8>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::File(_) => f.write_str("a file"),
            Source::Memory(bytes) => write!(f, "{} bytes", bytes.len()),
        }
    }
}

impl GgufFile {
    /// Opens a file of version 2 or 3 and checks its header against the length of the file.
    ///
    /// # Errors
    /// I/O error when it cannot be read; corrupt-file error that says what is wrong and where: another format or version,
    /// counts and lengths beyond the end of the file, keys or names that occur twice or are not UTF-8, tensors that overlap
    /// or reach beyond the end. What is allocated is at most a few times the length of the header, which is at most 256 MiB.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let at = Location::caller();
        Self::open_at(path.as_ref()).map_err(|e| e.in_op("open", at))
    }

    fn open_at(path: &Path) -> Result<Self> {
        let mut file = super::open(path)?;
        let about = file.metadata().map_err(|e| failed("read", path, e))?;
        let header = header::parse(BufReader::with_capacity(1 << 20, &mut file), about.len());
        Self::with(path, header, Source::File(Mutex::new(file)))
    }

    /// Takes the bytes of a whole file.
    ///
    /// # Errors
    /// Corrupt-file error, as [`GgufFile::open`].
    #[track_caller]
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let at = Location::caller();
        let header = header::parse(&bytes[..], bytes.len() as u64);
        Self::with(Path::new("GGUF bytes"), header, Source::Memory(bytes)).map_err(|e| e.in_op("from_bytes", at))
    }

    fn with(path: &Path, header: Result<Header>, source: Source) -> Result<Self> {
        let header = header.map_err(|e| e.about(path.display()))?;
        let index = crate::memory::map(header.tensors.iter().enumerate().map(|(i, t)| Ok((crate::memory::text(&t.name)?, i))), 0)?;
        Ok(GgufFile { path: path.to_owned(), source, header, index })
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// All metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, GgufValue> {
        &self.header.metadata
    }

    /// Names of all tensors, in the order of the file.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.header.tensors.iter().map(|t| t.name.as_str())
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Shape of a tensor, without reading it.
    ///
    /// # Errors
    /// Argument error when there is none of that name.
    #[track_caller]
    pub fn shape(&self, name: &str) -> Result<Shape> {
        let at = Location::caller();
        self.entry(name).map(|e| Shape::from(&e.shape[..])).map_err(|e| e.in_op("shape", at))
    }

    /// How a tensor is stored.
    ///
    /// # Errors
    /// Argument error when there is none of that name.
    #[track_caller]
    pub fn kind(&self, name: &str) -> Result<GgufType> {
        let at = Location::caller();
        self.entry(name).map(|e| e.kind).map_err(|e| e.in_op("kind", at))
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let entry = self.index.get(name).and_then(|&i| self.header.tensors.get(i));
        entry.ok_or_else(|| Error::argument(format!("{} has no tensor `{name}`; it has {}", self.path.display(), self.some_names())))
    }

    /// The first names: a file has hundreds.
    fn some_names(&self) -> String {
        if self.names().len() == 0 { "none".to_owned() } else { crate::memory::some(self.names()) }
    }

    /// Reads a tensor into host memory, as `dtype`: quantised values are computed in `f32`, as the reference does, and rounded
    /// once. Integers and `f64` are read too, if `dtype` is `i64` and `f64`, respectively.
    ///
    /// # Errors
    /// Argument error when there is none of that name; dtype error when its type is one that is not decoded here, or `dtype`
    /// does not fit it; I/O error; out of memory.
    #[track_caller]
    pub fn tensor(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let at = Location::caller();
        self.read(name, dtype).map_err(|e| e.in_op("tensor", at))
    }

    fn read(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let t = self.entry(name)?;
        let unfit = || Error::dtype(format!("`{name}` in {} is stored as {}, which is not read as {dtype}", self.path.display(), t.kind));
        let array = match t.kind {
            GgufType::I8 if dtype == DType::I64 => self.convert(t, |[b]: [u8; 1]| i64::from(b as i8)),
            GgufType::I16 if dtype == DType::I64 => self.convert(t, |b| i64::from(i16::from_le_bytes(b))),
            GgufType::I32 if dtype == DType::I64 => self.convert(t, |b| i64::from(i32::from_le_bytes(b))),
            GgufType::I64 if dtype == DType::I64 => self.convert(t, i64::from_le_bytes),
            GgufType::F64 if dtype == DType::F64 => self.convert(t, f64::from_le_bytes),
            kind if blocks::is_decoded(kind) && dtype.is_float() => with_float!(dtype, T => self.decode::<T>(t)),
            _ => return Err(unfit()),
        };
        Ok(Tensor::from_array(array?))
    }

    /// Hands a tensor's bytes over in stretches, with the elements to fill.
    fn stretches<T: crate::dtype::Element>(&self, t: &Entry, mut fill: impl FnMut(&[u8], &mut [T])) -> Result<Array> {
        let mut result = Ok(());
        let (shape, size) = (Shape::from(&t.shape[..]), |elements: usize| elements / t.kind.block() * t.kind.bytes());
        let mut bytes = crate::memory::vec_of(0, size(STRETCH.min(shape.checked_numel()?)))?;
        let array = Array::build::<T>(shape, Device::Cpu, |out| {
            let mut at = t.begin;
            for y in out.chunks_mut(STRETCH) {
                let bytes = &mut bytes[..size(y.len())];
                result = self.read_at(at, bytes);
                if result.is_err() {
                    return;
                }
                fill(bytes, y);
                at += bytes.len() as u64;
            }
        })?;
        result.map_err(|e| failed("read", &self.path, e))?;
        Ok(array)
    }

    fn convert<T: crate::dtype::Element, const N: usize>(&self, t: &Entry, convert: impl Fn([u8; N]) -> T) -> Result<Array> {
        self.stretches(t, |bytes, y: &mut [T]| {
            for (y, b) in y.iter_mut().zip(bytes.as_chunks::<N>().0) {
                *y = convert(*b);
            }
        })
    }

    fn decode<T: Compute>(&self, t: &Entry) -> Result<Array> {
        let piece = PIECE / t.kind.block() * t.kind.bytes();
        self.stretches(t, |bytes, y: &mut [T]| {
            y.par_chunks_mut(PIECE).zip(bytes.par_chunks(piece)).for_each(|(y, x)| {
                dispatch(
                    #[inline(always)]
                    || {
                        let mut values = [0f32; PIECE];
                        let values = &mut values[..y.len()];
                        blocks::decode(t.kind, x, values);
                        for (y, v) in y.iter_mut().zip(values) {
                            *y = T::store(<T::Acc as Real>::from_f64(f64::from(*v)));
                        }
                    },
                );
            });
        })
    }

    fn read_at(&self, begin: u64, out: &mut [u8]) -> std::io::Result<()> {
        match &self.source {
            Source::File(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(begin))?;
                file.read_exact(out)
            }
            Source::Memory(bytes) => {
                let mut rest = usize::try_from(begin).ok().and_then(|b| bytes.get(b..)).unwrap_or_default();
                rest.read_exact(out)
            }
        }
    }

    /// Reads all tensors, by their names in the file.
    ///
    /// # Errors
    /// As [`GgufFile::tensor`].
    #[track_caller]
    pub fn tensors(&self, dtype: DType) -> Result<BTreeMap<String, Tensor>> {
        let at = Location::caller();
        let read = |name: &str| Ok((name.to_owned(), self.read(name, dtype)?));
        crate::memory::map(self.names().map(read), crate::memory::TENSOR).map_err(|e: Error| e.in_op("tensors", at))
    }
}
