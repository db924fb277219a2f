//! The command line, and what it must not ask for.

use clap::Parser;
use cotangent::{DType, Device, Error, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Parser, Debug)]
#[command(about = "Train a small character-level GPT on a text")]
pub struct Args {
    /// UTF-8 text to learn; by default the crate's own sources and docs.
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Optimizer steps.
    #[arg(long, default_value_t = 2000)]
    pub steps: usize,
    /// Sequences per step.
    #[arg(long, default_value_t = 12)]
    pub batch: usize,
    /// Characters per sequence.
    #[arg(long, default_value_t = 64)]
    pub context: usize,
    /// Transformer blocks.
    #[arg(long, default_value_t = 4)]
    pub layers: usize,
    /// Attention heads per block.
    #[arg(long, default_value_t = 4)]
    pub heads: usize,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 128)]
    pub width: usize,
    /// Dropout probability.
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.0)]
    pub dropout: f64,
    /// Biases in linear layers and norms.
    #[arg(long)]
    pub bias: bool,
    /// Highest learning rate.
    #[arg(long, allow_negative_numbers = true, default_value_t = 3e-3)]
    pub lr: f64,
    /// Final learning rate [default: a tenth of --lr].
    #[arg(long, allow_negative_numbers = true)]
    pub min_lr: Option<f64>,
    /// Warm-up steps [default: 100, or a tenth of a run of less than 1000 steps].
    #[arg(long)]
    pub warmup: Option<usize>,
    /// Weight decay of matrices.
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.1)]
    pub weight_decay: f64,
    /// Second Adam moment's decay.
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.99)]
    pub beta2: f64,
    /// Largest global gradient norm; the default batch has norms of 1.4 to 1.6.
    #[arg(long, allow_negative_numbers = true, default_value_t = 3.0)]
    pub clip: f64,
    /// Steps between validations.
    #[arg(long, default_value_t = 250)]
    pub eval_every: usize,
    /// Validation batches.
    #[arg(long, default_value_t = 20)]
    pub eval_batches: usize,
    /// Seed of weights, batches, dropout and sampling.
    #[arg(long, default_value_t = 1337)]
    pub seed: u64,
    /// Type to compute in: f32, f64, bf16 or f16. Parameters stay f32 (f64 for f64).
    #[arg(long, default_value = "f32")]
    pub dtype: DType,
    /// Device to train on.
    #[arg(long, default_value = "cpu")]
    pub device: Device,
    /// CPU threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Characters to generate at the end.
    #[arg(long, default_value_t = 400)]
    pub sample: usize,
    /// Sampling temperature.
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.8)]
    pub temperature: f64,
    /// Folder for snapshots and metrics (CSV, JSONL, TensorBoard).
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Steps between records of gradient health, which --out keeps as `health.html`; 0 for none.
    #[arg(long, default_value_t = 10)]
    pub health_every: usize,
    /// Steps between snapshots.
    #[arg(long, default_value_t = 250)]
    pub save_every: usize,
    /// Continue from the newest snapshot in --out, if there is one.
    #[arg(long)]
    pub resume: bool,
}

/// Beyond this, threads only cost.
const MOST_THREADS: usize = 1024;

impl Args {
    pub fn floor(&self) -> f64 {
        self.min_lr.unwrap_or(self.lr / 10.0)
    }

    pub fn warmup_steps(&self) -> usize {
        self.warmup.unwrap_or_else(|| (self.steps / 10).min(100))
    }

    /// The type of the parameters.
    pub fn master(&self) -> DType {
        if self.dtype == cotangent::F64 { cotangent::F64 } else { cotangent::F32 }
    }

    /// Steps in a row that may be left out: a tenth of the run, since nothing here makes a loss that is not finite come back.
    pub fn patience(&self) -> usize {
        (self.steps / 10).clamp(3, 100)
    }

    /// What a run must have in common with the one it continues; `data` says which text it is, wherever it lies.
    pub fn settings(&self, data: String) -> BTreeMap<String, String> {
        let all: [(&str, String); 17] = [
            ("data", data),
            ("steps", self.steps.to_string()),
            ("batch", self.batch.to_string()),
            ("context", self.context.to_string()),
            ("layers", self.layers.to_string()),
            ("heads", self.heads.to_string()),
            ("width", self.width.to_string()),
            ("dropout", self.dropout.to_string()),
            ("bias", self.bias.to_string()),
            ("lr", self.lr.to_string()),
            ("min-lr", self.floor().to_string()),
            ("warmup", self.warmup_steps().to_string()),
            ("weight-decay", self.weight_decay.to_string()),
            ("beta2", self.beta2.to_string()),
            ("clip", self.clip.to_string()),
            ("seed", self.seed.to_string()),
            ("dtype", self.dtype.to_string()),
        ];
        all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// How fast so many steps were made.
    pub fn speed(&self, made: usize, seconds: f64) -> String {
        if made == 0 {
            return "no steps were left to make".to_owned();
        }
        let (steps, seconds) = (made as f64, seconds.max(1e-9));
        let rate = steps * (self.batch * self.context) as f64 / seconds;
        format!("{made} steps in {seconds:.1} s: {:.1} ms per step, {rate:.0} tokens/s", 1e3 * seconds / steps)
    }

    /// Refuses what cannot work, before anything is read or built.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("steps", self.steps),
            ("batch", self.batch),
            ("context", self.context),
            ("layers", self.layers),
            ("heads", self.heads),
            ("width", self.width),
            ("eval-every", self.eval_every),
            ("eval-batches", self.eval_batches),
            ("save-every", self.save_every),
        ];
        for (what, n) in positive {
            if n == 0 {
                return Err(Error::argument(format!("--{what} must be at least 1")));
            }
        }
        let refuse = |wrong: bool, message: String| if wrong { Err(Error::argument(message)) } else { Ok(()) };
        let within = |x: f64| (0.0..1.0).contains(&x);
        let (lr, floor, warmup) = (self.lr, self.floor(), self.warmup_steps());
        refuse(!(lr > 0.0 && lr.is_finite()), format!("--lr must be positive and finite, found {lr}"))?;
        refuse(!(floor >= 0.0), format!("--min-lr must not be negative, found {floor}"))?;
        refuse(floor > lr, format!("--min-lr {floor} is above --lr {lr}"))?;
        refuse(warmup > self.steps, format!("--warmup {warmup} is longer than the run of {} steps", self.steps))?;
        refuse(!within(self.beta2), format!("--beta2 must be in [0, 1), found {}", self.beta2))?;
        refuse(!within(self.dropout), format!("--dropout must be in [0, 1), found {}", self.dropout))?;
        refuse(!(self.clip > 0.0), format!("--clip must be positive, found {}", self.clip))?;
        let decay = self.weight_decay;
        refuse(!(decay >= 0.0 && decay.is_finite()), format!("--weight-decay must be finite and not negative, found {decay}"))?;
        refuse(!(self.temperature >= 0.0), format!("--temperature must not be negative, found {}", self.temperature))?;
        refuse(self.threads > MOST_THREADS, format!("--threads {} is more than {MOST_THREADS}", self.threads))?;
        refuse(self.resume && self.out.is_none(), "--resume needs the folder of the run: --out FOLDER".to_owned())?;
        if !self.dtype.is_float() {
            return Err(Error::dtype(format!("--dtype {} cannot be trained in; use f32, f64, bf16 or f16", self.dtype)));
        }
        self.fits(memory())
    }

    /// Whether so many bytes could hold the run, by an estimate that errs towards yes: without the vocabulary, and of what the
    /// sweep keeps only the largest parts. In floats, which do not overflow.
    fn fits(&self, memory: f64) -> Result<()> {
        let (layers, width, context) = (self.layers as f64, self.width as f64, self.context as f64);
        let matrices = layers * 12.0 * width * width + context * width;
        let tensors = layers * if self.bias { 12.0 } else { 6.0 };
        // Value, gradient and two moments, each with its bookkeeping.
        let state = 4.0 * (matrices * self.master().size() as f64 + tensors * 256.0);
        // A block keeps more than eight times its input.
        let kept = self.batch as f64 * context * width * layers * 8.0 * self.dtype.size() as f64;
        let need = state + kept;
        if need <= memory {
            return Ok(());
        }
        let gib = |bytes: f64| bytes / f64::from(1 << 30);
        Err(Error::out_of_memory(format!(
            "{} layers of width {} with batches of {} × {} need at least {:.0} GiB of memory; there are {:.1}",
            self.layers,
            self.width,
            self.batch,
            self.context,
            gib(need).ceil(),
            gib(memory)
        )))
    }
}

/// Bytes of memory this process may use, where the system says so (Linux); else what can be addressed.
fn memory() -> f64 {
    let read = |path: &str| String::from_utf8(cotangent::io::read_file(path, 1 << 20).ok()?).ok();
    let installed = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
        Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
    });
    // A container's limit; the word `max` when there is none.
    let allowed = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse().ok());
    [installed, allowed].into_iter().flatten().fold(isize::MAX as f64, f64::min)
}
