//! One line on stderr about a program that runs and does nothing. Layer L0.

use std::fmt::Arguments;
use std::io::Write;

/// Says it there, for programs in which nobody subscribes to `tracing`; what is told to those who do, the caller says.
pub(crate) fn notice(text: Arguments<'_>) {
    // A closed stderr is no reason to end a run.
    let _ = writeln!(std::io::stderr(), "cotangent: {text}");
}
