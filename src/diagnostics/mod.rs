//! Seeing whether gradients flow, and where a model goes wrong. Layer L7; each part works alone, without a trainer.
//!
//! | Question | Tool |
//! |---|---|
//! | Do all layers get a gradient of a sensible size? | [`HealthReport`]; over a whole run [`HealthHistory`] |
//! | Does clipping decide the step? | [`ClipTracker`] |
//! | Does the program mean what it says? | [`lint`] |
//! | Which op gave the first NaN? | [`Anomaly`] |
//! | Are the targets the inputs shifted by one? | [`Alignment`] |
//! | Which layer differs from the reference first? | [`Trace`] |
//! | Is attention saturated, blind, or looking ahead? | [`AttentionCheck`] |
//! | Were two layers drawn with one key? | [`review`] |
//! | Where do time and memory go? | [`Profiler`] |

mod align;
mod anomaly;
mod attention;
mod clip;
mod compare;
mod depth;
mod health;
mod history;
mod lint;
mod modules;
mod profile;
mod report;
mod review;
mod stats;
mod terminal;
mod trace;
mod verdict;

pub use align::{Alignment, AlignmentReport, Misalignment};
pub use anomaly::{Anomaly, Finding, detect_anomaly};
pub use attention::{AttentionCheck, AttentionReport, HeadStats};
pub use clip::ClipTracker;
pub use compare::{Comparison, Difference};
pub use depth::DepthProfile;
pub use health::{Health, HealthReport, LayerHealth, Thresholds};
pub use history::{HealthHistory, HistoryStep};
pub use lint::{Slip, Suspicion, lint};
pub use profile::{OpTime, Profile, Profiler, Total};
pub use review::{Review, Twin, review};
pub use stats::Stats;
pub use terminal::colored;
pub use trace::{Trace, Tracer};
pub use verdict::Verdict;

use crate::error::{Error, Result};
use crate::module::Module;
use crate::tape::Observer;
use std::sync::Arc;

/// Lets an observer see the tape that tracks a model: for use inside a gradient function, where no tape is in sight.
///
/// # Errors
/// Tape error when no tape tracks the model.
#[track_caller]
pub fn observe<M: Module + Clone>(model: &M, observer: Arc<dyn Observer>) -> Result<()> {
    let tracked = model.named_tensors().into_iter().find(|(_, t)| t.is_tracked());
    if !tracked.is_some_and(|(_, t)| t.observe_tape(observer)) {
        let at = std::panic::Location::caller();
        return Err(Error::tape("no tape tracks the model: call this inside value_and_grad, or watch the model first").in_op("observe", at));
    }
    Ok(())
}
