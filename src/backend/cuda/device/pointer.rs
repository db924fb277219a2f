//! Device memory as launches see it: an address with its element type, readable or writable for as long as its buffer is borrowed.

use super::buffer::Buffer;
use crate::dtype::DType;
use std::marker::PhantomData;

/// Device memory that a kernel reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Src<'a> {
    addr: u64,
    dtype: DType,
    life: PhantomData<&'a Buffer>,
}

impl<'a> Src<'a> {
    /// From element `offset` of a buffer on.
    pub(crate) fn new(buffer: &'a Buffer, offset: usize) -> Self {
        Src { addr: buffer.addr() + (offset * buffer.dtype().size()) as u64, dtype: buffer.dtype(), life: PhantomData }
    }

    /// Memory that a captured step reserved for itself.
    pub(crate) fn at(addr: u64, dtype: DType) -> Self {
        Src { addr, dtype, life: PhantomData }
    }

    /// The same memory from a later element on.
    pub(crate) fn offset(self, elements: usize) -> Self {
        Src { addr: self.addr + (elements * self.dtype.size()) as u64, ..self }
    }

    /// The device address.
    pub(crate) fn addr(&self) -> u64 {
        self.addr
    }

    /// Element type.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }
}

/// Device memory that a kernel writes.
#[derive(Debug)]
pub(crate) struct Dst<'a> {
    addr: u64,
    dtype: DType,
    life: PhantomData<&'a mut Buffer>,
}

impl<'a> Dst<'a> {
    /// A whole buffer.
    pub(crate) fn new(buffer: &'a mut Buffer) -> Self {
        Dst { addr: buffer.addr(), dtype: buffer.dtype(), life: PhantomData }
    }

    /// Memory that a captured step reserved for itself.
    pub(crate) fn at(addr: u64, dtype: DType) -> Self {
        Dst { addr, dtype, life: PhantomData }
    }

    /// The same memory from a later element on.
    pub(crate) fn offset(&self, elements: usize) -> Dst<'_> {
        Dst { addr: self.addr + (elements * self.dtype.size()) as u64, dtype: self.dtype, life: PhantomData }
    }

    /// The device address.
    pub(crate) fn addr(&self) -> u64 {
        self.addr
    }

    /// Element type.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }
}
