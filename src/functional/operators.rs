//! `+ − * /` on what reads like a tensor: parameters, and the gradient of a tensor.

use super::Grads;
use crate::module::Param;
use crate::ops::Number;
use crate::tensor::Tensor;
use std::ops::{Add, Div, Mul, Neg, Sub};

macro_rules! operators {
    ($type:ty) => {
        operators!(@all $type, Add, add);
        operators!(@all $type, Sub, sub);
        operators!(@all $type, Mul, mul);
        operators!(@all $type, Div, div);
        operators!(@neg $type);
        operators!(@neg &$type);
    };
    (@neg $type:ty) => {
        impl Neg for $type {
            type Output = Tensor;
            /// The negative; panics for integers.
            #[track_caller]
            fn neg(self) -> Tensor {
                let a: &Tensor = self.as_ref();
                -a
            }
        }
    };
    (@all $type:ty, $trait:ident, $method:ident) => {
        operators!(@pair $trait, $method, [$type, &$type], [Tensor, &Tensor, $type, &$type]);
        operators!(@pair $trait, $method, [Tensor, &Tensor], [$type, &$type]);
        operators!(@number $trait, $method, $type);
        operators!(@number $trait, $method, &$type);
        operators!(@left $trait, $method, f64, $type);
        operators!(@left $trait, $method, f64, &$type);
    };
    (@pair $trait:ident, $method:ident, [$($lhs:ty),*], $rhs:tt) => {
        $(operators!(@one $trait, $method, $lhs, $rhs);)*
    };
    (@one $trait:ident, $method:ident, $lhs:ty, [$($rhs:ty),*]) => {$(
        impl $trait<$rhs> for $lhs {
            type Output = Tensor;
            #[doc = concat!("[`Tensor::", stringify!($method), "`] that panics where the method returns an error.")]
            #[track_caller]
            fn $method(self, rhs: $rhs) -> Tensor {
                let (a, b): (&Tensor, &Tensor) = (self.as_ref(), rhs.as_ref());
                $trait::$method(a, b)
            }
        }
    )*};
    (@left $trait:ident, $method:ident, $number:ty, $rhs:ty) => {
        impl $trait<$rhs> for $number {
            type Output = Tensor;
            /// The same with a number on the left; panics where the method returns an error.
            #[track_caller]
            fn $method(self, rhs: $rhs) -> Tensor {
                let b: &Tensor = rhs.as_ref();
                $trait::$method(self, b)
            }
        }
    };
    (@number $trait:ident, $method:ident, $lhs:ty) => {
        impl<N: Number> $trait<N> for $lhs {
            type Output = Tensor;
            /// The same with a number; panics where the method returns an error.
            #[track_caller]
            fn $method(self, c: N) -> Tensor {
                let a: &Tensor = self.as_ref();
                $trait::$method(a, c)
            }
        }
    };
}

operators!(Grads<Tensor>);
operators!(Param);
