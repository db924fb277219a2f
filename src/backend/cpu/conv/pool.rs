//! The largest element of each window.

use crate::backend::conv::Conv;
use crate::backend::cpu::math::{Compute, Real};
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::par::*;
use crate::backend::cpu::run::simd;
use crate::backend::cpu::run::view::In;
use crate::dtype::Element;
use crate::error::Result;

/// Elements of windows that are worth a task.
const TASK: usize = 1 << 15;

/// `y` and the place of each in its plane, `at`: the first of equals, the first NaN where there is one. Planes are images.
pub(crate) fn max<T: Compute>(c: &Conv, x: &In<'_>, y: &mut [T], at: &mut [i64]) -> Result<()> {
    if y.is_empty() {
        return Ok(());
    }
    let x = x.contiguous::<T>()?;
    let [_, height, width] = c.axes.map(|a| a.output);
    let lines = (TASK / (width * c.taps())).max(1);
    let parts = y.par_chunks_mut(lines * width).zip(at.par_chunks_mut(lines * width));
    parts.enumerate().try_for_each(|(task, (y, at))| {
        let mut best = Buffer::alloc(T::Acc::DTYPE, width)?;
        let best = best.slice_mut::<T::Acc>();
        simd::dispatch(
            #[inline(always)]
            || {
                for (i, (y, at)) in y.chunks_exact_mut(width).zip(at.chunks_exact_mut(width)).enumerate() {
                    let line = task * lines + i;
                    let (plane, z, h) = (line / height / c.axes[0].output, line / height % c.axes[0].output, line % height);
                    max_line(c, &x[plane * c.input()..][..c.input()], z, h, best, at);
                    for (y, &b) in y.iter_mut().zip(&*best) {
                        *y = T::store(b);
                    }
                }
            },
        );
        Ok(())
    })
}

/// A line of the output: every element of the window in turn, at all positions.
#[inline(always)]
fn max_line<T: Compute>(c: &Conv, x: &[T], z: usize, h: usize, best: &mut [T::Acc], at: &mut [i64]) {
    let [az, ay, ax] = &c.axes;
    // No place yet: whatever comes first is taken, −∞ too.
    at.fill(-1);
    best.fill(T::Acc::NEG_INFINITY);
    for kz in 0..az.kernel {
        for ky in 0..ay.kernel {
            let (iz, iy) = ((z * az.stride) as isize + az.offset(kz), (h * ay.stride) as isize + ay.offset(ky));
            if iz < 0 || iy < 0 || iz as usize >= az.input || iy as usize >= ay.input {
                continue;
            }
            let line = (iz as usize * ay.input + iy as usize) * ax.input;
            for kx in 0..ax.kernel {
                let (first, end) = ax.inside(kx);
                if first >= end {
                    continue;
                }
                let from = line + ((first * ax.stride) as isize + ax.offset(kx)) as usize;
                let values = x[from..].iter().step_by(ax.stride);
                let places = best[first..end].iter_mut().zip(at[first..end].iter_mut());
                for (i, ((best, at), v)) in places.zip(values).enumerate() {
                    let v = v.load();
                    let better = *at < 0 || v > *best || (v.is_nan() && !best.is_nan());
                    *best = if better { v } else { *best };
                    *at = if better { (from + i * ax.stride) as i64 } else { *at };
                }
            }
        }
    }
}
