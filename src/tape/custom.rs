//! Functions whose derivative the caller writes, and derivatives that cannot be differentiated again.

use super::{Cotangents, Guard, InputCotangents, Pull, PullContext, Saved, common_tape, fulfil, ran, record, reserve, start, stops};
use crate::error::{Result, bail};
use crate::tensor::Tensor;
use std::panic::Location;
use std::sync::Arc;

type Backward = dyn Fn(&[Tensor], &[Tensor], &[Tensor]) -> Result<Vec<Option<Tensor>>> + Send + Sync;

/// A function whose derivative you write as a closure: JAX's `custom_vjp`, PyTorch's `autograd.Function`.
///
/// `forward` gets the inputs without history, so nothing that it does is recorded: it may iterate, round, or leave the crate.
/// `backward(inputs, outputs, y_bar)` gets a cotangent for every output (zeros for one that nothing used) and returns one for
/// every input, `None` for zero.
///
/// Written in tensor ops of its arguments, `backward` can be differentiated again. **What it captures is constant**: a derivative
/// that uses such a constant where it means a function of the inputs is right once and wrong twice. Say so by [`custom_vjp_once`],
/// which makes the second derivative an error instead.
///
/// # Gradient
/// What `backward` says. Keeps inputs and outputs.
///
/// # Errors
/// Whatever the closures return; tape error when one of them uses a tracked tensor that it captured instead of taking it as an
/// input; shape, dtype or device error that names the input when `backward` returns a cotangent that does not fit it; argument
/// error when it returns another number of them.
///
/// ```
/// use cotangent::{Tensor, custom_vjp, grad};
/// // Rounded forwards, the identity backwards: a straight-through estimator.
/// fn round(x: &Tensor) -> cotangent::Result<Tensor> {
///     let y = custom_vjp(&[x], |x| Ok(vec![x[0].round()?]), |_, _, y_bar| Ok(vec![Some(y_bar[0].clone())]))?;
///     Ok(y[0].clone())
/// }
/// let x = Tensor::from_slice(&[0.2f32, 1.7], [2])?;
/// let g = grad(&x, |x| round(x)?.square()?.sum(..))?;
/// assert_eq!(g.to_vec::<f32>()?, [0.0, 4.0]); // 2 round(x)
/// # Ok::<(), cotangent::Error>(())
/// ```
#[track_caller]
pub fn custom_vjp<F, B>(inputs: &[&Tensor], forward: F, backward: B) -> Result<Vec<Tensor>>
where
    F: FnOnce(&[Tensor]) -> Result<Vec<Tensor>>,
    B: Fn(&[Tensor], &[Tensor], &[Tensor]) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
{
    let at = Location::caller();
    call("custom_vjp", at, inputs, Box::new(forward), Arc::new(backward), false).map_err(|e| e.in_op("custom_vjp", at))
}

/// [`custom_vjp`] for a derivative that is right only once: a derivative of it is an error that names this call.
///
/// # Errors
/// As [`custom_vjp`]; tape error from a sweep through the derivative.
///
/// ```
/// use cotangent::{Tensor, custom_vjp_once, grad};
/// let cube = |x: &Tensor| {
///     let slope = x.detach().square()?.mul_scalar(3.0)?; // a constant for `backward`
///     let y = custom_vjp_once(&[x], |x| Ok(vec![x[0].powi(3)?]), move |_, _, y_bar| Ok(vec![Some(y_bar[0].mul(&slope)?)]))?;
///     y[0].sum(..)
/// };
/// let x = Tensor::from_slice(&[2f64], [1])?;
/// assert_eq!(grad(&x, cube)?.item()?, 12.0);
/// assert!(grad(&x, |x| grad(x, cube)?.sum(..)).unwrap_err().is_tape()); // 6x cannot come out
/// # Ok::<(), cotangent::Error>(())
/// ```
#[track_caller]
pub fn custom_vjp_once<F, B>(inputs: &[&Tensor], forward: F, backward: B) -> Result<Vec<Tensor>>
where
    F: FnOnce(&[Tensor]) -> Result<Vec<Tensor>>,
    B: Fn(&[Tensor], &[Tensor], &[Tensor]) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
{
    let at = Location::caller();
    call("custom_vjp_once", at, inputs, Box::new(forward), Arc::new(backward), true).map_err(|e| e.in_op("custom_vjp_once", at))
}

fn call(
    name: &'static str,
    at: &'static Location<'static>,
    inputs: &[&Tensor],
    forward: Box<dyn FnOnce(&[Tensor]) -> Result<Vec<Tensor>> + '_>,
    backward: Arc<Backward>,
    once: bool,
) -> Result<Vec<Tensor>> {
    let detached: Vec<Tensor> = inputs.iter().map(|t| t.untracked()).collect();
    let tape = common_tape(inputs)?;
    let recording = tape.as_ref().map_or(Ok(false), |t| t.is_recording())?;
    let started = start(inputs);
    let mut outputs = {
        let _sealed = tape.as_ref().map(|t| Guard::new(&t.sealed));
        forward(&detached)?
    };
    if outputs.iter().any(Tensor::is_tracked) {
        bail!(tape, "the function uses a tracked tensor that it captured; pass it as an input, or its gradient would be lost");
    }
    let started = started.stop()?;
    if let (true, Some(y)) = (recording && outputs.iter().all(|t| !t.dtype().is_float()), outputs.first()) {
        stops(name, at, inputs, Some(y.dtype()));
    }
    if let Some(tape) = tape.filter(|_| recording && outputs.iter().any(|t| t.dtype().is_float())) {
        // The outputs are kept with their place on the tape, so that a second derivative also passes through them.
        let id = reserve(&tape, name, at, inputs, &mut outputs)?;
        let saved = Saved::list(inputs.iter().map(|&t| Some(t.clone())).chain(outputs.iter().map(|t| Some(t.clone()))));
        let bytes = started.bytes(&saved);
        fulfil(&tape, id, saved, Arc::new(Custom { name, at, inputs: inputs.len(), backward, once }));
        ran(&tape, id, started, name, at, inputs, &outputs, bytes)?;
    }
    Ok(outputs)
}

struct Custom {
    name: &'static str,
    at: &'static Location<'static>,
    inputs: usize,
    backward: Arc<Backward>,
    once: bool,
}

impl Custom {
    /// What the closure says, compared with the inputs.
    fn run(&self, kept: &[Tensor], y_bar: &[Tensor]) -> Result<InputCotangents> {
        let (inputs, outputs) = kept.split_at(self.inputs);
        let bars = (self.backward)(inputs, outputs, y_bar)?;
        if bars.len() != inputs.len() {
            bail!(argument, "the derivative returned {} cotangents for {} inputs", bars.len(), inputs.len());
        }
        for (i, (bar, x)) in bars.iter().zip(inputs).enumerate() {
            let Some(bar) = bar.as_ref().filter(|_| x.dtype().is_float()) else { continue };
            if bar.shape() != x.shape() {
                bail!(shape, "the cotangent of input {i} has shape {}, the input {}", bar.shape(), x.shape());
            }
            if bar.dtype() != x.dtype() {
                bail!(dtype, "the cotangent of input {i} is {}, the input {}; cast one", bar.dtype(), x.dtype());
            }
            if bar.device() != x.device() {
                bail!(device, "the cotangent of input {i} is on {}, the input on {}", bar.device(), x.device());
            }
        }
        Ok(bars.into_iter().collect())
    }
}

impl Pull for Custom {
    fn is_users(&self) -> bool {
        true
    }

    fn pull(&self, ctx: &PullContext<'_>, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let kept: Vec<Tensor> = ctx.saved.0.iter().flatten().cloned().collect();
        let outputs = &kept[self.inputs.min(kept.len())..];
        let bars: Vec<Tensor> = y_bar
            .0
            .iter()
            .zip(outputs)
            .map(|(bar, y)| bar.clone().map_or_else(|| y.untracked().zeros_like(), Ok))
            .collect::<Result<_>>()?;
        let run = || {
            if self.once {
                let all: Vec<Tensor> = kept.iter().chain(&bars).cloned().collect();
                return once(self.name, self.at, &all, |all| self.run(&all[..kept.len()], &all[kept.len()..]));
            }
            if ctx.record {
                return self.run(&kept, &bars);
            }
            let found = {
                let _sealed = Guard::new(&ctx.tape.sealed);
                self.run(&kept, &bars)?
            };
            if found.iter().flatten().any(Tensor::is_tracked) {
                bail!(tape, "the derivative uses a tracked tensor that it captured; pass it to the function as an input");
            }
            Ok(found)
        };
        run().map_err(|e| e.called_at(self.at))
    }
}

/// A derivative that must not be differentiated: for an op's [`vjp`](crate::op::Op::vjp) that is right only once, because it calls a
/// kernel without a derivative of its own, or takes for constant what depends on the inputs.
///
/// `f` gets what was saved and the cotangents without history. A sweep through its results is an error that names the op, where it
/// would otherwise give a wrong second derivative without a word.
///
/// # Errors
/// Whatever `f` returns.
///
/// ```no_run
/// use cotangent::op::{Cotangents, InputCotangents, Saved, once_differentiable};
/// # fn kernel(_: &cotangent::Tensor, y: &cotangent::Tensor) -> cotangent::Result<cotangent::Tensor> { Ok(y.clone()) }
/// fn vjp(saved: &Saved, y_bar: &Cotangents) -> cotangent::Result<InputCotangents> {
///     once_differentiable("my_op", saved, y_bar, |saved, y_bar| {
///         Ok(InputCotangents::from_iter([Some(kernel(saved.get(0)?, y_bar.only()?)?)]))
///     })
/// }
/// # let _ = vjp;
/// ```
#[track_caller]
pub fn once_differentiable(
    name: &'static str,
    saved: &Saved,
    y_bar: &Cotangents,
    f: impl FnOnce(&Saved, &Cotangents) -> Result<InputCotangents>,
) -> Result<InputCotangents> {
    let at = Location::caller();
    let all: Vec<Tensor> = saved.0.iter().chain(&y_bar.0).flatten().cloned().collect();
    let bare = |list: &[Option<Tensor>]| list.iter().map(|t| t.as_ref().map(Tensor::untracked)).collect::<Vec<_>>();
    let (saved, y_bar) = (Saved::list(bare(&saved.0)), Cotangents(bare(&y_bar.0).into_iter().collect()));
    once(name, at, &all, |_| f(&saved, &y_bar))
}

/// Runs a derivative without recording it; where one of the tensors is tracked, what it gives is tracked by a node that refuses
/// to be differentiated.
fn once(
    name: &'static str,
    at: &'static Location<'static>,
    of: &[Tensor],
    f: impl FnOnce(&[Tensor]) -> Result<InputCotangents>,
) -> Result<InputCotangents> {
    struct Refuse(&'static str);
    impl Pull for Refuse {
        fn is_users(&self) -> bool {
            true
        }

        fn pull(&self, _: &PullContext<'_>, _: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
            bail!(
                tape,
                "{} can be differentiated once: its derivative takes for constant what depends on the inputs, so a second derivative \
                 through it would be wrong",
                self.0
            );
        }
    }
    let tracked: Vec<&Tensor> = of.iter().filter(|t| t.is_tracked()).collect();
    let bare: Vec<Tensor> = of.iter().map(Tensor::untracked).collect();
    let tape = common_tape(&tracked)?;
    let mut found = {
        let _sealed = tape.as_ref().map(|t| Guard::new(&t.sealed));
        f(&bare)?
    };
    if found.iter().flatten().any(Tensor::is_tracked) {
        bail!(tape, "the derivative uses a tracked tensor that it captured; pass it to the function as an input");
    }
    if let Some(tape) = tape {
        let mut outputs: Vec<Tensor> = found.iter().flatten().cloned().collect();
        if !outputs.is_empty() {
            record(&tape, name, at, &tracked, &mut outputs, Saved::none(), Arc::new(Refuse(name)), start(&tracked))?;
        }
        let mut it = outputs.into_iter();
        for slot in found.iter_mut().filter(|slot| slot.is_some()) {
            *slot = it.next();
        }
    }
    Ok(found)
}
