//! The training loop and what belongs to it: data, snapshots, metrics, generation. Layer L7; each part works alone.
//!
//! [`Trainer`] runs steps; data are any [`Batches`]; callbacks see each [`Event`]. [`Snapshots`] keep all that a run needs to
//! continue bit for bit.

mod best;
mod console;
mod data;
mod event;
mod generate;
mod loss;
mod metrics;
#[cfg(feature = "progress")]
mod progress;
mod resume;
mod rules;
mod sampling;
mod snapshot;
mod tensorboard;
mod trainer;
mod watch;

pub use best::{Best, KeepBest};
pub use console::Console;
#[cfg(feature = "tokenizers")]
pub use data::TokenizerFile;
pub use data::{Batches, Bytes, Characters, Epoch, Order, Prefetch, Rows, Tokenizer, Tokens, Width, Windows, document_mask, hold_out};
pub use event::{Event, StepReport};
pub use generate::generate;
pub use loss::{Evaluation, Loss, Metric, count_targets, mean_loss};
pub use metrics::{Csv, Jsonl, MetricSink, record};
#[cfg(feature = "progress")]
pub use progress::Progress;
pub use resume::Resumed;
pub(crate) use rules::Sampler;
pub use rules::TokenRules;
pub use sampling::Sampling;
pub use snapshot::{Found, Snapshot, Snapshots};
pub use tensorboard::TensorBoard;
pub use trainer::{Options, Outcome, Trainer};
pub use watch::HealthWatch;
