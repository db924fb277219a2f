//! Tensors as literals: the macro `tensor!`.

use super::fill::held;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::memory;
use crate::tensor::Tensor;
use std::panic::Location;

/// Numbers in nested arrays, as [`tensor!`](crate::tensor) writes them.
#[doc(hidden)]
pub trait Nested {
    type Item: Copy;
    /// Extents, outermost first.
    fn extents(out: &mut Vec<usize>);
    /// The numbers in row-major order.
    fn numbers(&self, out: &mut Vec<Self::Item>);
}

/// A number of `tensor!` before it is looked at: what Rust's type of it says, exactly.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub enum Written {
    Whole(i128),
    Float(f64),
}

macro_rules! written {
    ($($t:ty, $make:ident as $as:ty;)*) => {$(
        impl From<$t> for Written {
            fn from(v: $t) -> Self {
                Written::$make(v as $as)
            }
        }
    )*};
}
written! {
    u8, Whole as i128; u16, Whole as i128; u32, Whole as i128; u64, Whole as i128; usize, Whole as i128; bool, Whole as i128;
    i8, Whole as i128; i16, Whole as i128; i32, Whole as i128; i64, Whole as i128; isize, Whole as i128; i128, Whole as i128;
    f32, Float as f64; f64, Float as f64;
}

impl Written {
    /// A literal: its value as an integer, and its text, which says whether there is more.
    pub fn literal(value: i128, text: &str) -> Self {
        let digits = text.replace('_', "");
        let number = digits.trim_end_matches("f32").trim_end_matches("f64").parse::<f64>();
        number.ok().filter(|v| v.fract() != 0.0).map_or(Written::Whole(value), Written::Float)
    }
}

/// What is written in brackets: one number of them, or arrays.
macro_rules! numbers {
    ($($t:ty),*) => {$(
        impl Nested for $t {
            type Item = $t;
            fn extents(_: &mut Vec<usize>) {}
            fn numbers(&self, out: &mut Vec<$t>) {
                out.push(*self);
            }
        }
    )*};
}
numbers!(f64, f32, Written);

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

/// What [`tensor!`](crate::tensor) calls for floats: numbers in nested arrays, rounded once.
///
/// # Errors
/// Argument error for a number that overflows the dtype; out of memory.
#[doc(hidden)]
#[track_caller]
pub fn from_floats<A: Nested<Item = f64>>(array: &A, dtype: DType) -> Result<Tensor> {
    let at = Location::caller();
    let (mut shape, mut data) = (Vec::new(), Vec::new());
    A::extents(&mut shape);
    array.numbers(&mut data);
    data.iter().try_for_each(|&v| held(v, dtype).map(drop)).map_err(|e| e.in_op("tensor", at))?;
    Tensor::copied("tensor", &data, shape.into())?.cast(dtype)
}

/// The same for integers.
///
/// # Errors
/// Argument error for a fraction, and for a number that the dtype does not hold; out of memory.
#[doc(hidden)]
#[track_caller]
pub fn from_whole<A: Nested<Item = Written>>(array: &A, dtype: DType) -> Result<Tensor> {
    let at = Location::caller();
    let (mut shape, mut data) = (Vec::new(), Vec::new());
    A::extents(&mut shape);
    array.numbers(&mut data);
    let whole = |v: Written| {
        let (least, most) = if dtype == DType::I64 { (i64::MIN.into(), i64::MAX.into()) } else { (0, dtype.max_value() as i128) };
        match v {
            Written::Whole(v) if (least..=most).contains(&v) => Ok(v as i64),
            Written::Whole(v) => Err(Error::argument(format!("{dtype} does not hold {v}"))),
            Written::Float(v) => held(v, dtype).map(|v| v as i64),
        }
    };
    let data: Result<Vec<i64>> = memory::try_collect_ok(data.into_iter().map(whole));
    Tensor::copied("tensor", &data.map_err(|e| e.in_op("tensor", at))?, shape.into())?.cast(dtype)
}

/// A tensor from numbers in brackets, `f32` unless a dtype follows after a semicolon: `tensor![[1, 2], [3, 4]]?`,
/// `tensor![0, 2, 1; I64]?`.
///
/// Brackets nest to any rank, and rows of different lengths do not compile. The numbers are any expressions. One that the dtype does not
/// hold is an error: a fraction among integers, −1 in `U8`, 1e6 in `F16`.
/// The dtypes are `F64`, `F32`, `BF16`, `F16`, `I64`, `U32` and `U8`, by these names, which need not be imported.
///
/// ```
/// use cotangent::{F32, F64, I64, tensor};
/// let x = tensor![[1, 2, 3], [4.5, 5.5, 6.5]]?;
/// assert_eq!((x.shape().to_vec(), x.dtype()), (vec![2, 3], F32));
/// let ids = tensor![[0, 2], [1, 1]; I64]?;
/// assert_eq!(ids.to_vec::<i64>()?, [0, 2, 1, 1]);
/// assert_eq!(tensor![[[1.0], [2.0]]; F64]?.shape(), &[1, 2, 1]);
/// assert!(tensor![0.5; I64].is_err());
/// # Ok::<(), cotangent::Error>(())
/// ```
#[macro_export]
macro_rules! tensor {
    // Brackets become arrays.
    (@array $d:ident [$([$($inner:tt)*]),+ $(,)?]) => { [$($crate::tensor!(@array $d [$($inner)*])),+] };
    (@array $d:ident [$($e:expr),* $(,)?]) => { [$($crate::tensor!(@number $d $e)),*] };
    // Literals of integers take their type from the cast; of other expressions the type says what they are.
    (@number I64 $e:literal) => { $crate::ops::Written::literal($e as i128, stringify!($e)) };
    (@number U32 $e:literal) => { $crate::ops::Written::literal($e as i128, stringify!($e)) };
    (@number U8 $e:literal) => { $crate::ops::Written::literal($e as i128, stringify!($e)) };
    (@number I64 $e:expr) => { $crate::ops::Written::from($e) };
    (@number U32 $e:expr) => { $crate::ops::Written::from($e) };
    (@number U8 $e:expr) => { $crate::ops::Written::from($e) };
    (@number $d:ident $e:expr) => { $e as f64 };
    (@make I64 $x:expr) => { $crate::ops::from_whole($x, $crate::I64) };
    (@make U32 $x:expr) => { $crate::ops::from_whole($x, $crate::U32) };
    (@make U8 $x:expr) => { $crate::ops::from_whole($x, $crate::U8) };
    (@make $d:ident $x:expr) => { $crate::ops::from_floats($x, $crate::$d) };
    () => { $crate::Tensor::from_slice::<f32>(&[], [0]) };
    ($([$($inner:tt)*]),+ $(,)? ; $d:ident) => { $crate::tensor!(@make $d &[$($crate::tensor!(@array $d [$($inner)*])),+]) };
    ($([$($inner:tt)*]),+ $(,)?) => { $crate::tensor!($([$($inner)*]),+ ; F32) };
    ($($e:expr),+ $(,)? ; $d:ident) => { $crate::tensor!(@make $d &[$($crate::tensor!(@number $d $e)),+]) };
    ($($e:expr),+ $(,)?) => { $crate::tensor!($($e),+ ; F32) };
}
