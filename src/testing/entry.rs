//! One row of the registry: an op with everything that can be done to it without knowing its type.

use super::suite::{self, Config, Report};
use super::{Gen, Purpose};
use crate::dtype::DType;
use crate::error::Result;
use crate::op::{self, Composite, Describe, Math, Op, Outputs, View};
use crate::ops::elementwise::{Map, Unary};
use crate::tensor::Tensor;

/// How an op is implemented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// Kernels of its own.
    Kernel,
    /// A change of layout.
    View,
    /// A composition of other ops.
    Composite,
}

/// An op of the registry.
#[derive(Clone, Copy)]
pub struct OpEntry {
    /// Its name.
    pub name: &'static str,
    /// Its mathematics.
    pub math: Math,
    /// How it is implemented.
    pub implementation: Implementation,
    /// Whether it maps each element of one operand on its own: then all 65 536 half values can be tried.
    pub unary: bool,
    check: fn(&Config, &mut Report),
    bench: fn(DType) -> Vec<BenchCase>,
}

/// A timed case: call `run` once per iteration.
pub struct BenchCase {
    /// Op name and shapes.
    pub id: String,
    /// Bytes of all inputs and outputs.
    pub bytes: usize,
    /// Forward.
    pub forward: Box<dyn Fn() -> Result<Outputs>>,
    /// Forward and backward to every differentiable input, with a random cotangent; `None` when there is none.
    pub backward: Option<Box<dyn Fn() -> Result<()>>>,
}

impl OpEntry {
    const fn new<O: Describe>(implementation: Implementation, unary: bool, check: fn(&Config, &mut Report), bench: fn(DType) -> Vec<BenchCase>) -> Self {
        const { assert!(O::MATH.is_complete(), "an op's mathematics has an empty field") };
        OpEntry { name: O::NAME, math: O::MATH, implementation, unary, check, bench }
    }

    /// An op with kernels.
    pub const fn op<O: Op>() -> Self {
        Self::new::<O>(Implementation::Kernel, false, |c, r| suite::check::<O>(call_op::<O>, c, r), |d| bench::<O>(call_op::<O>, d))
    }

    /// An elementwise op of one operand.
    pub const fn unary<U: Unary>() -> Self {
        Self::new::<Map<U>>(Implementation::Kernel, true, |c, r| suite::check::<Map<U>>(call_op::<Map<U>>, c, r), |d| bench::<Map<U>>(call_op::<Map<U>>, d))
    }

    /// A change of layout.
    pub const fn view<V: View>() -> Self {
        Self::new::<V>(Implementation::View, false, |c, r| suite::check::<V>(call_view::<V>, c, r), |d| bench::<V>(call_view::<V>, d))
    }

    /// A composition.
    pub const fn composite<C: Composite>() -> Self {
        Self::new::<C>(Implementation::Composite, false, |c, r| suite::check::<C>(call_composite::<C>, c, r), |d| bench::<C>(call_composite::<C>, d))
    }

    /// Runs every check on the op's samples.
    pub fn check(&self, config: &Config, report: &mut Report) {
        (self.check)(config, report);
    }

    /// The op's bench samples in a dtype.
    pub fn bench(&self, dtype: DType) -> Vec<BenchCase> {
        (self.bench)(dtype)
    }
}

fn call_op<O: Op>(o: &O, x: &[&Tensor]) -> Result<Outputs> {
    op::apply(o.clone(), x)
}

fn call_view<V: View>(v: &V, x: &[&Tensor]) -> Result<Outputs> {
    // A view that needs another layout gets a copy, as the tensor method gives it.
    let owned;
    let x = if x.len() == 1 && v.layout(x[0].layout()).is_err() {
        owned = x[0].contiguous()?;
        &owned
    } else {
        x[0]
    };
    Ok(Outputs::from_iter([op::apply_view(v.clone(), x)?]))
}

fn call_composite<C: Composite>(c: &C, x: &[&Tensor]) -> Result<Outputs> {
    op::compose(c.clone(), x)
}

fn bench<O: Describe>(call: suite::Call<O>, dtype: DType) -> Vec<BenchCase> {
    let mut g = Gen::new(0, 8);
    let samples = O::samples(&mut g).into_iter().filter(|s| s.purpose == Purpose::Bench);
    samples.filter_map(|s| suite::bench_case(call, s, dtype).ok()).collect()
}
