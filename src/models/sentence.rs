//! One vector of a text: the files of a folder of sentence-transformers beside the encoder.

use crate::dtype::{DType, F32, F64, U8};
use crate::error::{Error, Result, bail};
use crate::io::{self, WeightFiles};
use crate::memory::{room, try_collect, vec_of};
use crate::module::Param;
use crate::nn::{Activation, Linear};
use crate::tensor::Tensor;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// How the vectors of a text's tokens become one, with the names of sentence-transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PoolingMode {
    /// That of the first token.
    Cls,
    /// The largest of each element.
    Max,
    /// The mean.
    Mean,
    /// The sum, divided by the root of the number of tokens.
    MeanSqrtLen,
    /// The mean with weights 1, 2, 3, ..
    WeightedMean,
    /// That of the last token.
    LastToken,
}

/// In the order of their flags, in which older files have them joined.
const MODES: [(PoolingMode, &str, &str); 6] = [
    (PoolingMode::Cls, "cls", "pooling_mode_cls_token"),
    (PoolingMode::Max, "max", "pooling_mode_max_tokens"),
    (PoolingMode::Mean, "mean", "pooling_mode_mean_tokens"),
    (PoolingMode::MeanSqrtLen, "mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
    (PoolingMode::WeightedMean, "weightedmean", "pooling_mode_weightedmean_tokens"),
    (PoolingMode::LastToken, "lasttoken", "pooling_mode_lasttoken"),
];

/// What is done with a text's vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PoolingStage {
    /// It is divided by its length.
    Normalize,
    /// The next of [`Bert::dense`](super::Bert) is applied.
    Dense,
}

/// How [`Bert::embed`](super::Bert::embed) makes a vector of a text. The default is the mean over its tokens, of length one.
#[derive(Clone, Debug, PartialEq)]
pub struct Pooling {
    /// Vectors of these kinds, one after the other.
    pub modes: Vec<PoolingMode>,
    /// What is done with it, in this order.
    pub stages: Vec<PoolingStage>,
    /// Tokens that sentence-transformers would take of a text, at most: [`Bert::embed_texts`](super::Bert::embed_texts) cuts there.
    pub max_tokens: Option<usize>,
    /// Whether texts are brought to small letters.
    pub lowercase: bool,
    /// What precedes each text.
    pub prompt: String,
    /// Whether the prompt's tokens count.
    pub include_prompt: bool,
}

impl Default for Pooling {
    fn default() -> Self {
        Pooling {
            modes: vec![PoolingMode::Mean],
            stages: vec![PoolingStage::Normalize],
            max_tokens: None,
            lowercase: false,
            prompt: String::new(),
            include_prompt: true,
        }
    }
}

/// `activation(W·x + b)` after the pooling, perhaps beside `x`.
#[derive(Clone, Debug)]
pub struct SentenceDense {
    /// The matrix.
    pub linear: Linear,
    /// What brings `x` to the new width, where it is added and has another.
    pub residual: Option<Linear>,
    adds: bool,
    activation: Option<Activation>,
}
crate::module!(SentenceDense { linear, residual } skip { adds, activation });

impl SentenceDense {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.linear.forward(x)?;
        let y = self.activation.map_or(Ok(y.clone()), |a| a.apply(&y))?;
        match &self.residual {
            Some(change) => y.add(&change.forward(x)?),
            None if self.adds => y.add(x),
            None => Ok(y),
        }
    }
}

/// What a folder says.
#[derive(Debug)]
pub(super) struct Sentence {
    pub pooling: Pooling,
    pub dense: Vec<SentenceDense>,
    /// What it asks for that is not done here.
    pub refused: Option<String>,
    /// The folder of the encoder.
    pub encoder: PathBuf,
    /// For the report.
    pub notes: Vec<String>,
}

/// Bytes of a file of settings, at most.
const LONGEST: u64 = 1 << 24;

fn object(path: &Path) -> Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    io::json(&io::read(path, LONGEST)?, path.display()).map(Some)
}

/// Fields of a JSON object that is a file.
struct Settings {
    name: String,
    fields: Map<String, Value>,
}

impl Settings {
    fn open(path: &Path, name: String) -> Result<Self> {
        match object(path)? {
            None => Ok(Settings { name, fields: Map::new() }),
            Some(Value::Object(fields)) => Ok(Settings { name, fields }),
            Some(_) => bail!(corrupt_file, "{} is not an object", path.display()),
        }
    }

    fn get<T>(&self, key: &str, expected: &str, convert: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.fields.get(key).filter(|v| !v.is_null()) else { return Ok(None) };
        match convert(value) {
            Some(x) => Ok(Some(x)),
            None => bail!(corrupt_file, "{}: `{key}` is {value}, expected {expected}", self.name),
        }
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        self.get(key, "a whole number that is not negative", |v| v.as_u64()?.try_into().ok())
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.get(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    fn text(&self, key: &str) -> Result<Option<String>> {
        self.get(key, "a text", |v| v.as_str().map(str::to_owned))
    }

    /// Fails unless a module reads and writes the text's vector.
    fn of_sentence(&self) -> Result<()> {
        for key in ["module_input_name", "module_output_name"] {
            if let Some(name) = self.text(key)?.filter(|n| n != "sentence_embedding") {
                bail!(argument, "{}: `{key}` is `{name}`; only sentence_embedding is known here", self.name);
            }
        }
        Ok(())
    }
}

impl Sentence {
    /// Reads `modules.json` and what it names.
    ///
    /// # Errors
    /// I/O and corrupt-file errors of weights alone; what else is wrong or not known is in `refused`.
    pub fn open(folder: &Path, dtype: impl Fn(&WeightFiles) -> Result<DType>) -> Result<Self> {
        let mut out =
            Sentence { pooling: Pooling::default(), dense: Vec::new(), refused: None, encoder: folder.to_owned(), notes: Vec::new() };
        match out.read(folder, dtype) {
            Err(e) => {
                out.notes.push(format!("`embed` is refused: {}", e.text()));
                out.refused = Some(e.text());
            }
            Ok(true) => out.notes.push(format!("`embed` as modules.json says: {:?}, then {:?}", out.pooling.modes, out.pooling.stages)),
            Ok(false) => out.notes.push("there is no modules.json: `embed` gives the mean over the tokens, of length one".to_owned()),
        }
        Ok(out)
    }

    /// Whether the folder says anything.
    fn read(&mut self, folder: &Path, dtype: impl Fn(&WeightFiles) -> Result<DType>) -> Result<bool> {
        let Some(modules) = object(&folder.join("modules.json"))? else { return Ok(false) };
        let Some(modules) = modules.as_array() else { bail!(corrupt_file, "modules.json is not a list") };
        self.pooling.stages.clear();
        let (mut encoder, mut pooled) = (false, false);
        for module in modules {
            let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
            let (kind, path) = (text("type"), text("path"));
            if Path::new(path).components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
                bail!(corrupt_file, "modules.json: the path `{path}` leaves the folder");
            }
            let (at, name) = (folder.join(path), format!("{path}/config.json"));
            let own = kind.starts_with("sentence_transformers.");
            match kind.rsplit('.').next().filter(|_| own) {
                Some("Transformer") if !encoder && !pooled => {
                    encoder = true;
                    self.encoder.clone_from(&at);
                    self.limits(&at)?;
                }
                Some("Pooling") if !pooled => {
                    pooled = true;
                    self.pool(&Settings::open(&at.join("config.json"), name)?)?;
                }
                Some("Normalize") if pooled => {
                    Settings::open(&at.join("config.json"), name)?.of_sentence()?;
                    self.pooling.stages.push(PoolingStage::Normalize);
                }
                Some("Dense") if pooled => {
                    let settings = Settings::open(&at.join("config.json"), name)?;
                    self.dense.push(dense(&settings, &at, &dtype)?);
                    self.pooling.stages.push(PoolingStage::Dense);
                }
                // Nothing is dropped but in training.
                Some("Dropout") => {}
                _ => bail!(
                    argument,
                    "modules.json: a module of the type `{kind}` at this place is not known here; \
                     known are Transformer, Pooling, then Dense, Normalize and Dropout"
                ),
            }
        }
        if !pooled {
            bail!(argument, "modules.json names no Pooling: it does not say which vector represents a text");
        }
        self.prompts(&Settings::open(&folder.join("config_sentence_transformers.json"), "config_sentence_transformers.json".to_owned())?)?;
        Ok(true)
    }

    fn limits(&mut self, encoder: &Path) -> Result<()> {
        let own = Settings::open(&encoder.join("sentence_bert_config.json"), "sentence_bert_config.json".to_owned())?;
        let of_tokenizer = Settings::open(&encoder.join("tokenizer_config.json"), "tokenizer_config.json".to_owned())?;
        self.pooling.lowercase = own.flag("do_lower_case", false)?;
        // "No limit" is written as a number beyond every integer.
        let length = of_tokenizer.get("model_max_length", "a number", Value::as_f64)?.filter(|n| *n >= 1.0 && *n < 1e9);
        self.pooling.max_tokens = match own.size("max_seq_length")? {
            None => length.map(|n| n as usize),
            own => own,
        };
        if let Some(task) = own.text("transformer_task")?.filter(|t| t != "feature-extraction") {
            bail!(argument, "sentence_bert_config.json: `transformer_task` is `{task}`; only feature-extraction is known here");
        }
        if let Some(output) = own.text("module_output_name")?.filter(|t| t != "token_embeddings") {
            bail!(argument, "sentence_bert_config.json: `module_output_name` is `{output}`; only token_embeddings is known here");
        }
        Ok(())
    }

    fn pool(&mut self, settings: &Settings) -> Result<()> {
        let named = |text: &str| match MODES.iter().find(|m| m.1 == text) {
            Some(m) => Ok(m.0),
            None => bail!(argument, "{}: `pooling_mode` is `{text}`; known are {}", settings.name, MODES.map(|m| m.1).join(", ")),
        };
        let list = |v: &Value| match v {
            Value::String(one) => Some(vec![one.clone()]),
            Value::Array(all) => all.iter().map(|t| t.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        self.pooling.modes = match settings.get("pooling_mode", "a text or a list of them", list)? {
            Some(modes) => modes.iter().map(|m| named(m)).collect::<Result<_>>()?,
            None => {
                let flags = MODES.iter().map(|m| Ok((m.0, settings.flag(m.2, false)?)));
                let on = flags.collect::<Result<Vec<_>>>()?.into_iter().filter(|(_, on)| *on).map(|(mode, _)| mode);
                on.collect()
            }
        };
        if self.pooling.modes.is_empty() {
            self.pooling.modes.push(PoolingMode::Mean);
        }
        // A flag of another kind would be lost silently.
        let known = |k: &str| MODES.iter().any(|m| m.2 == k) || k == "pooling_mode";
        let other = |(k, v): &(&String, &Value)| k.starts_with("pooling_mode") && !known(k) && **v != Value::Bool(false);
        if let Some((key, value)) = settings.fields.iter().find(other) {
            bail!(argument, "{}: `{key}` is {value}: such a pooling is not known here", settings.name);
        }
        self.pooling.include_prompt = settings.flag("include_prompt", true)?;
        Ok(())
    }

    fn prompts(&mut self, settings: &Settings) -> Result<()> {
        let Some(name) = settings.text("default_prompt_name")? else { return Ok(()) };
        let prompt = settings.fields.get("prompts").and_then(|p| p.get(&name)?.as_str());
        let Some(prompt) = prompt else {
            bail!(corrupt_file, "{}: `default_prompt_name` is `{name}`, which `prompts` does not have", settings.name)
        };
        prompt.clone_into(&mut self.pooling.prompt);
        Ok(())
    }
}

fn dense(settings: &Settings, folder: &Path, dtype: impl Fn(&WeightFiles) -> Result<DType>) -> Result<SentenceDense> {
    settings.of_sentence()?;
    let name = &settings.name;
    let activation = match settings.text("activation_function")?.as_deref().unwrap_or("torch.nn.modules.activation.Tanh") {
        "torch.nn.modules.linear.Identity" => None,
        "torch.nn.modules.activation.Tanh" => Some(Activation::Tanh),
        "torch.nn.modules.activation.ReLU" => Some(Activation::Relu),
        "torch.nn.modules.activation.SiLU" => Some(Activation::Silu),
        "torch.nn.modules.activation.GELU" => Some(Activation::Gelu),
        other => bail!(argument, "{name}: `activation_function` is `{other}`; Identity, Tanh, ReLU, SiLU and GELU are known here"),
    };
    let size = |key: &str| settings.size(key)?.ok_or_else(|| Error::corrupt_file(format!("{name}: `{key}` is missing")));
    let (inputs, outputs, adds) = (size("in_features")?, size("out_features")?, settings.flag("use_residual", false)?);
    let files = WeightFiles::open(folder)?;
    let dtype = dtype(&files)?;
    let param = |key: &str, shape: &[usize]| -> Result<Param> {
        let t = files.tensor(key)?;
        if t.shape() != shape {
            bail!(shape, "{name}: `{key}` is {} in the file, {shape:?} by its settings", t.shape());
        }
        Ok(t.cast(dtype)?.into())
    };
    let linear = Linear {
        weight: param("linear.weight", &[outputs, inputs])?,
        bias: if settings.flag("bias", true)? { Some(param("linear.bias", &[outputs])?) } else { None },
    };
    let residual =
        if adds && inputs != outputs { Some(Linear { weight: param("residual.weight", &[outputs, inputs])?, bias: None }) } else { None };
    Ok(SentenceDense { linear, residual, adds, activation })
}

/// One vector for each text, by values `[batch, time, width]` of their tokens. What is summed is summed in `f32` at least: in `f16` small
/// divisors are 0. A text without tokens is zero.
pub(super) fn pool(x: &Tensor, mask: Option<&Tensor>, pooling: &Pooling, dense: &[SentenceDense]) -> Result<Tensor> {
    let &[batch, time, width] = x.shape().dims() else { bail!(shape, "expected [batch, time, width], found {}", x.shape()) };
    if time == 0 {
        bail!(shape, "the texts have no tokens: {}", x.shape());
    }
    let dtype = x.dtype();
    let exact = if dtype == F64 { F64 } else { F32 };
    let rows = match mask {
        Some(m) if m.dtype() != U8 => bail!(dtype, "the mask must be u8, found {}", m.dtype()),
        Some(m) => m.to_vec::<u8>()?,
        None => vec_of(1, batch * time)?,
    };
    let rows: Vec<&[u8]> = try_collect(rows.chunks_exact(time))?;
    let first = |row: &[u8]| row.iter().position(|&m| m != 0).unwrap_or(0);
    let last = |row: &[u8]| row.iter().rposition(|&m| m != 0).unwrap_or(0);
    let x = x.cast(exact)?;
    let on = |values: Vec<f64>, shape: &[usize]| Tensor::from_vec(values, shape)?.cast(exact)?.to_device(x.device());
    let any = |row: &&[u8]| f64::from(u8::from(row.iter().any(|&m| m != 0)));
    let there = on(try_collect(rows.iter().map(any))?, &[batch, 1])?;
    let token = |of: &dyn Fn(&[u8]) -> usize| {
        let ids = try_collect(rows.iter().enumerate().map(|(i, row)| (i * time + of(row)) as i64))?;
        let ids = Tensor::from_vec(ids, [batch])?.to_device(x.device())?;
        x.reshape([batch * time, width])?.index_select(0, &ids)?.mul(&there)
    };
    // Σ weight·x, divided by the sum of the weights or its root.
    let mean = |weight: &dyn Fn(&[u8], usize) -> f64, divisor: fn(f64) -> f64| {
        let mut all = room(batch * time)?;
        all.extend(rows.iter().flat_map(|row| (0..time).map(|t| weight(row, t))));
        let sums = try_collect(all.chunks_exact(time).map(|row| divisor(row.iter().sum::<f64>().max(1e-9))))?;
        // What is hidden counts as nothing, whatever it is.
        let hidden = Tensor::from_vec(try_collect(all.iter().map(|&w| u8::from(w == 0.0)))?, [batch, time, 1])?;
        let x = x.masked_fill(&hidden.to_device(x.device())?, 0.0)?;
        x.mul(&on(all, &[batch, time, 1])?)?.sum(1)?.div(&on(sums, &[batch, 1])?)
    };
    let plain = |row: &[u8], t: usize| f64::from(u8::from(row[t] != 0));
    let mut parts = Vec::new();
    for mode in &pooling.modes {
        parts.push(match mode {
            PoolingMode::Cls => token(&first)?,
            PoolingMode::LastToken => token(&last)?,
            PoolingMode::Mean => mean(&plain, |n| n)?,
            PoolingMode::MeanSqrtLen => mean(&plain, f64::sqrt)?,
            PoolingMode::WeightedMean => mean(&|row, t| plain(row, t) * (t + 1).saturating_sub(first(row)) as f64, |n| n)?,
            PoolingMode::Max => {
                let mut hidden = room(batch * time)?;
                hidden.extend(rows.iter().flat_map(|row| {
                    let some = row.iter().any(|&m| m != 0);
                    row.iter().map(move |&m| u8::from(m == 0 && some))
                }));
                let hidden = Tensor::from_vec(hidden, [batch, time, 1])?.to_device(x.device())?;
                x.masked_fill(&hidden, f64::NEG_INFINITY)?.max(1)?.mul(&there)?
            }
        });
    }
    let mut y = if parts.len() == 1 { parts.remove(0) } else { Tensor::concat(&parts, -1)? };
    let mut dense = dense.iter();
    for stage in &pooling.stages {
        y = match stage {
            PoolingStage::Normalize => y.div(&y.norm_keepdim(-1)?.clamp(1e-12, None)?)?,
            PoolingStage::Dense => match dense.next() {
                Some(layer) => layer.forward(&y.cast(dtype)?)?.cast(exact)?,
                None => bail!(argument, "the pooling has more dense stages than there are matrices"),
            },
        };
    }
    y.cast(dtype)
}
