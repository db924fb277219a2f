//! Convolutions as layers.

use super::layers::{must_divide, own};
use super::{Fans, Init};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::module::Param;
use crate::ops::{ConvOptions, ConvTransposeOptions};
use crate::rng::Key;
use crate::shape::Shape;
use crate::tensor::Tensor;
use std::panic::Location;

/// A convolution over `D` spatial axes: [`Tensor::conv2d`] with a weight and perhaps a bias. Called as [`Conv1d`], [`Conv2d`], [`Conv3d`].
///
/// ```
/// use cotangent::{F32, Key, Tensor, nn::Conv2d, ops::Conv2dOptions};
/// let options = Conv2dOptions { stride: [2, 2], padding: 1.into(), ..Conv2dOptions::default() };
/// let layer = Conv2d::with(3, 8, [3, 3], F32, Key::new(1), &options)?;
/// assert_eq!(layer.forward(&Tensor::ones([5, 3, 32, 32], F32)?)?.shape(), &[5, 8, 16, 16]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Conv<const D: usize> {
    /// `[out, in / groups, kernel..]`.
    pub weight: Param,
    /// `[out]`.
    pub bias: Option<Param>,
    /// Stride, padding, dilation, groups.
    pub options: ConvOptions<D>,
}
crate::module!(Conv<const D: usize> { weight, bias } skip { options });

/// A convolution of `[batch, channels, length]`.
pub type Conv1d = Conv<1>;
/// A convolution of `[batch, channels, height, width]`.
pub type Conv2d = Conv<2>;
/// A convolution of `[batch, channels, depth, height, width]`.
pub type Conv3d = Conv<3>;

/// A transposed convolution over `D` spatial axes: [`Tensor::conv_transpose2d`] with a weight and perhaps a bias. Called as
/// [`ConvTranspose1d`], [`ConvTranspose2d`], [`ConvTranspose3d`].
///
/// ```
/// use cotangent::{F32, Key, Tensor, nn::ConvTranspose2d, ops::ConvTranspose2dOptions};
/// let twice = ConvTranspose2dOptions { stride: [2, 2], ..ConvTranspose2dOptions::default() };
/// let layer = ConvTranspose2d::with(8, 3, [2, 2], F32, Key::new(1), &twice)?;
/// assert_eq!(layer.forward(&Tensor::ones([5, 8, 16, 16], F32)?)?.shape(), &[5, 3, 32, 32]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ConvTranspose<const D: usize> {
    /// `[in, out / groups, kernel..]`.
    pub weight: Param,
    /// `[out]`.
    pub bias: Option<Param>,
    /// Stride, padding, output padding, dilation, groups.
    pub options: ConvTransposeOptions<D>,
}
crate::module!(ConvTranspose<const D: usize> { weight, bias } skip { options });

/// A transposed convolution of `[batch, channels, length]`.
pub type ConvTranspose1d = ConvTranspose<1>;
/// A transposed convolution of `[batch, channels, height, width]`.
pub type ConvTranspose2d = ConvTranspose<2>;
/// A transposed convolution of `[batch, channels, depth, height, width]`.
pub type ConvTranspose3d = ConvTranspose<3>;

/// PyTorch's weight of these channels and its bias: uniform in ±1/√fan, where the fan is the second extent times the kernel's elements.
fn drawn(channels: [usize; 2], kernel: &[usize], outputs: usize, dtype: DType, key: Key) -> Result<(Param, Param)> {
    if !dtype.is_float() {
        return Err(Error::dtype(format!("weights are floats, found {dtype}")));
    }
    let shape: Shape = channels.into_iter().chain(kernel.iter().copied()).collect();
    let fans = Fans::of(&shape)?;
    let weight = Init::Torch.tensor_with(fans, shape, dtype, key.fold(0))?;
    Ok((weight.into(), Init::Torch.tensor_with(fans, [outputs], dtype, key.fold(1))?.into()))
}

macro_rules! constructors {
    ($layer:ident, $options:ident, $name:literal, $channels:expr) => {
        impl<const D: usize> $layer<D> {
            /// PyTorch's default, with stride 1 and without padding: weight and bias uniform in ±1/√fan.
            ///
            /// # Errors
            /// Dtype error for integers; out of memory.
            #[track_caller]
            pub fn new(inputs: usize, outputs: usize, kernel: [usize; D], dtype: DType, key: impl Into<Key>) -> Result<Self> {
                Self::with(inputs, outputs, kernel, dtype, key, &$options::default())
            }

            /// With another stride, padding, dilation, or groups.
            ///
            /// # Errors
            /// Argument error for channels that do not divide into the groups; dtype error for integers; out of memory.
            #[track_caller]
            pub fn with(
                inputs: usize,
                outputs: usize,
                kernel: [usize; D],
                dtype: DType,
                key: impl Into<Key>,
                options: &$options<D>,
            ) -> Result<Self> {
                let (key, at) = (key.into(), Location::caller());
                let made = || {
                    let each = [
                        must_divide("inputs", inputs, "groups", options.groups)?,
                        must_divide("outputs", outputs, "groups", options.groups)?,
                    ];
                    drawn($channels([inputs, outputs], each), &kernel, outputs, dtype, key)
                };
                let (weight, bias) = made().map_err(|e: Error| e.rename_op($name).called_at(at))?;
                Ok($layer { weight, bias: Some(bias), options: *options })
            }

            #[doc = concat!("[`", stringify!($layer), "::with`] without a bias.")]
            ///
            /// # Errors
            #[doc = concat!("As [`", stringify!($layer), "::with`].")]
            #[track_caller]
            pub fn no_bias(
                inputs: usize,
                outputs: usize,
                kernel: [usize; D],
                dtype: DType,
                key: impl Into<Key>,
                options: &$options<D>,
            ) -> Result<Self> {
                Ok($layer { bias: None, ..Self::with(inputs, outputs, kernel, dtype, key, options)? })
            }
        }
    };
}
constructors!(Conv, ConvOptions, "conv", |[_, outputs]: [usize; 2], [inputs, _]: [usize; 2]| [outputs, inputs]);
constructors!(ConvTranspose, ConvTransposeOptions, "conv_transpose", |[inputs, _]: [usize; 2], [_, outputs]: [usize; 2]| [inputs, outputs]);

macro_rules! forward {
    ($($layer:ident<$d:literal> $method:ident;)*) => {$(
        impl $layer<$d> {
            #[doc = concat!("[`Tensor::", stringify!($method), "`] of the layer's weight and bias.")]
            ///
            /// # Errors
            /// Shape error when the channels are not the weight's, or the kernel is larger than the padded input.
            #[track_caller]
            pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
                x.$method(&self.weight, self.bias.as_deref(), &self.options).map_err(|e| own(e, &self.weight, self.bias.as_ref()))
            }
        }
    )*};
}
forward! {
    Conv<1> conv1d;
    Conv<2> conv2d;
    Conv<3> conv3d;
    ConvTranspose<1> conv_transpose1d;
    ConvTranspose<2> conv_transpose2d;
    ConvTranspose<3> conv_transpose3d;
}
