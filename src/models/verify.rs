//! Replays what Hugging Face's model computed, stored beside it in `fixture.safetensors`, and compares number by number.

use super::load::from_files;
use super::load_options::LoadOptions;
use super::{Cache, Input, LanguageModel};
use crate::diagnostics::Trace;
use crate::dtype::{BF16, DType, F32, F64, I64};
use crate::error::{Error, Result};
use crate::functional::{Grads, value_and_grad};
use crate::io::{self, ModelConfig, TensorFile, WeightFiles};
use crate::memory;
use crate::module::Module;
use crate::optim::AdamW;
use crate::tensor::Tensor;
use std::fmt;
use std::panic::Location;
use std::path::{Path, PathBuf};

/// One comparison.
#[derive(Clone, Debug)]
pub struct Check {
    /// What was compared.
    pub what: String,
    /// The largest error, by the measure that `what` names.
    pub error: f64,
    /// Up to which it is right.
    pub tolerance: f64,
}

impl Check {
    /// Whether the error is within the tolerance; NaN is not.
    pub fn ok(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// What [`verify`] found. Prints as a table.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    /// In the order in which they were made.
    pub checks: Vec<Check>,
    /// The first module whose values differ, and in which way.
    pub first_difference: Option<String>,
    /// What the fixture does not have.
    pub skipped: Vec<String>,
}

impl Verification {
    /// Whether every check passed, and there was at least one.
    pub fn passed(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(Check::ok) && self.first_difference.is_none()
    }

    fn add(&mut self, what: impl Into<String>, error: f64, tolerance: f64) {
        self.checks.push(Check { what: what.into(), error, tolerance });
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in &self.checks {
            let mark = if c.ok() { "ok  " } else { "FAIL" };
            writeln!(f, "{mark} {:<58} {:>9.1e}  (tolerance {:.0e})", c.what, c.error, c.tolerance)?;
        }
        for s in &self.skipped {
            writeln!(f, "--   {s}: not in the fixture")?;
        }
        match &self.first_difference {
            Some(d) => writeln!(f, "first difference: {d}"),
            None => Ok(()),
        }
    }
}

/// Tolerances in `f32`: absolute for logits, loss and cache; the norm of the difference over that of the gradient for gradients. Correct
/// engines err ten times less, mistakes a hundred times more.
const LOGITS: f64 = 1e-4;
const LOSS: f64 = 1e-5;
const GRADIENT: f64 = 2e-5;
const CACHE: f64 = 1e-5;
/// What stored numbers in `f32` leave of a step computed in `f64`.
const STEP: f64 = 1e-7;
/// Relative, of a module's values.
const HIDDEN: f64 = 2e-5;
/// Root mean square of the logits' error when everything is computed in `bf16`: twice that of Hugging Face.
const BF16_COMPUTE: f64 = 0.06;

/// Loads the model of a folder and compares it with the folder's `fixture.safetensors`: logits, every module's values, loss, every
/// gradient, a step of AdamW, ten steps, greedy tokens, keys and values of the cache, a batch padded on the left, and weights in `bf16`;
/// every other `model.*.safetensors` and `config.*.json` must give the same.
///
/// # Errors
/// As [`load`](super::load); corrupt-file error when the fixture lacks input or logits. A difference is no error: it is in the result.
#[track_caller]
pub fn verify(folder: impl AsRef<Path>) -> Result<Verification> {
    let at = Location::caller();
    let run = || {
        let folder = folder.as_ref();
        let config = ModelConfig::open(folder)?;
        let model = from_files(&config, WeightFiles::open(folder)?, &mut LoadOptions::dtype(F32))?.0;
        let mut out = Verification::default();
        let fixture = Fixture { file: TensorFile::open(folder.join("fixture.safetensors"))? };
        fixture.compare(&model, &mut out)?;
        other_forms(folder, &config, &model, &fixture, &mut out)?;
        Ok(out)
    };
    run().map_err(|e: Error| io::at_callers_line(e, "verify", at))
}

/// [`verify`] of a model that is there already, in `f32`.
///
/// # Errors
/// As there.
#[track_caller]
pub fn verify_model(model: &LanguageModel, fixture: impl AsRef<Path>) -> Result<Verification> {
    let at = Location::caller();
    let run = || {
        let mut out = Verification::default();
        Fixture { file: TensorFile::open(fixture.as_ref())? }.compare(model, &mut out)?;
        Ok(out)
    };
    run().map_err(|e: Error| io::at_callers_line(e, "verify", at))
}

struct Fixture {
    file: TensorFile,
}

fn norm(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// The largest difference of two elements; NaN if one is, infinite for different lengths.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d <= m { m } else { d })
}

impl Fixture {
    fn has(&self, name: &str) -> bool {
        self.file.shape(name).is_ok()
    }

    fn values(&self, name: &str) -> Result<Vec<f64>> {
        self.file.tensor(name)?.to_f64_vec()
    }

    /// The elements of a tensor of ours that the fixture has of it: all, or every k-th, where `NAME.stride` says k.
    fn thinned(&self, name: &str, all: &[f64]) -> Result<(Vec<f64>, usize)> {
        let stride = if self.has(&format!("{name}.stride")) { self.file.tensor(&format!("{name}.stride"))?.item()? as usize } else { 1 };
        Ok((memory::try_collect(all.iter().step_by(stride.max(1)).copied())?, stride.max(1)))
    }

    fn loss(&self, model: &LanguageModel) -> Result<Tensor> {
        model.forward(&self.file.tensor("input_ids")?)?.cross_entropy(&self.file.tensor("targets")?)
    }

    fn compare(&self, model: &LanguageModel, out: &mut Verification) -> Result<()> {
        self.values_of_modules(model, out)?;
        self.gradients(model, out)?;
        self.training(model, out)?;
        self.generation(model, out)?;
        self.padding(model, out)
    }

    fn values_of_modules(&self, model: &LanguageModel, out: &mut Verification) -> Result<()> {
        let tokens = self.file.tensor("input_ids")?;
        let (logits, trace) = Trace::of(model, |m| m.forward(&tokens))?;
        let ours = logits.to_f64_vec()?;
        out.add("logits, largest", apart(&ours, &self.values("logits")?), LOGITS);
        let gpt2 = matches!(model, LanguageModel::Gpt2(_));
        let mut reference = Vec::new();
        for name in self.file.names() {
            if let Some(path) = module_of(name, gpt2) {
                memory::push(&mut reference, (path, self.file.tensor(name)?))?;
            }
        }
        if reference.is_empty() {
            out.skipped.push("values of modules".to_owned());
            return Ok(());
        }
        let found = trace.compare(&Trace::from_values(reference)?, HIDDEN)?;
        let worst = found.rows.iter().map(|r| r.error).fold(0.0, |m: f64, e| if e <= m { m } else { e });
        out.add(format!("values of {} modules, relative", found.rows.len()), worst, HIDDEN);
        // A module that the trace does not have would go unseen.
        if let Some(name) = found.only_there.first() {
            out.add(format!("values of modules that did not run, {name} first"), found.only_there.len() as f64, 0.0);
        }
        out.first_difference = found.verdict();
        Ok(())
    }

    fn gradients(&self, model: &LanguageModel, out: &mut Verification) -> Result<()> {
        let (loss, grads) = value_and_grad(model, |m| self.loss(m))?;
        out.add("loss", (loss.item()? - self.file.tensor("loss_f64")?.item()?).abs(), LOSS);
        let (mut worst, mut at, mut n) = (0.0, String::new(), 0);
        for (name, g) in grads.named() {
            let Some(error) = self.relative("grad", &name, &g, |_, _| false)? else {
                out.skipped.push(format!("gradient of {name}"));
                continue;
            };
            n += 1;
            if !(error <= worst) {
                (worst, at) = (error, name);
            }
        }
        out.add(format!("gradients of {n} tensors, worst {at}"), worst, GRADIENT);
        Ok(())
    }

    /// The relative error of a tensor by norm, without the elements that `leave_out` names; `None` if the fixture does not have it.
    fn relative(&self, prefix: &str, name: &str, t: &Tensor, leave_out: impl Fn(usize, usize) -> bool) -> Result<Option<f64>> {
        let key = format!("{prefix}.{name}");
        if !self.has(&key) {
            return Ok(None);
        }
        let all = t.contiguous()?.to_f64_vec()?;
        let (ours, stride) = self.thinned(&key, &all)?;
        let theirs = self.values(&key)?;
        if ours.len() != theirs.len() {
            return Ok(Some(f64::INFINITY));
        }
        let kept = (0..ours.len()).filter(|i| !leave_out(i * stride, all.len()));
        let difference = memory::try_collect(kept.map(|i| ours[i] - theirs[i]))?;
        let mut error = norm(&difference) / norm(&theirs).max(f64::MIN_POSITIVE);
        if self.has(&format!("{key}.norm")) {
            let total = norm(&all) / self.file.tensor(&format!("{key}.norm"))?.item()?;
            error = error.max((total - 1.0).abs());
        }
        Ok(Some(error))
    }

    /// A step in `f64`, as the stored one was computed, and ten in `f32`.
    fn training(&self, model: &LanguageModel, out: &mut Verification) -> Result<()> {
        let adam = || AdamW { lr: 1e-3, betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.1, ..AdamW::default() };
        let step = |model: &mut LanguageModel, adam: &mut AdamW, mut grads: Grads<LanguageModel>| -> Result<f64> {
            let norm = grads.clip_global_norm(1.0)?.norm;
            adam.step(model, &grads)?;
            Ok(norm)
        };
        let mut exact = model.cast(F64)?;
        let grads = value_and_grad(&exact, |m| self.loss(m))?.1;
        step(&mut exact, &mut adam(), grads)?;
        let (mut worst, mut n) = (0f64, 0);
        for (name, t) in exact.named_tensors() {
            // The gradient of GPT-2's key bias is zero but for rounding, which Adam makes into whole steps.
            let key_bias = |i: usize, all: usize| name.ends_with("c_attn.bias") && (all / 3..2 * all / 3).contains(&i);
            if let Some(error) = self.relative("adamw", &name, &t, key_bias)? {
                n += 1;
                worst = if error <= worst { worst } else { error };
            }
        }
        if n > 0 {
            out.add(format!("one step of AdamW, {n} tensors, relative"), worst, STEP);
        }
        if !self.has("train.losses_f64") {
            out.skipped.push("ten steps".to_owned());
            return Ok(());
        }
        let (mut model, mut adam, mut worst) = (model.clone(), adam(), 0f64);
        for want in self.values("train.losses_f64")? {
            let (loss, grads) = value_and_grad(&model, |m| self.loss(m))?;
            let error = (loss.item()? - want).abs();
            worst = if error <= worst { worst } else { error };
            step(&mut model, &mut adam, grads)?;
        }
        out.add("losses of ten steps", worst, LOSS);
        Ok(())
    }

    fn generation(&self, model: &LanguageModel, out: &mut Verification) -> Result<()> {
        if !self.has("gen.prompt") {
            out.skipped.push("generation".to_owned());
            return Ok(());
        }
        let (prompt, want) = (self.file.tensor("gen.prompt")?, self.values("gen.tokens")?);
        let mut cache = Cache::new(model.layers(), 0)?;
        let (mut next, mut tokens, mut logits) = (prompt.clone(), Vec::new(), Vec::new());
        for step in 0..want.len() {
            let last = model.forward_with(Input { cache: Some(&mut cache), last: true, ..Input::new(&next) })?.select(1, -1)?;
            memory::extend(&mut logits, last.to_f64_vec()?)?;
            next = last.argmax(-1)?.cast(I64)?.reshape([1, 1])?;
            memory::push(&mut tokens, next.item()?)?;
            if step == 0 {
                self.cache(&cache, model.layers(), out)?;
            }
        }
        if self.has("gen.step_logits") {
            out.add("logits of greedy tokens from the cache", apart(&logits, &self.values("gen.step_logits")?), LOGITS);
        }
        let wrong = tokens.iter().zip(&want).filter(|(a, b)| a != b).count();
        out.add(format!("greedy tokens of {} that differ", want.len()), wrong as f64, 0.0);
        // The same sequence at once.
        let known = Tensor::from_vec(memory::try_collect(tokens[..tokens.len() - 1].iter().map(|&t| t as i64))?, [1, tokens.len() - 1])?;
        let all = model.forward(&Tensor::concat(&[&prompt, &known], 1)?)?;
        let from = prompt.size(1)? - 1;
        let whole = all.narrow(1, from, tokens.len())?.to_f64_vec()?;
        let largest = whole.iter().fold(1.0, |m: f64, l| m.max(l.abs()));
        out.add("logits with the cache and without, of the largest", apart(&logits, &whole) / largest, CACHE);
        Ok(())
    }

    fn cache(&self, cache: &Cache, layers: usize, out: &mut Verification) -> Result<()> {
        let mut worst: Option<f64> = None;
        for layer in 0..layers {
            let Some((k, v)) = cache.layers()[layer].get()? else { continue };
            for (which, t) in [("k", k), ("v", v)] {
                let name = format!("gen.prefill_{which}.{layer}");
                if self.has(&name) {
                    let error = apart(&t.to_f64_vec()?, &self.values(&name)?);
                    worst = Some(worst.map_or(error, |w| if error <= w { w } else { error }));
                }
            }
        }
        match worst {
            Some(error) => out.add("keys and values in the cache", error, CACHE),
            None => out.skipped.push("keys and values in the cache".to_owned()),
        }
        Ok(())
    }

    fn padding(&self, model: &LanguageModel, out: &mut Verification) -> Result<()> {
        if !self.has("leftpad.input_ids") {
            out.skipped.push("a batch padded on the left".to_owned());
            return Ok(());
        }
        let mask = self.file.tensor("leftpad.attention_mask")?;
        let time = mask.size(1)?;
        let mask = mask.to_f64_vec()?;
        let pads = memory::try_collect(mask.chunks(time.max(1)).map(|row| row.iter().filter(|&&m| m == 0.0).count()))?;
        let tokens = self.file.tensor("leftpad.input_ids")?;
        let last = model.forward_with(Input { pads: &pads, last: true, ..Input::new(&tokens) })?;
        out.add("a batch padded on the left", apart(&last.to_f64_vec()?, &self.values("leftpad.last_logits")?), LOGITS);
        Ok(())
    }

    /// Logits of weights that were rounded to `bf16`.
    fn rounded(&self, name: &str, model: &LanguageModel, out: &mut Verification) -> Result<()> {
        let tokens = self.file.tensor("input_ids")?;
        if self.has("bf16.logits") {
            let want = self.values("bf16.logits")?;
            let (ours, _) = self.thinned("bf16.logits", &model.cast(F32)?.forward(&tokens)?.to_f64_vec()?)?;
            out.add(format!("{name}, computed in f32: logits"), apart(&ours, &want), LOGITS);
            let (ours, _) = self.thinned("bf16.logits", &model.forward(&tokens)?.to_f64_vec()?)?;
            let difference = memory::try_collect(ours.iter().zip(&want).map(|(a, b)| a - b))?;
            let error = norm(&difference) / (want.len().max(1) as f64).sqrt();
            out.add(format!("{name}, computed in bf16: logits, root mean square"), error, BF16_COMPUTE);
        }
        if self.has("bf16.loss_f64") {
            let loss = self.loss(&model.cast(F32)?)?.item()?;
            out.add(format!("{name}, computed in f32: loss"), (loss - self.file.tensor("bf16.loss_f64")?.item()?).abs(), LOSS);
        }
        Ok(())
    }
}

/// Where a trace has what the fixture calls so.
fn module_of(name: &str, gpt2: bool) -> Option<String> {
    let (layers, norm) = if gpt2 { ("transformer.h", "transformer.ln_f") } else { ("model.layers", "model.norm") };
    if let Some(n) = name.strip_prefix("hidden.layer.") {
        return Some(format!("{layers}.{n}"));
    }
    let inside = match (name, gpt2) {
        ("hidden.embed", _) => return Some("embed".to_owned()),
        ("hidden.final_norm", _) => return Some(norm.to_owned()),
        ("l0.norm1", true) => "ln_1",
        ("l0.norm1", false) => "input_layernorm",
        ("l0.attn_out", true) => "attn.c_proj",
        ("l0.attn_out", false) => "self_attn.o_proj",
        ("l0.mlp_out", true) => "mlp.c_proj",
        ("l0.mlp_out", false) => "mlp.down_proj",
        ("l0.q", true) => "attn.q",
        ("l0.k", true) => "attn.k",
        ("l0.v", true) => "attn.v",
        ("l0.q", false) => "self_attn.q",
        ("l0.k", false) => "self_attn.k",
        ("l0.v", false) => "self_attn.v",
        _ => return None,
    };
    Some(format!("{layers}.0.{inside}"))
}

/// Files beside `config.json` and `model.safetensors` that hold the same model.
fn other_forms(folder: &Path, config: &ModelConfig, model: &LanguageModel, fixture: &Fixture, out: &mut Verification) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|e| io::failed("read", folder, e))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    let tokens = fixture.file.tensor("input_ids")?;
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("config.") && name.ends_with(".json") && name != "config.json" {
            let other = ModelConfig::open(&path)?;
            out.add(format!("{name} says what config.json says"), f64::from(u8::from(other != *config)), 0.0);
            continue;
        }
        let weights = (name.starts_with("model.") && name.ends_with(".safetensors") && name != "model.safetensors") || name == "sharded";
        if !weights {
            continue;
        }
        let other = from_files(config, WeightFiles::open(&path)?, &mut LoadOptions::default())?.0;
        let dtype = other.named_tensors().first().map(|(_, t)| t.dtype());
        match dtype {
            Some(DType::BF16) => fixture.rounded(&name, &other, out)?,
            Some(DType::F32) => {
                let (a, b) = (model.forward(&tokens)?.to_f64_vec()?, other.forward(&tokens)?.to_f64_vec()?);
                out.add(format!("{name} gives the same logits"), apart(&a, &b), 0.0);
            }
            // Other roundings of the weights have no reference: loading them is the check.
            Some(other) => out.add(format!("{name} loads as {other}"), 0.0, 0.0),
            None => {}
        }
    }
    if !out.checks.iter().any(|c| c.what.starts_with("model.bf16")) && (fixture.has("bf16.logits")) {
        fixture.rounded("weights rounded to bf16", &model.cast(BF16)?, out)?;
    }
    Ok(())
}
