//! Choosing elements by a mask.

use crate::backend::cpu::{self, map};
use crate::backend::cuda::{self, grid, kernels::select as kernels};
use crate::dtype::{F64, I64, U8, with_dtype};
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, expect};
use crate::ops::create::held;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar, broadcast_extents};
use smallvec::{SmallVec, smallvec};

/// `a` where the mask is set, else `b`; see [`Tensor::where_cond`].
#[derive(Clone, Debug)]
pub struct WhereCond;

impl Describe for WhereCond {
    const NAME: &'static str = "where_cond";
    const MATH: Math = Math {
        forward: "y = a where the mask is not 0, else b",
        vjp: "ā = ȳ where the mask is not 0, else exactly 0; b̄ the other way round; each summed over its broadcast axes",
        kinks: "linear in a and b",
        cost: "reads the mask, a and b, writes y; saves the mask",
        references: "numpy.where",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let shape = broadcast_extents(x);
        vec![Nd::from_fn(shape, |i| if x[0].broadcast_at(i).re() == 0.0 { x[2].broadcast_at(i) } else { x[1].broadcast_at(i) })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let (m, n) = (g.extent(), g.extent());
        let mut out = vec![
            Sample::check(WhereCond, [g.below(U8, [m, n], 2), g.normal([m, n]), g.normal([m, n])]),
            Sample::check(WhereCond, [g.below(U8, [m, 1], 2), g.normal([n]), g.normal([m, n])]),
            Sample::check(WhereCond, [g.below(U8, [4, 1, 1], 2), g.normal([1, 3, 1]), g.normal([1, 1, 2])])
                .note("all three broadcast [D9]"),
            Sample::check(WhereCond, [g.below(U8, [], 2), g.normal([3]), g.normal([])]),
            Sample::check(WhereCond, [g.below(U8, [0, 2], 2), g.normal([2]), g.normal([1, 1])]),
            Sample::check(WhereCond, [Input::ints(U8, [3], &[0, 255, 2]), g.normal([3]), g.normal([3])]).note("any value but 0 is true"),
        ];
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        let masked =
            [Input::ints(U8, [4], &[1, 0, 1, 0]), Input::values([4], [1.0, nan, 2.0, inf]), Input::values([4], [nan, 3.0, -inf, 4.0])];
        out.push(Sample::check(WhereCond, masked).at_kink().note("NaN and ∞ in the branch that is not taken [D5]"));
        out.push(Sample::value(WhereCond, [g.below(U8, [3, 2], 2), g.below(I64, [2], 9), g.below(I64, [3, 1], 9)]).note("integers"));
        out.push(Sample::reject(WhereCond, [g.normal([2]), g.normal([2]), g.normal([2])], ErrorKind::Dtype));
        out.push(Sample::reject(WhereCond, [g.below(U8, [2], 2), g.normal([2]), g.normal([2]).of_dtype(F64)], ErrorKind::Dtype));
        out.push(Sample::reject(WhereCond, [g.below(U8, [2], 2), g.normal([3]), g.normal([3])], ErrorKind::Shape));
        out.push(Sample::bench(WhereCond, [g.below(U8, [4 << 20], 2), g.normal([4 << 20]), g.normal([4 << 20])]));
        out
    }
}

impl Op for WhereCond {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::masks(&x[..1])?;
        let dtype = expect::same_dtype(&x[1..])?;
        Ok(smallvec![Spec { shape: x[0].shape.broadcast(&x[1].shape)?.broadcast(&x[2].shape)?, dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let shape = y[0].shape();
        with_dtype!(x[1].dtype(), T => map::ternary(&x[0], &x[1], &x[2], shape, y[0].slice::<T>(), #[inline(always)] |m: u8, a: T, b: T| if m != 0 { a } else { b }))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let (on, n) = (y[0].context(), y[0].numel());
        if n == 0 {
            return Ok(());
        }
        let (mask, vm) = x[0].expanded(y[0].shape())?;
        let (a, va) = x[1].expanded(y[0].shape())?;
        let (b, vb) = x[2].expanded(y[0].shape())?;
        let grid = grid(on, n, y[0].dtype().size());
        kernels::by_mask(on, grid, &y[0].dst(), &mask, vm, &a, va, &b, vb, n as i64)
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[0])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let (mask, g) = (saved.get(0)?, y_bar.only()?);
        let zero = Tensor::full_on((), 0.0, g.dtype(), g.device())?;
        let a_bar = if want[1] { Some(mask.where_cond(g, &zero)?) } else { None };
        let b_bar = if want[2] { Some(mask.where_cond(&zero, g)?) } else { None };
        Ok(smallvec![None, a_bar, b_bar])
    }
}

/// A number where the mask is set, else `x`; see [`Tensor::masked_fill`].
#[derive(Clone, Debug)]
pub struct MaskedFill(pub f64);

impl Describe for MaskedFill {
    const NAME: &'static str = "masked_fill";
    const MATH: Math = Math {
        forward: "y = c where the mask is not 0, else x",
        vjp: "x̄ = exactly 0 where the mask is not 0, else ȳ",
        kinks: "linear",
        cost: "reads x and the mask, writes y; saves the mask",
        references: "torch.Tensor.masked_fill",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        vec![Nd::from_fn(&x[0].shape, |i| if x[1].broadcast_at(i).re() == 0.0 { x[0].at(i) } else { S::lit(self.0) })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let (m, n) = (g.extent(), g.extent());
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        let mut out: Vec<Sample<Self>> =
            [0.0, -1.5].into_iter().map(|c| Sample::check(MaskedFill(c), [g.normal([m, n]), g.below(U8, [m, n], 2)])).collect();
        out.push(Sample::check(MaskedFill(2.0), [g.normal([m, n]), g.below(U8, [n], 2)]));
        out.push(Sample::check(MaskedFill(2.0), [g.normal([2, 3, 4]), g.below(U8, [3, 1], 2)]));
        out.push(Sample::check(MaskedFill(2.0), [g.normal([0, 3]), g.below(U8, [3], 2)]));
        out.push(Sample::value(MaskedFill(-inf), [g.normal([5]), Input::ints(U8, [5], &[0, 1, 0, 255, 1])]).note("attention masks"));
        let masked = [Input::values([3], [nan, 1.0, inf]), Input::ints(U8, [3], &[1, 0, 1])];
        out.push(Sample::check(MaskedFill(0.5), masked).at_kink().note("NaN under the mask does not leak [A14, D5]"));
        out.push(Sample::value(MaskedFill(7.0), [g.below(I64, [4], 3), g.below(U8, [4], 2)]).note("integers"));
        out.push(
            Sample::reject(MaskedFill(300.0), [g.below(U8, [3], 2), g.below(U8, [3], 2)], ErrorKind::Argument)
                .note("a cast would saturate"),
        );
        out.push(Sample::reject(MaskedFill(0.0), [g.normal([3]), g.normal([3])], ErrorKind::Dtype));
        out.push(Sample::reject(MaskedFill(0.0), [g.normal([3]), g.below(U8, [2, 3], 2)], ErrorKind::Shape));
        out.push(Sample::bench(MaskedFill(0.0), [g.normal([4096, 1024]), g.below(U8, [4096, 1024], 2)]));
        out
    }
}

impl Op for MaskedFill {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::masks(&x[1..])?;
        if x[0].shape.broadcast(&x[1].shape)? != x[0].shape {
            bail!(shape, "the mask does not broadcast to the tensor: tensor {}, mask {}", x[0].shape, x[1].shape);
        }
        held(self.0, x[0].dtype)?;
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let shape = y[0].shape();
        with_dtype!(x[0].dtype(), T => {
            let c = <T as crate::dtype::Element>::from_f64(self.0);
            map::binary(&x[0], &x[1], shape, y[0].slice::<T>(), #[inline(always)] move |v: T, m: u8| if m != 0 { c } else { v })
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let (on, n) = (y[0].context(), y[0].numel());
        if n == 0 {
            return Ok(());
        }
        let (x0, vx) = x[0].view()?;
        let (mask, vm) = x[1].expanded(y[0].shape())?;
        let (grid, c) = (grid(on, n, y[0].dtype().size()), cuda::bits(y[0].dtype(), self.0));
        kernels::masked_fill(on, grid, &y[0].dst(), &x0, vx, &mask, vm, c, n as i64)
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![Some(y_bar.only()?.masked_fill(saved.get(0)?, 0.0)?), None])
    }
}

impl Tensor {
    /// Reading `self` as a `u8` mask: elements of `a` where it is not 0, of `b` elsewhere; all three broadcast.
    ///
    /// # Gradient
    /// `ȳ` where an operand was chosen and exactly 0 elsewhere; saves the mask. A NaN that is not chosen stays out of the
    /// value and of this op's gradients. It still spoils the ops that made it (0 · ∞ inside their derivatives): make their
    /// operand harmless as well, `mask.where_cond(&x, &one)` before the risky function and the same mask after it.
    ///
    /// # Errors
    /// Shape error when the shapes do not broadcast; dtype error unless the mask is `u8` and `a`, `b` have one dtype.
    ///
    /// ```
    /// use cotangent::{Tape, Tensor};
    /// let mask = Tensor::from_slice(&[1u8, 0], [2])?;
    /// let tape = Tape::new();
    /// let a = tape.watch(&Tensor::from_slice(&[1f32, f32::NAN], [2])?)?;
    /// let y = mask.where_cond(&a, &Tensor::from_slice(&[5f32], [1])?)?;
    /// assert_eq!(y.to_vec::<f32>()?, [1.0, 5.0]);
    /// let g = tape.backward(&y.sum(..)?)?;
    /// assert_eq!(g.get(&a)?.to_vec::<f32>()?, [1.0, 0.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[doc(alias("where", "masked_select"))]
    #[track_caller]
    pub fn where_cond(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        apply1(WhereCond, &[self, a, b])
    }

    /// The number `value` where the `u8` mask is not 0, the tensor elsewhere; the mask broadcasts to the tensor.
    ///
    /// # Gradient
    /// Exactly 0 where the mask is set, `ȳ` elsewhere; saves the mask.
    ///
    /// # Errors
    /// Shape error when the mask does not broadcast to the tensor; dtype error unless it is `u8`; argument error when an integer
    /// dtype does not hold the value.
    #[track_caller]
    pub fn masked_fill(&self, mask: &Tensor, value: f64) -> Result<Tensor> {
        apply1(MaskedFill(value), &[self, mask])
    }
}
