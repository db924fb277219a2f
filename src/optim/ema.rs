//! Exponential moving average of weights.

use super::State;
use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::module::Module;
use crate::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};

/// An average of a model's weights over its last steps, which often evaluates better than the weights themselves:
/// `a ← d·a + (1−d)·p`.
///
/// Frozen parameters are averaged too (to themselves); buffers and tensors of integers are copied. The average is kept in `f32` where
/// the model has half precision: one part in a thousand is below its resolution.
///
/// ```
/// use cotangent::{optim::Ema, Tensor};
/// let mut w = Tensor::scalar(1f32)?;
/// let mut ema = Ema::new(&w, 0.9)?;
/// w = Tensor::scalar(2f32)?;
/// ema.update(&w)?;
/// assert!((ema.model(&w)?.item()? - 1.1).abs() < 1e-6);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Ema {
    /// Decay `d` of a step, in `[0, 1]`.
    pub decay: f64,
    /// Use `min(d, (1 + n)/(10 + n))` in step `n`, so that the first weights are forgotten soon; false.
    pub warm_up: bool,
    average: BTreeMap<String, Tensor>,
    steps: u64,
}

impl Ema {
    /// Starts with the model's weights.
    ///
    /// # Errors
    /// Argument error unless the decay is in `[0, 1]`; out of memory.
    #[track_caller]
    pub fn new<M: Module + Clone>(model: &M, decay: f64) -> Result<Self> {
        let at = std::panic::Location::caller();
        let mut ema = Ema { decay, warm_up: false, average: BTreeMap::new(), steps: 0 };
        ema.check().map_err(|e| e.in_op("ema", at))?;
        for (name, t) in model.named_tensors() {
            ema.average.insert(name, wide(&t.detach())?);
        }
        Ok(ema)
    }

    /// Number of updates.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Moves the average towards the model's weights: call it after each step.
    ///
    /// # Errors
    /// Argument error unless the decay is in `[0, 1]`; argument, shape or dtype error for another model. The average is
    /// unchanged then.
    #[track_caller]
    pub fn update<M: Module + Clone>(&mut self, model: &M) -> Result<()> {
        let at = std::panic::Location::caller();
        self.run(model).map_err(|e| e.in_op("ema", at))
    }

    fn run<M: Module + Clone>(&mut self, model: &M) -> Result<()> {
        self.check()?;
        #[allow(clippy::cast_precision_loss)] // reason: step counts stay far below 2⁵³
        let n = self.steps as f64;
        let decay = if self.warm_up { self.decay.min((1.0 + n) / (10.0 + n)) } else { self.decay };
        let buffers: BTreeSet<String> = model.buffers().into_iter().map(|(name, _)| name).collect();
        let new = self.matched(model, |name, average, p| {
            if buffers.contains(name) {
                // Statistics of the step, in the average's dtype; they are no weights.
                return wide(&p.detach());
            }
            if !p.dtype().is_float() {
                return Ok(p.detach());
            }
            let p = wide(&p.detach())?;
            // a + (1−d)(p − a): a weight that stays is its own average, exactly.
            let average = average.to_device(p.device())?;
            average.add(&p.sub(&average)?.mul_scalar(1.0 - decay)?)
        })?;
        self.average = new;
        self.steps += 1;
        Ok(())
    }

    /// The model with averaged weights, in the model's dtypes.
    ///
    /// # Errors
    /// Argument, shape or dtype error for another model.
    #[track_caller]
    pub fn model<M: Module + Clone>(&self, model: &M) -> Result<M> {
        let at = std::panic::Location::caller();
        let run = || {
            let cast = self.matched(model, |_, average, p| average.to_device(p.device())?.cast(p.dtype()))?;
            model.map(|name, _| cast.get(name).cloned().ok_or_else(|| Error::argument(format!("there is no average of `{name}`"))))
        };
        run().map_err(|e| e.in_op("ema", at))
    }

    /// The average and its step count, for a snapshot.
    #[allow(clippy::cast_precision_loss)] // reason: step counts stay far below 2⁵³
    pub fn state(&self) -> State {
        State {
            tensors: self.average.iter().map(|(n, t)| (format!("ema.average.{n}"), t.clone())).collect(),
            numbers: [("ema.steps".to_owned(), self.steps as f64)].into(),
        }
    }

    /// Continues from what [`Ema::state`] gave.
    ///
    /// # Errors
    /// Argument, shape or dtype error that names what differs; nothing is changed then.
    #[track_caller]
    pub fn load_state(&mut self, state: &State) -> Result<()> {
        let at = std::panic::Location::caller();
        let mut run = || {
            let steps = super::memory::count(&state.numbers, "ema.steps")?;
            let mut new = BTreeMap::new();
            for (key, t) in &state.tensors {
                let name = key.strip_prefix("ema.average.").filter(|n| self.average.contains_key(*n));
                let Some(name) = name else { bail!(argument, "the state has `{key}`, this average does not: it is of another model") };
                new.insert(name.to_owned(), t.detach());
            }
            for (name, own) in &self.average {
                let Some(t) = new.get(name) else { bail!(argument, "the state has no `ema.average.{name}`: it is of another model") };
                same(name, "the state", t, "this average", own)?;
            }
            (self.average, self.steps) = (new, steps);
            Ok(())
        };
        run().map_err(|e: Error| e.in_op("ema", at))
    }

    fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.decay) {
            bail!(argument, "the decay must be in [0, 1], found {}", self.decay);
        }
        Ok(())
    }

    /// `f(average, parameter)` for every tensor of a model that is the one averaged.
    fn matched<M: Module + Clone>(
        &self,
        model: &M,
        f: impl Fn(&str, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<BTreeMap<String, Tensor>> {
        let named = model.named_tensors();
        if let Some(name) = self.average.keys().find(|n| !named.iter().any(|(own, _)| own == *n)) {
            bail!(argument, "the average has `{name}`, the model does not: it is of another model");
        }
        let mut out = BTreeMap::new();
        for (name, p) in named {
            let Some(average) = self.average.get(&name) else { bail!(argument, "there is no average of `{name}`: it is of another model") };
            let dtype = if p.dtype().is_half() { DType::F32 } else { p.dtype() };
            if average.shape() != p.shape() || average.dtype() != dtype {
                same(&name, "the average", average, "the model", &p)?;
            }
            let new = f(&name, average, &p)?;
            out.insert(name, new);
        }
        Ok(out)
    }
}

fn wide(t: &Tensor) -> Result<Tensor> {
    if t.dtype().is_half() { t.cast(DType::F32) } else { Ok(t.clone()) }
}

/// Refuses tensors of different shapes or dtypes.
fn same(name: &str, there: &str, a: &Tensor, here: &str, b: &Tensor) -> Result<()> {
    let differ = format!("`{name}` is {} {} in {there}, {} {} in {here}", a.dtype(), a.shape(), b.dtype(), b.shape());
    if a.shape() != b.shape() {
        return Err(Error::shape(differ));
    }
    if a.dtype() != b.dtype() { Err(Error::dtype(differ)) } else { Ok(()) }
}
