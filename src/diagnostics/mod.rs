//! Seeing whether gradients flow. Layer L7; each part works alone.

mod health;

pub use health::{Health, HealthReport, Verdict};
