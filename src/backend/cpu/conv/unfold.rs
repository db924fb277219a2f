//! Windows of planes as columns, and the sums of columns back into planes. Planes are the images of a convolution of one channel.

use super::columns::{Span, lines, meets};
use crate::backend::conv::Conv;
use crate::backend::cpu::math::{Compute, Real};
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::par::*;
use crate::backend::cpu::run::simd;
use crate::backend::cpu::run::view::In;
use crate::dtype::Element;
use crate::error::Result;

/// Elements that are worth a task.
const TASK: usize = 1 << 15;

/// Element `k` of the kernel in row-major order.
fn tap(c: &Conv, k: usize) -> [usize; 3] {
    let [_, height, width] = c.axes.map(|a| a.kernel);
    [k / width / height, k / width % height, k % width]
}

/// A row for each plane and element of the kernel: what it meets at each position of the output, 0 in the padding.
pub(crate) fn unfold<T: Compute>(c: &Conv, x: &In<'_>, y: &mut [T]) -> Result<()> {
    if y.is_empty() {
        return Ok(());
    }
    let (plane, taps, positions) = (c.input(), c.taps(), c.output());
    let x = x.contiguous::<T>()?;
    let zero = T::store(T::Acc::ZERO);
    let (rows, step) = ((TASK / positions).max(1), c.axes[2].stride);
    y.par_chunks_mut(rows * positions).enumerate().for_each(|(task, y)| {
        for (i, y) in y.chunks_exact_mut(positions).enumerate() {
            let row = task * rows + i;
            let (x, tap) = (&x[row / taps * plane..][..plane], tap(c, row % taps));
            lines(c, Span { first: 0, len: positions }, |at, place, n| {
                let y = &mut y[at..at + n];
                let Some((line, [a, b], from)) = meets(c, tap, place, n) else { return y.fill(zero) };
                y[..a].fill(zero);
                y[b..].fill(zero);
                for (y, &x) in y[a..b].iter_mut().zip(x[line + from..].iter().step_by(step)) {
                    *y = x;
                }
            });
        }
    });
    Ok(())
}

/// Planes from the rows of `unfold`: the sum of all that meets an element, element by element of the kernel.
pub(crate) fn fold<T: Compute>(c: &Conv, y: &In<'_>, x: &mut [T]) -> Result<()> {
    if x.is_empty() {
        return Ok(());
    }
    let (plane, taps, positions) = (c.input(), c.taps(), c.output());
    let y = y.contiguous::<T>()?;
    let step = c.axes[2].stride;
    x.par_chunks_mut(plane).enumerate().try_for_each(|(p, x)| {
        let mut sums = Buffer::alloc(T::Acc::DTYPE, plane)?;
        let sums = sums.slice_mut::<T::Acc>();
        sums.fill(T::Acc::ZERO);
        simd::dispatch(
            #[inline(always)]
            || {
                for k in 0..taps {
                    let (y, tap) = (&y[(p * taps + k) * positions..][..positions], tap(c, k));
                    lines(
                        c,
                        Span { first: 0, len: positions },
                        #[inline(always)]
                        |at, place, n| {
                            let Some((line, [a, b], from)) = meets(c, tap, place, n) else { return };
                            for (sum, y) in sums[line + from..].iter_mut().step_by(step).zip(&y[at + a..at + b]) {
                                *sum += y.load();
                            }
                        },
                    );
                }
                for (x, &sum) in x.iter_mut().zip(&*sums) {
                    *x = T::store(sum);
                }
            },
        );
        Ok(())
    })
}
