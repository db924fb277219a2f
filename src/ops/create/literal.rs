//! Tensors as literals: the macro `tensor!`.

use crate::dtype::Element;
use crate::error::Result;
use crate::tensor::Tensor;

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

/// A tensor from numbers in brackets, `f32` unless a dtype follows after a semicolon: `tensor![[1, 2], [3, 4]]?`,
/// `tensor![0, 2, 1; I64]?`.
///
/// Brackets nest to any rank, and rows of different lengths do not compile. The numbers are any expressions; each is cast with `as`.
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
    (@number U32 $e:expr) => { $e as u32 };
    (@number U8 $e:expr) => { $e as u8 };
    () => { $crate::Tensor::from_slice::<f32>(&[], [0]) };
    ($([$($inner:tt)*]),+ $(,)? ; $d:ident) => { $crate::Tensor::from_nested(&[$($crate::tensor!(@array $d [$($inner)*])),+]) };
    ($([$($inner:tt)*]),+ $(,)?) => { $crate::tensor!($([$($inner)*]),+ ; F32) };
    ($($e:expr),+ $(,)? ; $d:ident) => { $crate::Tensor::from_nested(&[$($crate::tensor!(@number $d $e)),+]) };
    ($($e:expr),+ $(,)?) => { $crate::tensor!($($e),+ ; F32) };
}
