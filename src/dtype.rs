//! Element types. Layer L0.

use half::{bf16, f16};
use std::fmt;

/// The type of a tensor's elements.
///
/// Values are `f64 f32 bf16 f16`; `i64 u32 u8` hold indices, masks and comparison results and carry no gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE binary64.
    F64,
    /// IEEE binary32.
    F32,
    /// bfloat16: 8 exponent bits, 8 bits of precision.
    BF16,
    /// IEEE binary16: 5 exponent bits, 11 bits of precision.
    F16,
    /// Signed 64-bit integers: indices and targets.
    I64,
    /// Unsigned 32-bit integers: token ids.
    U32,
    /// Bytes; 0 and 1 for masks and comparison results.
    U8,
}

pub use DType::{BF16, F16, F32, F64, I64, U8, U32};

impl DType {
    /// Every dtype.
    pub const ALL: [DType; 7] = [F64, F32, BF16, F16, I64, U32, U8];
    /// The dtypes that carry gradients.
    pub const FLOATS: [DType; 4] = [F64, F32, BF16, F16];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            F64 | I64 => 8,
            F32 | U32 => 4,
            BF16 | F16 => 2,
            U8 => 1,
        }
    }

    /// Whether values of this type carry gradients.
    pub const fn is_float(self) -> bool {
        matches!(self, F64 | F32 | BF16 | F16)
    }

    /// Whether this is one of the two 16-bit float types.
    pub const fn is_half(self) -> bool {
        matches!(self, BF16 | F16)
    }

    /// Distance from 1 to the next larger value (2⁻⁵², 2⁻²³, 2⁻⁷, 2⁻¹⁰); 0 for integers.
    pub const fn epsilon(self) -> f64 {
        match self {
            F64 => f64::EPSILON,
            F32 => f32::EPSILON as f64,
            BF16 => 0.0078125,
            F16 => 0.0009765625,
            _ => 0.0,
        }
    }

    /// Largest finite value of a float type, or largest value of an integer type.
    pub fn max_value(self) -> f64 {
        match self {
            F64 => f64::MAX,
            F32 => f64::from(f32::MAX),
            BF16 => bf16::MAX.to_f64(),
            F16 => 65504.0,
            I64 => i64::MAX as f64,
            U32 => f64::from(u32::MAX),
            U8 => 255.0,
        }
    }

    /// Lower-case Rust name.
    pub const fn name(self) -> &'static str {
        match self {
            F64 => "f64",
            F32 => "f32",
            BF16 => "bf16",
            F16 => "f16",
            I64 => "i64",
            U32 => "u32",
            U8 => "u8",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = crate::Error;
    fn from_str(s: &str) -> crate::Result<Self> {
        DType::ALL
            .into_iter()
            .find(|d| d.name() == s)
            .ok_or_else(|| crate::Error::dtype(format!("unknown dtype `{s}`: expected one of f64, f32, bf16, f16, i64, u32, u8")))
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that tensors store. Sealed: implemented for exactly the seven types of [`DType`].
pub trait Element: sealed::Sealed + Copy + Default + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// The matching dtype.
    const DTYPE: DType;
    /// Nearest value of this type (floats round to nearest even, integers truncate and saturate).
    fn from_f64(x: f64) -> Self;
    /// The value as `f64` (exact for all but large `i64`).
    fn to_f64(self) -> f64;
}

macro_rules! element {
    ($($t:ty => $d:ident, |$x:ident| $from:expr, |$y:ident| $to:expr;)*) => {$(
        impl sealed::Sealed for $t {}
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            #[inline(always)]
            fn from_f64($x: f64) -> Self { $from }
            #[inline(always)]
            fn to_f64(self) -> f64 { let $y = self; $to }
        }
    )*};
}

element! {
    f64 => F64, |x| x, |y| y;
    f32 => F32, |x| x as f32, |y| f64::from(y);
    bf16 => BF16, |x| bf16::from_f64(x), |y| f64::from(f32::from_bits(u32::from(y.to_bits()) << 16));
    f16 => F16, |x| f16::from_f64(x), |y| y.to_f64();
    i64 => I64, |x| x as i64, |y| y as f64;
    u32 => U32, |x| x as u32, |y| f64::from(y);
    u8 => U8, |x| x as u8, |y| f64::from(y);
}

/// Runs `$body` with `$T` bound to the Rust type of a dtype.
macro_rules! with_dtype {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            $crate::DType::F16 => {
                type $T = half::f16;
                $body
            }
            $crate::DType::I64 => {
                type $T = i64;
                $body
            }
            $crate::DType::U32 => {
                type $T = u32;
                $body
            }
            $crate::DType::U8 => {
                type $T = u8;
                $body
            }
        }
    };
}
pub(crate) use with_dtype;

/// Like [`with_dtype`] for value types only; an integer dtype is an `Err`.
macro_rules! with_float {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            $crate::DType::F16 => {
                type $T = half::f16;
                $body
            }
            d => return Err($crate::Error::dtype(format!("expected a float dtype, found {d}"))),
        }
    };
}
pub(crate) use with_float;
