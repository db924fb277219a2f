//! The checks that every op passes. They see an op through [`Subject`], so they are compiled once, not once per op.
//!
//! Nothing here has a hand-set tolerance: bounds come from running the definition on [`Ball`] (value) and
//! `Dual<Ball>` (derivative), see [`tolerance`].

mod derivative;
mod half;
mod higher;
mod layouts;
mod report;
mod tolerance;
mod value;

pub(crate) use higher::difference_quotient;
pub use layouts::Arrangement;
pub use report::{Check, Report};
pub use tolerance::Tolerance;

use super::any_scalar::through;
use super::{AnyScalar, Ball, Describe, Dual, Gen, Input, Nd, Purpose, Sample};
use crate::backend::{Device, cpu::poison_fresh_memory};
use crate::dtype::{DType, F32};
use crate::error::{ErrorKind, Result};
use crate::op::Outputs;
use crate::shape::Shape;
use crate::tensor::Tensor;
use layouts::arrange;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

/// Runs an op on tensors.
pub(crate) type Call<O> = fn(&O, &[&Tensor]) -> Result<Outputs>;

/// What to check.
#[derive(Clone, Debug)]
pub struct Config {
    /// Seed of all random sizes and values.
    pub seed: u64,
    /// Largest random extent.
    pub limit: usize,
    /// Fewer Jacobian columns, layouts and thread counts per sample.
    pub quick: bool,
    /// Where the op runs. The definition always runs on the host.
    pub device: Device,
}

impl Default for Config {
    fn default() -> Self {
        Config { seed: 0, limit: 3, quick: false, device: Device::Cpu }
    }
}

/// An op with its options, seen by the checks.
pub(crate) trait Subject: Send + Sync {
    fn name(&self) -> &'static str;
    /// The op with its options, as Rust prints it.
    fn show(&self) -> String;
    fn run(&self, x: &[&Tensor]) -> Result<Outputs>;
    fn define(&self, x: &[Nd<AnyScalar>]) -> Vec<Nd<AnyScalar>>;
}

impl dyn Subject {
    fn define_ball(&self, x: &[Nd<Ball>]) -> Vec<Nd<Ball>> {
        through(x, &|x| self.define(x))
    }
    fn define_dual_ball(&self, x: &[Nd<Dual<Ball>>]) -> Vec<Nd<Dual<Ball>>> {
        through(x, &|x| self.define(x))
    }
    fn define_second(&self, x: &[Nd<Dual<Dual<f64>>>]) -> Vec<Nd<Dual<Dual<f64>>>> {
        through(x, &|x| self.define(x))
    }
}

struct Bound<O>(O, Call<O>);

impl<O: Describe> Subject for Bound<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }
    fn show(&self) -> String {
        format!("{:?}", self.0)
    }
    fn run(&self, x: &[&Tensor]) -> Result<Outputs> {
        (self.1)(&self.0, x)
    }
    fn define(&self, x: &[Nd<AnyScalar>]) -> Vec<Nd<AnyScalar>> {
        self.0.define(x)
    }
}

pub(crate) type AnySample = Sample<Box<dyn Subject>>;

/// The samples of an op with its type erased.
pub(crate) fn samples<O: Describe>(call: Call<O>, g: &mut Gen) -> Vec<AnySample> {
    Sample::map_all(O::samples(g), |op| Box::new(Bound(op, call)) as Box<dyn Subject>)
}

/// What the checks know about an op besides its samples.
#[derive(Clone, Copy)]
pub(crate) struct Traits {
    /// Elementwise, one operand.
    pub unary: bool,
    /// Made of other ops: in half types each of them rounds.
    pub composite: bool,
}

/// One sample under check.
pub(super) struct Case<'a> {
    pub(super) s: &'a AnySample,
    pub(super) index: usize,
    pub(super) traits: Traits,
    pub(super) config: &'a Config,
    /// The elements of each input as the sample gives them.
    pub(super) raw: Vec<Vec<f64>>,
}

/// Inputs of a case in one dtype: the values that tensors of that dtype hold.
pub(super) struct Operands {
    pub(super) dtype: DType,
    pub(super) tensors: Vec<Tensor>,
    pub(super) values: Vec<Vec<f64>>,
}

impl Case<'_> {
    pub(super) fn input_dtype(&self, i: usize, dtype: DType) -> DType {
        self.s.inputs[i].dtype().unwrap_or(dtype)
    }

    pub(super) fn shape(&self, i: usize) -> &Shape {
        self.s.inputs[i].shape()
    }

    /// Whether the contract promises a derivative with respect to input `i`.
    pub(super) fn differentiable(&self, i: usize) -> bool {
        self.s.inputs[i].is_float() && !self.s.no_grad.contains(&i)
    }

    pub(super) fn operands(&self, dtype: DType) -> Result<Operands> {
        self.arranged(dtype, |_| (Arrangement::Contiguous, 0)).map(|(o, _)| o)
    }

    /// The inputs, each under the arrangement asked for, or contiguous where its shape has none such; and whether all
    /// could be had.
    pub(super) fn arranged(&self, dtype: DType, how: impl Fn(usize) -> (Arrangement, usize)) -> Result<(Operands, bool)> {
        let (mut tensors, mut values, mut all) = (Vec::new(), Vec::new(), true);
        for (i, raw) in self.raw.iter().enumerate() {
            let (mut a, turn) = how(i);
            if a == Arrangement::Expanded && self.s.unrepeated.contains(&i) {
                a = Arrangement::Contiguous;
            }
            let (t, got) = place(raw, self.shape(i), self.input_dtype(i, dtype), a, turn)?;
            all &= got;
            values.push(t.to_f64_vec()?);
            tensors.push(moved(&t, self.config.device)?);
        }
        Ok((Operands { dtype, tensors, values }, all))
    }

    pub(super) fn run(&self, x: &[Tensor]) -> Result<Outputs> {
        self.s.op.run(&x.iter().collect::<Vec<_>>())
    }

    pub(super) fn count(&self, r: &mut Report, dtype: DType, layout: Arrangement, check: Check) {
        r.count(self.s.op.name(), dtype, layout, check);
    }

    pub(super) fn fail(&self, r: &mut Report, check: Check, what: &str) {
        let shapes: Vec<String> = self.s.inputs.iter().map(|i| i.shape().to_string()).collect();
        let note = if self.s.note.is_empty() { String::new() } else { format!(" ({})", self.s.note) };
        let (name, seed, limit) = (self.s.op.name(), self.config.seed, self.config.limit);
        r.failures.push(format!(
            "{name}: {}: {what}\n    sample {} of {} on [{}]{note}\n    again: cotangent::ops::replay({name:?}, {seed}, {limit})",
            check.name(),
            self.index,
            self.s.op.show(),
            shapes.join(", "),
        ));
    }

    /// Reports an `Err` of a check that should have run through.
    pub(super) fn expect(&self, r: &mut Report, check: Check, done: Result<()>) {
        if let Err(e) = done {
            self.fail(r, check, &format!("unexpected error: {e}"));
        }
    }

    pub(super) fn numel(&self) -> usize {
        self.s.inputs.iter().map(|i| i.shape().numel()).sum()
    }
}

/// [`arrange`], or the plain tensor when the shape has no such layout; and whether it had.
pub(super) fn place(values: &[f64], shape: &Shape, dtype: DType, how: Arrangement, turn: usize) -> Result<(Tensor, bool)> {
    if let Some(t) = arrange(values, shape, dtype, how, turn)? {
        return Ok((t, true));
    }
    match arrange(values, shape, dtype, Arrangement::Contiguous, 0)? {
        Some(t) => Ok((t, false)),
        None => crate::error::bail!(shape, "no layout for shape {shape}"),
    }
}

/// The tensor with its whole storage and layout on a device.
pub(super) fn moved(t: &Tensor, device: Device) -> Result<Tensor> {
    t.array.storage_to_device(device).map(Tensor::from_array)
}

/// Fresh memory is NaN while any check runs, so that a kernel which reads what it did not write shows.
struct Poisoned;

static POISONERS: Mutex<usize> = Mutex::new(0);

impl Poisoned {
    fn change(f: impl FnOnce(&mut usize)) {
        let mut n = POISONERS.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut n);
        poison_fresh_memory(*n > 0);
    }

    fn new() -> Self {
        Self::change(|n| *n += 1);
        Poisoned
    }
}

impl Drop for Poisoned {
    fn drop(&mut self) {
        Self::change(|n| *n -= 1);
    }
}

/// Elements up to which the emulated device is asked for a result.
const EMULATED: usize = 60_000;

/// Samples of more elements have sizes of their own, whatever [`Config::limit`] is: other random values in them find nothing new, but
/// take most of the time, so they are checked where the limit is the smallest only.
const LARGE: usize = 10_000;
const SMALLEST: usize = 3;

/// Runs every check on every sample of an op.
pub(crate) fn check(samples: &[AnySample], traits: Traits, config: &Config, report: &mut Report) {
    let _poisoned = Poisoned::new();
    for (index, s) in samples.iter().enumerate() {
        let numel: usize = s.inputs.iter().map(|i| i.shape().numel()).sum();
        let too_slow = config.device == Device::CudaEmulated && numel > EMULATED;
        if s.purpose == Purpose::Bench || too_slow || (numel > LARGE && config.limit > SMALLEST) {
            continue;
        }
        let case = Case { s, index, traits, config, raw: s.inputs.iter().map(Input::to_vec).collect() };
        let run = catch_unwind(AssertUnwindSafe(|| {
            let mut r = Report::default();
            check_sample(&case, &mut r);
            r
        }));
        match run {
            Ok(r) => report.merge(r),
            Err(panic) => {
                let what = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).into()))
                    .unwrap_or_default();
                case.fail(report, Check::Value, &format!("panicked: {what}"));
            }
        }
    }
    if config.device == Device::Cpu {
        options(samples, traits, config, report);
    }
    if traits.unary {
        half::all_patterns(samples, traits, config, report);
    }
}

fn check_sample(case: &Case<'_>, r: &mut Report) {
    match case.s.purpose {
        Purpose::Bench => {}
        // Shape rules know no device, and differences and higher orders are tape and ops over again.
        Purpose::Reject(kind) if case.config.device == Device::Cpu => reject(case, kind, r),
        Purpose::Reject(_) => {}
        Purpose::Check | Purpose::Value => {
            for dtype in DType::FLOATS {
                let done = value::check(case, dtype, r);
                case.expect(r, Check::Value, done);
            }
            let done = value::index_types(case, r);
            case.expect(r, Check::IndexTypes, done);
            let done = derivative::determinism(case, r);
            case.expect(r, Check::Determinism, done);
            let floats: Vec<usize> = (0..case.s.inputs.len()).filter(|&i| case.differentiable(i)).collect();
            if floats.is_empty() {
                return;
            }
            if case.s.purpose == Purpose::Value {
                let done = derivative::large(case, r);
                case.expect(r, Check::Vjp, done);
                return;
            }
            for dtype in DType::FLOATS {
                let done = derivative::check(case, dtype, &floats, r);
                case.expect(r, Check::Vjp, done);
            }
            if case.config.device != Device::Cpu {
                return;
            }
            if !case.s.kink {
                let done = higher::finite_differences(case, &floats, r);
                case.expect(r, Check::FiniteDifferences, done);
            }
            if !case.s.first_order_only {
                let done = higher::second(case, &floats, r);
                case.expect(r, Check::Second, done);
            }
        }
    }
}

fn reject(case: &Case<'_>, kind: ErrorKind, r: &mut Report) {
    let name = case.s.op.name();
    case.count(r, F32, Arrangement::Contiguous, Check::Reject);
    let run = case.operands(F32).and_then(|x| case.run(&x.tensors));
    let Err(e) = run else {
        return case.fail(r, Check::Reject, &format!("accepted inputs that it must refuse with {kind:?}"));
    };
    let message = e.to_string();
    if e.kind() != kind {
        case.fail(r, Check::Reject, &format!("refused with {:?}, expected {kind:?}: {message}", e.kind()));
    }
    if !message.starts_with(&format!("{name}: ")) {
        case.fail(r, Check::Reject, &format!("the message does not start with the op's name: {message}"));
    }
    let shows =
        message.contains("axis") || message.contains("axes") || case.s.inputs.iter().any(|i| message.contains(&i.shape().to_string()));
    if kind == ErrorKind::Shape && !case.s.inputs.is_empty() && !shows {
        case.fail(r, Check::Reject, &format!("the message of a shape error shows neither an operand's shape nor an axis: {message}"));
    }
    let shapes: Vec<String> = case.s.inputs.iter().map(|i| format!("{}{}", i.dtype().map_or("float", DType::name), i.shape())).collect();
    let without_place = message.rsplit_once(" (at ").map_or(message.as_str(), |(m, _)| m);
    r.rejections.insert(format!("{} on {}\n    {kind:?}: {without_place}", case.s.op.show(), shapes.join(" ")));
}

/// Samples of one op on identical inputs but with different options must not all give the same result: an option that
/// changes nothing is not implemented.
fn options(samples: &[AnySample], traits: Traits, config: &Config, r: &mut Report) {
    let mut groups: HashMap<Vec<(Shape, Vec<u64>)>, Vec<usize>> = HashMap::new();
    for (i, s) in samples.iter().enumerate().filter(|(_, s)| matches!(s.purpose, Purpose::Check)) {
        if s.inputs.iter().map(|x| x.shape().numel()).sum::<usize>() > 0 {
            let key = s.inputs.iter().map(|x| (x.shape().clone(), x.to_vec().into_iter().map(f64::to_bits).collect())).collect();
            groups.entry(key).or_default().push(i);
        }
    }
    for group in groups.into_values() {
        let first = group[0];
        if group.iter().all(|&i| samples[i].op.show() == samples[first].op.show()) {
            continue;
        }
        let result = |i: usize| -> Result<Vec<(Shape, Vec<u64>)>> {
            let case = Case { s: &samples[i], index: i, traits, config, raw: samples[i].inputs.iter().map(Input::to_vec).collect() };
            let y = case.run(&case.operands(F32)?.tensors)?;
            y.iter().map(|t| Ok((t.shape().clone(), t.to_f64_vec()?.into_iter().map(f64::to_bits).collect()))).collect()
        };
        let case = Case { s: &samples[first], index: first, traits, config, raw: Vec::new() };
        case.count(r, F32, Arrangement::Contiguous, Check::Options);
        let results: Vec<_> = group.iter().filter_map(|&i| result(i).ok()).collect();
        if results.len() > 1 && results.iter().all(|x| *x == results[0]) {
            let shown: Vec<String> = group.iter().map(|&i| samples[i].op.show()).collect();
            case.fail(r, Check::Options, &format!("the options change nothing: {} give the same result", shown.join(", ")));
        }
    }
}
