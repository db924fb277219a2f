//! A tensor and a number: one pass, and no tensor is made of the number.

use super::{Domain, Map, Saves, Unary, at, slope_of_input};
use crate::backend::cpu::Real;
use crate::error::Result;
use crate::op::{Math, apply1};
use crate::tensor::Tensor;
use crate::testing::{Sample, Scalar};

/// An op that is affine in its operand: only the value and the constant slope differ.
macro_rules! affine {
    ($(#[$doc:meta])* $op:ident, $name:literal, $vjp_name:literal, $forward:literal, $vjp:literal, |$x:ident, $c:ident| $f:expr, |$k:ident| $slope:expr, |$g:ident, $p:ident| $pull:expr, $fwd:ident, $pull_kernel:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $op(pub f64);

        impl Unary for $op {
            const NAME: &'static str = $name;
            const VJP_NAME: &'static str = $vjp_name;
            const MATH: Math = Math {
                forward: $forward,
                vjp: $vjp,
                kinks: "smooth; c/0 as IEEE division",
                cost: "reads x, writes y; saves nothing",
                references: "IEEE 754",
            };
            const SAVES: Saves = Saves::Nothing;
            const DOMAIN: Domain = Domain::Uniform(-2.0, 2.0);

            #[inline(always)]
            fn f<T: Real>(&self, $x: T) -> T {
                let $c = T::from_f64(self.0);
                $f
            }
            #[inline(always)]
            fn pull<T: Real>(&self, _: T, $g: T) -> T {
                let $p = T::from_f64(self.0);
                $pull
            }
            unary! { @rare }
            fn define<S: Scalar>(&self, $x: S) -> S {
                let $c = S::lit(self.0);
                $f
            }
            fn cuda(&self) -> super::UnaryKernels {
                super::UnaryKernels::new(super::kernels::$fwd, super::kernels::$pull_kernel, [self.0])
            }
            fn slope<S: Scalar>(&self, _: S) -> S {
                let $k = self.0;
                S::lit($slope)
            }
            fn derivative(&self, saved: &Tensor) -> Result<Tensor> {
                let $k = self.0;
                Tensor::full_on(saved.shape(), $slope, saved.dtype(), saved.device())
            }
            #[inline]
            fn samples() -> Vec<Sample<Self>> {
                scalar_samples($op)
            }
            fn validate(&self) -> Result<()> {
                Ok(())
            }
        }
    };
}

affine!(
    /// `x + c`; see [`Tensor::add_scalar`].
    AddScalar, "add_scalar", "add_scalar_vjp", "y = x + c", "x̄ = ȳ", |x, c| x + c, |_c| 1.0, |g, _c| g, add_scalar_fwd, add_scalar_vjp
);
affine!(
    /// `x − c`; see [`Tensor::sub_scalar`].
    SubScalar, "sub_scalar", "sub_scalar_vjp", "y = x − c", "x̄ = ȳ", |x, c| x - c, |_c| 1.0, |g, _c| g, sub_scalar_fwd, sub_scalar_vjp
);
affine!(
    /// `c − x`; see [`Tensor::rsub_scalar`].
    RsubScalar, "rsub_scalar", "rsub_scalar_vjp", "y = c − x", "x̄ = −ȳ", |x, c| c - x, |_c| -1.0, |g, _c| -g, rsub_scalar_fwd, rsub_scalar_vjp
);
affine!(
    /// `x · c`; see [`Tensor::mul_scalar`].
    MulScalar, "mul_scalar", "mul_scalar_vjp", "y = x · c", "x̄ = ȳ · c", |x, c| x * c, |c| c, |g, c| g * c, mul_scalar_fwd, mul_scalar_vjp
);
affine!(
    /// `x / c`; see [`Tensor::div_scalar`].
    DivScalar, "div_scalar", "div_scalar_vjp", "y = x / c", "x̄ = ȳ / c", |x, c| x / c, |c| 1.0 / c, |g, c| g / c, div_scalar_fwd, div_scalar_vjp
);

/// Constants that every dtype holds exactly, and special values.
fn scalar_samples<U: Unary>(op: impl Fn(f64) -> U) -> Vec<Sample<U>> {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    let mut out: Vec<Sample<U>> = [2.0, -0.5, 1.0, 3.0].into_iter().map(|c| Sample::check(op(c), at(&[1.5, -0.75, 2.25]))).collect();
    out.push(Sample::value(op(2.0), at(&[inf, -inf, nan, 0.0, -0.0])).note("limits"));
    out.push(Sample::value(op(0.0), at(&[inf, -inf, nan, 0.0, 1.0])).note("0 · ∞ and x/0 are IEEE's"));
    out
}

/// `c / x`; see [`Tensor::rdiv_scalar`].
#[derive(Clone, Debug)]
pub struct RdivScalar(pub f64);

impl Unary for RdivScalar {
    const NAME: &'static str = "rdiv_scalar";
    const VJP_NAME: &'static str = "rdiv_scalar_vjp";
    const MATH: Math = Math {
        forward: "y = c / x",
        vjp: "x̄ = −ȳ · (c/x)/x",
        kinks: "x = 0: ±∞ as IEEE division, NaN for 0/0",
        cost: "reads x, writes y; saves x",
        references: "IEEE 754",
    };
    const SAVES: Saves = Saves::Input;
    const DOMAIN: Domain = Domain::Uniform(0.5, 2.0);

    #[inline(always)]
    fn f<T: Real>(&self, x: T) -> T {
        T::from_f64(self.0) / x
    }
    #[inline(always)]
    fn pull<T: Real>(&self, x: T, g: T) -> T {
        // Not c/x²: the square may overflow or underflow where the result does not.
        -(g * (T::from_f64(self.0) / x)) / x
    }
    unary! { @rare }
    fn define<S: Scalar>(&self, x: S) -> S {
        S::lit(self.0) / x
    }
    fn cuda(&self) -> super::UnaryKernels {
        super::UnaryKernels::new(super::kernels::rdiv_scalar_fwd, super::kernels::rdiv_scalar_vjp, [self.0])
    }
    fn slope<S: Scalar>(&self, x: S) -> S {
        slope_of_input(self, x)
    }
    fn derivative(&self, x: &Tensor) -> Result<Tensor> {
        x.rdiv_scalar(-self.0)?.div(x)
    }
    #[inline]
    fn samples() -> Vec<Sample<Self>> {
        scalar_samples(RdivScalar)
    }
    fn validate(&self) -> Result<()> {
        Ok(())
    }
}

impl Tensor {
    /// `x + c` for a number `c`.
    ///
    /// # Gradient
    /// `ȳ`, without a copy; saves nothing.
    ///
    /// # Numerics
    /// The number is rounded to the type that kernels compute in (f64 for f64, f32 for the others); so in all the scalar
    /// forms.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn add_scalar(&self, c: f64) -> Result<Tensor> {
        apply1(Map(AddScalar(c)), &[self])
    }

    /// `x − c` for a number `c`.
    ///
    /// # Gradient
    /// `ȳ`, without a copy; saves nothing.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn sub_scalar(&self, c: f64) -> Result<Tensor> {
        apply1(Map(SubScalar(c)), &[self])
    }

    /// `c − x` for a number `c`.
    ///
    /// # Gradient
    /// `−ȳ`; saves nothing.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn rsub_scalar(&self, c: f64) -> Result<Tensor> {
        apply1(Map(RsubScalar(c)), &[self])
    }

    /// `x · c` for a number `c`.
    ///
    /// # Gradient
    /// `ȳ·c`; saves nothing.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn mul_scalar(&self, c: f64) -> Result<Tensor> {
        apply1(Map(MulScalar(c)), &[self])
    }

    /// `x / c` for a number `c`.
    ///
    /// # Gradient
    /// `ȳ/c`; saves nothing.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn div_scalar(&self, c: f64) -> Result<Tensor> {
        apply1(Map(DivScalar(c)), &[self])
    }

    /// `c / x` for a number `c`.
    ///
    /// # Gradient
    /// `−ȳ·c/x²`; saves the operand.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn rdiv_scalar(&self, c: f64) -> Result<Tensor> {
        apply1(Map(RdivScalar(c)), &[self])
    }
}
