//! Two optimizers for one model, by the names of its parameters.

use super::state::{Optimizer, State};
use crate::error::{Error, Result, bail};
use crate::functional::Grads;
use crate::module::Module;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Steps some parameters of a model with one optimizer and the rest with another: a generator and its critic, a pretrained body and
/// a new head, matrices and tables. Nest it for more than two.
///
/// A rate that is set (by a schedule) is the first one's; the second keeps its ratio to it. Each optimizer looks at all gradients before
/// it steps, so a step that is not finite is skipped by both.
///
/// ```
/// use cotangent::{F32, Key, nn::Linear, value_and_grad, Tensor};
/// use cotangent::optim::{AdamW, Optimizer, Sgd, Split};
/// let mut net = (Linear::new(4, 8, F32, Key::new(1))?, Linear::new(8, 2, F32, Key::new(2))?);
/// let mut both = Split::new(|name| name.starts_with("0."), AdamW { lr: 1e-4, ..AdamW::default() }, Sgd::new(1e-2));
/// let x = Tensor::randn([16, 4], F32, Key::new(3))?;
/// let (_, grads) = value_and_grad(&net, |n| n.1.forward(&n.0.forward(&x)?.relu()?)?.square()?.mean(..))?;
/// both.step(&mut net, &grads)?;
/// let rates = (both.first.lr, both.rest.lr);
/// Optimizer::<(Linear, Linear)>::set_learning_rate(&mut both, 0.5e-4)?;
/// assert_eq!((rates, both.first.lr, both.rest.lr), ((1e-4, 1e-2), 0.5e-4, 0.5e-2));
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone)]
pub struct Split<A, B> {
    /// Steps the parameters whose names match.
    pub first: A,
    /// Steps the others.
    pub rest: B,
    matches: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    /// Rates of both when they were put together, once one was set.
    rates: Option<(f64, f64)>,
    /// Whether the predicate has been found to tell parameters apart.
    checked: bool,
}

impl<A: fmt::Debug, B: fmt::Debug> fmt::Debug for Split<A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Split").field("first", &self.first).field("rest", &self.rest).finish_non_exhaustive()
    }
}

impl<A, B> Split<A, B> {
    /// `first` for the parameters whose names satisfy `matches`, `rest` for the others.
    pub fn new(matches: impl Fn(&str) -> bool + Send + Sync + 'static, first: A, rest: B) -> Self {
        Split { first, rest, matches: Arc::new(matches), rates: None, checked: false }
    }

    /// One step of both.
    ///
    /// # Errors
    /// As of the two optimizers; when the second refuses, the first has stepped.
    #[track_caller]
    pub fn step<M: Module + Clone>(&mut self, model: &mut M, grads: &Grads<M>) -> Result<()>
    where
        A: Optimizer<M>,
        B: Optimizer<M>,
    {
        if !self.checked {
            self.check(model)?;
        }
        let mut own = grads.clone();
        own.forget(|name| !(self.matches)(name));
        self.first.step(model, &own)?;
        let mut own = grads.clone();
        own.forget(|name| (self.matches)(name));
        self.rest.step(model, &own)
    }

    /// A predicate that matches no parameter, or all, is mistaken.
    fn check<M: Module + Clone>(&mut self, model: &M) -> Result<()> {
        let names = model.names();
        let matching = names.iter().filter(|n| (self.matches)(n)).count();
        if matching == 0 || matching == names.len() {
            let (all, some) = (if matching == 0 { "no" } else { "every" }, names[..names.len().min(3)].join(", "));
            bail!(argument, "split: {all} parameter has a name for the first optimizer; the model has [{some}, …]");
        }
        self.checked = true;
        Ok(())
    }
}

impl<M: Module + Clone, A: Optimizer<M> + Clone, B: Optimizer<M> + Clone> Optimizer<M> for Split<A, B> {
    fn step(&mut self, model: &mut M, grads: &Grads<M>) -> Result<()> {
        self.step(model, grads)
    }

    fn skipped(&self) -> u64 {
        self.first.skipped().max(self.rest.skipped())
    }

    fn settings(&self) -> BTreeMap<String, String> {
        let named = |part: &str, s: BTreeMap<String, String>| s.into_iter().map(|(n, v)| (format!("{part}.{n}"), v)).collect::<Vec<_>>();
        let mut all: BTreeMap<String, String> = named("first", self.first.settings()).into_iter().collect();
        all.extend(named("rest", self.rest.settings()));
        let (first, rest) = self.rates.unwrap_or((self.first.learning_rate(), self.rest.learning_rate()));
        all.extend([("name".to_owned(), "split".to_owned()), ("rates".to_owned(), format!("{first:?} to {rest:?}"))]);
        all
    }

    fn learning_rate(&self) -> f64 {
        self.first.learning_rate()
    }

    fn set_learning_rate(&mut self, lr: f64) -> Result<()> {
        let (first, rest) = *self.rates.get_or_insert((self.first.learning_rate(), self.rest.learning_rate()));
        if lr != first && first == 0.0 {
            bail!(
                argument,
                "split: the second rate is a multiple of the first, which was 0 at first: give it the rate that the schedule begins with"
            );
        }
        self.first.set_learning_rate(lr)?;
        // The rates of the beginning come back with their bits.
        self.rest.set_learning_rate(if lr == first { rest } else { lr * (rest / first) })
    }

    fn state(&self) -> State {
        let mut all = State::default();
        for (part, s) in [("first", self.first.state()), ("rest", self.rest.state())] {
            all.tensors.extend(s.tensors.into_iter().map(|(n, t)| (format!("{part}.{n}"), t)));
            all.numbers.extend(s.numbers.into_iter().map(|(n, v)| (format!("{part}.{n}"), v)));
        }
        all
    }

    fn load_state(&mut self, state: State) -> Result<()> {
        let (mut first, mut rest) = (State::default(), State::default());
        let foreign = |n: &str| Error::argument(format!("split: the state has `{n}`, which is of neither of the two optimizers"));
        for (n, t) in state.tensors {
            match n.split_once('.') {
                Some(("first", name)) => first.tensors.insert(name.to_owned(), t),
                Some(("rest", name)) => rest.tensors.insert(name.to_owned(), t),
                _ => return Err(foreign(&n)),
            };
        }
        for (n, v) in state.numbers {
            match n.split_once('.') {
                Some(("first", name)) => first.numbers.insert(name.to_owned(), v),
                Some(("rest", name)) => rest.numbers.insert(name.to_owned(), v),
                _ => return Err(foreign(&n)),
            };
        }
        // Copies, so that nothing is changed when the second refuses.
        let (mut a, mut b) = (self.first.clone(), self.rest.clone());
        a.load_state(first)?;
        b.load_state(rest)?;
        (self.first, self.rest) = (a, b);
        Ok(())
    }
}
