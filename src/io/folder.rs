//! A model's weights in safetensors: one file, or shards with an index, as folders of Hugging Face have them.

use super::safetensors::TensorFile;
use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::memory;
use crate::shape::Shape;
use crate::tensor::Tensor;
use serde_json::Value;
use std::collections::BTreeMap;
use std::panic::Location;
use std::path::{Component, Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Bytes of an index, at most.
const LONGEST_INDEX: u64 = 1 << 26;

/// The safetensors of a model: headers are read and checked at once, tensors when they are asked for.
///
/// ```
/// use cotangent::{Tensor, io::{WeightFiles, save_safetensors}};
/// # let folder = std::env::temp_dir().join(format!("cotangent-doc-shards-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// let (a, b) = (Tensor::from_slice(&[1f32, 2.0], [2])?, Tensor::from_slice(&[3f32], [1])?);
/// save_safetensors(folder.join("model-00001-of-00002.safetensors"), [("a", &a)], &[])?;
/// save_safetensors(folder.join("model-00002-of-00002.safetensors"), [("b", &b)], &[])?;
/// let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
/// std::fs::write(folder.join("model.safetensors.index.json"), index)?;
///
/// let weights = WeightFiles::open(&folder)?;
/// assert!(weights.names().eq(["a", "b"]));
/// assert_eq!(weights.tensor("b")?.to_vec::<f32>()?, [3.0]);
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Debug)]
pub struct WeightFiles {
    path: PathBuf,
    files: Vec<TensorFile>,
    /// The file of each tensor.
    place: BTreeMap<String, usize>,
    unlisted: Vec<String>,
}

impl WeightFiles {
    /// Opens a safetensors file, or `model.safetensors` in a folder, or the shards that the folder's `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// I/O error when a file or shard is missing, with what the folder has instead; corrupt-file error when the index is no index, names a
    /// file outside the folder or a tensor that its shard does not have; otherwise as [`TensorFile::open`].
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let at = Location::caller();
        Self::open_at(path.as_ref()).map_err(|e| e.in_op("open", at))
    }

    fn open_at(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let (single, index) = (path.join(SINGLE), path.join(INDEX));
            return match (single.exists(), index.exists()) {
                (true, _) => Self::single(path, &single),
                (false, true) => Self::sharded(path, &index),
                (false, false) => bail!(io, "{} has neither {SINGLE} nor {INDEX}{}", path.display(), instead(path)),
            };
        }
        Self::single(path, path)
    }

    fn single(path: &Path, file: &Path) -> Result<Self> {
        let file = TensorFile::open(file)?;
        let place = memory::map(file.all_names()?.into_iter().map(|n| Ok((n, 0))), 0)?;
        Ok(WeightFiles { path: path.to_owned(), files: vec![file], place, unlisted: Vec::new() })
    }

    fn sharded(folder: &Path, index: &Path) -> Result<Self> {
        let map = read_index(index)?;
        let mut files: Vec<TensorFile> = Vec::new();
        let mut numbers = BTreeMap::new();
        let mut place = BTreeMap::new();
        for (tensor, shard) in &map {
            let number = match numbers.get(shard) {
                Some(&n) => n,
                None => {
                    let path = folder.join(shard);
                    if !path.exists() {
                        bail!(io, "{} is missing: {} names it for `{tensor}`{}", path.display(), INDEX, instead(folder));
                    }
                    files.push(TensorFile::open(path)?);
                    numbers.insert(shard.clone(), files.len() - 1);
                    files.len() - 1
                }
            };
            if files[number].shape(tensor).is_err() {
                bail!(corrupt_file, "{}: `{tensor}` is said to be in {shard}, which does not have it", index.display());
            }
            memory::small(2 * size_of::<(String, usize)>())?;
            place.insert(memory::text(tensor)?, number);
        }
        let mut unlisted = Vec::new();
        for (i, file) in files.iter().enumerate() {
            memory::extend(&mut unlisted, file.all_names()?.into_iter().filter(|n| place.get(n) != Some(&i)))?;
        }
        Ok(WeightFiles { path: folder.to_owned(), files, place, unlisted })
    }

    /// The folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, in the order in which tensors name them.
    pub fn files(&self) -> &[TensorFile] {
        &self.files
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.place.keys().map(String::as_str)
    }

    /// [`WeightFiles::names`], copied.
    pub(crate) fn all_names(&self) -> Result<Vec<String>> {
        memory::try_collect_ok(self.names().map(memory::text))
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.place.contains_key(name)
    }

    /// Tensors in shards that the index does not name there: they are not read.
    pub fn unlisted(&self) -> &[String] {
        &self.unlisted
    }

    fn file(&self, name: &str) -> Result<&TensorFile> {
        let file = self.place.get(name).and_then(|&i| self.files.get(i));
        file.ok_or_else(|| Error::argument(format!("{} has no tensor `{name}`", self.path.display())))
    }

    /// Shape of a tensor, without reading it.
    ///
    /// # Errors
    /// Argument error when there is none of that name.
    #[track_caller]
    pub fn shape(&self, name: &str) -> Result<Shape> {
        let at = Location::caller();
        self.file(name).and_then(|f| f.shape(name)).map_err(|e| e.in_op("shape", at).called_at(at))
    }

    /// The dtype that a tensor will have, without reading it.
    ///
    /// # Errors
    /// As [`TensorFile::dtype`].
    #[track_caller]
    pub fn dtype(&self, name: &str) -> Result<DType> {
        let at = Location::caller();
        self.dtype_of(name).map_err(|e| e.in_op("dtype", at))
    }

    /// [`WeightFiles::dtype`] for callers that name themselves.
    pub(crate) fn dtype_of(&self, name: &str) -> Result<DType> {
        self.file(name)?.dtype_of(name)
    }

    /// Reads a tensor into host memory.
    ///
    /// # Errors
    /// As [`TensorFile::tensor`].
    #[track_caller]
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let at = Location::caller();
        self.file(name).and_then(|f| f.tensor(name)).map_err(|e| super::at_callers_line(e, "tensor", at))
    }
}

/// Tensor names and the names of their files, which are in the folder itself.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let (text, shown) = (super::read(path, LONGEST_INDEX)?, path.display());
    let value = super::json(&text, &shown)?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
        bail!(corrupt_file, "{shown}: `weight_map` is missing, or not an object");
    };
    let of = |(tensor, file): (&String, &Value)| {
        let Some(file) = file.as_str() else { bail!(corrupt_file, "{shown}: the file of `{tensor}` is {file}, not text") };
        let mut parts = Path::new(file).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            bail!(corrupt_file, "{shown}: the file of `{tensor}` is `{file}`, which is not a name in the folder");
        }
        Ok((memory::text(tensor)?, crate::memory::text(file)?))
    };
    memory::map(map.iter().map(of), 0)
}

/// What a folder has in place of the file that was looked for.
fn instead(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let pickled = names.iter().any(|n| n.ends_with(".bin") || n.ends_with(".pth") || n.ends_with(".pt"));
    let more = names.len().saturating_sub(12);
    names.truncate(12);
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    let hint = if pickled { "; pickled weights are not read: convert them to safetensors" } else { "" };
    if names.is_empty() { "; the folder is empty".to_owned() } else { format!("; it has {}{tail}{hint}", names.join(", ")) }
}
