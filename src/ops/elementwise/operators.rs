//! `+ − * /` on tensors and numbers. They panic where the named methods return `Err`, with the same message; with a `Result` on one
//! side they return one.

use crate::error::Result;
use crate::tensor::Tensor;
use half::{bf16, f16};
use std::ops::{Add, Div, Mul, Neg, Sub};

#[track_caller]
fn or_panic(result: Result<Tensor>) -> Tensor {
    match result {
        Ok(t) => t,
        #[allow(clippy::panic, reason = "operators have no other way to refuse; the methods return the error")]
        Err(e) => panic!("{e}"),
    }
}

/// A number beside a tensor: `&x * 2`, `&x + 0.5f32`. All floats and integers of Rust are.
///
/// One trait and not an implementation per type, so that the type of `&x * 2.0` is known without that of the literal.
pub trait Number: Copy + sealed::Sealed {
    /// The number as the scalar ops take it.
    fn to_f64(self) -> f64;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! numbers {
    ($($t:ty),* => |$x:ident| $to:expr) => {$(
        impl sealed::Sealed for $t {}
        impl Number for $t {
            fn to_f64(self) -> f64 {
                let $x = self;
                $to
            }
        }
    )*};
}
numbers!(f64, f32, i8, i16, i32, i64, isize, u8, u16, u32, u64, usize => |x| x as f64);
numbers!(bf16, f16 => |x| x.to_f64());

macro_rules! operator {
    ($trait:ident, $method:ident, $tensors:ident, $right:ident, $left:ident) => {
        operator!(@pair $trait, $method, $tensors, &Tensor, &Tensor);
        operator!(@pair $trait, $method, $tensors, &Tensor, Tensor);
        operator!(@pair $trait, $method, $tensors, Tensor, &Tensor);
        operator!(@pair $trait, $method, $tensors, Tensor, Tensor);
        operator!(@number $trait, $method, $right, &Tensor);
        operator!(@number $trait, $method, $right, Tensor);
        // One float and one integer type: the type of a literal on the left is then known.
        operator!(@left $trait, $method, $left, f64, &Tensor);
        operator!(@left $trait, $method, $left, f64, Tensor);
        operator!(@left $trait, $method, $left, i32, &Tensor);
        operator!(@left $trait, $method, $left, i32, Tensor);
        operator!(@result $trait, $method, $tensors, &Tensor);
        operator!(@result $trait, $method, $tensors, Tensor);
    };
    (@pair $trait:ident, $method:ident, $call:ident, $lhs:ty, $rhs:ty) => {
        impl $trait<$rhs> for $lhs {
            type Output = Tensor;
            #[doc = concat!("[`Tensor::", stringify!($call), "`] that panics where the method returns an error.")]
            #[track_caller]
            fn $method(self, rhs: $rhs) -> Tensor {
                let (a, b): (&Tensor, &Tensor) = (std::borrow::Borrow::borrow(&self), std::borrow::Borrow::borrow(&rhs));
                or_panic(a.$call(b))
            }
        }
    };
    (@number $trait:ident, $method:ident, $right:ident, $tensor:ty) => {
        impl<N: Number> $trait<N> for $tensor {
            type Output = Tensor;
            #[doc = concat!("[`Tensor::", stringify!($right), "`] that panics where the method returns an error.")]
            #[track_caller]
            fn $method(self, c: N) -> Tensor {
                or_panic(self.$right(c.to_f64()))
            }
        }
    };
    (@left $trait:ident, $method:ident, $left:ident, $number:ty, $tensor:ty) => {
        impl $trait<$tensor> for $number {
            type Output = Tensor;
            #[doc = concat!("[`Tensor::", stringify!($left), "`] that panics where the method returns an error.")]
            #[track_caller]
            fn $method(self, x: $tensor) -> Tensor {
                or_panic(x.$left(self.into()))
            }
        }
    };
    (@result $trait:ident, $method:ident, $call:ident, $tensor:ty) => {
        impl $trait<$tensor> for Result<Tensor> {
            type Output = Result<Tensor>;
            #[doc = concat!("[`Tensor::", stringify!($call), "`], or the error on the left.")]
            #[track_caller]
            fn $method(self, rhs: $tensor) -> Result<Tensor> {
                let b: &Tensor = std::borrow::Borrow::borrow(&rhs);
                match self {
                    Ok(a) => Tensor::$call(&a, b),
                    Err(e) => Err(e),
                }
            }
        }
        impl $trait<Result<Tensor>> for $tensor {
            type Output = Result<Tensor>;
            #[doc = concat!("[`Tensor::", stringify!($call), "`], or the error on the right.")]
            #[track_caller]
            fn $method(self, rhs: Result<Tensor>) -> Result<Tensor> {
                let a: &Tensor = std::borrow::Borrow::borrow(&self);
                match rhs {
                    Ok(b) => Tensor::$call(a, &b),
                    Err(e) => Err(e),
                }
            }
        }
    };
}

operator!(Add, add, add, add_scalar, add_scalar);
operator!(Sub, sub, sub, sub_scalar, rsub_scalar);
operator!(Mul, mul, mul, mul_scalar, mul_scalar);
operator!(Div, div, div, div_scalar, rdiv_scalar);

impl Neg for &Tensor {
    type Output = Tensor;
    /// The negative; panics for integers.
    #[track_caller]
    fn neg(self) -> Tensor {
        or_panic(Tensor::neg(self))
    }
}

impl Neg for Tensor {
    type Output = Tensor;
    /// The negative; panics for integers.
    #[track_caller]
    fn neg(self) -> Tensor {
        -&self
    }
}

#[cfg(test)]
mod tests {
    use crate::tensor::Tensor;

    #[test]
    fn operators_compute_and_take_numbers_on_both_sides() {
        let a = Tensor::from_slice(&[1f64, 2.0], [2]).unwrap();
        let b = Tensor::from_slice(&[4f64], [1]).unwrap();
        let v = |t: Tensor| t.to_vec::<f64>().unwrap();
        assert_eq!(v(&a + &b), [5.0, 6.0]);
        assert_eq!(v(a.clone() - &b), [-3.0, -2.0]);
        assert_eq!(v(&a * b.clone()), [4.0, 8.0]);
        assert_eq!(v(a.clone() / b.clone()), [0.25, 0.5]);
        assert_eq!(v(&a + 1.0), [2.0, 3.0]);
        assert_eq!(v(1.0 - &a), [0.0, -1.0]);
        assert_eq!(v(&a - 1.0), [0.0, 1.0]);
        assert_eq!(v(2.0 * a.clone()), [2.0, 4.0]);
        assert_eq!(v(2.0 / &a), [2.0, 1.0]);
        assert_eq!(v(-(-&a) / 2.0), [0.5, 1.0]);
    }

    #[test]
    fn a_refused_operator_panics_with_the_methods_message() {
        let a = Tensor::from_slice(&[0f32; 6], [2, 3]).unwrap();
        let b = Tensor::from_slice(&[0f32; 8], [4, 2]).unwrap();
        let payload = std::panic::catch_unwind(|| &a + &b).unwrap_err();
        let message = payload.downcast_ref::<String>().unwrap();
        assert!(message.starts_with("add: shapes do not broadcast: lhs [2, 3], rhs [4, 2]"), "{message}");
        assert!(message.contains("operators.rs"), "{message}");
    }
}
