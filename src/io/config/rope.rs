//! Rotary position embedding: base and stretching to longer contexts.

use super::fields::{Fields, positive};
use crate::memory;

/// Rotary position embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// The base of the frequencies, `θ^(−2i/head_dim)`.
    pub theta: f64,
    /// How frequencies are changed for contexts longer than those of pretraining.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are changed for longer contexts, with Hugging Face's names and meanings.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// Positions are divided by a factor.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// The base grows with the sequence, once it is longer than in pretraining.
    Dynamic {
        /// At least 1.
        factor: f64,
        /// Context of pretraining.
        original_positions: usize,
    },
    /// Low frequencies are stretched, high ones stay, those between are mixed (Peng et al. 2023).
    Yarn {
        /// At least 1.
        factor: f64,
        /// Context of pretraining.
        original_positions: usize,
        /// Factor of cosine and sine; from `factor` where the file does not say.
        attention_factor: f64,
        /// Rotations over the context above which a frequency stays.
        beta_fast: f64,
        /// Rotations over the context below which a frequency is stretched fully.
        beta_slow: f64,
        /// Whether the ends of the range between are rounded to whole indices.
        truncate: bool,
    },
    /// Wavelengths beyond the old context are stretched, short ones stay, those between are mixed (Llama 3.1).
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Context of pretraining.
        original_positions: usize,
        /// Wavelengths above `original_positions / low_freq_factor` are stretched fully.
        low_freq_factor: f64,
        /// Wavelengths below `original_positions / high_freq_factor` stay.
        high_freq_factor: f64,
    },
    /// Each frequency is divided by its own factor (`rope_freqs.weight` of GGUF files).
    Divided {
        /// One per pair of elements: `head_dim / 2`.
        factors: Vec<f32>,
    },
}

/// Where neither generation of files says otherwise, as in Hugging Face's classes.
const THETA: f64 = 10_000.0;

impl RopeConfig {
    /// From `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (4 and before).
    pub(super) fn parse(config: Fields<'_>, positions: usize) -> Result<Self, String> {
        if let Some(part) = config.optional_float("partial_rotary_factor")?.filter(|&p| p != 1.0) {
            return Err(format!("`partial_rotary_factor` is {part}; only whole heads are rotated here"));
        }
        let (name, prefix) = match (config.get("rope_parameters"), config.get("rope_scaling")) {
            (Some(_), _) => ("rope_parameters", "rope_parameters."),
            (None, Some(_)) => ("rope_scaling", "rope_scaling."),
            (None, None) => ("", ""),
        };
        let top = config.optional_float("rope_theta")?;
        let Some(value) = config.get(name) else {
            return Self { theta: top.unwrap_or(THETA), scaling: RopeScaling::None }.checked(positions);
        };
        let inner = Fields::of(value, prefix)?;
        let nested = inner.optional_float("rope_theta")?;
        if let (Some(a), Some(b)) = (nested, top)
            && a != b
        {
            return Err(format!("`{prefix}rope_theta` is {a}, but `rope_theta` is {b}"));
        }
        let scaling = RopeScaling::parse(inner, prefix, config, positions)?;
        Self { theta: nested.or(top).unwrap_or(THETA), scaling }.checked(positions)
    }

    fn checked(self, positions: usize) -> Result<Self, String> {
        self.check(positions).map(|()| self)
    }

    pub(super) fn check(&self, positions: usize) -> Result<(), String> {
        positive("rope_theta", self.theta)?;
        let at_least_one = |factor: f64| {
            if factor >= 1.0 && factor.is_finite() {
                Ok(())
            } else {
                Err(format!("`factor` of the rotary embedding is {factor}, expected at least 1"))
            }
        };
        let original = |n: usize| {
            if (1..=positions).contains(&n) {
                Ok(())
            } else {
                Err(format!("`original_max_position_embeddings` is {n}, expected 1 to {positions}"))
            }
        };
        let ordered = |low: (&str, f64), high: (&str, f64)| {
            positive(low.0, low.1)?;
            positive(high.0, high.1)?;
            if low.1 < high.1 { Ok(()) } else { Err(format!("`{}` is {}, expected more than `{}`, {}", high.0, high.1, low.0, low.1)) }
        };
        match self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => at_least_one(factor),
            RopeScaling::Dynamic { factor, original_positions } => at_least_one(factor).and_then(|()| original(original_positions)),
            RopeScaling::Yarn { factor, original_positions, attention_factor, beta_fast, beta_slow, .. } => {
                at_least_one(factor)?;
                original(original_positions)?;
                positive("attention_factor", attention_factor)?;
                ordered(("beta_slow", beta_slow), ("beta_fast", beta_fast))
            }
            RopeScaling::Llama3 { factor, original_positions, low_freq_factor, high_freq_factor } => {
                at_least_one(factor)?;
                original(original_positions)?;
                ordered(("low_freq_factor", low_freq_factor), ("high_freq_factor", high_freq_factor))
            }
            RopeScaling::Divided { ref factors } => factors.iter().try_for_each(|&f| positive("rope_freqs", f.into())),
        }
    }

    /// Frequencies of the `head_dim / 2` pairs, in radians per position, for sequences of `length`, and the factor that cosine and
    /// sine are multiplied by. Only [`RopeScaling::Dynamic`] depends on the length.
    ///
    /// ```
    /// use cotangent::io::{RopeConfig, RopeScaling};
    /// let rope = RopeConfig { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 2.0 } };
    /// let (frequencies, factor) = rope.frequencies(4, 16)?;
    /// assert!((frequencies[0] - 0.5).abs() < 1e-12 && (frequencies[1] - 0.005).abs() < 1e-12 && factor == 1.0);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Errors
    /// Out of memory.
    pub fn frequencies(&self, head_dim: usize, length: usize) -> crate::Result<(Vec<f64>, f64)> {
        let dim = head_dim as f64;
        let of = |theta: f64| (0..head_dim / 2).map(move |i| theta.powf(-2.0 * i as f64 / dim));
        let plain = of(self.theta);
        Ok(match self.scaling {
            RopeScaling::None => (memory::try_collect(plain)?, 1.0),
            RopeScaling::Linear { factor } => (memory::try_collect(plain.map(|f| f / factor))?, 1.0),
            RopeScaling::Dynamic { factor, original_positions } => {
                let old = original_positions as f64;
                let longest = (length as f64).max(old);
                let base = self.theta * (factor * longest / old - (factor - 1.0)).powf(dim / (dim - 2.0));
                (memory::try_collect(of(base))?, 1.0)
            }
            RopeScaling::Yarn { factor, original_positions, attention_factor, beta_fast, beta_slow, truncate } => {
                // The index at which a frequency turns so many times over the old context.
                let index = |turns: f64| dim * (original_positions as f64 / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln());
                let (mut low, mut high) = (index(beta_fast), index(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001; // not by zero below
                }
                let mix = |(i, f): (usize, f64)| {
                    let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * stretched + f * (1.0 - stretched)
                };
                (memory::try_collect(plain.enumerate().map(mix))?, attention_factor)
            }
            RopeScaling::Llama3 { factor, original_positions, low_freq_factor, high_freq_factor } => {
                let old = original_positions as f64;
                let change = |f: f64| {
                    let wavelength = std::f64::consts::TAU / f;
                    if wavelength < old / high_freq_factor {
                        f
                    } else if wavelength > old / low_freq_factor {
                        f / factor
                    } else {
                        let smooth = (old / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                (memory::try_collect(plain.map(change))?, 1.0)
            }
            RopeScaling::Divided { ref factors } => (memory::try_collect(plain.zip(factors).map(|(f, &d)| f / f64::from(d)))?, 1.0),
        })
    }
}

impl RopeScaling {
    /// `config` is the object around `inner`: older files have the old context there.
    fn parse(inner: Fields<'_>, prefix: &str, config: Fields<'_>, positions: usize) -> Result<Self, String> {
        let kind = match (inner.text("rope_type")?, inner.text("type")?) {
            (Some(a), Some(b)) if a != b => return Err(format!("`{prefix}rope_type` is `{a}`, but `{prefix}type` is `{b}`")),
            (a, b) => a.or(b).unwrap_or("default"),
        };
        let known: &[&str] = match kind {
            "default" => &[],
            "linear" | "dynamic" => &["factor", "original_max_position_embeddings"],
            "yarn" => &[
                "factor",
                "original_max_position_embeddings",
                "attention_factor",
                "beta_fast",
                "beta_slow",
                "truncate",
                "mscale",
                "mscale_all_dim",
            ],
            "llama3" => &["factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"],
            other => return Err(format!("`{prefix}rope_type` is `{other}`; default, linear, dynamic, yarn and llama3 are known here")),
        };
        // `finetuned` is a remark. What else is not known would be lost silently, and change every position.
        let always = ["rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"];
        if let Some(name) = inner.names().find(|n| !known.contains(n) && !always.contains(n)) {
            return Err(format!("`{prefix}{name}` means nothing for the type `{kind}`"));
        }
        if let Some(part) = inner.optional_float("partial_rotary_factor")?.filter(|&p| p != 1.0) {
            return Err(format!("`{prefix}partial_rotary_factor` is {part}; only whole heads are rotated here"));
        }
        if kind == "default" {
            return Ok(RopeScaling::None);
        }
        let factor = inner.float("factor")?;
        let original = match inner.optional_size("original_max_position_embeddings")? {
            None => config.optional_size("original_max_position_embeddings")?,
            own => own,
        };
        Ok(match kind {
            "linear" => RopeScaling::Linear { factor },
            "dynamic" => RopeScaling::Dynamic { factor, original_positions: original.unwrap_or(positions) },
            "yarn" => {
                let (mscale, all) = (inner.optional_float("mscale")?, inner.optional_float("mscale_all_dim")?);
                RopeScaling::Yarn {
                    factor,
                    original_positions: original.unwrap_or(positions),
                    attention_factor: inner.optional_float("attention_factor")?.unwrap_or_else(|| attention_factor(factor, mscale, all)),
                    beta_fast: inner.optional_float("beta_fast")?.unwrap_or(32.0),
                    beta_slow: inner.optional_float("beta_slow")?.unwrap_or(1.0),
                    truncate: inner.flag("truncate", true)?,
                }
            }
            _ => RopeScaling::Llama3 {
                factor,
                original_positions: original.ok_or_else(|| format!("`{prefix}original_max_position_embeddings` is missing"))?,
                low_freq_factor: inner.float("low_freq_factor")?,
                high_freq_factor: inner.float("high_freq_factor")?,
            },
        })
    }
}

/// YaRN's factor where a file does not give it, as in Hugging Face's `_compute_yarn_parameters`.
pub(crate) fn attention_factor(factor: f64, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> f64 {
    let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    match (mscale, mscale_all_dim) {
        (Some(a), Some(b)) if a != 0.0 && b != 0.0 => scale(a) / scale(b),
        _ => scale(1.0),
    }
}
