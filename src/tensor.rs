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
///
/// # What there is
///
/// - **Create**: [`from_slice`](Tensor::from_slice), [`from_vec`](Tensor::from_vec), [`from_rows`](Tensor::from_rows),
///   [`scalar`](Tensor::scalar), [`full`](Tensor::full), [`full_on`](Tensor::full_on), [`zeros`](Tensor::zeros),
///   [`ones`](Tensor::ones), [`zeros_like`](Tensor::zeros_like), [`ones_like`](Tensor::ones_like), [`eye`](Tensor::eye),
///   [`arange`](Tensor::arange), [`linspace`](Tensor::linspace), [`rand`](Tensor::rand), [`uniform`](Tensor::uniform),
///   [`randn`](Tensor::randn), [`normal`](Tensor::normal), [`truncated_normal`](Tensor::truncated_normal),
///   [`bernoulli`](Tensor::bernoulli), [`randint`](Tensor::randint), [`randperm`](Tensor::randperm).
/// - **Ask**: [`shape`](Tensor::shape), [`dims`](Tensor::dims), [`size`](Tensor::size), [`rank`](Tensor::rank),
///   [`numel`](Tensor::numel), [`dtype`](Tensor::dtype), [`device`](Tensor::device), [`layout`](Tensor::layout),
///   [`is_contiguous`](Tensor::is_contiguous), [`is_tracked`](Tensor::is_tracked), [`shares_storage`](Tensor::shares_storage).
/// - **Read and write**: [`to_vec`](Tensor::to_vec), [`to_f64_vec`](Tensor::to_f64_vec), [`item`](Tensor::item),
///   [`update`](Tensor::update).
/// - **History and place**: [`detach`](Tensor::detach), [`stop_gradient`](Tensor::stop_gradient), [`tap`](Tensor::tap),
///   [`tap_beside`](Tensor::tap_beside), [`to_device`](Tensor::to_device), [`cast`](Tensor::cast).
/// - **Shape**: [`reshape`](Tensor::reshape), [`flatten`](Tensor::flatten), [`squeeze`](Tensor::squeeze),
///   [`squeeze_all`](Tensor::squeeze_all), [`unsqueeze`](Tensor::unsqueeze), [`expand`](Tensor::expand),
///   [`expand_as`](Tensor::expand_as), [`transpose`](Tensor::transpose), [`t`](Tensor::t), [`permute`](Tensor::permute),
///   [`contiguous`](Tensor::contiguous).
/// - **Parts and joints**: [`slice`](Tensor::slice), [`slice_step`](Tensor::slice_step), [`narrow`](Tensor::narrow),
///   [`select`](Tensor::select), [`unbind`](Tensor::unbind), [`split`](Tensor::split), [`chunk`](Tensor::chunk),
///   [`concat`](Tensor::concat), [`stack`](Tensor::stack), [`repeat`](Tensor::repeat),
///   [`repeat_interleave`](Tensor::repeat_interleave), [`pad`](Tensor::pad), [`pad_axis`](Tensor::pad_axis),
///   [`flip`](Tensor::flip), [`roll`](Tensor::roll), [`diagonal`](Tensor::diagonal), [`tril`](Tensor::tril),
///   [`triu`](Tensor::triu).
/// - **Index**: [`gather`](Tensor::gather), [`scatter_add`](Tensor::scatter_add),
///   [`scatter_reduce`](Tensor::scatter_reduce), [`index_select`](Tensor::index_select),
///   [`embedding`](Tensor::embedding), [`one_hot`](Tensor::one_hot), [`where_cond`](Tensor::where_cond),
///   [`masked_fill`](Tensor::masked_fill), [`sort`](Tensor::sort), [`topk`](Tensor::topk), [`argmax`](Tensor::argmax),
///   [`argmax_keepdim`](Tensor::argmax_keepdim), [`argmin`](Tensor::argmin), [`argmin_keepdim`](Tensor::argmin_keepdim),
///   [`max_with_index`](Tensor::max_with_index), [`min_with_index`](Tensor::min_with_index).
/// - **Numbers**: [`add_scalar`](Tensor::add_scalar), [`sub_scalar`](Tensor::sub_scalar), [`rsub_scalar`](Tensor::rsub_scalar),
///   [`mul_scalar`](Tensor::mul_scalar), [`div_scalar`](Tensor::div_scalar), [`rdiv_scalar`](Tensor::rdiv_scalar),
///   [`powi`](Tensor::powi), [`powf`](Tensor::powf), [`clamp`](Tensor::clamp).
/// - **Two operands**: [`add`](Tensor::add), [`sub`](Tensor::sub), [`mul`](Tensor::mul), [`div`](Tensor::div),
///   [`pow`](Tensor::pow), [`maximum`](Tensor::maximum), [`minimum`](Tensor::minimum).
/// - **Elementwise**: [`neg`](Tensor::neg), [`abs`](Tensor::abs), [`sign`](Tensor::sign), [`floor`](Tensor::floor),
///   [`ceil`](Tensor::ceil), [`round`](Tensor::round), [`round_decimals`](Tensor::round_decimals), [`sqrt`](Tensor::sqrt), [`rsqrt`](Tensor::rsqrt),
///   [`recip`](Tensor::recip), [`square`](Tensor::square), [`exp`](Tensor::exp), [`expm1`](Tensor::expm1),
///   [`log`](Tensor::log), [`log1p`](Tensor::log1p), [`sin`](Tensor::sin), [`cos`](Tensor::cos), [`tanh`](Tensor::tanh),
///   [`erf`](Tensor::erf), [`normal_cdf`](Tensor::normal_cdf).
/// - **Activations**: [`relu`](Tensor::relu), [`relu_squared`](Tensor::relu_squared), [`leaky_relu`](Tensor::leaky_relu),
///   [`elu`](Tensor::elu), [`silu`](Tensor::silu), [`gelu`](Tensor::gelu), [`gelu_tanh`](Tensor::gelu_tanh),
///   [`sigmoid`](Tensor::sigmoid), [`softplus`](Tensor::softplus), [`swiglu`](Tensor::swiglu), [`geglu`](Tensor::geglu),
///   [`geglu_tanh`](Tensor::geglu_tanh), [`softmax`](Tensor::softmax), [`log_softmax`](Tensor::log_softmax).
/// - **Compare**: [`eq`](Tensor::eq), [`ne`](Tensor::ne), [`lt`](Tensor::lt), [`le`](Tensor::le), [`gt`](Tensor::gt),
///   [`ge`](Tensor::ge), [`eq_scalar`](Tensor::eq_scalar), [`ne_scalar`](Tensor::ne_scalar), [`lt_scalar`](Tensor::lt_scalar),
///   [`le_scalar`](Tensor::le_scalar), [`gt_scalar`](Tensor::gt_scalar), [`ge_scalar`](Tensor::ge_scalar),
///   [`logical_and`](Tensor::logical_and), [`logical_or`](Tensor::logical_or), [`logical_not`](Tensor::logical_not),
///   [`any`](Tensor::any), [`any_keepdim`](Tensor::any_keepdim), [`all`](Tensor::all), [`all_keepdim`](Tensor::all_keepdim).
/// - **Reduce**: [`sum`](Tensor::sum), [`sum_keepdim`](Tensor::sum_keepdim), [`mean`](Tensor::mean),
///   [`mean_keepdim`](Tensor::mean_keepdim), [`max`](Tensor::max), [`max_keepdim`](Tensor::max_keepdim), [`min`](Tensor::min),
///   [`min_keepdim`](Tensor::min_keepdim), [`prod`](Tensor::prod), [`prod_keepdim`](Tensor::prod_keepdim), [`var`](Tensor::var),
///   [`var_keepdim`](Tensor::var_keepdim), [`std`](Tensor::std), [`std_keepdim`](Tensor::std_keepdim), [`norm`](Tensor::norm),
///   [`norm_keepdim`](Tensor::norm_keepdim), [`matrix_norm`](Tensor::matrix_norm), [`matrix_norm_keepdim`](Tensor::matrix_norm_keepdim),
///   [`logsumexp`](Tensor::logsumexp), [`logsumexp_keepdim`](Tensor::logsumexp_keepdim),
///   [`cumsum`](Tensor::cumsum).
/// - **Products**: [`matmul`](Tensor::matmul), [`matmul_nt`](Tensor::matmul_nt), [`matmul_tn`](Tensor::matmul_tn),
///   [`dot`](Tensor::dot), [`outer`](Tensor::outer), [`einsum`](Tensor::einsum), [`linear`](Tensor::linear),
///   [`quant_linear`](Tensor::quant_linear), [`dequantize`](Tensor::dequantize).
/// - **Layers**: [`layer_norm`](Tensor::layer_norm), [`rms_norm`](Tensor::rms_norm),
///   [`add_layer_norm`](Tensor::add_layer_norm), [`add_rms_norm`](Tensor::add_rms_norm), [`dropout`](Tensor::dropout),
///   [`dropout_add`](Tensor::dropout_add), [`rope`](Tensor::rope), [`rope_with_key`](Tensor::rope_with_key),
///   [`scaled_dot_product_attention`](Tensor::scaled_dot_product_attention),
///   [`scaled_dot_product_attention_packed`](Tensor::scaled_dot_product_attention_packed).
/// - **Losses**: [`cross_entropy`](Tensor::cross_entropy), [`cross_entropy_with`](Tensor::cross_entropy_with),
///   [`linear_cross_entropy`](Tensor::linear_cross_entropy), [`nll_loss`](Tensor::nll_loss),
///   [`nll_loss_with`](Tensor::nll_loss_with), [`bce_with_logits`](Tensor::bce_with_logits), [`mse_loss`](Tensor::mse_loss).
///
/// Names of PyTorch's and JAX's functions lead to these in the search of this page (`cat`, `bmm`, `view`).
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
    /// The dtype is that of the values. **A float without a suffix is `f64` in Rust**: write `1f32` once in the list, or use
    /// [`tensor!`](crate::tensor), which is `f32` by default.
    ///
    /// # Errors
    /// Shape error when the number of values differs from the shape's element count; out of memory.
    #[doc(alias("tensor", "from_numpy", "array"))]
    #[track_caller]
    pub fn from_slice<T: Element>(data: &[T], shape: impl Into<Shape>) -> Result<Self> {
        Self::copied("from_slice", data, shape.into())
    }

    /// [`Tensor::from_slice`] by the name of the function that was called.
    #[track_caller]
    pub(crate) fn copied<T: Element>(name: &'static str, data: &[T], shape: Shape) -> Result<Self> {
        let at = std::panic::Location::caller();
        Array::from_slice(data, shape, Device::Cpu).map(Self::from_array).map_err(|e| e.in_op(name, at))
    }

    /// A tensor without axes.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn scalar<T: Element>(value: T) -> Result<Self> {
        Self::copied("scalar", &[value], ().into())
    }

    /// Extents, outermost axis first.
    pub fn shape(&self) -> &Shape {
        self.array.shape()
    }

    /// Number of axes.
    #[doc(alias("ndim", "dim"))]
    pub fn rank(&self) -> usize {
        self.shape().rank()
    }

    /// Number of elements.
    #[doc(alias = "nelement")]
    pub fn numel(&self) -> usize {
        self.shape().numel()
    }

    /// Extent of one axis (negative axes count from the end).
    ///
    /// # Errors
    /// Shape error when the axis does not exist.
    #[doc(alias = "shape")]
    #[track_caller]
    pub fn size(&self, axis: impl Into<crate::Axis>) -> Result<usize> {
        let at = std::panic::Location::caller();
        Ok(self.shape()[self.shape().axis(axis).map_err(|e| e.in_op("size", at))?])
    }

    /// The extents as an array, for a tensor whose number of axes is known: `let [batch, time, width] = x.dims()?`.
    ///
    /// # Errors
    /// Shape error when there are more or fewer axes.
    ///
    /// ```
    /// # use cotangent::{Tensor, F32};
    /// let x = Tensor::zeros([2, 5, 3], F32)?;
    /// let [batch, time, width] = x.dims()?;
    /// assert_eq!((batch, time, width), (2, 5, 3));
    /// assert!(x.dims::<2>().unwrap_err().to_string().contains("expected 2 axes, found 3: [2, 5, 3]"));
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[track_caller]
    pub fn dims<const N: usize>(&self) -> Result<[usize; N]> {
        let at = std::panic::Location::caller();
        let wrong = || Error::shape(format!("expected {N} axes, found {}: {}", self.rank(), self.shape())).in_op("dims", at);
        <[usize; N]>::try_from(&self.shape()[..]).map_err(|_| wrong())
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
    #[doc(alias("stride", "strides"))]
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
    #[doc(alias = "no_grad")]
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
    #[doc(alias("tolist", "numpy"))]
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

    /// Writes the elements in place through a slice in row-major order: for optimizers and loaders.
    ///
    /// When other tensors share the memory it is copied first, so they keep their value.
    ///
    /// # Errors
    /// Tape error when a tape tracks the tensor (its saved value would change); dtype error when `T` differs.
    #[doc(alias("copy_", "fill_", "setitem"))]
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
        fmt::Display::fmt(&self.array, f)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A tensor as one of many in a `{:?}`: dtype and shape, and the values where they are few.
pub(crate) struct Short<'a>(pub(crate) &'a Tensor);

impl fmt::Debug for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const FEW: usize = 8;
        let t = self.0;
        if t.rank() <= 1 && t.numel() <= FEW {
            return fmt::Display::fmt(t, f);
        }
        write!(f, "tensor({}, shape {}", t.dtype(), t.shape())?;
        if t.device() != Device::Cpu {
            write!(f, ", {}", t.device())?;
        }
        f.write_str(")")
    }
}

impl AsRef<Tensor> for Tensor {
    fn as_ref(&self) -> &Tensor {
        self
    }
}
