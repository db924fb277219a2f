//! What all optimizers have by one text.

/// Writes the methods that all optimizers share, and the trait. The type has fields `lr` and `memory`, a function
/// `run(&mut self, &mut dyn Module, &Named)` and a constant `RULE`.
macro_rules! optimizer {
    ($type:ident) => {
        impl $type {
            /// Number of steps taken; skipped ones do not count.
            pub fn steps(&self) -> u64 {
                self.memory.steps()
            }

            /// Number of steps that were skipped because the loss or a gradient was not finite.
            pub fn skipped(&self) -> u64 {
                self.memory.skipped()
            }

            /// One step on every trainable parameter of the model. Those that the loss did not reach
            /// ([`Grads::disconnected`](crate::Grads::disconnected)) are left alone: no decay, no momentum, no step counted for them.
            ///
            /// Parameters of half precision are stepped through a master in `f32`, of which they hold the rounded value.
            ///
            /// # Errors
            /// Argument error for hyperparameters outside their range, for gradients or state of another model; shape and
            /// dtype errors. The model is unchanged when the arguments are refused.
            #[track_caller]
            pub fn step<M: $crate::Module + Clone>(&mut self, model: &mut M, grads: &$crate::Grads<M>) -> $crate::Result<()> {
                let at = std::panic::Location::caller();
                let _running = $crate::backend::cuda::Running::new(Self::RULE.name, at);
                self.run(model, &super::memory::Named::of(grads)).map_err(|e| e.in_op(Self::RULE.name, at))
            }

            /// The learning rate of the next step.
            pub fn learning_rate(&self) -> f64 {
                self.lr
            }

            /// Sets the learning rate of the next steps.
            ///
            /// # Errors
            /// Argument error unless it is finite and not negative.
            #[track_caller]
            pub fn set_learning_rate(&mut self, lr: f64) -> $crate::Result<()> {
                let at = std::panic::Location::caller();
                if !lr.is_finite() || lr < 0.0 {
                    let e = $crate::Error::argument(format!("the learning rate must be finite and not negative, found {lr}"));
                    return Err(e.in_op(Self::RULE.name, at));
                }
                self.lr = lr;
                Ok(())
            }

            /// What it remembers, for a snapshot; see [`Optimizer::state`](super::Optimizer::state).
            pub fn state(&self) -> super::State {
                self.memory.state(&Self::RULE)
            }

            /// Continues from a state; see [`Optimizer::load_state`](super::Optimizer::load_state).
            ///
            /// # Errors
            /// Argument, shape or dtype error that names what differs; nothing is changed then.
            #[track_caller]
            pub fn load_state(&mut self, state: super::State) -> $crate::Result<()> {
                let at = std::panic::Location::caller();
                self.memory.load(&Self::RULE, state).map_err(|e| e.in_op(Self::RULE.name, at))
            }
        }

        impl<M: $crate::Module + Clone> super::Optimizer<M> for $type {
            fn step(&mut self, model: &mut M, grads: &$crate::Grads<M>) -> $crate::Result<()> {
                self.step(model, grads)
            }

            fn skipped(&self) -> u64 {
                self.skipped()
            }

            fn settings(&self) -> std::collections::BTreeMap<String, String> {
                let own = [("name", Self::RULE.name.to_owned()), ("groups", format!("{:?}", self.groups))];
                self.hyperparameters().into_iter().chain(own).map(|(n, v)| (n.to_owned(), v)).collect()
            }

            fn learning_rate(&self) -> f64 {
                self.learning_rate()
            }

            fn set_learning_rate(&mut self, lr: f64) -> $crate::Result<()> {
                self.set_learning_rate(lr)
            }

            fn state(&self) -> super::State {
                self.state()
            }

            fn load_state(&mut self, state: super::State) -> $crate::Result<()> {
                self.load_state(state)
            }
        }
    };
}
pub(super) use optimizer;
