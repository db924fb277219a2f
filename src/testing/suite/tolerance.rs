//! How far a computed number may be from the definition's.
//!
//! A [`Ball`] says `|computed − v| ≤ u·e` for a straightforward evaluation with unit roundoff `u`. Kernels may order
//! their work differently, so twice that is allowed for values and three times for derivatives (the reverse rule is
//! another algorithm than the forward definition), plus the one rounding to the result's type.

use super::Traits;
use crate::backend::Device;
use crate::dtype::{BF16, DType, Element, F16, F32, F64, with_dtype};
use crate::testing::Ball;

/// The error that is allowed of a number of some dtype: computed from the bound that a definition gives when it runs on [`Ball`]s.
///
/// ```
/// use cotangent::{F32, testing::{Ball, Scalar, Tolerance}};
/// let third = Ball::lit(1.0) / Ball::lit(3.0);
/// let allowed = Tolerance::of_value(F32, false, cotangent::Device::Cpu);
/// assert!(allowed.accepts(f64::from(1f32 / 3.0), third) && !allowed.accepts(0.33333, third));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// The result's type.
    dtype: DType,
    /// Unit roundoff of the arithmetic, times the factor.
    unit: f64,
    /// Unit roundoff of what [`Scalar::stored`](crate::testing::Scalar::stored) marks; 0 where kernels keep it wide.
    stored: f64,
}

impl Tolerance {
    /// Of an op's value: kernels compute half types in f32; where an op `rounds` between its steps, as compositions do, they take
    /// part in the type itself.
    pub fn of_value(dtype: DType, rounds: bool, device: Device) -> Self {
        let unit = if dtype == F64 {
            F64.epsilon() / 2.0
        } else if dtype.is_half() && rounds {
            dtype.epsilon() / 2.0
        } else {
            F32.epsilon() / 2.0
        };
        // Only tensor cores need narrow factors.
        let stored = if dtype.is_half() && device != Device::Cpu { dtype.epsilon() / 2.0 } else { 0.0 };
        Tolerance { dtype, unit: 2.0 * unit, stored }
    }

    /// Of a derivative of some order by sweeps: `widest` is the coarsest type that takes part. A derivative may run through several
    /// recorded ops, each of which rounds to that type, and each sweep is another algorithm than the one before.
    pub fn of_derivative(dtype: DType, widest: DType, order: i32) -> Self {
        Tolerance { dtype, unit: 3f64.powi(order) * widest.epsilon().max(dtype.epsilon()) / 2.0, stored: 0.0 }
    }

    pub(super) fn value(dtype: DType, traits: Traits, device: Device) -> Self {
        Self::of_value(dtype, traits.composite, device)
    }

    pub(super) fn vjp(dtype: DType, widest: DType) -> Self {
        Self::of_derivative(dtype, widest, 1)
    }

    /// Largest error allowed beside `want`.
    pub fn bound(self, want: Ball) -> f64 {
        // Not 0 · ∞.
        let stored = if self.stored == 0.0 { 0.0 } else { self.stored * want.h };
        self.unit * want.e + stored + self.dtype.epsilon() / 2.0 * want.v.abs() + smallest(self.dtype)
    }

    /// Whether a number is what the definition allows. Written so that NaN fails.
    pub fn accepts(self, got: f64, want: Ball) -> bool {
        if want.v.is_nan() {
            return got.is_nan();
        }
        let rounded = with_dtype!(self.dtype, T => Element::to_f64(<T as Element>::from_f64(want.v)));
        if rounded.is_infinite() {
            return got == rounded;
        }
        if got.is_infinite() {
            // Within the error bound of the largest value, overflow is a rounding.
            return want.v.abs() + self.bound(want) >= self.dtype.max_value() && (got > 0.0) == (want.v > 0.0);
        }
        (got - want.v).abs() <= self.bound(want)
    }
}

/// Below this a type has no relative precision.
pub(super) fn smallest(dtype: DType) -> f64 {
    match dtype {
        F64 => f64::MIN_POSITIVE,
        F32 | BF16 => f64::from(f32::MIN_POSITIVE),
        F16 => f64::powi(2.0, -24),
        _ => 0.0,
    }
}

/// The type with the largest unit roundoff.
pub(super) fn coarsest(dtypes: impl IntoIterator<Item = DType>) -> DType {
    dtypes.into_iter().filter(|d| d.is_float()).max_by(|a, b| a.epsilon().total_cmp(&b.epsilon())).unwrap_or(F64)
}
