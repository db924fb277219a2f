//! A derivative of one's own for modules and trees: what `tape::custom_vjp` does for lists of tensors.

use super::checkpoint::Inputs;
use super::grads::quoted;
use super::scope::{detach, replace, tensors};
use crate::error::{Error, Result, bail};
use crate::memory;
use crate::module::{Module, tensors_of};
use crate::tape::custom_vjp;
use crate::tensor::Tensor;
use std::sync::{Arc, OnceLock};

/// [`custom_vjp`](crate::custom_vjp) of a module: a function of it and of other trees whose derivative you write as a closure.
///
/// `forward(module, inputs)` gets both without history, so nothing that it does is recorded. `backward(module, inputs, y, y_bar)` gets
/// them again with the value and its cotangent, and returns the cotangents of the module and of the inputs as trees of the same form:
/// what [`vjp`](crate::vjp) pulls back has it, and [`Module::map`](crate::Module::map) makes zeros. Those of frozen parameters,
/// buffers and integers are not looked at.
///
/// Written in tensor ops of its arguments, `backward` can be differentiated again. **What it captures is constant**: see
/// [`custom_vjp`](crate::custom_vjp).
///
/// # Gradient
/// What `backward` says. Keeps parameters, inputs and value.
///
/// # Errors
/// Whatever the closures return; tape error when one of them uses a tracked tensor that it captured; argument error when `backward`
/// returns trees with other tensors; shape, dtype or device error that names the tensor whose cotangent does not fit.
///
/// ```
/// use cotangent::{F64, Key, Tensor, custom_vjp_module, grad, nn::Linear, vjp};
/// // A layer whose cotangents are halved on the way to its parameters, and not on the way to its input.
/// let slow = |layer: &Linear, x: &Tensor| {
///     custom_vjp_module(layer, x, |layer, x| layer.forward(x), |layer, x, _, y_bar| {
///         let (layer, x) = vjp(&(layer.clone(), x.clone()), |(layer, x)| layer.forward(x))?.pull(y_bar)?.into_inner();
///         Ok((cotangent::Module::map(&layer, |_, g| g.mul_scalar(0.5))?, x))
///     })
/// };
/// let (layer, x) = (Linear::new(3, 2, F64, Key::new(1))?, Tensor::ones([4, 3], F64)?);
/// let (half, whole) = (grad(&layer, |l| slow(l, &x)?.sum(..))?, grad(&layer, |l| l.forward(&x)?.sum(..))?);
/// assert_eq!((half.weight.sum(..)?.item()?, whole.weight.sum(..)?.item()?), (12.0, 24.0));
/// assert_eq!(grad(&x, |x| slow(&layer, x)?.sum(..))?.to_vec::<f64>()?, grad(&x, |x| layer.forward(x)?.sum(..))?.to_vec::<f64>()?);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[track_caller]
pub fn custom_vjp_module<M, I, Y, F, B>(module: &M, inputs: I, forward: F, backward: B) -> Result<Y>
where
    M: Module + Clone + Send + Sync + 'static,
    I: Inputs,
    Y: Module + Clone + Send + Sync + 'static,
    F: FnOnce(&M, &I::Trees) -> Result<Y>,
    B: Fn(&M, &I::Trees, &Y, &Y) -> Result<(M, I::Trees)> + Send + Sync + 'static,
{
    let mut trees = (module.clone(), inputs.trees());
    let given = tensors(&mut trees);
    detach(&mut trees);
    // What the value looks like is known once `forward` has run.
    let form: Arc<OnceLock<Y>> = Arc::default();
    let (mut first, seen) = (trees.clone(), Arc::clone(&form));
    let run = |given: &[Tensor]| {
        replace(&mut first, given.to_vec());
        let mut y = forward(&first.0, &first.1)?;
        let list = tensors(&mut y);
        detach(&mut y);
        let _ = form.set(y); // no one else sets it
        Ok(list)
    };
    let pull = move |given: &[Tensor], y: &[Tensor], y_bar: &[Tensor]| {
        let (mut trees, mut value, mut bar) = (trees.clone(), like(&seen)?, like(&seen)?);
        replace(&mut trees, given.to_vec());
        replace(&mut value, y.to_vec());
        replace(&mut bar, y_bar.to_vec());
        let (mut module_bar, mut inputs_bar) = backward(&trees.0, &trees.1, &value, &bar)?;
        let mut bars = fitting(&mut trees.0, &mut module_bar)?;
        memory::extend(&mut bars, fitting(&mut trees.1, &mut inputs_bar)?)?;
        Ok(bars)
    };
    let outputs = custom_vjp(&given.iter().collect::<Vec<_>>(), run, pull)?;
    let mut y = like(&form)?;
    replace(&mut y, outputs);
    Ok(y)
}

fn like<Y: Clone>(form: &OnceLock<Y>) -> Result<Y> {
    form.get().cloned().ok_or_else(|| Error::tape("the function was not run"))
}

/// The tensors of a tree of cotangents, which must fit those of the tree that they belong to; nothing for what has no derivative.
fn fitting(of: &mut dyn Module, bars: &mut dyn Module) -> Result<Vec<Option<Tensor>>> {
    let (of, bars) = (tensors_of(of, false), tensors_of(bars, false));
    if !of.iter().map(|(n, _)| n).eq(bars.iter().map(|(n, _)| n)) {
        let list = |t: &[(String, Tensor)]| t.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(", ");
        bail!(argument, "the derivative returned a tree with [{}] for one with [{}]", list(&bars), list(&of));
    }
    let fit = |((name, x), (_, bar)): ((String, Tensor), (String, Tensor))| {
        if !x.dtype().is_float() {
            return Ok(None);
        }
        let name = quoted(&name);
        if bar.shape() != x.shape() {
            bail!(shape, "the cotangent of {name} has shape {}, the tensor {}", bar.shape(), x.shape());
        }
        if bar.dtype() != x.dtype() {
            bail!(dtype, "the cotangent of {name} is {}, the tensor {}; cast one", bar.dtype(), x.dtype());
        }
        Ok(Some(bar))
    };
    of.into_iter().zip(bars).map(fit).collect()
}
