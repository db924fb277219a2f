//! How far a computed number may be from the definition's.
//!
//! A [`Ball`] says `|computed − v| ≤ u·e` for a straightforward evaluation with unit roundoff `u`. Kernels may order
//! their work differently, so twice that is allowed for values and three times for derivatives (the reverse rule is
//! another algorithm than the forward definition), plus the one rounding to the result's type.

use super::Traits;
use crate::backend::Device;
use crate::dtype::{BF16, DType, Element, F16, F32, F64, with_dtype};
use crate::testing::Ball;

/// Allowed error of a number of some dtype.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tolerance {
    /// The result's type.
    dtype: DType,
    /// Unit roundoff of the arithmetic, times the factor.
    unit: f64,
    /// Unit roundoff of what [`Scalar::stored`](crate::testing::Scalar::stored) marks; 0 where kernels keep it wide.
    stored: f64,
}

impl Tolerance {
    /// Of an op's value: kernels compute half types in f32, compositions round each step.
    pub(super) fn value(dtype: DType, traits: Traits, device: Device) -> Self {
        let unit = if dtype == F64 {
            F64.epsilon() / 2.0
        } else if dtype.is_half() && traits.composite {
            dtype.epsilon() / 2.0
        } else {
            F32.epsilon() / 2.0
        };
        // Only tensor cores need narrow factors.
        let stored = if dtype.is_half() && device != Device::Cpu { dtype.epsilon() / 2.0 } else { 0.0 };
        Tolerance { dtype, unit: 2.0 * unit, stored }
    }

    /// Of a cotangent: `widest` is the coarsest type that takes part. A derivative may run through several recorded
    /// ops, each of which rounds to that type.
    pub(super) fn vjp(dtype: DType, widest: DType) -> Self {
        Tolerance { dtype, unit: 3.0 * widest.epsilon().max(dtype.epsilon()) / 2.0, stored: 0.0 }
    }

    /// Largest error allowed beside `want`.
    pub(super) fn bound(self, want: Ball) -> f64 {
        // Not 0 · ∞.
        let stored = if self.stored == 0.0 { 0.0 } else { self.stored * want.h };
        self.unit * want.e + stored + self.dtype.epsilon() / 2.0 * want.v.abs() + smallest(self.dtype)
    }

    /// Whether a number is what the definition allows. Written so that NaN fails.
    pub(super) fn accepts(self, got: f64, want: Ball) -> bool {
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
