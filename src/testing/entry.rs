//! One row of the registry: an op with everything that can be done to it without knowing its type.

use super::bench_case::{BenchCase, bench_case};
use super::suite::{self, AnySample, Arrangement, Check, Config, Report, Traits};
use super::{Gen, Purpose};
use crate::backend::Device;
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
    /// Whether an intermediate value is rounded to the operands' type by contract, as in a composition.
    rounds: bool,
    samples: fn(&mut Gen) -> Vec<AnySample>,
    type_name: fn() -> &'static str,
}

impl OpEntry {
    const fn new<O: Describe>(implementation: Implementation, unary: bool, samples: fn(&mut Gen) -> Vec<AnySample>) -> Self {
        const { assert!(O::MATH.is_complete(), "an op's mathematics has an empty field") };
        OpEntry { name: O::NAME, math: O::MATH, implementation, unary, rounds: false, samples, type_name: std::any::type_name::<O> }
    }

    /// An op with kernels.
    pub const fn op<O: Op>() -> Self {
        Self::new::<O>(Implementation::Kernel, false, |g| suite::samples::<O>(call_op::<O>, g))
    }

    /// An op with kernels, one of whose steps is rounded to the operands' type by contract: because it is a result itself, or
    /// because a matrix product writes it. In half types it may be as far off as its composition.
    pub const fn rounding<O: Op>() -> Self {
        OpEntry { rounds: true, ..Self::op::<O>() }
    }

    /// An elementwise op of one operand.
    pub const fn unary<U: Unary>() -> Self {
        Self::new::<Map<U>>(Implementation::Kernel, true, |g| suite::samples::<Map<U>>(call_op::<Map<U>>, g))
    }

    /// A change of layout.
    pub const fn view<V: View>() -> Self {
        Self::new::<V>(Implementation::View, false, |g| suite::samples::<V>(call_view::<V>, g))
    }

    /// A composition.
    pub const fn composite<C: Composite>() -> Self {
        Self::new::<C>(Implementation::Composite, false, |g| suite::samples::<C>(call_composite::<C>, g))
    }

    /// The folder of `src/ops` that its type stands in; none for an op from elsewhere.
    pub fn family(&self) -> Option<&'static str> {
        (self.type_name)().strip_prefix("cotangent::ops::")?.split("::").next()
    }

    /// Whether intermediate values are rounded to the operands' type: by a composition, or by contract.
    pub fn rounds(&self) -> bool {
        self.rounds || self.implementation == Implementation::Composite
    }

    /// Runs every check on the op's samples.
    pub fn check(&self, config: &Config, report: &mut Report) {
        let samples = (self.samples)(&mut Gen::new(config.seed, config.limit));
        let traits = Traits { unary: self.unary, composite: self.rounds() };
        suite::check(&samples, traits, config, report);
    }

    /// Runs only the samples that the op must refuse.
    pub fn check_rejections(&self, config: &Config, report: &mut Report) {
        let mut samples = (self.samples)(&mut Gen::new(config.seed, config.limit));
        samples.retain(|s| matches!(s.purpose, Purpose::Reject(_)));
        suite::check(&samples, Traits { unary: false, composite: false }, config, report);
    }

    /// The op's bench samples in a dtype, on the CPU.
    pub fn bench(&self, dtype: DType) -> Vec<BenchCase> {
        self.bench_on(dtype, Device::Cpu)
    }

    /// The op's bench samples in a dtype, with their operands on a device.
    pub fn bench_on(&self, dtype: DType, device: Device) -> Vec<BenchCase> {
        let samples = (self.samples)(&mut Gen::new(0, 8));
        samples.into_iter().filter(|s| s.purpose == Purpose::Bench).filter_map(|s| bench_case(s, dtype, device).ok()).collect()
    }
}

impl Report {
    /// Coverage that is missing: an op without samples, a dtype or layout it never met, a class of checks it never
    /// had, a rejection it was never asked for.
    pub fn missing(&self, entries: &[OpEntry]) -> Vec<String> {
        let mut out = Vec::new();
        for e in entries {
            let has =
                |keep: &dyn Fn(&(&'static str, DType, Arrangement, Check)) -> bool| self.counts.keys().any(|k| k.0 == e.name && keep(k));
            if !has(&|_| true) {
                out.push(format!("{}: never checked", e.name));
                continue;
            }
            for c in [Check::Value, Check::Determinism] {
                if !has(&|k| k.3 == c) {
                    out.push(format!("{}: no check of class `{}`", e.name, c.name()));
                }
            }
            if has(&|k| k.3 == Check::Vjp) {
                for c in [Check::ZeroCotangent, Check::WantSubsets, Check::Unchanged] {
                    if !has(&|k| k.3 == c) {
                        out.push(format!("{}: no check of class `{}`", e.name, c.name()));
                    }
                }
            }
            if e.unary && !has(&|k| k.3 == Check::AllHalfPatterns) {
                out.push(format!("{}: its 65 536 half values were not tried", e.name));
            }
            for a in Arrangement::ALL {
                if !has(&|k| k.2 == a) {
                    out.push(format!("{}: no operand was ever {}", e.name, a.name()));
                }
            }
        }
        out
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
