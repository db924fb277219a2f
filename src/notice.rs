//! One line on stderr about a program that runs and does nothing. Layer L0.

use std::fmt::Arguments;
use std::io::Write;

/// Says it there, whether anybody subscribes to `tracing` or not.
pub(crate) fn notice(text: Arguments<'_>) {
    tracing::warn!("{text}");
    // A closed stderr is no reason to end a run.
    let _ = writeln!(std::io::stderr(), "cotangent: {text}");
}
