//! Dropout with a mask that is a function of a key and the element's index.

use crate::backend::cpu::{self, Compute, Real, rows, simd};
use crate::backend::cuda;
use crate::dtype::with_float;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, expect};
use crate::rng::{Key, WORDS, bernoulli_threshold};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Dropout; see [`Tensor::dropout`].
#[derive(Clone, Debug)]
pub struct Dropout {
    /// Probability of an element to become 0.
    pub p: f64,
    /// The random stream of the mask.
    pub key: Key,
}

impl Dropout {
    /// What kept elements are multiplied with. With p = 1 nothing is kept: 0, not ∞.
    fn scale(&self) -> f64 {
        if self.p == 1.0 { 0.0 } else { 1.0 / (1.0 - self.p) }
    }

    fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.p) {
            bail!(argument, "the dropout probability must be between 0 and 1, found {}", self.p);
        }
        Ok(())
    }

    /// The CPU kernel; a residual is added before the one rounding.
    fn run<T: Compute>(&self, x: &[T], residual: Option<&[T]>, y: &mut [T]) -> Result<()> {
        let threshold = bernoulli_threshold(1.0 - self.p);
        // The largest word that is kept: a comparison in 32 bits, and none when nothing is kept.
        let (last, keep) = (threshold.saturating_sub(1) as u32, u32::from(threshold > 0));
        let key = self.key;
        let scale = <T::Acc as Real>::from_f64(self.scale());
        rows::for_tasks(WORDS, y, |row, y| {
            let first = row * WORDS;
            simd::dispatch(
                #[inline(always)]
                || {
                    let mut words = [0; WORDS];
                    for (k, y) in y.chunks_mut(WORDS).enumerate() {
                        let at = first + k * WORDS;
                        key.words(at as u64 / 4, &mut words);
                        let kept = |x: T, w: u32| if (w <= last) & (keep != 0) { x.load() * scale } else { T::Acc::ZERO };
                        let elements = y.iter_mut().zip(&x[at..]).zip(&words);
                        match residual {
                            None => elements.for_each(
                                #[inline(always)]
                                |((y, &x), &w)| *y = T::store(kept(x, w)),
                            ),
                            Some(r) => elements.zip(&r[at..]).for_each(
                                #[inline(always)]
                                |(((y, &x), &w), &r)| *y = T::store(r.load() + kept(x, w)),
                            ),
                        }
                    }
                },
            );
            Ok(())
        })
    }

    fn launch(&self, x: &cuda::In<'_>, residual: Option<&cuda::In<'_>>, y: &mut cuda::Out<'_>) -> Result<()> {
        let (on, n) = (y.context(), y.numel());
        if n == 0 {
            return Ok(());
        }
        let (src, view) = x.view()?;
        let (r, vr) = residual.map(cuda::In::view).transpose()?.unzip();
        let (seed, stream) = self.key.parts();
        let grid = cuda::grid(on, n, y.dtype().size());
        let threshold = bernoulli_threshold(1.0 - self.p);
        let live = cuda::capture::key_words(self.key)?.map(|at| cuda::Src::at(at, crate::I64));
        let (vr, scale, n) = (vr.unwrap_or(view), self.scale(), n as i64);
        cuda::kernels::dropout::dropout(on, grid, &y.dst(), &src, view, r.as_ref(), vr, seed, stream, live.as_ref(), threshold, scale, n)
    }
}

/// `residual + dropout(x)`; see [`Tensor::dropout_add`]. Inputs: x, residual.
#[derive(Clone, Debug)]
pub struct DropoutAdd(pub Dropout);

impl Describe for Dropout {
    const NAME: &'static str = "dropout";
    const MATH: Math = Math {
        forward: "yᵢ = xᵢ / (1 − p) where the key keeps element i (row-major index), else 0",
        vjp: "the same op on ȳ: the mask is drawn again, never read off the result",
        kinks: "linear; p = 1 gives zeros, p = 0 the operand",
        cost: "reads x, writes y, a quarter of a Philox block per element; saves nothing",
        references: "Srivastava et al., JMLR 15 (2014); Salmon et al., SC'11",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let scale = S::lit(if self.p == 1.0 { 0.0 } else { 1.0 / (1.0 - self.p) });
        let data =
            x[0].data.iter().enumerate().map(|(i, &v)| if self.key.bernoulli(i as u64, 1.0 - self.p) { v * scale } else { S::zero() });
        vec![Nd::new(&x[0].shape, data.collect())]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for p in [0.0, 0.1, 0.5, 0.9, 1.0] {
            let key = g.key();
            let shape = g.shape(2);
            out.push(Sample::check(Dropout { p, key }, [g.normal(shape)]).note("the mask of the derivative is that of the value [D26]"));
        }
        let half = Dropout { p: 0.5, key: g.key() };
        out.extend([
            Sample::check(half.clone(), [Input::values([2, 5], [0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 2.0, 3.0, 0.0])])
                .note("zeros in x do not hide the mask [D27]"),
            Sample::check(half.clone(), [g.normal(())]).note("scalar"),
            Sample::check(half.clone(), [g.normal([0, 3])]).note("no elements"),
            Sample::value(half.clone(), [Input::values([4], [f64::INFINITY, f64::NAN, f64::INFINITY, f64::NAN])])
                .note("a dropped NaN or ∞ is 0"),
            Sample::reject(Dropout { p: 1.5, ..half.clone() }, [g.normal([2])], ErrorKind::Argument),
            Sample::reject(Dropout { p: -0.1, ..half.clone() }, [g.normal([2])], ErrorKind::Argument),
            Sample::reject(Dropout { p: f64::NAN, ..half.clone() }, [g.normal([2])], ErrorKind::Argument),
            Sample::reject(half.clone(), [Input::ints(crate::I64, [1], &[1])], ErrorKind::Dtype),
        ]);
        for n in [1, 3, 4, 5, 255, 256, 257, 1023, 40_003] {
            out.push(Sample::value(half.clone(), [g.normal([n])]).note("around the blocks of the generator and of a task"));
        }
        out.push(Sample::bench(Dropout { p: 0.1, key: g.key() }, [g.normal([4096, 1024])]));
        out
    }
}

impl Op for Dropout {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_float(x)?;
        self.check()?;
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        with_float!(x[0].dtype(), T => self.run::<T>(&x[0].contiguous::<T>()?, None, y[0].slice::<T>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        self.launch(&x[0], None, &mut y[0])
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![Some(apply1(self.clone(), &[y_bar.only()?])?)])
    }
}

impl Describe for DropoutAdd {
    const NAME: &'static str = "dropout_add";
    const MATH: Math = Math {
        forward: "yᵢ = rᵢ + xᵢ / (1 − p) where the key keeps element i, else rᵢ",
        vjp: "x̄ = dropout of ȳ by the same key, r̄ = ȳ",
        kinks: "linear",
        cost: "reads x and r, writes y; the derivative reads ȳ and writes x̄; saves nothing",
        references: "chain rule",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let dropped = self.0.define(&x[..1]).swap_remove(0);
        vec![Nd::new(&x[0].shape, dropped.data.iter().zip(&x[1].data).map(|(&d, &r)| d + r).collect())]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for s in Dropout::samples(g).into_iter().filter(|s| !matches!(s.purpose, crate::testing::Purpose::Reject(_))) {
            let r = g.normal(s.inputs[0].shape());
            let mut s = s.map(DropoutAdd);
            s.inputs.push(r);
            out.push(s);
        }
        let half = DropoutAdd(Dropout { p: 0.5, key: g.key() });
        out.push(Sample::reject(half.clone(), [g.normal([2, 3]), g.normal([3])], ErrorKind::Shape).note("nothing broadcasts"));
        out.push(Sample::reject(DropoutAdd(Dropout { p: 2.0, ..half.0 }), [g.normal([2]), g.normal([2])], ErrorKind::Argument));
        out
    }
}

impl Op for DropoutAdd {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_shapes(x)?;
        self.0.check()?;
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        with_float!(x[0].dtype(), T => self.0.run::<T>(&x[0].contiguous::<T>()?, Some(&x[1].contiguous::<T>()?), y[0].slice::<T>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        self.0.launch(&x[0], Some(&x[1]), &mut y[0])
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let g = y_bar.only()?;
        let x_bar = if want[0] { Some(apply1(self.0.clone(), &[g])?) } else { None };
        Ok(smallvec![x_bar, want[1].then(|| g.clone())])
    }
}

impl Tensor {
    /// `residual + dropout(self)` in one pass: the end of a transformer's branch in training.
    ///
    /// ```
    /// use cotangent::{Key, Tensor};
    /// let (x, r) = (Tensor::from_slice(&[1f64; 6], [6])?, Tensor::from_slice(&[0.5f64; 6], [6])?);
    /// let y = x.dropout_add(&r, 0.5, Key::new(1))?;
    /// assert_eq!(y.to_vec::<f64>()?, r.add(&x.dropout(0.5, Key::new(1))?)?.to_vec::<f64>()?);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// `ȳ` through the same mask for `self`, `ȳ` itself for the residual; saves nothing.
    ///
    /// # Numerics
    /// Half types are rounded once, after the sum.
    ///
    /// # Errors
    /// Shape error when the shapes differ: nothing broadcasts; otherwise as [`Tensor::dropout`].
    #[track_caller]
    pub fn dropout_add(&self, residual: &Tensor, p: f64, key: Key) -> Result<Tensor> {
        apply1(DropoutAdd(Dropout { p, key }), &[self, residual])
    }

    /// Zeroes each element with probability `p` and divides the others by `1 − p`.
    ///
    /// The mask depends on the key and the element's row-major index alone: the same in a checkpoint's second run, on any
    /// number of threads, for any layout. Give every call its own key.
    ///
    /// ```
    /// use cotangent::{Key, Tensor, grad};
    /// let x = Tensor::from_slice(&[1f64; 6], [6])?;
    /// let y = x.dropout(0.5, Key::new(1))?;
    /// // The gradient of the sum is the mask: here the value itself, as x is 1.
    /// assert_eq!(grad(&x, |x| x.dropout(0.5, Key::new(1))?.sum(..))?.to_vec::<f64>()?, y.to_vec::<f64>()?);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// `ȳ` through the same mask, drawn again; saves nothing.
    ///
    /// # Numerics
    /// `p = 0` returns the values, `p = 1` zeros. A dropped NaN is 0.
    ///
    /// # Errors
    /// Argument error unless `0 ≤ p ≤ 1`; dtype error for integers.
    #[track_caller]
    pub fn dropout(&self, p: f64, key: Key) -> Result<Tensor> {
        apply1(Dropout { p, key }, &[self])
    }
}
