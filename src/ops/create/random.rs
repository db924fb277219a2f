//! Random tensors. Element `i` depends on the key and on `i` only: not on the shape, the thread or the device.
//!
//! A key is a [`Key`], or `&mut rng`, which hands out its next one.

use super::fill::held;
use crate::array::Array;
use crate::backend::Device;
use crate::backend::cpu::par::*;
use crate::backend::cpu::{SERIAL, normal};
use crate::dtype::{DType, Element, with_dtype, with_float};
use crate::error::{Result, bail};
use crate::rng::{Key, unit_pair};
use crate::shape::Shape;
use crate::tensor::Tensor;
use half::{bf16, f16};
use std::ops::Range;
use std::panic::Location;

/// A tensor filled by `$fill`, which is given the elements `$y` and their type as `T`.
macro_rules! build {
    ($name:expr, $at:expr, $shape:expr, $dtype:expr, |$y:ident| $fill:expr) => {{
        let make = || with_dtype!($dtype, T => Array::build($shape, Device::Cpu, |$y: &mut [T]| $fill));
        make().map(Tensor::from_array).map_err(|e| e.in_op($name, $at))
    }};
}

/// A tensor of `f(0), f(1), …`.
fn fill(
    name: &'static str,
    at: &'static Location<'static>,
    shape: Shape,
    dtype: DType,
    key: Key,
    f: &(dyn Fn(u64) -> f64 + Sync),
) -> Result<Tensor> {
    build!(name, at, shape, dtype, |y| key.fill_each(0, y, |i| <T as Element>::from_f64(f(i))))
}

fn floats(dtype: DType) -> Result<()> {
    if !dtype.is_float() {
        bail!(dtype, "expected a float dtype, found {dtype}");
    }
    Ok(())
}

/// The neighbour below, among the values of a float type; `x` is one of them, or +∞.
fn next_down(x: f64, dtype: DType) -> f64 {
    let half = |bits: u16| {
        if bits & 0x7fff == 0 {
            0x8001
        } else if bits >> 15 == 1 {
            bits + 1
        } else {
            bits - 1
        }
    };
    match dtype {
        DType::F32 => f64::from((x as f32).next_down()),
        DType::BF16 => bf16::from_bits(half(bf16::from_f64(x).to_bits())).to_f64(),
        DType::F16 => f16::from_bits(half(f16::from_f64(x).to_bits())).to_f64(),
        _ => x.next_down(),
    }
}

/// The largest value of a float type that is at most `x`.
fn at_most(x: f64, dtype: DType) -> f64 {
    let rounded = with_dtype!(dtype, T => Element::to_f64(<T as Element>::from_f64(x)));
    if rounded > x { next_down(rounded, dtype) } else { rounded }
}

/// The largest value of a float type that is less than `x`.
fn below(x: f64, dtype: DType) -> f64 {
    let most = at_most(x, dtype);
    if most < x { most } else { next_down(most, dtype) }
}

/// The smallest value of a float type that is at least `x`.
fn at_least(x: f64, dtype: DType) -> f64 {
    -at_most(-x, dtype)
}

impl Tensor {
    /// Uniform values in `[0, 1)`: `Tensor::rand([2, 3], F32, key)`.
    ///
    /// # Errors
    /// Dtype error for integers; out of memory.
    #[doc(alias = "random")]
    #[track_caller]
    pub fn rand(shape: impl Into<Shape>, dtype: DType, key: impl Into<Key>) -> Result<Tensor> {
        uniform_values("rand", shape.into(), 0.0..1.0, dtype, key.into())
    }

    /// Uniform values in `[start, end)`.
    ///
    /// # Numerics
    /// Drawn with 53 bits and rounded once, to a value of the type that lies in the range.
    ///
    /// # Errors
    /// Argument error unless the bounds are finite and in order, with a value of the type between them; dtype error for integers; out
    /// of memory.
    #[track_caller]
    pub fn uniform(shape: impl Into<Shape>, range: Range<f64>, dtype: DType, key: impl Into<Key>) -> Result<Tensor> {
        uniform_values("uniform", shape.into(), range, dtype, key.into())
    }

    /// Standard normal values: `Tensor::randn([2, 3], F32, key)`.
    ///
    /// # Numerics
    /// Box & Muller's transform of 53 bits, up to ±8.6; in f32 for the types other than f64, whose numbers are those of f64 to a few
    /// roundings. The bits depend on key and index alone, on every processor.
    ///
    /// # Errors
    /// Dtype error for integers; out of memory.
    ///
    /// ```
    /// # use cotangent::{F32, Key, Tensor};
    /// let x = Tensor::randn([2, 3], F32, Key::new(0))?;
    /// let again = Tensor::randn([6], F32, Key::new(0))?;
    /// assert_eq!(x.to_vec::<f32>()?, again.to_vec::<f32>()?);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[doc(alias = "random_normal")]
    #[track_caller]
    pub fn randn(shape: impl Into<Shape>, dtype: DType, key: impl Into<Key>) -> Result<Tensor> {
        normal_values("randn", shape.into(), (0.0, 1.0), dtype, key.into())
    }

    /// Standard normal values in the shape and dtype of this tensor, on its device.
    ///
    /// # Gradient
    /// None: the result does not depend on this tensor's values.
    ///
    /// # Errors
    /// Dtype error for integers; out of memory.
    ///
    /// ```
    /// # use cotangent::{F32, Rng, Tensor};
    /// let (mean, deviation) = (Tensor::zeros([2, 3], F32)?, Tensor::ones([2, 3], F32)?);
    /// let z = &mean + deviation * mean.randn_like(&mut Rng::seed(1))?; // a normal variable, reparameterised
    /// assert_eq!(z.shape(), &[2, 3]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[track_caller]
    pub fn randn_like(&self, key: impl Into<Key>) -> Result<Tensor> {
        normal_values("randn_like", self.shape().clone(), (0.0, 1.0), self.dtype(), key.into())?.to_device(self.device())
    }

    /// Normal values with a mean and a standard deviation.
    ///
    /// # Errors
    /// Argument error for a negative or not finite parameter; dtype error for integers; out of memory.
    #[track_caller]
    pub fn normal(shape: impl Into<Shape>, mean: f64, std: f64, dtype: DType, key: impl Into<Key>) -> Result<Tensor> {
        normal_values("normal", shape.into(), (mean, std), dtype, key.into())
    }

    /// Normal values conditioned on lying between two bounds, as PyTorch's `trunc_normal_` (the bounds are absolute).
    ///
    /// # Numerics
    /// Rounded to a value of the type that lies between the bounds, the bounds included.
    ///
    /// # Errors
    /// Argument error for a negative or not finite parameter, or bounds out of order or without a value of the type between them; dtype error for integers; out of memory.
    #[track_caller]
    pub fn truncated_normal(
        shape: impl Into<Shape>,
        mean: f64,
        std: f64,
        bounds: Range<f64>,
        dtype: DType,
        key: impl Into<Key>,
    ) -> Result<Tensor> {
        #[track_caller]
        #[inline(never)]
        fn run(shape: Shape, mean: f64, std: f64, bounds: Range<f64>, dtype: DType, key: Key) -> Result<Tensor> {
            let at = Location::caller();
            let Range { start, end } = bounds;
            let check = || {
                spread(mean, std)?;
                floats(dtype)?;
                if !(start <= end) || std == 0.0 {
                    bail!(argument, "the bounds {start}..{end} must be in order, and the standard deviation {std} positive");
                }
                between(start..end, [at_least(start, dtype), at_most(end, dtype)], dtype)
            };
            let [first, last] = check().map_err(|e| e.in_op("truncated_normal", at))?;
            let (lo, hi) = ((start - mean) / std, (end - mean) / std);
            fill("truncated_normal", at, shape, dtype, key, &|i| (mean + std * key.truncated_normal(i, lo, hi)).clamp(first, last))
        }
        run(shape.into(), mean, std, bounds, dtype, key.into())
    }

    /// A mask: 1 with probability `p`, else 0.
    ///
    /// # Errors
    /// Argument error when `p` is not in `[0, 1]`; out of memory.
    #[track_caller]
    pub fn bernoulli(shape: impl Into<Shape>, p: f64, dtype: DType, key: impl Into<Key>) -> Result<Tensor> {
        #[track_caller]
        #[inline(never)]
        fn run(shape: Shape, p: f64, dtype: DType, key: Key) -> Result<Tensor> {
            let at = Location::caller();
            if !(0.0..=1.0).contains(&p) {
                return Err(crate::Error::argument(format!("the probability {p} is not in [0, 1]")).in_op("bernoulli", at));
            }
            build!("bernoulli", at, shape, dtype, |y| key.fill_bernoulli_as(0, p, y, [0.0, 1.0].map(<T as Element>::from_f64)))
        }
        run(shape.into(), p, dtype, key.into())
    }

    /// Integers in `[start, end)`, without bias: `Tensor::randint([8], 0..10, I64, key)`.
    ///
    /// # Errors
    /// Argument error for an empty range; dtype error when the dtype cannot hold its values exactly; out of memory.
    #[doc(alias = "random_integers")]
    #[track_caller]
    pub fn randint(shape: impl Into<Shape>, range: Range<i64>, dtype: DType, key: impl Into<Key>) -> Result<Tensor> {
        #[track_caller]
        #[inline(never)]
        fn run(shape: Shape, range: Range<i64>, dtype: DType, key: Key) -> Result<Tensor> {
            let at = Location::caller();
            let check = || {
                if range.start >= range.end {
                    bail!(argument, "the range {}..{} is empty", range.start, range.end);
                }
                let (least, most) = match dtype {
                    DType::I64 => (i64::MIN, i64::MAX),
                    DType::U32 => (0, i64::from(u32::MAX)),
                    DType::U8 => (0, i64::from(u8::MAX)),
                    // Floats skip integers beyond 1/ε; f16 ends before.
                    _ => {
                        let most = (2.0 / dtype.epsilon()).min(dtype.max_value()) as i64;
                        (-most, most)
                    }
                };
                if range.start < least || range.end - 1 > most {
                    bail!(dtype, "{dtype} does not hold every integer of {}..{}", range.start, range.end);
                }
                Ok(range.end.abs_diff(range.start))
            };
            let n = check().map_err(|e: crate::Error| e.in_op("randint", at))?;
            // Wraps only on the way: the sum lies in the range.
            let whole = |i| range.start.wrapping_add(key.below(i, n) as i64);
            if dtype == DType::I64 {
                let make = || Array::build(shape, Device::Cpu, |y: &mut [i64]| key.fill_each(0, y, whole));
                return make().map(Tensor::from_array).map_err(|e| e.in_op("randint", at));
            }
            fill("randint", at, shape, dtype, key, &|i| whole(i) as f64)
        }
        run(shape.into(), range, dtype, key.into())
    }

    /// The integers `0..n` in random order.
    ///
    /// # Errors
    /// Dtype error when the dtype cannot hold `n - 1` exactly; out of memory.
    #[doc(alias("permutation", "shuffle"))]
    #[track_caller]
    pub fn randperm(n: usize, dtype: DType, key: impl Into<Key>) -> Result<Tensor> {
        #[track_caller]
        #[inline(never)]
        fn run(n: usize, dtype: DType, key: Key) -> Result<Tensor> {
            let at = Location::caller();
            let limit = if dtype.is_float() { 2.0 / dtype.epsilon() } else { dtype.max_value() + 1.0 };
            if n as f64 > limit {
                return Err(crate::Error::dtype(format!("{dtype} does not hold every integer below {n}")).in_op("randperm", at));
            }
            // Sorting by random words; equal words, one in 2⁶⁴, fall back to the order of the numbers.
            let mut order: Vec<(u64, u64)> = Vec::new();
            let oom = |_| crate::Error::out_of_memory(format!("cannot sort {n} random words")).in_op("randperm", at);
            order.try_reserve_exact(n).map_err(oom)?;
            order.extend((0..n as u64).map(|i| (key.u64(i), i)));
            order.sort_unstable();
            fill("randperm", at, n.into(), dtype, key, &|i| order[i as usize].1 as f64)
        }
        run(n, dtype, key.into())
    }
}

/// `start + width·u` within `first` and `last`. No operand is NaN.
#[inline(always)]
fn placed(u: f64, start: f64, width: f64, first: f64, last: f64) -> f64 {
    let v = start + width * u;
    let v = if v > last { last } else { v };
    if v < first { first } else { v }
}

/// The first and last value of a type in a range, if there is one.
fn between(range: Range<f64>, [first, last]: [f64; 2], dtype: DType) -> Result<[f64; 2]> {
    if first > last {
        bail!(argument, "no value of {dtype} is in {}..{}: its neighbours there are {last} and {first}", range.start, range.end);
    }
    Ok([first, last])
}

fn spread(mean: f64, std: f64) -> Result<()> {
    if !(mean.is_finite() && std.is_finite() && std >= 0.0) {
        bail!(argument, "mean {mean} and standard deviation {std} must be finite, and the latter not negative");
    }
    Ok(())
}

// The shells convert; what is not generic is compiled here, and not by every user.
/// Uniform values, asked for by the method of that name.
#[track_caller]
#[inline(never)]
fn uniform_values(op: &'static str, shape: Shape, range: Range<f64>, dtype: DType, key: Key) -> Result<Tensor> {
    let at = Location::caller();
    let Range { start, end } = range;
    let check = || {
        floats(dtype)?;
        let width = end - start;
        if !(start < end && start.is_finite() && end.is_finite() && width.is_finite()) {
            bail!(argument, "the range {start}..{end} must be finite and not empty");
        }
        between(start..end, [at_least(start, dtype), below(end, dtype)], dtype)
    };
    let [first, last] = check().map_err(|e| e.in_op(op, at))?;
    let width = end - start;
    let make = || {
        with_float!(dtype, T => Array::build(shape, Device::Cpu, |y: &mut [T]| key.fill_pairs(
            0,
            y,
            #[inline(always)]
            move |b| unit_pair(b).map(|u| <T as Element>::from_f64(placed(u, start, width, first, last)))
        )))
    };
    make().map(Tensor::from_array).map_err(|e| e.in_op(op, at))
}

/// Normal values, asked for by the method of that name.
#[track_caller]
#[inline(never)]
fn normal_values(op: &'static str, shape: Shape, (mean, std): (f64, f64), dtype: DType, key: Key) -> Result<Tensor> {
    let at = Location::caller();
    let check = || {
        spread(mean, std).and_then(|()| floats(dtype))?;
        held(mean, dtype).and(held(std, dtype))
    };
    check().map_err(|e| e.in_op(op, at))?;
    let (m, s) = (mean as f32, std as f32);
    let make = || match dtype {
        DType::F32 => Array::build(shape, Device::Cpu, |y: &mut [f32]| normal::fill(key, 0, y, m, s)),
        DType::BF16 => Array::build(shape, Device::Cpu, |y: &mut [bf16]| normal::fill(key, 0, y, m, s)),
        DType::F16 => Array::build(shape, Device::Cpu, |y: &mut [f16]| normal::fill(key, 0, y, m, s)),
        _ => Array::build(shape, Device::Cpu, |y: &mut [f64]| {
            key.fill_normal(0, y);
            y.par_chunks_mut(SERIAL).for_each(|y| y.iter_mut().for_each(|x| *x = mean + std * *x));
        }),
    };
    make().map(Tensor::from_array).map_err(|e| e.in_op(op, at))
}

#[cfg(test)]
mod tests {
    use crate::{BF16, DType, F16, F32, F64, I64, Key, Tensor, U8};

    #[test]
    fn uniform_stays_in_its_range_in_every_dtype() -> crate::Result<()> {
        for dtype in DType::FLOATS {
            for (lo, hi) in [(0.0, 1.0), (-1.0, 0.0), (-3.0, 5.0), (0.25, 0.26), (-1e-3, 1e-3)] {
                let x = Tensor::uniform([40_000], lo..hi, dtype, Key::new(3))?.to_f64_vec()?;
                let slack = dtype.epsilon() * f64::abs(lo);
                assert!(x.iter().all(|&v| v >= lo - slack && v < hi), "{dtype} {lo}..{hi}");
                let mean = x.iter().sum::<f64>() / x.len() as f64;
                assert!((mean - (lo + hi) / 2.0).abs() < 0.02 * (hi - lo) + dtype.epsilon() * hi.abs(), "{dtype} {lo}..{hi}: {mean}");
            }
        }
        Ok(())
    }

    #[test]
    fn elements_depend_on_their_position_only() -> crate::Result<()> {
        let key = Key::new(9);
        let long = Tensor::randn([30_000], F32, key)?.to_vec::<f32>()?;
        let short = Tensor::randn([3, 5], F32, key)?.to_vec::<f32>()?;
        assert_eq!(short[..], long[..15]);
        let mean = long.iter().sum::<f32>() / 3e4;
        assert!(mean.abs() < 0.02);
        Ok(())
    }

    #[test]
    fn integers_and_permutations() -> crate::Result<()> {
        let key = Key::new(1);
        let dice = Tensor::randint([1000], 1..7, U8, key)?.to_vec::<u8>()?;
        assert!((1..=6).all(|d| dice.contains(&d)) && dice.iter().all(|d| (1..=6).contains(d)));
        assert!(Tensor::randint([1], 0..300, U8, key).unwrap_err().is_dtype());
        assert!(Tensor::randint([1], 0..300, BF16, key).unwrap_err().is_dtype());
        assert!(Tensor::randint([1], 5..5, I64, key).unwrap_err().is_argument());
        let mut p = Tensor::randperm(100, I64, key)?.to_vec::<i64>()?;
        assert_ne!(p, (0..100).collect::<Vec<_>>());
        p.sort_unstable();
        assert_eq!(p, (0..100).collect::<Vec<_>>());
        assert_eq!(Tensor::randperm(0, I64, key)?.numel(), 0);
        assert!(Tensor::randperm(1 << 50, I64, key).unwrap_err().is_out_of_memory());
        let t = Tensor::truncated_normal([5000], 1.0, 2.0, 0.0..1.5, F16, key)?.to_f64_vec()?;
        assert!(t.iter().all(|v| (0.0..=1.5).contains(v)));
        let m = Tensor::bernoulli([10_000], 0.3, F64, key)?.to_f64_vec()?;
        assert!((m.iter().sum::<f64>() / 1e4 - 0.3).abs() < 0.02);
        assert!(Tensor::bernoulli([1], 1.5, F64, key).unwrap_err().is_argument());
        assert!(Tensor::rand([2], I64, key).unwrap_err().is_dtype());
        Ok(())
    }
}
