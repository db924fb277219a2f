//! `Array`: storage under a layout. Create, view, copy, read back, print. Layer L2; it knows no tape.

mod print;

use crate::backend::{Device, Storage, cpu};
use crate::dtype::{DType, Element, with_dtype};
use crate::error::{Error, Result, bail};
use crate::layout::Layout;
use crate::shape::Shape;
use std::sync::Arc;

/// A value without history: shared storage and the layout to read it by.
#[derive(Clone, Debug)]
pub(crate) struct Array {
    storage: Arc<Storage>,
    dtype: DType,
    layout: Layout,
}

impl Array {
    /// Takes over a buffer that was filled in row-major order.
    pub(crate) fn from_storage(storage: Storage, dtype: DType, shape: Shape) -> Self {
        debug_assert_eq!(storage.len(), shape.numel());
        Array { storage: Arc::new(storage), dtype, layout: Layout::contiguous(shape) }
    }

    /// Copies host values; one value per element.
    pub(crate) fn from_slice<T: Element>(data: &[T], shape: Shape, device: Device) -> Result<Self> {
        let n = shape.checked_numel()?;
        if n != data.len() {
            bail!(shape, "shape {shape} has {n} elements, but {} values were given", data.len());
        }
        Self::build(shape, device, |out: &mut [T]| out.copy_from_slice(data))
    }

    /// Fills fresh host memory with `fill` and moves it to the device.
    pub(crate) fn build<T: Element>(shape: Shape, device: Device, fill: impl FnOnce(&mut [T])) -> Result<Self> {
        let mut storage = Storage::alloc(device, T::DTYPE, shape.checked_numel()?)?;
        match &mut storage {
            Storage::Cpu(b) => fill(b.slice_mut()),
        }
        Ok(Self::from_storage(storage, T::DTYPE, shape))
    }

    /// One value everywhere. Stored once and broadcast, so it costs no memory until something writes a copy.
    pub(crate) fn full(value: f64, dtype: DType, shape: Shape, device: Device) -> Result<Self> {
        shape.checked_numel()?;
        let one = with_dtype!(dtype, T => Self::build(Shape::scalar(), device, |out: &mut [T]| out[0] = T::from_f64(value))?);
        one.with_layout(one.layout.expand(&shape)?)
    }

    /// The same storage under another layout.
    pub(crate) fn with_layout(&self, layout: Layout) -> Result<Self> {
        match layout.end() {
            Some(end) if end <= self.storage.len() => Ok(Array { storage: Arc::clone(&self.storage), dtype: self.dtype, layout }),
            _ => Err(Error::index(format!("layout {layout:?} reaches outside the storage of {} elements", self.storage.len()))),
        }
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn device(&self) -> Device {
        self.storage.device()
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn shape(&self) -> &Shape {
        self.layout.shape()
    }

    /// Whether two values share memory.
    pub(crate) fn same_storage(&self, other: &Array) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage)
    }

    /// The CPU kernel's view of this value; an error when it lies elsewhere.
    pub(crate) fn cpu(&self) -> Result<cpu::In<'_>> {
        match &*self.storage {
            Storage::Cpu(b) => Ok(cpu::In::new(b, &self.layout)),
        }
    }

    /// Elements in row-major order.
    pub(crate) fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if T::DTYPE != self.dtype {
            bail!(dtype, "the tensor holds {}, not {}; cast it first", self.dtype, T::DTYPE);
        }
        Ok(self.cpu()?.contiguous::<T>()?.to_vec())
    }

    /// Elements in row-major order, converted to `f64`.
    pub(crate) fn to_f64(&self) -> Result<Vec<f64>> {
        with_dtype!(self.dtype, T => Ok(self.cpu()?.contiguous::<T>()?.iter().map(|x| x.to_f64()).collect()))
    }

    /// Runs `f` on the elements in place. Copies first when the storage is shared or the layout is not row-major over
    /// the whole storage, so no other tensor ever sees the change.
    pub(crate) fn update<T: Element>(&mut self, f: impl FnOnce(&mut [T])) -> Result<()> {
        if T::DTYPE != self.dtype {
            bail!(dtype, "the tensor holds {}, not {}", self.dtype, T::DTYPE);
        }
        let whole = self.layout.is_contiguous() && self.layout.offset() == 0 && self.storage.len() == self.layout.numel();
        if !whole || Arc::get_mut(&mut self.storage).is_none() {
            let data = self.cpu()?.contiguous::<T>()?;
            *self = Self::build(self.shape().clone(), self.device(), |out: &mut [T]| out.copy_from_slice(&data))?;
        }
        match Arc::get_mut(&mut self.storage) {
            Some(Storage::Cpu(b)) => f(b.slice_mut()),
            None => bail!(tape, "storage became shared during an update"),
        }
        Ok(())
    }

    /// Whether [`Array::update`] would work without a copy.
    pub(crate) fn is_unique(&mut self) -> bool {
        self.layout.is_contiguous()
            && self.layout.offset() == 0
            && self.storage.len() == self.layout.numel()
            && Arc::get_mut(&mut self.storage).is_some()
    }
}
