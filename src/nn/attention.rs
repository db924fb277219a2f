//! Self-attention: in GPT-2's form (one projection for queries, keys and values) and in Llama's (one each, shared key
//! heads, rotary positions), both with a cache of past keys and values.

use super::cache::KvCache;
use super::layers::{Linear, LinearOptions, RmsNorm, must_divide};
use super::rotation::Rotation;
use crate::backend::Device;
use crate::dtype::{DType, U8};
use crate::error::{Error, Result, bail};
use crate::nn::Init;
use crate::notice::notice;
use crate::ops::sdpa::SdpaOptions;
use crate::ops::{RopeOptions, RopePositions};
use crate::rng::Key;
use crate::tensor::Tensor;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};

/// Options of attention besides its input; none by default.
#[derive(Debug, Default)]
pub struct Attend<'a> {
    /// Broadcasts to the scores `[batch, heads, time, keys]`: `u8`, 1 = attend; or floats added to the scores.
    pub mask: Option<&'a Tensor>,
    /// Which keys are real, `[batch, keys]` of `u8`: 1 = a key, 0 = padding that nobody attends to. Beside the mask, not instead of it; with a
    /// cache, of all its keys. PyTorch's `key_padding_mask` marks the others: a row without a real key is said once on stderr (on the CPU).
    pub key_padding: Option<&'a Tensor>,
    /// Positions `[time]` or `[batch, time]` for the rotation. Without: consecutive, from the cache's length on.
    pub positions: Option<&'a Tensor>,
    /// Turns queries and keys instead of the layer's own rotation: frequencies that are no powers of a base.
    pub rotation: Option<&'a Rotation>,
    /// Keys and values of the past: these are attended to as well, and the new ones are appended.
    pub cache: Option<&'a mut KvCache>,
    /// Names the dropout masks; without it there is no dropout.
    pub key: Option<Key>,
}

/// Attention of `q [batch, heads, time, head]` and the concatenation of its heads: `[batch, time, heads·head]`.
/// Dropout of the options is only done with a key.
pub(crate) fn attend(q: &Tensor, k: Tensor, v: Tensor, options: SdpaOptions, with: Attend<'_>) -> Result<Tensor> {
    let mut options = options;
    let (k, v) = match with.cache {
        Some(cache) => {
            if cache.is_fixed() {
                // Places are not those of the sequence: what is seen is the mask's to say.
                (options.causal, options.window) = (false, None);
            }
            cache.append(k, v)?
        }
        None => (k, v),
    };
    let dropout = if with.key.is_some() { options.dropout } else { 0.0 };
    let options = SdpaOptions { dropout, key: with.key.map(|k| k.fold(0)), ..options };
    let padded = with.key_padding.map(|real| padded(with.mask, real, &k)).transpose()?;
    let mask = padded.as_ref().or(with.mask);
    let y = q.scaled_dot_product_attention(&k, &v, mask, &options)?.permute([0, 2, 1, 3])?;
    y.flatten(2, 3)
}

/// Said once: texts without a token exist, and a mask the wrong way round is given at every step.
fn nothing_real(row: usize, rows: usize, batch: usize) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        tracing::warn!(row, rows, batch, "key_padding hides every key of a row");
        notice(format_args!(
            "key_padding hides every key of {rows} of {batch} rows (row {row} is the first): 1 is a real key and 0 padding; \
             PyTorch's key_padding_mask is the other way round (logical_not)"
        ));
    }
}

/// A mask that also hides the keys that are padding.
fn padded(mask: Option<&Tensor>, real: &Tensor, k: &Tensor) -> Result<Tensor> {
    let (batch, keys) = (k.size(0)?, k.size(2)?);
    if real.shape() != &[batch, keys] || real.dtype() != U8 {
        bail!(shape, "key_padding must be u8 [batch, keys]: key_padding {} {}, keys [{batch}, {keys}]", real.dtype(), real.shape());
    }
    if real.device() == Device::Cpu && keys > 0 {
        let values = real.array.cpu()?.contiguous::<u8>()?;
        let hidden = |row: &[u8]| row.iter().all(|r| *r == 0);
        if let Some(first) = values.chunks(keys).position(hidden) {
            nothing_real(first, values.chunks(keys).filter(|row| hidden(row)).count(), batch);
        }
    }
    let real = real.reshape([batch, 1, 1, keys])?;
    match mask {
        None => Ok(real),
        Some(mask) if mask.dtype() == U8 => mask.logical_and(&real),
        Some(added) => {
            let shape = added.shape().broadcast(real.shape())?;
            added.expand(shape)?.masked_fill(&real.logical_not()?, f64::NEG_INFINITY)
        }
    }
}

/// The extents of an input `[batch, time, width]`.
fn extents(x: &Tensor) -> Result<[usize; 3]> {
    match *x.shape().dims() {
        [batch, time, width] => Ok([batch, time, width]),
        _ => Err(Error::shape(format!("expected [batch, time, width], found {}", x.shape()))),
    }
}

/// Multi-head causal self-attention in GPT-2's form.
#[derive(Clone, Debug)]
pub struct CausalSelfAttention {
    /// `[3·width, width]`: queries, keys, values, one after the other.
    pub c_attn: Linear,
    /// `[width, width]`.
    pub c_proj: Linear,
    /// Number of heads; divides the width.
    pub heads: usize,
    /// Probability of dropping an attention weight or an output element in training.
    pub dropout: f64,
}
crate::module!(CausalSelfAttention { c_attn, c_proj } skip { heads, dropout });

impl CausalSelfAttention {
    /// `[batch, time, width]` to the same shape. With a key, dropout is active.
    ///
    /// # Errors
    /// Shape error when the input does not fit the weights.
    #[track_caller]
    pub fn forward(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        self.forward_with(x, Attend { key, ..Attend::default() })
    }

    /// [`CausalSelfAttention::forward`] with a mask or a cache.
    ///
    /// # Errors
    /// Shape error when input, mask or cache do not fit; argument error for positions, which this form has no use for.
    #[track_caller]
    pub fn forward_with(&self, x: &Tensor, with: Attend<'_>) -> Result<Tensor> {
        let at = Location::caller();
        let check = || {
            let [batch, time, width] = extents(x)?;
            if with.positions.is_some() || with.rotation.is_some() {
                bail!(argument, "positions belong to the rotation, which this attention does not have");
            }
            Ok([batch, time, must_divide("the width", width, "the number of heads", self.heads)?])
        };
        let [batch, time, head] = check().map_err(|e| e.in_op("attention", at))?;
        // [B, T, 3, H, D] -> [3, B, H, T, D]: three views, no copy.
        let qkv = self.c_attn.forward(x)?.reshape([batch, time, 3, self.heads, head])?.permute([2, 0, 3, 1, 4])?;
        let (q, k, v) = (qkv.select(0, 0)?, qkv.select(0, 1)?, qkv.select(0, 2)?);
        [(&q, "q"), (&k, "k"), (&v, "v")].iter().for_each(|(t, name)| t.tap_beside(&self.c_attn.weight, name));
        let key = with.key;
        let y = attend(&q, k, v, SdpaOptions { dropout: self.dropout, ..SdpaOptions::causal() }, with).map_err(|e| e.called_at(at))?;
        drop_out(&self.c_proj.forward(&y)?, self.dropout, key.map(|k| k.fold(1)))
    }
}

/// Sizes and options of a [`MultiHeadAttention`]. The default is causal attention of size zero without a rotation: set the sizes.
#[derive(Clone, Debug)]
pub struct AttentionConfig {
    /// Width of input and output.
    pub width: usize,
    /// Width of the values that keys and values are made of in [`cross`](MultiHeadAttention::cross) attention, where it is another.
    pub kv_width: Option<usize>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, each shared by `heads / kv_heads` query heads; divides `heads`. 0, the default: as many as there are heads.
    pub kv_heads: usize,
    /// Width of a head. 0, the default: `width / heads`.
    pub head: usize,
    /// Whether the projections of queries, keys and values have a bias (Qwen2).
    pub qkv_bias: bool,
    /// Whether the last projection has a bias.
    pub output_bias: bool,
    /// Added to the mean square in RMS norms on the heads of queries and keys (Qwen3); without it there are none.
    pub qk_norm: Option<f64>,
    /// Rotary positions; the field `positions` is set in each call.
    pub rope: Option<RopeOptions>,
    /// Whether a query sees only keys up to its own position.
    pub causal: bool,
    /// `(left, right)`: how many keys before and after its own position a query sees; `None`: all. A `sliding_window` of `n`
    /// keys is `(n − 1, 0)`. A cache keeps all keys.
    pub window: Option<(usize, usize)>,
    /// Caps scores at `±c` by `c · tanh(s / c)`.
    pub softcap: Option<f64>,
    /// Probability of dropping an attention weight in training.
    pub dropout: f64,
}

impl Default for AttentionConfig {
    fn default() -> Self {
        AttentionConfig {
            width: 0,
            kv_width: None,
            heads: 0,
            kv_heads: 0,
            head: 0,
            qkv_bias: false,
            output_bias: false,
            qk_norm: None,
            rope: None,
            causal: true,
            window: None,
            softcap: None,
            dropout: 0.0,
        }
    }
}

/// Multi-head self-attention with shared key heads and rotary positions, under the names of Llama and Qwen2.
///
/// ```
/// use cotangent::{F32, Key, Tensor, nn::{Attend, AttentionConfig, KvCache, MultiHeadAttention}, ops::RopeOptions};
/// let config = AttentionConfig { width: 16, heads: 4, kv_heads: 2, head: 4, rope: Some(RopeOptions::default()), ..AttentionConfig::default() };
/// let attention = MultiHeadAttention::new(&config, F32, Key::new(1))?;
/// let x = Tensor::randn([1, 5, 16], F32, Key::new(2))?;
/// let all = attention.forward(&x, None)?;
/// // Token by token, with the keys and values of the past kept:
/// let mut cache = KvCache::default();
/// for t in 0..5 {
///     let y = attention.forward_with(&x.narrow(1, t, 1)?, Attend { cache: Some(&mut cache), ..Attend::default() })?;
///     assert!(y.sub(&all.narrow(1, t, 1)?)?.abs()?.max(..)?.item()? < 1e-5);
/// }
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct MultiHeadAttention {
    /// `[heads·head, width]`.
    pub q_proj: Linear,
    /// `[kv_heads·head, width]`.
    pub k_proj: Linear,
    /// `[kv_heads·head, width]`.
    pub v_proj: Linear,
    /// `[width, heads·head]`.
    pub o_proj: Linear,
    /// Of the heads of queries, `[head]`.
    pub q_norm: Option<RmsNorm>,
    /// Of the heads of keys, `[head]`.
    pub k_norm: Option<RmsNorm>,
    /// Sizes and options.
    pub config: AttentionConfig,
}
crate::module!(MultiHeadAttention { q_proj, k_proj, v_proj, o_proj, q_norm, k_norm } skip { config });

impl MultiHeadAttention {
    /// Xavier's weights, zero biases.
    ///
    /// # Errors
    /// Argument error when a size is zero, the heads do not divide, or dropout or softcap are out of range; out of memory.
    #[track_caller]
    pub fn new(config: &AttentionConfig, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        Self::build(config, dtype, key.into())
    }

    #[track_caller]
    fn build(config: &AttentionConfig, dtype: DType, key: Key) -> Result<Self> {
        let at = Location::caller();
        let build = || {
            let mut c = config.clone();
            if c.width == 0 || c.heads == 0 {
                bail!(argument, "width and heads must be at least 1, found {} and {}", c.width, c.heads);
            }
            probability("dropout", c.dropout)?;
            if let Some(cap) = c.softcap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
                bail!(argument, "softcap must be positive and finite, found {cap}");
            }
            if c.kv_heads == 0 {
                c.kv_heads = c.heads;
            }
            if c.head == 0 {
                must_divide("width", c.width, "heads", c.heads)?;
                c.head = c.width / c.heads;
            }
            must_divide("heads", c.heads, "kv_heads", c.kv_heads)?;
            let Some(inner) = c.heads.checked_mul(c.head) else {
                bail!(out_of_memory, "{} heads of {} exceed the address space", c.heads, c.head);
            };
            let kv_width = c.kv_width.unwrap_or(c.width);
            let linear = |i, o, bias, k| Linear::with(i, o, dtype, key.fold(k), &LinearOptions { bias, init: Init::xavier() });
            Ok(MultiHeadAttention {
                q_proj: linear(c.width, inner, c.qkv_bias, 0)?,
                k_proj: linear(kv_width, c.kv_heads * c.head, c.qkv_bias, 1)?,
                v_proj: linear(kv_width, c.kv_heads * c.head, c.qkv_bias, 2)?,
                o_proj: linear(inner, c.width, c.output_bias, 3)?,
                q_norm: c.qk_norm.map(|eps| RmsNorm::new(c.head, eps, dtype)).transpose()?,
                k_norm: c.qk_norm.map(|eps| RmsNorm::new(c.head, eps, dtype)).transpose()?,
                config: c,
            })
        };
        build().map_err(|e| e.in_op("attention", at).called_at(at))
    }

    /// `[batch, time, width]` to the same shape. With a key, dropout is active.
    ///
    /// # Errors
    /// Shape error when the input does not fit the weights.
    #[track_caller]
    pub fn forward(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        self.forward_with(x, Attend { key, ..Attend::default() })
    }

    /// [`MultiHeadAttention::forward`] with a mask, positions or a cache.
    ///
    /// # Errors
    /// Shape error when input, mask, positions or cache do not fit; argument error for positions without a rotation.
    #[track_caller]
    pub fn forward_with(&self, x: &Tensor, with: Attend<'_>) -> Result<Tensor> {
        let at = Location::caller();
        let c = &self.config;
        let check = || {
            if with.positions.is_some() && c.rope.is_none() && with.rotation.is_none() {
                bail!(argument, "positions belong to the rotation, which this attention does not have");
            }
            Ok(())
        };
        check().map_err(|e| e.in_op("attention", at))?;
        let options = SdpaOptions { causal: c.causal, window: c.window, softcap: c.softcap, dropout: c.dropout, ..SdpaOptions::default() };
        self.run(x, x, options, with).map_err(|e| e.called_at(at))
    }

    /// Attention over other values than the input: queries of `x [batch, time, width]`, keys and values of `memory [batch, places, kv_width]`
    /// (an encoder's). Every place is seen but for the masks: `causal` and `window` are of self-attention.
    ///
    /// ```
    /// use cotangent::{F32, Key, Tensor, nn::{Attend, AttentionConfig, MultiHeadAttention}};
    /// let config = AttentionConfig { width: 8, kv_width: Some(6), heads: 2, kv_heads: 2, head: 4, qkv_bias: true, output_bias: true, ..Default::default() };
    /// let attention = MultiHeadAttention::new(&config, F32, Key::new(1))?;
    /// let (x, memory) = (Tensor::randn([2, 3, 8], F32, Key::new(2))?, Tensor::randn([2, 5, 6], F32, Key::new(3))?);
    /// let real = Tensor::from_slice(&[1u8, 1, 1, 1, 1, 1, 1, 0, 0, 0], [2, 5])?;
    /// let y = attention.cross(&x, &memory, Attend { key_padding: Some(&real), ..Attend::default() })?;
    /// assert_eq!(y.shape(), &[2, 3, 8]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Errors
    /// Shape error when inputs or masks do not fit; argument error for positions or a cache, or in attention with a rotation: they are of one
    /// sequence.
    #[track_caller]
    pub fn cross(&self, x: &Tensor, memory: &Tensor, with: Attend<'_>) -> Result<Tensor> {
        let at = Location::caller();
        let c = &self.config;
        let check = || {
            if with.positions.is_some() || with.rotation.is_some() || with.cache.is_some() || c.rope.is_some() {
                bail!(argument, "positions, a rotation and a cache are of self-attention, not of attention over other values");
            }
            if extents(x)?[0] != extents(memory)?[0] {
                bail!(shape, "input and memory are of different batches: x {}, memory {}", x.shape(), memory.shape());
            }
            Ok(())
        };
        check().map_err(|e| e.in_op("attention", at))?;
        let options = SdpaOptions { softcap: c.softcap, dropout: c.dropout, ..SdpaOptions::default() };
        self.run(x, memory, options, with).map_err(|e| e.called_at(at))
    }

    fn run(&self, x: &Tensor, memory: &Tensor, options: SdpaOptions, with: Attend<'_>) -> Result<Tensor> {
        let at = Location::caller();
        let c = &self.config;
        let [batch, ..] = extents(x).map_err(|e| e.in_op("attention", at))?;
        let split = |y: Tensor, heads: usize, norm: Option<&RmsNorm>| {
            let y = y.reshape([batch, y.size(1)?, heads, c.head])?;
            norm.map_or(Ok(y.clone()), |n| n.forward(&y))?.permute([0, 2, 1, 3])
        };
        let mut q = split(self.q_proj.forward(x).map_err(|e| e.in_layer("q_proj"))?, c.heads, self.q_norm.as_ref())?;
        let mut k = split(self.k_proj.forward(memory).map_err(|e| e.in_layer("k_proj"))?, c.kv_heads, self.k_norm.as_ref())?;
        let v = split(self.v_proj.forward(memory).map_err(|e| e.in_layer("v_proj"))?, c.kv_heads, None)?;
        if let Some(rotation) = with.rotation {
            (q, k) = (rotation.turn(&q)?, rotation.turn(&k)?);
        } else if let Some(rope) = &c.rope {
            let positions = match with.positions {
                Some(p) => RopePositions::Given(p.clone()),
                None => RopePositions::From(with.cache.as_ref().map_or(0, |c| c.len())),
            };
            let rope = RopeOptions { positions, ..rope.clone() };
            (q, k) = q.rope_with_key(&k, &rope)?;
        }
        [(&q, &self.q_proj, "q"), (&k, &self.k_proj, "k"), (&v, &self.v_proj, "v")]
            .iter()
            .for_each(|(t, beside, name)| t.tap_beside(&beside.weight, name));
        let y = attend(&q, k, v, options, with).map_err(|e| e.in_op("attention", at))?;
        self.o_proj.forward(&y).map_err(|e| e.in_layer("o_proj"))
    }
}

/// Refuses what is no probability when a layer is made: dropout would say so in training only, with a key.
pub(super) fn probability(what: &str, p: f64) -> Result<()> {
    if !(0.0..=1.0).contains(&p) {
        bail!(argument, "{what} must be a probability, between 0 and 1; found {p}");
    }
    Ok(())
}

/// Dropout when training (there is a key) and the probability is not zero.
#[track_caller]
pub(super) fn drop_out(x: &Tensor, p: f64, key: Option<Key>) -> Result<Tensor> {
    super::Dropout { p }.forward(x, key)
}
