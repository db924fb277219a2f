//! Tensors as literals: the macro `tensor!`.

use super::fill::held;
use crate::dtype::{DType, Element};
use crate::error::Result;
use crate::tensor::Tensor;
use std::panic::Location;

/// Numbers in nested arrays, as [`tensor!`](crate::tensor) writes them.
#[doc(hidden)]
pub trait Nested {
    type Item: Element;
    /// Extents, outermost first.
    fn extents(out: &mut Vec<usize>);
    /// The numbers in row-major order.
    fn numbers(&self, out: &mut Vec<Self::Item>);
}

impl<T: Element> Nested for T {
    type Item = T;
    fn extents(_: &mut Vec<usize>) {}
    fn numbers(&self, out: &mut Vec<T>) {
        out.push(*self);
    }
}

impl<T: Nested, const N: usize> Nested for [T; N] {
    type Item = T::Item;
    fn extents(out: &mut Vec<usize>) {
        out.push(N);
        T::extents(out);
    }
    fn numbers(&self, out: &mut Vec<T::Item>) {
        self.iter().for_each(|x| x.numbers(out));
    }
}

impl Tensor {
    /// What [`tensor!`](crate::tensor) calls: numbers in nested arrays.
    ///
    /// # Errors
    /// Out of memory.
    #[doc(hidden)]
    #[track_caller]
    pub fn from_nested<A: Nested>(array: &A) -> Result<Tensor> {
        let (mut shape, mut data) = (Vec::new(), Vec::new());
        A::extents(&mut shape);
        array.numbers(&mut data);
        Tensor::copied("tensor", &data, shape.into())
    }
}

/// [`Tensor::from_nested`] of whole numbers in an integer dtype that not every number fits into.
///
/// # Errors
/// Argument error for a number that does not fit; out of memory.
#[doc(hidden)]
#[track_caller]
pub fn from_whole<A: Nested<Item = f64>>(array: &A, dtype: DType) -> Result<Tensor> {
    let at = Location::caller();
    let (mut shape, mut data) = (Vec::new(), Vec::new());
    A::extents(&mut shape);
    array.numbers(&mut data);
    data.iter().try_for_each(|&v| held(v, dtype).map(drop)).map_err(|e| e.in_op("tensor", at))?;
    Tensor::copied("tensor", &data, shape.into())?.cast(dtype)
}

/// A tensor from numbers in brackets, `f32` unless a dtype follows after a semicolon: `tensor![[1, 2], [3, 4]]?`,
/// `tensor![0, 2, 1; I64]?`.
///
/// Brackets nest to any rank, and rows of different lengths do not compile. The numbers are any expressions; each is cast with `as`, and refused where
/// `U32` or `U8` does not hold it.
/// The dtypes are `F64`, `F32`, `BF16`, `F16`, `I64`, `U32` and `U8`, by these names, which need not be imported.
///
/// ```
/// use cotangent::{F32, F64, I64, tensor};
/// let x = tensor![[1, 2, 3], [4.5, 5.5, 6.5]]?;
/// assert_eq!((x.shape().to_vec(), x.dtype()), (vec![2, 3], F32));
/// let ids = tensor![[0, 2], [1, 1]; I64]?;
/// assert_eq!(ids.to_vec::<i64>()?, [0, 2, 1, 1]);
/// assert_eq!(tensor![[[1.0], [2.0]]; F64]?.shape(), &[1, 2, 1]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[macro_export]
macro_rules! tensor {
    // Brackets become arrays.
    (@array $d:ident [$([$($inner:tt)*]),+ $(,)?]) => { [$($crate::tensor!(@array $d [$($inner)*])),+] };
    (@array $d:ident [$($e:expr),* $(,)?]) => { [$($crate::tensor!(@number $d $e)),*] };
    (@number F64 $e:expr) => { $e as f64 };
    (@number F32 $e:expr) => { $e as f32 };
    (@number BF16 $e:expr) => { $crate::bf16::from_f64($e as f64) };
    (@number F16 $e:expr) => { $crate::f16::from_f64($e as f64) };
    (@number I64 $e:expr) => { $e as i64 };
    // `as` would wrap: checked by `from_whole`.
    (@number U32 $e:expr) => { $e as i128 as f64 };
    (@number U8 $e:expr) => { $e as i128 as f64 };
    (@make U32 $x:expr) => { $crate::ops::from_whole($x, $crate::U32) };
    (@make U8 $x:expr) => { $crate::ops::from_whole($x, $crate::U8) };
    (@make $d:ident $x:expr) => { $crate::Tensor::from_nested($x) };
    () => { $crate::Tensor::from_slice::<f32>(&[], [0]) };
    ($([$($inner:tt)*]),+ $(,)? ; $d:ident) => { $crate::tensor!(@make $d &[$($crate::tensor!(@array $d [$($inner)*])),+]) };
    ($([$($inner:tt)*]),+ $(,)?) => { $crate::tensor!($([$($inner)*]),+ ; F32) };
    ($($e:expr),+ $(,)? ; $d:ident) => { $crate::tensor!(@make $d &[$($crate::tensor!(@number $d $e)),+]) };
    ($($e:expr),+ $(,)?) => { $crate::tensor!($($e),+ ; F32) };
}
