//! Scaled dot-product attention.

use super::differentiate_vjp;
use crate::backend::cpu::attention::{self, Attention, Bars};
use crate::backend::{cpu, cuda};
use crate::dtype::{U8, with_float};
use crate::error::{Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply, apply1, expect};
use crate::rng::Key;
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Options of [`Tensor::scaled_dot_product_attention`]; the default is plain attention.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sdpa {
    /// Query `i` sees keys up to `i + Tk − Tq`: the last query sees every key.
    pub causal: bool,
    /// Factor of the scores; `None` is `1/√D`.
    pub scale: Option<f64>,
    /// Probability that a weight is dropped; the others are divided by the probability of keeping. At 1 all are zero.
    pub dropout: f64,
    /// Names the dropout mask, which is drawn by the number of a score in `[.., Hq, Tq, Tk]`. Needed when `dropout` is not 0.
    pub key: Option<Key>,
}

impl Sdpa {
    /// Causal attention.
    pub fn causal() -> Self {
        Sdpa { causal: true, ..Self::default() }
    }

    fn scale_for(&self, d: usize) -> f64 {
        self.scale.unwrap_or(if d == 0 { 1.0 } else { 1.0 / (d as f64).sqrt() })
    }

    fn keep(&self) -> Option<(Key, f64)> {
        self.key.filter(|_| self.dropout > 0.0).map(|k| (k, 1.0 - self.dropout))
    }

    fn sees(&self, i: usize, j: usize, tq: usize, tk: usize) -> bool {
        !self.causal || j + tq <= i + tk
    }

    fn attention<'a>(&self, x: &[cpu::In<'a>]) -> Result<Attention<'a>> {
        let (qs, ks) = (x[0].shape(), x[1].shape());
        let mask = match x.get(3) {
            Some(m) => Some((*m, m.layout().expand(&scores_shape(qs, ks))?)),
            None => None,
        };
        let d = qs[qs.rank() - 1];
        Ok(Attention { q: x[0], k: x[1], v: x[2], mask, scale: self.scale_for(d), causal: self.causal, dropout: self.keep() })
    }

    fn attention_on_device<'a>(&self, x: &[cuda::In<'a>]) -> Result<cuda::attention::Attention<'a>> {
        let qs = x[0].shape();
        cuda::attention::Attention::new(x, self.scale_for(qs[qs.rank() - 1]), self.causal, self.keep())
    }

    /// Checks shared by the op and its derivative; gives the shape of the result.
    fn check(&self, x: &[Spec], boolean: bool) -> Result<Spec> {
        let dtype = expect::same_float(&x[..3])?;
        let (q, k, v) = (&x[0].shape, &x[1].shape, &x[2].shape);
        let r = q.rank();
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
        attention::check_scores(scores[..r - 2].iter().product(), q[r - 2], k[r - 2])?;
        if let Some(m) = x.get(3) {
            let expected = if boolean { U8 } else { dtype };
            if m.dtype != expected {
                bail!(dtype, "expected a mask of u8 (1 = attend) or {dtype} (added to the scores), found {}: cast it", m.dtype);
            }
            if m.shape.broadcast(&scores).ok().as_ref() != Some(&scores) {
                bail!(shape, "mask {} does not broadcast to the scores {scores}: q {q}, k {k}", m.shape);
            }
        }
        if !(0.0..=1.0).contains(&self.dropout) {
            bail!(argument, "dropout {} is no probability", self.dropout);
        }
        if self.dropout > 0.0 && self.key.is_none() {
            bail!(argument, "dropout {} needs a key", self.dropout);
        }
        if self.scale.is_some_and(|s| !s.is_finite()) {
            bail!(argument, "scale {:?} is not finite", self.scale);
        }
        Ok(Spec { shape: q.with_dim(r - 1, v[r - 1]), dtype })
    }
}

/// `[.., Hq, Tq, Tk]`.
fn scores_shape(q: &Shape, k: &Shape) -> Shape {
    q.with_dim(q.rank() - 1, k[k.rank() - 2])
}

/// One query row of the definition: weights of all keys, 0 where the key is not seen, before and after dropout.
struct Row<S> {
    weights: Vec<S>,
    dropped: Vec<S>,
}

/// The textbook weights of query `index` (`[.., head, query]`).
fn define_row<S: Scalar>(op: &Sdpa, x: &[Nd<S>], index: &[usize], boolean: bool) -> Row<S> {
    let (q, k) = (&x[0], &x[1]);
    let r = q.shape.rank();
    let (tq, tk, d) = (q.shape[r - 2], k.shape[r - 2], q.shape[r - 1]);
    let scale = S::lit(op.scale_for(d));
    let at = |j: usize| [index, &[j]].concat();
    let scores: Vec<Option<S>> = (0..tk)
        .map(|j| {
            if !op.sees(index[r - 2], j, tq, tk) {
                return None;
            }
            let added = match x.get(3) {
                Some(m) if boolean => (m.broadcast_at(&at(j)).re() != 0.0).then(S::zero)?,
                Some(m) => m.broadcast_at(&at(j)),
                None => S::zero(),
            };
            if added.re() == f64::NEG_INFINITY {
                return None;
            }
            let row = key_index(x, index, j);
            let terms: Vec<S> = line(q, index).iter().zip(line(k, &row)).map(|(&a, &b)| a * b).collect();
            let s = scale * S::sum(&terms) + added;
            (s.re() != f64::NEG_INFINITY).then_some(s)
        })
        .collect();
    let m = scores.iter().flatten().map(|s| s.re()).fold(f64::NEG_INFINITY, |m, v| if v > m || v.is_nan() { v } else { m });
    let e: Vec<S> = scores.iter().map(|s| s.map_or(S::zero(), |s| (s - S::lit(m)).exp())).collect();
    let sum = S::sum(&e);
    let weights: Vec<S> = e.into_iter().map(|e| if e.re() == 0.0 { S::zero() } else { e / sum }).collect();
    let dropped = match op.keep() {
        None => weights.clone(),
        Some((key, keep)) => {
            let score = index.iter().zip(&q.shape[..r - 1]).fold(0, |n, (&i, &extent)| n * extent + i) * tk;
            let inv = if keep > 0.0 { 1.0 / keep } else { 0.0 };
            weights
                .iter()
                .enumerate()
                .map(|(j, &w)| if key.bernoulli((score + j) as u64, keep) { w * S::lit(inv) } else { S::zero() })
                .collect()
        }
    };
    Row { weights, dropped }
}

/// The last axis at the given position of the others.
fn line<'a, S>(x: &'a Nd<S>, index: &[usize]) -> &'a [S] {
    let n = x.shape[x.shape.rank() - 1];
    let at = index.iter().zip(x.shape.iter()).fold(0, |at, (&i, &extent)| at * extent + i) * n;
    &x.data[at..at + n]
}

fn at_col(row: &[usize], c: usize) -> Vec<usize> {
    [row, &[c]].concat()
}

/// Where key `j` of the head that query row `index` reads lies.
fn key_index<S: Scalar>(x: &[Nd<S>], index: &[usize], j: usize) -> Vec<usize> {
    let r = x[0].shape.rank();
    let group = x[0].shape[r - 3] / x[1].shape[r - 3];
    let mut row = index.to_vec();
    row[r - 3] /= group;
    row[r - 2] = j;
    row
}

/// `Σ w·v` in which a weight of 0 leaves its partner out when that is not finite.
fn weighted<S: Scalar>(terms: impl Iterator<Item = (S, S)>) -> S {
    let terms: Vec<S> = terms.filter(|(w, v)| w.re() != 0.0 || v.re().is_finite()).map(|(w, v)| w * v).collect();
    S::sum(&terms)
}

/// Attention as an op on `q, k, v` and perhaps a mask; see [`Tensor::scaled_dot_product_attention`].
#[derive(Clone, Debug)]
pub struct SdpaOp {
    /// The options.
    pub options: Sdpa,
    /// The mask, if there is one, is of `u8` and not additive.
    pub boolean: bool,
}

/// The derivative kernel of [`SdpaOp`]: `q, k, v`, perhaps a mask, and `ȳ` to the wanted ones of `q̄, k̄, v̄` and the mask's cotangent.
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
        forward: "S = scale · q kᵀ + mask, P = softmax(S) over the keys, y = dropout(P) v; query head h reads key head h / (Hq / Hkv)",
        vjp: "v̄ = dropout(P)ᵀ ȳ, P̄ = dropout(ȳ vᵀ), S̄ = P · (P̄ − Σ P P̄), q̄ = scale · S̄ k, k̄ = scale · S̄ᵀ q, mask: S̄ summed over its broadcast axes",
        kinks: "smooth; a query that sees no key gives exactly 0 and takes no gradient; a key of weight exactly 0 contributes nothing, even if it holds NaN or infinity",
        cost: "2·Tq·Tk·(D + Dv) arithmetic a head, half of it when causal, 2.5 times that for the derivative; saves q, k, v, mask, nothing of size Tq·Tk",
        references: "Vaswani et al., Attention is all you need (2017); Dao, FlashAttention-2 (2023), arXiv:2307.08691; torch.nn.functional.scaled_dot_product_attention",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (q, v) = (&x[0], &x[2]);
        let r = q.shape.rank();
        let mut row: Option<(Vec<usize>, Row<S>)> = None;
        vec![Nd::from_fn(q.shape.with_dim(r - 1, v.shape[r - 1]), |i| {
            let (index, c) = (&i[..r - 1], i[r - 1]);
            // All columns of a row share its weights.
            if row.as_ref().is_none_or(|(of, _)| of != index) {
                row = Some((index.to_vec(), define_row(&self.options, x, index, self.boolean)));
            }
            let Some((_, w)) = &row else { return S::zero() };
            weighted(w.dropped.iter().enumerate().map(|(j, &w)| (w.stored(), line(v, &key_index(x, index, j))[c])))
        })]
    }

    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        super::sdpa_samples::samples(g)
    }
}

impl Op for SdpaOp {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        Ok(smallvec![self.options.check(x, self.boolean)?])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let a = self.options.attention(x)?;
        with_float!(x[0].dtype(), T => attention::forward::<T>(&a, y[0].slice::<T>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        self.options.attention_on_device(x)?.forward(&mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::list(x.iter().map(|t| Some((*t).clone())))
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let inputs: Vec<&Tensor> = (0..want.len()).map(|i| saved.get(i)).collect::<Result<_>>()?;
        let mut all = [false; 4];
        all[..want.len()].copy_from_slice(want);
        let bars = apply(SdpaVjp { of: self.clone(), want: all }, &[&inputs[..], &[y_bar.only()?]].concat())?;
        let mut bars = bars.into_iter();
        Ok(want.iter().map(|w| if *w { bars.next() } else { None }).collect())
    }
}

impl Describe for SdpaVjp {
    const NAME: &'static str = "scaled_dot_product_attention_vjp";
    const MATH: Math = Math {
        forward: "v̄ = dropout(P)ᵀ ȳ, P̄ = dropout(ȳ vᵀ), S̄ = P · (P̄ − Σ P P̄), q̄ = scale · S̄ k, k̄ = scale · S̄ᵀ q, mask: S̄ summed over its broadcast axes",
        vjp: "the derivative of the composition of matmul, add, softmax and mul",
        kinks: "as scaled_dot_product_attention",
        cost: "five products of Tq × Tk × D a head, half of each when causal; P is computed again; the mask's cotangent takes two more",
        references: "Dao, FlashAttention-2 (2023), arXiv:2307.08691, §2.3",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (x, g) = (&x[..x.len() - 1], &x[x.len() - 1]);
        let (q, k, v) = (&x[0], &x[1], &x[2]);
        let r = q.shape.rank();
        let (d, tk) = (q.shape[r - 1], k.shape[r - 2]);
        let scale = S::lit(self.of.options.scale_for(d));
        let inv = self.of.options.keep().map_or(1.0, |(_, keep)| if keep > 0.0 { 1.0 / keep } else { 0.0 });
        // [.., head, query] rows of dropped weights and of score cotangents.
        let (mut dropped, mut scores, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let heads = Shape::from(&q.shape[..r - 1]);
        Nd::from_fn(&heads, |index| {
            let w = define_row(&self.of.options, x, index, self.of.boolean);
            let bars: Vec<S> = (0..tk)
                .map(|j| {
                    if w.weights[j].re() == 0.0 || (self.of.options.keep().is_some() && w.dropped[j].re() == 0.0) {
                        return S::zero();
                    }
                    let row = key_index(x, index, j);
                    let terms: Vec<S> = line(g, index).iter().zip(line(v, &row)).map(|(&a, &b)| a * b).collect();
                    S::lit(inv) * S::sum(&terms)
                })
                .collect();
            let dot = weighted(w.weights.iter().copied().zip(bars.iter().copied()));
            scores.push(
                w.weights.iter().zip(&bars).map(|(&p, &b)| if p.re() == 0.0 { S::zero() } else { p * (b - dot) }).collect::<Vec<S>>(),
            );
            dropped.push(w.dropped);
            rows.push(index.to_vec());
            S::zero()
        });
        let number = |index: &[usize]| index.iter().zip(heads.iter()).fold(0, |n, (&i, &extent)| n * extent + i);
        // Query rows that read the key row `at` ([.., key head, key, ..]).
        let readers = |at: &[usize]| -> Vec<usize> {
            let group = q.shape[r - 3] / k.shape[r - 3];
            (0..rows.len()).filter(|&n| rows[n][..r - 3] == at[..r - 3] && rows[n][r - 3] / group == at[r - 3]).collect()
        };
        let key_bar = |of: &Nd<S>, w: &[Vec<S>], from: &Nd<S>, factor: S| {
            let mut head: Option<(Vec<usize>, Vec<usize>)> = None;
            Nd::from_fn(&of.shape, |at| {
                let (j, c) = (at[r - 2], at[r - 1]);
                if head.as_ref().is_none_or(|(of, _)| of != &at[..r - 2]) {
                    head = Some((at[..r - 2].to_vec(), readers(at)));
                }
                let readers = head.iter().flat_map(|(_, n)| n);
                factor * weighted(readers.map(|&n| (w[n][j].stored(), line(from, &rows[n])[c])))
            })
        };
        let mut out = Vec::new();
        if self.want[0] {
            out.push(Nd::from_fn(&q.shape, |at| {
                let (index, c) = (&at[..r - 1], at[r - 1]);
                scale * weighted((0..tk).map(|j| (scores[number(index)][j].stored(), line(k, &key_index(x, index, j))[c])))
            }));
        }
        if self.want[1] {
            out.push(key_bar(k, &scores, q, scale));
        }
        if self.want[2] {
            out.push(key_bar(v, &dropped, g, S::one()));
        }
        if let (Some(mask), true) = (x.get(3), self.want[3]) {
            out.push(Nd::from_fn(&mask.shape, |at| {
                let reads = |index: &[usize]| {
                    let lead = index.len() - at.len();
                    at.iter().enumerate().all(|(a, &i)| mask.shape[a] == 1 || index[lead + a] == i)
                };
                let terms: Vec<S> = rows
                    .iter()
                    .zip(&scores)
                    .flat_map(|(row, s)| s.iter().enumerate().map(move |(j, &s)| (at_col(row, j), s)))
                    .filter(|(index, _)| reads(index))
                    .map(|(_, s)| s)
                    .collect();
                S::sum(&terms)
            }));
        }
        out
    }

    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        super::sdpa_samples::vjp_samples(g)
    }
}

impl Op for SdpaVjp {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let (x, g) = (&x[..x.len() - 1], &x[x.len() - 1]);
        let y = self.of.options.check(x, self.of.boolean)?;
        if *g != y {
            bail!(shape, "the cotangent is {} {}, the result {} {}", g.dtype, g.shape, y.dtype, y.shape);
        }
        Ok((0..x.len()).filter(|&i| self.want[i]).map(|i| x[i].clone()).collect())
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let (x, g) = (&x[..x.len() - 1], x[x.len() - 1]);
        let a = self.of.options.attention(x)?;
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
        self.of.options.attention_on_device(x)?.backward(g, bars)
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
                let bar = if self.want[i] { y_bar.get(outputs).cloned() } else { None };
                outputs += usize::from(self.want[i]);
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
        let scale = Tensor::full_on((), self.options.scale_for(d), q.dtype(), q.device())?;
        let k = k.reshape(grouped(hkv, 1, tk, d))?;
        let mut s = q.reshape(grouped(hkv, group, tq, d))?.matmul_nt(&k)?.mul(&scale)?.reshape(&scores)?;
        // What is forbidden, as a constant.
        if self.options.causal {
            let hidden = Tensor::full_on([tq, tk], f64::NEG_INFINITY, q.dtype(), q.device())?;
            s = s.add(&hidden.triu(tk as isize - tq as isize + 1)?)?;
        }
        match x.get(3) {
            Some(m) if self.boolean => {
                let open = Tensor::full_on(m.shape(), 0.0, q.dtype(), q.device())?;
                s = s.add(&open.masked_fill(&m.detach().logical_not()?, f64::NEG_INFINITY)?)?;
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
    /// use cotangent::{Tape, Tensor, ops::Sdpa};
    /// let tape = Tape::new();
    /// let q = tape.watch(&Tensor::from_slice(&[1f64, 0., 0., 1.], [1, 2, 2])?)?;
    /// let v = Tensor::from_slice(&[1f64, 2.], [1, 2, 1])?;
    /// let y = q.scaled_dot_product_attention(&q, &v, None, Sdpa::causal())?;
    /// assert_eq!(y.to_vec::<f64>()?[0], 1.0); // the first query sees only the first key
    /// let grads = tape.backward(&y.sum(..)?)?;
    /// assert_eq!(grads.get(&q)?.shape(), &[1, 2, 2]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// Of `q`, `k`, `v` and an additive mask, by a fused kernel that computes the weights again: q, k, v and the mask are
    /// saved, and nothing of the size of the scores. A query that sees no key gives exactly 0 and takes and gives no gradient.
    ///
    /// # Shapes
    /// `q [.., Hq, Tq, D]`, `k [.., Hkv, Tk, D]`, `v [.., Hkv, Tk, Dv]` give `[.., Hq, Tq, Dv]`. Leading axes are equal. Query
    /// head `h` reads key head `h / (Hq / Hkv)`. The mask broadcasts to `[.., Hq, Tq, Tk]`: `u8` (1 = attend), or a float
    /// that is added to the scores, −∞ to forbid. Causal attention aligns the last query with the last key.
    ///
    /// # Numerics
    /// Scores and sums in f32 (f64 for f64) whatever the storage type, over whole rows. On CUDA's tensor cores (half types, no mask,
    /// no dropout, D and Dv multiples of 8 up to 128) weights and their cotangents are rounded to the type before they are multiplied. Keys of weight exactly 0 (masked, or
    /// underflowed) contribute nothing, in either direction, even when their k or v holds NaN or infinity; a NaN in a key
    /// that is seen reaches every query that sees it. The bits do not depend on the number of threads.
    ///
    /// # Errors
    /// Shape error when operands or mask do not fit; dtype error unless q, k, v have one float type and the mask is `u8` or
    /// float; argument error for a dropout outside `[0, 1]` or without a key, and for a scale that is not finite.
    #[track_caller]
    pub fn scaled_dot_product_attention(&self, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, options: Sdpa) -> Result<Tensor> {
        let boolean = mask.is_some_and(|m| m.dtype() == U8);
        let op = SdpaOp { options, boolean };
        match mask {
            Some(m) => apply1(op, &[self, k, v, m]),
            None => apply1(op, &[self, k, v]),
        }
    }
}
