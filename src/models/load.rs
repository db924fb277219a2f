//! Opening models that others saved.

use super::load_options::LoadOptions;
use super::sentence::Sentence;
use super::source::{Source, fill, usual_dtype};
use super::{Bert, LanguageModel};
use crate::error::{Error, Result, bail};
use crate::io::{self, GenerationConfig, GgufFile, LoadReport, ModelConfig, Special, WeightFiles};
use crate::memory;
use crate::module::Module;
use crate::train::Tokenizer;
use std::fmt;
use std::panic::Location;
use std::path::Path;
use std::sync::Arc;

/// A model and what its folder or file has beside it.
#[derive(Clone)]
pub struct Loaded {
    /// The model.
    pub model: LanguageModel,
    /// How its authors sample; empty where they do not say. Special tokens are the model's where these are.
    pub generation: GenerationConfig,
    /// Its tokenizer, with the feature `tokenizers`, if there is one that is known here.
    pub tokenizer: Option<Arc<dyn Tokenizer + Send + Sync>>,
    /// Why there is no tokenizer, where the folder or file has one.
    pub tokenizer_refused: Option<String>,
    /// Template of conversations, in Jinja.
    pub chat_template: Option<String>,
    /// Texts of the special tokens that templates use: `bos_token` and `eos_token`.
    pub special_texts: Vec<(String, String)>,
    /// What was loaded, converted and ignored.
    pub report: LoadReport,
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("config", &self.model.config()).field("report", &self.report).finish_non_exhaustive()
    }
}

/// Opens a language model: a folder of Hugging Face (`config.json`, `model.safetensors` or shards with an index), or a GGUF file.
///
/// ```no_run
/// use cotangent::{BF16, models::{LoadOptions, load}};
/// let loaded = load("Qwen2.5-0.5B-Instruct", LoadOptions::dtype(BF16))?;
/// println!("{:?}, {} tensors", loaded.model.config(), loaded.report.loaded.len());
/// # Ok::<(), cotangent::Error>(())
/// ```
///
/// # Errors
/// I/O error when a file or shard is missing; corrupt-file error when one is damaged, or weights and configuration do not have the same
/// tensors; shape error that names each tensor with both shapes where they have; argument error for a family that is not known here.
#[track_caller]
pub fn load(path: impl AsRef<Path>, options: LoadOptions<'_>) -> Result<Loaded> {
    let at = Location::caller();
    open(path.as_ref(), options).map_err(|e| io::at_callers_line(e, "load", at))
}

fn open(path: &Path, options: LoadOptions<'_>) -> Result<Loaded> {
    if path.is_dir() { folder(path, options) } else { gguf(path, options) }
}

/// Refuses a folder that holds the changes of a fine-tuning and not the model.
fn refuse_adapter(path: &Path) -> Result<()> {
    const NAMES: [&str; 3] = ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"];
    if let (false, Some(found)) = (path.join("config.json").exists(), NAMES.iter().find(|n| path.join(n).exists())) {
        bail!(
            argument,
            "{} holds an adapter (`{found}`), which changes a model and is none: load the base model that adapter_config.json names, then \
             add_lora and load_partial of what was saved here, or merge the adapter into the model where it was trained (PEFT: merge_and_unload)",
            path.display()
        );
    }
    Ok(())
}

fn folder(path: &Path, mut options: LoadOptions<'_>) -> Result<Loaded> {
    refuse_adapter(path)?;
    let config = ModelConfig::open(path)?;
    let source = Source::Folder(WeightFiles::open(path)?);
    let (model, mut report) = build(&config, &source, &mut options)?;
    // Files beside the model do not make it worse: what is wrong with them is said where they are used, and in the report.
    let notes = &mut report.notes;
    let generation = with_special(generation(path, notes), &model);
    let (chat_template, special_texts) = tokenizer_config(path, notes).unwrap_or_else(|e| {
        notes.push(format!("there is no chat template: {}", e.text()));
        (None, Vec::new())
    });
    let (tokenizer, tokenizer_refused) = known(tokenizer(path), notes);
    Ok(Loaded { model, generation, tokenizer, tokenizer_refused, chat_template, special_texts, report })
}

fn generation(folder: &Path, notes: &mut Vec<String>) -> GenerationConfig {
    const NAME: &str = "generation_config.json";
    if !folder.join(NAME).exists() {
        return GenerationConfig::default();
    }
    let out = GenerationConfig::open(folder).unwrap_or_else(|e| GenerationConfig { wrong: vec![e.text()], ..GenerationConfig::default() });
    notes.extend(out.wrong.iter().map(|why| format!("{NAME}: {why}: generating by it is an error")));
    notes.extend(out.passed_over.iter().map(|what| format!("{NAME}: {what}: passed over")));
    out
}

/// A tokenizer, or why there is none.
fn known(tokenizer: Result<Option<AnyTokenizer>>, notes: &mut Vec<String>) -> (Option<AnyTokenizer>, Option<String>) {
    match tokenizer {
        Ok(tokenizer) => (tokenizer, None),
        Err(e) => {
            notes.push(format!("there is no tokenizer: {}", e.text()));
            (None, Some(e.text()))
        }
    }
}

fn gguf(path: &Path, mut options: LoadOptions<'_>) -> Result<Loaded> {
    if !path.exists() {
        bail!(io, "{} does not exist; expected a folder with config.json and model.safetensors, or a GGUF file", path.display());
    }
    if path.extension().is_some_and(|e| e == "safetensors") {
        bail!(argument, "{} holds weights alone: give the folder, where config.json says what they are", path.display());
    }
    let file = GgufFile::open(path)?;
    let mut config = file.config()?;
    let tables = file.tokenizer()?;
    if let (Some(t), Some(special)) = (&tables, special(&mut config)) {
        special.eos = t.end_tokens();
    }
    let source = Source::gguf(file)?;
    let (model, mut report) = build(&config, &source, &mut options)?;
    let mut generation = with_special(GenerationConfig::default(), &model);
    let (rows, notes) = (model.vocabulary(), &mut report.notes);
    generation.special.eos.retain(|&id| (id as usize) < rows);
    let mut special_texts = Vec::new();
    let mut chat_template = None;
    if let Some(t) = &tables {
        chat_template = t.chat_template.clone();
        generation.suppress_tokens = memory::try_collect(t.suppress.iter().copied().filter(|&id| (id as usize) < rows))?;
        if t.model == "gpt2" && t.pre.is_none() {
            notes.push(
                "`tokenizer.ggml.pre` is missing: texts are cut as llama.cpp does then, which may not be how the model was trained"
                    .to_owned(),
            );
        }
        if !matches!(t.model.as_str(), "gpt2" | "llama") {
            notes.push(format!("there is no tokenizer: `tokenizer.ggml.model` is `{}`; gpt2 and llama are known here", t.model));
        }
        for (name, id) in [("bos_token", t.bos), ("eos_token", t.eos)] {
            special_texts.extend(id.and_then(|id| t.tokens.get(id as usize)).map(|text| (name.to_owned(), text.clone())));
        }
    }
    let (tokenizer, tokenizer_refused) = known(from_tables(tables), notes);
    Ok(Loaded { model, generation, tokenizer, tokenizer_refused, chat_template, special_texts, report })
}

fn build(config: &ModelConfig, source: &Source, options: &mut LoadOptions<'_>) -> Result<(LanguageModel, LoadReport)> {
    let dtype = match options.dtype {
        Some(d) if !d.is_float() => bail!(dtype, "weights cannot be {d}"),
        Some(d) => d,
        None => source.usual_dtype()?,
    };
    let (tied, family) = match config {
        ModelConfig::Gpt2(c) => (c.tied, "gpt2"),
        ModelConfig::Decoder(c) => (c.tied, "decoder"),
        ModelConfig::Bert(_) | ModelConfig::Image(_) => (false, "bert"),
    };
    let mut model = LanguageModel::skeleton(config, dtype)?;
    let report = fill(&mut model, source, tied, family, options)?;
    Ok((model, report))
}

/// A model of this configuration with the weights of these files.
pub(super) fn from_files(config: &ModelConfig, files: WeightFiles, options: &mut LoadOptions<'_>) -> Result<(LanguageModel, LoadReport)> {
    build(config, &Source::Folder(files), options)
}

/// Special tokens of the model, where the generation's file has none.
fn with_special(mut generation: GenerationConfig, model: &LanguageModel) -> GenerationConfig {
    let (own, model) = (&mut generation.special, model.special());
    if own.eos.is_empty() {
        own.eos.clone_from(&model.eos);
    }
    own.bos = own.bos.or(model.bos);
    own.pad = own.pad.or(model.pad);
    generation
}

/// Opens a BERT in a folder of Hugging Face, or of sentence-transformers: how [`Bert::embed`] makes a vector of a text is what
/// `modules.json` and the folders that it names say, and is in the report's notes. Heads of other tasks are ignored, and named in the
/// report.
///
/// # Errors
/// As [`load`]; argument error for another family.
#[track_caller]
pub fn load_encoder(path: impl AsRef<Path>, options: LoadOptions<'_>) -> Result<(Bert, LoadReport)> {
    let at = Location::caller();
    open_encoder(path.as_ref(), options).map_err(|e| io::at_callers_line(e, "load_encoder", at))
}

fn open_encoder(path: &Path, mut options: LoadOptions<'_>) -> Result<(Bert, LoadReport)> {
    let dtype = options.dtype;
    if let Some(d) = dtype.filter(|d| !d.is_float()) {
        bail!(dtype, "weights cannot be {d}");
    }
    refuse_adapter(path)?;
    let mut sentence = Sentence::open(path, |files| dtype.map_or_else(|| usual_dtype(files), Ok))?;
    // Older folders of sentence-transformers have the encoder in one of its own.
    let path = if path.join("config.json").exists() { path.to_owned() } else { sentence.encoder.clone() };
    let ModelConfig::Bert(config) = ModelConfig::open(&path)? else {
        bail!(
            argument,
            "{} is not an encoder: `models::load` opens language models, `models::load_image_model` networks for images",
            path.display()
        );
    };
    let source = Source::Folder(WeightFiles::open(&path)?);
    let dtype = dtype.map_or_else(|| source.usual_dtype(), Ok)?;
    let mut model = Bert::skeleton(&config, dtype)?;
    let mut report = fill(&mut model, &source, false, "bert", &mut options)?;
    report.notes.append(&mut sentence.notes);
    sentence.dense = memory::try_collect_ok(sentence.dense.into_iter().map(|d| d.to_device(options.device)))?;
    Ok((model.with_sentence(sentence), report))
}

/// The special tokens of a language model's configuration.
fn special(config: &mut ModelConfig) -> Option<&mut Special> {
    match config {
        ModelConfig::Gpt2(c) => Some(&mut c.special),
        ModelConfig::Decoder(c) => Some(&mut c.special),
        ModelConfig::Bert(_) | ModelConfig::Image(_) => None,
    }
}

type AnyTokenizer = Arc<dyn Tokenizer + Send + Sync>;

#[cfg(feature = "tokenizers")]
fn tokenizer(folder: &Path) -> Result<Option<AnyTokenizer>> {
    let path = folder.join("tokenizer.json");
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(Arc::new(crate::train::TokenizerFile::open(path)?)))
}

#[cfg(not(feature = "tokenizers"))]
fn tokenizer(_: &Path) -> Result<Option<AnyTokenizer>> {
    Ok(None)
}

#[cfg(feature = "tokenizers")]
fn from_tables(tables: Option<io::GgufTokenizer>) -> Result<Option<AnyTokenizer>> {
    let of = |t: io::GgufTokenizer| crate::train::TokenizerFile::from_gguf(&t);
    Ok(tables.map(of).transpose()?.flatten().map(|t| Arc::new(t) as AnyTokenizer))
}

#[cfg(not(feature = "tokenizers"))]
fn from_tables(_: Option<io::GgufTokenizer>) -> Result<Option<AnyTokenizer>> {
    Ok(None)
}

/// Bytes of a tokenizer's configuration, at most.
const LONGEST: u64 = 1 << 26;

/// The chat template and the special tokens' texts: `chat_template.jinja`, or in `tokenizer_config.json`.
fn tokenizer_config(folder: &Path, notes: &mut Vec<String>) -> Result<(Option<String>, Vec<(String, String)>)> {
    let read = |name: &str| -> Result<Option<Vec<u8>>> {
        let path = folder.join(name);
        if !path.exists() {
            return Ok(None);
        }
        io::read(&path, LONGEST).map(Some)
    };
    let text =
        |b| String::from_utf8(b).map_err(|_| Error::corrupt_file(format!("{} is not UTF-8", folder.join("chat_template.jinja").display())));
    let mut template = read("chat_template.jinja")?.map(text).transpose()?;
    let mut texts = Vec::new();
    if let Some(bytes) = read("tokenizer_config.json")? {
        let value = io::json(&bytes, folder.join("tokenizer_config.json").display())?;
        if value.get("add_prefix_space").and_then(serde_json::Value::as_bool) == Some(true) {
            notes.push("tokenizer_config.json: `add_prefix_space` is true: passed over, tokenizer.json says how texts begin".to_owned());
        }
        if template.is_none() {
            template = match value.get("chat_template") {
                Some(serde_json::Value::String(t)) => Some(t.clone()),
                // Several by name: the default one.
                Some(serde_json::Value::Array(list)) => list
                    .iter()
                    .find(|t| t.get("name").and_then(|n| n.as_str()) == Some("default"))
                    .and_then(|t| Some(t.get("template")?.as_str()?.to_owned())),
                _ => None,
            };
        }
        for name in ["bos_token", "eos_token"] {
            let text = value.get(name).and_then(|t| t.as_str().or_else(|| t.get("content")?.as_str()));
            texts.extend(text.map(|t| (name.to_owned(), t.to_owned())));
        }
    }
    Ok((template, texts))
}
