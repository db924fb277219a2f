//! A progress bar.

use super::event::Event;
use crate::error::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// A bar on the terminal with loss, rate and speed; nothing where stderr is no terminal. Clones are the same bar.
///
/// Give [`Progress::callback`] to [`Trainer::on`](super::Trainer::on), and print through [`Progress::suspend`].
#[derive(Clone, Debug)]
pub struct Progress {
    bar: ProgressBar,
    units: f64,
    unit: &'static str,
}

impl Progress {
    /// A bar for runs in which a step handles so many units: `Progress::new(12 * 64, "tok")`.
    pub fn new(units: usize, unit: &'static str) -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}  eta {eta}") {
            bar.set_style(style);
        }
        Progress { bar, units: units as f64, unit }
    }

    /// Moves the bar at every step.
    pub fn callback<M>(&self) -> impl FnMut(&Event<'_, M>) -> Result<()> + use<M> {
        let this = self.clone();
        move |event| {
            if let Event::Step { report: r, .. } = event {
                this.bar.set_length(r.steps as u64);
                this.bar.set_position(r.step as u64 + 1);
                let speed = this.units / r.seconds.max(1e-9);
                this.bar
                    .set_message(format!("loss {:.4}  lr {:.2e}  |g| {:.3}  {speed:.0} {}/s", r.loss, r.learning_rate, r.norm, this.unit));
            }
            Ok(())
        }
    }

    /// Runs `f`, which prints, with the bar out of the way.
    pub fn suspend<T>(&self, f: impl FnOnce() -> T) -> T {
        self.bar.suspend(f)
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
