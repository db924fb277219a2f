//! What attention and its derivative are: the textbook's loops over one query after the other.

use super::{SdpaOp, SdpaOptions, SdpaVjp};
use crate::backend::attention::fits_tensor_cores;
use crate::testing::{Nd, Scalar};

/// One query row: of all keys the weights, 0 where the key is not seen, before and after dropout, and the slope of the cap.
struct Row<S> {
    weights: Vec<S>,
    dropped: Vec<S>,
    slopes: Vec<S>,
}

/// Where query `i` and key `j` stand in their sequence, and how long its two parts are; `None` in different sequences.
fn within<S: Scalar>(offsets: Option<(&Nd<S>, &Nd<S>)>, i: usize, j: usize, tq: usize, tk: usize) -> Option<[usize; 4]> {
    let Some((of_q, of_k)) = offsets else { return Some([i, j, tq, tk]) };
    let at = |x: &Nd<S>, s: usize| x.data[s].re() as usize;
    let s = (0..of_q.data.len() - 1).find(|&s| (at(of_q, s)..at(of_q, s + 1)).contains(&i))?;
    let keys = at(of_k, s)..at(of_k, s + 1);
    keys.contains(&j).then(|| [i - at(of_q, s), j - keys.start, at(of_q, s + 1) - at(of_q, s), keys.len()])
}

/// Whether query `i` of `tq` sees key `j` of `tk`: the last query is aligned with the last key.
fn sees(op: &SdpaOptions, [i, j, tq, tk]: [usize; 4]) -> bool {
    let ahead = (j + tq) as i128 - (i + tk) as i128;
    let inside = op.window.is_none_or(|(left, right)| -(left as i128) <= ahead && ahead <= right as i128);
    inside && (!op.causal || ahead <= 0)
}

/// The mask and the offsets among the operands: q, k, v, perhaps a mask, and of packed sequences the offsets of both.
fn operands<'x, S>(op: &SdpaOp, x: &'x [Nd<S>]) -> (Option<&'x Nd<S>>, Option<(&'x Nd<S>, &'x Nd<S>)>) {
    let tensors = if op.packed { x.len() - 2 } else { x.len() };
    let mask = if tensors > 3 { Some(&x[3]) } else { None };
    (mask, op.packed.then(|| (&x[tensors], &x[tensors + 1])))
}

/// What scores are multiplied with.
fn factor(op: &SdpaOptions, d: usize) -> f64 {
    match op.scale {
        Some(s) => s,
        None if d == 0 => 1.0,
        None => (d as f64).sqrt().recip(),
    }
}

/// The textbook weights of query `index` (`[.., head, query]`).
fn weights_of<S: Scalar>(op: &SdpaOp, x: &[Nd<S>], index: &[usize]) -> Row<S> {
    let (mask, offsets) = operands(op, x);
    let (op, boolean) = (&op.options, op.boolean);
    let (q, k) = (&x[0], &x[1]);
    let r = q.shape.rank();
    let (tq, tk, d) = (q.shape[r - 2], k.shape[r - 2], q.shape[r - 1]);
    let scale = S::lit(factor(op, d));
    let at = |j: usize| [index, &[j]].concat();
    let (query, keys) = (line(q, index), head(k, q, index));
    let mut slopes = vec![S::one(); tk];
    let scores: Vec<Option<S>> = (0..tk)
        .map(|j| {
            if !within(offsets, index[r - 2], j, tq, tk).is_some_and(|place| sees(op, place)) {
                return None;
            }
            let added = match mask {
                Some(m) if boolean => (m.broadcast_at(&at(j)).re() != 0.0).then(S::zero)?,
                Some(m) => m.broadcast_at(&at(j)),
                None => S::zero(),
            };
            if added.re() == f64::NEG_INFINITY {
                return None;
            }
            let mut s = scale * dot(query, keys[j]);
            if let Some(c) = op.softcap {
                let t = s / S::lit(c);
                slopes[j] = slope(t);
                s = S::lit(c) * t.tanh();
            }
            let s = s + added;
            (s.re() != f64::NEG_INFINITY).then_some(s)
        })
        .collect();
    let m = scores.iter().flatten().map(|s| s.re()).fold(f64::NEG_INFINITY, |m, v| if v > m || v.is_nan() { v } else { m });
    let e: Vec<S> = scores.iter().map(|s| s.map_or(S::zero(), |s| (s - S::lit(m)).exp())).collect();
    let sum = S::sum(&e);
    let weights: Vec<S> = e.into_iter().map(|e| if e.re() == 0.0 { S::zero() } else { e / sum }).collect();
    let dropped = match op.key.filter(|_| op.dropout > 0.0) {
        None => weights.clone(),
        Some(key) => {
            let keep = 1.0 - op.dropout;
            let score = index.iter().zip(&q.shape[..r - 1]).fold(0, |n, (&i, &extent)| n * extent + i) * tk;
            let inv = if keep > 0.0 { 1.0 / keep } else { 0.0 };
            weights
                .iter()
                .enumerate()
                .map(|(j, &w)| if key.bernoulli((score + j) as u64, keep) { w * S::lit(inv) } else { S::zero() })
                .collect()
        }
    };
    Row { weights, dropped, slopes }
}

/// The derivative of tanh, `1 / cosh²`: `1 − tanh²` cancels.
fn slope<S: Scalar>(x: S) -> S {
    let e = if x.re() > 0.0 { -x } else { x }.exp();
    let sech = (e + e) / (S::one() + e * e);
    sech * sech
}

/// The last axis at the given position of the others.
fn line<'a, S>(x: &'a Nd<S>, index: &[usize]) -> &'a [S] {
    let n = x.shape[x.shape.rank() - 1];
    let at = index.iter().zip(x.shape.iter()).fold(0, |at, (&i, &extent)| at * extent + i) * n;
    &x.data[at..at + n]
}

fn dot<S: Scalar>(a: &[S], b: &[S]) -> S {
    let terms: Vec<S> = a.iter().zip(b).map(|(&a, &b)| a * b).collect();
    S::sum(&terms)
}

/// The rows of keys or values that the query row `index` reads.
fn head<'a, S: Scalar>(of: &'a Nd<S>, q: &Nd<S>, index: &[usize]) -> Vec<&'a [S]> {
    let r = q.shape.rank();
    let mut row = index.to_vec();
    row[r - 3] /= q.shape[r - 3] / of.shape[r - 3];
    (0..of.shape[r - 2])
        .map(|j| {
            row[r - 2] = j;
            line(of, &row)
        })
        .collect()
}

/// `Σ w·v` in which a weight of 0 leaves its partner out when that is not finite.
fn weighted<S: Scalar>(terms: impl Iterator<Item = (S, S)>) -> S {
    let terms: Vec<S> = terms.filter(|(w, v)| w.re() != 0.0 || v.re().is_finite()).map(|(w, v)| w * v).collect();
    S::sum(&terms)
}

/// `softmax(cap(scale · q kᵀ) + mask) v`.
pub(super) fn attention<S: Scalar>(op: &SdpaOp, x: &[Nd<S>]) -> Vec<Nd<S>> {
    let (q, v) = (&x[0], &x[2]);
    let r = q.shape.rank();
    let stored = rounding(op, x);
    // All columns of a row share its weights.
    let mut row: Option<(Vec<usize>, Vec<S>, Vec<&[S]>)> = None;
    vec![Nd::from_fn(q.extents_with(r - 1, v.shape[r - 1]), |i| {
        let (index, c) = (&i[..r - 1], i[r - 1]);
        if row.as_ref().is_none_or(|(of, ..)| of != index) {
            let weights = weights_of(op, x, index).dropped.into_iter().map(stored).collect();
            row = Some((index.to_vec(), weights, head(v, q, index)));
        }
        let Some((_, w, rows)) = &row else { return S::zero() };
        weighted(w.iter().zip(rows).map(|(&w, v)| (w, v[c])))
    })]
}

/// What becomes of a weight, or of its cotangent, before it is multiplied by rows: tensor cores multiply nothing wider than the
/// operands' type. Where they do not take the problem, nothing is rounded.
fn rounding<S: Scalar>(op: &SdpaOp, x: &[Nd<S>]) -> fn(S) -> S {
    let r = x[0].shape.rank();
    let rows = [x[0].shape[r - 1], x[2].shape[r - 1]];
    // Tensor cores do not do masks, packed sequences, a cap or dropout.
    let plain = operands(op, x).0.is_none() && !op.packed && op.options.softcap.is_none() && op.options.dropout == 0.0;
    if plain && rows.into_iter().all(fits_tensor_cores) { S::stored } else { |w| w }
}

/// The wanted cotangents, given that of the result as the last of `x`.
pub(super) fn cotangents<S: Scalar>(op: &SdpaVjp, x: &[Nd<S>]) -> Vec<Nd<S>> {
    let (x, g) = (&x[..x.len() - 1], &x[x.len() - 1]);
    let (q, k, v) = (&x[0], &x[1], &x[2]);
    let r = q.shape.rank();
    let (d, tk) = (q.shape[r - 1], k.shape[r - 2]);
    let scale = S::lit(factor(&op.of.options, d));
    let stored = rounding(&op.of, x);
    let dropping = op.of.options.dropout > 0.0;
    let inv = if op.of.options.dropout >= 1.0 { 0.0 } else { 1.0 / (1.0 - op.of.options.dropout) };
    // [.., head, query] rows of dropped weights, and of the cotangents of scores and of products (before the cap).
    let (mut dropped, mut scores, mut products, mut rows) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let heads = q.shape[..r - 1].to_vec();
    Nd::from_fn(&heads[..], |index| {
        let (w, values) = (weights_of(&op.of, x, index), head(v, q, index));
        let bars: Vec<S> = (0..tk)
            .map(|j| {
                if w.weights[j].re() == 0.0 || (dropping && w.dropped[j].re() == 0.0) {
                    return S::zero();
                }
                S::lit(inv) * dot(line(g, index), values[j])
            })
            .collect();
        let mean = weighted(w.weights.iter().copied().zip(bars.iter().copied()));
        let score: Vec<S> = w.weights.iter().zip(&bars).map(|(&p, &b)| if p.re() == 0.0 { S::zero() } else { p * (b - mean) }).collect();
        let chained = (0..tk).map(|j| if w.weights[j].re() == 0.0 { S::zero() } else { score[j] * w.slopes[j] });
        products.push(chained.collect::<Vec<S>>());
        scores.push(score);
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
            factor * weighted(readers.map(|&n| (stored(w[n][j]), line(from, &rows[n])[c])))
        })
    };
    let mut out = Vec::new();
    if op.want[0] {
        let mut keys: Option<(usize, Vec<&[S]>)> = None;
        out.push(Nd::from_fn(&q.shape, |at| {
            let (n, c) = (number(&at[..r - 1]), at[r - 1]);
            if keys.as_ref().is_none_or(|(of, _)| *of != n) {
                keys = Some((n, head(k, q, &at[..r - 1])));
            }
            let rows = keys.iter().flat_map(|(_, rows)| rows);
            scale * weighted(products[n].iter().zip(rows).map(|(&w, k)| (stored(w), k[c])))
        }));
    }
    if op.want[1] {
        out.push(key_bar(k, &products, q, scale));
    }
    if op.want[2] {
        out.push(key_bar(v, &dropped, g, S::one()));
    }
    if let (Some(mask), true) = (operands(&op.of, x).0, op.want[3]) {
        out.push(Nd::from_fn(&mask.shape, |at| {
            // The mask's axes are the last of the scores', which are those of the rows and one of keys.
            let lead = r - at.len();
            let own = |axis: usize, i: usize| axis < lead || mask.shape[axis - lead] == 1 || at[axis - lead] == i;
            let terms: Vec<S> = rows
                .iter()
                .zip(&scores)
                .filter(|(row, _)| row.iter().enumerate().all(|(axis, &i)| own(axis, i)))
                .flat_map(|(_, s)| s.iter().enumerate().filter(|(j, _)| own(r - 1, *j)).map(|(_, &s)| s))
                .collect();
            S::sum(&terms)
        }));
    }
    out
}
