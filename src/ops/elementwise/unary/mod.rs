//! Elementwise ops of one operand: one block each, in the files beside this one.
//!
//! A block says the function twice, once fast ([`Unary::f`], over the kernels' number types) and once plainly
//! ([`Unary::define`], over any scalar), and its derivative twice, as a kernel ([`Unary::pull`]) and as a composition
//! ([`Unary::derivative`], for higher orders). Everything else (kernels, tape, layouts, dtypes, checks) is shared here.

/// One block per op: every part is named and none may be left out. `saves Input` derives the plain slope from the
/// definition; `saves Output` and `saves Nothing` ask for it.
macro_rules! unary {
    // Without parameters there is nothing to validate.
    ($(#[$doc:meta])* $op:ident, $($rest:tt)*) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $op;
        unary! { @impl $op, $($rest)* validate(self) => Ok(()); }
    };
    ($(#[$doc:meta])* $op:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* }, $($rest:tt)*) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $op { $($(#[$field_doc])* pub $field: $ty,)* }
        unary! { @impl $op, $($rest)* }
    };
    // Most functions have one form for all numbers.
    (@rare) => {
        #[inline(always)]
        fn rare<T: Real>(&self, _: T) -> bool {
            false
        }
        fn f_rare<T: Real>(&self, x: T) -> T {
            self.f(x)
        }
        fn pull_rare<T: Real>(&self, s: T, g: T) -> T {
            self.pull(s, g)
        }
    };
    (@rare $self:ident, $s:ident, $g:ident, $rare:expr, $f_rare:expr, $pull_rare:expr) => {
        #[inline(always)]
        #[allow(unused_variables, reason = "the parameters alone may decide")]
        fn rare<T: Real>(&$self, $s: T) -> bool {
            $rare
        }
        fn f_rare<T: Real>(&$self, $s: T) -> T {
            $f_rare
        }
        fn pull_rare<T: Real>(&$self, $s: T, $g: T) -> T {
            $pull_rare
        }
    };
    (@impl $op:ident, $name:literal, saves Input; $($rest:tt)*) => {
        unary! { @all $op, $name, Input, "reads x, writes y; saves x"; slope(self, x) => super::slope_of_input(self, x); $($rest)* }
    };
    (@impl $op:ident, $name:literal, saves Output; slope($($slope:tt)*) => $slope_is:expr; $($rest:tt)*) => {
        unary! { @all $op, $name, Output, "reads x, writes y; saves y"; slope($($slope)*) => $slope_is; $($rest)* }
    };
    (@impl $op:ident, $name:literal, saves Nothing; slope($($slope:tt)*) => $slope_is:expr; $($rest:tt)*) => {
        unary! { @all $op, $name, Nothing, "reads x, writes y; saves nothing"; slope($($slope)*) => $slope_is; $($rest)* }
    };
    (@all $op:ident, $name:literal, $saves:ident, $cost:literal;
        slope($s_self:ident, $s:ident) => $slope:expr;
        math: $forward:literal, $vjp:literal, $kinks:literal, $references:literal;
        domain: $domain:expr;
        f($f_self:ident, $f_x:ident) => $f:expr;
        pull($p_self:ident, $p_s:ident, $p_g:ident) => $pull:expr;
        $(rare($r_self:ident, $r_s:ident, $r_g:ident) => $rare:expr, f $f_rare:expr, pull $pull_rare:expr;)?
        define($d_self:ident, $d_x:ident) => $define:expr;
        cuda($c_self:ident) => $fwd:ident, $pull_kernel:ident, $params:expr;
        derivative($t_self:ident, $t_s:ident) => $derivative:expr;
        samples => $samples:expr;
        validate($v_self:ident) => $validate:expr;
    ) => {
        impl super::Unary for $op {
            const NAME: &'static str = $name;
            const VJP_NAME: &'static str = concat!($name, "_vjp");
            const MATH: crate::op::Math = crate::op::Math { forward: $forward, vjp: $vjp, kinks: $kinks, cost: $cost, references: $references };
            const SAVES: super::Saves = super::Saves::$saves;
            const DOMAIN: super::Domain = $domain;
            #[inline(always)]
            fn f<T: Real>(&$f_self, $f_x: T) -> T {
                $f
            }
            #[inline(always)]
            fn pull<T: Real>(&$p_self, $p_s: T, $p_g: T) -> T {
                $pull
            }
            unary! { @rare $($r_self, $r_s, $r_g, $rare, $f_rare, $pull_rare)? }
            fn define<S: Scalar>(&$d_self, $d_x: S) -> S {
                $define
            }
            fn cuda(&$c_self) -> super::UnaryKernels {
                super::UnaryKernels::new(super::kernels::$fwd, super::kernels::$pull_kernel, $params)
            }
            fn slope<S: Scalar>(&$s_self, $s: S) -> S {
                $slope
            }
            fn derivative(&$t_self, $t_s: &Tensor) -> Result<Tensor> {
                $derivative
            }
            #[inline]
            fn samples() -> Vec<Sample<Self>> {
                $samples
            }
            fn validate(&$v_self) -> Result<()> {
                $validate
            }
        }
    };
}

mod activations;
mod exponentials;
mod piecewise;
mod powers;
mod scalar;
mod sigmoids;
mod trigonometric;

pub use activations::*;
pub use exponentials::*;
pub use piecewise::*;
pub use powers::*;
pub use scalar::*;
pub use sigmoids::*;
pub use trigonometric::*;

use crate::backend::cpu::{self, Real, map, simd};
use crate::backend::cuda::kernels::unary as kernels;
use crate::backend::cuda::{self, UnaryKernels};
use crate::dtype::DType;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Outputs, Saved, Spec, apply1, expect};
use crate::ops::second_order::{differentiate, widened};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Dual, Gen, Input, Nd, Purpose, Sample, Scalar};
use smallvec::{SmallVec, smallvec};
use std::fmt::Debug;

/// Which tensor the derivative of a unary op is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saves {
    /// The operand `x`.
    Input,
    /// The result `f(x)`: the operand's memory is then free.
    Output,
    /// Neither: the derivative is constant.
    Nothing,
}

/// The range of random values on which an op is checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Domain {
    /// Anywhere in an interval: the function is smooth there.
    Uniform(f64, f64),
    /// Odd multiples of 1/16 in (-3, 3): well away from kinks, which the ops here have at multiples of 1/8.
    OffKinks,
}

impl Domain {
    fn draw(self, g: &mut Gen, shape: impl Into<Shape>) -> Input {
        match self {
            Domain::Uniform(lo, hi) => g.uniform(shape, lo, hi),
            Domain::OffKinks => {
                let (shape, key) = (shape.into(), g.key());
                let values: Vec<f64> = (0..shape.numel() as u64).map(|i| key.below(i, 48) as f64 / 8.0 - 2.9375).collect();
                Input::values(shape, values)
            }
        }
    }

    /// The same for timing, drawn only when it runs.
    fn bench(self, g: &mut Gen) -> Input {
        let (lo, hi) = if let Domain::Uniform(lo, hi) = self { (lo, hi) } else { (-3.0, 3.0) };
        g.uniform([4 << 20], lo, hi)
    }
}

/// A differentiable function of one number, applied to every element.
pub trait Unary: Clone + Debug + Send + Sync + 'static {
    /// Name of the op.
    const NAME: &'static str;
    /// Name of its derivative kernel: `<name>_vjp`.
    const VJP_NAME: &'static str;
    /// The mathematics in words.
    const MATH: Math;
    /// What the derivative is written in.
    const SAVES: Saves;
    /// The range of random values for the checks and benches.
    const DOMAIN: Domain;
    /// The function, for kernels. Mark it `#[inline(always)]`.
    fn f<T: Real>(&self, x: T) -> T;
    /// Its derivative in terms of the saved value, times the cotangent `g`. A product in most ops; where the slope is
    /// piecewise constant it selects instead, so that nothing of an infinite cotangent leaks through a closed gate.
    /// Mark it `#[inline(always)]`.
    fn pull<T: Real>(&self, saved: T, g: T) -> T;
    /// Whether `f` and `pull` are not accurate for this operand. The vectorised loop uses them everywhere; a second loop computes
    /// such elements again by `f_rare` and `pull_rare`.
    fn rare<T: Real>(&self, x: T) -> bool;
    /// The function where [`rare`](Unary::rare) is true.
    fn f_rare<T: Real>(&self, x: T) -> T;
    /// The derivative where [`rare`](Unary::rare) is true of the saved value.
    fn pull_rare<T: Real>(&self, saved: T, g: T) -> T;
    /// The function, plainly.
    fn define<S: Scalar>(&self, x: S) -> S;
    /// The kernels of kernels/elementwise/unary.cu for the function and its derivative, and their parameters.
    fn cuda(&self) -> UnaryKernels;
    /// Its derivative in terms of the saved value, plainly. With [`Saves::Input`] this is [`slope_of_input`].
    fn slope<S: Scalar>(&self, saved: S) -> S;
    /// Its derivative in terms of the saved value, as tensor ops (for second and higher derivatives).
    ///
    /// # Errors
    /// What the tensor ops refuse.
    fn derivative(&self, saved: &Tensor) -> Result<Tensor>;
    /// What deserves a check of its own: every option, limits, kinks, refusals. At least one; sizes, random values and a
    /// bench are added to the op of the first.
    fn samples() -> Vec<Sample<Self>>;
    /// An argument check (parameters out of range), run by the shape rule.
    ///
    /// # Errors
    /// Argument error.
    fn validate(&self) -> Result<()>;
}

/// A [`Unary`] as an op.
#[derive(Clone, Debug)]
pub struct Map<U>(pub U);

/// The derivative kernel of a [`Unary`]: `(saved, ȳ) ↦ ȳ·f′`. An op of its own, so that it can be differentiated again.
#[derive(Clone, Debug)]
pub struct MapVjp<U>(pub U);

impl<U: Unary> Describe for Map<U> {
    const NAME: &'static str = U::NAME;
    const MATH: Math = U::MATH;

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        vec![x[0].map(|v| self.0.define(v))]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        Sample::map_all(samples::<U>(g), Map)
    }
}

/// An op's own samples, and what every elementwise op needs: empty, single, odd and parallel sizes, and a bench.
fn samples<U: Unary>(g: &mut Gen) -> Vec<Sample<U>> {
    let mut out = U::samples();
    let Some(op) = out.first().map(|s| s.op.clone()) else { return out };
    let shape = g.shape(2);
    let shapes: [Shape; 7] = [shape, ().into(), [0].into(), [1].into(), [2].into(), [3].into(), [3, 1, 2, 11].into()];
    out.extend(shapes.map(|shape| Sample::check(op.clone(), [U::DOMAIN.draw(g, shape)])));
    out.push(Sample::value(op.clone(), [U::DOMAIN.draw(g, [3 * map::PIECE + 5])]).note("several parallel pieces and a rest"));
    out.push(Sample::reject(op.clone(), [Input::ints(DType::I64, [2], &[1, 2])], ErrorKind::Dtype));
    out.push(Sample::bench(op, [U::DOMAIN.bench(g)]));
    out
}

/// The derivative of a piecewise linear op: constant wherever it exists, hence without history.
fn constant_slope<U: Unary>(op: &U, saved: &Tensor) -> Result<Tensor> {
    let s = saved.untracked();
    apply1(MapVjp(op.clone()), &[&s, &s.ones_like()?])
}

/// `c·x`, for derivatives.
fn scaled(x: &Tensor, c: f64) -> Result<Tensor> {
    x.mul(&Tensor::full_on((), c, x.dtype(), x.device())?)
}

/// `x + c`, for derivatives.
fn shifted(x: &Tensor, c: f64) -> Result<Tensor> {
    x.add(&Tensor::full_on((), c, x.dtype(), x.device())?)
}

/// The numbers as a sample's input.
fn at(values: &[f64]) -> [Input; 1] {
    [Input::values([values.len()], values)]
}

/// Refuses a parameter that is no finite number.
fn finite(name: &str, value: f64) -> Result<()> {
    if !value.is_finite() {
        bail!(argument, "{name} must be finite, found {value}");
    }
    Ok(())
}

/// The forward loop: all that is compiled per op, once for f32 and once for f64.
fn map_block<U: Unary, A: Real>(op: &U, x: &[A], y: &mut [A]) {
    // A local copy: behind a reference its parameters might change with every store, and the loop would not vectorise.
    let op = op.clone();
    let any_rare = simd::dispatch(
        #[inline(always)]
        || {
            let mut any = false;
            for (y, &x) in y.iter_mut().zip(x) {
                *y = op.f(x);
                any |= op.rare(x);
            }
            any
        },
    );
    if any_rare {
        for (y, &x) in y.iter_mut().zip(x).filter(|(_, x)| op.rare(**x)) {
            *y = op.f_rare(x);
        }
    }
}

/// The derivative's loop.
fn pull_block<U: Unary, A: Real>(op: &U, saved: &[A], g: &[A], x_bar: &mut [A]) {
    let op = op.clone();
    let any_rare = simd::dispatch(
        #[inline(always)]
        || {
            let mut any = false;
            for ((y, &s), &g) in x_bar.iter_mut().zip(saved).zip(g) {
                *y = op.pull(s, g);
                any |= op.rare(s);
            }
            any
        },
    );
    if any_rare {
        for ((y, &s), &g) in x_bar.iter_mut().zip(saved).zip(g).filter(|((_, s), _)| op.rare(**s)) {
            *y = op.pull_rare(s, g);
        }
    }
}

impl<U: Unary> Op for Map<U> {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        self.0.validate()?;
        expect::same_float(x)?;
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        map::unary_floats(&x[0], &mut y[0], (&|x, y| map_block(&self.0, x, y), &|x, y| map_block(&self.0, x, y)))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        self.0.cuda().forward(&x[0], &mut y[0])
    }

    fn save(&self, x: &[&Tensor], y: &[Tensor], _: &[bool]) -> Saved {
        match U::SAVES {
            Saves::Input => Saved::of([Some(x[0])]),
            Saves::Output => Saved::of([Some(&y[0])]),
            // The slope does not depend on the value: `vjp_of` gives the kernel the cotangent in its place.
            Saves::Nothing => Saved::none(),
        }
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let identity = U::SAVES == Saves::Nothing && self.0.pull(0f64, 1.0) == 1.0;
        vjp_of(U::SAVES, identity, saved, y_bar, &|s, g| apply1(MapVjp(self.0.clone()), &[s, g]))
    }
}

/// A function of two tensors, as what the ops of a [`Unary`] share sees its derivative kernel.
type Pull<'a> = &'a dyn Fn(&Tensor, &Tensor) -> Result<Tensor>;

/// The derivative of [`Map`], compiled once for all.
fn vjp_of(saves: Saves, identity: bool, saved: &Saved, y_bar: &Cotangents, pull: Pull<'_>) -> Result<InputCotangents> {
    let g = y_bar.only()?;
    if identity {
        return Ok(smallvec![Some(g.clone())]);
    }
    let s = if saves == Saves::Nothing { g.untracked() } else { saved.get(0)?.clone() };
    Ok(smallvec![Some(pull(&s, g)?)])
}

/// The derivative of [`MapVjp`], compiled once for all.
fn vjp_of_vjp(
    saved: &Saved,
    y_bar: &Cotangents,
    want: &[bool],
    pull: Pull<'_>,
    derivative: &dyn Fn(&Tensor) -> Result<Tensor>,
) -> Result<InputCotangents> {
    let z = y_bar.only()?;
    let s = saved.get(0)?;
    let g_bar = if want[1] { Some(pull(s, z)?) } else { None };
    let s_bar = if want[0] {
        let seed = widened(z)?.mul(&widened(saved.get(1)?)?)?;
        differentiate(std::slice::from_ref(s), &[true], &[seed], |x| Ok(Outputs::from_iter([derivative(&x[0])?])))?.swap_remove(0)
    } else {
        None
    };
    Ok(smallvec![s_bar, g_bar])
}

impl<U: Unary> Describe for MapVjp<U> {
    const NAME: &'static str = U::VJP_NAME;
    const MATH: Math = Math {
        forward: "x̄ = ȳ · f′, with f′ in terms of the saved value",
        vjp: "of ȳ: the same kernel; of the saved value: ȳ · f″ through the composition of f′",
        kinks: "as the op it belongs to",
        cost: "reads two operands, writes one",
        references: "chain rule",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let data = x[0].data.iter().zip(&x[1].data).map(|(&s, &g)| self.0.slope(s) * g).collect();
        vec![Nd::new(&x[0].shape, data)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        samples::<U>(g)
            .into_iter()
            .filter(|s| matches!(s.purpose, Purpose::Check | Purpose::Value))
            .map(|s| {
                let x = s.inputs[0].clone();
                let saved = if U::SAVES == Saves::Output {
                    Input::values(x.shape(), x.to_vec().into_iter().map(|v| s.op.define(v)).collect::<Vec<f64>>())
                } else {
                    x
                };
                let bar = g.normal(saved.shape());
                let mut out = s.map(MapVjp);
                out.inputs = vec![saved, bar];
                out
            })
            .collect()
    }
}

/// The slope of `define` at `x`, exactly: what [`Unary::slope`] is for every op that saves its input.
pub fn slope_of_input<U: Unary, S: Scalar>(u: &U, x: S) -> S {
    u.define(Dual::new(x, S::one())).d
}

impl<U: Unary> Op for MapVjp<U> {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_float(x)?;
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let blocks: map::Floats2<'_> = (&|s, g, y| pull_block(&self.0, s, g, y), &|s, g, y| pull_block(&self.0, s, g, y));
        map::binary_floats(&x[0], &x[1], &mut y[0], blocks)
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        self.0.cuda().pull(&x[0], &x[1], &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], want: &[bool]) -> Saved {
        Saved::of([Some(x[0]), want[0].then_some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        vjp_of_vjp(saved, y_bar, want, &|s, z| apply1(self.clone(), &[s, z]), &|s| self.0.derivative(s))
    }
}
