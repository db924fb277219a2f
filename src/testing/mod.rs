//! Checking ops: definitions over any scalar, samples, and the suite that runs them.
//!
//! Public, because your own ops and models deserve the same checks as ours.

mod any_scalar;
mod bench_case;
mod entry;
mod gradcheck;
mod nd;
mod sample;
mod scalar;
mod suite;

pub use any_scalar::AnyScalar;
pub use bench_case::BenchCase;
pub use entry::{Implementation, OpEntry};
pub use gradcheck::{GradCheck, GradCheckReport, InputVerdict, gradcheck, gradgradcheck};
pub use nd::{Nd, axis_index, broadcast_extents};
pub use sample::{Gen, Input, Purpose, Sample, lift};
pub use scalar::{Ball, Dual, Scalar};
pub use suite::{Arrangement, Check, Config, Report, Tolerance};

use crate::op::Describe;
