//! What a CUDA launch sees of its operands.

use super::copy;
use crate::backend::cuda::abi::View;
use crate::backend::cuda::device::{Buffer, Context, Dst, Src};
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::Layout;
use crate::shape::Shape;

/// An input operand: device memory and the layout under which it is read.
#[derive(Clone, Copy, Debug)]
pub struct In<'a> {
    buffer: &'a Buffer,
    layout: &'a Layout,
}

/// Elements in row-major order: the operand's own memory, or a copy.
#[derive(Debug)]
pub(crate) enum Dense<'a> {
    Borrowed(Src<'a>),
    Owned(Buffer),
}

impl Dense<'_> {
    pub(crate) fn src(&self) -> Src<'_> {
        match self {
            Dense::Borrowed(s) => *s,
            Dense::Owned(b) => Src::new(b, 0),
        }
    }
}

impl<'a> In<'a> {
    pub(crate) fn new(buffer: &'a Buffer, layout: &'a Layout) -> Self {
        debug_assert!(layout.end().is_some_and(|e| e <= buffer.len()));
        In { buffer, layout }
    }

    /// Extents, strides, offset.
    pub fn layout(&self) -> &'a Layout {
        self.layout
    }

    /// Extents.
    pub fn shape(&self) -> &'a Shape {
        self.layout.shape()
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.layout.numel()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.buffer.dtype()
    }

    /// The device that holds it.
    pub(crate) fn context(&self) -> &'static Context {
        self.buffer.context()
    }

    /// The whole storage from its first element.
    pub(crate) fn start(&self) -> Src<'a> {
        Src::new(self.buffer, 0)
    }

    /// From the first element of a layout over the same storage.
    pub(crate) fn at(&self, layout: &Layout) -> Src<'a> {
        Src::new(self.buffer, if layout.numel() == 0 { 0 } else { layout.offset() })
    }

    /// From the operand's first element, with the view that finds the others.
    pub(crate) fn view(&self) -> Result<(Src<'a>, View)> {
        Ok((self.at(self.layout), View::new(self.layout)?))
    }

    /// The operand broadcast to a shape.
    pub(crate) fn expanded(&self, shape: &Shape) -> Result<(Src<'a>, View)> {
        let layout = self.layout.expand(shape)?;
        Ok((self.at(&layout), View::new(&layout)?))
    }

    /// The elements in row-major order: the operand's own memory when they already lie so, else gathered.
    pub(crate) fn contiguous(&self) -> Result<Dense<'a>> {
        if self.layout.is_contiguous() {
            return Ok(Dense::Borrowed(self.at(self.layout)));
        }
        let mut copy = self.context().alloc(self.dtype(), self.numel())?;
        copy::gather(self.context(), self.start(), self.layout, Dst::new(&mut copy))?;
        Ok(Dense::Owned(copy))
    }

    /// The elements in row-major order at an address that is a multiple of `bytes`, up to 256.
    pub(crate) fn aligned(&self, bytes: u64) -> Result<Dense<'a>> {
        let dense = self.contiguous()?;
        if dense.src().addr().is_multiple_of(bytes) {
            return Ok(dense);
        }
        let mut copy = self.context().alloc(self.dtype(), self.numel())?;
        copy::gather(self.context(), dense.src(), &Layout::contiguous(self.numel()), Dst::new(&mut copy))?;
        Ok(Dense::Owned(copy))
    }

    /// Elements in row-major order as another type, by the rules of `cast`.
    pub(crate) fn contiguous_as(&self, dtype: DType) -> Result<Dense<'a>> {
        if self.dtype() == dtype {
            return self.contiguous();
        }
        let mut copy = self.context().alloc(dtype, self.numel())?;
        copy::cast(self.context(), self.start(), self.layout, Dst::new(&mut copy))?;
        Ok(Dense::Owned(copy))
    }

    /// Writes the elements into memory of a captured step, in row-major order.
    ///
    /// # Errors
    /// What the device reports.
    pub(crate) fn overwrite(&self, to: &Buffer) -> Result<()> {
        copy::gather(to.context(), self.start(), self.layout, Dst::at(to.addr(), to.dtype()))
    }
}

/// An output operand: fresh, contiguous, of the shape and dtype that `infer` gave. Its content is unspecified until a
/// kernel has written it, all of it.
#[derive(Debug)]
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

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.buffer.len()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.buffer.dtype()
    }

    /// The device that holds it.
    pub(crate) fn context(&self) -> &'static Context {
        self.buffer.context()
    }

    /// The memory to write.
    pub(crate) fn dst(&mut self) -> Dst<'_> {
        Dst::new(self.buffer)
    }

    /// Zeros everywhere.
    pub(crate) fn zero(&mut self, on: &Context) -> Result<()> {
        let bytes = self.buffer.len() * self.buffer.dtype().size();
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the buffer holds this many bytes, and `&mut` makes the write exclusive.
        unsafe { on.fill(self.buffer.addr(), bytes, 0) }
    }
}
