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
}

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
        let scale = S::lit(self.scale());
        let data =
            x[0].data.iter().enumerate().map(|(i, &v)| if self.key.bernoulli(i as u64, 1.0 - self.p) { v * scale } else { S::zero() });
        vec![Nd::new(&x[0].shape, data.collect())]
    }

    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for p in [0.0, 0.1, 0.5, 0.9, 1.0] {
            let key = g.key();
            let shape = g.shape(2);
            out.push(Sample::check(Dropout { p, key }, [g.normal(shape)]).note("D26: the mask of the derivative is that of the value"));
        }
        let half = Dropout { p: 0.5, key: g.key() };
        out.extend([
            Sample::check(half.clone(), [Input::values([2, 5], [0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 2.0, 3.0, 0.0])])
                .note("D27: zeros in x do not hide the mask"),
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
        if !(0.0..=1.0).contains(&self.p) {
            bail!(argument, "the dropout probability must be between 0 and 1, found {}", self.p);
        }
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let threshold = bernoulli_threshold(1.0 - self.p);
        // The largest word that is kept: a comparison in 32 bits, and none when nothing is kept.
        let (last, keep) = (threshold.saturating_sub(1) as u32, u32::from(threshold > 0));
        let key = self.key;
        with_float!(x[0].dtype(), T => {
            type A = <T as Compute>::Acc;
            let x = x[0].contiguous::<T>()?;
            let scale = <A as Real>::from_f64(self.scale());
            rows::for_tasks(WORDS, y[0].slice::<T>(), |row, y| {
                let first = row * WORDS;
                simd::dispatch(#[inline(always)] || {
                    let mut words = [0; WORDS];
                    for (k, y) in y.chunks_mut(WORDS).enumerate() {
                        let at = first + k * WORDS;
                        key.words(at as u64 / 4, &mut words);
                        for ((y, &x), &w) in y.iter_mut().zip(&x[at..]).zip(&words) {
                            *y = T::store(if (w <= last) & (keep != 0) { x.load() * scale } else { A::ZERO });
                        }
                    }
                });
                Ok(())
            })
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let (on, n) = (y[0].context(), y[0].numel());
        if n == 0 {
            return Ok(());
        }
        let (src, view) = x[0].view()?;
        let (seed, stream) = self.key.parts();
        let grid = cuda::map::grid(on, n, y[0].dtype().size());
        let threshold = bernoulli_threshold(1.0 - self.p);
        let live = cuda::capture::key_words(self.key)?.map(|at| cuda::launch::Src::at(at, crate::I64));
        cuda::kernels::dropout::dropout(on, grid, &y[0].dst(), &src, view, seed, stream, live.as_ref(), threshold, self.scale(), n as i64)
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![Some(apply1(self.clone(), &[y_bar.only()?])?)])
    }
}

impl Tensor {
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
