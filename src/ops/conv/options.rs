//! What convolutions can be told.

/// Zeros around the spatial axes of an input; a number or a list of them converts: `padding: 1.into()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding<const D: usize> {
    /// As many before as after, for each axis.
    Both([usize; D]),
    /// Before and after, for each axis.
    Sides([(usize, usize); D]),
    /// As many as keep the extents: `dilation · (kernel − 1)` in all, where that is odd one more after than before. For stride 1.
    Same,
    /// None.
    Valid,
}

impl<const D: usize> Default for Padding<D> {
    fn default() -> Self {
        Padding::Both([0; D])
    }
}

impl<const D: usize> From<usize> for Padding<D> {
    fn from(n: usize) -> Self {
        Padding::Both([n; D])
    }
}

impl<const D: usize> From<[usize; D]> for Padding<D> {
    fn from(n: [usize; D]) -> Self {
        Padding::Both(n)
    }
}

/// Options of a convolution over `D` spatial axes; the default is PyTorch's.
///
/// ```
/// use cotangent::ops::Conv2dOptions;
/// let halves = Conv2dOptions { stride: [2, 2], padding: 1.into(), ..Conv2dOptions::default() };
/// assert_eq!((halves.dilation, halves.groups), ([1, 1], 1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvOptions<const D: usize> {
    /// Positions of the input between neighbours of the output, for each axis.
    pub stride: [usize; D],
    /// Zeros around the input.
    pub padding: Padding<D>,
    /// Positions of the input between neighbours of the kernel, for each axis.
    pub dilation: [usize; D],
    /// Into how many groups the channels are divided; each group of outputs sees its group of inputs alone.
    pub groups: usize,
}

impl<const D: usize> Default for ConvOptions<D> {
    fn default() -> Self {
        ConvOptions { stride: [1; D], padding: Padding::default(), dilation: [1; D], groups: 1 }
    }
}

/// Options of [`Tensor::conv1d`](crate::Tensor::conv1d).
pub type Conv1dOptions = ConvOptions<1>;
/// Options of [`Tensor::conv2d`](crate::Tensor::conv2d).
pub type Conv2dOptions = ConvOptions<2>;
/// Options of [`Tensor::conv3d`](crate::Tensor::conv3d).
pub type Conv3dOptions = ConvOptions<3>;

/// Options of a transposed convolution over `D` spatial axes; the default is PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvTransposeOptions<const D: usize> {
    /// Positions of the output between neighbours of the input, for each axis.
    pub stride: [usize; D],
    /// What is left out at both ends of the output: the padding of the convolution whose transpose this is.
    pub padding: [usize; D],
    /// Positions that the output has more at its end, less than stride or dilation: a convolution with a stride forgets how many positions
    /// its kernel did not reach.
    pub output_padding: [usize; D],
    /// Positions of the output between neighbours of the kernel, for each axis.
    pub dilation: [usize; D],
    /// Into how many groups the channels are divided.
    pub groups: usize,
}

impl<const D: usize> Default for ConvTransposeOptions<D> {
    fn default() -> Self {
        ConvTransposeOptions { stride: [1; D], padding: [0; D], output_padding: [0; D], dilation: [1; D], groups: 1 }
    }
}

/// Options of [`Tensor::conv_transpose1d`](crate::Tensor::conv_transpose1d).
pub type ConvTranspose1dOptions = ConvTransposeOptions<1>;
/// Options of [`Tensor::conv_transpose2d`](crate::Tensor::conv_transpose2d).
pub type ConvTranspose2dOptions = ConvTransposeOptions<2>;
/// Options of [`Tensor::conv_transpose3d`](crate::Tensor::conv_transpose3d).
pub type ConvTranspose3dOptions = ConvTransposeOptions<3>;

/// Options of the largest element of windows over `D` spatial axes; the default is PyTorch's: windows side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPoolOptions<const D: usize> {
    /// Positions of the input between neighbours of the output, for each axis; `None` is the window's extents.
    pub stride: Option<[usize; D]>,
    /// Positions beside the input, at both ends, where windows may lie; they take no part. At most half of a window.
    pub padding: [usize; D],
    /// Positions of the input between neighbours of a window, for each axis.
    pub dilation: [usize; D],
    /// Whether a last window may reach beyond the padded input.
    pub ceil: bool,
}

impl<const D: usize> Default for MaxPoolOptions<D> {
    fn default() -> Self {
        MaxPoolOptions { stride: None, padding: [0; D], dilation: [1; D], ceil: false }
    }
}

/// Options of [`Tensor::max_pool1d`](crate::Tensor::max_pool1d).
pub type MaxPool1dOptions = MaxPoolOptions<1>;
/// Options of [`Tensor::max_pool2d`](crate::Tensor::max_pool2d).
pub type MaxPool2dOptions = MaxPoolOptions<2>;
/// Options of [`Tensor::max_pool3d`](crate::Tensor::max_pool3d).
pub type MaxPool3dOptions = MaxPoolOptions<3>;

/// Options of the mean of windows over `D` spatial axes; the default is PyTorch's: windows side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AvgPoolOptions<const D: usize> {
    /// Positions of the input between neighbours of the output, for each axis; `None` is the window's extents.
    pub stride: Option<[usize; D]>,
    /// Zeros at both ends of each axis. At most half of a window.
    pub padding: [usize; D],
    /// Whether a last window may reach beyond the padded input.
    pub ceil: bool,
    /// Whether the padding counts where a sum is divided by the number of its elements; the default is that it does.
    pub count_include_pad: bool,
}

impl<const D: usize> Default for AvgPoolOptions<D> {
    fn default() -> Self {
        AvgPoolOptions { stride: None, padding: [0; D], ceil: false, count_include_pad: true }
    }
}

/// Options of [`Tensor::avg_pool1d`](crate::Tensor::avg_pool1d).
pub type AvgPool1dOptions = AvgPoolOptions<1>;
/// Options of [`Tensor::avg_pool2d`](crate::Tensor::avg_pool2d).
pub type AvgPool2dOptions = AvgPoolOptions<2>;
/// Options of [`Tensor::avg_pool3d`](crate::Tensor::avg_pool3d).
pub type AvgPool3dOptions = AvgPoolOptions<3>;

/// Options of [`Tensor::unfold`](crate::Tensor::unfold) and [`Tensor::fold`](crate::Tensor::fold); the default is PyTorch's: windows one
/// step apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnfoldOptions<const D: usize> {
    /// Positions of the image between neighbours of a window, for each axis.
    pub dilation: [usize; D],
    /// Zeros at both ends of each axis.
    pub padding: [usize; D],
    /// Positions of the image between windows, for each axis.
    pub stride: [usize; D],
}

impl<const D: usize> Default for UnfoldOptions<D> {
    fn default() -> Self {
        UnfoldOptions { dilation: [1; D], padding: [0; D], stride: [1; D] }
    }
}

/// How [`Tensor::grid_sample`](crate::Tensor::grid_sample) finds values between the elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GridSampleMode {
    /// On straight lines between neighbours: PyTorch's `bilinear`, of planes and of volumes.
    #[default]
    Linear,
    /// The nearest element, of two the one at an even place. The grid has no gradient.
    Nearest,
    /// On cubics through four neighbours along each axis: PyTorch's `bicubic`, of planes alone.
    Cubic,
}

/// What [`Tensor::grid_sample`](crate::Tensor::grid_sample) finds beside an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GridSamplePadding {
    /// Zeros.
    #[default]
    Zeros,
    /// What is at the border.
    Border,
    /// The image, reflected as often as it takes.
    Reflection,
}

/// Options of [`Tensor::grid_sample`](crate::Tensor::grid_sample); the default is PyTorch's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GridSampleOptions {
    /// How values between elements are found.
    pub mode: GridSampleMode,
    /// What is beside the image.
    pub padding: GridSamplePadding,
    /// Whether −1 and 1 are the middles of the first and the last elements, and not the image's borders.
    pub align_corners: bool,
}
