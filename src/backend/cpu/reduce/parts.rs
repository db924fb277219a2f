//! What the drivers of reductions see of one: partial results as bytes, operands as numbers.

use crate::backend::cpu::math::{Compute, Real};
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::map::{WIDE, narrow, widen};
use crate::backend::cpu::run::simd;
use crate::dtype::DType;
use crate::error::Result;

/// What a reduction reads and writes, and the type it computes in.
pub(crate) trait Operand: crate::Element {
    /// The type it computes in.
    type Number: crate::Element;
    /// The same memory, where both are one type.
    fn numbers(x: &[Self]) -> Option<&[Self::Number]>;
    /// The same memory, writable.
    fn numbers_mut(x: &mut [Self]) -> Option<&mut [Self::Number]>;
    /// Widens elements into numbers.
    fn widen(x: &[Self], y: &mut [Self::Number]);
    /// Rounds numbers to elements.
    fn narrow(x: &[Self::Number], y: &mut [Self]);
}

impl<T: Compute> Operand for T {
    type Number = T::Acc;
    fn numbers(x: &[T]) -> Option<&[T::Acc]> {
        T::as_acc(x)
    }
    fn numbers_mut(x: &mut [T]) -> Option<&mut [T::Acc]> {
        T::as_acc_mut(x)
    }
    fn widen(x: &[T], y: &mut [T::Acc]) {
        widen(x, y);
    }
    fn narrow(x: &[T::Acc], y: &mut [T]) {
        narrow(x, y);
    }
}

/// Masks.
impl Operand for u8 {
    type Number = u8;
    fn numbers(x: &[u8]) -> Option<&[u8]> {
        Some(x)
    }
    fn numbers_mut(x: &mut [u8]) -> Option<&mut [u8]> {
        Some(x)
    }
    fn widen(x: &[u8], y: &mut [u8]) {
        y.copy_from_slice(x);
    }
    fn narrow(x: &[u8], y: &mut [u8]) {
        y.copy_from_slice(x);
    }
}

/// A partial result.
///
/// # Safety
/// Plain numbers: no padding, and every bit pattern is a value.
pub(crate) unsafe trait Part: Copy + Send + Sync + 'static {}
// SAFETY: plain numbers, as `f32` and `f64` are.
unsafe impl<A: Real> Part for A {}
// SAFETY: plain numbers.
unsafe impl Part for u8 {}

/// How elements become one number.
pub(crate) trait Reduction<A>: Sync {
    /// A partial result.
    type Part: Part;
    /// The part of a row or of a piece of one; never empty. Runs inside [`simd::dispatch`]: mark it `#[inline(always)]`.
    fn row(&self, x: &[A]) -> Self::Part;
    /// The parts of at most [`STRIP`](super::STRIP) columns over at least one row; `rows` yields slices as long as `parts`. Runs inside
    /// [`simd::dispatch`]: mark it `#[inline(always)]`.
    fn columns(&self, rows: Rows<'_, A>, parts: &mut [Self::Part]);
    /// The part of both, the first one's elements before the second one's.
    fn merge(&self, a: Self::Part, b: Self::Part) -> Self::Part;
}

/// Some neighbouring columns of a row-major matrix, row by row.
pub(crate) struct Rows<'a, A> {
    chunks: std::slice::Chunks<'a, A>,
    width: usize,
}

impl<A> Clone for Rows<'_, A> {
    fn clone(&self) -> Self {
        Rows { chunks: self.chunks.clone(), width: self.width }
    }
}

impl<'a, A> Iterator for Rows<'a, A> {
    type Item = &'a [A];
    #[inline(always)]
    fn next(&mut self) -> Option<&'a [A]> {
        self.chunks.next().map(|row| &row[..self.width])
    }
}

/// A [`Reduction`] for drivers that do not know the type of its parts.
pub(super) trait Parts<A>: Sync {
    /// Bytes of a part.
    fn size(&self) -> usize;
    /// A part for each `len` elements.
    fn rows(&self, x: &[A], len: usize, parts: &mut [u8]);
    /// The parts of at most [`STRIP`](super::STRIP) columns over rows that begin `pitch` elements apart.
    fn columns(&self, x: &[A], pitch: usize, parts: &mut [u8]);
    /// Merges parts into the ones before them.
    fn merge(&self, before: &mut [u8], parts: &[u8]);
}

impl<A, R: Reduction<A>> Parts<A> for R {
    fn size(&self) -> usize {
        size_of::<R::Part>()
    }
    fn rows(&self, x: &[A], len: usize, parts: &mut [u8]) {
        let parts = typed_mut::<R::Part>(parts);
        simd::dispatch(
            #[inline(always)]
            || {
                for (part, x) in parts.iter_mut().zip(x.chunks_exact(len)) {
                    *part = self.row(x);
                }
            },
        );
    }
    fn columns(&self, x: &[A], pitch: usize, parts: &mut [u8]) {
        let parts = typed_mut::<R::Part>(parts);
        simd::dispatch(
            #[inline(always)]
            || self.columns(Rows { chunks: x.chunks(pitch), width: parts.len() }, parts),
        );
    }
    fn merge(&self, before: &mut [u8], parts: &[u8]) {
        for (a, b) in typed_mut::<R::Part>(before).iter_mut().zip(typed::<R::Part>(parts)) {
            *a = self.merge(*a, *b);
        }
    }
}

/// Bytes of parts as parts.
pub(super) fn typed<P: Part>(parts: &[u8]) -> &[P] {
    assert!(parts.as_ptr().cast::<P>().is_aligned() && parts.len().is_multiple_of(size_of::<P>()), "whole parts");
    // SAFETY: aligned and whole, as asserted, and every bit pattern is a value of a `Part`.
    unsafe { std::slice::from_raw_parts(parts.as_ptr().cast(), parts.len() / size_of::<P>()) }
}

/// Bytes of parts as parts to be written.
fn typed_mut<P: Part>(parts: &mut [u8]) -> &mut [P] {
    assert!(parts.as_ptr().cast::<P>().is_aligned() && parts.len().is_multiple_of(size_of::<P>()), "whole parts");
    // SAFETY: as in `typed`; a `Part` has no padding, so the bytes stay initialised.
    unsafe { std::slice::from_raw_parts_mut(parts.as_mut_ptr().cast(), parts.len() / size_of::<P>()) }
}

/// Room for some parts on the stack: enough for a task to work on several short rows at a time.
#[repr(align(64))]
pub(super) struct Few(pub(super) [u8; FEW]);

impl Few {
    pub(super) const NEW: Self = Few([0; FEW]);
}

pub(super) const FEW: usize = 1024;

/// Room for `n` parts of `size` bytes.
pub(super) fn parts_room(n: usize, size: usize) -> Result<Buffer> {
    Buffer::alloc_untouched(DType::U8, n.saturating_mul(size))
}

/// Room to widen `n` elements, where they are not numbers already.
pub(super) fn spare<T: Operand>(n: usize) -> Result<Buffer> {
    Buffer::alloc_untouched(<T::Number as crate::Element>::DTYPE, if T::numbers(&[]).is_some() { 0 } else { n })
}

/// Elements as numbers: where they are, or widened into `spare`.
pub(super) fn as_numbers<'a, T: Operand>(x: &'a [T], spare: &'a mut [T::Number]) -> &'a [T::Number] {
    if let Some(x) = T::numbers(x) {
        return x;
    }
    let spare = &mut spare[..x.len()];
    T::widen(x, spare);
    spare
}

/// Lets `write` write numbers to elements, which are rounded block by block where they are not numbers. `write` gets the number of
/// the first element and the place of some.
pub(super) fn write_numbers<T: Operand>(y: &mut [T], mut write: impl FnMut(usize, &mut [T::Number])) {
    if let Some(y) = T::numbers_mut(y) {
        return write(0, y);
    }
    // Short rows fill short buffers.
    if y.len() <= 16 { write_blocks::<16, T>(y, write) } else { write_blocks::<WIDE, T>(y, write) }
}

fn write_blocks<const N: usize, T: Operand>(y: &mut [T], mut write: impl FnMut(usize, &mut [T::Number])) {
    let mut wide = [T::Number::default(); N];
    for (i, y) in y.chunks_mut(N).enumerate() {
        let wide = &mut wide[..y.len()];
        write(i * N, wide);
        T::narrow(wide, y);
    }
}
