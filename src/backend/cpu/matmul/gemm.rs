//! Matrix products over slices: the bounds checks, the splitting of work and the rounding of half types around the micro-kernels of
//! the `gemm` crates.
//!
//! Bits do not depend on the number of threads. The crate cuts C into micro-tiles whose borders, like its steps along K,
//! follow from the sizes (and the machine's caches) alone; threads only share the tiles out, and one thread adds up an
//! element of C within a step. What the crate runs on one thread is cut here, again by size alone. Tested for 1, 2 and 3.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::backend::cpu::run::par::*;
use gemm_common::Parallelism;

use crate::backend::cpu::math::{Real, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::backend::cpu::run::simd::dispatch;
use crate::error::Result;
use crate::memory;

/// Multiply-adds below which a product is not worth a second thread: about 10 µs of one core.
const PARALLEL_WORK: usize = 1 << 19;

/// A strided matrix over a slice whose first element is the matrix's first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mat<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// Elements that a matrix of these sizes and strides spans; `None` when that overflows.
fn span(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Option<usize> {
    if rows == 0 || cols == 0 {
        return Some(0);
    }
    let last = (rows - 1).checked_mul(row_stride)?.checked_add((cols - 1).checked_mul(col_stride)?)?;
    // Pointers are offset by isize, in bytes.
    (last < isize::MAX as usize / 8).then_some(last + 1)
}

impl<'a, T: Copy> Mat<'a, T> {
    /// # Panics
    /// When the matrix reaches beyond `data`: this check is what makes the kernels below safe.
    #[track_caller]
    pub(crate) fn new(data: &'a [T], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        let need = span(rows, cols, row_stride, col_stride);
        assert!(
            need.is_some_and(|n| n <= data.len()),
            "a {rows}×{cols} matrix with strides {row_stride}, {col_stride} does not fit {} elements",
            data.len()
        );
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// Contiguous rows.
    #[track_caller]
    pub(crate) fn row_major(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols, 1)
    }

    /// The same data with the two axes exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self { data: self.data, rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// Whether a row's elements lie one after the other.
    pub(super) fn has_rows(&self) -> bool {
        self.col_stride == 1
    }

    /// Row `i` of a matrix that has rows.
    #[inline(always)]
    pub(super) fn row(&self, i: usize) -> &'a [T] {
        &self.data[i * self.row_stride..][..self.cols]
    }

    pub(super) fn at(&self, row: usize, col: usize) -> T {
        self.data[row * self.row_stride + col * self.col_stride]
    }

    fn block(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        let (m, n) = (rows.len(), cols.len());
        let at = if m == 0 || n == 0 { 0 } else { rows.start * self.row_stride + cols.start * self.col_stride };
        Self::new(&self.data[at..], m, n, self.row_stride, self.col_stride)
    }

    /// Writes the elements in row-major order as f32.
    fn widen(self, out: &mut [f32])
    where
        T: Half,
    {
        if self.rows == 0 || self.cols == 0 {
            return;
        }
        // Walk along the axis that is contiguous in memory as far as whole rows allow; a transposed operand is gathered.
        let rows_a_task = 16_384usize.div_ceil(self.cols);
        out.par_chunks_mut(self.cols * rows_a_task).enumerate().for_each(|(task, rows)| {
            dispatch(
                #[inline(always)]
                || {
                    for (r, row) in rows.chunks_mut(self.cols).enumerate() {
                        let from = &self.data[(task * rows_a_task + r) * self.row_stride..];
                        if self.col_stride == 1 {
                            for (y, &x) in row.iter_mut().zip(from) {
                                *y = x.widen();
                            }
                        } else {
                            for (j, y) in row.iter_mut().enumerate() {
                                *y = from[j * self.col_stride].widen();
                            }
                        }
                    }
                },
            );
        });
    }
}

/// A storage type that is multiplied in f32.
pub(crate) trait Half: Copy + Send + Sync + 'static {
    fn widen(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn narrow(x: f32) -> Self;
}

impl Half for half::bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        bf16_to_f32(self.to_bits())
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self::from_bits(f32_to_bf16(x))
    }
}

impl Half for half::f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f16_to_f32(self.to_bits())
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self::from_bits(f32_to_f16(x))
    }
}

/// dst ← alpha dst + beta lhs·rhs: sizes m, n, k; dst with its strides from column to column and from row to row, and whether it is
/// read; both operands with theirs; alpha, beta; which of the three to conjugate; the threads.
type Kernel<T> = unsafe fn(
    usize,
    usize,
    usize,
    *mut T,
    isize,
    isize,
    bool,
    *const T,
    isize,
    isize,
    *const T,
    isize,
    isize,
    T,
    T,
    bool,
    bool,
    bool,
    Parallelism,
);

/// The element types that the micro-kernels multiply.
pub(crate) trait GemmFloat: Real {
    /// The micro-kernels for this processor.
    fn kernel() -> Kernel<Self>;
}
impl GemmFloat for f32 {
    fn kernel() -> Kernel<Self> {
        gemm_f32::gemm::f32::get_gemm_fn()
    }
}
impl GemmFloat for f64 {
    fn kernel() -> Kernel<Self> {
        gemm_f64::gemm::f64::get_gemm_fn()
    }
}

/// A pointer into C that tasks of one product share; each writes its own tile.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(*mut T);
// SAFETY: the tasks that get a copy write disjoint elements (tiles of a partition, or checked batches), and the exclusive
// borrow that the pointer came from outlives them, since rayon joins before the function returns.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn new(c: &mut [T]) -> Self {
        Shared(c.as_mut_ptr())
    }

    /// A method, so that closures capture the whole `Shared` and not its bare pointer.
    pub(super) fn at(self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }
}

/// Bytes from which on the memory of a product's packed operands is asked for first.
const PACKED: usize = 1 << 20;

/// What the micro-kernels' crate may take at a time for packed operands: up to 512 steps of K of both, as much as the caches hold.
fn packed<T>(m: usize, n: usize, k: usize) -> usize {
    let part = |side: usize, most: usize| (side + 64).saturating_mul(k.min(512)).saturating_mul(size_of::<T>()).min(most);
    part(n, 64 << 20).saturating_add(part(m, 16 << 20))
}

/// Whether every thread has the memory that the crate keeps for each.
static WARM: AtomicBool = AtomicBool::new(false);

/// C ← alpha A·B + beta C. The crate takes memory without asking, and ends the process where there is none: what it may take is
/// asked for here.
///
/// # Safety
/// `c` must be valid for reads and writes of an a.rows × b.cols matrix with rows `rs` apart (rs ≥ b.cols when there is more
/// than one row), which nobody else touches meanwhile. a.cols must equal b.rows.
unsafe fn tile<T: GemmFloat>(alpha: T, a: Mat<T>, b: Mat<T>, beta: T, c: *mut T, rs: usize, par: Parallelism) -> Result<()> {
    debug_assert_eq!(a.cols, b.rows);
    let bytes = packed::<T>(a.rows, b.cols, a.cols);
    let first = bytes >= PACKED && !WARM.load(Relaxed);
    if bytes >= PACKED {
        memory::ensure(bytes + if first { rayon::current_num_threads() * (2 << 20) } else { 0 })?;
    }
    // The micro-kernels write columns: rows of C are the columns of Cᵀ = Bᵀ·Aᵀ.
    let (lhs, rhs, column, row) = if rs > 1 { (b.transposed(), a.transposed(), rs, 1) } else { (a, b, 1, rs) };
    // SAFETY: `Mat::new` checked that every element of a and b lies in its slice, and the caller vouches for c; sizes are
    // below isize::MAX by `span`. With beta = 0 the kernel does not read c.
    unsafe {
        T::kernel()(
            lhs.rows,
            rhs.cols,
            lhs.cols,
            c,
            column as isize,
            row as isize,
            beta != T::ZERO,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            beta,
            alpha,
            false,
            false,
            false,
            par,
        );
    }
    if first && matches!(par, Parallelism::Rayon(_)) {
        WARM.store(true, Relaxed);
    }
    Ok(())
}

/// How one product is shared out; a function of its size, never of the number of threads.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Plan {
    /// One call; the crate uses its own threads above its threshold.
    Whole,
    /// Matrix times vector, which the crate runs on one thread but which is bound by memory: pieces of the long side of C.
    Outputs(usize),
    /// Few outputs from a long K: partial products over pieces of K, added pairwise.
    Depth(usize),
}

impl Plan {
    fn new(m: usize, n: usize, k: usize) -> Self {
        let work = m.saturating_mul(n).saturating_mul(k);
        // Multiply-adds that pay for waking another thread.
        let pieces = (work / PARALLEL_WORK).min(8);
        if pieces < 2 {
            Self::Whole
        } else if m.saturating_mul(n) <= 2048 && k >= 4096 {
            Self::Depth(k.div_ceil(pieces).next_multiple_of(512))
        } else if m == 1 || n == 1 {
            Self::Outputs(m.max(n).div_ceil(pieces).next_multiple_of(64))
        } else {
            Self::Whole
        }
    }
}

pub(super) fn check_c(m: usize, n: usize, rs: usize, len: usize) {
    assert!(m <= 1 || rs >= n, "rows of C, {rs} apart, overlap: {n} columns");
    assert!(span(m, n, rs, 1).is_some_and(|need| need <= len), "{m}×{n} with rows {rs} apart does not fit C of {len}");
}

/// c ← beta c over an m × n window; beta = 0 overwrites, so that NaN in fresh memory does not survive.
fn scale<T: GemmFloat>(beta: T, c: &mut [T], m: usize, n: usize, rs: usize) {
    if m == 0 || n == 0 || beta == T::ONE {
        return;
    }
    for r in 0..m {
        for x in &mut c[r * rs..r * rs + n] {
            *x = if beta == T::ZERO { T::ZERO } else { beta * *x };
        }
    }
}

/// C ← alpha A·B + beta C, with rows of C `c_row_stride` apart. With beta = 0 the old contents of C are ignored, NaN included.
///
/// # Panics
/// When the sizes do not fit each other or C.
#[track_caller]
pub(crate) fn gemm<T: GemmFloat>(alpha: T, a: Mat<T>, b: Mat<T>, beta: T, c: &mut [T], c_row_stride: usize) -> Result<()> {
    assert_eq!(a.cols, b.rows, "inner sizes of a matrix product differ");
    let (m, n, k) = (a.rows, b.cols, a.cols);
    check_c(m, n, c_row_stride, c.len());
    if m == 0 || n == 0 {
        return Ok(());
    }
    if k == 0 {
        scale(beta, c, m, n, c_row_stride);
        return Ok(());
    }
    let out = Shared::new(c);
    match Plan::new(m, n, k) {
        // SAFETY: `check_c` found the window inside c, which we hold exclusively.
        Plan::Whole => unsafe { tile(alpha, a, b, beta, out.at(0), c_row_stride, Parallelism::Rayon(0)) },
        Plan::Outputs(size) => numbers(0..(m * n).div_ceil(size)).try_for_each(|i| {
            let piece = i * size..((i + 1) * size).min(m * n);
            let (rows, cols) = if n == 1 { (piece, 0..1) } else { (0..1, piece) };
            let at = rows.start * c_row_stride + cols.start;
            // SAFETY: the pieces partition the window that `check_c` found inside c.
            unsafe { tile(alpha, a.block(rows, 0..k), b.block(0..k, cols), beta, out.at(at), c_row_stride, Parallelism::None) }
        }),
        Plan::Depth(size) => {
            let mut parts = memory::vec_of(T::ZERO, k.div_ceil(size) * m * n)?;
            parts.par_chunks_mut(m * n).enumerate().try_for_each(|(i, part)| {
                let depth = i * size..((i + 1) * size).min(k);
                // SAFETY: a part is a contiguous m × n matrix of its own.
                unsafe { tile(alpha, a.block(0..m, depth.clone()), b.block(depth, 0..n), T::ZERO, part.as_mut_ptr(), n, Parallelism::None) }
            })?;
            let mut count = k.div_ceil(size);
            while count > 1 {
                let half = count.div_ceil(2);
                let (low, high) = parts.split_at_mut(half * m * n);
                for (x, &y) in low.iter_mut().zip(&high[..(count - half) * m * n]) {
                    *x += y;
                }
                count = half;
            }
            scale(beta, c, m, n, c_row_stride);
            for (r, sums) in parts[..m * n].chunks(n).enumerate() {
                for (x, &y) in c[r * c_row_stride..].iter_mut().zip(sums) {
                    *x = if beta == T::ZERO { y } else { *x + y };
                }
            }
            Ok(())
        }
    }
}

/// [`gemm`] on the calling thread alone: for kernels that share out work at a higher level.
///
/// # Panics
/// When the sizes do not fit each other or C.
#[track_caller]
pub(crate) fn gemm_here<T: GemmFloat>(alpha: T, a: Mat<T>, b: Mat<T>, beta: T, c: &mut [T], c_row_stride: usize) -> Result<()> {
    assert_eq!(a.cols, b.rows, "inner sizes of a matrix product differ");
    let (m, n, k) = (a.rows, b.cols, a.cols);
    check_c(m, n, c_row_stride, c.len());
    if k == 0 {
        scale(beta, c, m, n, c_row_stride);
    } else if m > 0 && n > 0 {
        // SAFETY: `check_c` found the window inside c, which we hold exclusively.
        unsafe { tile(alpha, a, b, beta, c.as_mut_ptr(), c_row_stride, Parallelism::None)? };
    }
    Ok(())
}

/// Equal matrices in one slice, one at each offset; an offset may occur many times (a broadcast batch).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) offsets: &'a [usize],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<'a, T: Copy> Batch<'a, T> {
    /// # Panics
    /// When matrix `i` reaches beyond the data.
    fn get(&self, i: usize) -> Mat<'a, T> {
        let at = if self.rows == 0 || self.cols == 0 { 0 } else { self.offsets[i] };
        Mat::new(&self.data[at..], self.rows, self.cols, self.row_stride, self.col_stride)
    }
}

/// Whether a batch is spread over threads (else each product is cut by itself, one after the other).
fn spread(batch: usize, m: usize, n: usize, k: usize) -> bool {
    batch >= 8 || m.saturating_mul(n).saturating_mul(k) < 2 * PARALLEL_WORK
}

/// Products that one task takes, from the work of one of them.
fn group(m: usize, n: usize, k: usize) -> usize {
    (PARALLEL_WORK / m.saturating_mul(n).saturating_mul(k).max(1)).clamp(1, 1024)
}

#[track_caller]
fn check_batch<A: Copy, B: Copy>(a: &Batch<A>, b: &Batch<B>, c_len: usize, c_offsets: &[usize], rs: usize) {
    assert_eq!(a.cols, b.rows, "inner sizes of a matrix product differ");
    assert_eq!(a.offsets.len(), c_offsets.len(), "batch sizes differ");
    assert_eq!(b.offsets.len(), c_offsets.len(), "batch sizes differ");
    let need = span(a.rows, b.cols, rs, 1).expect("the size of C overflows");
    assert!(a.rows <= 1 || rs >= b.cols, "rows of C overlap");
    for pair in c_offsets.windows(2) {
        assert!(pair[0].checked_add(need).is_some_and(|end| end <= pair[1]), "matrices of C must ascend and not overlap");
    }
    if let Some(last) = c_offsets.last() {
        assert!(last.checked_add(need).is_some_and(|end| end <= c_len), "C is too short");
    }
}

/// Cᵢ ← alpha Aᵢ·Bᵢ + beta Cᵢ with Cᵢ at `c_offsets[i]`, which must ascend without overlap.
///
/// # Panics
/// When the sizes do not fit each other or C.
#[track_caller]
pub(crate) fn batched<T: GemmFloat>(
    alpha: T,
    a: Batch<T>,
    b: Batch<T>,
    beta: T,
    c: &mut [T],
    c_offsets: &[usize],
    c_row_stride: usize,
) -> Result<()> {
    check_batch(&a, &b, c.len(), c_offsets, c_row_stride);
    let (m, n, k) = (a.rows, b.cols, a.cols);
    let need = span(m, n, c_row_stride, 1).unwrap_or(0);
    if m == 0 || n == 0 {
        return Ok(());
    }
    if k == 0 || !spread(c_offsets.len(), m, n, k) {
        for (i, &at) in c_offsets.iter().enumerate() {
            gemm(alpha, a.get(i), b.get(i), beta, &mut c[at..at + need], c_row_stride)?;
        }
        return Ok(());
    }
    let out = Shared::new(c);
    let group = group(m, n, k);
    let indices: Range<usize> = 0..c_offsets.len().div_ceil(group);
    let task = |g: usize| -> Result<()> {
        for (i, &at) in c_offsets.iter().enumerate().skip(g * group).take(group) {
            // SAFETY: `check_batch` found the windows of C inside c and disjoint; `get` checks a and b.
            unsafe { tile(alpha, a.get(i), b.get(i), beta, out.at(at), c_row_stride, Parallelism::None)? };
        }
        Ok(())
    };
    if indices.len() == 1 { task(0) } else { numbers(indices).try_for_each(task) }
}

/// Runs `f` with `len` f32 of scratch that the thread keeps: fresh pages would cost more than the conversion.
fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> Result<R>) -> Result<R> {
    thread_local! {
        static SCRATCH: std::cell::RefCell<Vec<f32>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    // Taken out, not borrowed: rayon may run another product on this thread while `f` waits.
    let mut buffer = SCRATCH.with(|s| s.take());
    if buffer.len() < len {
        // What it holds is nobody's: no copy of it.
        buffer.clear();
        memory::reserve(&mut buffer, len)?;
        buffer.resize(len, 0.0);
    }
    let result = f(&mut buffer[..len]);
    SCRATCH.with(|s| {
        if s.borrow().len() < buffer.len() {
            s.replace(buffer);
        }
    });
    result
}

/// C ← alpha A·B + beta C for a half type: operands widened, accumulated over all of K in f32, rounded once.
///
/// # Panics
/// When the sizes do not fit each other or C.
#[track_caller]
pub(crate) fn gemm_half<H: Half>(alpha: f32, a: Mat<H>, b: Mat<H>, beta: f32, c: &mut [H], c_row_stride: usize) -> Result<()> {
    // Rows of A and C that are in f32 at a time.
    const PANEL: usize = 1024;
    assert_eq!(a.cols, b.rows, "inner sizes of a matrix product differ");
    let (m, n, k) = (a.rows, b.cols, a.cols);
    check_c(m, n, c_row_stride, c.len());
    if m == 0 || n == 0 {
        return Ok(());
    }
    // A transposed B is widened as it lies in memory and multiplied through its strides.
    let flip = b.col_stride != 1 && b.row_stride == 1;
    let panel = m.min(PANEL);
    with_scratch(k * n + panel * (k + n), |scratch| {
        let (wide_b, rest) = scratch.split_at_mut(k * n);
        let (wide_a, wide_c) = rest.split_at_mut(panel * k);
        if flip {
            b.transposed().widen(wide_b)
        } else {
            b.widen(wide_b)
        }
        let wide_b = if flip { Mat::row_major(wide_b, n, k).transposed() } else { Mat::row_major(wide_b, k, n) };
        for start in (0..m).step_by(PANEL) {
            let rows = PANEL.min(m - start);
            let part = a.block(start..start + rows, 0..k);
            let flip = part.col_stride != 1 && part.row_stride == 1;
            let wide = &mut wide_a[..rows * k];
            if flip {
                part.transposed().widen(wide)
            } else {
                part.widen(wide)
            }
            let wide = if flip { Mat::row_major(wide, k, rows).transposed() } else { Mat::row_major(wide, rows, k) };
            let product = &mut wide_c[..rows * n];
            gemm(alpha, wide, wide_b, 0.0, product, n)?;
            let from = start * c_row_stride;
            let window = &mut c[from..from + (rows - 1) * c_row_stride + n];
            window.par_chunks_mut(c_row_stride.max(n)).zip(product.par_chunks(n)).with_min_len(16_384usize.div_ceil(n)).for_each(
                |(out, sums)| {
                    dispatch(
                        #[inline(always)]
                        || {
                            for (y, &x) in out.iter_mut().zip(sums) {
                                *y = H::narrow(if beta == 0.0 { x } else { beta.mul_add(y.widen(), x) });
                            }
                        },
                    );
                },
            );
        }
        Ok(())
    })
}

/// [`batched`] for a half type.
///
/// # Panics
/// When the sizes do not fit each other or C.
#[track_caller]
pub(crate) fn batched_half<H: Half>(
    alpha: f32,
    a: Batch<H>,
    b: Batch<H>,
    beta: f32,
    c: &mut [H],
    c_offsets: &[usize],
    c_row_stride: usize,
) -> Result<()> {
    check_batch(&a, &b, c.len(), c_offsets, c_row_stride);
    let (m, n, k) = (a.rows, b.cols, a.cols);
    let need = span(m, n, c_row_stride, 1).unwrap_or(0);
    if need == 0 {
        return Ok(());
    }
    let mut windows = memory::room(c_offsets.len())?;
    let (mut rest, mut taken) = (c, 0);
    for &at in c_offsets {
        let (window, after) = std::mem::take(&mut rest)[at - taken..].split_at_mut(need);
        windows.push(window);
        (rest, taken) = (after, at + need);
    }
    let task = |(i, window): (usize, &mut [H])| gemm_half(alpha, a.get(i), b.get(i), beta, window, c_row_stride);
    if spread(windows.len(), m, n, k) {
        windows.into_par_iter().enumerate().with_min_len(group(m, n, k)).try_for_each(task)
    } else {
        windows.into_iter().enumerate().try_for_each(task)
    }
}

#[cfg(test)]
#[path = "gemm_tests.rs"]
mod tests;
