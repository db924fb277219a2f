//! Optimizers, schedules and clipping, over parameter trees. Layer L6.

mod adam;
mod clip;
mod groups;
mod memory;
mod schedule;
mod sgd;
mod state;

pub use adam::{Adam, AdamW};
pub use clip::Clipped;
pub use groups::{Group, norms_and_biases};
pub use memory::Memory;
pub use schedule::{Schedule, WarmupCosine};
pub use sgd::Sgd;
pub use state::{Optimizer, State};
