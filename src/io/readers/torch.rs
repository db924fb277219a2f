//! PyTorch's `.pt`, `.pth`, `.bin` and `.ckpt`: the tensors of a checkpoint.

use super::archive::Archive;
use super::open_regular;
use super::pickle::{Described, Id, Pickle, Value};
use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::layout::Layout;
use crate::memory;
use crate::shape::Shape;
use crate::tensor::Tensor;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::panic::Location;
use std::path::Path;

/// Bytes of the description of all tensors, at most.
const LONGEST_DESCRIPTION: u64 = 1 << 28;
/// Containers in one another, and values that a name may lead to: more is no checkpoint but an attack.
const DEEPEST: usize = 64;
const MOST_VISITS: usize = 1 << 22;
/// How the format of PyTorch before 1.6 begins.
const LEGACY: &[u8; 14] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// The tensors that `torch.save` wrote: described at once, read when they are asked for. Nothing in the file is executed.
///
/// Names are the keys that lead to a tensor, joined by dots: of `{"model": net.state_dict(), "step": 3}` the tensors are
/// `model.fc.weight` and so on. Of a whole module (`torch.save(net)`) they are those of its `state_dict`. Numbers that are no tensors,
/// and objects of other classes, are passed over: see [`TorchFile::passed_over`]. Types as in [`read_npy`](super::read_npy).
///
/// ```no_run
/// use cotangent::{Module, io::TorchFile, nn::Linear};
/// # fn fit(mut net: Linear) -> cotangent::Result<()> {
/// let file = TorchFile::open("net.pt")?;
/// println!("{:?}, without {:?}", file.names().collect::<Vec<_>>(), file.passed_over());
/// net.load_named(&file.tensors()?)?;
/// # Ok(())
/// # }
/// ```
pub struct TorchFile {
    archive: Archive,
    /// The folder in the archive that has everything, with its slash.
    root: String,
    big_endian: bool,
    tensors: BTreeMap<String, Described>,
    passed_over: Vec<(String, String)>,
}

impl fmt::Debug for TorchFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TorchFile").field("path", &self.archive.path()).field("names", &self.tensors.keys()).finish()
    }
}

impl TorchFile {
    /// Opens a file and reads the description of its tensors.
    ///
    /// # Errors
    /// I/O error when it cannot be read or is not a regular file; corrupt-file error when it is not of the format (that of PyTorch 1.6 and later), or a
    /// tensor is not inside its storage.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let at = Location::caller();
        Self::describe(path.as_ref()).map_err(|e| crate::io::at_callers_line(e, "open", at))
    }

    fn describe(path: &Path) -> Result<Self> {
        let (mut file, _) = open_regular(path)?;
        let mut start = [0; LEGACY.len()];
        if file.read_exact(&mut start).is_ok() && &start == LEGACY {
            let again = "write it anew in Python: torch.save(torch.load(file, weights_only=True), file)";
            bail!(corrupt_file, "{}: it is in the format of PyTorch before 1.6; {again}", path.display());
        }
        let archive = Archive::open(path)?;
        let Some(root) = archive.names().find_map(|n| n.strip_suffix("data.pkl").filter(|r| r.is_empty() || r.ends_with('/'))) else {
            bail!(corrupt_file, "{}: it is a zip archive, but without the `data.pkl` of PyTorch", path.display());
        };
        let root = root.to_owned();
        let pickle = archive.entry(&format!("{root}data.pkl"), true, |from, size| {
            if size > LONGEST_DESCRIPTION {
                bail!(corrupt_file, "its {size} bytes are more than the limit of {LONGEST_DESCRIPTION}");
            }
            // A byte more: to find the end.
            let mut bytes = memory::room(size as usize + 1)?;
            from.take(size).read_to_end(&mut bytes).map_err(|e| Error::corrupt_file("it is damaged").with_source(e))?;
            Pickle::parse(&bytes)
        })?;
        let order = format!("{root}byteorder");
        let big_endian = archive.size(&order).is_some()
            && archive.entry(&order, true, |from, _| {
                let mut text = String::new();
                from.take(16).read_to_string(&mut text).map_err(|e| Error::corrupt_file("it is not text").with_source(e))?;
                match text.trim() {
                    "little" => Ok(false),
                    "big" => Ok(true),
                    other => bail!(corrupt_file, "{other:?} is not a byte order"),
                }
            })?;
        let mut file = TorchFile { archive, root, big_endian, tensors: BTreeMap::new(), passed_over: Vec::new() };
        let mut walk = Walk { pickle: &pickle, file: &mut file, visits: 0 };
        walk.visit(pickle.root()).map_err(|e| e.about(path.display()))?;
        for (name, t) in &file.tensors {
            file.check(t).map_err(|e| e.about(format_args!("{}: `{name}`", path.display())))?;
        }
        Ok(file)
    }

    /// That a tensor is inside its storage, and the storage in the archive.
    fn check(&self, t: &Described) -> Result<()> {
        let entry = self.entry_of(t);
        let Some(size) = self.archive.size(&entry) else { bail!(corrupt_file, "its storage `{entry}` is missing") };
        let fits = t.numel.checked_mul(t.raw.size() as u64).is_some_and(|bytes| bytes <= size);
        let inside = span(t).and_then(|n| n.checked_add(t.offset)).is_some_and(|end| end as u64 <= t.numel);
        if !fits || !inside {
            let (shape, strides) = (Shape::from(&t.shape[..]), &t.strides);
            bail!(
                corrupt_file,
                "shape {shape}, strides {strides:?} and offset {} reach outside the storage of {} numbers ({size} bytes)",
                t.offset,
                t.numel
            );
        }
        Ok(())
    }

    fn entry_of(&self, t: &Described) -> String {
        format!("{}data/{}", self.root, t.storage)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Names of what is no tensor that this crate has (objects of classes, sparse and quantised tensors), and what it is.
    pub fn passed_over(&self) -> &[(String, String)] {
        &self.passed_over
    }

    fn described(&self, name: &str) -> Result<&Described> {
        let found = self.tensors.get(name);
        found.ok_or_else(|| {
            let names = memory::some(self.names());
            Error::argument(format!("{} has no tensor `{name}`; it has: {names}", self.archive.path().display()))
        })
    }

    /// Shape of a tensor, without reading it.
    ///
    /// # Errors
    /// Argument error when there is none of that name.
    #[track_caller]
    pub fn shape(&self, name: &str) -> Result<Shape> {
        let at = Location::caller();
        self.described(name).map(|d| Shape::from(&d.shape[..])).map_err(|e| e.in_op("shape", at))
    }

    /// The dtype that a tensor will have, without reading it.
    ///
    /// # Errors
    /// Argument error when there is none of that name.
    #[track_caller]
    pub fn dtype(&self, name: &str) -> Result<DType> {
        let at = Location::caller();
        self.described(name).map(|d| d.raw.dtype()).map_err(|e| e.in_op("dtype", at))
    }

    /// Reads a tensor.
    ///
    /// # Errors
    /// Argument error when there is none of that name; I/O error; corrupt-file error for a number beyond `i64` or a storage that is
    /// damaged; out of memory.
    #[track_caller]
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let at = Location::caller();
        self.read(name).map_err(|e| crate::io::at_callers_line(e, "tensor", at))
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let t = self.described(name)?;
        let shape = Shape::from(&t.shape[..]);
        let Some(span) = span(t) else { bail!(corrupt_file, "`{name}` has no size") };
        // Of a storage that is shared, the part from this tensor's first number to its last.
        let whole = t.offset == 0 && Some(span as u64) == self.archive.size(&self.entry_of(t)).map(|s| s / t.raw.size() as u64);
        let stored = self.archive.entry(&self.entry_of(t), whole, |from, _| {
            let skip = (t.offset * t.raw.size()) as u64;
            let skipped = std::io::copy(&mut from.take(skip), &mut std::io::sink());
            if skipped.map_err(|e| Error::io("a storage cannot be read").with_source(e))? != skip {
                bail!(corrupt_file, "it ends before the tensor");
            }
            t.raw.read(from, [span].into(), self.big_endian)
        })?;
        let layout = Layout::from_parts(shape, t.strides.iter().copied().collect(), 0)?;
        Tensor::from_array(stored.array.with_layout(layout)?).contiguous()
    }

    /// Reads all tensors.
    ///
    /// # Errors
    /// As [`TorchFile::tensor`].
    #[track_caller]
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let at = Location::caller();
        let read = |name: &str| Ok((name.to_owned(), self.read(name)?));
        memory::map(self.names().map(read), memory::TENSOR).map_err(|e| crate::io::at_callers_line(e, "tensors", at))
    }
}

/// Numbers from a tensor's first to its last; 0 without elements, `None` beyond any memory.
fn span(t: &Described) -> Option<usize> {
    if t.shape.contains(&0) {
        return Some(0);
    }
    t.shape.iter().zip(&t.strides).try_fold(1usize, |n, (&extent, &stride)| n.checked_add((extent - 1).checked_mul(stride)?))
}

/// Goes through the containers of a checkpoint, without recursion.
struct Walk<'a> {
    pickle: &'a Pickle,
    file: &'a mut TorchFile,
    visits: usize,
}

/// A value to look at: its name, its number, the containers around it, and whether the last of them is an object.
struct Place {
    name: String,
    id: Id,
    around: Vec<Id>,
    in_object: bool,
}

impl Walk<'_> {
    fn visit(&mut self, root: Id) -> Result<()> {
        let mut todo = vec![Place { name: String::new(), id: root, around: Vec::new(), in_object: false }];
        while let Some(place) = todo.pop() {
            self.visits += 1;
            if place.around.contains(&place.id) || place.around.len() > DEEPEST || self.visits > MOST_VISITS {
                bail!(corrupt_file, "`{}` contains itself, or more than a checkpoint does", shortened(&place.name));
            }
            let around = || {
                let mut around = memory::room(place.around.len() + 1)?;
                around.extend(place.around.iter().copied().chain([place.id]));
                Ok::<_, Error>(around)
            };
            match self.pickle.get(place.id) {
                Value::Tensor(t) => {
                    if self.file.tensors.contains_key(&place.name) {
                        bail!(corrupt_file, "two tensors are called `{}`", shortened(&place.name));
                    }
                    // Nodes are at least half full.
                    memory::small(2 * size_of::<(String, Described)>())?;
                    self.file.tensors.insert(place.name, t.copy()?);
                }
                Value::List(items) => {
                    for (i, &id) in items.iter().enumerate() {
                        let name = joined(&place.name, &i.to_string())?;
                        memory::push(&mut todo, Place { name, id, around: around()?, in_object: false })?;
                    }
                }
                Value::Dict(items) => {
                    for &(key, id) in items {
                        let key = match self.pickle.get(key) {
                            Value::Text(key) => Cow::Borrowed(key.as_str()),
                            Value::Int(key) => Cow::Owned(key.to_string()),
                            _ => continue,
                        };
                        // How a module keeps what its `state_dict` names without these words.
                        let unnamed = place.in_object && matches!(&key[..], "_parameters" | "_buffers" | "_modules");
                        let name = if unnamed { memory::text(&place.name)? } else { joined(&place.name, &key)? };
                        memory::push(&mut todo, Place { name, id, around: around()?, in_object: false })?;
                    }
                }
                Value::Object { class, state } => {
                    // The state of an object: a dictionary of its fields.
                    match state.filter(|&s| matches!(self.pickle.get(s), Value::Dict(_))) {
                        Some(id) => {
                            let place = Place { name: memory::text(&place.name)?, id, around: around()?, in_object: true };
                            memory::push(&mut todo, place)?;
                        }
                        None => memory::push(&mut self.file.passed_over, (place.name, memory::text(class)?))?,
                    }
                }
                Value::Storage { key, .. } => {
                    memory::small(key.len() + 20)?;
                    memory::push(&mut self.file.passed_over, (place.name, format!("the storage {key} itself")))?;
                }
                Value::Other | Value::Int(_) | Value::Text(_) | Value::Global(_) => {}
            }
        }
        self.file.passed_over.sort_unstable();
        Ok(())
    }
}

fn joined(name: &str, key: &str) -> Result<String> {
    memory::small(name.len() + 1 + key.len())?;
    Ok(if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") })
}

fn shortened(name: &str) -> String {
    name.chars().take(80).collect()
}
