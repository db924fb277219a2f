//! Norms of channels as layers: of a batch, of groups, of each channel by itself.

use super::Pass;
use super::layers::{must_divide, own};
use crate::dtype::{DType, F32};
use crate::error::{Error, Result};
use crate::module::{Buffer, Param};
use crate::shape::Axis;
use crate::tensor::Tensor;
use smallvec::SmallVec;
use std::panic::Location;

/// Batch normalisation of `[batch, channels, ..]`: by the batch's statistics in training, by running ones in evaluation.
///
/// Which of them is said at each call, by a [`Pass`]. A function that a gradient is taken of cannot write into a model: the pass notes
/// the batch's statistics, and [`Pass::update`] writes them afterwards.
///
/// ```
/// use cotangent::{F32, Key, Tensor, nn::{BatchNorm2d, Pass}, value_and_grad};
/// let mut norm = BatchNorm2d::new(3, F32)?;
/// let x = Tensor::randn([8, 3, 4, 4], F32, Key::new(1))?;
/// let mut pass = Pass::train();
/// let (_, grads) = value_and_grad(&norm, |m| m.forward_in(&x, &mut pass)?.powi(3)?.mean(..))?;
/// pass.update(&mut norm)?;
/// assert_eq!(norm.forward(&x)?.shape(), x.shape()); // evaluation
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct BatchNorm {
    /// `[channels]`.
    pub weight: Param,
    /// `[channels]`.
    pub bias: Param,
    /// `[channels]`: means of past batches, the latest of which counts `momentum`.
    pub running_mean: Buffer,
    /// `[channels]`: the same of their unbiased variances.
    pub running_var: Buffer,
    /// Added to the variance.
    pub eps: f64,
    /// How much a batch counts in the running statistics.
    pub momentum: f64,
}
crate::module!(BatchNorm { weight, bias, running_mean, running_var } skip { eps, momentum });

/// Batch normalisation of `[batch, channels]` or `[batch, channels, length]`.
pub type BatchNorm1d = BatchNorm;
/// Batch normalisation of `[batch, channels, height, width]`.
pub type BatchNorm2d = BatchNorm;
/// Batch normalisation of `[batch, channels, depth, height, width]`.
pub type BatchNorm3d = BatchNorm;

impl BatchNorm {
    /// Weight one, bias zero, running mean zero and variance one, eps 1e-5, momentum 0.1.
    ///
    /// # Errors
    /// Dtype error for integers; out of memory.
    #[track_caller]
    pub fn new(channels: usize, dtype: DType) -> Result<Self> {
        let (weight, bias) = ones_and_zeros("batch_norm", channels, dtype)?;
        Ok(BatchNorm {
            running_mean: Buffer::new(Tensor::zeros([channels], dtype)?),
            running_var: Buffer::new(Tensor::ones([channels], dtype)?),
            weight,
            bias,
            eps: 1e-5,
            momentum: 0.1,
        })
    }

    /// Normalises by the running statistics: evaluation.
    ///
    /// # Errors
    /// Shape error when the second axis is not `channels`.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.batch_norm_with(&self.running_mean, &self.running_var, Some(&self.weight), Some(&self.bias), self.eps);
        y.map_err(|e| own(e, &self.weight, Some(&self.bias)))
    }

    /// Normalises by the statistics of the batch where the pass is one of training, and notes what the running ones become
    /// (`running + momentum · (batch − running)`, in `f32` at least, the variance unbiased); by the running ones otherwise.
    ///
    /// # Errors
    /// Shape error when the second axis is not `channels`, or in training a channel has less than two values; argument error for a momentum outside
    /// `[0, 1]`.
    #[track_caller]
    pub fn forward_in(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        if !pass.is_training() {
            return self.forward(x);
        }
        if !(0.0..=1.0).contains(&self.momentum) {
            let text = format!("momentum is the share of a batch in the running statistics, between 0 and 1; found {}", self.momentum);
            return Err(Error::argument(text).in_op("batch_norm", Location::caller()));
        }
        let named = |e| own(e, &self.weight, Some(&self.bias));
        let y = x.batch_norm(Some(&self.weight), Some(&self.bias), self.eps).map_err(named)?;
        let axes: SmallVec<[Axis; 4]> = (0..x.rank() as isize).filter(|&a| a != 1).map(Axis).collect();
        let x = x.detach();
        // Statistics of a half type would be rounded to it before they are averaged.
        let x = if x.dtype().is_half() { x.cast(F32)? } else { x };
        pass.updates.move_towards(&self.running_mean, &x.mean(&axes[..])?, self.momentum)?;
        pass.updates.move_towards(&self.running_var, &x.var(&axes[..], 1.0)?, self.momentum)?;
        Ok(y)
    }
}

/// Group normalisation of `[batch, channels, ..]`, with a weight and a bias for each channel.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    /// `[channels]`.
    pub weight: Param,
    /// `[channels]`.
    pub bias: Param,
    /// Into how many groups channels are divided.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
}
crate::module!(GroupNorm { weight, bias } skip { groups, eps });

impl GroupNorm {
    /// Weight one, bias zero, eps 1e-5.
    ///
    /// # Errors
    /// Argument error unless the channels divide into the groups; dtype error for integers; out of memory.
    #[track_caller]
    pub fn new(groups: usize, channels: usize, dtype: DType) -> Result<Self> {
        let at = Location::caller();
        must_divide("channels", channels, "groups", groups).map_err(|e| e.in_op("group_norm", at))?;
        let (weight, bias) = ones_and_zeros("group_norm", channels, dtype)?;
        Ok(GroupNorm { weight, bias, groups, eps: 1e-5 })
    }

    /// Normalises each group of channels.
    ///
    /// # Errors
    /// Shape error when the second axis is not `channels`.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.eps);
        y.map_err(|e| own(e, &self.weight, Some(&self.bias)))
    }
}

/// Normalisation of each channel of each image of `[batch, channels, ..]`, with a weight and a bias for each channel where they are there.
#[derive(Clone, Debug)]
pub struct InstanceNorm {
    /// `[channels]`.
    pub weight: Option<Param>,
    /// `[channels]`.
    pub bias: Option<Param>,
    /// Added to the variance.
    pub eps: f64,
}
crate::module!(InstanceNorm { weight, bias } skip { eps });

/// Instance normalisation of `[batch, channels, length]`.
pub type InstanceNorm1d = InstanceNorm;
/// Instance normalisation of `[batch, channels, height, width]`.
pub type InstanceNorm2d = InstanceNorm;
/// Instance normalisation of `[batch, channels, depth, height, width]`.
pub type InstanceNorm3d = InstanceNorm;

impl InstanceNorm {
    /// Weight one, bias zero, eps 1e-5.
    ///
    /// # Errors
    /// Dtype error for integers; out of memory.
    #[track_caller]
    pub fn new(channels: usize, dtype: DType) -> Result<Self> {
        let (weight, bias) = ones_and_zeros("instance_norm", channels, dtype)?;
        Ok(InstanceNorm { weight: Some(weight), bias: Some(bias), eps: 1e-5 })
    }

    /// Without parameters: PyTorch's default.
    pub fn plain() -> Self {
        InstanceNorm { weight: None, bias: None, eps: 1e-5 }
    }

    /// Normalises each channel.
    ///
    /// # Errors
    /// Shape error when the second axis is not that of the parameters.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.instance_norm(self.weight.as_deref(), self.bias.as_deref(), self.eps);
        y.map_err(|e| if let Some(w) = &self.weight { own(e, w, self.bias.as_ref()) } else { e })
    }
}

#[track_caller]
fn ones_and_zeros(name: &'static str, channels: usize, dtype: DType) -> Result<(Param, Param)> {
    if !dtype.is_float() {
        return Err(Error::dtype(format!("weights are floats, found {dtype}")).in_op(name, Location::caller()));
    }
    Ok((Tensor::ones([channels], dtype)?.into(), Tensor::zeros([channels], dtype)?.into()))
}
