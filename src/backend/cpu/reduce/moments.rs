//! Reductions whose parts are more than one number: variance, log-sum-exp, norm, extrema with their ties, products.

use super::{Fold, Part, Reduction, Rows, STRIP};
use crate::backend::cpu::math::Real;
use crate::backend::cpu::run::simd;

/// Count, mean and sum of squared deviations: within a part by two passes with a mean that is refined once, so that equal
/// elements have deviations of exactly 0 (the part is in cache, further passes are cheap); between parts by the pairwise update
/// (Chan, Golub & LeVeque, *Algorithms for Computing the Sample Variance*, 1983). Parts are f64, and where squares or sums leave
/// the range of an f32 they are taken again in f64, where those of an f32 neither overflow nor vanish.
pub(crate) struct Moments;

#[derive(Clone, Copy, Debug)]
pub(crate) struct MomentsPart {
    pub(crate) n: f64,
    pub(crate) mean: f64,
    pub(crate) squares: f64,
}

impl MomentsPart {
    /// Whether a sum of squares in an accumulator of type `A` lost nothing: no square overflowed, and none that counts was
    /// subnormal.
    #[inline(always)]
    fn is_safe<A>(squares: f64) -> bool {
        size_of::<A>() == size_of::<f64>() || (squares > 1e-30 && squares < 1e38)
    }

    /// From squares about a mean that was rounded, and that mean in f64: `Σ(x − r)² = Σ(x − m)² + n(m − r)²`.
    #[inline(always)]
    fn about(n: f64, rounded: f64, mean: f64, squares: f64) -> Self {
        let lost = n * (mean - rounded) * (mean - rounded);
        MomentsPart { n, mean, squares: if lost < squares { squares - lost } else { squares } }
    }

    /// All in f64.
    fn wide(x: impl Iterator<Item = f64> + Clone, n: f64) -> Self {
        // A constant group, whose squares are 0, comes here as well.
        if let Some(first) = x.clone().next()
            && x.clone().all(|v| v == first)
        {
            return MomentsPart { n, mean: first, squares: 0.0 * first };
        }
        let rough = x.clone().sum::<f64>() / n;
        let mean = rough + x.clone().map(|v| v - rough).sum::<f64>() / n;
        MomentsPart { n, mean, squares: x.map(|v| (v - mean) * (v - mean)).sum() }
    }
}

// SAFETY: numbers of one type: no padding.
unsafe impl Part for MomentsPart {}

impl<A: Real> Reduction<A> for Moments {
    type Part = MomentsPart;
    #[inline(always)]
    fn row(&self, x: &[A]) -> MomentsPart {
        let n = x.len() as f64;
        let count = A::from_f64(n);
        let rough = simd::sum_by(
            x,
            #[inline(always)]
            |acc: A, v: A| acc + v,
        ) / count;
        let rest = simd::sum_by(
            x,
            #[inline(always)]
            |acc: A, v: A| acc + (v - rough),
        );
        let mean = rough + rest / count;
        let squares = simd::sum_by(
            x,
            #[inline(always)]
            |acc: A, v: A| {
                let d = v - mean;
                d.mul_add(d, acc)
            },
        )
        .to_f64();
        if MomentsPart::is_safe::<A>(squares) {
            return MomentsPart::about(n, mean.to_f64(), rough.to_f64() + rest.to_f64() / n, squares);
        }
        MomentsPart::wide(x.iter().map(|v| v.to_f64()), n)
    }
    #[inline(always)]
    fn columns(&self, rows: Rows<'_, A>, parts: &mut [MomentsPart]) {
        let (mut mean, mut squares) = ([A::ZERO; STRIP], [A::ZERO; STRIP]);
        let w = parts.len();
        let mut n = 0.0;
        for row in rows.clone() {
            n += 1.0;
            for (m, &v) in mean[..w].iter_mut().zip(row) {
                *m += v;
            }
        }
        let count = A::from_f64(n);
        mean[..w].iter_mut().for_each(|m| *m = *m / count);
        let mut rest = [A::ZERO; STRIP];
        for row in rows.clone() {
            for ((r, &m), &v) in rest[..w].iter_mut().zip(&mean[..w]).zip(row) {
                *r += v - m;
            }
        }
        let rough = mean;
        for (m, &r) in mean[..w].iter_mut().zip(&rest[..w]) {
            *m += r / count;
        }
        for row in rows.clone() {
            for ((s, &m), &v) in squares[..w].iter_mut().zip(&mean[..w]).zip(row) {
                let d = v - m;
                *s = d.mul_add(d, *s);
            }
        }
        for (i, p) in parts.iter_mut().enumerate() {
            *p = MomentsPart::about(n, mean[i].to_f64(), rough[i].to_f64() + rest[i].to_f64() / n, squares[i].to_f64());
            if !MomentsPart::is_safe::<A>(p.squares) {
                *p = MomentsPart::wide(rows.clone().map(|row| row[i].to_f64()), n);
            }
        }
    }
    #[inline(always)]
    fn merge(&self, a: MomentsPart, b: MomentsPart) -> MomentsPart {
        let n = a.n + b.n;
        let d = b.mean - a.mean;
        MomentsPart { n, mean: d.mul_add(b.n / n, a.mean), squares: a.squares + b.squares + d * d * (a.n * b.n / n) }
    }
}

/// Largest element `m` and `Σ exp(x − m)`.
pub(crate) struct LogSum;

#[derive(Clone, Copy, Debug)]
pub(crate) struct LogSumPart<A> {
    pub(crate) max: A,
    pub(crate) sum: A,
}

impl<A: Real> LogSumPart<A> {
    /// `ln Σ exp x`; −∞ when every element is −∞.
    #[inline(always)]
    pub(crate) fn value(self) -> A {
        if self.max.is_finite() { self.max + self.sum.ln() } else { self.max }
    }
}

// SAFETY: two numbers of one type: no padding.
unsafe impl<A: Real> Part for LogSumPart<A> {}

impl<A: Real> Reduction<A> for LogSum {
    type Part = LogSumPart<A>;
    #[inline(always)]
    fn row(&self, x: &[A]) -> Self::Part {
        let max = Fold { init: A::NEG_INFINITY, f: |a: A, b: A| a.max_nan(b) };
        let max: A = max.row(x);
        // Without a finite maximum there is nothing to subtract, and the sum is not used.
        let m = if max.is_finite() { max } else { A::ZERO };
        let sum = simd::sum_by(
            x,
            #[inline(always)]
            |acc: A, v: A| acc + (v - m).exp(),
        );
        LogSumPart { max, sum }
    }
    #[inline(always)]
    fn columns(&self, rows: Rows<'_, A>, parts: &mut [Self::Part]) {
        let (mut max, mut sum) = ([A::NEG_INFINITY; STRIP], [A::ZERO; STRIP]);
        let w = parts.len();
        for row in rows.clone() {
            for (m, &v) in max[..w].iter_mut().zip(row) {
                *m = m.max_nan(v);
            }
        }
        let mut shift = max;
        shift.iter_mut().for_each(|m| *m = if m.is_finite() { *m } else { A::ZERO });
        for row in rows {
            for ((s, &m), &v) in sum[..w].iter_mut().zip(&shift[..w]).zip(row) {
                *s += (v - m).exp();
            }
        }
        for ((p, &max), &sum) in parts.iter_mut().zip(&max).zip(&sum) {
            *p = LogSumPart { max, sum };
        }
    }
    #[inline(always)]
    fn merge(&self, a: Self::Part, b: Self::Part) -> Self::Part {
        let max = a.max.max_nan(b.max);
        let scaled = |p: Self::Part| if p.max == max { p.sum } else { p.sum * (p.max - max).exp() };
        LogSumPart { max, sum: scaled(a) + scaled(b) }
    }
}

/// `scale²·squares = Σ x²`, accumulated in f64: no square of an f32 overflows or vanishes there, and f64 operands are
/// scaled by their largest one when theirs would.
pub(crate) struct SquareSum;

#[derive(Clone, Copy, Debug)]
pub(crate) struct SquareSumPart {
    scale: f64,
    squares: f64,
}

impl SquareSumPart {
    /// The Euclidean norm.
    #[inline(always)]
    pub(crate) fn norm(self) -> f64 {
        self.scale * self.squares.sqrt()
    }

    fn is_safe(squares: f64) -> bool {
        squares > 1e-280 && squares < 1e300
    }

    /// Scaled by the largest element.
    fn scaled(x: impl Iterator<Item = f64> + Clone) -> Self {
        let scale = x.clone().fold(0.0, |m: f64, v| m.max_nan(v.abs()));
        if scale == 0.0 || !scale.is_finite() {
            return SquareSumPart { scale, squares: 1.0 };
        }
        SquareSumPart { scale, squares: x.map(|v| (v / scale) * (v / scale)).sum() }
    }
}

// SAFETY: numbers of one type: no padding.
unsafe impl Part for SquareSumPart {}

impl<A: Real> Reduction<A> for SquareSum {
    type Part = SquareSumPart;
    #[inline(always)]
    fn row(&self, x: &[A]) -> SquareSumPart {
        let squares = simd::sum_by(
            x,
            #[inline(always)]
            |acc: f64, v: A| {
                let v = v.to_f64();
                v.mul_add(v, acc)
            },
        );
        if SquareSumPart::is_safe(squares) {
            return SquareSumPart { scale: 1.0, squares };
        }
        SquareSumPart::scaled(x.iter().map(|v| v.to_f64()))
    }
    #[inline(always)]
    fn columns(&self, rows: Rows<'_, A>, parts: &mut [SquareSumPart]) {
        let mut squares = [0.0; STRIP];
        for row in rows.clone() {
            for (s, &v) in squares[..parts.len()].iter_mut().zip(row) {
                let v = v.to_f64();
                *s = v.mul_add(v, *s);
            }
        }
        for (i, (p, &squares)) in parts.iter_mut().zip(&squares).enumerate() {
            *p = SquareSumPart { scale: 1.0, squares };
            if !SquareSumPart::is_safe(squares) {
                *p = SquareSumPart::scaled(rows.clone().map(|row| row[i].to_f64()));
            }
        }
    }
    fn merge(&self, a: SquareSumPart, b: SquareSumPart) -> SquareSumPart {
        let plain = a.squares + b.squares;
        if a.scale == 1.0 && b.scale == 1.0 && SquareSumPart::is_safe(plain) {
            return SquareSumPart { scale: 1.0, squares: plain };
        }
        SquareSumPart::scaled([a.norm(), b.norm()].into_iter())
    }
}

/// The extremum and how many elements equal it (NaN counts NaN). Minima are the maxima of the negated elements.
pub(crate) struct Ties {
    pub(crate) largest: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct TiesPart {
    pub(crate) value: f64,
    pub(crate) count: f64,
}

impl Ties {
    #[inline(always)]
    fn pick<A: Real>(&self, a: A, b: A) -> A {
        if self.largest { a.max_nan(b) } else { a.min_nan(b) }
    }

    #[inline(always)]
    fn worst<A: Real>(&self) -> A {
        if self.largest { A::NEG_INFINITY } else { A::INFINITY }
    }
}

// SAFETY: numbers of one type: no padding.
unsafe impl Part for TiesPart {}

impl<A: Real> Reduction<A> for Ties {
    type Part = TiesPart;
    #[inline(always)]
    fn row(&self, x: &[A]) -> Self::Part {
        let fold = Fold { init: self.worst(), f: |a: A, b: A| self.pick(a, b) };
        let value: A = fold.row(x);
        // Counted block by block: 70 000 ones do not fit a half, and 2²⁴ no f32.
        let mut count = 0.0;
        for block in x.chunks(4096) {
            let ones = simd::sum_by(
                block,
                #[inline(always)]
                |acc: A, v: A| acc + if v == value { A::ONE } else { A::ZERO },
            );
            count += ones.to_f64();
        }
        if value.is_nan() {
            count = x.iter().filter(|v| v.is_nan()).count() as f64;
        }
        TiesPart { value: value.to_f64(), count }
    }
    #[inline(always)]
    fn columns(&self, rows: Rows<'_, A>, parts: &mut [Self::Part]) {
        let (mut value, mut count) = ([self.worst::<A>(); STRIP], [A::ZERO; STRIP]);
        let w = parts.len();
        for row in rows.clone() {
            for (m, &v) in value[..w].iter_mut().zip(row) {
                *m = self.pick(*m, v);
            }
        }
        for row in rows {
            for ((c, &m), &v) in count[..w].iter_mut().zip(&value[..w]).zip(row) {
                *c += if (v == m) | (v.is_nan() & m.is_nan()) { A::ONE } else { A::ZERO };
            }
        }
        for ((p, &value), &count) in parts.iter_mut().zip(&value).zip(&count) {
            *p = TiesPart { value: value.to_f64(), count: count.to_f64() };
        }
    }
    fn merge(&self, a: Self::Part, b: Self::Part) -> Self::Part {
        let value = self.pick(a.value, b.value);
        let of = |p: Self::Part| if p.value == value || (p.value.is_nan() && value.is_nan()) { p.count } else { 0.0 };
        TiesPart { value, count: of(a) + of(b) }
    }
}

/// The product of the elements that are neither zero nor infinite nor NaN, in f64, and how many there are of each of those: so the
/// product of all but one can be told for any of them. An infinity leaves its sign in the product.
pub(crate) struct Factors;

#[derive(Clone, Copy, Debug)]
pub(crate) struct FactorsPart {
    product: f64,
    zeros: f64,
    infinities: f64,
    nans: f64,
}

impl FactorsPart {
    const ONE: Self = FactorsPart { product: 1.0, zeros: 0.0, infinities: 0.0, nans: 0.0 };

    /// Times a factor that is a number, or any whose product comes out as one.
    #[inline(always)]
    fn times(self, v: f64) -> Self {
        let zero = v == 0.0;
        FactorsPart { product: self.product * if zero { 1.0 } else { v }, zeros: self.zeros + if zero { 1.0 } else { 0.0 }, ..self }
    }

    /// Times any factor.
    fn times_any(self, v: f64) -> Self {
        if v.is_nan() {
            FactorsPart { nans: self.nans + 1.0, ..self }
        } else if v.is_infinite() {
            FactorsPart { infinities: self.infinities + 1.0, product: self.product * v.signum(), ..self }
        } else {
            self.times(v)
        }
    }

    #[inline(always)]
    fn join(self, b: Self) -> Self {
        FactorsPart {
            product: self.product * b.product,
            zeros: self.zeros + b.zeros,
            infinities: self.infinities + b.infinities,
            nans: self.nans + b.nans,
        }
    }

    /// The product of all. `∞ · 0` is NaN.
    #[inline(always)]
    pub(crate) fn value(self) -> f64 {
        if self.nans > 0.0 || (self.infinities > 0.0 && self.zeros > 0.0) {
            f64::NAN
        } else if self.infinities > 0.0 {
            f64::INFINITY.copysign(self.product)
        } else if self.zeros > 0.0 {
            0f64.copysign(self.product)
        } else {
            self.product
        }
    }

    /// The product of all but one, which is `v`. In f64: dividing one factor out again costs no accuracy that an f32 could show.
    #[inline(always)]
    pub(crate) fn without(self, v: f64) -> f64 {
        let rest = if v == 0.0 {
            FactorsPart { zeros: self.zeros - 1.0, ..self }
        } else if v.is_nan() {
            FactorsPart { nans: self.nans - 1.0, ..self }
        } else if v.is_infinite() {
            FactorsPart { infinities: self.infinities - 1.0, product: self.product * v.signum(), ..self }
        } else {
            FactorsPart { product: self.product / v, ..self }
        };
        rest.value()
    }
}

// SAFETY: numbers of one type: no padding.
unsafe impl Part for FactorsPart {}

impl<A: Real> Reduction<A> for Factors {
    type Part = FactorsPart;
    #[inline(always)]
    fn row(&self, x: &[A]) -> FactorsPart {
        let mut acc = [FactorsPart::ONE; 8];
        for chunk in x.chunks(8) {
            for (a, &v) in acc.iter_mut().zip(chunk) {
                *a = a.times(v.to_f64());
            }
        }
        let all = acc.into_iter().fold(FactorsPart::ONE, FactorsPart::join);
        // Infinities and NaN are looked for only where one shows.
        if all.product.is_finite() { all } else { x.iter().fold(FactorsPart::ONE, |p, v| p.times_any(v.to_f64())) }
    }
    #[inline(always)]
    fn columns(&self, rows: Rows<'_, A>, parts: &mut [FactorsPart]) {
        parts.fill(FactorsPart::ONE);
        for row in rows.clone() {
            for (p, &v) in parts.iter_mut().zip(row) {
                *p = p.times(v.to_f64());
            }
        }
        for (i, p) in parts.iter_mut().enumerate() {
            if !p.product.is_finite() {
                *p = rows.clone().fold(FactorsPart::ONE, |p, row| p.times_any(row[i].to_f64()));
            }
        }
    }
    #[inline(always)]
    fn merge(&self, a: FactorsPart, b: FactorsPart) -> FactorsPart {
        a.join(b)
    }
}
