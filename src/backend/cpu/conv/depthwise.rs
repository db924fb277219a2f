//! Groups of one input channel, line by line: each element of the kernel adds a multiple of a line to a line, without columns in between.

use super::{WORK, store};
use crate::backend::conv::{Axis, Conv};
use crate::backend::cpu::math::{Compute, Real};
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::par::*;
use crate::backend::cpu::run::simd;
use crate::dtype::Element;
use crate::error::Result;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Whether a group has one input, and the padding, which is left out here, adds nothing: it would make NaN of an infinite weight.
pub(super) fn suits<A: Real>(c: &Conv, w: &[A]) -> bool {
    c.inputs == 1 && w.iter().all(|w| w.is_finite())
}

/// Calls `f` for each line of `width` of a result, with its plane and its place there, and a line of sums to fill. Then rounds them, with
/// what is added to all of a channel.
fn lines<T: Compute>(
    y: &mut [T],
    [depth, height, width]: [usize; 3],
    (channels, work): (usize, usize),
    plus: impl Fn(usize) -> Option<T::Acc> + Sync,
    f: impl Fn(usize, usize, usize, &mut [T::Acc]) + Sync,
) -> Result<()> {
    let count = (WORK / (width * work).max(1)).max(1);
    y.par_chunks_mut(count * width).enumerate().try_for_each(|(task, y)| {
        let mut sums = Buffer::alloc(T::Acc::DTYPE, width)?;
        let sums = sums.slice_mut::<T::Acc>();
        for (i, y) in y.chunks_exact_mut(width).enumerate() {
            let line = task * count + i;
            let plane = line / height / depth;
            sums.fill(T::Acc::ZERO);
            f(plane, line / height % depth, line % height, sums);
            store(sums, plus(plane % channels), y);
        }
        Ok(())
    })
}

/// The position of the input that meets one of the output under an element of the kernel, if it lies inside.
fn forward_at(a: &Axis, p: usize, k: usize) -> Option<usize> {
    usize::try_from((p * a.stride) as isize + a.offset(k)).ok().filter(|&q| q < a.input)
}

/// The position of the output that meets one of the input under an element of the kernel, if there is one.
fn back_at(a: &Axis, q: usize, k: usize) -> Option<usize> {
    let way = usize::try_from(q as isize - a.offset(k)).ok()?;
    (way.is_multiple_of(a.stride) && way / a.stride < a.output).then_some(way / a.stride)
}

/// How lines meet at a stride of 1: position `p` of a result and element `k` of the kernel at `p + offset(k)` of an operand.
struct Offsets<F: Fn(usize) -> isize> {
    input: usize,
    output: usize,
    offset: F,
}

impl<F: Fn(usize) -> isize> Offsets<F> {
    /// The positions of the result for which `k` lies inside the operand: the first, and the one after the last.
    #[inline(always)]
    fn inside(&self, k: usize) -> (usize, usize) {
        let offset = (self.offset)(k);
        let first = (-offset).clamp(0, self.output as isize);
        let end = (self.input as isize - offset).clamp(first, self.output as isize);
        (first as usize, end as usize)
    }

    /// The positions for which all of `k` elements lie inside.
    #[inline(always)]
    fn common<const K: usize>(&self) -> (usize, usize) {
        let (mut first, mut end) = (0, self.output);
        for k in 0..K {
            let (f, e) = self.inside(k);
            (first, end) = (first.max(f), end.min(e));
        }
        (first, end.max(first))
    }
}

/// Adds to each position what the elements of the kernel read, one element after the other: all of them in one go where all lie inside.
#[inline(always)]
fn together<T: Compute, F: Fn(usize) -> isize, const K: usize>(at: &Offsets<F>, w: [T::Acc; K], line: &[T], sums: &mut [T::Acc]) {
    let (first, end) = at.common::<K>();
    for p in (0..first).chain(end..at.output) {
        for (k, w) in w.iter().enumerate() {
            let q = p as isize + (at.offset)(k);
            if (0..at.input as isize).contains(&q) {
                sums[p] = w.mul_add(line[q as usize].load(), sums[p]);
            }
        }
    }
    let n = end - first;
    if n == 0 {
        return;
    }
    let x: [&[T]; K] = std::array::from_fn(|k| &line[(first as isize + (at.offset)(k)) as usize..][..n]);
    let sums = &mut sums[first..end];
    for i in 0..n {
        let mut sum = sums[i];
        for k in 0..K {
            sum = w[k].mul_add(x[k][i].load(), sum);
        }
        sums[i] = sum;
    }
}

/// The same for any stride.
#[inline(always)]
fn one_by_one<T: Compute>(ax: &Axis, w: &[T::Acc], line: &[T], sums: &mut [T::Acc]) {
    for (kx, &w) in w.iter().enumerate() {
        let (first, end) = ax.inside(kx);
        if first >= end {
            continue;
        }
        let from = &line[((first * ax.stride) as isize + ax.offset(kx)) as usize..];
        let sums = &mut sums[first..end];
        if ax.stride == 1 {
            for (s, x) in sums.iter_mut().zip(from) {
                *s = w.mul_add(x.load(), *s);
            }
        } else {
            for (s, x) in sums.iter_mut().zip(from.iter().step_by(ax.stride)) {
                *s = w.mul_add(x.load(), *s);
            }
        }
    }
}

/// The way back, for any stride.
#[inline(always)]
fn back_one_by_one<T: Compute>(ax: &Axis, w: &[T::Acc], line: &[T], sums: &mut [T::Acc]) {
    for (kx, &w) in w.iter().enumerate() {
        let (first, end) = ax.inside(kx);
        if first >= end {
            continue;
        }
        let sums = &mut sums[((first * ax.stride) as isize + ax.offset(kx)) as usize..];
        if ax.stride == 1 {
            for (s, y) in sums.iter_mut().zip(&line[first..end]) {
                *s = w.mul_add(y.load(), *s);
            }
        } else {
            for (s, y) in sums.iter_mut().step_by(ax.stride).zip(&line[first..end]) {
                *s = w.mul_add(y.load(), *s);
            }
        }
    }
}

/// Whether the gradient of a kernel is summed line by line, a task for each channel.
pub(super) fn suits_weight(c: &Conv) -> bool {
    c.inputs == 1 && c.outputs == 1 && c.groups >= FEWEST_CHANNELS
}

/// Channels from which on each is a task.
const FEWEST_CHANNELS: usize = 8;
/// Sums of one element of a kernel that go on side by side.
const LANES: usize = 16;

/// The gradient of the kernel: a sum for each image, added up in their order. `false` where a cotangent is not finite: padding, which is
/// left out here, would have made NaN of it.
pub(super) fn weight<T: Compute>(c: &Conv, x: &[T], y: &[T], w: &mut [T]) -> Result<bool> {
    let finite = AtomicBool::new(true);
    let ([az, ay, ax], taps) = (&c.axes, c.taps());
    let together = (WORK / (c.images * c.output() * taps).max(1)).max(1);
    w.par_chunks_mut(taps)
        .enumerate()
        .with_min_len(together)
        .try_for_each(|(channel, w)| {
            let mut total = Buffer::alloc(T::Acc::DTYPE, taps)?;
            let total = total.slice_mut::<T::Acc>();
            total.fill(T::Acc::ZERO);
            for image in 0..c.images {
                let plane = image * c.groups + channel;
                let (x, y) = (&x[plane * c.input()..][..c.input()], &y[plane * c.output()..][..c.output()]);
                finite.fetch_and(all_finite(y), Relaxed);
                for kz in 0..az.kernel {
                    for ky in 0..ay.kernel {
                        let total = &mut total[(kz * ay.kernel + ky) * ax.kernel..][..ax.kernel];
                        // Lines of both that meet under this element.
                        let lines = || {
                            let planes = (0..az.output).filter_map(|p| Some((p, forward_at(az, p, kz)?)));
                            let pairs = planes.flat_map(|(pz, qz)| {
                                let of = move |py| Some((pz * ay.output + py, qz * ay.input + forward_at(ay, py, ky)?));
                                (0..ay.output).filter_map(of)
                            });
                            pairs.map(|(p, q)| (&y[p * ax.output..][..ax.output], &x[q * ax.input..][..ax.input]))
                        };
                        simd::dispatch(
                            #[inline(always)]
                            || match total {
                                [_, _, _] => sums_of_lines::<T, 3>(ax, lines(), total),
                                [_, _, _, _, _] => sums_of_lines::<T, 5>(ax, lines(), total),
                                _ => {
                                    for (k, total) in total.iter_mut().enumerate() {
                                        sums_of_lines::<T, 1>(&ax.element(k), lines(), std::slice::from_mut(total));
                                    }
                                }
                            },
                        );
                    }
                }
            }
            store(total, None, w);
            Ok(())
        })
        .map(|()| finite.load(Relaxed))
}

fn all_finite<T: Compute>(y: &[T]) -> bool {
    let mut zeros = [T::Acc::ZERO; LANES];
    simd::dispatch(
        #[inline(always)]
        || {
            let (whole, rest) = y.as_chunks::<LANES>();
            for y in whole {
                for l in 0..LANES {
                    zeros[l] = y[l].load().mul_add(T::Acc::ZERO, zeros[l]);
                }
            }
            rest.iter().zip(&mut zeros).for_each(|(y, z)| *z = y.load().mul_add(T::Acc::ZERO, *z));
        },
    );
    zeros.into_iter().all(|z| z == T::Acc::ZERO)
}

/// Adds to `total` the products of lines that meet under each of `K` elements of the kernel.
#[inline(always)]
fn sums_of_lines<'a, T: Compute, const K: usize>(ax: &Axis, lines: impl Iterator<Item = (&'a [T], &'a [T])>, total: &mut [T::Acc]) {
    let inside: [(usize, usize); K] = std::array::from_fn(|k| ax.inside(k));
    let first = inside.iter().map(|i| i.0).max().unwrap_or(0);
    let end = inside.iter().map(|i| i.1).min().unwrap_or(0).max(first);
    let at = |p: usize, k: usize| ((p * ax.stride) as isize + ax.offset(k)) as usize;
    let mut sums = [[T::Acc::ZERO; LANES]; K];
    for (y, x) in lines {
        let mut p = first;
        if ax.stride == 1 {
            while p + LANES <= end {
                let ys = &y[p..][..LANES];
                for (k, sums) in sums.iter_mut().enumerate() {
                    let xs = &x[at(p, k)..][..LANES];
                    for l in 0..LANES {
                        sums[l] = ys[l].load().mul_add(xs[l].load(), sums[l]);
                    }
                }
                p += LANES;
            }
        }
        for (k, (sums, &(from, to))) in sums.iter_mut().zip(&inside).enumerate() {
            for p in (from..first.min(to)).chain(p.max(from)..to) {
                sums[p % LANES] = y[p].load().mul_add(x[at(p, k)].load(), sums[p % LANES]);
            }
        }
    }
    for (total, sums) in total.iter_mut().zip(sums) {
        *total += sums.into_iter().fold(T::Acc::ZERO, |a, b| a + b);
    }
}

/// The convolution.
pub(super) fn forward<T: Compute>(
    c: &Conv,
    x: &[T],
    w: &[T::Acc],
    plus: impl Fn(usize) -> Option<T::Acc> + Sync,
    y: &mut [T],
) -> Result<()> {
    let ([az, ay, ax], channels, taps) = (&c.axes, c.groups * c.outputs, c.taps());
    let along = Offsets { input: ax.input, output: ax.output, offset: |k| ax.offset(k) };
    lines(y, c.axes.map(|a| a.output), (channels, taps), plus, |plane, z, h, sums| {
        let (image, o) = (plane / channels, plane % channels);
        let x = &x[(image * c.groups + o / c.outputs) * c.input()..][..c.input()];
        let w = &w[o * taps..][..taps];
        for (kz, z) in (0..az.kernel).filter_map(|k| Some((k, forward_at(az, z, k)?))) {
            for (ky, h) in (0..ay.kernel).filter_map(|k| Some((k, forward_at(ay, h, k)?))) {
                let line = &x[(z * ay.input + h) * ax.input..][..ax.input];
                let w = &w[(kz * ay.kernel + ky) * ax.kernel..][..ax.kernel];
                simd::dispatch(
                    #[inline(always)]
                    || match *w {
                        [u, v, w] if ax.stride == 1 => together(&along, [u, v, w], line, sums),
                        [u, v, w, p, q] if ax.stride == 1 => together(&along, [u, v, w, p, q], line, sums),
                        _ => one_by_one(ax, w, line, sums),
                    },
                );
            }
        }
    })
}

/// The transposed convolution: each output of a channel's group in turn.
pub(super) fn input<T: Compute>(c: &Conv, y: &[T], w: &[T::Acc], plus: impl Fn(usize) -> Option<T::Acc> + Sync, x: &mut [T]) -> Result<()> {
    let ([az, ay, ax], taps) = (&c.axes, c.taps());
    let back = Offsets { input: ax.output, output: ax.input, offset: |k| -ax.offset(k) };
    lines(x, c.axes.map(|a| a.input), (c.groups, taps * c.outputs), plus, |plane, z, h, sums| {
        for o in 0..c.outputs {
            let y = &y[(plane * c.outputs + o) * c.output()..][..c.output()];
            let w = &w[(plane % c.groups * c.outputs + o) * taps..][..taps];
            for (kz, z) in (0..az.kernel).filter_map(|k| Some((k, back_at(az, z, k)?))) {
                for (ky, h) in (0..ay.kernel).filter_map(|k| Some((k, back_at(ay, h, k)?))) {
                    let line = &y[(z * ay.output + h) * ax.output..][..ax.output];
                    let w = &w[(kz * ay.kernel + ky) * ax.kernel..][..ax.kernel];
                    simd::dispatch(
                        #[inline(always)]
                        || match *w {
                            [u, v, w] if ax.stride == 1 => together(&back, [u, v, w], line, sums),
                            [u, v, w, p, q] if ax.stride == 1 => together(&back, [u, v, w, p, q], line, sums),
                            _ => back_one_by_one(ax, w, line, sums),
                        },
                    );
                }
            }
        }
    })
}
