//! `Array`: storage under a layout. Create, view, copy, read back, print. Layer L2; it knows no tape.

mod print;

use crate::backend::{Device, Storage, cpu, cuda};
use crate::dtype::{DType, Element, with_dtype};
use crate::error::{Error, Result, bail};
use crate::layout::Layout;
use crate::memory;
use crate::shape::Shape;
use std::sync::Arc;

/// A value without history: shared storage and the layout to read it by.
#[derive(Clone)]
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
        let mut host = cpu::Buffer::alloc(T::DTYPE, shape.checked_numel()?)?;
        fill(host.slice_mut());
        Self::from_host::<T>(host, shape, device)
    }

    /// Host memory on its device.
    fn from_host<T: Element>(host: cpu::Buffer, shape: Shape, device: Device) -> Result<Self> {
        let storage = match Storage::alloc(device, T::DTYPE, if device == Device::Cpu { 0 } else { host.len() })? {
            Storage::Cpu(_) => Storage::Cpu(host),
            Storage::Cuda(mut b) => {
                b.upload::<T>(host.slice())?;
                Storage::Cuda(b)
            }
        };
        Ok(Self::from_storage(storage, T::DTYPE, shape))
    }

    /// The same values on another device, in row-major order.
    pub(crate) fn to_device(&self, device: Device) -> Result<Self> {
        if device == self.device() {
            return Ok(self.clone());
        }
        // A broadcast scalar stays one element.
        if self.numel() > 1 && self.layout.strides().iter().zip(self.shape().iter()).all(|(&s, &d)| s == 0 || d == 1) {
            let one = Layout::from_parts(Shape::scalar(), smallvec::SmallVec::new(), self.layout.offset())?;
            let one = with_dtype!(self.dtype, T => Self::from_slice(&self.with_layout(one)?.to_vec::<T>()?, Shape::scalar(), device)?);
            return one.with_layout(one.layout.expand(self.shape())?);
        }
        with_dtype!(self.dtype, T => Self::from_slice(&self.to_vec::<T>()?, self.shape().clone(), device))
    }

    /// One value everywhere. Stored once and broadcast, so it costs no memory until something writes a copy.
    pub(crate) fn full(value: f64, dtype: DType, shape: Shape, device: Device) -> Result<Self> {
        shape.checked_numel()?;
        let one = with_dtype!(dtype, T => match Storage::alloc(device, dtype, 1)? {
            Storage::Cpu(_) => Self::build(Shape::scalar(), device, |out: &mut [T]| out[0] = T::from_f64(value))?,
            Storage::Cuda(mut b) => {
                b.put(T::from_f64(value))?;
                Self::from_storage(Storage::Cuda(b), dtype, Shape::scalar())
            }
        });
        one.with_layout(one.layout.expand(&shape)?)
    }

    /// The same layout over a copy of the whole storage on another device: what tests hand to kernels.
    pub(crate) fn storage_to_device(&self, device: Device) -> Result<Self> {
        if device == self.device() {
            return Ok(self.clone());
        }
        let all = Array { layout: Layout::contiguous([self.storage.len()]), ..self.clone() };
        Ok(Array { layout: self.layout.clone(), ..all.to_device(device)? })
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

    /// The CPU kernel's view of this value; an error when it is elsewhere.
    pub(crate) fn cpu(&self) -> Result<cpu::In<'_>> {
        match &*self.storage {
            Storage::Cpu(b) => Ok(cpu::In::new(b, &self.layout)),
            Storage::Cuda(_) => {
                Err(Error::device(format!("a value on {} is not the host's to read; move it with to_device()", self.device())))
            }
        }
    }

    /// The CUDA kernel's view of this value; an error when it is elsewhere.
    pub(crate) fn cuda(&self) -> Result<cuda::In<'_>> {
        match &*self.storage {
            Storage::Cuda(b) => {
                cuda::capture::keep(b, &self.storage);
                Ok(cuda::In::new(b, &self.layout))
            }
            Storage::Cpu(_) => Err(Error::device("a value on cpu is not a CUDA device's to read; move it with to_device()")),
        }
    }

    /// A whole buffer in one axis.
    pub(crate) fn of_cuda(buffer: cuda::Buffer) -> Self {
        let (dtype, len) = (buffer.dtype(), buffer.len());
        Self::from_storage(Storage::Cuda(buffer), dtype, [len].into())
    }

    pub(crate) fn numel(&self) -> usize {
        self.layout.numel()
    }

    /// Elements in row-major order.
    pub(crate) fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if T::DTYPE != self.dtype {
            bail!(dtype, "the tensor holds {}, not {}; cast it first", self.dtype, T::DTYPE);
        }
        match &*self.storage {
            Storage::Cpu(b) if self.layout.is_contiguous() => {
                let start = if self.numel() == 0 { 0 } else { self.layout.offset() };
                memory::copied(&b.slice::<T>()[start..start + self.numel()])
            }
            Storage::Cpu(b) => {
                let mut out = memory::vec_of(T::from_f64(0.0), self.numel())?;
                cpu::copy_strided(b.slice::<T>(), &self.layout, &mut out)?;
                Ok(out)
            }
            Storage::Cuda(b) if self.layout.is_contiguous() && self.numel() == b.len() => b.download(),
            Storage::Cuda(b) => {
                let mut dense = b.context().alloc(self.dtype, self.numel())?;
                let x = self.cuda()?;
                cuda::copy::gather(b.context(), x.start(), &self.layout, cuda::Dst::new(&mut dense))?;
                dense.download()
            }
        }
    }

    /// Elements in row-major order, converted to `f64`.
    pub(crate) fn to_f64(&self) -> Result<Vec<f64>> {
        with_dtype!(self.dtype, T => match &*self.storage {
            Storage::Cpu(_) => memory::try_collect(self.cpu()?.contiguous::<T>()?.iter().map(|x| x.to_f64())),
            Storage::Cuda(_) => memory::try_collect(self.to_vec::<T>()?.into_iter().map(Element::to_f64)),
        })
    }

    /// Some elements of a value in host memory, evenly spaced: place in row-major order and value. None of one elsewhere, which would be
    /// waited for.
    pub(crate) fn sample(&self, most: usize) -> Result<Vec<(usize, f64)>> {
        let Storage::Cpu(b) = &*self.storage else { return Ok(Vec::new()) };
        let (n, strides) = (self.numel(), self.layout.strides());
        let at = |i: usize| {
            let (mut rest, mut place) = (i, self.layout.offset());
            for (&d, &s) in self.shape().iter().zip(strides).rev() {
                place += rest % d * s;
                rest /= d;
            }
            place
        };
        let every = n.div_ceil(most.max(1)).max(1);
        with_dtype!(self.dtype, T => {
            let all = b.slice::<T>();
            memory::try_collect((0..n).step_by(every).map(|i| (i, all[at(i)].to_f64())))
        })
    }

    /// Runs `f` on the elements in place. Copies first when the storage is shared or the layout is not row-major over
    /// the whole storage, so no other tensor ever sees the change.
    pub(crate) fn update<T: Element>(&mut self, f: impl FnOnce(&mut [T])) -> Result<()> {
        if T::DTYPE != self.dtype {
            bail!(dtype, "the tensor holds {}, not {}", self.dtype, T::DTYPE);
        }
        if self.device() != Device::Cpu {
            let mut data = self.to_vec::<T>()?;
            f(&mut data);
            *self = Self::from_slice(&data, self.shape().clone(), self.device())?;
            return Ok(());
        }
        f(self.own_host::<T>()?.slice_mut());
        Ok(())
    }

    /// The whole storage of a value in host memory, to be written in place. Copies first where [`Array::update`] says so.
    fn own_host<T: Element>(&mut self) -> Result<&mut cpu::Buffer> {
        let whole = self.layout.is_contiguous() && self.layout.offset() == 0 && self.storage.len() == self.layout.numel();
        if !whole || Arc::get_mut(&mut self.storage).is_none() {
            let data = self.cpu()?.contiguous::<T>()?;
            *self = Self::build(self.shape().clone(), self.device(), |out: &mut [T]| out.copy_from_slice(&data))?;
        }
        match Arc::get_mut(&mut self.storage) {
            Some(Storage::Cpu(b)) => Ok(b),
            _ => bail!(tape, "storage became shared during an update"),
        }
    }

    /// The whole storage of a value on a CUDA device, to be written in place. Copies first, on the device, when the storage
    /// is shared or not filled in row-major order.
    pub(crate) fn own_cuda(&mut self) -> Result<&mut cuda::Buffer> {
        if !self.is_unique() {
            *self = self.copy_cuda()?;
        }
        match Arc::get_mut(&mut self.storage) {
            Some(Storage::Cuda(b)) => Ok(b),
            _ => Err(Error::device("the value is not on a CUDA device, or became shared during an update")),
        }
    }

    /// How many values share the storage.
    pub(crate) fn sharers(&self) -> usize {
        Arc::strong_count(&self.storage)
    }

    /// The memory on a CUDA device.
    pub(crate) fn cuda_buffer(&self) -> Result<&cuda::Buffer> {
        match &*self.storage {
            Storage::Cuda(b) => Ok(b),
            Storage::Cpu(_) => Err(Error::device("a value on cpu is not a CUDA device's to read; move it with to_device()")),
        }
    }

    /// A copy in row-major order, in memory of its own on the same CUDA device.
    pub(crate) fn copy_cuda(&self) -> Result<Self> {
        let on = self.cuda_buffer()?.context();
        let mut copy = on.alloc(self.dtype, self.numel())?;
        cuda::copy::gather(on, self.cuda()?.start(), &self.layout, cuda::Dst::new(&mut copy))?;
        Ok(Self::from_storage(Storage::Cuda(copy), self.dtype, self.shape().clone()))
    }

    /// Whether [`Array::update`] would work without a copy.
    pub(crate) fn is_unique(&mut self) -> bool {
        self.layout.is_contiguous()
            && self.layout.offset() == 0
            && self.storage.len() == self.layout.numel()
            && Arc::get_mut(&mut self.storage).is_some()
    }
}
