//! What a CPU kernel sees of its operands.

use super::par::*;
use crate::backend::cpu::memory::Buffer;
use crate::dtype::{DType, Element};
use crate::error::Result;
use crate::layout::Layout;
use crate::memory;
use crate::shape::Shape;
use std::ops::Deref;

/// Elements below which a loop stays on the calling thread; waking the pool costs some microseconds.
pub(crate) const SERIAL: usize = 16 * 1024;

/// An input operand: a storage and the layout under which it is read.
#[derive(Clone, Copy)]
pub struct In<'a> {
    buffer: &'a Buffer,
    layout: &'a Layout,
}

impl<'a> In<'a> {
    pub(crate) fn new(buffer: &'a Buffer, layout: &'a Layout) -> Self {
        debug_assert!(layout.end().is_some_and(|e| e <= buffer.len()));
        In { buffer, layout }
    }

    /// The same storage under another layout, which must stay inside it.
    ///
    /// # Panics
    /// Indexing panics later if it does not.
    #[must_use]
    pub fn with_layout<'b>(&self, layout: &'b Layout) -> In<'b>
    where
        'a: 'b,
    {
        In { buffer: self.buffer, layout }
    }

    /// Extents, strides, offset.
    pub fn layout(&self) -> &'a Layout {
        self.layout
    }

    /// Extents.
    pub fn shape(&self) -> &'a Shape {
        self.layout.shape()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.buffer.dtype()
    }

    /// The whole storage, to be indexed through the layout (`layout().offset()` and strides).
    ///
    /// # Panics
    /// If `T` is not [`In::dtype`].
    pub fn storage<T: Element>(&self) -> &'a [T] {
        self.buffer.slice()
    }

    /// The elements in row-major order: borrowed when they already lie so, else gathered into a recycled buffer.
    ///
    /// # Errors
    /// Out of memory for the copy.
    ///
    /// # Panics
    /// If `T` is not [`In::dtype`].
    pub fn contiguous<T: Element>(&self) -> Result<Contiguous<'a, T>> {
        let all = self.storage::<T>();
        if self.layout.is_contiguous() {
            let n = self.layout.numel();
            let start = if n == 0 { 0 } else { self.layout.offset() };
            return Ok(Contiguous::Borrowed(&all[start..start + n]));
        }
        let mut copy = Buffer::alloc(T::DTYPE, self.layout.numel())?;
        copy_strided(all, self.layout, copy.slice_mut::<T>())?;
        Ok(Contiguous::Owned(copy, std::marker::PhantomData))
    }
}

/// Row-major elements of an operand; see [`In::contiguous`].
pub enum Contiguous<'a, T> {
    /// The operand's own memory.
    Borrowed(&'a [T]),
    #[doc(hidden)]
    #[allow(private_interfaces)] // reason: the variant only keeps the scratch memory alive
    Owned(Buffer, std::marker::PhantomData<T>),
}

impl<T: Element> Deref for Contiguous<'_, T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match self {
            Contiguous::Borrowed(s) => s,
            Contiguous::Owned(b, _) => b.slice(),
        }
    }
}

/// An output operand: fresh, contiguous, of the shape and dtype that `infer` gave. Its content is unspecified until
/// the kernel has written it, all of it.
pub struct Out<'a> {
    buffer: &'a mut Buffer,
    shape: &'a Shape,
}

impl<'a> Out<'a> {
    pub(crate) fn new(buffer: &'a mut Buffer, shape: &'a Shape) -> Self {
        Out { buffer, shape }
    }

    /// Extents.
    pub fn shape(&self) -> &'a Shape {
        self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.buffer.dtype()
    }

    /// All elements in row-major order.
    ///
    /// # Panics
    /// If `T` is not [`Out::dtype`].
    pub fn slice<T: Element>(&mut self) -> &mut [T] {
        self.buffer.slice_mut()
    }
}

/// Gathers a strided view into row-major `dst`.
pub(crate) fn copy_strided<T: Element>(src: &[T], layout: &Layout, dst: &mut [T]) -> Result<()> {
    let (dims, strides) = crate::layout::collapse(layout.shape(), &[layout.strides()]);
    let strides = &strides[0];
    let offset = layout.offset();
    let rank = dims.len();
    if dst.is_empty() {
        return Ok(());
    }
    if rank == 0 {
        dst[0] = src[offset];
        return Ok(());
    }
    // A transposed pair of inner axes is walked in tiles: neither side then misses the cache on every element.
    if rank >= 2 && strides[rank - 1] != 1 && strides[rank - 2] == 1 {
        let (rows, cols) = (dims[rank - 2], dims[rank - 1]);
        let col_stride = strides[rank - 1];
        let starts = outer_offsets(&dims[..rank - 2], &strides[..rank - 2], offset)?;
        const TILE: usize = 32;
        let band = |(start, r0, out): (usize, usize, &mut [T])| {
            let src = &src[start..];
            let band_rows = out.len() / cols;
            for c0 in (0..cols).step_by(TILE) {
                for r in 0..band_rows {
                    let row = &mut out[r * cols..(r + 1) * cols];
                    for c in c0..(c0 + TILE).min(cols) {
                        row[c] = src[r0 + r + c * col_stride];
                    }
                }
            }
        };
        let bands = dst
            .chunks_mut(rows * cols)
            .zip(starts)
            .flat_map(|(m, start)| m.chunks_mut(TILE * cols).enumerate().map(move |(i, out)| (start, i * TILE, out)));
        if rows * cols >= SERIAL {
            memory::try_collect(bands)?.into_par_iter().for_each(band);
        } else if layout.numel() >= SERIAL {
            memory::try_collect(bands)?.into_par_iter().with_min_len(SERIAL / (TILE * cols).max(1) + 1).for_each(band);
        } else {
            bands.for_each(band);
        }
        return Ok(());
    }
    let inner = dims[rank - 1];
    let step = strides[rank - 1];
    let row = |start: usize, out: &mut [T]| {
        if step == 1 {
            out.copy_from_slice(&src[start..start + out.len()]);
        } else if step == 0 {
            out.fill(src[start]);
        } else {
            for (o, x) in out.iter_mut().zip(src[start..].iter().step_by(step)) {
                *o = *x;
            }
        }
    };
    if inner >= 2 * SERIAL {
        // Long rows: their pieces in parallel.
        let mut walk = OuterWalk::new(&dims[..rank - 1], &strides[..rank - 1], offset, 0);
        for out in dst.chunks_mut(inner) {
            let at = walk.at;
            out.par_chunks_mut(SERIAL).enumerate().for_each(|(p, out)| row(at + p * SERIAL * step, out));
            walk.step();
        }
        return Ok(());
    }
    let per_task = (SERIAL / inner).max(1);
    let body = |(task, out): (usize, &mut [T])| {
        let mut walk = OuterWalk::new(&dims[..rank - 1], &strides[..rank - 1], offset, task * per_task);
        for out in out.chunks_mut(inner) {
            row(walk.at, out);
            walk.step();
        }
    };
    if layout.numel() < SERIAL {
        dst.chunks_mut(per_task * inner).enumerate().for_each(body);
    } else {
        dst.par_chunks_mut(per_task * inner).enumerate().for_each(body);
    }
    Ok(())
}

fn outer_offsets(dims: &[usize], strides: &[usize], offset: usize) -> Result<Vec<usize>> {
    let mut walk = OuterWalk::new(dims, strides, offset, 0);
    memory::try_collect((0..dims.iter().product()).map(|_| {
        let at = walk.at;
        walk.step();
        at
    }))
}

/// Walks the storage offsets of outer axes in row-major order, from any starting position.
pub(crate) struct OuterWalk<'a> {
    dims: &'a [usize],
    strides: &'a [usize],
    counter: crate::shape::Dims,
    pub(crate) at: usize,
}

impl<'a> OuterWalk<'a> {
    pub(crate) fn new(dims: &'a [usize], strides: &'a [usize], offset: usize, position: usize) -> Self {
        let mut counter = crate::shape::Dims::from_elem(0, dims.len());
        let mut rest = position;
        let mut at = offset;
        for i in (0..dims.len()).rev() {
            if dims[i] > 0 {
                counter[i] = rest % dims[i];
                rest /= dims[i];
                at += counter[i] * strides[i];
            }
        }
        OuterWalk { dims, strides, counter, at }
    }

    #[inline]
    pub(crate) fn step(&mut self) {
        for i in (0..self.dims.len()).rev() {
            self.counter[i] += 1;
            if self.counter[i] < self.dims[i] {
                self.at += self.strides[i];
                return;
            }
            self.at -= self.strides[i] * (self.dims[i] - 1);
            self.counter[i] = 0;
        }
    }
}
