//! The element types that kernels compute on, and what each is computed in.

use super::{Real, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::dtype::Element;
use half::{bf16, f16};

/// A value type and the type kernels compute it in: `f64` in itself, the others in `f32`.
pub trait Compute: Element {
    /// The type that kernels compute and accumulate in.
    type Acc: Real + Compute<Acc = Self::Acc>;
    /// Widens, exactly.
    fn load(self) -> Self::Acc;
    /// Rounds to nearest even.
    fn store(x: Self::Acc) -> Self;
    /// The same memory, where storage and computation have one type.
    fn as_acc(x: &[Self]) -> Option<&[Self::Acc]>;
    /// The same memory, writable.
    fn as_acc_mut(x: &mut [Self]) -> Option<&mut [Self::Acc]>;
}

/// A type that kernels compute in, as what they load and store.
pub(crate) trait Number: Real + Compute<Acc = Self> {}
impl<A: Real + Compute<Acc = A>> Number for A {}

macro_rules! compute {
    ($($t:ty, $acc:ty, |$x:ident| $load:expr, |$y:ident| $store:expr, |$s:ident| $same:expr;)*) => {$(
        impl Compute for $t {
            type Acc = $acc;
            #[inline(always)]
            fn load(self) -> $acc { let $x = self; $load }
            #[inline(always)]
            fn store($y: $acc) -> Self { $store }
            #[inline(always)]
            fn as_acc($s: &[Self]) -> Option<&[$acc]> { $same }
            #[inline(always)]
            fn as_acc_mut($s: &mut [Self]) -> Option<&mut [$acc]> { $same }
        }
    )*};
}

compute! {
    f64, f64, |x| x, |y| y, |s| Some(s);
    f32, f32, |x| x, |y| y, |s| Some(s);
    bf16, f32, |x| bf16_to_f32(x.to_bits()), |y| bf16::from_bits(f32_to_bf16(y)), |_s| None;
    f16, f32, |x| f16_to_f32(x.to_bits()), |y| f16::from_bits(f32_to_f16(y)), |_s| None;
}
