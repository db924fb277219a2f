//! Gated activations `f(gate)·up`: SwiGLU and GEGLU, forward and backward in one pass each.

use super::unary::{Gelu, GeluTanh, Map, Silu, Unary, gelu_and_slope, gelu_tanh_and_slope, silu_and_slope};
use crate::backend::cpu::par::*;
use crate::backend::cpu::{self, Compute, Real, map, simd};
use crate::backend::cuda::kernels::gated as kernels;
use crate::backend::cuda::{self, GatedKernels};
use crate::dtype::{DType, F64, with_float};
use crate::error::{ErrorKind, Result};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Outputs, Saved, Spec, apply, apply1, expect};
use crate::ops::differentiate_vjp;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Purpose, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// A smooth activation that can gate another tensor.
pub trait Gate: Unary {
    /// Name of `f(gate)·up`.
    const GATED: &'static str;
    /// Name of its derivative kernel.
    const GATED_VJP: &'static str;
    /// The mathematics in words.
    const GATED_MATH: Math;
    /// The activation itself.
    const SELF: Self;
    /// `f(x)` and `f′(x)` from one exponential. Mark it `#[inline(always)]`.
    fn with_slope<T: Real>(x: T) -> (T, T);
    /// The kernels of kernels/elementwise/gated.cu.
    fn kernels() -> GatedKernels;
}

macro_rules! gate {
    ($of:ident, $name:literal, $f:literal, $references:literal, $with_slope:ident, $fwd:ident, $vjp:ident) => {
        impl Gate for $of {
            const GATED: &'static str = $name;
            const GATED_VJP: &'static str = concat!($name, "_vjp");
            const GATED_MATH: Math = Math {
                forward: concat!("y = f(gate) · up with f = ", $f),
                vjp: "gate̅ = ȳ · up · f′(gate), up̅ = ȳ · f(gate), both in one pass",
                kinks: "smooth; f = 0 at −∞",
                cost: "reads gate and up, writes y; the derivative reads gate, up and ȳ, writes two; saves gate and up",
                references: $references,
            };
            const SELF: Self = $of;
            #[inline(always)]
            fn with_slope<T: Real>(x: T) -> (T, T) {
                $with_slope(x)
            }
            fn kernels() -> GatedKernels {
                GatedKernels { forward: kernels::$fwd, vjp: kernels::$vjp }
            }
        }
    };
}
gate!(Silu, "swiglu", "silu", "Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202", silu_and_slope, swiglu, swiglu_vjp);
gate!(Gelu, "geglu", "gelu", "Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202", gelu_and_slope, geglu, geglu_vjp);
gate!(GeluTanh, "geglu_tanh", "gelu in its tanh form", "Shazeer, arXiv:2002.05202; Gemma", gelu_tanh_and_slope, geglu_tanh, geglu_tanh_vjp);

/// `f(gate)·up`; see [`Tensor::swiglu`]. Inputs: gate, up.
#[derive(Clone, Debug)]
pub struct Gated<G>(pub G);

/// The derivative kernel of [`Gated`]. Inputs: gate, up, ȳ; outputs: the wanted ones of the cotangents of gate and up.
#[derive(Clone, Debug)]
pub struct GatedVjp<G> {
    /// The activation.
    pub gate: G,
    /// Which cotangents to compute: gate, up.
    pub want: [bool; 2],
}

fn composed<G: Gate>(x: &[Tensor]) -> Result<Outputs> {
    Ok(Outputs::from_iter([apply1(Map(G::SELF), &[&x[0]])?.mul(&x[1])?]))
}

impl<G: Gate> Describe for Gated<G> {
    const NAME: &'static str = G::GATED;
    const MATH: Math = G::GATED_MATH;

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let data = x[0].data.iter().zip(&x[1].data).map(|(&a, &b)| self.0.define(a) * b).collect();
        vec![Nd::new(&x[0].shape, data)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let op = Gated(G::SELF);
        let shape = g.shape(2);
        let mut out = Vec::new();
        for shape in [shape, ().into(), [0].into(), [1].into(), [2].into(), [3].into(), [2, 1, 3, 7].into()] {
            out.push(Sample::check(op.clone(), [g.uniform(&shape[..], -4.0, 4.0), g.normal(&shape[..])]));
        }
        let tails = [0.0, -0.0, 1e-3, -1.28125, 0.96875, -1.03125, 6.0, -8.0, 13.0, -13.0, 41.0, -41.0, 88.0, -88.0, 1e4, -1e4];
        out.push(Sample::value(op.clone(), [Input::values([16], tails), g.normal([16])]).note("tails [D3, D4]"));
        let limits = [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e30, -1e30];
        out.push(Sample::value(op.clone(), [Input::values([5], limits), Input::values([5], [1.5; 5])]).note("f(−∞) = 0"));
        out.push(
            Sample::value(op.clone(), [g.uniform([3 * map::PIECE + 5], -4.0, 4.0), g.normal([3 * map::PIECE + 5])])
                .note("several parallel pieces"),
        );
        out.push(Sample::reject(op.clone(), [g.normal([2, 3]), g.normal([3])], ErrorKind::Shape).note("nothing broadcasts"));
        out.push(Sample::reject(op.clone(), [g.normal([2]), g.normal([2]).of_dtype(F64)], ErrorKind::Dtype));
        out.push(Sample::reject(
            op.clone(),
            [Input::ints(DType::I64, [2], &[1, 2]), Input::ints(DType::I64, [2], &[1, 2])],
            ErrorKind::Dtype,
        ));
        out.push(Sample::bench(op, [g.normal([1024, 4096]), g.normal([1024, 4096])]));
        out
    }
}

impl<G: Gate> Op for Gated<G> {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_shapes(x)?;
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let shape = y[0].shape();
        with_float!(x[0].dtype(), T => map::binary_acc(&x[0], &x[1], shape, y[0].slice::<T>(), &|a, b, y| forward_block::<G, _>(a, b, y)))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        G::kernels().forward(&x[0], &x[1], &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], want: &[bool]) -> Saved {
        // The slope in `up` needs no `up`.
        Saved::of([Some(x[0]), want[0].then_some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let (a, g) = (saved.get(0)?, y_bar.only()?);
        let want = [want[0], want[1]];
        // Without a wanted slope in the gate the kernel does not read `up`: any tensor of the shape will do.
        let b = saved.maybe(1).unwrap_or(a);
        let mut bars = apply(GatedVjp { gate: G::SELF, want }, &[a, b, g])?.into_iter();
        Ok(want.map(|w| if w { bars.next() } else { None }).into_iter().collect())
    }
}

fn forward_block<G: Gate, A: Real>(a: &[A], b: &[A], y: &mut [A]) {
    let f = G::SELF;
    simd::dispatch(
        #[inline(always)]
        || {
            for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
                *y = f.f(a) * b;
            }
        },
    );
}

impl<G: Gate> Describe for GatedVjp<G> {
    const NAME: &'static str = G::GATED_VJP;
    const MATH: Math = Math {
        forward: "gate̅ = ȳ · up · f′(gate), up̅ = ȳ · f(gate)",
        vjp: "through the composition f(gate) · up",
        kinks: "as the op it belongs to",
        cost: "reads three operands, writes two",
        references: "chain rule",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let of = |f: &dyn Fn(S, S, S) -> S| {
            let data = x[0].data.iter().zip(&x[1].data).zip(&x[2].data).map(|((&a, &b), &g)| f(a, b, g)).collect();
            Nd::new(&x[0].shape, data)
        };
        let all = [of(&|a, b, g| g * b * self.gate.slope(a)), of(&|a, _, g| g * self.gate.define(a))];
        all.into_iter().zip(self.want).filter(|(_, w)| *w).map(|(y, _)| y).collect()
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let op = GatedVjp { gate: G::SELF, want: [true, true] };
        let mut out = Vec::new();
        for s in Gated::<G>::samples(g).into_iter().filter(|s| matches!(s.purpose, Purpose::Check | Purpose::Value)) {
            let mut s = s.map(|_| op.clone());
            s.inputs.push(g.normal(s.inputs[0].shape()));
            out.push(s);
        }
        for want in [[true, false], [false, true]] {
            out.push(
                Sample::check(GatedVjp { want, ..op.clone() }, [g.normal([3, 5]), g.normal([3, 5]), g.normal([3, 5])])
                    .note("every subset of wanted gradients [C16]"),
            );
        }
        out.push(Sample::check(op.clone(), [g.normal([5]), g.normal([5]), Input::values([5], [0.0; 5])]).note("zero cotangent [A24]"));
        out.push(Sample::reject(op, [g.normal([2, 3]), g.normal([2, 3]), g.normal([3])], ErrorKind::Shape));
        out
    }
}

impl<G: Gate> Op for GatedVjp<G> {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_shapes(x)?;
        Ok(self.want.iter().filter(|w| **w).map(|_| x[0].clone()).collect())
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        with_float!(x[0].dtype(), T => {
            let (a, b, g) = (x[0].contiguous::<T>()?, x[1].contiguous::<T>()?, x[2].contiguous::<T>()?);
            match (self.want, y) {
                ([true, true], [da, db]) => both::<G, T>(&a, &b, &g, da.slice::<T>(), db.slice::<T>()),
                ([true, false], [da]) => one::<T>([&a, &b, &g], da.slice::<T>(), #[inline(always)] |[a, b, g]| g * b * G::with_slope(a).1),
                ([false, true], [db]) => one::<T>([&a, &b, &g], db.slice::<T>(), #[inline(always)] |[a, _, g]| g * G::with_slope(a).0),
                _ => {}
            }
            Ok(())
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let mut y = y.iter_mut();
        let outputs = self.want.map(|w| if w { y.next() } else { None });
        G::kernels().vjp([&x[0], &x[1], &x[2]], outputs)
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[0]), Some(x[1]), Some(x[2])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let mut k = 0..;
        let bars = self.want.map(|w| if w { k.next().and_then(|k| y_bar.get(k)).cloned() } else { None });
        let inputs = [saved.get(0)?.clone(), saved.get(1)?.clone()];
        differentiate_vjp(&inputs, std::slice::from_ref(saved.get(2)?), &bars, want, composed::<G>)
    }
}

/// Both cotangents in one pass.
fn both<G: Gate, T: Compute>(a: &[T], b: &[T], g: &[T], da: &mut [T], db: &mut [T]) {
    let piece = |((a, b), g): ((&[T], &[T]), &[T]), (da, db): (&mut [T], &mut [T])| {
        simd::dispatch(
            #[inline(always)]
            || {
                for ((((da, db), &a), &b), &g) in da.iter_mut().zip(db.iter_mut()).zip(a).zip(b).zip(g) {
                    let (f, slope) = G::with_slope(a.load());
                    let g = g.load();
                    *da = T::store(g * b.load() * slope);
                    *db = T::store(g * f);
                }
            },
        );
    };
    if a.len() < cpu::SERIAL {
        return piece(((a, b), g), (da, db));
    }
    let n = map::PIECE;
    let inputs = a.par_chunks(n).zip(b.par_chunks(n)).zip(g.par_chunks(n));
    inputs.zip(da.par_chunks_mut(n).zip(db.par_chunks_mut(n))).for_each(|(x, y)| piece(x, y));
}

/// One of them.
fn one<T: Compute>(x: [&[T]; 3], y: &mut [T], f: impl Fn([T::Acc; 3]) -> T::Acc + Sync) {
    let piece = |y: &mut [T], x: [&[T]; 3]| {
        simd::dispatch(
            #[inline(always)]
            || {
                for (((y, &a), &b), &g) in y.iter_mut().zip(x[0]).zip(x[1]).zip(x[2]) {
                    *y = T::store(f([a.load(), b.load(), g.load()]));
                }
            },
        );
    };
    if y.len() < cpu::SERIAL {
        return piece(y, x);
    }
    y.par_chunks_mut(map::PIECE).enumerate().for_each(|(i, y)| {
        let at = i * map::PIECE;
        let n = y.len();
        piece(y, x.map(|x| &x[at..at + n]));
    });
}

impl Tensor {
    /// SwiGLU: `silu(self)·up`, where `self` is the gate.
    ///
    /// ```
    /// use cotangent::{Tensor, grad};
    /// let gate = Tensor::from_slice(&[0f64, 2.0], [2])?;
    /// let up = Tensor::from_slice(&[3f64, -1.0], [2])?;
    /// let composed = |gate: &Tensor| gate.silu()?.mul(&up);
    /// assert!(gate.swiglu(&up)?.sub(&composed(&gate)?)?.abs()?.max(..)?.item()? < 1e-15);
    /// let g = grad(&gate, |gate| gate.swiglu(&up)?.sum(..))?;
    /// assert!(g.sub(&grad(&gate, |gate| composed(gate)?.sum(..))?.into_inner())?.abs()?.max(..)?.item()? < 1e-15);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// `ȳ·up·silu′(gate)` and `ȳ·silu(gate)`, both in one pass; saves gate and up, where the composition also saves `silu(gate)`.
    ///
    /// # Shapes
    /// Both operands have one shape: nothing broadcasts. Views are fine, as the two halves of one projection.
    ///
    /// # Numerics
    /// As [`Tensor::silu`]; half types are computed in f32 and rounded once, not twice.
    ///
    /// # Errors
    /// Shape error when the shapes differ; dtype error unless both have the same float type.
    #[track_caller]
    pub fn swiglu(&self, up: &Tensor) -> Result<Tensor> {
        apply1(Gated(Silu), &[self, up])
    }

    /// GEGLU: `gelu(self)·up` with the exact GELU, where `self` is the gate.
    ///
    /// # Gradient
    /// As [`Tensor::swiglu`], with the slope of [`Tensor::gelu`].
    ///
    /// # Errors
    /// As [`Tensor::swiglu`].
    #[track_caller]
    pub fn geglu(&self, up: &Tensor) -> Result<Tensor> {
        apply1(Gated(Gelu), &[self, up])
    }

    /// GEGLU with the tanh form of GELU (Gemma): `gelu_tanh(self)·up`, where `self` is the gate.
    ///
    /// # Gradient
    /// As [`Tensor::swiglu`], with the slope of [`Tensor::gelu_tanh`].
    ///
    /// # Errors
    /// As [`Tensor::swiglu`].
    #[track_caller]
    pub fn geglu_tanh(&self, up: &Tensor) -> Result<Tensor> {
        apply1(Gated(GeluTanh), &[self, up])
    }
}
