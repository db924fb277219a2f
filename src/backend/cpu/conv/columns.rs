//! Between the positions of a tensor and the columns of a matrix: a column has what one position of the output reads of the input, a row for
//! each channel and element of the kernel. Padding takes part as zeros.

use crate::backend::conv::Conv;
use crate::backend::cpu::math::{Compute, Real};

/// Positions of an output in row-major order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) first: usize,
    pub(super) len: usize,
}

/// Calls `f` for every stretch of a span that lies in one line of the output: where it begins in the span, its coordinates, its length.
#[inline(always)]
pub(super) fn lines(c: &Conv, span: Span, mut f: impl FnMut(usize, [usize; 3], usize)) {
    let (height, width) = (c.axes[1].output, c.axes[2].output);
    let (mut line, mut from, mut at) = (span.first / width, span.first % width, 0);
    while at < span.len {
        let n = (width - from).min(span.len - at);
        f(at, [line / height, line % height, from], n);
        (line, from, at) = (line + 1, 0, at + n);
    }
}

/// Calls `f` for every element of the kernel of one channel, in row-major order.
#[inline(always)]
fn taps(c: &Conv, mut f: impl FnMut([usize; 3])) {
    for z in 0..c.axes[0].kernel {
        for y in 0..c.axes[1].kernel {
            for x in 0..c.axes[2].kernel {
                f([z, y, x]);
            }
        }
    }
}

/// What a stretch of a line meets under one element of the kernel: where the line of the input begins, the part of the stretch that lies
/// inside, and where that part begins in the line. `None` in the padding.
#[inline(always)]
pub(super) fn meets(c: &Conv, [kz, ky, kx]: [usize; 3], [z, y, from]: [usize; 3], n: usize) -> Option<(usize, [usize; 2], usize)> {
    let [az, ay, ax] = &c.axes;
    let (iz, iy) = ((z * az.stride) as isize + az.offset(kz), (y * ay.stride) as isize + ay.offset(ky));
    if iz < 0 || iy < 0 || iz as usize >= az.input || iy as usize >= ay.input {
        return None;
    }
    let line = (iz as usize * ay.input + iy as usize) * ax.input;
    let (first, end) = ax.inside(kx);
    let part = [first.clamp(from, from + n) - from, end.clamp(from, from + n) - from];
    let at = ((from + part[0]) * ax.stride) as isize + ax.offset(kx);
    (part[0] < part[1]).then_some((line, part, at as usize))
}

/// Writes the columns of a span for a group's channels of one image; rows are `stride` apart. Call inside `simd::dispatch`.
#[inline(always)]
pub(super) fn gather<T: Compute>(c: &Conv, x: &[T], span: Span, columns: &mut [T::Acc], stride: usize) {
    let (plane, step) = (c.input(), c.axes[2].stride);
    let mut row = 0;
    for channel in 0..c.inputs {
        let x = &x[channel * plane..][..plane];
        taps(
            c,
            #[inline(always)]
            |tap| {
                let out = &mut columns[row * stride..][..span.len];
                lines(
                    c,
                    span,
                    #[inline(always)]
                    |at, place, n| {
                        let out = &mut out[at..at + n];
                        let Some((line, [a, b], from)) = meets(c, tap, place, n) else { return out.fill(T::Acc::ZERO) };
                        out[..a].fill(T::Acc::ZERO);
                        out[b..].fill(T::Acc::ZERO);
                        let (out, x) = (&mut out[a..b], &x[line + from..]);
                        if step == 1 {
                            out.iter_mut().zip(x).for_each(
                                #[inline(always)]
                                |(y, x)| *y = x.load(),
                            );
                        } else {
                            out.iter_mut().zip(x.iter().step_by(step)).for_each(
                                #[inline(always)]
                                |(y, x)| *y = x.load(),
                            );
                        }
                    },
                );
                row += 1;
            },
        );
    }
}

/// Adds the columns of a span to what they were gathered from, for `channels` of one image. Call inside `simd::dispatch`.
#[inline(always)]
pub(super) fn scatter<A: Real>(c: &Conv, columns: &[A], stride: usize, span: Span, channels: usize, x: &mut [A]) {
    let (plane, step) = (c.input(), c.axes[2].stride);
    let mut row = 0;
    for channel in 0..channels {
        let x = &mut x[channel * plane..][..plane];
        taps(
            c,
            #[inline(always)]
            |tap| {
                let bars = &columns[row * stride..][..span.len];
                lines(
                    c,
                    span,
                    #[inline(always)]
                    |at, place, n| {
                        let Some((line, [a, b], from)) = meets(c, tap, place, n) else { return };
                        let (bars, x) = (&bars[at + a..at + b], &mut x[line + from..]);
                        if step == 1 {
                            x.iter_mut().zip(bars).for_each(
                                #[inline(always)]
                                |(x, &y)| *x += y,
                            );
                        } else {
                            x.iter_mut().step_by(step).zip(bars).for_each(
                                #[inline(always)]
                                |(x, &y)| *x += y,
                            );
                        }
                    },
                );
                row += 1;
            },
        );
    }
}
