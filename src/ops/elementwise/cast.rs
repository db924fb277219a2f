//! Conversion between element types.

use crate::backend::cpu::{self, Compute, map};
use crate::backend::cuda;
use crate::dtype::{DType, Element, with_dtype};
use crate::error::Result;
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use half::{bf16, f16};
use smallvec::{SmallVec, smallvec};

/// Another element type for the same numbers; see [`Tensor::cast`].
#[derive(Clone, Debug)]
pub struct Cast {
    /// The new type.
    pub to: DType,
}

impl Describe for Cast {
    const NAME: &'static str = "cast";
    const MATH: Math = Math {
        forward: "y = x in another element type",
        vjp: "x̄ = ȳ cast back; nothing through integers",
        kinks: "rounding is taken as the identity; floats truncate and saturate to integers, NaN to 0",
        cost: "reads x, writes y; saves nothing",
        references: "IEEE 754-2019 §5.4; Rust `as`",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        // The ends of the range: i64's last number, 2⁶³ − 1, is 2⁶³ as f64, which reads back as the same number.
        let (lo, hi) = match self.to {
            DType::I64 => (-2f64.powi(63), 2f64.powi(63)),
            DType::U32 => (0.0, 2f64.powi(32) - 1.0),
            DType::U8 => (0.0, 255.0),
            _ => return vec![x[0].clone()],
        };
        let to_int = |v: f64| if v.is_nan() { 0.0 } else { v.trunc().clamp(lo, hi) };
        vec![x[0].map(|v| S::lit(to_int(v.re())))]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        let shape = g.shape(2);
        let mut out = vec![
            Sample::check(Cast { to: DType::F64 }, [g.normal(&shape)]).note("the gradient passes [D12]"),
            Sample::check(Cast { to: DType::F64 }, [g.normal([0, 3])]),
            Sample::check(Cast { to: DType::F64 }, [g.normal(())]),
        ];
        for to in DType::ALL {
            let op = || Cast { to };
            out.push(Sample::value(op(), [g.normal_with(&shape, 40.0, 0.0)]));
            out.push(Sample::value(op(), [g.normal_with([3 * map::PIECE + 5], 100.0, 0.0)]).note("several parallel pieces and a rest"));
            let edges = [0.0, -0.0, 0.5, -0.5, 1.9999, -1.9999, 255.5, 256.0, 65519.0, 65520.0, 3e9, 4294967295.0, -1.0, 5e9, 1e-7, 1e-40];
            out.push(Sample::value(op(), [Input::values([16], edges)]).note("ends of the ranges, truncation, subnormals"));
            out.push(
                Sample::value(op(), [Input::values([8], [inf, -inf, nan, 1e19, -1e19, 1e38, 9.3e18, -9.3e18])])
                    .note("saturation; NaN becomes 0"),
            );
            for from in [DType::I64, DType::U32, DType::U8] {
                let n = from.max_value();
                let values = [0.0, 1.0, 2.0, 127.0, 200.0, n].map(|v| v.min(n / 2.0) as i64);
                out.push(Sample::value(op(), [Input::ints(from, [6], &values)]).note("from integers"));
            }
        }
        out.push(Sample::value(Cast { to: DType::U8 }, [Input::ints(DType::I64, [3], &[-1, 256, 1 << 40])]).note("integers saturate too"));
        for to in [DType::BF16, DType::F32] {
            out.push(Sample::bench(Cast { to }, [g.normal([4 << 20])]));
        }
        out
    }
}

/// An exact stop on the way from any type to any other: floats pass through f64, integers through i64.
trait Convert: Element {
    fn to_wide(self) -> Wide;
    fn of_float(x: f64) -> Self;
    fn of_int(x: i64) -> Self;
}

/// A number of any element type, exactly.
#[derive(Clone, Copy)]
enum Wide {
    Float(f64),
    Int(i64),
}

/// x as an f32 that is rounded to odd: rounding it again to fewer bits gives what rounding x once would have given
/// (Boldo & Melquiond 2008, Emulation of a FMA and correctly rounded sums).
#[inline(always)]
fn to_odd(x: f64) -> f32 {
    let near = x as f32;
    let back = f64::from(near);
    let bits = near.to_bits();
    if back == x || bits & 1 == 1 || !near.is_finite() {
        return near;
    }
    // Inexact with an even last bit: the odd neighbour lies on the other side of x.
    f32::from_bits(if back.abs() < x.abs() { bits + 1 } else { bits - 1 })
}

macro_rules! convert {
    ($($t:ty, $wide:ident as $as:ty, |$x:ident| $float:expr, |$i:ident| $int:expr;)*) => {$(
        impl Convert for $t {
            #[inline(always)]
            fn to_wide(self) -> Wide { Wide::$wide(<$as>::from(self)) }
            #[inline(always)]
            fn of_float($x: f64) -> Self { $float }
            #[inline(always)]
            fn of_int($i: i64) -> Self { $int }
        }
    )*};
}

convert! {
    f64, Float as f64, |x| x, |i| i as f64;
    f32, Float as f64, |x| x as f32, |i| i as f32;
    bf16, Float as f64, |x| bf16::store(to_odd(x)), |i| bf16::store(to_odd(i as f64));
    f16, Float as f64, |x| f16::store(to_odd(x)), |i| f16::store(to_odd(i as f64));
    i64, Int as i64, |x| x as i64, |i| i;
    u32, Int as i64, |x| x as u32, |i| i.clamp(0, i64::from(u32::MAX)) as u32;
    u8, Int as i64, |x| x as u8, |i| i.clamp(0, 255) as u8;
}

#[inline(always)]
fn convert<A: Convert, B: Convert>(x: A) -> B {
    match x.to_wide() {
        Wide::Float(x) => B::of_float(x),
        Wide::Int(x) => B::of_int(x),
    }
}

/// Runs `$body` with `$T` bound to the Rust type of a dtype that kernels compute in f32; nothing for the others.
macro_rules! with_narrow {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $T = f32;
                $body
            }
            DType::BF16 => {
                type $T = bf16;
                $body
            }
            DType::F16 => {
                type $T = f16;
                $body
            }
            _ => {}
        }
    };
}

impl Op for Cast {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        Ok(smallvec![Spec { shape: x[0].shape.clone(), dtype: self.to }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        // The everyday pairs stay in f32, where the conversions vectorise; f64 and integers take the exact way round.
        with_narrow!(x[0].dtype(), A => with_narrow!(self.to, B => {
            return map::unary(&x[0], y[0].slice::<B>(), #[inline(always)] |v: A| B::store(v.load()));
        }));
        with_dtype!(x[0].dtype(), A => with_dtype!(self.to, B => map::unary(&x[0], y[0].slice::<B>(), #[inline(always)] |v: A| convert::<A, B>(v))))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        cuda::copy::cast(y[0].context(), x[0].start(), x[0].layout(), y[0].dst())
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        // Only the dtype is needed: an empty tensor carries it.
        Saved::list([Tensor::full_on([0], 0.0, x[0].dtype(), x[0].device()).ok()])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![Some(y_bar.only()?.cast(saved.get(0)?.dtype())?)])
    }
}

impl Tensor {
    /// The same numbers in another element type; free when it already is that type.
    ///
    /// ```
    /// use cotangent::{BF16, F32, I64, Tape, Tensor};
    /// let tape = Tape::new();
    /// let x = tape.watch(&Tensor::from_slice(&[1.5f32, -2.75], [2])?)?;
    /// let y = x.cast(BF16)?.square()?.cast(F32)?.sum(..)?;
    /// assert_eq!(tape.backward(&y)?.get(&x)?.to_vec::<f32>()?, [3.0, -5.5]);
    /// assert_eq!(Tensor::from_slice(&[-2.75, f64::NAN, 1e30], [3])?.cast(I64)?.to_vec::<i64>()?, [-2, 0, i64::MAX]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// Between floats `ȳ` cast back to the operand's type: rounding counts as the identity. Nothing flows through an
    /// integer type: such a result is untracked. Saves nothing.
    ///
    /// # Numerics
    /// To floats: rounded once, to nearest even; too large becomes ±∞. To integers: truncated towards zero and saturated
    /// at the ends of the range, NaN becomes 0; integers saturate too (−1 → 0 in `u8`).
    ///
    /// # Errors
    /// Out of memory.
    #[doc(alias("to", "type", "astype", "float", "double", "half"))]
    #[track_caller]
    pub fn cast(&self, dtype: DType) -> Result<Tensor> {
        if dtype == self.dtype() { Ok(self.clone()) } else { apply1(Cast { to: dtype }, &[self]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tape::Tape;

    #[test]
    fn f64_rounds_once_to_half_types() -> Result<()> {
        // Just above the midpoint of 1 and 1 + 2⁻⁷ by less than f32 can see: two roundings would give 1.
        let x = [1.0 + f64::powi(2.0, -8) + f64::powi(2.0, -40), 1.0 + f64::powi(2.0, -8), -1.0 - f64::powi(2.0, -8) - f64::powi(2.0, -40)];
        let y = Tensor::from_slice(&x, [3])?.cast(DType::BF16)?.to_f64_vec()?;
        assert_eq!(y, [1.0078125, 1.0, -1.0078125]);
        let x = [1.0 + f64::powi(2.0, -11) + f64::powi(2.0, -40), 1.0 + f64::powi(2.0, -11), 65519.999999999];
        let y = Tensor::from_slice(&x, [3])?.cast(DType::F16)?.to_f64_vec()?;
        assert_eq!(y, [1.0009765625, 1.0, 65504.0]);
        Ok(())
    }

    #[test]
    fn cotangents_come_back_in_the_operands_type() -> Result<()> {
        for from in DType::FLOATS {
            for to in DType::FLOATS {
                let tape = Tape::new();
                let x = tape.watch(&Tensor::from_slice(&[1.5, -2.0, 0.25], [3])?.cast(from)?)?;
                let y = x.cast(to)?;
                assert_eq!(y.dtype(), to);
                let g = tape.backward(&y.square()?.sum(..)?)?;
                let g = g.get(&x)?;
                assert_eq!(g.dtype(), from);
                assert_eq!(g.to_f64_vec()?, [3.0, -4.0, 0.5]);
            }
        }
        Ok(())
    }

    #[test]
    fn integers_are_untracked() -> Result<()> {
        let tape = Tape::new();
        let x = tape.watch(&Tensor::from_slice(&[1.5f32, -2.0], [2])?)?;
        for to in [DType::I64, DType::U32, DType::U8] {
            let y = x.cast(to)?;
            assert!(!y.is_tracked() && !y.cast(DType::F32)?.is_tracked());
        }
        Ok(())
    }
}
