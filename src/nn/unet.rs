//! A U-Net (Ronneberger et al. 2015): down by halves, up again, with what was on the way down beside it.

use super::{BatchNorm2d, Conv2d, ConvTranspose2d, Pass};
use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::memory;
use crate::ops::{Conv2dOptions, ConvTranspose2dOptions, MaxPool2dOptions};
use crate::rng::Key;
use crate::tensor::Tensor;
use std::panic::Location;

/// Sizes of a [`UNet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UNetConfig {
    /// Channels of an image.
    pub channels: usize,
    /// Channels that come out, at each pixel.
    pub classes: usize,
    /// Channels at the full extents; each halving of the extents doubles them.
    pub width: usize,
    /// How often the extents are halved.
    pub depth: usize,
}

impl Default for UNetConfig {
    /// The article's: 64 channels, four halvings; one channel in and two out.
    fn default() -> Self {
        UNetConfig { channels: 1, classes: 2, width: 64, depth: 4 }
    }
}

/// Two convolutions of 3×3 that keep the extents, each with its norm and a rectifier.
#[derive(Clone, Debug)]
pub struct DoubleConv {
    /// 3×3.
    pub conv1: Conv2d,
    /// Of `conv1`.
    pub bn1: BatchNorm2d,
    /// 3×3.
    pub conv2: Conv2d,
    /// Of `conv2`.
    pub bn2: BatchNorm2d,
}
crate::module!(DoubleConv { conv1, bn1, conv2, bn2 });

impl DoubleConv {
    /// Fresh weights, PyTorch's default.
    ///
    /// # Errors
    /// Dtype error for integers; out of memory.
    #[track_caller]
    pub fn new(inputs: usize, outputs: usize, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        let key = key.into();
        let options = Conv2dOptions { padding: 1.into(), ..Conv2dOptions::default() };
        Ok(DoubleConv {
            conv1: Conv2d::no_bias(inputs, outputs, [3, 3], dtype, key.fold(0), &options)?,
            bn1: BatchNorm2d::new(outputs, dtype)?,
            conv2: Conv2d::no_bias(outputs, outputs, [3, 3], dtype, key.fold(1), &options)?,
            bn2: BatchNorm2d::new(outputs, dtype)?,
        })
    }

    /// From `[batch, in, height, width]` to `[batch, out, height, width]`.
    ///
    /// # Errors
    /// Shape error for other channels.
    #[track_caller]
    pub fn forward_in(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let x = self.bn1.forward_in(&self.conv1.forward(x)?, pass)?.relu()?;
        self.bn2.forward_in(&self.conv2.forward(&x)?, pass)?.relu()
    }
}

/// The way up by one halving: a transposed convolution of 2×2, what was there on the way down beside it, two convolutions.
#[derive(Clone, Debug)]
pub struct UNetUp {
    /// Doubles the extents, halves the channels.
    pub up: ConvTranspose2d,
    /// Of both together.
    pub conv: DoubleConv,
}
crate::module!(UNetUp { up, conv });

impl UNetUp {
    /// `x` from below and `skip` from the way down; where `skip` has an odd extent, zeros fill the last row or column.
    ///
    /// # Errors
    /// Shape error when `skip` does not have twice the extents of `x`, or one more.
    #[track_caller]
    pub fn forward_in(&self, x: &Tensor, skip: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let mut x = self.up.forward(x)?;
        let more = |axis: usize| skip.shape().get(axis).and_then(|d| d.checked_sub(x.shape()[axis])).filter(|&m| m <= 1);
        let (Some(rows), Some(columns)) = (more(2), more(3)) else {
            bail!(shape, "unet: `skip` {} does not have the extents of {}, or one more", skip.shape(), x.shape());
        };
        if rows + columns > 0 {
            x = x.pad(&[(0, 0), (0, 0), (0, rows), (0, columns)], 0.0)?;
        }
        self.conv.forward_in(&Tensor::concat(&[skip, &x], 1)?, pass)
    }
}

/// A U-Net: images `[batch, channels, height, width]` to scores of each pixel `[batch, classes, height, width]`, of any extents of at
/// least `2^depth`.
///
/// ```
/// use cotangent::{F32, Key, Tensor, nn::{Pass, UNet, UNetConfig}, value_and_grad};
/// let config = UNetConfig { channels: 3, classes: 2, width: 4, depth: 2 };
/// let mut net = UNet::new(&config, F32, Key::new(1))?;
/// let x = Tensor::randn([2, 3, 9, 10], F32, Key::new(2))?;
/// let y = Tensor::zeros([2, 9, 10], cotangent::I64)?; // the class of each pixel
/// let mut pass = Pass::train();
/// let (_, grads) = value_and_grad(&net, |net| {
///     net.forward_in(&x, &mut pass)?.permute([0, 2, 3, 1])?.cross_entropy(&y) // classes last
/// })?;
/// pass.update(&mut net)?;
/// assert_eq!(net.forward(&x)?.shape(), &[2, 2, 9, 10]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct UNet {
    /// At the full extents, then after each halving.
    pub down: Vec<DoubleConv>,
    /// The way up, from the smallest extents.
    pub up: Vec<UNetUp>,
    /// 1×1, to the classes.
    pub out: Conv2d,
}
crate::module!(UNet { down, up, out });

impl UNet {
    /// Fresh weights, PyTorch's default.
    ///
    /// # Errors
    /// Argument error for a size of 0, or more channels than can be counted; dtype error for integers; out of memory.
    #[track_caller]
    pub fn new(config: &UNetConfig, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        let (key, at) = (key.into(), Location::caller());
        let made = || {
            let c = config;
            if c.channels == 0 || c.classes == 0 || c.width == 0 {
                bail!(argument, "channels ({}), classes ({}) and width ({}) must be at least 1", c.channels, c.classes, c.width);
            }
            let most = u32::try_from(c.depth).ok().and_then(|d| 1usize.checked_shl(d)).and_then(|f| f.checked_mul(c.width));
            let Some(most) = most.filter(|&w| w <= 1 << 24) else {
                bail!(argument, "width {} doubled {} times is beyond 2^24 channels", c.width, c.depth);
            };
            // Before the first weights are drawn: the last ones, 9 · most · 1.5 · most, are nearly half of all.
            memory::ensure(most.saturating_mul(most).saturating_mul(27 * dtype.size()))?;
            let width = |level: usize| c.width << level;
            let (mut down, mut up) = (Vec::new(), Vec::new());
            for level in 0..=c.depth {
                let inputs = if level == 0 { c.channels } else { width(level - 1) };
                memory::push(&mut down, DoubleConv::new(inputs, width(level), dtype, key.fold(level as u64))?)?;
            }
            let twice = ConvTranspose2dOptions { stride: [2, 2], ..ConvTranspose2dOptions::default() };
            for level in (0..c.depth).rev() {
                let key = key.fold(1 << 32 | level as u64);
                let one = UNetUp {
                    up: ConvTranspose2d::with(width(level + 1), width(level), [2, 2], dtype, key.fold(0), &twice)?,
                    conv: DoubleConv::new(2 * width(level), width(level), dtype, key.fold(1))?,
                };
                memory::push(&mut up, one)?;
            }
            Ok(UNet { down, up, out: Conv2d::new(c.width, c.classes, [1, 1], dtype, key.fold(u64::MAX))? })
        };
        made().map_err(|e: Error| e.rename_op("unet").called_at(at))
    }

    /// Scores of each pixel by running statistics: evaluation.
    ///
    /// # Errors
    /// Shape error for another rank, other channels, or extents below `2^depth`.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_in(x, &mut Pass::eval())
    }

    /// Scores of each pixel in a pass.
    ///
    /// # Errors
    /// As [`UNet::forward`].
    #[track_caller]
    pub fn forward_in(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let at = Location::caller();
        let depth = self.up.len() as u32;
        if x.rank() != 4 || x.shape().dims()[2..].iter().any(|&d| d >> depth == 0) {
            let e = Error::shape(format!(
                "images are [batch, channels, height, width] with extents of at least {}, found {}",
                1u64 << depth,
                x.shape()
            ));
            return Err(e.in_op("unet", at));
        }
        let mut levels: Vec<Tensor> = Vec::new();
        let mut x = x.clone();
        for (i, conv) in self.down.iter().enumerate() {
            if i > 0 {
                x = x.max_pool2d([2, 2], &MaxPool2dOptions::default())?;
            }
            x = conv.forward_in(&x, pass)?;
            x.tap(|| format!("down.{i}"));
            memory::push(&mut levels, x.clone())?;
        }
        levels.pop();
        for (i, up) in self.up.iter().enumerate() {
            let Some(skip) = levels.pop() else { bail!(argument, "unet: more ways up than down") };
            x = up.forward_in(&x, &skip, pass)?;
            x.tap(|| format!("up.{i}"));
        }
        self.out.forward(&x)
    }
}

super::sequential::layers_in_a_pass!(DoubleConv, UNet);
