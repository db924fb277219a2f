//! Tensors from nothing: constants, ranges, random values. They have no history, so they are no ops of the contract.

use crate::array::Array;
use crate::backend::Device;
use crate::backend::cpu::map;
use crate::dtype::{DType, Element, with_dtype, with_float};
use crate::error::{Result, bail};
use crate::shape::Shape;
use crate::tensor::Tensor;
use std::panic::Location;

impl Tensor {
    /// One value everywhere, on the CPU. Stored once, so it costs no memory until it is written to.
    ///
    /// # Errors
    /// Argument error when the dtype cannot hold the value (a fraction among integers, 1e6 in f16); out of memory when the shape overflows.
    #[doc(alias("constant", "new_full"))]
    #[track_caller]
    pub fn full(shape: impl Into<Shape>, value: f64, dtype: DType) -> Result<Tensor> {
        constant("full", shape.into(), value, dtype, Device::Cpu)
    }

    /// [`Tensor::full`] on a device.
    ///
    /// # Errors
    /// As [`Tensor::full`]; device error when the device is not available.
    #[track_caller]
    pub fn full_on(shape: impl Into<Shape>, value: f64, dtype: DType, device: Device) -> Result<Tensor> {
        constant("full_on", shape.into(), value, dtype, device)
    }

    /// Zeros: `Tensor::zeros([2, 3], F32)`. Stored once, whatever the shape.
    ///
    /// # Errors
    /// Out of memory when the shape overflows.
    #[track_caller]
    pub fn zeros(shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        constant("zeros", shape.into(), 0.0, dtype, Device::Cpu)
    }

    /// Ones. Stored once, whatever the shape.
    ///
    /// # Errors
    /// Out of memory when the shape overflows.
    #[track_caller]
    pub fn ones(shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        constant("ones", shape.into(), 1.0, dtype, Device::Cpu)
    }

    /// Zeros of the same shape, dtype and device.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn zeros_like(&self) -> Result<Tensor> {
        constant("zeros_like", self.shape().clone(), 0.0, self.dtype(), self.device())
    }

    /// Ones of the same shape, dtype and device.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn ones_like(&self) -> Result<Tensor> {
        constant("ones_like", self.shape().clone(), 1.0, self.dtype(), self.device())
    }

    /// Host values in row-major order; see [`Tensor::from_slice`].
    ///
    /// # Errors
    /// Shape error when the number of values differs from the shape's element count; out of memory.
    #[track_caller]
    pub fn from_vec<T: Element>(data: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
        Self::copied("from_vec", &data, shape.into())
    }

    /// A matrix from its rows: `Tensor::from_rows(&[[1f32, 2.], [3., 4.]])`.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn from_rows<T: Element, const N: usize>(rows: &[[T; N]]) -> Result<Tensor> {
        Self::copied("from_rows", rows.as_flattened(), [rows.len(), N].into())
    }

    /// `start, start + step, …` while before `end` (after it, for a negative step).
    ///
    /// Each element is `start + i·step`, computed in f64 and rounded once (in i64 exactly, for a whole start and step); there are `⌈(end − start) / step⌉` of them.
    ///
    /// # Errors
    /// Argument error when the step is zero, an argument is not finite, or the dtype cannot hold an element; out of memory when there
    /// are too many elements.
    ///
    /// ```
    /// # use cotangent::{Tensor, I64};
    /// assert_eq!(Tensor::arange(0.0, 10.0, 3.0, I64)?.to_vec::<i64>()?, [0, 3, 6, 9]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[track_caller]
    pub fn arange(start: f64, end: f64, step: f64, dtype: DType) -> Result<Tensor> {
        let at = Location::caller();
        let make = || {
            if step == 0.0 || !(start.is_finite() && end.is_finite() && step.is_finite()) {
                bail!(argument, "start {start}, end {end} and step {step} must be finite, and the step not zero");
            }
            // Whole numbers are counted as such: an f64 skips integers beyond 2⁵³.
            if dtype == DType::I64 && [start, step].iter().all(|v| v.fract() == 0.0 && v.abs() <= 2f64.powi(63)) {
                return whole_range(start as i128, end, step as i128);
            }
            // The cast saturates, and so fails as a shape.
            let width = if (end - start).is_finite() { (end - start) / step } else { end / step - start / step };
            let n = width.ceil().max(0.0) as usize;
            if n > 0 {
                held(start, dtype)?;
                held(start + (n - 1) as f64 * step, dtype)?;
                whole(step, dtype)?;
            }
            build(n, dtype, |i| start + i as f64 * step)
        };
        make().map_err(|e: crate::Error| e.in_op("arange", at))
    }

    /// `n` evenly spaced values from `start` to `end`, both included.
    ///
    /// # Errors
    /// Argument error when an end is not finite, or beyond what the dtype holds; out of memory.
    #[track_caller]
    pub fn linspace(start: f64, end: f64, n: usize, dtype: DType) -> Result<Tensor> {
        let at = Location::caller();
        let make = || {
            if !(start.is_finite() && end.is_finite()) {
                bail!(argument, "start {start} and end {end} must be finite");
            }
            held(start, dtype)?;
            held(end, dtype)?;
            let width = end - start;
            let last = n.saturating_sub(1).max(1) as f64;
            whole(width / last, dtype)?;
            // From the nearer end, so that both ends are exact and the values symmetric.
            build(n, dtype, |i| {
                let (a, b) = (i as f64 / last, (n as f64 - 1.0 - i as f64) / last);
                match a <= b {
                    // Ends of both signs whose distance overflows: halved, which is exact for numbers as large as theirs.
                    true if width.is_infinite() => 2.0 * (start / 2.0 + a * (end / 2.0 - start / 2.0)),
                    false if width.is_infinite() => 2.0 * (end / 2.0 - b * (end / 2.0 - start / 2.0)),
                    true => start + a * width,
                    false => end - b * width,
                }
            })
        };
        make().map_err(|e: crate::Error| e.in_op("linspace", at))
    }

    /// Ones on the diagonal, zeros elsewhere: `Tensor::eye(3, F32)` is the identity matrix, `Tensor::eye([2, 3], F32)` has two rows and
    /// three columns.
    ///
    /// # Errors
    /// Shape error for a shape that has not one or two extents; out of memory.
    ///
    /// ```
    /// # use cotangent::{Tensor, F32};
    /// assert_eq!(Tensor::eye(2, F32)?.to_vec::<f32>()?, [1.0, 0.0, 0.0, 1.0]);
    /// assert_eq!(Tensor::eye([2, 3], F32)?.to_vec::<f32>()?, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[doc(alias = "identity")]
    #[track_caller]
    pub fn eye(shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let (at, shape) = (Location::caller(), shape.into());
        let make = || {
            let [rows, columns] = match shape[..] {
                [n] => [n, n],
                [rows, columns] => [rows, columns],
                _ => bail!(shape, "expected the side of a square, or rows and columns; found {shape}"),
            };
            with_dtype!(dtype, T => Array::build(Shape::from([rows, columns]), Device::Cpu, |y: &mut [T]| {
                y.fill(<T as Element>::from_f64(0.0));
                for i in 0..rows.min(columns) {
                    y[i * columns + i] = <T as Element>::from_f64(1.0);
                }
            }))
        };
        make().map(Tensor::from_array).map_err(|e: crate::Error| e.in_op("eye", at))
    }
}

/// One value everywhere, by the name of the function that was called.
#[track_caller]
fn constant(name: &'static str, shape: Shape, value: f64, dtype: DType, device: Device) -> Result<Tensor> {
    let at = Location::caller();
    let make = || Array::full(held(value, dtype)?, dtype, shape, device);
    make().map(Tensor::from_array).map_err(|e| e.in_op(name, at))
}

/// [`Tensor::arange`] in i64, exactly.
fn whole_range(start: i128, end: f64, step: i128) -> Result<Tensor> {
    // Casts saturate: what is that far away is refused as a shape or as a value below.
    let end = if step > 0 { end.ceil() } else { end.floor() } as i128;
    let width = end.saturating_sub(start);
    let n = if (width > 0) == (step > 0) { width.unsigned_abs().div_ceil(step.unsigned_abs()) } else { 0 };
    let n = usize::try_from(n).unwrap_or(usize::MAX);
    if n > 0 {
        for v in [Some(start), (n as i128 - 1).checked_mul(step).and_then(|far| far.checked_add(start))] {
            if v.is_none_or(|v| i64::try_from(v).is_err()) {
                let shown = v.map_or_else(|| "a number of that size".into(), |v| v.to_string());
                bail!(argument, "i64 does not hold {shown}");
            }
        }
    }
    let array = Array::build(n.into(), Device::Cpu, |y: &mut [i64]| map::rows(y, 1, |i, y| y[0] = (start + i as i128 * step) as i64))?;
    Ok(Tensor::from_array(array))
}

/// The value, if the dtype can hold it: where a cast cuts off, saturates or overflows, a constant of another value would be a mistake.
pub(crate) fn held(value: f64, dtype: DType) -> Result<f64> {
    if dtype.is_float() {
        let stored = with_float!(dtype, T => <T as Element>::from_f64(value).to_f64());
        if stored.is_infinite() && value.is_finite() {
            bail!(argument, "{dtype} does not hold {value:?}: its largest number is {:?}; infinity is f64::INFINITY", dtype.max_value());
        }
        return Ok(value);
    }
    let (least, most) = match dtype {
        DType::I64 => (i64::MIN as f64, i64::MAX as f64), // 2⁶³: the first that does not fit
        _ => (0.0, dtype.max_value() + 1.0),
    };
    if value.fract() == 0.0 && (least..most).contains(&value) {
        return Ok(value);
    }
    let hint = if value.fract() != 0.0 { ": it holds whole numbers" } else { "" };
    bail!(argument, "{dtype} does not hold {value}{hint}")
}

/// Between whole numbers at a fraction's distance are some that integers do not hold.
fn whole(step: f64, dtype: DType) -> Result<()> {
    if dtype.is_float() || step.fract() == 0.0 {
        return Ok(());
    }
    bail!(argument, "{dtype} does not hold values at a distance of {step}: make them in F64, and cast")
}

/// A vector of `f(0), f(1), …`.
fn build(n: usize, dtype: DType, f: impl Fn(usize) -> f64 + Sync) -> Result<Tensor> {
    let array = with_dtype!(dtype, T => Array::build(n.into(), Device::Cpu, |y: &mut [T]| {
        map::rows(y, 1, |i, y| y[0] = <T as Element>::from_f64(f(i)));
    })?);
    Ok(Tensor::from_array(array))
}

#[cfg(test)]
mod tests {
    use crate::{BF16, F16, F32, F64, I64, Tensor, U8, U32};

    #[test]
    fn ranges_have_the_documented_ends() -> crate::Result<()> {
        assert_eq!(Tensor::arange(0.0, 5.0, 2.0, F32)?.to_vec::<f32>()?, [0.0, 2.0, 4.0]);
        assert_eq!(Tensor::arange(5.0, 0.0, -2.0, I64)?.to_vec::<i64>()?, [5, 3, 1]);
        assert_eq!(Tensor::arange(3.0, 3.0, 1.0, U8)?.numel(), 0);
        assert_eq!(Tensor::arange(3.0, 1.0, 1.0, U8)?.numel(), 0);
        assert!(Tensor::arange(0.0, 1.0, 0.0, F32).unwrap_err().is_argument());
        assert!(Tensor::arange(0.0, f64::INFINITY, 1.0, F32).unwrap_err().is_argument());
        assert!(Tensor::arange(0.0, 1e300, 1.0, F32).unwrap_err().is_out_of_memory());
        let x = Tensor::linspace(-1.0, 1.0, 7, F64)?.to_vec::<f64>()?;
        assert_eq!((x[0], x[3], x[6]), (-1.0, 0.0, 1.0));
        assert!((0..7).all(|i| x[i] == -x[6 - i]));
        assert_eq!(Tensor::linspace(2.0, 9.0, 1, BF16)?.to_f64_vec()?, [2.0]);
        assert_eq!(Tensor::linspace(2.0, 9.0, 0, F16)?.numel(), 0);
        Ok(())
    }

    /// [NaN, ∞, NaN] before.
    #[test]
    fn linspace_does_not_overflow_between_its_ends() -> crate::Result<()> {
        let m = f64::MAX;
        assert_eq!(Tensor::linspace(-m, m, 3, F64)?.to_vec::<f64>()?, [-m, 0.0, m]);
        assert_eq!(Tensor::linspace(m, -m, 5, F64)?.to_vec::<f64>()?, [m, m / 2.0, 0.0, -m / 2.0, -m]);
        assert_eq!(Tensor::linspace(m, m, 3, F64)?.to_vec::<f64>()?, [m; 3]);
        assert_eq!(Tensor::arange(-m, m, m, F64)?.to_vec::<f64>()?, [-m, 0.0]);
        Ok(())
    }

    /// A cast saturates; a creation function that did would make another constant than the one asked for.
    #[test]
    fn integers_that_do_not_fit_are_refused() -> crate::Result<()> {
        for (value, dtype) in
            [(-1.0, U8), (256.0, U8), (f64::NAN, I64), (f64::INFINITY, U32), (9.3e18, I64), (-1.0, U32), (4294967296.0, U32)]
        {
            let e = Tensor::full([2], value, dtype).unwrap_err();
            assert!(e.is_argument() && e.to_string().starts_with(&format!("full: {dtype} does not hold {value}")), "{e}");
        }
        assert_eq!(Tensor::full([1], 255.0, U8)?.to_vec::<u8>()?, [255]);
        assert_eq!(Tensor::full([1], -(2f64.powi(63)), I64)?.to_vec::<i64>()?, [i64::MIN]);
        assert!(Tensor::full([1], f64::NAN, F16)?.item()?.is_nan());
        // Floats overflow likewise, by their own rounding: 65520 is the first number that f16 rounds to infinity.
        for (value, dtype) in [(1e6, F16), (65520.0, F16), (-1e39, F32), (3.4e38, BF16)] {
            let e = Tensor::full([2], value, dtype).unwrap_err();
            assert!(e.is_argument() && e.to_string().contains(&format!("{dtype} does not hold")), "{e}");
            assert!(Tensor::arange(value, 2.0 * value, value, dtype).is_err() && Tensor::linspace(0.0, value, 3, dtype).is_err());
        }
        assert_eq!(Tensor::full([1], 65519.0, F16)?.to_f64_vec()?, [65504.0]);
        assert_eq!(Tensor::full([1], -f64::INFINITY, F16)?.to_f64_vec()?, [-f64::INFINITY]);
        assert!(Tensor::arange(0.0, 257.0, 1.0, U8).unwrap_err().is_argument());
        assert!(Tensor::arange(3.0, -2.0, -1.0, U8).unwrap_err().is_argument());
        assert_eq!(Tensor::arange(0.0, 256.0, 1.0, U8)?.numel(), 256);
        assert!(Tensor::linspace(0.0, 300.0, 4, U8).unwrap_err().is_argument());
        Ok(())
    }

    #[test]
    fn constants() -> crate::Result<()> {
        assert_eq!(Tensor::eye(3, F16)?.to_f64_vec()?, [1., 0., 0., 0., 1., 0., 0., 0., 1.]);
        assert_eq!(Tensor::eye(0, F32)?.shape(), &[0, 0]);
        assert_eq!(Tensor::eye([2, 3], I64)?.to_vec::<i64>()?, [1, 0, 0, 0, 1, 0]);
        assert_eq!(Tensor::eye([3, 2], U8)?.to_vec::<u8>()?, [1, 0, 0, 1, 0, 0]);
        assert_eq!(Tensor::eye([0, 3], F64)?.shape(), &[0, 3]);
        for wrong in [Tensor::eye((), F32), Tensor::eye([2, 2, 2], F32)] {
            assert!(wrong.unwrap_err().is_shape());
        }
        assert_eq!(Tensor::from_rows(&[[1u8, 2], [3, 4], [5, 6]])?.shape(), &[3, 2]);
        assert_eq!(Tensor::full([2], 2.5, F32)?.to_vec::<f32>()?, [2.5, 2.5]);
        assert!(Tensor::zeros([usize::MAX, 2], F32).unwrap_err().is_out_of_memory());
        Ok(())
    }
}
