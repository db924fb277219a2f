//! Models without memory, to be filled: from a file, or with a fresh model's random numbers.

use crate::dtype::DType;
use crate::error::{Result, bail};
use crate::module::{Module, Param, try_walk};
use crate::nn::{self, Attend, Embedding, LayerNorm, Linear, RmsNorm};
use crate::ops::SdpaOptions;
use crate::rng::Key;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// Queries, keys and values of attention that sees everything.
#[derive(Clone, Debug)]
pub(super) struct Projections {
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
}
crate::module!(Projections { query, key, value });

impl Projections {
    /// What `heads` heads see of `x [batch, time, width]`, in a row; `mask [batch, 1, 1, time]`.
    pub fn attend(&self, x: &Tensor, heads: usize, mask: Option<&Tensor>) -> Result<Tensor> {
        let &[batch, time, width] = x.shape().dims() else { bail!(shape, "expected [batch, time, width], found {}", x.shape()) };
        let split = |y: Tensor| y.reshape([batch, time, heads, width / heads])?.permute([0, 2, 1, 3]);
        let (q, k, v) = (split(self.query.forward(x)?)?, split(self.key.forward(x)?)?, split(self.value.forward(x)?)?);
        nn::attend(&q, k, v, SdpaOptions::default(), Attend { mask, ..Attend::default() })
    }
}

/// A matrix under the name `dense`: the first of an MLP.
#[derive(Clone, Debug)]
pub(super) struct Intermediate {
    pub dense: Linear,
}
crate::module!(Intermediate { dense });

/// Makes layers whose parameters have shape and dtype, but no memory of their own: one zero, broadcast.
#[derive(Clone, Copy)]
pub(super) struct Skeleton(pub DType);

impl Skeleton {
    pub fn param(self, shape: impl Into<Shape>) -> Result<Param> {
        Ok(Tensor::zeros((), self.0)?.expand(shape)?.into())
    }

    pub fn linear(self, inputs: usize, outputs: usize, bias: bool) -> Result<Linear> {
        let bias = if bias { Some(self.param([outputs])?) } else { None };
        Ok(Linear { weight: self.param([outputs, inputs])?, bias })
    }

    pub fn projections(self, width: usize, bias: bool) -> Result<Projections> {
        let one = || self.linear(width, width, bias);
        Ok(Projections { query: one()?, key: one()?, value: one()? })
    }

    pub fn embedding(self, rows: usize, width: usize) -> Result<Embedding> {
        Ok(Embedding { weight: self.param([rows, width])? })
    }

    /// The output matrix of a model whose token table is not it.
    pub fn head(self, tied: bool, width: usize, vocabulary: usize) -> Result<Option<Linear>> {
        if tied { Ok(None) } else { self.linear(width, vocabulary, false).map(Some) }
    }

    pub fn layer_norm(self, width: usize, eps: f64) -> Result<LayerNorm> {
        Ok(LayerNorm { weight: self.param([width])?, bias: Some(self.param([width])?), eps })
    }

    pub fn rms_norm(self, width: usize, eps: f64) -> Result<RmsNorm> {
        Ok(RmsNorm { weight: self.param([width])?, eps })
    }
}

/// The numbers of a fresh model, as Hugging Face draws them: matrices normal with σ = 0.02 (those that write into the residual stream
/// divided by `√(2·layers)` where `residual` names them), norms one, biases zero.
pub(super) fn fresh<M: Module>(model: &mut M, layers: usize, key: Key, residual: impl Fn(&str) -> bool) -> Result<()> {
    let mut n = 0;
    try_walk(model, |name, leaf| {
        n += 1;
        let (shape, dtype) = (leaf.tensor.shape().clone(), leaf.tensor.dtype());
        *leaf.tensor = if shape.rank() >= 2 {
            let std = if residual(name) { 0.02 / (2.0 * layers as f64).sqrt() } else { 0.02 };
            Tensor::randn(shape, dtype, key.fold(n))?.mul_scalar(std)?
        } else if name.ends_with("bias") {
            Tensor::zeros(shape, dtype)?
        } else {
            Tensor::ones(shape, dtype)?
        };
        Ok(())
    })
}
