//! The checker is checked: ops with planted mistakes, each of which the suite must find.
//!
//! The op is `y = x² · w` with `x` of shape [m, n] and `w` of shape [n]; its twin without a mistake passes.

use cotangent::backend::{cpu, cuda};
use cotangent::op::{self, Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec};
use cotangent::testing::{Check, Config, Gen, Input, Nd, OpEntry, Report, Sample, Scalar, gradcheck, gradgradcheck};
use cotangent::{BF16, DType, Element, Error, ErrorKind, F16, F32, F64, Result, Tensor};
use smallvec::{SmallVec, smallvec};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    Scaled,
    DroppedTerm,
    SwappedOperands,
    TransposedOperand,
    SkippedLastRow,
    LostOperand,
    NotANumber,
    DependsOnDtype,
    IgnoresStrides,
    IgnoresStridesOfCotangent,
    UnwrittenElement,
    UnwrittenCotangent,
    IgnoresOption,
    WrongSecondDerivative,
    DependsOnThreads,
    DependsOnCalls,
    DependsOnWant,
    LeaksIntoZero,
    AcceptsWrongShapes,
    WrongErrorKind,
    ReadsTooFar,
}

thread_local! {
    /// What the next samples are planted with; the op carries it from there.
    static PLANTED: Cell<Bug> = const { Cell::new(Bug::None) };
}

static CALLS: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Debug)]
struct SquareTimes {
    bug: Bug,
    /// An option: subtract one from the result.
    minus_one: bool,
}

const MATH: Math =
    Math { forward: "y = x² w", vjp: "x̄ = 2 x w ȳ; w̄ = Σ x² ȳ", kinks: "smooth", cost: "one pass", references: "none" };

impl Describe for SquareTimes {
    const NAME: &'static str = "square_times";
    const MATH: Math = MATH;

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let one = if self.minus_one && self.bug != Bug::IgnoresOption { S::one() } else { S::zero() };
        vec![Nd::from_fn(&x[0].shape, |i| x[0].at(i) * x[0].at(i) * x[1].broadcast_at(i) - one)]
    }

    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let bug = PLANTED.get();
        let op = |minus_one| SquareTimes { bug, minus_one };
        let mut out: Vec<Sample<Self>> =
            [[3, 3], [1, 4], [5, 2], [3, 4]].into_iter().map(|s| Sample::check(op(false), [g.normal(s), g.normal([s[1]])])).collect();
        let given = || [Input::values([2, 2], [0.5, -1.5, 2.0, 1.0]), Input::values([2], [1.25, -0.75])];
        out.push(Sample::check(op(false), given()));
        out.push(Sample::check(op(true), given()));
        out.push(Sample::reject(op(false), [g.normal([2, 3]), g.normal([2])], ErrorKind::Shape));
        out
    }
}

fn float<T: Element>(x: &[cpu::In<'_>], y: &mut cpu::Out<'_>, f: impl Fn(&[T], &[T], &mut [T])) -> Result<()> {
    f(&x[0].contiguous::<T>()?, &x[1].contiguous::<T>()?, y.slice::<T>());
    Ok(())
}

impl SquareTimes {
    fn kernel<T: Element>(&self, x: &[cpu::In<'_>], y: &mut cpu::Out<'_>) -> Result<()> {
        let (bug, one) = (self.bug, if self.minus_one && self.bug != Bug::IgnoresOption { 1.0 } else { 0.0 });
        let factor = match bug {
            Bug::DependsOnThreads => 1.0 + rayon::current_num_threads() as f64 * f64::EPSILON / 2.0,
            Bug::DependsOnCalls => 1.0 + (CALLS.fetch_add(1, Relaxed) % 2) as f64 * f64::EPSILON,
            _ => 1.0,
        };
        let raw = x[0].storage::<T>();
        let start = if raw.is_empty() { 0 } else { x[0].layout().offset() };
        float::<T>(x, y, |a, w, y| {
            let n = w.len().max(1);
            for i in 0..y.len() {
                if bug == Bug::UnwrittenElement && i + 1 == y.len() {
                    break;
                }
                let a = match bug {
                    Bug::IgnoresStrides => raw[(start + i) % raw.len()],
                    Bug::ReadsTooFar if i + 1 == y.len() => raw[(start + i + 1) % raw.len()],
                    _ => a[i],
                };
                y[i] = T::from_f64(a.to_f64() * a.to_f64() * w[i % n].to_f64() * factor - one);
            }
        })
    }
}

macro_rules! on_float {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            F64 => {
                type $T = f64;
                $body
            }
            F32 => {
                type $T = f32;
                $body
            }
            BF16 => {
                type $T = half::bf16;
                $body
            }
            F16 => {
                type $T = half::f16;
                $body
            }
            d => Err(Error::dtype(format!("expected floats, found {d}"))),
        }
    };
}

impl Op for SquareTimes {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let fits = x[0].shape.last() == x[1].shape.last();
        if !fits && self.bug == Bug::WrongErrorKind {
            return Err(Error::argument(format!("{} and {}", x[0].shape, x[1].shape)));
        }
        if !fits && self.bug != Bug::AcceptsWrongShapes {
            return Err(Error::shape(format!("last extents differ: {} and {}", x[0].shape, x[1].shape)));
        }
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        on_float!(x[0].dtype(), T => self.kernel::<T>(x, &mut y[0]))
    }

    fn cuda(&self, _: &[cuda::In<'_>], _: &mut [cuda::Out<'_>]) -> Result<()> {
        Err(cuda::no_kernel(Self::NAME))
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[0]), Some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let (x, w, g) = (saved.get(0)?, saved.get(1)?, y_bar.only()?);
        let constant = |v: f64| Tensor::full((), v, x.dtype());
        let (m, n) = (x.shape()[0], x.shape()[1]);
        let like = |values: Vec<f64>| -> Result<Tensor> {
            on_float!(x.dtype(), T => Tensor::from_slice(&values.iter().map(|v| T::from_f64(*v)).collect::<Vec<_>>(), x.shape()))
        };
        let copied = |bug| op::apply1(Copy { bug }, &[g]);
        let g = &match self.bug {
            Bug::IgnoresStridesOfCotangent => copied(Bug::IgnoresStrides)?,
            Bug::UnwrittenCotangent => copied(Bug::UnwrittenElement)?,
            _ => g.clone(),
        };
        let slope = match self.bug {
            Bug::DroppedTerm => x.clone(),
            Bug::TransposedOperand if m == n => x.t()?.add(&x.t()?)?,
            Bug::WrongSecondDerivative => x.detach().add(&x.detach())?,
            _ => x.add(x)?,
        };
        let mut x_bar = g.mul(&slope)?.mul(w)?;
        let w_bar = g.mul(x)?.mul(x)?;
        x_bar = match self.bug {
            Bug::Scaled => x_bar.mul(&constant(1.001)?)?,
            Bug::SkippedLastRow => x_bar.mul(&like((0..m * n).map(|i| if i / n + 1 == m { 0.0 } else { 1.0 }).collect())?)?,
            Bug::NotANumber => x_bar.add(&like((0..m * n).map(|i| if i == 0 { f64::NAN } else { 0.0 }).collect())?)?,
            Bug::DependsOnDtype if x.dtype() == F32 => x_bar.mul(&constant(1.0001)?)?,
            Bug::DependsOnWant if !want[1] => x_bar.mul(&constant(1.0 + 4.0 * f64::from(f32::EPSILON))?)?,
            Bug::LeaksIntoZero => x_bar.add(&constant(1e-30)?)?,
            _ => x_bar,
        };
        let w_bar = want[1].then_some(w_bar);
        Ok(match self.bug {
            Bug::SwappedOperands => smallvec![w_bar, Some(x_bar)],
            Bug::LostOperand => smallvec![Some(x_bar), None],
            _ => smallvec![want[0].then_some(x_bar), w_bar],
        })
    }
}

/// A copy that may ignore strides or leave its last element unwritten: a broken derivative kernel.
#[derive(Clone, Debug)]
struct Copy {
    bug: Bug,
}

impl Describe for Copy {
    const NAME: &'static str = "copy";
    const MATH: Math = MATH;
    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        x.to_vec()
    }
    fn samples(_: &mut Gen) -> Vec<Sample<Self>> {
        Vec::new()
    }
}

impl Op for Copy {
    const AUX: usize = 0;
    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        Ok(smallvec![x[0].clone()])
    }
    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        fn copy<T: Element>(bug: Bug, x: &cpu::In<'_>, y: &mut [T]) -> Result<()> {
            let right = x.contiguous::<T>()?;
            let raw = x.storage::<T>();
            let written = if bug == Bug::UnwrittenElement { y.len().saturating_sub(1) } else { y.len() };
            for (i, y) in y[..written].iter_mut().enumerate() {
                *y = if bug == Bug::IgnoresStrides { raw[(x.layout().offset() + i) % raw.len()] } else { right[i] };
            }
            Ok(())
        }
        on_float!(x[0].dtype(), T => copy(self.bug, &x[0], y[0].slice::<T>()))
    }
    fn cuda(&self, _: &[cuda::In<'_>], _: &mut [cuda::Out<'_>]) -> Result<()> {
        Err(cuda::no_kernel(Self::NAME))
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }
    fn vjp(&self, _: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![Some(y_bar.only()?.clone())])
    }
}

fn suite(bug: Bug) -> Report {
    PLANTED.set(bug);
    let mut report = Report::default();
    OpEntry::op::<SquareTimes>().check(&Config { seed: 5, limit: 4, ..Config::default() }, &mut report);
    report
}

/// The planted mistake is found by a check of this class.
#[track_caller]
fn caught(bug: Bug, by: Check) {
    let found = suite(bug).failures;
    assert!(
        found.iter().any(|f| f.starts_with(&format!("square_times: {}: ", by.name()))),
        "{bug:?} not caught by {}; found: {found:#?}",
        by.name()
    );
}

#[test]
fn the_right_twin_passes() {
    let report = suite(Bug::None);
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
    for check in Check::ALL {
        let may_lack = matches!(check, Check::UnusedOutputs | Check::AllHalfPatterns | Check::IndexTypes);
        assert!(may_lack || report.ran("square_times", check) > 0, "{} never ran", check.name());
    }
    let r = suite(Bug::None);
    assert!(r.missing(&[OpEntry::op::<SquareTimes>()]).is_empty());
    assert!(r.table().contains("square_times"));
}

#[test]
fn wrong_derivatives_are_caught() {
    for bug in [
        Bug::Scaled,
        Bug::DroppedTerm,
        Bug::SwappedOperands,
        Bug::TransposedOperand,
        Bug::SkippedLastRow,
        Bug::LostOperand,
        Bug::NotANumber,
    ] {
        caught(bug, Check::Vjp);
    }
}

#[test]
fn wrong_derivatives_are_caught_by_gradcheck() -> Result<()> {
    let x = Tensor::from_slice(&[0.5f64, -1.5, 2.0, 1.0, 0.25, -0.75, 1.25, -0.5, 0.875], [3, 3])?;
    let w = Tensor::from_slice(&[1.25f64, -0.75, 0.5], [3])?;
    let run = |bug| gradcheck(|t| op::apply1(SquareTimes { bug, minus_one: false }, &[&t[0], &t[1]]), &[x.clone(), w.clone()]);
    run(Bug::None)?;
    for bug in [
        Bug::Scaled,
        Bug::DroppedTerm,
        Bug::SwappedOperands,
        Bug::TransposedOperand,
        Bug::SkippedLastRow,
        Bug::LostOperand,
        Bug::NotANumber,
    ] {
        assert!(run(bug).unwrap_err().is_gradcheck(), "{bug:?}");
    }
    let second = |bug| gradgradcheck(|t| op::apply1(SquareTimes { bug, minus_one: false }, &[&t[0], &t[1]]), &[x.clone(), w.clone()]);
    second(Bug::None)?;
    assert!(second(Bug::WrongSecondDerivative).unwrap_err().is_gradcheck());
    Ok(())
}

#[test]
fn paths_that_depend_on_dtype_layout_or_want_are_caught() {
    caught(Bug::DependsOnDtype, Check::Vjp);
    caught(Bug::IgnoresStrides, Check::Value);
    caught(Bug::IgnoresStridesOfCotangent, Check::Vjp);
    caught(Bug::DependsOnWant, Check::WantSubsets);
}

#[test]
fn memory_mistakes_are_caught() {
    caught(Bug::UnwrittenElement, Check::Value);
    caught(Bug::UnwrittenCotangent, Check::Vjp);
    caught(Bug::ReadsTooFar, Check::Value);
}

#[test]
fn different_bits_are_caught() {
    caught(Bug::DependsOnThreads, Check::Determinism);
    caught(Bug::DependsOnCalls, Check::Determinism);
}

#[test]
fn the_rest_is_caught() {
    caught(Bug::WrongSecondDerivative, Check::Second);
    caught(Bug::LeaksIntoZero, Check::ZeroCotangent);
    caught(Bug::IgnoresOption, Check::Options);
    caught(Bug::AcceptsWrongShapes, Check::Reject);
    caught(Bug::WrongErrorKind, Check::Reject);
}

#[test]
fn failures_say_how_to_run_them_again() {
    let found = suite(Bug::Scaled).failures;
    assert!(found[0].contains("cotangent::ops::replay(\"square_times\", 5, 4)"), "{}", found[0]);
    assert!(found[0].contains("[[3, 3], [3]]"), "{}", found[0]);
    let _ = DType::FLOATS;
}
