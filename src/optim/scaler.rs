//! Loss scaling, for gradients in `f16`.

use super::State;
use super::memory::count;
use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::functional::Grads;
use crate::module::Module;
use crate::tensor::Tensor;

/// Smallest and largest scale: powers of two, so that scaling rounds nothing.
const RANGE: (f64, f64) = (1.0 / 65_536.0, 4_294_967_296.0);

/// Dynamic loss scaling, as PyTorch's `GradScaler`: the loss is multiplied by a large number so that small gradients do
/// not vanish in `f16`, and the gradients are divided by it. A gradient that overflows halves the scale, and the step is to
/// be skipped; a long run without doubles it. `bf16` and `f32` need none of it.
///
/// ```
/// use cotangent::{F16, Tensor, optim::{LossScaler, Sgd}, value_and_grad};
/// let mut w = Tensor::from_slice(&[1f32], [1])?;
/// let (mut scaler, mut sgd) = (LossScaler::default(), Sgd::new(0.1));
/// let mut derivative = 0.0;
/// for _ in 0..2 { // 65536 itself does not fit f16: the first step overflows
///     let (_, mut grads) = value_and_grad(&w, |w| {
///         let loss = w.cast(F16)?.mul_scalar(1e-4)?.square()?.sum(..)?; // f16 would round its derivative 2e-8 to 0 or 6e-8
///         scaler.scale(&loss)
///     })?;
///     if scaler.unscale(&mut grads)? {
///         sgd.step(&mut w, &grads)?;
///         derivative = grads.item()?;
///     }
/// }
/// assert_eq!((scaler.scale, scaler.skipped), (32_768.0, 1));
/// assert!((derivative / 2e-8 - 1.0).abs() < 0.01);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LossScaler {
    /// What the next loss is multiplied by; 65536 at first.
    pub scale: f64,
    /// Multiplies the scale after [`LossScaler::interval`] steps; at least 1; 2.
    pub growth: f64,
    /// Multiplies the scale after an overflow; less than 1; 0.5.
    pub backoff: f64,
    /// Steps without overflow until the scale grows; 2000.
    pub interval: u64,
    /// Steps without overflow since the scale last changed; starts at 0.
    pub good: u64,
    /// Steps that overflowed; starts at 0.
    pub skipped: u64,
}

impl Default for LossScaler {
    fn default() -> Self {
        LossScaler { scale: 65_536.0, growth: 2.0, backoff: 0.5, interval: 2000, good: 0, skipped: 0 }
    }
}

impl LossScaler {
    /// The loss times the scale, in `f32` at least: the value to differentiate.
    ///
    /// # Errors
    /// Argument error unless scale, growth, backoff and interval are in their ranges.
    #[track_caller]
    pub fn scale(&self, loss: &Tensor) -> Result<Tensor> {
        let at = std::panic::Location::caller();
        self.check().map_err(|e| e.in_op("loss_scaler", at))?;
        if loss.dtype().is_half() { loss.cast(DType::F32)? } else { loss.clone() }.mul_scalar(self.scale)
    }

    /// Divides the gradients by the scale, and adapts it: once for each step, after accumulation and before clipping.
    /// Says whether to take the step: false when a gradient or the scaled loss overflowed.
    ///
    /// Gradients of half precision become `f32`, which optimizers accept: divided in `f16` they would vanish after all.
    ///
    /// # Errors
    /// Argument error unless scale, growth, backoff and interval are in their ranges.
    #[track_caller]
    pub fn unscale<M: Module + Clone>(&mut self, grads: &mut Grads<M>) -> Result<bool> {
        let at = std::panic::Location::caller();
        let mut run = || {
            self.check()?;
            let finite = grads.is_loss_finite()? && grads.is_finite()?;
            if finite {
                grads.change(|_, g| {
                    *g = if g.dtype().is_half() { g.cast(DType::F32)? } else { g.clone() }.div_scalar(self.scale)?;
                    Ok(())
                })?;
                self.good = self.good.saturating_add(1);
                if self.good >= self.interval {
                    (self.good, self.scale) = (0, (self.scale * self.growth).clamp(RANGE.0, RANGE.1));
                }
            } else {
                (self.good, self.scale) = (0, (self.scale * self.backoff).clamp(RANGE.0, RANGE.1));
                self.skipped = self.skipped.saturating_add(1);
            }
            Ok(finite)
        };
        run().map_err(|e: Error| e.in_op("loss_scaler", at))
    }

    fn check(&self) -> Result<()> {
        let Self { scale, growth, backoff, .. } = self;
        if [*scale, *growth, *backoff].iter().any(|v| !v.is_finite() || *v <= 0.0) {
            bail!(argument, "scale, growth and backoff must be positive and finite; found {scale}, {growth}, {backoff}");
        }
        if *growth < 1.0 || *backoff >= 1.0 || self.interval == 0 {
            bail!(
                argument,
                "growth must be at least 1, backoff less than 1, and interval at least 1 step; found {growth}, {backoff}, {}: are they exchanged?",
                self.interval
            );
        }
        Ok(())
    }

    /// Scale and counters, for a snapshot.
    #[allow(clippy::cast_precision_loss)] // reason: step counts stay far below 2⁵³
    pub fn state(&self) -> State {
        let numbers = [("scale", self.scale), ("good", self.good as f64), ("skipped", self.skipped as f64)];
        State { numbers: numbers.map(|(n, v)| (format!("loss_scaler.{n}"), v)).into(), ..State::default() }
    }

    /// Continues from what [`LossScaler::state`] gave.
    ///
    /// # Errors
    /// Argument error that names what is missing or no such number; nothing is changed then.
    #[track_caller]
    pub fn load_state(&mut self, state: &State) -> Result<()> {
        let at = std::panic::Location::caller();
        let mut run = || {
            let (good, skipped) = (count(&state.numbers, "loss_scaler.good")?, count(&state.numbers, "loss_scaler.skipped")?);
            let scale = state.numbers.get("loss_scaler.scale").copied().filter(|s| s.is_finite() && *s > 0.0);
            let Some(scale) = scale else { bail!(argument, "the state has no positive `loss_scaler.scale`") };
            (self.scale, self.good, self.skipped) = (scale, good, skipped);
            Ok(())
        };
        run().map_err(|e: Error| e.in_op("loss_scaler", at))
    }
}
