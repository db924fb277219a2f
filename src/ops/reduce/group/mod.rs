//! Reductions over axes whose derivative needs the whole group again: one block each, in the files beside this one.
//!
//! A block says how a group of numbers becomes one, as a kernel and as a definition, how a cotangent spreads over the
//! group, and the second derivative in tensor ops. The derivative kernel reads the operand alone (a row is still in cache
//! when it is read the second time), so nothing but the operand is saved.

mod extrema;
mod l2_norm;
mod logsumexp;
mod prod;
mod variance;

pub use extrema::{Max, Min};
pub use l2_norm::Norm;
pub use logsumexp::LogSumExp;
pub use prod::Prod;
pub use variance::{Std, Var};

use super::sum::{reduce_define, reduction_samples_of};
use crate::backend::cpu::{self, Compute};
use crate::backend::cuda;
use crate::dtype::with_float;
use crate::error::Result;
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, expect};
use crate::shape::{Axes, Shape};
use crate::tensor::Tensor;
use crate::testing::{Dual, Gen, Input, Nd, Purpose, Sample, Scalar};
use smallvec::{SmallVec, smallvec};
use std::fmt::Debug;

/// A function of a group of numbers.
pub trait Group: Clone + Debug + Send + Sync + 'static {
    /// Name of the op.
    const NAME: &'static str;
    /// Name of its derivative kernel: `<name>_vjp`.
    const VJP_NAME: &'static str;
    /// The mathematics in words.
    const MATH: Math;
    /// The function, plainly.
    fn define<S: Scalar>(&self, x: &[S]) -> S;
    /// The kernel: one value per group.
    ///
    /// # Errors
    /// Out of memory.
    fn forward<T: Compute>(&self, x: &cpu::In<'_>, axes: &[usize], y: &mut [T]) -> Result<()>;
    /// The derivative kernel: `ȳ·∂f/∂xᵢ` for every element, given `ȳ` for every group.
    ///
    /// # Errors
    /// Out of memory.
    fn backward<T: Compute>(&self, x: &cpu::In<'_>, g: &cpu::In<'_>, axes: &[usize], y: &mut [T]) -> Result<()>;
    /// The same two on a CUDA device, for groups of `n` elements.
    fn cuda(&self, n: usize) -> cuda::GroupKernels;
    /// The second derivative in tensor ops; `None` where it is zero everywhere.
    ///
    /// # Errors
    /// What the tensor ops refuse.
    fn curve(&self, at: &Curve<'_, Self>) -> Result<Option<Tensor>>;
    /// Whether a group of `n` elements is acceptable.
    ///
    /// # Errors
    /// Shape error.
    fn validate(&self, n: usize) -> Result<()>;
    /// Inputs to check, options included.
    fn samples(g: &mut Gen) -> Vec<Sample<Reduce<Self>>>;
}

/// Where a second derivative is taken: of `Σ z·ȳ·∂f/∂x` with respect to `x`.
pub struct Curve<'a, G> {
    op: &'a ReduceVjp<G>,
    /// The operand.
    pub x: &'a Tensor,
    /// The first cotangent, one per group, reduced axes kept.
    pub g: &'a Tensor,
    /// The cotangent of the first derivative, in the operand's shape.
    pub z: &'a Tensor,
}

impl<G: Group> Curve<'_, G> {
    /// `∂f/∂x`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn slope(&self) -> Result<Tensor> {
        apply1(self.op.clone(), &[self.x, &self.g.ones_like()?])
    }

    /// The sum over each group, axes kept.
    ///
    /// # Errors
    /// Out of memory.
    pub fn total(&self, t: &Tensor) -> Result<Tensor> {
        t.sum_keepdim(self.op.axes.clone())
    }

    /// The mean over each group, axes kept.
    ///
    /// # Errors
    /// Out of memory.
    pub fn mean(&self, t: &Tensor) -> Result<Tensor> {
        t.mean_keepdim(self.op.axes.clone())
    }

    /// Axes of the groups.
    pub fn axes(&self) -> &Axes {
        &self.op.axes
    }
}

/// A [`Group`] as an op.
#[derive(Clone, Debug)]
pub struct Reduce<G> {
    /// The function.
    pub of: G,
    /// Axes to reduce over.
    pub axes: Axes,
    /// Keep them with extent 1.
    pub keep: bool,
}

/// The derivative kernel of a [`Group`]: `(x, ȳ) ↦ ȳ·∂f/∂x`, with the reduced axes of `ȳ` kept.
#[derive(Clone, Debug)]
pub struct ReduceVjp<G> {
    /// The function.
    pub of: G,
    /// Axes to reduce over.
    pub axes: Axes,
}

fn group_size(shape: &Shape, axes: &[usize]) -> usize {
    axes.iter().map(|&i| shape[i]).product()
}

impl<G: Group> Describe for Reduce<G> {
    const NAME: &'static str = G::NAME;
    const MATH: Math = G::MATH;

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        vec![reduce_define(&x[0], &self.axes, self.keep, |group| self.of.define(group))]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        G::samples(g)
    }
}

impl<G: Group> Op for Reduce<G> {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = expect::same_float(x)?;
        let axes = self.axes.resolve(x[0].shape.rank())?;
        self.of.validate(group_size(&x[0].shape, &axes))?;
        Ok(smallvec![Spec { shape: x[0].shape.reduced(&axes, self.keep), dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let axes = self.axes.resolve(x[0].shape().rank())?;
        with_float!(x[0].dtype(), T => self.of.forward::<T>(&x[0], &axes, y[0].slice::<T>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axes = self.axes.resolve(x[0].shape().rank())?;
        self.of.cuda(group_size(x[0].shape(), &axes)).forward(&x[0], &axes, &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[0])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let x = saved.get(0)?;
        let axes = self.axes.resolve(x.rank())?;
        let g = y_bar.only()?.reshape(x.shape().reduced(&axes, true))?;
        Ok(smallvec![Some(apply1(ReduceVjp { of: self.of.clone(), axes: self.axes.clone() }, &[x, &g])?)])
    }
}

impl<G: Group> Describe for ReduceVjp<G> {
    const NAME: &'static str = G::VJP_NAME;
    const MATH: Math = Math {
        forward: "x̄ = ȳ · ∂f/∂x for every element of a group, ȳ being its cotangent",
        vjp: "of ȳ: Σ z̄ · ∂f/∂x over the group; of x: the second derivative, in tensor ops",
        kinks: "as the op it belongs to",
        cost: "reads x (twice when columns are reduced) and ȳ, writes x̄",
        references: "chain rule",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        // Exact partial derivatives, one direction at a time.
        let axes = x[0].axes_at(&self.axes);
        let group_of = |i: &[usize]| -> Vec<usize> { i.iter().enumerate().map(|(k, &i)| if axes.contains(&k) { 0 } else { i }).collect() };
        let mut i = 0;
        vec![Nd::from_fn(&x[0].shape, |index| {
            let at = i;
            i += 1;
            let own = group_of(index);
            let mut j = 0;
            let mut group = Vec::new();
            let _ = Nd::from_fn(&x[0].shape, |other| {
                if group_of(other) == own {
                    group.push(Dual::new(x[0].data[j], if j == at { S::one() } else { S::zero() }));
                }
                j += 1;
                S::zero()
            });
            self.of.define(&group).d * x[1].at(&own)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let small = |s: &Sample<Reduce<G>>| s.purpose == Purpose::Check && s.inputs[0].shape().numel() <= 200;
        let mut out = Vec::new();
        for mut s in G::samples(g).into_iter().filter(small) {
            let Ok(axes) = s.op.axes.resolve(s.inputs[0].shape().rank()) else { continue };
            s.inputs.push(g.normal(s.inputs[0].shape().reduced(&axes, true)));
            out.push(s.map(|r| ReduceVjp { of: r.of, axes: r.axes }));
        }
        out
    }
}

impl<G: Group> Op for ReduceVjp<G> {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_float(x)?;
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let axes = self.axes.resolve(x[0].shape().rank())?;
        with_float!(x[0].dtype(), T => self.of.backward::<T>(&x[0], &x[1], &axes, y[0].slice::<T>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axes = self.axes.resolve(x[0].shape().rank())?;
        self.of.cuda(group_size(x[0].shape(), &axes)).backward(&x[0], &x[1], &axes, &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], want: &[bool]) -> Saved {
        Saved::of([Some(x[0]), want[0].then_some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let (x, z) = (saved.get(0)?, y_bar.only()?);
        let x_bar = if want[0] { self.of.curve(&Curve { op: self, x, g: saved.get(1)?, z })? } else { None };
        let g_bar = if want[1] {
            let axes = self.axes.resolve(x.rank())?;
            let ones = Tensor::full_on(x.shape().reduced(&axes, true), 1.0, x.dtype(), x.device())?;
            let slope = apply1(self.clone(), &[x, &ones])?;
            Some(z.mul(&slope)?.sum_keepdim(self.axes.clone())?)
        } else {
            None
        };
        Ok(smallvec![x_bar, g_bar])
    }
}

/// Every axis set on inputs from a distribution, for one option.
fn group_samples<G: Group>(g: &mut Gen, of: &G, input: impl Fn(&mut Gen, &Shape) -> Input) -> Vec<Sample<Reduce<G>>> {
    reduction_samples_of(g, input, |axes, keep, _| Reduce { of: of.clone(), axes, keep })
}

/// One group of given values.
fn row<G: Group>(of: &G, values: &[f64]) -> (Reduce<G>, [Input; 1]) {
    (Reduce { of: of.clone(), axes: (-1).into(), keep: false }, [Input::values([values.len()], values)])
}

macro_rules! reduction_method {
    ($(#[$doc:meta])* $name:ident, $keep:ident $(, $arg:ident: $t:ty as $own:ty = $into:expr)* => $group:expr) => {
        impl Tensor {
            $(#[$doc])*
            #[track_caller]
            pub fn $name(&self, axes: impl Into<Axes> $(, $arg: $t)*) -> Result<Tensor> {
                // Compiled here: a generic function's body is compiled by every user, kernels included.
                #[track_caller]
                #[inline(never)]
                fn run(x: &Tensor, axes: Axes $(, $arg: $own)*) -> Result<Tensor> {
                    apply1(Reduce { of: $group, axes, keep: false }, &[x])
                }
                run(self, axes.into() $(, $into)*)
            }

            #[doc = concat!("[`Tensor::", stringify!($name), "`] that keeps the axes with extent 1.")]
            ///
            /// # Errors
            #[doc = concat!("As [`Tensor::", stringify!($name), "`].")]
            #[track_caller]
            pub fn $keep(&self, axes: impl Into<Axes> $(, $arg: $t)*) -> Result<Tensor> {
                // Compiled here: a generic function's body is compiled by every user, kernels included.
                #[track_caller]
                #[inline(never)]
                fn run(x: &Tensor, axes: Axes $(, $arg: $own)*) -> Result<Tensor> {
                    apply1(Reduce { of: $group, axes, keep: true }, &[x])
                }
                run(self, axes.into() $(, $into)*)
            }
        }
    };
}
use reduction_method;
