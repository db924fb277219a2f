//! `Tensor`: a value, and perhaps a place on a tape. Layer L3; it names no op.

use crate::array::Array;
use crate::backend::Device;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::shape::Shape;
use crate::tape::{NodeRef, stops};
use std::fmt;

/// An immutable n-dimensional value on a device, perhaps tracked by a [`Tape`](crate::Tape).
///
/// Cloning is cheap: clones share storage. No operation writes into an existing tensor, so a value that a tape has
/// saved can never change behind its back. Every op accepts every layout (transposed, sliced, broadcast).
///
/// ```
/// use cotangent::Tensor;
/// let x = Tensor::from_slice(&[1f32, 2., 3., 4., 5., 6.], [2, 3])?;
/// let y = x.transpose(0, 1)?.matmul(&x)?;
/// assert_eq!(y.shape(), &[3, 3]);
/// println!("{y}");
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone)]
pub struct Tensor {
    pub(crate) array: Array,
    pub(crate) node: Option<NodeRef>,
}

impl Tensor {
    pub(crate) fn from_array(array: Array) -> Self {
        Tensor { array, node: None }
    }

    /// Copies host values in row-major order to the CPU.
    ///
    /// # Errors
    /// Shape error when the number of values differs from the shape's element count; out of memory.
    #[track_caller]
    pub fn from_slice<T: Element>(data: &[T], shape: impl Into<Shape>) -> Result<Self> {
        let at = std::panic::Location::caller();
        Array::from_slice(data, shape.into(), Device::Cpu).map(Self::from_array).map_err(|e| e.in_op("from_slice", at))
    }

    /// A tensor without axes.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn scalar<T: Element>(value: T) -> Result<Self> {
        Self::from_slice(&[value], ())
    }

    /// Extents, outermost axis first.
    pub fn shape(&self) -> &Shape {
        self.array.shape()
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape().rank()
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape().numel()
    }

    /// Extent of one axis (negative axes count from the end).
    ///
    /// # Errors
    /// Shape error when the axis does not exist.
    #[track_caller]
    pub fn size(&self, axis: impl Into<crate::Axis>) -> Result<usize> {
        let at = std::panic::Location::caller();
        Ok(self.shape()[self.shape().axis(axis).map_err(|e| e.in_op("size", at))?])
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.array.dtype()
    }

    /// Where the elements live.
    pub fn device(&self) -> Device {
        self.array.device()
    }

    /// Extents, strides and offset in the storage.
    pub fn layout(&self) -> &Layout {
        self.array.layout()
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.layout().is_contiguous()
    }

    /// Whether a tape records what is computed from this tensor.
    pub fn is_tracked(&self) -> bool {
        self.node.is_some()
    }

    /// The same value without history: no gradient flows through it. Costs nothing.
    #[must_use]
    #[track_caller]
    pub fn detach(&self) -> Self {
        stops("detach", std::panic::Location::caller(), &[self], None);
        self.untracked()
    }

    /// [`Tensor::detach`] for the crate's own use: where a gradient is lost, it is not the place that the user looks for.
    pub(crate) fn untracked(&self) -> Self {
        Self::from_array(self.array.clone())
    }

    /// JAX's name for [`Tensor::detach`].
    #[must_use]
    #[track_caller]
    pub fn stop_gradient(&self) -> Self {
        self.detach()
    }

    /// Whether both tensors read the same memory.
    pub fn shares_storage(&self, other: &Tensor) -> bool {
        self.array.same_storage(&other.array)
    }

    /// The elements in row-major order.
    ///
    /// # Errors
    /// Dtype error when `T` is not the tensor's element type.
    #[track_caller]
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let at = std::panic::Location::caller();
        stops("to_vec", at, &[self], None);
        self.array.to_vec().map_err(|e| e.in_op("to_vec", at))
    }

    /// The elements in row-major order as `f64`, whatever the dtype.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        let at = std::panic::Location::caller();
        stops("to_f64_vec", at, &[self], None);
        self.array.to_f64().map_err(|e| e.in_op("to_f64_vec", at))
    }

    /// The single element as `f64`.
    ///
    /// # Errors
    /// Shape error unless there is exactly one element.
    #[track_caller]
    pub fn item(&self) -> Result<f64> {
        let at = std::panic::Location::caller();
        stops("item", at, &[self], None);
        if self.numel() != 1 {
            return Err(Error::shape(format!("expected one element, found shape {}", self.shape())).in_op("item", at));
        }
        Ok(self.array.to_f64().map_err(|e| e.in_op("item", at))?[0])
    }

    /// The memory of a tensor on a CUDA device, for an optimizer that writes it in place; see [`Tensor::update`].
    pub(crate) fn own_cuda(&mut self) -> Result<&mut crate::backend::cuda::Buffer> {
        if self.is_tracked() {
            return Err(Error::tape("the tensor is tracked: update the watched original, after the sweep"));
        }
        self.array.own_cuda()
    }

    /// Writes the elements in place through a slice in row-major order: the door for optimizers and loaders.
    ///
    /// When other tensors share the memory it is copied first, so they keep their value.
    ///
    /// # Errors
    /// Tape error when a tape tracks the tensor (its saved value would change); dtype error when `T` differs.
    #[track_caller]
    pub fn update<T: Element>(&mut self, f: impl FnOnce(&mut [T])) -> Result<()> {
        let at = std::panic::Location::caller();
        if self.is_tracked() {
            return Err(Error::tape("the tensor is tracked: update the watched original, after the sweep").in_op("update", at));
        }
        self.array.update(f).map_err(|e| e.in_op("update", at))
    }
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.array.fmt(f)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.array.fmt(f)?;
        if let Some(n) = &self.node {
            write!(f, " @ node {}", n.id)?;
        }
        Ok(())
    }
}
