//! Layers without parameters that have options: pooling, resampling, what joins axes. `Func` makes a layer of any other function.

use crate::error::Result;
use crate::ops::{AvgPoolOptions, InterpolateMode, InterpolateOptions, InterpolateSize, MaxPoolOptions};
use crate::tensor::Tensor;

macro_rules! windows {
    ($($(#[$about:meta])* $layer:ident($options:ident): $one:ident $two:ident $three:ident, $m1:ident $m2:ident $m3:ident;)*) => {$(
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $layer<const D: usize> {
            /// The window's extents.
            pub kernel: [usize; D],
            /// How it moves.
            pub options: $options<D>,
        }
        crate::module!($layer<const D: usize> {} skip { kernel, options });

        impl<const D: usize> $layer<D> {
            /// Windows side by side.
            pub fn new(kernel: [usize; D]) -> Self {
                Self::with(kernel, &$options::default())
            }

            /// With another stride, or padding.
            pub fn with(kernel: [usize; D], options: &$options<D>) -> Self {
                $layer { kernel, options: *options }
            }
        }

        #[doc = concat!("[`Tensor::", stringify!($m1), "`] as a layer.")]
        pub type $one = $layer<1>;
        #[doc = concat!("[`Tensor::", stringify!($m2), "`] as a layer.")]
        pub type $two = $layer<2>;
        #[doc = concat!("[`Tensor::", stringify!($m3), "`] as a layer.")]
        pub type $three = $layer<3>;
        windows!(@forward $layer<1> $m1 kernel; $layer<2> $m2 kernel; $layer<3> $m3 kernel;);
    )*};
    (@forward $($layer:ident<$d:literal> $method:ident $field:ident;)*) => {$(
        impl $layer<$d> {
            #[doc = concat!("[`Tensor::", stringify!($method), "`].")]
            ///
            /// # Errors
            /// As the method.
            #[track_caller]
            pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
                x.$method(self.kernel, &self.options)
            }
        }
    )*};
}
windows! {
    /// The largest element of each window over `D` spatial axes. Called as [`MaxPool1d`], [`MaxPool2d`], [`MaxPool3d`].
    ///
    /// ```
    /// use cotangent::{F32, Tensor, nn::MaxPool2d, ops::MaxPool2dOptions};
    /// let overlapping = MaxPool2d::with([3, 3], &MaxPool2dOptions { stride: Some([2, 2]), padding: [1, 1], ..MaxPool2dOptions::default() });
    /// let x = Tensor::ones([1, 8, 32, 32], F32)?;
    /// assert_eq!(overlapping.forward(&x)?.shape(), &[1, 8, 16, 16]);
    /// assert_eq!(MaxPool2d::new([4, 4]).forward(&x)?.shape(), &[1, 8, 8, 8]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    MaxPool(MaxPoolOptions): MaxPool1d MaxPool2d MaxPool3d, max_pool1d max_pool2d max_pool3d;
    /// The mean of each window over `D` spatial axes. Called as [`AvgPool1d`], [`AvgPool2d`], [`AvgPool3d`].
    AvgPool(AvgPoolOptions): AvgPool1d AvgPool2d AvgPool3d, avg_pool1d avg_pool2d avg_pool3d;
}

macro_rules! adaptive {
    ($($(#[$about:meta])* $layer:ident: $($alias:ident<$d:literal> $method:ident),*;)*) => {$(
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $layer<const D: usize> {
            /// The result's spatial extents.
            pub output: [usize; D],
        }
        crate::module!($layer<const D: usize> {} skip { output });

        $(
            #[doc = concat!("[`Tensor::", stringify!($method), "`] as a layer.")]
            pub type $alias = $layer<$d>;

            impl $layer<$d> {
                #[doc = concat!("[`Tensor::", stringify!($method), "`].")]
                ///
                /// # Errors
                /// As the method.
                #[track_caller]
                pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
                    x.$method(self.output)
                }
            }
        )*
    )*};
}
adaptive! {
    /// The mean of each of as many windows as the result has positions. Called as [`AdaptiveAvgPool1d`], [`AdaptiveAvgPool2d`],
    /// [`AdaptiveAvgPool3d`].
    ///
    /// ```
    /// use cotangent::{F32, Tensor, nn::AdaptiveAvgPool2d};
    /// let x = Tensor::ones([2, 8, 7, 9], F32)?;
    /// assert_eq!(AdaptiveAvgPool2d { output: [1, 1] }.forward(&x)?.shape(), &[2, 8, 1, 1]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    AdaptiveAvgPool: AdaptiveAvgPool1d<1> adaptive_avg_pool1d, AdaptiveAvgPool2d<2> adaptive_avg_pool2d, AdaptiveAvgPool3d<3> adaptive_avg_pool3d;
    /// The largest element of each of as many windows as the result has positions. Called as [`AdaptiveMaxPool1d`], [`AdaptiveMaxPool2d`],
    /// [`AdaptiveMaxPool3d`].
    AdaptiveMaxPool: AdaptiveMaxPool1d<1> adaptive_max_pool1d, AdaptiveMaxPool2d<2> adaptive_max_pool2d, AdaptiveMaxPool3d<3> adaptive_max_pool3d;
}

/// [`Tensor::interpolate`] as a layer: images of another size.
///
/// ```
/// use cotangent::{F32, Tensor, nn::Upsample, ops::InterpolateMode};
/// let twice = Upsample::new(2.0, InterpolateMode::Linear);
/// assert_eq!(twice.forward(&Tensor::ones([1, 8, 7, 5], F32)?)?.shape(), &[1, 8, 14, 10]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Upsample {
    /// Extents or factors of the spatial axes.
    pub to: InterpolateSize,
    /// Mode, `align_corners`, `antialias`.
    pub options: InterpolateOptions,
}
crate::module!(Upsample {} skip { to, options });

impl Upsample {
    /// To extents or by factors.
    pub fn new(to: impl Into<InterpolateSize>, mode: InterpolateMode) -> Self {
        Upsample { to: to.into(), options: InterpolateOptions { mode, ..InterpolateOptions::default() } }
    }

    /// [`Tensor::interpolate`].
    ///
    /// # Errors
    /// As the method.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.interpolate(self.to.clone(), &self.options)
    }
}

/// [`Tensor::pixel_shuffle`] as a layer: channels become positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelShuffle {
    /// How many times finer the result is along both axes.
    pub factor: usize,
}
crate::module!(PixelShuffle {} skip { factor });

impl PixelShuffle {
    /// [`Tensor::pixel_shuffle`].
    ///
    /// # Errors
    /// As the method.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.pixel_shuffle(self.factor)
    }
}

/// [`Tensor::local_response_norm`] as a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LocalResponseNorm {
    /// Neighbouring channels that are looked at, the channel itself among them.
    pub size: usize,
    /// How much their mean square counts.
    pub alpha: f64,
    /// The exponent.
    pub beta: f64,
    /// What is divided by where all is zero.
    pub k: f64,
}
crate::module!(LocalResponseNorm {} skip { size, alpha, beta, k });

impl LocalResponseNorm {
    /// PyTorch's defaults: `alpha` 1e-4, `beta` 0.75, `k` 1.
    pub fn new(size: usize) -> Self {
        LocalResponseNorm { size, alpha: 1e-4, beta: 0.75, k: 1.0 }
    }

    /// [`Tensor::local_response_norm`].
    ///
    /// # Errors
    /// As the method.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.local_response_norm(self.size, self.alpha, self.beta, self.k)
    }
}

/// All axes but the first become one: what stands before the first linear layer behind convolutions.
///
/// ```
/// use cotangent::{F32, Key, Tensor, nn::{Activation, Conv2d, Flatten, Layer, Linear, MaxPool2d}};
/// let conv = Conv2d::new(1, 4, [3, 3], F32, Key::new(1))?;
/// let net = (conv, Activation::Relu, MaxPool2d::new([2, 2]), Flatten, Linear::new(4 * 13 * 13, 10, F32, Key::new(2))?);
/// assert_eq!(net.call(&Tensor::ones([5, 1, 28, 28], F32)?, None)?.shape(), &[5, 10]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flatten;
crate::module!(Flatten {});

impl Flatten {
    /// [`Tensor::flatten`] from the second axis on.
    ///
    /// # Errors
    /// Shape error for a tensor of less than two axes.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.flatten(1, -1)
    }
}
