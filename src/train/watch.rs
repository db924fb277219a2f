//! Gradient health of a run.

use super::event::Event;
use crate::diagnostics::HealthHistory;
use crate::error::Result;
use crate::module::Module;
use std::cell::{Ref, RefCell};
use std::rc::Rc;

/// Records gradient health every so many steps, and clipping at every step. Clones are the same record.
///
/// Give [`HealthWatch::callback`] to [`Trainer::on`](super::Trainer::on), and read [`HealthWatch::history`] afterwards.
///
/// ```
/// use cotangent::{F32, Key, Tensor, nn::Linear, optim::AdamW};
/// use cotangent::train::{HealthWatch, Options, Trainer};
/// let mut trainer = Trainer::new(Linear::new(3, 1, F32, Key::new(2))?, AdamW::default());
/// trainer.options = Options { steps: 40, clip: Some(1.0), ..Options::default() };
/// let health = HealthWatch::new(10);
/// trainer.on(health.callback());
/// trainer.run(&|i: u64| Tensor::randn([16, 3], F32, Key::new(1).fold(i)), |m, x, _| m.forward(x)?.square()?.mean(..))?;
/// assert_eq!(health.history().steps.len(), 4);
/// println!("{}", health.history()); // or health.history().write_html("health.html")
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct HealthWatch {
    every: usize,
    history: Rc<RefCell<HealthHistory>>,
}

impl HealthWatch {
    /// Records steps 0, `every`, `2·every`, …; no step when `every` is 0.
    pub fn new(every: usize) -> Self {
        HealthWatch { every, history: Rc::default() }
    }

    fn records(&self, step: usize) -> bool {
        self.every > 0 && step.is_multiple_of(self.every)
    }

    /// Looks at every step, and notes the losses of evaluations. In the steps it records, the model is kept from before the update, for the size of the update: the
    /// optimizer then copies the parameters once.
    pub fn callback<M: Module + Clone>(&self) -> impl FnMut(&Event<'_, M>) -> Result<()> + use<M> {
        let this = self.clone();
        let mut before = None;
        move |event| {
            match event {
                Event::Begin { step, model } if this.records(*step) => before = Some((*model).clone()),
                Event::Step { report: r, model, grads, .. } => {
                    let mut history = this.history.borrow_mut();
                    if let Some(before) = before.take() {
                        history.record(r.step as u64, &before, grads, r.loss, r.learning_rate, &r.clipped)?;
                        history.updates(&before, *model)?;
                    } else {
                        history.clips.push(&r.clipped);
                    }
                }
                Event::Evaluated { step, loss, .. } if this.every > 0 => this.history.borrow_mut().validation.push((*step as u64, *loss)),
                _ => {}
            }
            Ok(())
        }
    }

    /// What was recorded so far. Let go of it before the next step.
    pub fn history(&self) -> Ref<'_, HealthHistory> {
        self.history.borrow()
    }
}
