//! Numbers over steps, as lines on the terminal.

use super::metrics::MetricSink;
use crate::error::{Error, Result};
use std::fmt::Write as _;
use std::io::{ErrorKind, Stdout, Write};

/// What `record` gives for each step beside what a reader of lines looks at.
const LEFT_OUT: [&str; 3] = ["clipped", "skipped", "seconds"];

/// A line on standard output every so many steps, and one for each evaluation: `record(Console::every(100))`. Where nobody reads any more
/// (a closed pipe), nothing more is written, and the run goes on.
///
/// ```
/// use cotangent::train::{Console, Options, Trainer, record};
/// use cotangent::{F64, Tensor, optim::Sgd};
/// let mut text = Vec::new();
/// let mut t = Trainer::new(Tensor::scalar(4f64)?, Sgd::new(0.25));
/// t.options = Options { steps: 4, evaluate_every: 4, ..Options::default() };
/// t.evaluate_with(|w| Ok((w.item()?, [("error", w.item()?)])));
/// t.on(record(Console::to(&mut text, 2))); // `Console::every(2)` writes to standard output
/// t.run(&|_| Ok(()), |w, (), _| w.square())?;
/// drop(t);
/// let text = String::from_utf8(text).unwrap();
/// let lines: Vec<&str> = text.lines().collect();
/// assert_eq!(lines[0], "step     0  validation_loss 4.0000  validation_error 4.0000");
/// assert_eq!(lines[1], "step     0  loss 16.0000  learning_rate 0.2500  gradient_norm 8.0000");
/// assert_eq!(lines[2], "step     2  loss 1.0000  learning_rate 0.2500  gradient_norm 2.0000");
/// assert_eq!(lines[3], "step     4  validation_loss 0.2500  validation_error 0.2500");
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Debug)]
pub struct Console<W = Stdout> {
    every: usize,
    out: Option<W>,
}

impl Console {
    /// Writes a line for steps 0, `every`, `2·every`, … (for none when `every` is 0), and for each evaluation.
    pub fn every(steps: usize) -> Self {
        Console::to(std::io::stdout(), steps)
    }
}

impl<W: Write> Console<W> {
    /// [`Console::every`] that writes elsewhere.
    pub fn to(out: W, steps: usize) -> Self {
        Console { every: steps, out: Some(out) }
    }
}

impl<W: Write> MetricSink for Console<W> {
    fn write(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        let of_a_step = values.iter().any(|(name, _)| *name == "loss");
        if of_a_step && (self.every == 0 || !step.is_multiple_of(self.every)) {
            return Ok(());
        }
        let Some(out) = &mut self.out else { return Ok(()) };
        let mut line = format!("step {step:>5}");
        for (name, v) in values.iter().filter(|(name, _)| !LEFT_OUT.contains(name)) {
            let plain = *v == 0.0 || !v.is_finite() || (1e-3..1e6).contains(&v.abs());
            let _ = if plain { write!(line, "  {name} {v:.4}") } else { write!(line, "  {name} {v:.3e}") };
        }
        match writeln!(out, "{line}") {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => self.out = None,
            Err(e) => return Err(Error::io("cannot write a line about a step").with_source(e)),
            Ok(()) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Refuses as a closed pipe does, after the first line.
    struct Closed(usize);

    impl Write for Closed {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += 1;
            if self.0 > 1 { Err(ErrorKind::BrokenPipe.into()) } else { Ok(bytes.len()) }
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_ends_the_lines_and_not_the_run() {
        let mut console = Console::to(Closed(0), 1);
        for step in 0..3 {
            console.write(step, &[("loss", 1.0)]).unwrap();
        }
        assert!(console.out.is_none());
    }

    #[test]
    fn numbers_have_five_figures_or_so() {
        let mut text = Vec::new();
        let values = [("loss", 1.5e-7), ("learning_rate", 0.0), ("seconds", 2.0), ("huge", -3e9), ("bad", f64::NAN)];
        Console::to(&mut text, 1).write(12, &values).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), "step    12  loss 1.500e-7  learning_rate 0.0000  huge -3.000e9  bad NaN\n");
    }
}
