//! Whether attention looks where it should: weights computed again from queries, keys and mask, and judged.

use crate::error::{Error, Result, bail};
use crate::memory;
use crate::tensor::Tensor;
use std::fmt;
use std::panic::Location;

/// How scores become weights; the default is one of plain attention.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionCheck {
    /// Query `i` sees keys up to `i + Tk − Tq`.
    pub causal: bool,
    /// Factor of the scores; `None` is `1/√D`.
    pub scale: Option<f64>,
}

/// One head, over the whole batch.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadStats {
    /// Largest distance of a row's sum from one; rows that see no key do not count.
    pub sum_error: f64,
    /// Mean entropy over that of equal weights, over rows that see at least two keys: 1 looks everywhere, 0 at one key.
    pub entropy: f64,
    /// Share of those rows in which one key has more than [`AttentionReport::SATURATED`] of the weight: next to no gradient
    /// reaches their queries and keys.
    pub saturated: f64,
    /// Largest magnitude of a score that is seen.
    pub largest_score: f64,
    /// Standard deviation of the scores that are seen.
    pub score_std: f64,
    /// Weight on keys after the query's own position, as a share of all weight: zero in a causal model.
    pub future: f64,
    /// Rows that see no key.
    pub blind: usize,
    /// Scores that are seen and not finite.
    pub not_finite: usize,
}

/// What attention looks at, by head.
#[derive(Clone, Debug)]
pub struct AttentionReport {
    /// The heads.
    pub heads: Vec<HeadStats>,
}

impl AttentionCheck {
    /// Causal attention.
    pub fn causal() -> Self {
        AttentionCheck { causal: true, ..Self::default() }
    }

    /// Statistics of `softmax(scale · q kᵀ + mask)`.
    ///
    /// `q [.., Hq, Tq, D]`, `k [.., Hkv, Tk, D]` as for [`Tensor::scaled_dot_product_attention`], query head `h` reading key
    /// head `h / (Hq / Hkv)`; a mask broadcasts to `[.., Hq, Tq, Tk]`: integers (0 = hidden), or floats that are added. On the
    /// host in f64, one row of scores at a time.
    ///
    /// ```
    /// use cotangent::{diagnostics::AttentionCheck, Key, Tensor, F32};
    /// let q = Tensor::randn([2, 4, 8, 16], F32, Key::new(1))?;
    /// let k = Tensor::randn([2, 4, 8, 16], F32, Key::new(2))?;
    /// assert!(AttentionCheck::causal().run(&q, &k, None)?.warnings().is_empty());
    /// let large = AttentionCheck::causal().run(&q.mul_scalar(100.0)?, &k, None)?;
    /// assert!(large.warnings()[0].contains("saturated"));
    /// println!("{large}");
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Errors
    /// Shape error when the operands do not fit.
    #[track_caller]
    pub fn run(&self, q: &Tensor, k: &Tensor, mask: Option<&Tensor>) -> Result<AttentionReport> {
        let at = Location::caller();
        self.report(q, k, mask).map_err(|e| e.in_op("attention_check", at))
    }

    fn report(&self, q: &Tensor, k: &Tensor, mask: Option<&Tensor>) -> Result<AttentionReport> {
        let (&[.., hq, tq, d], &[.., hkv, tk, dk]) = (q.shape().dims(), k.shape().dims()) else {
            bail!(shape, "expected q [.., heads, time, width] and k alike, found {} and {}", q.shape(), k.shape());
        };
        let lead = &q.shape().dims()[..q.rank() - 3];
        if d != dk || hkv == 0 || hq % hkv != 0 || lead != &k.shape().dims()[..k.rank() - 3] {
            bail!(shape, "q {} and k {} do not fit: batch and width must be equal, heads a multiple", q.shape(), k.shape());
        }
        let mut scores: Vec<usize> = lead.to_vec();
        scores.extend([hq, tq, tk]);
        let mask = match mask {
            Some(m) => Some((m.dtype().is_float(), m.untracked().expand(scores)?.to_f64_vec()?)),
            None => None,
        };
        let (qs, ks) = (q.to_f64_vec()?, k.to_f64_vec()?);
        let scale = self.scale.unwrap_or(1.0 / (d.max(1) as f64).sqrt());
        let mut sums: Vec<Sums> = memory::vec_of(Sums::default(), hq)?;
        for row in 0..qs.len().checked_div(d).unwrap_or(0) {
            let (head, i) = (row / tq % hq, row % tq);
            let of_key = (row / tq / hq * hkv + head / (hq / hkv)) * tk;
            let seen = (0..tk).filter_map(|j| {
                let dot: f64 = qs[row * d..][..d].iter().zip(&ks[(of_key + j) * d..][..d]).map(|(a, b)| a * b).sum();
                let added = match &mask {
                    Some((true, m)) => m[row * tk + j],
                    Some((false, m)) if m[row * tk + j] == 0.0 => f64::NEG_INFINITY,
                    _ => 0.0,
                };
                let hidden = added == f64::NEG_INFINITY || (self.causal && j + tq > i + tk);
                (!hidden).then_some((j + tq > i + tk, dot * scale + added))
            });
            sums[head].add(&memory::try_collect(seen)?)?;
        }
        Ok(AttentionReport { heads: sums.iter().map(Sums::finish).collect() })
    }
}

#[derive(Clone, Default)]
struct Sums {
    sum_error: f64,
    rows: usize,
    wide: usize,
    entropy: f64,
    saturated: usize,
    largest: f64,
    scores: usize,
    mean: f64,
    squares: f64,
    future: f64,
    blind: usize,
    not_finite: usize,
}

impl Sums {
    /// A row of scores, each with whether its key is a later one.
    fn add(&mut self, row: &[(bool, f64)]) -> Result<()> {
        if row.is_empty() {
            self.blind += 1;
            return Ok(());
        }
        let bad = row.iter().filter(|(_, s)| !s.is_finite()).count();
        self.not_finite += bad;
        if bad > 0 {
            return Ok(());
        }
        let top = row.iter().fold(f64::NEG_INFINITY, |m, (_, s)| m.max(*s));
        let total: f64 = row.iter().map(|(_, s)| (s - top).exp()).sum();
        let weights: Vec<f64> = memory::try_collect(row.iter().map(|(_, s)| (s - top).exp() / total))?;
        self.rows += 1;
        self.sum_error = self.sum_error.max((weights.iter().sum::<f64>() - 1.0).abs());
        self.future += weights.iter().zip(row).filter(|(_, (later, _))| *later).map(|(w, _)| w).sum::<f64>();
        if row.len() > 1 {
            self.wide += 1;
            let entropy: f64 = weights.iter().filter(|w| **w > 0.0).map(|w| -w * w.ln()).sum();
            self.entropy += entropy / (row.len() as f64).ln();
            self.saturated += usize::from(weights.iter().any(|w| *w > AttentionReport::SATURATED));
        }
        for (_, s) in row {
            // Welford: no cancellation however large the scores.
            self.scores += 1;
            let apart = s - self.mean;
            self.mean += apart / self.scores as f64;
            self.squares += apart * (s - self.mean);
            self.largest = self.largest.max(s.abs());
        }
        Ok(())
    }

    fn finish(&self) -> HeadStats {
        let share = |n: f64, of: usize| if of == 0 { 0.0 } else { n / of as f64 };
        HeadStats {
            sum_error: self.sum_error,
            entropy: if self.wide == 0 { 1.0 } else { self.entropy / self.wide as f64 },
            saturated: share(self.saturated as f64, self.wide),
            largest_score: self.largest,
            score_std: share(self.squares, self.scores).sqrt(),
            future: share(self.future, self.rows),
            blind: self.blind,
            not_finite: self.not_finite,
        }
    }
}

impl AttentionReport {
    /// A row with one weight above this is saturated.
    pub const SATURATED: f64 = 0.999;
    /// From this share of saturated rows on a head is reported.
    pub const MANY: f64 = 0.5;

    /// Checks weights that somebody else computed, `[.., Tq, Tk]`: rows must sum to one, or to zero when they see nothing.
    /// Returns the largest distance.
    ///
    /// # Errors
    /// Shape error for a rank below two; argument error when a row's sum is off by more than `tolerance`.
    #[track_caller]
    pub fn rows_sum_to_one(weights: &Tensor, tolerance: f64) -> Result<f64> {
        let at = Location::caller();
        let &[.., tk] = weights.shape().dims() else {
            return Err(
                Error::shape(format!("expected weights [.., queries, keys], found {}", weights.shape())).in_op("attention_check", at)
            );
        };
        let mut worst = (0.0, 0, 1.0);
        for (i, row) in weights.to_f64_vec()?.chunks_exact(tk.max(1)).enumerate() {
            let sum: f64 = row.iter().sum();
            let off = if sum == 0.0 { 0.0 } else { (sum - 1.0).abs() };
            if !(off <= worst.0) {
                worst = (off, i, sum);
            }
        }
        if !(worst.0 <= tolerance) {
            let message =
                format!("row {} of the weights sums to {}: is the softmax over the keys, and the mask before it?", worst.1, worst.2);
            return Err(Error::argument(message).in_op("attention_check", at));
        }
        Ok(worst.0)
    }

    /// What is conspicuous, in words; empty when nothing is.
    pub fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        for (h, s) in self.heads.iter().enumerate() {
            if s.not_finite > 0 {
                out.push(format!("head {h}: {} scores are not finite", s.not_finite));
            }
            if s.saturated >= Self::MANY {
                out.push(format!(
                    "head {h}: {:.0} % of the rows are saturated (largest score {:.3e}): next to no gradient reaches queries and keys; check the \
                     scale 1/√D and the norm before attention",
                    100.0 * s.saturated,
                    s.largest_score
                ));
            }
            if s.blind > 0 {
                out.push(format!("head {h}: {} queries see no key: their result is zero", s.blind));
            }
        }
        out
    }
}

impl fmt::Display for AttentionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "head  entropy  saturated  max |score|  score std   future    blind")?;
        for (h, s) in self.heads.iter().enumerate() {
            let (saturated, future) = (100.0 * s.saturated, 100.0 * s.future);
            writeln!(
                f,
                "{h:>4} {:>8.3} {saturated:>9.1}% {:>12.3e} {:>10.3e} {future:>7.1}% {:>8}",
                s.entropy, s.largest_score, s.score_std, s.blind
            )?;
        }
        self.warnings().iter().try_for_each(|w| writeln!(f, "WARNING: {w}"))
    }
}
