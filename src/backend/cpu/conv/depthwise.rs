//! Groups of one input channel, line by line: each element of the kernel adds a multiple of a line to a line, without columns in between.

use super::{WORK, store};
use crate::backend::conv::{Axis, Conv};
use crate::backend::cpu::math::{Compute, Real};
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::par::*;
use crate::backend::cpu::run::simd;
use crate::dtype::Element;
use crate::error::Result;

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

/// The convolution.
pub(super) fn forward<T: Compute>(
    c: &Conv,
    x: &[T],
    w: &[T::Acc],
    plus: impl Fn(usize) -> Option<T::Acc> + Sync,
    y: &mut [T],
) -> Result<()> {
    let ([az, ay, ax], channels, taps) = (&c.axes, c.groups * c.outputs, c.taps());
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
                    || {
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
                    },
                );
            }
        }
    })
}

/// The transposed convolution: each output of a channel's group in turn.
pub(super) fn input<T: Compute>(c: &Conv, y: &[T], w: &[T::Acc], plus: impl Fn(usize) -> Option<T::Acc> + Sync, x: &mut [T]) -> Result<()> {
    let ([az, ay, ax], taps) = (&c.axes, c.taps());
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
                        || {
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
                        },
                    );
                }
            }
        }
    })
}
