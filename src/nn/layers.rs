//! The small layers: linear, embedding, norms, and the choice of an activation.

use super::Init;
use crate::dtype::{DType, U8};
use crate::error::{Error, Result};
use crate::module::Param;
use crate::ops::{Blocks, CrossEntropyOptions};
use crate::rng::Key;
use crate::tensor::Tensor;

/// `y = x · weightᵀ + bias`, with `weight` of shape `[out, in]`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`; or of `u8`, `[out, bytes]`, a frozen matrix in blocks as [`Tensor::quant_linear`] takes it.
    pub weight: Param,
    /// `[out]`.
    pub bias: Option<Param>,
}
crate::module!(Linear { weight, bias });

/// What [`Linear::with`] may be told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearOptions {
    /// Whether there is a bias.
    pub bias: bool,
    /// How the weights are drawn. The bias is zero, but for [`Init::Torch`], the default, which draws it as the weights.
    pub init: Init,
}

impl Default for LinearOptions {
    fn default() -> Self {
        LinearOptions { bias: true, init: Init::Torch }
    }
}

impl Linear {
    /// PyTorch's default: weights and bias uniform in ±1/√in.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn new(inputs: usize, outputs: usize, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        Self::with(inputs, outputs, dtype, key, &LinearOptions::default())
    }

    /// [`Linear::new`] without a bias: `y = x · weightᵀ`.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn no_bias(inputs: usize, outputs: usize, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        Self::with(inputs, outputs, dtype, key, &LinearOptions { bias: false, ..LinearOptions::default() })
    }

    /// With another rule for the weights, with a bias or without.
    ///
    /// # Errors
    /// Argument error for a gain or deviation that is negative or not finite; dtype error for integers; out of memory.
    #[track_caller]
    pub fn with(inputs: usize, outputs: usize, dtype: DType, key: impl Into<Key>, options: &LinearOptions) -> Result<Self> {
        let (key, LinearOptions { bias, init }) = (key.into(), options);
        if *init != Init::Torch {
            let weight = init.tensor([outputs, inputs], dtype, key)?.into();
            return Ok(Linear { weight, bias: if *bias { Some(zeros(outputs, dtype)?) } else { None } });
        }
        if !dtype.is_float() {
            let e = Error::dtype(format!("weights are floats, found {dtype}"));
            return Err(e.in_op("linear", std::panic::Location::caller()));
        }
        let bound = if inputs == 0 { 1.0 } else { 1.0 / (inputs as f64).sqrt() };
        Ok(Linear {
            weight: Tensor::uniform([outputs, inputs], -bound..bound, dtype, key.fold(0))?.into(),
            bias: if *bias { Some(Tensor::uniform([outputs], -bound..bound, dtype, key.fold(1))?.into()) } else { None },
        })
    }

    /// `[.., in]` to `[.., out]`.
    ///
    /// # Errors
    /// Shape error when the last axis is not `in`.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        affine(x, &self.weight, self.bias.as_deref()).map_err(|e| own(e, &self.weight, self.bias.as_ref()))
    }
}

/// A table of vectors, looked up by token id.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// `[vocabulary, width]`.
    pub weight: Param,
}
crate::module!(Embedding { weight });

impl Embedding {
    /// Normal vectors of standard deviation `std`.
    ///
    /// # Errors
    /// Argument error unless `std` is finite and not negative; out of memory.
    #[track_caller]
    pub fn normal(vocabulary: usize, width: usize, std: f64, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        let (key, at) = (key.into(), std::panic::Location::caller());
        if !(std >= 0.0 && std.is_finite()) {
            return Err(Error::argument(format!("std must be finite and not negative, found {std}")).in_op("embedding", at));
        }
        Ok(Embedding { weight: Tensor::randn([vocabulary, width], dtype, key)?.mul_scalar(std)?.into() })
    }

    /// Ids of any shape to vectors: `[..]` to `[.., width]`.
    ///
    /// # Errors
    /// Index error for an id outside the vocabulary.
    #[track_caller]
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let y = self.weight.embedding(ids, None).map_err(|e| own(e, &self.weight, None))?;
        let Some(change) = self.weight.low_rank() else { return Ok(y) };
        let b = change.b.cast(y.dtype())?.embedding(ids, None)?;
        y.add(&b.matmul(&change.a.cast(y.dtype())?)?.mul_scalar(change.scale)?)
    }

    /// The table as an output layer: `[.., width]` to logits `[.., vocabulary]`. A model whose head is tied to its embedding
    /// has one table and calls both functions; its gradient is the sum over both uses.
    ///
    /// # Errors
    /// Shape error when the last axis is not the width.
    #[track_caller]
    pub fn unembed(&self, x: &Tensor) -> Result<Tensor> {
        affine(x, &self.weight, None).map_err(|e| own(e, &self.weight, None))
    }

    /// Mean cross-entropy of [`unembed`](Embedding::unembed) with the targets, whose logits never exist as a whole.
    ///
    /// # Errors
    /// As [`Tensor::linear_cross_entropy`].
    #[track_caller]
    pub fn loss(&self, x: &Tensor, targets: &Tensor) -> Result<Tensor> {
        // The fused loss supports neither changes of low rank nor quantised weights.
        if self.weight.dtype() == U8 || self.weight.low_rank().is_some() {
            return self.unembed(x)?.cross_entropy(targets);
        }
        x.linear_cross_entropy(&self.weight, None, targets, &CrossEntropyOptions::default())
    }
}

/// `x · Wᵀ + bias` with the change of low rank that `W [out, in]` may have, computed as two thin products.
#[track_caller]
fn affine(x: &Tensor, weight: &Param, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = if weight.dtype() == U8 { in_blocks(x, weight, bias)? } else { x.linear(weight, bias)? };
    let Some(change) = weight.low_rank() else { return Ok(y) };
    // Its own parameters may be wider than a frozen matrix of half precision.
    let thin = x.linear(&change.a.cast(x.dtype())?, None)?;
    y.add(&thin.linear(&change.b.cast(x.dtype())?, None)?.mul_scalar(change.scale)?)
}

/// The same with a matrix that is stored in blocks, `[out, bytes]` of `u8`.
#[track_caller]
fn in_blocks(x: &Tensor, weight: &Param, bias: Option<&Tensor>) -> Result<Tensor> {
    let ends = (x.shape().dims().last(), weight.shape().dims().last());
    let kind = if let (Some(&k), Some(&bytes)) = ends { Blocks::of_row(k, bytes) } else { None };
    let Some(kind) = kind else {
        return Err(Error::shape(format!("x {} does not fit rows of {} bytes in blocks", x.shape(), weight.shape())));
    };
    let y = x.quant_linear(weight, kind)?;
    bias.map_or(Ok(y.clone()), |b| y.add(&b.cast(y.dtype())?))
}

/// Layer normalisation over the last axis, with a weight and perhaps a bias.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// `[width]`.
    pub weight: Param,
    /// `[width]`.
    pub bias: Option<Param>,
    /// Added to the variance.
    pub eps: f64,
}
crate::module!(LayerNorm { weight, bias } skip { eps });

impl LayerNorm {
    /// Weight one, bias zero, eps 1e-5.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn new(width: usize, dtype: DType) -> Result<Self> {
        Ok(LayerNorm { bias: Some(zeros(width, dtype)?), ..Self::no_bias(width, dtype)? })
    }

    /// [`LayerNorm::new`] without a bias.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn no_bias(width: usize, dtype: DType) -> Result<Self> {
        Ok(LayerNorm { weight: Tensor::ones([width], dtype)?.into(), bias: None, eps: 1e-5 })
    }

    /// Normalises the last axis.
    ///
    /// # Errors
    /// Shape error when the last axis is not `width`.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.layer_norm(1, Some(&self.weight), self.bias.as_deref(), self.eps).map_err(|e| own(e, &self.weight, self.bias.as_ref()))
    }

    /// `s = x + branch` and its norm in one pass: `(norm of s, s)`, with the bits of the sum and [`forward`](Self::forward).
    ///
    /// # Errors
    /// Shape error when the shapes differ or the last axis is not `width`.
    #[track_caller]
    pub fn forward_sum(&self, x: &Tensor, branch: &Tensor) -> Result<(Tensor, Tensor)> {
        let y = x.add_layer_norm(branch, 1, Some(&self.weight), self.bias.as_deref(), self.eps);
        y.map_err(|e| own(e, &self.weight, self.bias.as_ref()))
    }
}

/// Root-mean-square normalisation over the last axis, with a weight: `x / √(mean(x²) + eps) · weight`.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    /// `[width]`.
    pub weight: Param,
    /// Added to the mean square.
    pub eps: f64,
}
crate::module!(RmsNorm { weight } skip { eps });

impl RmsNorm {
    /// Weight one.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn new(width: usize, eps: f64, dtype: DType) -> Result<Self> {
        Ok(RmsNorm { weight: Tensor::ones([width], dtype)?.into(), eps })
    }

    /// Normalises the last axis.
    ///
    /// # Errors
    /// Shape error when the last axis is not `width`.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.rms_norm(Some(&self.weight), self.eps).map_err(|e| own(e, &self.weight, None))
    }

    /// `s = x + branch` and its norm in one pass: `(norm of s, s)`, with the bits of the sum and [`forward`](Self::forward).
    ///
    /// # Errors
    /// Shape error when the shapes differ or the last axis is not `width`.
    #[track_caller]
    pub fn forward_sum(&self, x: &Tensor, branch: &Tensor) -> Result<(Tensor, Tensor)> {
        x.add_rms_norm(branch, Some(&self.weight), self.eps).map_err(|e| own(e, &self.weight, None))
    }
}

/// A refusal with the layer's own parameters, unless the tape knows their names in the model.
#[cold]
pub(super) fn own(e: Error, weight: &Param, bias: Option<&Param>) -> Error {
    e.with_own_parameters(|| {
        let both = [("weight", Some(weight)), ("bias", bias)];
        both.iter().filter_map(|&(name, p)| p.map(|p| (name.to_owned(), format!("{}{}", p.dtype(), p.shape())))).collect()
    })
}

#[track_caller]
fn zeros(n: usize, dtype: DType) -> Result<Param> {
    Ok(Tensor::zeros([n], dtype)?.into())
}

/// The nonlinearity of an MLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Exact GELU (by erf), as nanoGPT uses it.
    #[default]
    Gelu,
    /// The tanh approximation, as GPT-2's own weights expect it.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// max(x, 0)² (So et al. 2021).
    ReluSquared,
    /// x · sigmoid(x).
    Silu,
    /// Hyperbolic tangent.
    Tanh,
    /// 1 / (1 + e⁻ˣ).
    Sigmoid,
}

impl Activation {
    /// Applies it to every element.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Activation::Gelu => x.gelu(),
            Activation::GeluTanh => x.gelu_tanh(),
            Activation::Relu => x.relu(),
            Activation::ReluSquared => x.relu_squared(),
            Activation::Silu => x.silu(),
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => x.sigmoid(),
        }
    }

    /// `f(gate)·up`: one op each way for SwiGLU and GEGLU, two for the others.
    ///
    /// # Errors
    /// Shape error when the shapes differ; dtype error for integers.
    #[track_caller]
    pub fn gate(self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        match self {
            Activation::Gelu => gate.geglu(up),
            Activation::GeluTanh => gate.geglu_tanh(up),
            Activation::Silu => gate.swiglu(up),
            Activation::Relu | Activation::ReluSquared | Activation::Tanh | Activation::Sigmoid => self.apply(gate)?.mul(up),
        }
    }
}

/// An argument that must divide another.
pub(crate) fn must_divide(what: &str, n: usize, by_what: &str, by: usize) -> Result<usize> {
    if by == 0 || !n.is_multiple_of(by) {
        return Err(Error::argument(format!("{what} ({n}) must be a multiple of {by_what} ({by})")));
    }
    Ok(n / by)
}
