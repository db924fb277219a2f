//! The derivative kernel of layer norm and RMS norm.

use super::{Norm, row_stats, widened};
use crate::backend::cpu::par::*;
use crate::backend::cpu::{self, Buffer, Compute, Contiguous, Number, Real, rows, simd};
use crate::backend::cuda::{self, norm};
use crate::dtype::{Element, with_float};
use crate::error::{ErrorKind, Result, bail};
use crate::memory;
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec};
use crate::ops::differentiate_vjp;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Purpose, Sample, Scalar};
use smallvec::SmallVec;

/// Rows per partial sum of the weight and bias derivatives; fixed, so that the grouping never depends on threads.
const GROUP: usize = 64;

/// The derivative kernel of [`Norm`]. Inputs: x, the weight if there is one, ȳ, what is added to x̄ if `added`, and the saved
/// statistics if `stats`.
/// Outputs: those of x̄, w̄, b̄ that `want` names.
#[derive(Clone, Debug)]
pub struct NormVjp<const CENTRED: bool> {
    /// The op it belongs to.
    pub of: Norm<CENTRED>,
    /// Whether mean and 1/σ of every row are given; otherwise they are computed again, to the same bits.
    pub stats: bool,
    /// Whether a tensor is added to x̄: the cotangent that x has from elsewhere.
    pub added: bool,
    /// Which cotangents to compute: x, weight, bias.
    pub want: [bool; 3],
}

impl<const CENTRED: bool> NormVjp<CENTRED> {
    /// Position of ȳ among the inputs.
    fn g(&self) -> usize {
        1 + usize::from(self.of.weight)
    }

    /// How many inputs are not statistics.
    fn operands(&self) -> usize {
        self.g() + 1 + usize::from(self.added)
    }
}

impl<const CENTRED: bool> Describe for NormVjp<CENTRED> {
    const NAME: &'static str = if CENTRED { "layer_norm_vjp" } else { "rms_norm_vjp" };
    const MATH: Math = Math {
        forward: "x̄ = r(h − [mean h] − x̂·mean(h x̂)), w̄ = Σ ȳ x̂, b̄ = Σ ȳ over rows; the bracket only when centred",
        vjp: "through the composition",
        kinks: "as the op it belongs to",
        cost: "one pass over x and ȳ; partial sums of 64 rows, added pairwise",
        references: "chain rule; pairwise summation: Higham, Accuracy and Stability of Numerical Algorithms, §4.2",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let lead = x[0].shape.rank() - self.of.axes;
        let (rows, n) = (x[0].shape[..lead].iter().product::<usize>(), x[0].shape[lead..].iter().product::<usize>());
        // x, the weight if there is one, ȳ, and what is added.
        let w = self.of.weight.then(|| &x[1]);
        let at = if w.is_some() { 2 } else { 1 };
        let (g, added) = (&x[at], self.added.then(|| &x[at + 1]));
        let count = S::lit(n as f64);
        let (mut dx, mut gx) = (Vec::new(), Vec::new());
        for (row, g) in x[0].data.chunks(n.max(1)).zip(g.data.chunks(n.max(1))) {
            let (centred, rstd) = self.of.define_row(row);
            let xhat: Vec<S> = centred.into_iter().map(|v| v * rstd).collect();
            let h: Vec<S> = g.iter().enumerate().map(|(j, &g)| w.map_or(g, |w| g * w.data[j])).collect();
            let hx: Vec<S> = h.iter().zip(&xhat).map(|(&h, &x)| h * x).collect();
            let (c1, c2) = (S::sum(&h) / count, S::sum(&hx) / count);
            for j in 0..n {
                let inner = if CENTRED { h[j] - c1 } else { h[j] };
                let v = rstd * (inner - xhat[j] * c2);
                dx.push(added.map_or(v, |a| v + a.data[dx.len()]));
            }
            gx.extend(g.iter().zip(&xhat).map(|(&g, &x)| g * x));
        }
        let tail = &x[0].shape[x[0].shape.rank() - self.of.axes..];
        let columns = |v: &[S]| Nd::new(tail, (0..n).map(|j| S::sum(&(0..rows).map(|i| v[i * n + j]).collect::<Vec<_>>())).collect());
        let all = [Nd::new(&x[0].shape, dx), columns(&gx), columns(&g.data)];
        all.into_iter().zip(self.want).filter(|(_, w)| *w).map(|(y, _)| y).collect()
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for s in Norm::<CENTRED>::samples(g).into_iter().filter(|s| matches!(s.purpose, Purpose::Check | Purpose::Value)) {
            let of = s.op.clone();
            let want = [true, of.weight, of.bias];
            let mut inputs: Vec<Input> = s.inputs[..1 + usize::from(of.weight)].to_vec();
            inputs.push(g.normal(inputs[0].shape()));
            let mut s = s.map(|of| NormVjp { of, stats: false, added: false, want });
            s.inputs = inputs;
            out.push(s);
        }
        let of = Norm::<CENTRED> { axes: 1, eps: 1e-3, weight: true, bias: CENTRED };
        for want in [
            [true, false, false],
            [false, true, false],
            [false, false, true],
            [true, true, false],
            [false, true, true],
            [true, false, true],
        ] {
            if want[2] && !CENTRED {
                continue;
            }
            let op = NormVjp { of: of.clone(), stats: false, added: false, want };
            out.push(
                Sample::check(op, [g.normal([3, 5]), g.normal([5]), g.normal([3, 5])]).note("every subset of wanted gradients [B17, C16]"),
            );
        }
        let op = NormVjp { of, stats: false, added: false, want: [true, true, CENTRED] };
        out.push(
            Sample::check(op.clone(), [g.normal([3, 5]), g.normal([5]), Input::values([3, 5], [0.0; 15])]).note("zero cotangent [A24]"),
        );
        out.push(
            Sample::value(op.clone(), [g.normal([16_384, 3]), g.normal([3]), g.normal([16_384, 3])])
                .note("16 384 rows summed in f32 [B11]"),
        );
        for want in [[true, true, CENTRED], [true, false, false]] {
            let op = NormVjp { added: true, want, ..op.clone() };
            let inputs = [g.normal([3, 5]), g.normal([5]), g.normal([3, 5]), g.normal([3, 5])];
            out.push(Sample::check(op, inputs).note("x̄ on top of the residual stream's own cotangent"));
        }
        let wide = NormVjp { added: true, ..op.clone() };
        out.push(
            Sample::value(wide, [g.normal([70, 300]), g.normal([300]), g.normal([70, 300]), g.normal([70, 300])])
                .note("several tasks, with what is added"),
        );
        out.push(Sample::reject(op.clone(), [g.normal([3, 5]), g.normal([5]), g.normal([3, 4])], ErrorKind::Shape));
        out.push(Sample::reject(
            NormVjp { added: true, ..op },
            [g.normal([3, 5]), g.normal([5]), g.normal([3, 5]), g.normal([5])],
            ErrorKind::Shape,
        ));
        out
    }
}

impl<const CENTRED: bool> Op for NormVjp<CENTRED> {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = self.of.check(&x[..self.operands()])?;
        if self.of.weight {
            self.of.parameter_fits("weight", &x[1], &x[0])?;
        }
        let shape = &x[0].shape;
        for g in &x[self.g()..self.operands()] {
            if &g.shape != shape {
                bail!(shape, "the cotangent must have the shape of x: {} and {shape}", g.shape);
            }
        }
        let tail = Spec::new(&shape[shape.rank() - self.of.axes..], dtype);
        Ok([x[0].clone(), tail.clone(), tail].into_iter().zip(self.want).filter(|(_, w)| *w).map(|(s, _)| s).collect())
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let (_, n) = self.of.split(x[0].shape());
        with_float!(x[0].dtype(), T => {
            type A = <T as Compute>::Acc;
            let mut y = y.iter_mut();
            let [dx, dw, db] = self.want.map(|w| if w { y.next().map(|y| y.slice::<T>()) } else { None });
            let w = if self.of.weight { Some(widened::<T>(&x[1])?) } else { None };
            let stats: Option<Contiguous<'_, A>> = if self.stats { Some(x[self.operands()].contiguous()?) } else { None };
            let added = if self.added { Some(x[self.g() + 1].contiguous::<T>()?) } else { None };
            let (g, x) = (x[self.g()].contiguous::<T>()?, x[0].contiguous::<T>()?);
            let rows = Rows { x: &x, w: w.as_ref().map(|w| w.slice::<A>()), g: &g, added: added.as_deref(), stats: stats.as_deref(), eps: <A as Real>::from_f64(self.of.eps), n };
            rows.pull_back::<CENTRED>(dx, dw, db)
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let mut y = y.iter_mut();
        let outputs = self.want.map(|w| if w { y.next() } else { None });
        let (w, stats) = (self.of.weight.then(|| &x[1]), self.stats.then(|| &x[self.operands()]));
        let added = self.added.then(|| &x[self.g() + 1]);
        norm::backward(self.of.split(x[0].shape()), CENTRED, self.of.eps, &x[0], w, &x[self.g()], added, stats, outputs)
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::list((0..self.operands()).map(|i| Some(x[i].clone())))
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let g = saved.get(self.g())?.clone();
        let mut inputs: Vec<Tensor> = vec![saved.get(0)?.clone()];
        let mut outputs = 0..;
        let mut bar = |wanted: bool| if wanted { outputs.next().and_then(|k| y_bar.get(k)).cloned() } else { None };
        let mut bars = vec![bar(self.want[0])];
        let mut wanted = vec![want[0]];
        if self.of.weight {
            inputs.push(saved.get(1)?.clone());
            bars.push(bar(self.want[1]));
            wanted.push(want[1]);
        }
        if self.of.bias {
            // Its value does not matter: the bias enters linearly.
            let x = inputs[0].shape();
            inputs.push(Tensor::full_on(&x[x.rank() - self.of.axes..], 0.0, g.dtype(), g.device())?);
            bars.push(bar(self.want[2]));
            wanted.push(false);
        }
        wanted.push(want[self.g()]);
        let mut cotangents = vec![g];
        if self.added {
            cotangents.push(saved.get(self.g() + 1)?.clone());
            wanted.push(want[self.g() + 1]);
        }
        let (of, added) = (self.of.clone(), self.added);
        let mut found = differentiate_vjp(&inputs, &cotangents, &bars, &wanted, move |x| {
            // What is added is the cotangent of x as a second result.
            Ok(std::iter::once(of.composed(&x[0], &x[1..])?).chain(added.then(|| x[0].clone())).collect())
        })?;
        if self.of.bias {
            found.remove(self.g());
        }
        found.extend(self.stats.then_some(None));
        Ok(found)
    }
}

/// Adds one partial sum to the next larger one, and starts it anew.
#[inline(always)]
fn flush<A: Real>(from: &mut [A], to: &mut [A]) {
    for (t, f) in to.iter_mut().zip(from) {
        *t += *f;
        *f = A::ZERO;
    }
}

/// The operands of the derivative kernel.
struct Rows<'a, T: Compute> {
    x: &'a [T],
    w: Option<&'a [T::Acc]>,
    g: &'a [T],
    added: Option<&'a [T]>,
    stats: Option<&'a [T::Acc]>,
    eps: T::Acc,
    n: usize,
}

impl<T: Compute> Rows<'_, T> {
    fn pull_back<const CENTRED: bool>(&self, dx: Option<&mut [T]>, dw: Option<&mut [T]>, db: Option<&mut [T]>) -> Result<()> {
        let (zero, n) = (T::Acc::ZERO, self.n);
        if self.x.is_empty() {
            // No rows, or rows without elements: the sums are empty.
            for d in [dw, db].into_iter().flatten() {
                d.fill(T::store(zero));
            }
            return Ok(());
        }
        let groups = self.x.len().div_ceil(GROUP * n);
        let width = n * (usize::from(dw.is_some()) + usize::from(db.is_some()));
        let mut parts = Buffer::alloc(T::Acc::DTYPE, groups * width)?;
        let parts = parts.slice_mut::<T::Acc>();
        let mut tasks: Vec<(Option<&mut [T]>, &mut [T::Acc])> = memory::room(groups)?;
        let mut dx_groups = dx.map(|dx| dx.chunks_mut(GROUP * n));
        let mut rest = &mut *parts;
        for _ in 0..groups {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(width);
            rest = tail;
            tasks.push((dx_groups.as_mut().and_then(Iterator::next), part));
        }
        let (has_dw, has_db) = (dw.is_some(), db.is_some());
        let run = |(i, (dx, part)): (usize, (Option<&mut [T]>, &mut [T::Acc]))| self.group::<CENTRED>(i, dx, part, has_dw, has_db);
        if self.x.len() < cpu::SERIAL {
            tasks.into_iter().enumerate().try_for_each(run)?;
        } else {
            tasks.into_par_iter().enumerate().with_min_len((rows::rows_per_task(n) / GROUP).max(1)).try_for_each(run)?;
        }
        // Neighbours are added pairwise: the error grows with the logarithm of the number of groups.
        let mut step = 1;
        while step < groups && width > 0 {
            for pair in parts.chunks_mut(2 * step * width) {
                if pair.len() > step * width {
                    let (a, b) = pair.split_at_mut(step * width);
                    a[..width].iter_mut().zip(&b[..width]).for_each(|(a, &b)| *a += b);
                }
            }
            step *= 2;
        }
        let mut sums = parts[..width.min(parts.len())].chunks(n);
        for d in [dw, db].into_iter().flatten() {
            let sum = sums.next().unwrap_or_default();
            d.iter_mut().zip(sum).for_each(|(d, &s)| *d = T::store(s));
        }
        Ok(())
    }

    /// One group of rows: their x̄, and their share of w̄ and b̄ in `part`.
    fn group<const CENTRED: bool>(
        &self,
        i: usize,
        mut dx: Option<&mut [T]>,
        part: &mut [T::Acc],
        has_dw: bool,
        has_db: bool,
    ) -> Result<()> {
        let n = self.n;
        let rows = i * GROUP * n..((i + 1) * GROUP * n).min(self.x.len());
        // Half types are widened some rows at a time, which stay in cache.
        let step = if T::DTYPE.is_half() { rows::rows_per_task(n).min(GROUP) } else { GROUP };
        let (width, room) = (part.len(), rows::room::<T>((step * n).min(rows.len())));
        let mut scratch =
            Buffer::alloc(T::Acc::DTYPE, 2 * (n + width) + room * (2 + usize::from(self.added.is_some()) + usize::from(dx.is_some())))?;
        let (xhat, rest) = scratch.slice_mut::<T::Acc>().split_at_mut(n);
        let (h, rest) = rest.split_at_mut(n);
        // Sums of 4 and of 16 rows on the way to the sum of the group: at most 9 additions in a chain instead of 63.
        let (sums, rest) = rest.split_at_mut(2 * width);
        sums.fill(T::Acc::ZERO);
        let (four, sixteen) = sums.split_at_mut(width);
        part.fill(T::Acc::ZERO);
        let (wide_x, rest) = rest.split_at_mut(room);
        let (wide_g, rest) = rest.split_at_mut(room);
        let (wide_added, wide_dx) = rest.split_at_mut(if self.added.is_some() { room } else { 0 });
        let mut sums = Sums { four, sixteen, part, has_dw, has_db };
        let (mut at, mut done) = (rows.start, 0);
        while at < rows.end {
            let range = at..(at + step * n).min(rows.end);
            let piece = Rows {
                x: rows::computed(&self.x[range.clone()], wide_x),
                w: self.w,
                g: rows::computed(&self.g[range.clone()], wide_g),
                added: self.added.map(|a| rows::computed(&a[range.clone()], wide_added)),
                stats: self.stats.map(|s| &s[2 * (range.start / n)..2 * (range.end / n)]),
                eps: self.eps,
                n,
            };
            let last = range.end == rows.end;
            match &mut dx {
                None => piece.sum_up::<CENTRED>(done, last, None, &mut sums, xhat, h),
                Some(dx) => {
                    let dx = &mut dx[range.start - rows.start..range.end - rows.start];
                    rows::stored(dx, wide_dx, |dx| piece.sum_up::<CENTRED>(done, last, Some(dx), &mut sums, xhat, h));
                }
            }
            done += range.len() / n;
            at = range.end;
        }
        Ok(())
    }
}

/// The shares of a group of rows in w̄ and b̄.
struct Sums<'a, A> {
    four: &'a mut [A],
    sixteen: &'a mut [A],
    part: &'a mut [A],
    has_dw: bool,
    has_db: bool,
}

impl<A: Number> Rows<'_, A> {
    /// x̄ of these rows and their share of w̄ and b̄. They follow `done` rows of their group, and are the `last` of it or not.
    fn sum_up<const CENTRED: bool>(
        &self,
        done: usize,
        last: bool,
        mut dx: Option<&mut [A]>,
        sums: &mut Sums<'_, A>,
        xhat: &mut [A],
        h: &mut [A],
    ) {
        let n = self.n;
        let rows = self.x.len() / n;
        let count = <A as Real>::from_f64(n as f64);
        simd::dispatch(
            #[inline(always)]
            || {
                for r in 0..rows {
                    let (x, g) = (&self.x[r * n..(r + 1) * n], &self.g[r * n..(r + 1) * n]);
                    let (mean, rstd) = match self.stats {
                        Some(s) => (s[2 * r], s[2 * r + 1]),
                        None => row_stats::<A, CENTRED>(x, self.eps),
                    };
                    for (v, &x) in xhat.iter_mut().zip(x) {
                        *v = (x - mean) * rstd;
                    }
                    let (dw, db) = sums.four.split_at_mut(if sums.has_dw { n } else { 0 });
                    if sums.has_dw {
                        for ((d, &x), &g) in dw.iter_mut().zip(xhat.iter()).zip(g) {
                            *d = x.mul_add(g, *d);
                        }
                    }
                    if sums.has_db {
                        for (d, &g) in db.iter_mut().zip(g) {
                            *d += g;
                        }
                    }
                    let (done, ends) = (done + r + 1, last && r + 1 == rows);
                    if done.is_multiple_of(4) || ends {
                        flush(sums.four, sums.sixteen);
                    }
                    if done.is_multiple_of(16) || ends {
                        flush(sums.sixteen, sums.part);
                    }
                    if let Some(dx) = &mut dx {
                        match self.w {
                            Some(w) => {
                                for ((h, &g), &w) in h.iter_mut().zip(g).zip(w) {
                                    *h = g * w;
                                }
                            }
                            None => h.copy_from_slice(g),
                        }
                        let c1 = if CENTRED { simd::sum(h) / count } else { A::ZERO };
                        let c2 = simd::dot(h, xhat) / count;
                        let dx = dx[r * n..(r + 1) * n].iter_mut().zip(h.iter()).zip(xhat.iter());
                        match self.added {
                            None => {
                                for ((d, &h), &x) in dx {
                                    *d = rstd * (-x).mul_add(c2, h - c1);
                                }
                            }
                            Some(a) => {
                                for (((d, &h), &x), &a) in dx.zip(&a[r * n..(r + 1) * n]) {
                                    *d = rstd.mul_add((-x).mul_add(c2, h - c1), a);
                                }
                            }
                        }
                    }
                }
            },
        );
    }
}
