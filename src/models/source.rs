//! Where weights come from: safetensors or GGUF, under the names that models have.

use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::io::{GgufFile, LoadReport, Misshaped, WeightFiles};
use crate::memory;
use crate::module::{Module, try_walk};
use crate::shape::Shape;
use crate::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::load_options::LoadOptions;

/// Weights by Hugging Face's names.
pub(super) enum Source {
    Folder(WeightFiles),
    Gguf(Box<GgufFile>, BTreeMap<String, String>),
}

impl Source {
    pub fn gguf(file: GgufFile) -> Result<Self> {
        let names = file.hf_names()?;
        Ok(Source::Gguf(Box::new(file), names))
    }

    fn path(&self) -> &Path {
        match self {
            Source::Folder(f) => f.path(),
            Source::Gguf(f, _) => f.path(),
        }
    }

    /// Whether there is a tensor of that name.
    fn has(&self, name: &str) -> bool {
        match self {
            Source::Folder(f) => f.contains(name),
            Source::Gguf(_, names) => names.contains_key(name),
        }
    }

    fn names(&self) -> Result<Vec<String>> {
        match self {
            Source::Folder(f) => f.all_names(),
            Source::Gguf(_, names) => memory::try_collect_ok(names.keys().map(|n| memory::text(n))),
        }
    }

    fn shape(&self, name: &str) -> Result<Shape> {
        match self {
            Source::Folder(f) => f.shape(name),
            Source::Gguf(f, _) => f.hf_shape(name),
        }
    }

    /// The dtype that a tensor is stored in; `f32` of quantised ones.
    pub fn dtype(&self, name: &str) -> Result<DType> {
        match self {
            Source::Folder(f) => f.dtype_of(name),
            Source::Gguf(f, names) => Ok(match names.get(name).map(|own| f.kind(own)).transpose()? {
                Some(crate::io::GgufType::F16) => DType::F16,
                Some(crate::io::GgufType::BF16) => DType::BF16,
                _ => DType::F32,
            }),
        }
    }

    fn tensor(&self, name: &str, dtype: DType) -> Result<Tensor> {
        match self {
            Source::Folder(f) => f.tensor(name)?.cast(dtype),
            Source::Gguf(f, _) => f.hf_tensor(name, dtype),
        }
    }

    /// A matrix as the blocks that it is stored in, where it is.
    fn packed(&self, name: &str) -> Result<Option<Tensor>> {
        match self {
            Source::Folder(_) => Ok(None),
            Source::Gguf(f, _) => Ok(f.hf_packed(name)?.map(|(t, _)| t)),
        }
    }

    /// The dtype of most of the model: that of the first matrix.
    pub fn usual_dtype(&self) -> Result<DType> {
        for name in self.names()? {
            if self.shape(&name)?.rank() >= 2 && self.dtype(&name)?.is_float() {
                return self.dtype(&name);
            }
        }
        bail!(corrupt_file, "{} has no matrix of floats", self.path().display())
    }
}

/// The dtype of the first tensor of floats.
pub(super) fn usual_dtype(files: &WeightFiles) -> Result<DType> {
    let floats = files.all_names()?.into_iter().map(|n| files.dtype_of(&n)).find(|d| d.as_ref().map_or(true, |d| d.is_float()));
    floats.unwrap_or_else(|| bail!(corrupt_file, "{} has no floats", files.path().display()))
}

/// Hugging Face's name of a tensor of [`nn::ResNet`](crate::nn::ResNet), which has torchvision's.
fn resnet_of_transformers(name: &str) -> Option<String> {
    let (path, last) = name.rsplit_once('.')?;
    if path == "fc" {
        return Some(format!("classifier.1.{last}"));
    }
    // `conv2` and `bn2` are the convolution and the normalisation of layer 1.
    let part = |layer: &str| {
        let (kind, number) = [("convolution", layer.strip_prefix("conv")), ("normalization", layer.strip_prefix("bn"))]
            .into_iter()
            .find_map(|(kind, n)| Some((kind, n?.parse::<usize>().ok()?.checked_sub(1)?)))?;
        Some((kind, number))
    };
    let Some(rest) = path.strip_prefix("layer") else {
        return Some(format!("resnet.embedder.embedder.{}.{last}", part(path)?.0));
    };
    let mut parts = rest.splitn(3, '.');
    let (stage, block, layer) = (parts.next()?.parse::<usize>().ok()?.checked_sub(1)?, parts.next()?, parts.next()?);
    let layer = match layer {
        "downsample.0" => "shortcut.convolution".to_owned(),
        "downsample.1" => "shortcut.normalization".to_owned(),
        other => part(other).map(|(kind, n)| format!("layer.{n}.{kind}"))?,
    };
    Some(format!("resnet.encoder.stages.{stage}.layers.{block}.{layer}.{last}"))
}

/// Names that a model's tensor may have in files, the usual one first.
fn aliases(name: &str, family: &str) -> Vec<String> {
    let mut out = vec![name.to_owned()];
    if family == "resnet" {
        if let Some(theirs) = resnet_of_transformers(name) {
            out.push(theirs);
        }
        return out;
    }
    // Files of a model without its head (`gpt2` itself), or of one with another.
    for prefix in ["transformer.", "model."] {
        out.extend(name.strip_prefix(prefix).map(str::to_owned));
    }
    out.push(format!("bert.{name}"));
    // Files from TensorFlow.
    for i in 0..out.len() {
        let other = out[i].replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        if other != out[i] {
            out.push(other);
        }
    }
    out
}

/// Tensors without a use here: masks and tables that old files carry.
fn is_buffer(name: &str) -> bool {
    let ends = [
        "attn.bias",
        "attn.masked_bias",
        "rotary_emb.inv_freq",
        "rotary_emb.cos_cached",
        "rotary_emb.sin_cached",
        "embeddings.position_ids",
        "embeddings.token_type_ids",
        // A counter of PyTorch's batch norms, which it needs for a cumulative mean alone.
        "num_batches_tracked",
    ];
    ends.iter().any(|e| name.strip_suffix(e).is_some_and(|before| before.is_empty() || before.ends_with('.')))
}

/// Whether a tensor is outside the model that all tasks share: a head for another task, as transformers loads the model without it.
/// An unknown tensor of the model itself is not a head.
fn is_head(name: &str, model: &str) -> bool {
    let (base, parts): (&str, &[&str]) = match model {
        "bert" => ("bert", &["embeddings", "encoder"]),
        // A head is the part that is asked for.
        "resnet" => return false,
        "vit" => return name.starts_with("vit.pooler."),
        "gpt2" => ("transformer", &["wte", "wpe", "h", "ln_f", "lm_head"]),
        _ => ("model", &["embed_tokens", "layers", "norm", "lm_head"]),
    };
    let first = name.split('.').next().unwrap_or_default();
    if model == "bert" && name.starts_with("bert.pooler.") {
        return true;
    }
    first != base && !parts.contains(&first)
}

/// What differs, a few names of each kind: a wrong number in a configuration is wrong in every layer.
fn differences(report: &LoadReport) -> String {
    const SHOWN: usize = 6;
    let mut text = String::new();
    let mut list = |what: &str, all: &mut dyn ExactSizeIterator<Item = String>| {
        let more = all.len().saturating_sub(SHOWN);
        for (i, one) in all.take(SHOWN).enumerate() {
            let before = match (i, text.is_empty()) {
                (0, true) => what,
                (0, false) => &format!("; {what}"),
                _ => ", ",
            };
            text.push_str(before);
            text.push_str(&one);
        }
        if more > 0 {
            text.push_str(&format!(" and {more} more"));
        }
    };
    let shape = |m: &Misshaped| format!("`{}` is {} in the file, {} in the model", m.name, m.file, m.model);
    list("shapes differ: ", &mut report.misshaped.iter().map(shape));
    list("dtypes differ: ", &mut report.mistyped.iter().map(|(name, file, _)| format!("`{name}` is of {file}, no float")));
    list("missing in the file: ", &mut report.missing.iter().cloned());
    list("unexpected in the file: ", &mut report.unexpected.iter().cloned());
    text
}

/// Whether a name is of the models whose layers take matrices in blocks.
fn family_of_llama(name: &str) -> bool {
    name.starts_with("model.") || name.starts_with("lm_head.")
}

/// Fills a model's parameters, strictly: what is missing, unexpected or of another shape is an error that lists all of it.
pub(super) fn fill<M: Module + Clone>(
    model: &mut M,
    source: &Source,
    tied: bool,
    family: &str,
    options: &mut LoadOptions<'_>,
) -> Result<LoadReport> {
    let mut report = LoadReport::default();
    let mut places = BTreeMap::new();
    let mut used = BTreeSet::new();
    for (name, t) in model.named_tensors() {
        let Some(theirs) = aliases(&name, family).into_iter().find(|n| source.has(n)) else {
            report.missing.push(name);
            continue;
        };
        let (shape, dtype) = (source.shape(&theirs)?, source.dtype(&theirs)?);
        if &shape != t.shape() {
            report.misshaped.push(Misshaped { name: theirs.clone(), file: shape, model: t.shape().clone() });
        } else if !dtype.is_float() {
            report.mistyped.push((theirs.clone(), dtype, t.dtype()));
        }
        used.insert(theirs.clone());
        places.insert(name, theirs);
    }
    for name in source.names()?.into_iter().filter(|n| !used.contains(n)) {
        // A redundant copy of the tied matrix is what some exporters write.
        let known = is_buffer(&name) || is_head(&name, family) || (tied && name == "lm_head.weight");
        memory::push(if known { &mut report.ignored } else { &mut report.unexpected }, name)?;
    }
    if let Source::Folder(files) = source {
        for name in files.unlisted() {
            memory::push(&mut report.ignored, memory::text(name)?)?;
        }
    }
    if !report.is_complete() {
        let mut message = format!("{} does not fit its configuration: {}", source.path().display(), differences(&report));
        if report.missing.iter().any(|n| n == "lm_head.weight") {
            message.push_str("; without an output matrix `tie_word_embeddings` should be true");
        }
        return Err(if report.misshaped.is_empty() { Error::corrupt_file(message) } else { Error::shape(message) });
    }
    let total = places.len();
    try_walk(model, |name, leaf| {
        let Some(theirs) = places.get(name) else { return Ok(()) };
        let packed = if options.packed && family_of_llama(name) { source.packed(theirs)? } else { None };
        if let Some(blocks) = packed {
            *leaf.tensor = blocks.to_device(options.device)?;
            report.loaded.push(name.to_owned());
            if let Some(progress) = &mut options.progress {
                progress(report.loaded.len(), total);
            }
            return Ok(());
        }
        let (from, to) = (source.dtype(theirs)?, leaf.tensor.dtype());
        *leaf.tensor = source.tensor(theirs, to)?.to_device(options.device)?;
        if from != to {
            report.converted.push((name.to_owned(), from, to));
        }
        report.loaded.push(name.to_owned());
        if let Some(progress) = &mut options.progress {
            progress(report.loaded.len(), total);
        }
        Ok(())
    })?;
    Ok(report)
}
