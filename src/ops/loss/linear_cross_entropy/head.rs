//! The CPU kernels of a cross-entropy whose logits a linear layer makes, some rows at a time.

use super::LinearCrossEntropy;
use crate::backend::cpu::gemm::{GemmFloat, Mat, gemm};
use crate::backend::cpu::par::*;
use crate::backend::cpu::{self, Buffer, Compute, Contiguous, Real, rows, simd};
use crate::dtype::Element;
use crate::error::Result;
use crate::ops::loss::cross_entropy::{CrossEntropyLoss, RowSlopes, row_stats, sum_weights};
use crate::ops::loss::reduction::Classes;
use crate::ops::norm::layer_norm::widened;
use crate::shape::Shape;
use std::ops::Range;

/// An operand in the accumulator's type.
pub(super) struct Wide<'a, T: Compute> {
    dense: Contiguous<'a, T>,
    wide: Option<Buffer>,
}

impl<'a, T: Compute> Wide<'a, T> {
    pub(super) fn new(x: &cpu::In<'a>) -> Result<Self> {
        let dense = x.contiguous::<T>()?;
        let wide = if T::as_acc(&dense).is_none() { Some(widened::<T>(x)?) } else { None };
        Ok(Wide { dense, wide })
    }

    pub(super) fn slice(&self) -> &[T::Acc] {
        match &self.wide {
            Some(w) => w.slice(),
            None => T::as_acc(&self.dense).unwrap_or_default(),
        }
    }
}

/// A result in the accumulator's type: its own memory, or memory that is rounded at the end.
pub(super) struct Rounded<'a, T: Compute> {
    y: &'a mut [T],
    wide: Option<Buffer>,
}

impl<'a, T: Compute> Rounded<'a, T> {
    pub(super) fn of(y: Option<&'a mut cpu::Out<'_>>) -> Result<Option<Self>> {
        let Some(y) = y.map(cpu::Out::slice::<T>) else { return Ok(None) };
        let wide = if T::as_acc_mut(y).is_none() { Some(Buffer::alloc(T::Acc::DTYPE, y.len())?) } else { None };
        Ok(Some(Rounded { y, wide }))
    }

    pub(super) fn slice(&mut self) -> &mut [T::Acc] {
        match &mut self.wide {
            Some(w) => w.slice_mut(),
            None => T::as_acc_mut(self.y).unwrap_or_default(),
        }
    }

    pub(super) fn finish(self) {
        if let Some(w) = &self.wide {
            self.y.iter_mut().zip(w.slice::<T::Acc>()).for_each(|(y, &v)| *y = T::store(v));
        }
    }
}

/// The operands of the CPU kernels.
pub(super) struct Head<'a, A: Compute> {
    of: &'a CrossEntropyLoss,
    x: &'a [A],
    w: &'a [A],
    pub(super) targets: Classes,
    pub(super) divisor: f64,
    weights: Option<&'a [A]>,
    bias: Option<&'a [A]>,
    sum_w: A,
    classes: usize,
    width: usize,
    rows: usize,
}

impl<'a, A: GemmFloat + Compute<Acc = A> + Real> Head<'a, A> {
    pub(super) fn new<T: Compute<Acc = A>>(
        op: &'a LinearCrossEntropy,
        x: &'a Wide<'_, T>,
        w: &'a Wide<'_, T>,
        targets: &cpu::In<'_>,
        [weights, bias]: [Option<&'a Wide<'_, T>>; 2],
        shape: &Shape,
    ) -> Result<Self> {
        let (classes, width) = (shape[0], shape[1]);
        let targets = Classes::read(targets, classes, op.of.ignore_index)?;
        let (weights, bias) = (weights.map(Wide::slice), bias.map(Wide::slice));
        let divisor = targets.total(weights.map(|w| |t: usize| Real::to_f64(w[t])))?;
        let sum_w = sum_weights::<A>(weights, classes);
        Ok(Head { of: &op.of, x: x.slice(), w: w.slice(), targets, divisor, weights, bias, sum_w, classes, width, rows: op.rows })
    }

    /// Statistics (unless `given`) and loss of every row; with `r`, what the loss of a row is multiplied with, the cotangents of x, w and
    /// b as far as there is a place for them.
    pub(super) fn run(
        &self,
        given: bool,
        stats: &mut [A],
        losses: &mut [A],
        r: Option<&(dyn Fn(usize) -> A + Sync)>,
        [mut dx, mut dw, mut db]: [Option<&mut [A]>; 3],
    ) -> Result<()> {
        let (n, classes, width) = (losses.len(), self.classes, self.width);
        if n == 0 || classes == 0 {
            // Every target is ignored where there is no class.
            for d in [Some(stats), Some(losses), dx, dw, db].into_iter().flatten() {
                d.fill(A::ZERO);
            }
            return Ok(());
        }
        let rows = self.rows.clamp(1, n);
        let mut logits = Buffer::alloc(A::DTYPE, rows * classes)?;
        let w = Mat::row_major(self.w, classes, width);
        // What a bias's cotangent is a product with.
        let mut ones = Buffer::alloc(A::DTYPE, if db.is_some() { rows } else { 0 })?;
        ones.slice_mut::<A>().fill(A::ONE);
        for first in (0..n).step_by(rows) {
            let of = first..(first + rows).min(n);
            let x = Mat::row_major(&self.x[of.start * width..of.end * width], of.len(), width);
            let logits = &mut logits.slice_mut::<A>()[..of.len() * classes];
            if let Some(b) = self.bias {
                logits.par_chunks_mut(classes).with_min_len(32_768usize.div_ceil(classes)).for_each(|row| row.copy_from_slice(b));
            }
            gemm(A::ONE, x, w.transposed(), if self.bias.is_some() { A::ONE } else { A::ZERO }, logits, classes)?;
            self.piece(&of, given, logits, &mut stats[2 * of.start..2 * of.end], &mut losses[of.clone()], r);
            if r.is_none() {
                continue;
            }
            let bars = Mat::row_major(logits, of.len(), classes);
            if let Some(dx) = &mut dx {
                gemm(A::ONE, bars, w, A::ZERO, &mut dx[of.start * width..of.end * width], width)?;
            }
            if let Some(dw) = &mut dw {
                // Pieces are added in order, each by the product itself.
                gemm(A::ONE, bars.transposed(), x, if first == 0 { A::ZERO } else { A::ONE }, dw, width)?;
            }
            if let Some(db) = &mut db {
                let ones = Mat::row_major(&ones.slice::<A>()[..of.len()], of.len(), 1);
                gemm(A::ONE, bars.transposed(), ones, if first == 0 { A::ZERO } else { A::ONE }, db, 1)?;
            }
        }
        Ok(())
    }

    /// Losses of some rows, whose logits become their cotangents if there is `r`.
    fn piece(
        &self,
        of: &Range<usize>,
        given: bool,
        logits: &mut [A],
        stats: &mut [A],
        losses: &mut [A],
        r: Option<&(dyn Fn(usize) -> A + Sync)>,
    ) {
        let classes = self.classes;
        let group = rows::rows_per_task(classes);
        let task = |(g, ((logits, stats), losses)): (usize, ((&mut [A], &mut [A]), &mut [A]))| {
            simd::dispatch(
                #[inline(always)]
                || {
                    for (k, ((row, s), loss)) in
                        logits.chunks_exact_mut(classes).zip(stats.chunks_exact_mut(2)).zip(losses.iter_mut()).enumerate()
                    {
                        let i = of.start + g * group + k;
                        let target = self.targets.of[i];
                        if !given {
                            [s[0], s[1]] = if target.is_some() { row_stats(row).into() } else { [A::NEG_INFINITY, A::ZERO] };
                        }
                        let Some(t) = target.filter(|_| s[0] != A::NEG_INFINITY) else {
                            *loss = A::ZERO;
                            row.fill(A::ZERO);
                            continue;
                        };
                        *loss = if given { A::ZERO } else { self.of.row_loss(row, t, self.weights, self.sum_w, s[0], s[1]) };
                        if let Some(r) = r {
                            self.slopes(row, t, [s[0], s[1], r(i)]);
                        }
                    }
                },
            );
        };
        let tasks = logits.par_chunks_mut(group * classes).zip(stats.par_chunks_mut(2 * group)).zip(losses.par_chunks_mut(group));
        let small = if of.len() * classes < cpu::SERIAL { usize::MAX } else { 1 };
        tasks.enumerate().with_min_len(small).for_each(task);
    }

    /// Turns a row of logits into their cotangents.
    #[inline(always)]
    fn slopes(&self, row: &mut [A], t: usize, [m, sum, r]: [A; 3]) {
        let w_y = self.weights.map_or(A::ONE, |w| w[t]);
        let RowSlopes { slope, shift, target } = self.of.row_slopes(row[t], w_y, self.sum_w, row.len(), [m, sum, r]);
        match self.weights {
            Some(w) if self.of.label_smoothing != 0.0 => {
                for (v, &w) in row.iter_mut().zip(w) {
                    *v = (*v - m).exp().mul_add(slope, -(shift * w));
                }
            }
            _ => {
                for v in row.iter_mut() {
                    *v = (*v - m).exp().mul_add(slope, -shift);
                }
            }
        }
        row[t] = target;
    }
}
