//! The part of a file before the tensors' bytes, read with the assumption that every number in it is a lie.
//!
//! No count or length is believed before the bytes it speaks of are known to be there, so what is allocated is at most a few
//! times what was read; nesting is bounded; sums and products are checked.

use super::types::GgufType;
use super::value::{GgufArray, GgufValue};
use crate::error::Error;
use crate::memory;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

/// Longest header, metadata and table of tensors together. Those of real models are below 40 MB, nearly all of it tokens.
const LONGEST_HEADER: u64 = 1 << 28;
/// Lists in lists, at most; no writer is known to go beyond 1.
const DEEPEST: usize = 4;
/// Longest key and longest name of a tensor, as the format sets them.
const LONGEST_KEY: u64 = 65_535;
const LONGEST_NAME: u64 = 64;
const MOST_AXES: u32 = 4;
const ALIGNMENT: &str = "general.alignment";

/// One row of the table of tensors.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub name: String,
    pub kind: GgufType,
    /// Outermost first, as tensors here have them; files have the innermost first.
    pub shape: Vec<usize>,
    /// Where its bytes begin in the file.
    pub begin: u64,
    pub bytes: u64,
}

#[derive(Debug)]
pub(super) struct Header {
    pub version: u32,
    pub metadata: BTreeMap<String, GgufValue>,
    pub tensors: Vec<Entry>,
}

/// Reads and checks the header of a file of `length` bytes.
///
/// # Errors
/// Corrupt-file error that says where; out of memory.
pub(super) fn parse(source: impl Read, length: u64) -> crate::Result<Header> {
    let about = "the header".to_owned();
    let mut from = Cursor { source, at: 0, end: length.min(LONGEST_HEADER), length, about, refused: None };
    header(&mut from).map_err(|why| from.refused.take().unwrap_or_else(|| Error::corrupt_file(why)))
}

/// What is wrong comes as a text that says where.
fn header(from: &mut Cursor<impl Read>) -> Result<Header, String> {
    let magic: [u8; 4] = from.bytes()?;
    if &magic != b"GGUF" {
        let what = match &magic {
            b"FUGG" => ": it is a big-endian file",
            b"vers" => ": it looks like a Git LFS pointer, so the file itself is still to be fetched",
            [b'<', ..] => ": it looks like a web page",
            [b'P', b'K', 3, 4] => ": it looks like a zip archive, as PyTorch writes",
            b"ggml" | b"ggjt" | b"ggmf" | b"lmgg" | b"tjgg" | b"fmgg" => ": it is of a format older than GGUF",
            _ => "",
        };
        return Err(format!("does not begin with `GGUF` but with `{}`{what}", magic.escape_ascii()));
    }
    let version = from.u32()?;
    if version.swap_bytes() == 2 || version.swap_bytes() == 3 {
        return Err(format!("version {} at byte 4 has its bytes reversed: it is a big-endian file", version.swap_bytes()));
    }
    if !(2..=3).contains(&version) {
        return Err(format!("version {version} at byte 4: versions 2 and 3 are read here"));
    }
    let (tensors, pairs) = (from.u64()?, from.u64()?);
    // A pair has at least 13 bytes (8 + 1 of key, 4 of type) and a row of the table 24.
    from.expect(tensors, 24, "tensors")?;
    from.expect(pairs, 13, "metadata values")?;
    let metadata = metadata(from, pairs)?;
    let alignment = alignment(&metadata)?;
    let mut table = table(from, tensors)?;
    let start = from.at.next_multiple_of(alignment);
    place(&mut table, start, alignment, from)?;
    Ok(Header { version, metadata, tensors: table })
}

fn metadata(from: &mut Cursor<impl Read>, pairs: u64) -> Result<BTreeMap<String, GgufValue>, String> {
    let mut out = BTreeMap::new();
    for i in 0..pairs {
        from.about = format!("key {i} of {pairs}");
        let begin = from.at;
        let key = from.string(LONGEST_KEY)?;
        if key.is_empty() {
            return Err(format!("key {i} at byte {begin} is empty"));
        }
        from.about = format!("the value of `{}`", shorten(&key));
        let kind = from.u32()?;
        let value = value(from, kind)?;
        if out.contains_key(&key) {
            return Err(format!("the key `{}` at byte {begin} occurs twice", shorten(&key)));
        }
        // Nodes are at least half full.
        from.asked(memory::small(2 * size_of::<(String, GgufValue)>()))?;
        out.insert(key, value);
    }
    Ok(out)
}

fn value(from: &mut Cursor<impl Read>, kind: u32) -> Result<GgufValue, String> {
    Ok(match kind {
        0 => GgufValue::U8(u8::from_le_bytes(from.bytes()?)),
        1 => GgufValue::I8(i8::from_le_bytes(from.bytes()?)),
        2 => GgufValue::U16(u16::from_le_bytes(from.bytes()?)),
        3 => GgufValue::I16(i16::from_le_bytes(from.bytes()?)),
        4 => GgufValue::U32(from.u32()?),
        5 => GgufValue::I32(i32::from_le_bytes(from.bytes()?)),
        6 => GgufValue::F32(f32::from_le_bytes(from.bytes()?)),
        7 => GgufValue::Bool(from.bool()?),
        8 => GgufValue::String(from.string(u64::MAX)?),
        9 => GgufValue::Array(array(from, 1)?),
        10 => GgufValue::U64(from.u64()?),
        11 => GgufValue::I64(i64::from_le_bytes(from.bytes()?)),
        12 => GgufValue::F64(f64::from_le_bytes(from.bytes()?)),
        _ => return Err(format!("{} has the unknown type {kind}, before byte {}", from.about, from.at)),
    })
}

fn array(from: &mut Cursor<impl Read>, depth: usize) -> Result<GgufArray, String> {
    if depth > DEEPEST {
        return Err(format!("{}: lists are nested deeper than {DEEPEST} at byte {}", from.about, from.at));
    }
    let (kind, n) = (from.u32()?, from.u64()?);
    Ok(match kind {
        0 => GgufArray::U8(from.numbers(n, u8::from_le_bytes)?),
        1 => GgufArray::I8(from.numbers(n, i8::from_le_bytes)?),
        2 => GgufArray::U16(from.numbers(n, u16::from_le_bytes)?),
        3 => GgufArray::I16(from.numbers(n, i16::from_le_bytes)?),
        4 => GgufArray::U32(from.numbers(n, u32::from_le_bytes)?),
        5 => GgufArray::I32(from.numbers(n, i32::from_le_bytes)?),
        6 => GgufArray::F32(from.numbers(n, f32::from_le_bytes)?),
        7 => GgufArray::Bool(from.list(n, 1, Cursor::bool)?),
        8 => GgufArray::String(from.list(n, 8, |from| from.string(u64::MAX))?),
        9 => GgufArray::Array(from.list(n, 12, |from| array(from, depth + 1))?),
        10 => GgufArray::U64(from.numbers(n, u64::from_le_bytes)?),
        11 => GgufArray::I64(from.numbers(n, i64::from_le_bytes)?),
        12 => GgufArray::F64(from.numbers(n, f64::from_le_bytes)?),
        _ => return Err(format!("{} is a list of the unknown type {kind}, before byte {}", from.about, from.at)),
    })
}

fn alignment(metadata: &BTreeMap<String, GgufValue>) -> Result<u64, String> {
    match metadata.get(ALIGNMENT) {
        None => Ok(32),
        Some(GgufValue::U32(n)) if n.is_power_of_two() => Ok(u64::from(*n)),
        Some(GgufValue::U32(n)) => Err(format!("`{ALIGNMENT}` is {n}, not a power of two")),
        Some(other) => Err(format!("`{ALIGNMENT}` is of the type {}, not U32", other.type_name())),
    }
}

/// The table; offsets still count from the first tensor's byte.
fn table(from: &mut Cursor<impl Read>, tensors: u64) -> Result<Vec<Entry>, String> {
    let mut out: Vec<Entry> = Vec::new();
    let mut names = BTreeSet::new();
    for i in 0..tensors {
        from.about = format!("the name of tensor {i} of {tensors}");
        let begin = from.at;
        let name = from.string(LONGEST_NAME)?;
        from.asked(memory::small(2 * size_of::<String>() + name.len()))?;
        if !names.insert(name.clone()) {
            return Err(format!("the tensor `{name}` at byte {begin} occurs twice"));
        }
        from.about = format!("tensor `{name}`");
        let axes = from.u32()?;
        if axes > MOST_AXES {
            return Err(format!("tensor `{name}` has {axes} axes, before byte {}; {MOST_AXES} are allowed", from.at));
        }
        let mut extents = Vec::new();
        for _ in 0..axes {
            extents.push(from.u64()?);
        }
        let id = from.u32()?;
        let Some(kind) = GgufType::from_id(id) else {
            return Err(format!("tensor `{name}` has the unknown type {id}, before byte {}", from.at));
        };
        let offset = from.u64()?;
        let row = extents.first().copied().unwrap_or(1);
        if row % kind.block() as u64 != 0 {
            return Err(format!(
                "tensor `{name}` has rows of {row} elements, which are not whole blocks of {kind} ({} elements)",
                kind.block()
            ));
        }
        // As signed numbers too: that is how the reference counts, and no file has more.
        let elements = extents.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|&n| i64::try_from(n).is_ok());
        let bytes = elements.and_then(|n| (n / kind.block() as u64).checked_mul(kind.bytes() as u64));
        let shape: Option<Vec<usize>> = extents.iter().rev().map(|&d| usize::try_from(d).ok()).collect();
        let (Some(bytes), Some(shape)) = (bytes, shape) else {
            return Err(format!("tensor `{name}`: the extents {extents:?} are more elements than can be"));
        };
        from.asked(memory::small(shape.len() * size_of::<usize>()))?;
        from.asked(memory::push(&mut out, Entry { name, kind, shape, begin: offset, bytes }))?;
    }
    Ok(out)
}

/// Turns offsets into places in the file, and checks that each tensor has its own.
fn place(table: &mut [Entry], start: u64, alignment: u64, from: &mut Cursor<impl Read>) -> Result<(), String> {
    let length = from.length;
    for t in table.iter_mut() {
        if t.begin % alignment != 0 {
            return Err(format!("tensor `{}` is at offset {}, no multiple of the alignment {alignment}", t.name, t.begin));
        }
        match start.checked_add(t.begin).and_then(|b| Some((b, b.checked_add(t.bytes)?))) {
            Some((begin, end)) if end <= length => t.begin = begin,
            _ => {
                let (offset, bytes) = (t.begin, t.bytes);
                return Err(format!(
                    "tensor `{}` needs {bytes} bytes at offset {offset} from byte {start} on; the file has {length} bytes",
                    t.name
                ));
            }
        }
    }
    let mut order: Vec<&Entry> = from.asked(memory::try_collect(table.iter().filter(|t| t.bytes > 0)))?;
    order.sort_unstable_by_key(|t| t.begin);
    for pair in order.windows(2) {
        if pair[0].begin + pair[0].bytes > pair[1].begin {
            return Err(format!("the tensors `{}` and `{}` overlap at byte {}", pair[0].name, pair[1].name, pair[1].begin));
        }
    }
    Ok(())
}

/// A key as messages show it.
fn shorten(key: &str) -> String {
    match key.char_indices().nth(64) {
        Some((i, _)) => format!("{}…", &key[..i]),
        None => key.to_owned(),
    }
}

/// Reads forwards, never beyond the end, and knows what it reads.
struct Cursor<R> {
    source: R,
    at: u64,
    /// Where the header must end.
    end: u64,
    /// Of the file.
    length: u64,
    /// What is being read, for messages.
    about: String,
    /// Why there was no memory for it.
    refused: Option<Error>,
}

impl<R: Read> Cursor<R> {
    /// Fails unless `n` things of at least `size` bytes each can still follow.
    fn expect(&self, n: u64, size: u64, what: &str) -> Result<(), String> {
        let left = self.end - self.at;
        if n.checked_mul(size).is_some_and(|bytes| bytes <= left) {
            return Ok(());
        }
        let limit = if self.end < self.length {
            format!("the limit of {} bytes for a header", self.end)
        } else {
            format!("the {} bytes of the file", self.length)
        };
        Err(format!("{} at byte {} announces {n} {what}, beyond {limit}", self.about, self.at))
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), String> {
        self.expect(out.len() as u64, 1, "bytes")?;
        self.source.read_exact(out).map_err(|e| format!("{} at byte {} cannot be read: {e}", self.about, self.at))?;
        self.at += out.len() as u64;
        Ok(())
    }

    /// Keeps why memory was refused.
    fn asked<T>(&mut self, asked: crate::Result<T>) -> Result<T, String> {
        asked.map_err(|e| {
            self.refused = Some(e);
            String::new()
        })
    }

    fn zeros(&mut self, n: u64) -> Result<Vec<u8>, String> {
        self.asked(memory::vec_of(0, usize::try_from(n).unwrap_or(usize::MAX)))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn bool(&mut self) -> Result<bool, String> {
        match self.bytes()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(format!("{} at byte {} is {other}, no truth value", self.about, self.at - 1)),
        }
    }

    fn string(&mut self, longest: u64) -> Result<String, String> {
        let n = self.u64()?;
        if n > longest {
            return Err(format!("{} at byte {} has {n} bytes; {longest} are allowed", self.about, self.at));
        }
        self.expect(n, 1, "bytes of text")?;
        let mut out = self.zeros(n)?;
        self.fill(&mut out)?;
        String::from_utf8(out)
            .map_err(|e| format!("{} is not UTF-8 at byte {}", self.about, self.at - n + e.utf8_error().valid_up_to() as u64))
    }

    fn numbers<T, const N: usize>(&mut self, n: u64, convert: fn([u8; N]) -> T) -> Result<Vec<T>, String> {
        self.expect(n, N as u64, "numbers")?;
        let mut bytes = self.zeros(n.saturating_mul(N as u64))?;
        self.fill(&mut bytes)?;
        self.asked(memory::try_collect(bytes.as_chunks::<N>().0.iter().map(|b| convert(*b))))
    }

    /// `n` things of at least `size` bytes each. The list grows as they come.
    fn list<T>(&mut self, n: u64, size: u64, mut read: impl FnMut(&mut Self) -> Result<T, String>) -> Result<Vec<T>, String> {
        self.expect(n, size, "list items")?;
        let mut out = Vec::new();
        for _ in 0..n {
            let item = read(self)?;
            self.asked(memory::push(&mut out, item))?;
        }
        Ok(out)
    }
}
