//! `+ − * /` on tensors and numbers. They panic where the named methods return `Err`, with the same message.

use crate::error::Result;
use crate::tensor::Tensor;
use std::ops::{Add, Div, Mul, Neg, Sub};

#[track_caller]
fn or_panic(result: Result<Tensor>) -> Tensor {
    match result {
        Ok(t) => t,
        #[allow(clippy::panic, reason = "operators have no other way to refuse; the methods return the error")]
        Err(e) => panic!("{e}"),
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $tensors:ident, $right:ident, $left:ident) => {
        operator!(@pair $trait, $method, $tensors, &Tensor, &Tensor);
        operator!(@pair $trait, $method, $tensors, &Tensor, Tensor);
        operator!(@pair $trait, $method, $tensors, Tensor, &Tensor);
        operator!(@pair $trait, $method, $tensors, Tensor, Tensor);
        operator!(@number $trait, $method, $right, $left, &Tensor);
        operator!(@number $trait, $method, $right, $left, Tensor);
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
    (@number $trait:ident, $method:ident, $right:ident, $left:ident, $tensor:ty) => {
        impl $trait<f64> for $tensor {
            type Output = Tensor;
            #[doc = concat!("[`Tensor::", stringify!($right), "`] that panics where the method returns an error.")]
            #[track_caller]
            fn $method(self, c: f64) -> Tensor {
                or_panic(self.$right(c))
            }
        }
        impl $trait<$tensor> for f64 {
            type Output = Tensor;
            #[doc = concat!("[`Tensor::", stringify!($left), "`] that panics where the method returns an error.")]
            #[track_caller]
            fn $method(self, x: $tensor) -> Tensor {
                or_panic(x.$left(self))
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
