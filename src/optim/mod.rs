//! Optimizers, schedules and clipping, over parameter trees. Layer L6.

mod accumulate;
mod adam;
mod clip;
mod ema;
mod groups;
mod macros;
mod memory;
mod muon;
mod scaler;
mod schedule;
mod schedules;
mod sgd;
mod split;
mod state;

pub use accumulate::Accumulator;
pub use adam::{Adam, AdamW};
pub use clip::Clipped;
pub use ema::Ema;
pub use groups::{Group, norms_and_biases};
pub use memory::Memory;
pub use muon::{Muon, MuonScale};
pub use scaler::LossScaler;
pub use schedule::{Decay, Schedule, Warmup, WarmupCosine};
pub use schedules::{
    CosineAnnealingWarmRestarts, ExponentialLr, MultiStepLr, OneCycleLr, Plateau, PolynomialLr, ReduceLrOnPlateau, StepLr,
};
pub use sgd::Sgd;
pub use split::Split;
pub use state::{Optimizer, State};
