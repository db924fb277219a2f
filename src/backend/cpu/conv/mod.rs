//! Convolutions: products of matrices over tiles of columns.
//!
//! A tile of positions is gathered into the second-level cache (`columns`), multiplied there, and its part of the result written: nothing of
//! the size of all columns, which is the input's times the kernel's, exists at any time. Where a group has few channels a product of
//! matrices would spend its time on packing them, and plain loops over a tile in the first-level cache multiply instead; a group of one input goes line by line. A kernel of one
//! element that visits every position is a product of matrices as it stands.
//!
//! How work is cut follows from sizes alone, so the number of threads changes no bit.

mod columns;
mod depthwise;
mod forward;
mod input;
mod pool;
mod resample;
mod unfold;
mod weight;

pub(crate) use forward::forward;
pub(crate) use input::input;
pub(crate) use pool::max;
pub(crate) use resample::resample;
pub(crate) use unfold::{fold, unfold};
pub(crate) use weight::weight;

use super::gemm::{GemmFloat, Mat, gemm, gemm_here};
use super::math::{Compute, Real};
use super::matmul::Multiply;
use super::memory::Buffer;
use super::run::simd;
use super::run::view::{Contiguous, In};
use crate::backend::conv::Conv;
use crate::dtype::Element;
use crate::error::Result;

/// Elements of a tile of columns that the second-level cache holds beside the other operands.
const COLUMNS: usize = 1 << 17;
/// The same for the first-level cache.
const FEW_COLUMNS: usize = 6 << 10;
/// Fewest columns of a tile, where the output has so many positions.
const FEWEST: usize = 64;
/// Elements of a group's kernel from which on reading them costs more than columns that are too many for the second-level cache, and how
/// many columns a tile then has at least.
const LARGE_KERNEL: usize = 1 << 16;
const COLUMNS_OF_LARGE: usize = 256;
/// Tasks that are made at least, as far as tiles do not become too small.
const TASKS: usize = 8;
/// Multiply-adds that are worth a task.
const WORK: usize = 1 << 17;
/// Positions from which on a pointwise kernel is a product for each image.
const POINTS: usize = 32;

/// Whether a group has too few channels for products of matrices.
fn is_few(c: &Conv) -> bool {
    c.inputs == 1 || c.outputs == 1 || c.inputs <= 4 && c.outputs <= 16
}

/// An operand in row-major order, in the type that is computed in.
struct Wide<'a, T> {
    own: Contiguous<'a, T>,
    copy: Option<Buffer>,
}

impl<'a, T: Compute> Wide<'a, T> {
    fn new(x: &In<'a>) -> Result<Self> {
        let own = x.contiguous::<T>()?;
        let mut copy = None;
        if T::as_acc(&own).is_none() {
            let mut wide = Buffer::alloc(T::Acc::DTYPE, own.len())?;
            load(&own, wide.slice_mut::<T::Acc>());
            copy = Some(wide);
        }
        Ok(Wide { own, copy })
    }

    fn get(&self) -> &[T::Acc] {
        self.copy.as_ref().map_or_else(|| T::as_acc(&self.own).unwrap_or(&[]), Buffer::slice)
    }
}

fn load<T: Compute>(x: &[T], y: &mut [T::Acc]) {
    simd::dispatch(
        #[inline(always)]
        || {
            y.iter_mut().zip(x).for_each(
                #[inline(always)]
                |(y, x)| *y = x.load(),
            )
        },
    );
}

/// Rounds sums to the type of a result, once, with what is added to all of them.
fn store<T: Compute>(sums: &[T::Acc], plus: Option<T::Acc>, y: &mut [T]) {
    let plus = plus.unwrap_or(T::Acc::ZERO);
    simd::dispatch(
        #[inline(always)]
        || {
            y.iter_mut().zip(sums).for_each(
                #[inline(always)]
                |(y, &x)| *y = T::store(x + plus),
            )
        },
    );
}

/// Which positions of the output a task takes at a time: `len` of each of `images`, which is more than one only where a tile has all
/// positions of an image.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tiles {
    images: usize,
    len: usize,
    few: bool,
}

impl Tiles {
    /// For matrices of so many rows.
    fn new(c: &Conv, rows: usize, few: bool) -> Self {
        let positions = c.output().max(1);
        let large = !few && c.outputs * c.depth() >= LARGE_KERNEL;
        let fewest = if large { COLUMNS_OF_LARGE } else { FEWEST };
        let columns = (if few { FEW_COLUMNS } else { COLUMNS } / rows.max(1)).max(fewest);
        if large && positions <= columns {
            // Small planes: every tile reads the kernel, so that a tile has several images.
            return Tiles { images: columns.div_ceil(positions).min(c.images.max(1)), len: positions, few };
        }
        if columns >= 2 * positions && c.images > TASKS {
            let images = (columns / positions).min(c.images.div_ceil(TASKS));
            return Tiles { images, len: positions, few };
        }
        let wanted = TASKS.div_ceil(c.images.max(1)).min(positions.div_ceil(FEWEST));
        let pieces = positions.div_ceil(columns).max(wanted);
        Tiles { images: 1, len: positions.div_ceil(pieces).next_multiple_of(16).min(positions), few }
    }

    /// Whether so many tasks leave no thread without work, so that the product in each stays on its own. Its threads change no bit.
    fn alone(tasks: usize) -> bool {
        tasks >= rayon::current_num_threads()
    }

    /// Tasks of so many multiply-adds that stay together.
    fn together(work: usize) -> usize {
        (WORK / work.max(1)).clamp(1, 1 << 10)
    }
}

/// A matrix by its first element, and how far its rows and columns are apart.
#[derive(Clone, Copy)]
struct Strided<'a, A> {
    data: &'a [A],
    row: usize,
    col: usize,
}

/// c ← a·b for `a` of m × k, `b` of k × n whose rows are `b.row` apart, and rows of `c` that are n long. `alone` on this thread.
fn multiply<A: GemmFloat>(few: bool, alone: bool, [m, k, n]: [usize; 3], a: Strided<'_, A>, b: Strided<'_, A>, c: &mut [A]) -> Result<()> {
    if few {
        simd::dispatch(
            #[inline(always)]
            || combine([m, k, n], a, b, c),
        );
        return Ok(());
    }
    let (a, b) = (Mat::new(a.data, m, k, a.row, a.col), Mat::new(b.data, k, n, b.row, b.col));
    if alone { gemm_here(A::ONE, a, b, A::ZERO, c, n) } else { gemm(A::ONE, a, b, A::ZERO, c, n) }
}

/// The same by loops: each row of `c` takes the rows of `b` in order, four at a time.
#[inline(always)]
fn combine<A: Real>([m, k, n]: [usize; 3], a: Strided<'_, A>, b: Strided<'_, A>, c: &mut [A]) {
    for r in 0..m {
        let c = &mut c[r * n..][..n];
        c.fill(A::ZERO);
        let (factor, row) = (|j: usize| a.data[r * a.row + j * a.col], |j: usize| &b.data[j * b.row..][..n]);
        let mut j = 0;
        while j + 4 <= k {
            let f = [factor(j), factor(j + 1), factor(j + 2), factor(j + 3)];
            let (p, q, s, t) = (row(j), row(j + 1), row(j + 2), row(j + 3));
            for i in 0..n {
                c[i] = f[3].mul_add(t[i], f[2].mul_add(s[i], f[1].mul_add(q[i], f[0].mul_add(p[i], c[i]))));
            }
            j += 4;
        }
        while j < k {
            let (f, p) = (factor(j), row(j));
            for i in 0..n {
                c[i] = f.mul_add(p[i], c[i]);
            }
            j += 1;
        }
    }
}

/// The cotangents of a group's outputs in a span of some images, as a matrix with a row for each channel: in place where one image has
/// them in the type that is computed in, else in `room`.
fn bars<'a, T: Multiply>(
    c: &Conv,
    y: &'a [T],
    group: usize,
    (image, images): (usize, usize),
    span: columns::Span,
    room: &'a mut [T::Acc],
) -> Strided<'a, T::Acc> {
    let positions = c.output();
    let of = |i: usize| ((image + i) * c.groups + group) * c.outputs * positions + span.first;
    if images == 1
        && let Some(y) = T::as_acc(y)
    {
        return Strided { data: y.get(of(0)..).unwrap_or(&[]), row: positions, col: 1 };
    }
    let n = images * span.len;
    for i in 0..images {
        for o in 0..c.outputs {
            load(&y[of(i) + o * positions..][..span.len], &mut room[o * n + i * span.len..][..span.len]);
        }
    }
    Strided { data: room, row: n, col: 1 }
}
