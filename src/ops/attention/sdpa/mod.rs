//! Scaled dot-product attention.

mod define;
mod option_samples;
mod samples;

use crate::backend::attention::{self as options, Options, check_offsets, seen_packed};
use crate::backend::cpu::attention::{self, Attention, Bars};
use crate::backend::{cpu, cuda};
use crate::dtype::{Element, I64, U8, with_dtype, with_float};
use crate::error::{Result, bail};
use crate::memory;
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply, apply1, apply1_as, expect};
use crate::ops::differentiate_vjp;
use crate::rng::Key;
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Options of [`Tensor::scaled_dot_product_attention`]; the default is plain attention. They combine in any way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SdpaOptions {
    /// Query `i` sees keys up to `i + Tk − Tq`: the last query sees every key.
    pub causal: bool,
    /// `(left, right)`: query `i` sees only keys from `i + Tk − Tq − left` to `i + Tk − Tq + right`; `usize::MAX` is no limit.
    /// Tiles of scores outside are skipped, so the time is proportional to `Tq · (left + right)`.
    pub window: Option<(usize, usize)>,
    /// Caps scores at `±c` before masks are added: `s` becomes `c · tanh(s / c)`.
    pub softcap: Option<f64>,
    /// Factor of the scores; `None` is `1/√D`.
    pub scale: Option<f64>,
    /// Probability that a weight is dropped; the others are divided by the probability of keeping. At 1 all are zero.
    pub dropout: f64,
    /// Names the dropout mask, which is drawn by the number of a score in `[.., Hq, Tq, Tk]`. Needed when `dropout` is not 0.
    pub key: Option<Key>,
}

impl SdpaOptions {
    /// Causal attention.
    pub fn causal() -> Self {
        SdpaOptions { causal: true, ..Self::default() }
    }

    /// Causal attention of each query to its own key and the `keys − 1` before it, as Mistral's `sliding_window`; its own key is
    /// always seen.
    pub fn sliding(keys: usize) -> Self {
        SdpaOptions { window: Some((keys.saturating_sub(1), 0)), ..Self::causal() }
    }

    pub(super) fn scale_for(&self, d: usize) -> f64 {
        self.scale.unwrap_or(if d == 0 { 1.0 } else { 1.0 / (d as f64).sqrt() })
    }

    pub(super) fn keep(&self) -> Option<(Key, f64)> {
        self.key.filter(|_| self.dropout > 0.0).map(|k| (k, 1.0 - self.dropout))
    }

    /// The kernels' options, for heads of `d`.
    fn numbers(&self, d: usize) -> Options {
        let band = match (self.causal, self.window) {
            (false, None) => None,
            (false, window) => window,
            (true, window) => Some((window.map_or(usize::MAX, |(left, _)| left), 0)),
        };
        Options { scale: self.scale_for(d), softcap: self.softcap, band, dropout: self.keep() }
    }

    /// Checks the options alone.
    fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.dropout) {
            bail!(argument, "dropout {} is not a probability", self.dropout);
        }
        if self.dropout > 0.0 && self.key.is_none() {
            bail!(argument, "dropout {} needs a key", self.dropout);
        }
        if let Some(s) = self.scale.filter(|s| !s.is_finite()) {
            bail!(argument, "the scale must be finite, found {s}");
        }
        if let Some(c) = self.softcap.filter(|&c| !(c > 0.0 && c.is_finite())) {
            bail!(argument, "the soft cap must be positive and finite, found {c}");
        }
        Ok(())
    }
}

/// `[.., Hq, Tq, Tk]`.
fn scores_shape(q: &Shape, k: &Shape) -> Shape {
    q.with_dim(q.rank() - 1, k[k.rank() - 2])
}

/// Attention as an op on `q, k, v`, perhaps a mask, and perhaps the offsets of packed sequences of queries and of keys; see
/// [`Tensor::scaled_dot_product_attention`].
#[derive(Clone, Debug)]
pub struct SdpaOp {
    /// The options.
    pub options: SdpaOptions,
    /// The mask, if there is one, is of `u8` and not additive.
    pub boolean: bool,
    /// The last two inputs are offsets.
    pub packed: bool,
}

impl SdpaOp {
    /// The mask and the offsets among the inputs.
    pub(super) fn parts<'x, X>(&self, x: &'x [X]) -> (Option<&'x X>, Option<(&'x X, &'x X)>) {
        match (self.packed, x) {
            (true, [head @ .., of_q, of_k]) => (head.get(3), Some((of_q, of_k))),
            _ => (x.get(3), None),
        }
    }

    fn attention<'a>(&self, x: &[cpu::In<'a>]) -> Result<Attention<'a>> {
        let (qs, ks) = (x[0].shape(), x[1].shape());
        let r = qs.rank();
        let (mask, offsets) = self.parts(x);
        let mask = match mask {
            Some(m) => Some((*m, m.layout().expand(&scores_shape(qs, ks))?)),
            None => None,
        };
        let offsets = match offsets {
            Some((q, k)) => Some((check_offsets("queries", &integers(q)?, qs[r - 2])?, check_offsets("keys", &integers(k)?, ks[r - 2])?)),
            None => None,
        };
        Ok(Attention { q: x[0], k: x[1], v: x[2], mask, offsets, options: self.options.numbers(qs[r - 1]) })
    }

    fn attention_on_device<'a>(&self, x: &[cuda::In<'a>]) -> Result<cuda::attention::Attention<'a>> {
        let qs = x[0].shape();
        let (mask, offsets) = self.parts(x);
        cuda::attention::Attention::new([&x[0], &x[1], &x[2]], mask, offsets, &self.options.numbers(qs[qs.rank() - 1]))
    }

    /// Checks shared by the op and its derivative; gives the shape of the result.
    fn check(&self, x: &[Spec]) -> Result<Spec> {
        let dtype = expect::same_float(&x[..3])?;
        let (q, k, v) = (&x[0].shape, &x[1].shape, &x[2].shape);
        let r = q.rank();
        if r >= 3
            && k.rank() == r
            && k[..r - 2] == q[..r - 2]
            && k[r - 1] != q[r - 1]
            && [k[r - 1], k[r - 2]] == [v[v.rank() - 2], q[r - 1]]
        {
            bail!(shape, "keys are transposed: q {q}, k {k}, v {v}; expected k [.., Tk, D] as the values: k.transpose(-1, -2)?");
        }
        if r < 3 || k.rank() != r || v.rank() != r || k[..r - 3] != q[..r - 3] || v[..r - 1] != k[..r - 1] || k[r - 1] != q[r - 1] {
            bail!(
                shape,
                "operands do not fit: q {q}, k {k}, v {v}; expected q [.., Hq, Tq, D], k [.., Hkv, Tk, D], v [.., Hkv, Tk, Dv] with equal leading axes"
            );
        }
        if q[r - 3] != k[r - 3] && (k[r - 3] == 0 || !q[r - 3].is_multiple_of(k[r - 3])) {
            bail!(shape, "{} query heads cannot share {} key heads evenly: q {q}, k {k}", q[r - 3], k[r - 3]);
        }
        let scores = scores_shape(q, k);
        options::check_scores(scores[..r - 2].iter().product(), q[r - 2], k[r - 2])?;
        let (mask, offsets) = self.parts(x);
        if let Some(m) = mask {
            let expected = if self.boolean { U8 } else { dtype };
            if m.dtype != expected {
                bail!(dtype, "expected a mask of u8 (1 = attend) or {dtype} (added to the scores), found {}: cast it", m.dtype);
            }
            if m.shape.broadcast(&scores).ok().as_ref() != Some(&scores) {
                // [batch, queries, keys], or [batch, keys].
                let fits = |inserted: usize| {
                    m.shape.rank() + inserted == r && r == 4 && m.shape[0] == scores[0] && {
                        let rest = &m.shape[1..];
                        rest.iter().rev().zip(scores.iter().rev()).all(|(m, s)| m == s || *m == 1)
                    }
                };
                let hint = match (fits(1), fits(2)) {
                    (true, _) => "; its axis of heads is missing: mask.unsqueeze(1)?",
                    (_, true) => "; its axes of heads and queries are missing: mask.reshape([batch, 1, 1, keys])?",
                    _ => "",
                };
                bail!(shape, "mask {} does not broadcast to the scores {scores}: q {q}, k {k}{hint}", m.shape);
            }
        }
        if let Some((of_q, of_k)) = offsets {
            expect::index(of_q)?;
            expect::index(of_k)?;
            if of_q.shape != of_k.shape || of_q.shape.rank() != 1 || of_q.shape[0] == 0 {
                bail!(shape, "offsets of queries and keys must be [n + 1] for n sequences, found {} and {}", of_q.shape, of_k.shape);
            }
        }
        self.options.check()?;
        Ok(Spec { shape: q.with_dim(r - 1, v[r - 1]), dtype })
    }
}

/// The elements of an operand of integers.
fn integers(x: &cpu::In<'_>) -> Result<Vec<i64>> {
    Ok(with_dtype!(x.dtype(), T => memory::try_collect(x.contiguous::<T>()?.iter().map(|&v| Element::to_f64(v) as i64))?))
}

/// The derivative kernel of [`SdpaOp`]: its inputs and `ȳ` to the wanted ones of `q̄, k̄, v̄` and the mask's cotangent.
#[derive(Clone, Debug)]
pub struct SdpaVjp {
    /// The op it belongs to.
    pub of: SdpaOp,
    /// Which cotangents.
    pub want: [bool; 4],
}

impl Describe for SdpaOp {
    const NAME: &'static str = "scaled_dot_product_attention";
    const MATH: Math = Math {
        forward: "S = cap(scale · q kᵀ) + mask with cap(s) = c tanh(s / c), P = softmax(S) over the keys that are seen, y = dropout(P) v; query head h reads key head h / (Hq / Hkv)",
        vjp: "v̄ = dropout(P)ᵀ ȳ, P̄ = dropout(ȳ vᵀ), S̄ = P · (P̄ − Σ P P̄), Z̄ = S̄ · cap′, q̄ = scale · Z̄ k, k̄ = scale · Z̄ᵀ q, mask: S̄ summed over its broadcast axes",
        kinks: "smooth; a query that sees no key gives exactly 0 and takes no gradient; a key of weight exactly 0 contributes nothing, even if it holds NaN or infinity",
        cost: "2·Tq·Tk·(D + Dv) arithmetic a head, half of it when causal, in proportion to a window or the sequences' own squares, 2.5 times that for the derivative; saves q, k, v, mask, nothing of size Tq·Tk",
        references: "Vaswani et al., Attention is all you need (2017); Dao, FlashAttention-2 (2023), arXiv:2307.08691; torch.nn.functional.scaled_dot_product_attention",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        define::attention(self, x)
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        samples::samples(g)
    }
}

impl Op for SdpaOp {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        Ok(smallvec![self.check(x)?])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let a = self.attention(x)?;
        with_float!(x[0].dtype(), T => attention::forward::<T>(&a, y[0].slice::<T>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        self.attention_on_device(x)?.forward(&mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::list(x.iter().map(|t| Some((*t).clone())))
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let inputs: Vec<&Tensor> = (0..want.len()).map(|i| saved.get(i)).collect::<Result<_>>()?;
        let mut all = [false; 4];
        all.iter_mut().zip(want).for_each(|(to, &w)| *to = w);
        let bars = apply(SdpaVjp { of: self.clone(), want: all }, &[&inputs[..], &[y_bar.only()?]].concat())?;
        let mut bars = bars.into_iter();
        Ok(want.iter().map(|w| if *w { bars.next() } else { None }).collect())
    }
}

impl Describe for SdpaVjp {
    const NAME: &'static str = "scaled_dot_product_attention_vjp";
    const MATH: Math = Math {
        forward: "v̄ = dropout(P)ᵀ ȳ, P̄ = dropout(ȳ vᵀ), S̄ = P · (P̄ − Σ P P̄), Z̄ = S̄ · cap′, q̄ = scale · Z̄ k, k̄ = scale · Z̄ᵀ q, mask: S̄ summed over its broadcast axes",
        vjp: "the derivative of the composition of matmul, add, softmax and mul",
        kinks: "as scaled_dot_product_attention",
        cost: "five products of Tq × Tk × D a head, half of each when causal; P is computed again; the mask's cotangent takes two more",
        references: "Dao, FlashAttention-2 (2023), arXiv:2307.08691, §2.3",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        define::cotangents(self, x)
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        samples::vjp_samples(g)
    }
}

impl Op for SdpaVjp {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let (x, g) = (&x[..x.len() - 1], &x[x.len() - 1]);
        let y = self.of.check(x)?;
        if *g != y {
            bail!(shape, "the cotangent is {} {}, the result {} {}", g.dtype, g.shape, y.dtype, y.shape);
        }
        Ok(x.iter().zip(self.want).filter(|(_, w)| *w).map(|(x, _)| x.clone()).collect())
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let (x, g) = (&x[..x.len() - 1], x[x.len() - 1]);
        let a = self.of.attention(x)?;
        let mut outs = y.iter_mut();
        let [q, k, v, mask] = self.want.map(|w| if w { outs.next() } else { None });
        with_float!(x[0].dtype(), T => {
            if self.want[..3].contains(&true) {
                let bars = Bars { q: q.map(|o| o.slice::<T>()), k: k.map(|o| o.slice::<T>()), v: v.map(|o| o.slice::<T>()) };
                attention::backward::<T>(&a, &g, bars)?;
            }
            if let Some(o) = mask {
                let shape = o.shape().clone();
                attention::backward_mask::<T>(&a, &g, &shape, o.slice::<T>())?;
            }
        });
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let (x, g) = (&x[..x.len() - 1], &x[x.len() - 1]);
        let mut outs = y.iter_mut();
        let bars = self.want.map(|w| if w { outs.next() } else { None });
        self.of.attention_on_device(x)?.backward(g, bars)
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::list(x.iter().map(|t| Some((*t).clone())))
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let n = want.len() - 1;
        let inputs: Vec<Tensor> = (0..n).map(|i| saved.get(i).cloned()).collect::<Result<_>>()?;
        let mut outputs = 0;
        let bars: Vec<Option<Tensor>> = (0..n)
            .map(|i| {
                let wanted = self.want.get(i) == Some(&true);
                let bar = if wanted { y_bar.get(outputs).cloned() } else { None };
                outputs += usize::from(wanted);
                bar
            })
            .collect();
        let op = self.of.clone();
        differentiate_vjp(&inputs, &[saved.get(n)?.clone()], &bars, want, move |x| Ok(smallvec![op.composition(x)?]))
    }
}

impl SdpaOp {
    /// What the kernels fuse, in tensor ops: for second and higher derivatives.
    fn composition(&self, x: &[Tensor]) -> Result<Tensor> {
        let (q, k, v) = (&x[0], &x[1], &x[2]);
        let r = q.rank();
        let scores = scores_shape(q.shape(), k.shape());
        let (tq, tk, d) = (scores[r - 2], scores[r - 1], q.shape()[r - 1]);
        // [.., key head, query head of the group, row, column]
        let grouped = |heads: usize, group: usize, rows: usize, cols: usize| {
            q.shape()[..r - 3].iter().copied().chain([heads, group, rows, cols]).collect::<Shape>()
        };
        let (hq, hkv) = (q.shape()[r - 3], k.shape()[r - 3]);
        let group = hq.checked_div(hkv).unwrap_or(1);
        let full = |shape: &[usize], x: f64| Tensor::full_on(shape, x, q.dtype(), q.device());
        let options = self.options.numbers(d);
        let k = k.reshape(grouped(hkv, 1, tk, d))?;
        let mut s = q.reshape(grouped(hkv, group, tq, d))?.matmul_nt(&k)?.mul(&full(&[], options.scale)?)?.reshape(&scores)?;
        if let Some(c) = options.softcap {
            let c = full(&[], c)?;
            s = s.div(&c)?.tanh()?.mul(&c)?;
        }
        // What is forbidden, as a constant.
        let (mask, offsets) = self.parts(x);
        if let Some((of_q, of_k)) = offsets {
            let list = |x: &Tensor| x.untracked().cast(I64)?.to_vec::<i64>();
            let (of_q, of_k) = (check_offsets("queries", &list(of_q)?, tq)?, check_offsets("keys", &list(of_k)?, tk)?);
            let seen = seen_packed(options.band, &of_q, &of_k)?;
            let mut hidden: Vec<f32> = memory::room(seen.len().saturating_mul(tk))?;
            hidden.extend(seen.iter().flat_map(|r| (0..tk).map(|j| if r.contains(&j) { 0.0 } else { f32::NEG_INFINITY })));
            s = s.add(&Tensor::from_vec(hidden, [tq, tk])?.to_device(q.device())?.cast(q.dtype())?)?;
        } else if let Some((left, right)) = options.band {
            let hidden = full(&[tq, tk], f64::NEG_INFINITY)?;
            // A diagonal beyond the corners is as good as one at them.
            let own = tk as isize - tq as isize;
            let ahead = |n: usize| isize::try_from(n).unwrap_or(isize::MAX).min((tq + tk) as isize);
            s = s.add(&hidden.triu(own + ahead(right) + 1)?)?.add(&hidden.tril(own - ahead(left) - 1)?)?;
        }
        match mask {
            Some(m) if self.boolean => {
                let open = full(m.shape(), 0.0)?;
                s = s.add(&open.masked_fill(&m.untracked().logical_not()?, f64::NEG_INFINITY)?)?;
            }
            Some(m) => s = s.add(m)?,
            None => {}
        }
        let mut p = s.softmax(-1)?;
        if let Some((key, _)) = self.options.keep() {
            p = p.dropout(self.options.dropout, key)?;
        }
        let dv = v.shape()[r - 1];
        let y = p.reshape(grouped(hkv, group, tq, tk))?.matmul(&v.reshape(grouped(hkv, 1, tk, dv))?)?;
        y.reshape(q.shape().with_dim(r - 1, dv))
    }
}

impl Tensor {
    /// Attention: `softmax(scale · q kᵀ + mask) v`, with `self` as the queries.
    ///
    /// ```
    /// use cotangent::{Tape, Tensor, ops::SdpaOptions};
    /// let tape = Tape::new();
    /// let q = tape.watch(&Tensor::from_slice(&[1f64, 0., 0., 1.], [1, 2, 2])?)?;
    /// let v = Tensor::from_slice(&[1f64, 2.], [1, 2, 1])?;
    /// let y = q.scaled_dot_product_attention(&q, &v, None, &SdpaOptions::causal())?;
    /// assert_eq!(y.to_vec::<f64>()?[0], 1.0); // the first query sees only the first key
    /// let grads = tape.backward(&y.sum(..)?)?;
    /// assert_eq!(grads.get(&q)?.shape(), &[1, 2, 2]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// Of `q`, `k`, `v` and an additive mask, by a fused kernel that computes the weights again: q, k, v and the mask are
    /// saved, and nothing of the size of the scores. A query that sees no key gives exactly 0 and takes and gives no gradient.
    /// Behind a soft cap the slope is `1 / cosh²(s / c)`, without cancellation for large scores.
    ///
    /// # Shapes
    /// `q [.., Hq, Tq, D]`, `k [.., Hkv, Tk, D]`, `v [.., Hkv, Tk, Dv]` give `[.., Hq, Tq, Dv]`. Leading axes are equal. Query
    /// head `h` reads key head `h / (Hq / Hkv)`. The mask broadcasts to `[.., Hq, Tq, Tk]`: `u8` (1 = attend), or a float
    /// that is added to the scores, −∞ to forbid. Causal attention and windows align the last query with the last key.
    ///
    /// # Numerics
    /// Scores and sums in f32 (f64 for f64) whatever the storage type, over whole rows. On CUDA's tensor cores (half types, no mask,
    /// no dropout, D and Dv multiples of 8 up to 128) weights and their cotangents are rounded to the type before they are multiplied. Keys of weight exactly 0 (masked, or
    /// underflowed) contribute nothing, in either direction, even when their k or v holds NaN or infinity; a NaN in a key
    /// that is seen reaches every query that sees it. The bits do not depend on the number of threads.
    ///
    /// # Errors
    /// Shape error when operands or mask do not fit; dtype error unless q, k, v have one float type and the mask is `u8` or
    /// float; argument error for a dropout outside `[0, 1]` or without a key, for a scale that is not finite, and for a soft
    /// cap that is not positive and finite.
    #[doc(alias("sdpa", "flash_attention"))]
    #[track_caller]
    pub fn scaled_dot_product_attention(&self, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, options: &SdpaOptions) -> Result<Tensor> {
        let op = SdpaOp { options: options.clone(), boolean: mask.is_some_and(|m| m.dtype() == U8), packed: false };
        match mask {
            Some(m) => apply1(op, &[self, k, v, m]),
            None => apply1(op, &[self, k, v]),
        }
    }

    /// Attention within sequences of different lengths that follow one another, without padding.
    ///
    /// Sequence `s` has the queries `offsets_q[s]..offsets_q[s + 1]` and the keys `offsets_k[s]..offsets_k[s + 1]`; scores of
    /// different sequences are not computed. Both lists of integers start with 0 and end with the number of rows.
    ///
    /// ```
    /// use cotangent::{F64, Key, Tensor, ops::SdpaOptions, value_and_grad};
    /// let x = Tensor::randn([1, 5, 4], F64, Key::new(1))?; // [heads, time, D]: sequences of 3 and of 2 rows
    /// let offsets = Tensor::from_slice(&[0i64, 3, 5], [3])?;
    /// let attend = |x: &Tensor| x.scaled_dot_product_attention_packed(x, x, None, &offsets, &offsets, &SdpaOptions::causal());
    /// let (_, g) = value_and_grad(&x, |x| attend(x)?.slice(1, 3..5)?.sum(..))?;
    /// assert!(g.slice(1, 0..3)?.to_vec::<f64>()?.iter().all(|&g| g == 0.0)); // the other sequence
    /// assert!(g.slice(1, 3..5)?.to_vec::<f64>()?.iter().all(|&g| g != 0.0));
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// As [`Tensor::scaled_dot_product_attention`]; the offsets have none.
    ///
    /// # Shapes
    /// As there, with the rows of all sequences on the axis of time; offsets `[n + 1]` for `n` sequences, of which any may be
    /// empty. Causal attention and windows align the last query of a sequence with its last key. Dropout masks are drawn, and
    /// masks broadcast, by the place among all rows.
    ///
    /// # Numerics
    /// As there. On a GPU reading the offsets back waits for the device, except in a captured step, whose replay checks them.
    ///
    /// # Errors
    /// As there; dtype error for offsets that are no integers; argument error for offsets that fall, do not start with 0 or
    /// do not end with the number of rows.
    #[track_caller]
    pub fn scaled_dot_product_attention_packed(
        &self,
        k: &Tensor,
        v: &Tensor,
        mask: Option<&Tensor>,
        offsets_q: &Tensor,
        offsets_k: &Tensor,
        options: &SdpaOptions,
    ) -> Result<Tensor> {
        const PACKED: &str = "scaled_dot_product_attention_packed";
        let op = SdpaOp { options: options.clone(), boolean: mask.is_some_and(|m| m.dtype() == U8), packed: true };
        match mask {
            Some(m) => apply1_as(PACKED, op, &[self, k, v, m, offsets_q, offsets_k]),
            None => apply1_as(PACKED, op, &[self, k, v, offsets_q, offsets_k]),
        }
    }
}
