//! Samples: the inputs on which an op is checked, timed, or expected to refuse.

use super::Scalar;
use crate::dtype::DType;
use crate::error::ErrorKind;
use crate::rng::Key;
use crate::shape::Shape;
use std::sync::Arc;

/// What a sample is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Value and all derivatives are checked.
    Check,
    /// Only the value is checked (infinities, NaN, points without a derivative).
    Value,
    /// Timed by the benches; not checked.
    Bench,
    /// The op must refuse with an error of this kind.
    Reject(ErrorKind),
}

/// How the elements of an input arise. Generated lazily, so that bench inputs cost nothing until they are used.
#[derive(Clone, Debug)]
enum Values {
    Given(Arc<[f64]>),
    Normal { scale: f64, offset: f64, key: Key },
    Uniform { lo: f64, hi: f64, key: Key },
    Below { n: usize, key: Key },
}

/// One input of a sample: a shape and how to fill it. Float inputs take whatever dtype the suite is checking.
#[derive(Clone, Debug)]
pub struct Input {
    shape: Shape,
    dtype: Option<DType>,
    values: Values,
}

impl Input {
    /// Given float values.
    ///
    /// # Panics
    /// If their number does not fit the shape.
    pub fn values(shape: impl Into<Shape>, values: impl Into<Vec<f64>>) -> Self {
        let (shape, values) = (shape.into(), values.into());
        assert_eq!(shape.numel(), values.len(), "a sample gives {} values for shape {shape}", values.len());
        Input { shape, dtype: None, values: Values::Given(values.into()) }
    }

    /// Given integer values of a fixed dtype.
    pub fn ints(dtype: DType, shape: impl Into<Shape>, values: &[i64]) -> Self {
        Self::values(shape, values.iter().map(|&i| i as f64).collect::<Vec<_>>()).of_dtype(dtype)
    }

    /// Fixes the dtype: integers, or a float input whose dtype must differ from the others'.
    #[must_use]
    pub fn of_dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// The fixed dtype, if any.
    pub fn dtype(&self) -> Option<DType> {
        self.dtype
    }

    /// Extents.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Whether the suite may differentiate with respect to it.
    pub fn is_float(&self) -> bool {
        self.dtype.is_none_or(DType::is_float)
    }

    /// The elements in row-major order.
    pub fn to_vec(&self) -> Vec<f64> {
        let n = self.shape.numel() as u64;
        match &self.values {
            Values::Given(v) => v.to_vec(),
            Values::Normal { scale, offset, key } => (0..n).map(|i| offset + scale * key.normal(i)).collect(),
            Values::Uniform { lo, hi, key } => (0..n).map(|i| lo + (hi - lo) * key.uniform_f64(i)).collect(),
            Values::Below { n: m, key } => (0..n).map(|i| key.below(i, *m as u64) as f64).collect(),
        }
    }
}

/// An op with its inputs; see [`Purpose`].
#[derive(Clone, Debug)]
pub struct Sample<O> {
    /// The op with its options.
    pub op: O,
    /// Its inputs.
    pub inputs: Vec<Input>,
    /// What it is for.
    pub purpose: Purpose,
    /// What it guards against, when that is not obvious; `[C1]` at its end names a row of docs/known-bugs.md.
    pub note: &'static str,
    /// Inputs that have no derivative by contract (saved statistics, masks given as floats).
    pub no_grad: Vec<usize>,
    /// Inputs that repeating some of their elements would make invalid: the suite gives them no layout with stride 0.
    pub unrepeated: Vec<usize>,
    /// No derivative in the classical sense at these inputs: finite differences are skipped, the documented
    /// subgradient is still checked against the definition.
    pub kink: bool,
    /// Second derivatives are skipped (they do not exist here).
    pub first_order_only: bool,
}

impl<O> Sample<O> {
    fn new(op: O, inputs: impl Into<Vec<Input>>, purpose: Purpose) -> Self {
        Sample {
            op,
            inputs: inputs.into(),
            purpose,
            note: "",
            no_grad: Vec::new(),
            unrepeated: Vec::new(),
            kink: false,
            first_order_only: false,
        }
    }

    /// Value and derivatives are checked.
    pub fn check(op: O, inputs: impl Into<Vec<Input>>) -> Self {
        Self::new(op, inputs, Purpose::Check)
    }

    /// Only the value is checked.
    pub fn value(op: O, inputs: impl Into<Vec<Input>>) -> Self {
        Self::new(op, inputs, Purpose::Value)
    }

    /// Timed.
    pub fn bench(op: O, inputs: impl Into<Vec<Input>>) -> Self {
        Self::new(op, inputs, Purpose::Bench)
    }

    /// Must be refused.
    pub fn reject(op: O, inputs: impl Into<Vec<Input>>, kind: ErrorKind) -> Self {
        Self::new(op, inputs, Purpose::Reject(kind))
    }

    /// Says what the sample guards against.
    #[must_use]
    pub fn note(mut self, note: &'static str) -> Self {
        self.note = note;
        self
    }

    /// These inputs have no derivative by contract.
    #[must_use]
    pub fn no_grad(mut self, inputs: &[usize]) -> Self {
        self.no_grad = inputs.to_vec();
        self
    }

    /// Elements of these inputs depend on each other; see [`Sample::unrepeated`].
    #[must_use]
    pub fn unrepeated(mut self, inputs: &[usize]) -> Self {
        self.unrepeated = inputs.to_vec();
        self
    }

    /// The inputs sit on a kink; see [`Sample::kink`].
    #[must_use]
    pub fn at_kink(mut self) -> Self {
        self.kink = true;
        self.first_order_only = true;
        self
    }

    /// No second derivative here.
    #[must_use]
    pub fn first_order(mut self) -> Self {
        self.first_order_only = true;
        self
    }

    /// The same samples of a wrapping op.
    pub fn map_all<P>(samples: Vec<Self>, f: impl Fn(O) -> P) -> Vec<Sample<P>> {
        // A loop: for each of hundreds of ops, `collect` would compile all of its machinery.
        let mut out = Vec::with_capacity(samples.len());
        for s in samples {
            out.push(s.map(&f));
        }
        out
    }

    /// The same sample of a wrapping op.
    pub fn map<P>(self, f: impl FnOnce(O) -> P) -> Sample<P> {
        Sample {
            op: f(self.op),
            inputs: self.inputs,
            purpose: self.purpose,
            note: self.note,
            no_grad: self.no_grad,
            unrepeated: self.unrepeated,
            kink: self.kink,
            first_order_only: self.first_order_only,
        }
    }
}

/// Draws sizes and values for samples. Deterministic: the same seed gives the same samples; `limit` bounds extents, so
/// a failing case shrinks by lowering it.
#[derive(Clone, Debug)]
pub struct Gen {
    key: Key,
    drawn: u64,
    limit: usize,
}

impl Gen {
    /// A generator whose extents stay at or below `limit` (at least 1).
    pub fn new(seed: u64, limit: usize) -> Self {
        Gen { key: Key::new(seed), drawn: 0, limit: limit.max(1) }
    }

    /// Largest extent to draw.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// A fresh key.
    pub fn key(&mut self) -> Key {
        self.drawn += 1;
        self.key.fold(self.drawn)
    }

    /// An integer in `lo..=hi`.
    pub fn int(&mut self, lo: usize, hi: usize) -> usize {
        lo + self.key().below(0, (hi - lo + 1) as u64) as usize
    }

    /// An extent from 1 to the limit.
    pub fn extent(&mut self) -> usize {
        let n = self.limit;
        self.int(1, n)
    }

    /// One of the given values.
    pub fn one_of<T: Clone>(&mut self, of: &[T]) -> T {
        let i = self.int(0, of.len() - 1);
        of[i].clone()
    }

    /// A shape of the given rank with extents from 1 to the limit.
    pub fn shape(&mut self, rank: usize) -> Shape {
        (0..rank).map(|_| self.extent()).collect()
    }

    /// Normal values.
    pub fn normal(&mut self, shape: impl Into<Shape>) -> Input {
        self.normal_with(shape, 1.0, 0.0)
    }

    /// Normal values with a standard deviation and a mean.
    pub fn normal_with(&mut self, shape: impl Into<Shape>, scale: f64, offset: f64) -> Input {
        Input { shape: shape.into(), dtype: None, values: Values::Normal { scale, offset, key: self.key() } }
    }

    /// Uniform values in `[lo, hi)`.
    pub fn uniform(&mut self, shape: impl Into<Shape>, lo: f64, hi: f64) -> Input {
        Input { shape: shape.into(), dtype: None, values: Values::Uniform { lo, hi, key: self.key() } }
    }

    /// Integers in `0..n`.
    pub fn below(&mut self, dtype: DType, shape: impl Into<Shape>, n: usize) -> Input {
        Input { shape: shape.into(), dtype: Some(dtype), values: Values::Below { n, key: self.key() } }
    }

    /// Distinct, well separated values in random order: no ties, and no kink within a finite-difference step.
    pub fn distinct(&mut self, shape: impl Into<Shape>) -> Input {
        let shape = shape.into();
        let key = self.key();
        let n = shape.numel();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| key.uniform_f64(a as u64).total_cmp(&key.uniform_f64(b as u64)));
        let mut v = vec![0.0; n];
        for (rank, i) in order.into_iter().enumerate() {
            v[i] = (rank as f64 - n as f64 / 2.0) * 0.125 + 0.0625;
        }
        Input::values(shape, v)
    }
}

/// Turns plain values into any scalar.
pub fn lift<S: Scalar>(x: &[f64]) -> Vec<S> {
    x.iter().map(|&v| S::lit(v)).collect()
}
