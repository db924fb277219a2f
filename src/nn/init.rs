//! Initialisation of weights: formulas from the fans of a layout.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::rng::Key;
use crate::shape::Shape;
use crate::tensor::Tensor;
use std::f64::consts::SQRT_2;

/// How many inputs an output of a weight sums over, and how many outputs an input feeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fans {
    /// Inputs of one output.
    pub fan_in: usize,
    /// Outputs of one input.
    pub fan_out: usize,
}

impl Fans {
    /// Of a weight `[out, in, kernel..]`: the layout of [`Linear`](super::Linear) and of PyTorch's convolutions.
    ///
    /// # Errors
    /// Shape error for a rank below 2: such a tensor has no fans.
    #[track_caller]
    pub fn of(shape: &Shape) -> Result<Self> {
        let &[outputs, inputs, ref kernel @ ..] = shape.dims() else {
            let text = format!("expected a weight [out, in, ..], found {shape}");
            return Err(Error::shape(text).in_op("init", std::panic::Location::caller()));
        };
        // A shape that no memory holds has fans of at most `usize::MAX`.
        let receptive = kernel.iter().fold(1usize, |n, &d| n.saturating_mul(d));
        Ok(Fans { fan_in: inputs.saturating_mul(receptive), fan_out: outputs.saturating_mul(receptive) })
    }

    /// Of a weight `[in, out]`, as GPT-2's own files store it.
    ///
    /// # Errors
    /// Shape error for a rank other than 2.
    #[track_caller]
    pub fn of_transposed(shape: &Shape) -> Result<Self> {
        let &[inputs, outputs] = shape.dims() else {
            let text = format!("expected a weight [in, out], found {shape}");
            return Err(Error::shape(text).in_op("init", std::panic::Location::caller()));
        };
        Ok(Fans { fan_in: inputs, fan_out: outputs })
    }
}

/// How a weight is drawn. `gain` makes up for the nonlinearity after it: 1 for none, √2 for ReLU ([`Init::he`]), 5/3 for
/// tanh.
///
/// ```
/// use cotangent::{F32, Key, nn::{Init, Linear, LinearOptions}};
/// let he = LinearOptions { init: Init::he(), ..LinearOptions::default() };
/// let layer = Linear::with(300, 200, F32, Key::new(1), &he)?;
/// let spread = layer.weight.square()?.mean(..)?.item()?.sqrt();
/// assert!((spread / (2.0f64 / 300.0).sqrt() - 1.0).abs() < 0.02);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Uniform in `±gain·√(6/(fan_in + fan_out))` (Glorot & Bengio 2010).
    XavierUniform {
        /// Factor of the bound.
        gain: f64,
    },
    /// Normal with `σ = gain·√(2/(fan_in + fan_out))`.
    XavierNormal {
        /// Factor of the deviation.
        gain: f64,
    },
    /// Uniform in `±gain·√(3/fan_in)` (He et al. 2015).
    KaimingUniform {
        /// Factor of the bound.
        gain: f64,
    },
    /// Normal with `σ = gain/√fan_in`.
    KaimingNormal {
        /// Factor of the deviation.
        gain: f64,
    },
    /// Normal.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Normal, cut at `±2·std`: what is left has the standard deviation `0.8796·std`.
    TruncatedNormal {
        /// Standard deviation before the cut.
        std: f64,
    },
    /// PyTorch's default for linear layers: uniform in `±1/√fan_in`.
    Torch,
    /// Zero.
    Zeros,
}

impl Init {
    /// Xavier's uniform without gain.
    pub fn xavier() -> Self {
        Init::XavierUniform { gain: 1.0 }
    }

    /// He's normal for ReLU.
    pub fn he() -> Self {
        Init::KaimingNormal { gain: SQRT_2 }
    }

    /// GPT-2's: normal with σ = 0.02.
    pub fn gpt2() -> Self {
        Init::Normal { std: 0.02 }
    }

    /// GPT-2's for the projections that write to the residual stream, of which a model of `layers` blocks adds up
    /// `2·layers`: σ = 0.02/√(2·layers).
    pub fn gpt2_residual(layers: usize) -> Self {
        Init::Normal { std: 0.02 / (2.0 * layers.max(1) as f64).sqrt() }
    }

    /// A weight `[out, in, ..]` on the CPU.
    ///
    /// # Errors
    /// Shape error for a rank below 2 where fans are needed; argument error for a gain or deviation that is negative or not
    /// finite; dtype error for integers; out of memory.
    #[track_caller]
    pub fn tensor(self, shape: impl Into<Shape>, dtype: DType, key: Key) -> Result<Tensor> {
        let at = std::panic::Location::caller();
        let shape = shape.into();
        let fans = match self {
            Init::Normal { .. } | Init::TruncatedNormal { .. } | Init::Zeros => Fans { fan_in: 1, fan_out: 1 },
            _ => Fans::of(&shape).map_err(|e| e.called_at(at))?,
        };
        self.draw(shape, fans, dtype, key).map_err(|e| e.called_at(at))
    }

    /// A weight whose fans are those given, whatever its layout.
    ///
    /// # Errors
    /// As [`Init::tensor`].
    #[track_caller]
    pub fn tensor_with(self, fans: Fans, shape: impl Into<Shape>, dtype: DType, key: Key) -> Result<Tensor> {
        let at = std::panic::Location::caller();
        self.draw(shape.into(), fans, dtype, key).map_err(|e| e.called_at(at))
    }

    fn draw(self, shape: Shape, fans: Fans, dtype: DType, key: Key) -> Result<Tensor> {
        // A weight without inputs has no elements: any finite number does.
        let root = |numerator: f64, n: usize| (numerator / n.max(1) as f64).sqrt();
        let both = fans.fan_in.saturating_add(fans.fan_out);
        let uniform = |bound: f64| Tensor::uniform(shape.clone(), -bound..bound, dtype, key);
        let normal = |std: f64| Tensor::normal(shape.clone(), 0.0, std, dtype, key);
        match self {
            Init::XavierUniform { gain } => uniform(gain * root(6.0, both)),
            Init::XavierNormal { gain } => normal(gain * root(2.0, both)),
            Init::KaimingUniform { gain } => uniform(gain * root(3.0, fans.fan_in)),
            Init::KaimingNormal { gain } => normal(gain * root(1.0, fans.fan_in)),
            Init::Normal { std } => normal(std),
            Init::TruncatedNormal { std } => Tensor::truncated_normal(shape, 0.0, std, -2.0 * std..2.0 * std, dtype, key),
            Init::Torch => uniform(root(1.0, fans.fan_in)),
            Init::Zeros => Tensor::zeros(shape, dtype),
        }
    }
}
