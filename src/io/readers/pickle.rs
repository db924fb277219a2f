//! What a checkpoint of PyTorch says about its tensors, out of Python's pickle.
//!
//! A pickle is a program for a stack machine. This one builds lists, dictionaries and the few records that describe tensors; every other
//! class becomes an object without behaviour, so nothing in a file is executed. Values live in one list and name each other by number:
//! nothing is recursive, whatever a file nests.

use super::raw::Raw;
use crate::error::{Error, Result, bail};
use crate::memory;
use std::collections::HashMap;

/// Values that one pickle may make.
const MOST_VALUES: usize = 1 << 24;

/// A value's number.
pub(super) type Id = usize;

#[derive(Debug)]
pub(super) enum Value {
    /// `None`, truth values, floats, bytes: nothing that a tensor's description needs.
    Other,
    Int(i64),
    Text(String),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function by its module and name.
    Global(String),
    /// What a class that is not known here made, with the state that was given to it.
    Object {
        class: String,
        state: Option<Id>,
    },
    Storage {
        key: String,
        raw: Option<Raw>,
        numel: u64,
    },
    Tensor(Box<Described>),
}

/// A tensor: numbers of a storage, under a layout that counts in elements.
#[derive(Debug)]
pub(super) struct Described {
    pub storage: String,
    pub raw: Raw,
    /// Numbers of the storage.
    pub numel: u64,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

impl Value {
    /// A copy, which takes as much memory again.
    fn copy(&self) -> Result<Value> {
        Ok(match self {
            Value::Other => Value::Other,
            Value::Int(n) => Value::Int(*n),
            Value::Text(text) => Value::Text(memory::text(text)?),
            Value::List(items) => Value::List(memory::copied(items)?),
            Value::Dict(items) => Value::Dict(memory::copied(items)?),
            Value::Global(name) => Value::Global(memory::text(name)?),
            Value::Object { class, state } => Value::Object { class: memory::text(class)?, state: *state },
            Value::Storage { key, raw, numel } => Value::Storage { key: memory::text(key)?, raw: *raw, numel: *numel },
            Value::Tensor(t) => Value::Tensor(Box::new(t.copy()?)),
        })
    }
}

impl Described {
    pub fn copy(&self) -> Result<Described> {
        memory::small(size_of::<Described>())?;
        let (shape, strides) = (memory::copied(&self.shape)?, memory::copied(&self.strides)?);
        Ok(Described { storage: memory::text(&self.storage)?, shape, strides, ..*self })
    }
}

fn joined(module: &str, name: &str) -> Result<String> {
    memory::small(module.len() + 1 + name.len())?;
    Ok(format!("{module}.{name}"))
}

pub(super) struct Pickle {
    values: Vec<Value>,
    root: Id,
}

impl Pickle {
    pub fn root(&self) -> Id {
        self.root
    }

    pub fn get(&self, id: Id) -> &Value {
        &self.values[id]
    }

    /// Runs the program.
    ///
    /// # Errors
    /// Corrupt-file error with the byte at which it is not a pickle.
    pub fn parse(bytes: &[u8]) -> Result<Pickle> {
        let mut m = Machine { bytes, at: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        loop {
            let at = m.at;
            match m.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(Pickle { values: m.values, root }),
                Err(e) => return Err(e.about(format_args!("byte {at}"))),
            }
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

fn cut() -> Error {
    Error::corrupt_file("it ends in the middle")
}

fn underflow() -> Error {
    Error::corrupt_file("it takes a value that is not there")
}

impl<'a> Machine<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let taken = self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end)).ok_or_else(cut)?;
        self.at += n;
        Ok(taken)
    }

    /// A little-endian number of up to eight bytes.
    fn number(&mut self, bytes: usize) -> Result<u64> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    fn size(&mut self, bytes: usize) -> Result<usize> {
        usize::try_from(self.number(bytes)?).map_err(|_| cut())
    }

    fn text(&mut self, n: usize) -> Result<String> {
        memory::text_lossy(memory::copied(self.take(n)?)?)
    }

    fn line(&mut self) -> Result<&'a str> {
        let n = self.bytes[self.at..].iter().position(|&b| b == b'\n').ok_or_else(cut)?;
        let line = self.take(n)?;
        self.at += 1;
        std::str::from_utf8(line).map_err(|e| Error::corrupt_file("a line is not text").with_source(e))
    }

    fn push(&mut self, value: Value) -> Result<()> {
        if self.values.len() >= MOST_VALUES {
            bail!(corrupt_file, "it makes more than {MOST_VALUES} values");
        }
        memory::push(&mut self.stack, self.values.len())?;
        memory::push(&mut self.values, value)
    }

    fn pop(&mut self) -> Result<Id> {
        // What is below a mark is not taken before the mark is.
        if self.marks.last().is_some_and(|&m| self.stack.len() <= m) {
            return Err(underflow());
        }
        self.stack.pop().ok_or_else(underflow)
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().ok_or_else(underflow)
    }

    fn since_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(underflow)?;
        if mark > self.stack.len() {
            return Err(underflow());
        }
        let items = memory::copied(&self.stack[mark..])?;
        self.stack.truncate(mark);
        Ok(items)
    }

    fn pop_n(&mut self, n: usize) -> Result<Vec<Id>> {
        let mut popped = memory::try_collect_ok((0..n).map(|_| self.pop()))?;
        popped.reverse();
        Ok(popped)
    }

    fn put(&mut self, key: u64) -> Result<()> {
        let top = self.top()?;
        if self.memo.len() == self.memo.capacity() {
            // The old table stays until the new one, twice as large, is filled.
            memory::ensure((2 * self.memo.len() + 8) * 2 * size_of::<(u64, Id)>())?;
        }
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<()> {
        let id = *self.memo.get(&key).ok_or_else(|| Error::corrupt_file(format!("it recalls value {key}, which it never kept")))?;
        memory::push(&mut self.stack, id)
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        match self.top().map(|id| &mut self.values[id])? {
            Value::List(list) => {
                memory::grow(list, items.len())?;
                list.extend(items);
            }
            // Sets and lists of classes that are not known here.
            Value::Object { .. } | Value::Other => {}
            _ => bail!(corrupt_file, "it appends to what is not a list"),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        match self.top().map(|id| &mut self.values[id])? {
            Value::Dict(dict) => {
                memory::grow(dict, items.len() / 2)?;
                dict.extend(items.as_chunks::<2>().0.iter().map(|&[k, v]| (k, v)));
            }
            Value::Object { .. } => {}
            _ => bail!(corrupt_file, "it sets an item of what is not a dictionary"),
        }
        Ok(())
    }

    fn decimal(&mut self) -> Result<Value> {
        let line = self.line()?;
        Ok(line.trim_end_matches('L').parse().map_or(Value::Other, Value::Int))
    }

    /// An integer of any length; one beyond 64 bits is none that a tensor needs.
    fn long(&mut self, n: usize) -> Result<Value> {
        let bytes = self.take(n)?;
        if n > 8 {
            return Ok(Value::Other);
        }
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut all = [fill; 8];
        all[..n].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(all)))
    }

    /// One instruction; the result when it is the last.
    fn step(&mut self) -> Result<Option<Id>> {
        let op = self.take(1)?[0];
        match op {
            0x80 => {
                let version = self.number(1)?;
                if version > 5 {
                    bail!(corrupt_file, "its protocol is {version}; 0 to 5 are known");
                }
            }
            0x95 => drop(self.take(8)?),
            b'.' => return self.pop().map(Some),
            b'(' => memory::push(&mut self.marks, self.stack.len())?,
            b'0' => drop(self.pop()?),
            b'1' => drop(self.since_mark()?),
            b'2' => {
                let top = self.top()?;
                memory::push(&mut self.stack, top)?;
            }
            b'N' | 0x88 | 0x89 => self.push(Value::Other)?,
            b'I' | b'L' => {
                let value = self.decimal()?;
                self.push(value)?;
            }
            b'J' => {
                let n = self.number(4)? as u32;
                self.push(Value::Int(i64::from(n as i32)))?;
            }
            b'K' | b'M' => {
                let n = self.number(if op == b'K' { 1 } else { 2 })?;
                self.push(Value::Int(n as i64))?;
            }
            0x8a | 0x8b => {
                let n = self.size(if op == 0x8a { 1 } else { 4 })?;
                let value = self.long(n)?;
                self.push(value)?;
            }
            b'F' => {
                self.line()?;
                self.push(Value::Other)?;
            }
            b'G' => {
                self.take(8)?;
                self.push(Value::Other)?;
            }
            b'S' | b'V' => {
                let line = memory::text(self.line()?.trim_matches(['\'', '"']))?;
                self.push(Value::Text(line))?;
            }
            b'U' | 0x8c | b'T' | b'X' | 0x8d => {
                let n = self.size(match op {
                    b'U' | 0x8c => 1,
                    0x8d => 8,
                    _ => 4,
                })?;
                let text = self.text(n)?;
                self.push(Value::Text(text))?;
            }
            b'C' | b'B' | 0x8e | 0x96 => {
                let n = self.size(match op {
                    b'C' => 1,
                    b'B' => 4,
                    _ => 8,
                })?;
                self.take(n)?;
                self.push(Value::Other)?;
            }
            b']' | b')' => self.push(Value::List(Vec::new()))?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            0x8f => self.push(Value::Other)?,
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.since_mark()?;
                self.append(items)?;
            }
            b'l' | b't' | 0x91 => {
                let items = self.since_mark()?;
                self.push(Value::List(items))?;
            }
            0x85..=0x87 => {
                let items = self.pop_n(usize::from(op - 0x84))?;
                self.push(Value::List(items))?;
            }
            b'd' => {
                let items = self.since_mark()?;
                let pairs = memory::try_collect(items.as_chunks::<2>().0.iter().map(|&[k, v]| (k, v)))?;
                self.push(Value::Dict(pairs))?;
            }
            b's' => {
                let items = self.pop_n(2)?;
                self.set_items(&items)?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set_items(&items)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let global = joined(module, name)?;
                self.push(Value::Global(global))?;
            }
            0x93 => {
                let names = self.pop_n(2)?;
                let (Value::Text(module), Value::Text(name)) = (&self.values[names[0]], &self.values[names[1]]) else {
                    bail!(corrupt_file, "a class has no name");
                };
                let global = joined(module, name)?;
                self.push(Value::Global(global))?;
            }
            b'R' | 0x81 => {
                let both = self.pop_n(2)?;
                let value = self.call(both[0], both[1])?;
                self.push(value)?;
            }
            0x92 => {
                let three = self.pop_n(3)?;
                let class = memory::text(self.name(three[0]))?;
                self.push(Value::Object { class, state: None })?;
            }
            b'i' => {
                let class = joined(self.line()?, self.line()?)?;
                self.since_mark()?;
                self.push(Value::Object { class, state: None })?;
            }
            b'o' => {
                let items = self.since_mark()?;
                let class = memory::text(items.first().map_or("", |&c| self.name(c)))?;
                self.push(Value::Object { class, state: None })?;
            }
            b'b' => {
                let given = self.pop()?;
                let top = self.top()?;
                if let Value::Object { state, .. } = &mut self.values[top] {
                    *state = Some(given);
                }
            }
            b'P' => {
                self.line()?;
                bail!(corrupt_file, "it refers to something outside by a text, which PyTorch does not do");
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(storage)?;
            }
            b'p' | b'g' => {
                let key = self.line()?.parse().map_err(|e| Error::corrupt_file("a number is not one").with_source(e))?;
                if op == b'p' { self.put(key)? } else { self.recall(key)? }
            }
            b'q' | b'r' => {
                let key = self.number(if op == b'q' { 1 } else { 4 })?;
                self.put(key)?;
            }
            b'h' | b'j' => {
                let key = self.number(if op == b'h' { 1 } else { 4 })?;
                self.recall(key)?;
            }
            0x94 => self.put(self.memo.len() as u64)?,
            other => bail!(corrupt_file, "{other:#04x} is not an instruction of a pickle"),
        }
        Ok(None)
    }

    fn name(&self, id: Id) -> &str {
        match &self.values[id] {
            Value::Global(name) => name,
            Value::Object { class, .. } => class,
            _ => "something that is not a class",
        }
    }

    fn list(&self, id: Id) -> &[Id] {
        match &self.values[id] {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// What a known function makes of its arguments; an object without behaviour for every other.
    fn call(&self, function: Id, args: Id) -> Result<Value> {
        let class = self.name(function);
        let args = self.list(args);
        Ok(match (class, args) {
            ("collections.OrderedDict", []) => Value::Dict(Vec::new()),
            ("torch.Size" | "builtins.list" | "builtins.tuple", &[items]) => self.values[items].copy()?,
            ("torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor", &[storage, offset, shape, strides, ..]) => {
                self.tensor(storage, None, [offset, shape, strides])?
            }
            // Types that came later say theirs, and lie in a storage of bytes.
            ("torch._utils._rebuild_tensor_v3", &[storage, offset, shape, strides, _, _, dtype, ..]) => {
                self.tensor(storage, Some(dtype), [offset, shape, strides])?
            }
            ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", &[data, ..]) => self.values[data].copy()?,
            ("torch._tensor._rebuild_from_type_v2", &[inner, _, args, ..]) => {
                // Its function is one of those above: another nesting is not followed.
                if self.name(inner) == class {
                    bail!(corrupt_file, "a tensor's type is nested in itself");
                }
                self.call(inner, args)?
            }
            _ => Value::Object { class: memory::text(class)?, state: None },
        })
    }

    fn storage(&self, id: Id) -> Result<Value> {
        let parts = self.list(id);
        let &[tag, kind, key, _, numel, ..] = parts else {
            bail!(corrupt_file, "a storage has {} parts instead of 5", parts.len());
        };
        let (Value::Text(tag), Value::Text(key), Value::Int(numel)) = (&self.values[tag], &self.values[key], &self.values[numel]) else {
            bail!(corrupt_file, "a storage is not described by texts and numbers");
        };
        let (true, Ok(numel)) = (tag == "storage", u64::try_from(*numel)) else {
            bail!(corrupt_file, "a storage is called `{tag}` and has {numel} numbers");
        };
        let raw = raw_of(self.name(kind).trim_start_matches("torch.").trim_end_matches("Storage"));
        Ok(Value::Storage { key: memory::text(key)?, raw, numel })
    }

    fn tensor(&self, storage: Id, dtype: Option<Id>, [offset, shape, strides]: [Id; 3]) -> Result<Value> {
        let Value::Storage { key, raw, numel } = &self.values[storage] else {
            bail!(corrupt_file, "a tensor has no storage");
        };
        let raw = match dtype {
            Some(id) => raw_of(self.name(id).trim_start_matches("torch.")),
            None => *raw,
        };
        let Some(raw) = raw else {
            // Complex and quantised numbers, numbers of 8 bits.
            let class = "a tensor of a type that no tensor here has".to_owned();
            return Ok(Value::Object { class, state: None });
        };
        let size = |id: Id| match self.values[id] {
            Value::Int(n) => usize::try_from(n).map_err(|_| Error::corrupt_file(format!("a tensor's size or offset is {n}"))),
            _ => Err(Error::corrupt_file("a tensor's size or offset is not a number")),
        };
        let sizes = |id: Id| memory::try_collect_ok(self.list(id).iter().map(|&i| size(i)));
        let (offset, shape, strides) = (size(offset)?, sizes(shape)?, sizes(strides)?);
        if shape.len() != strides.len() {
            bail!(corrupt_file, "a tensor has {} extents and {} strides", shape.len(), strides.len());
        }
        // A storage of bytes counts in bytes.
        let numel = if dtype.is_some() { numel / raw.size() as u64 } else { *numel };
        memory::small(size_of::<Described>())?;
        Ok(Value::Tensor(Box::new(Described { storage: memory::text(key)?, raw, numel, offset, shape, strides })))
    }
}

fn raw_of(name: &str) -> Option<Raw> {
    Some(match name {
        "Double" | "float64" => Raw::F64,
        "Float" | "float32" => Raw::F32,
        "Half" | "float16" => Raw::F16,
        "BFloat16" | "bfloat16" => Raw::BF16,
        "Char" | "int8" => Raw::I8,
        "Short" | "int16" => Raw::I16,
        "Int" | "int32" => Raw::I32,
        "Long" | "int64" => Raw::I64,
        "Byte" | "uint8" => Raw::U8,
        "uint16" => Raw::U16,
        "uint32" => Raw::U32,
        "uint64" => Raw::U64,
        "Bool" | "bool" => Raw::Bool,
        _ => return None,
    })
}
