//! Gradients as functions of functions, for everyday use. Layer L5.
//!
//! Nothing tracked outlives a call, so parameters can be updated in place afterwards. All functions take any tree of
//! tensors ([`Module`]): a tensor, a tuple, a model. Inside one another they give higher derivatives.

mod checkpoint;
mod custom;
mod grads;
mod operators;
mod scope;

pub use checkpoint::{Inputs, checkpoint_module};
pub use custom::custom_vjp_module;
pub use grads::Grads;
pub(crate) use grads::Losses;

use crate::error::{Error, Result};
use crate::module::Module;
use crate::tensor::Tensor;
use crate::testing::{GradCheck, GradCheckReport};
use scope::Scope;
use std::panic::Location;

/// How to take a gradient.
#[derive(Clone, Copy, Debug, Default)]
pub struct GradOptions {
    /// Give zeros for parameters that the result does not depend on, instead of an error that names them. Optimizers leave such
    /// parameters alone; see [`Grads::disconnected`].
    pub allow_disconnected: bool,
}

/// The value of a scalar function of a tree, and its gradient.
///
/// The tree is borrowed. Where the `&` before it is forgotten, the compiler asks for the type of the closure's argument (*type
/// annotations needed*).
///
/// ```
/// use cotangent::{value_and_grad, Tensor};
/// let w = Tensor::from_slice(&[1f64, -2.0], [2])?;
/// let (loss, grad) = value_and_grad(&w, |w| w.square()?.sum(..))?;
/// assert_eq!((loss.item()?, grad.to_vec::<f64>()?), (5.0, vec![2.0, -4.0]));
/// # Ok::<(), cotangent::Error>(())
/// ```
///
/// # Errors
/// What `f` returns; shape error when the value is not a scalar; disconnected, with the names, when it does not depend
/// on some parameter ([`value_and_grad_with`] can allow that).
#[track_caller]
pub fn value_and_grad<M, F>(at: &M, f: F) -> Result<(Tensor, Grads<M>)>
where
    M: Module + Clone,
    F: FnOnce(&M) -> Result<Tensor>,
{
    value_and_grad_with(at, GradOptions::default(), f)
}

/// [`value_and_grad`] with options.
///
/// # Errors
/// As [`value_and_grad`].
#[track_caller]
pub fn value_and_grad_with<M, F>(at: &M, options: GradOptions, f: F) -> Result<(Tensor, Grads<M>)>
where
    M: Module + Clone,
    F: FnOnce(&M) -> Result<Tensor>,
{
    gradient("value_and_grad", at, options, f)
}

/// [`value_and_grad_with`] by the name of the function that was called.
#[track_caller]
pub(crate) fn gradient<M, F>(name: &'static str, at: &M, options: GradOptions, f: F) -> Result<(Tensor, Grads<M>)>
where
    M: Module + Clone,
    F: FnOnce(&M) -> Result<Tensor>,
{
    let (y, (), grads) = gradient_and(name, at, options, |m| Ok((f(m)?, ())))?;
    Ok((y, grads))
}

/// [`value_and_grad`] of a function that returns more than the scalar: logits, statistics. The extra tensors come back
/// detached.
///
/// # Errors
/// As [`value_and_grad`].
#[track_caller]
pub fn value_and_grad_with_aux<M, A, F>(at: &M, options: GradOptions, f: F) -> Result<(Tensor, A, Grads<M>)>
where
    M: Module + Clone,
    A: Module + Clone,
    F: FnOnce(&M) -> Result<(Tensor, A)>,
{
    gradient_and("value_and_grad_with_aux", at, options, f)
}

/// [`value_and_grad_with_aux`] by the name of the function that was called.
#[track_caller]
pub(crate) fn gradient_and<M, A, F>(name: &'static str, at: &M, options: GradOptions, f: F) -> Result<(Tensor, A, Grads<M>)>
where
    M: Module + Clone,
    A: Module + Clone,
    F: FnOnce(&M) -> Result<(Tensor, A)>,
{
    let location = Location::caller();
    let run = || {
        let scope = Scope::new(at)?;
        let (y, aux) = f(&scope.tree)?;
        let mut grads = scope.grads(scope.core.gradient(&y, options)?)?;
        if !scope.core.records() {
            grads.losses.note(&y)?;
        }
        Ok((scope.core.settle(y), scope.core.settle(aux), grads))
    };
    run().map_err(|e: Error| e.in_op(name, location))
}

/// The gradient of a scalar function of a tree.
///
/// # Errors
/// As [`value_and_grad`].
#[track_caller]
pub fn grad<M, F>(at: &M, f: F) -> Result<Grads<M>>
where
    M: Module + Clone,
    F: FnOnce(&M) -> Result<Tensor>,
{
    Ok(gradient("grad", at, GradOptions::default(), f)?.1)
}

/// A function's value with the map from its cotangent to the inputs' cotangents; see [`vjp`].
pub struct Pullback<M, Y> {
    /// The value, untracked.
    pub value: Y,
    scope: Scope<M>,
    outputs: Vec<Tensor>,
}

impl<M: Module + Clone, Y: Module + Clone> Pullback<M, Y> {
    /// The inputs' cotangents, given one for the value (same tree and shapes). May be called again.
    ///
    /// # Errors
    /// Shape error when the cotangent does not fit the value.
    #[track_caller]
    pub fn pull(&self, y_bar: &Y) -> Result<Grads<M>> {
        let location = Location::caller();
        let run = || {
            let bars = scope::tensors(&mut y_bar.clone());
            self.scope.grads(self.scope.core.pull(&self.outputs, &bars, GradOptions { allow_disconnected: true }, false)?)
        };
        run().map_err(|e| e.in_op("vjp", location))
    }
}

/// Vector–Jacobian products of any function of trees: runs it once, and pulls cotangents back any number of times. Tensors that the value
/// does not depend on get zeros, and are named by [`Grads::disconnected`].
///
/// # Errors
/// What `f` returns; disconnected when `f` uses none of the tensors that it is given (it captured the model, perhaps); argument error when
/// all are frozen.
///
/// ```
/// use cotangent::{vjp, Tensor};
/// let x = Tensor::from_slice(&[1f64, 2.0], [2])?;
/// let back = vjp(&x, |x| x.square())?;
/// let v = Tensor::from_slice(&[1f64, 10.0], [2])?;
/// assert_eq!(back.pull(&v)?.to_vec::<f64>()?, [2.0, 40.0]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[track_caller]
pub fn vjp<M, Y, F>(at: &M, f: F) -> Result<Pullback<M, Y>>
where
    M: Module + Clone,
    Y: Module + Clone,
    F: FnOnce(&M) -> Result<Y>,
{
    let location = Location::caller();
    let run = || {
        let scope = Scope::new(at)?;
        let mut y = f(&scope.tree)?;
        let outputs = scope::tensors(&mut y);
        scope.core.require_used(&outputs)?;
        Ok(Pullback { value: scope.core.settle(y), scope, outputs })
    };
    run().map_err(|e: Error| e.in_op("vjp", location))
}

/// Jacobian–vector product: the value of `f` and its derivative in the direction `x_dot`.
///
/// By reverse mode twice (the pullback is linear in the cotangent, so its transpose is the pushforward): exact, at
/// about three times the cost of `f`.
///
/// # Errors
/// As of [`vjp`]; shape error when `x_dot` does not fit.
///
/// ```
/// use cotangent::{jvp, Tensor};
/// let x = Tensor::from_slice(&[1f64, 2.0], [2])?;
/// let x_dot = Tensor::from_slice(&[1f64, 0.5], [2])?;
/// let (_, y_dot) = jvp(&x, &x_dot, |x| x.square())?;
/// assert_eq!(y_dot.to_vec::<f64>()?, [2.0, 2.0]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[track_caller]
pub fn jvp<M, Y, F>(at: &M, x_dot: &M, f: F) -> Result<(Y, Y)>
where
    M: Module + Clone,
    Y: Module + Clone,
    F: FnOnce(&M) -> Result<Y>,
{
    let location = Location::caller();
    let run = || {
        let scope = Scope::new(at)?;
        let mut y = f(&scope.tree)?;
        let outputs = scope::tensors(&mut y);
        scope.core.require_used(&outputs)?;
        let tangents = scope.core.push(&outputs, &mut scope.tree.clone(), &mut x_dot.clone())?;
        let mut y_dot = y.clone();
        scope::replace(&mut y_dot, tangents);
        Ok((scope.core.settle(y), y_dot))
    };
    run().map_err(|e: Error| e.in_op("jvp", location))
}

/// Hessian–vector product of a scalar function: its gradient, and the derivative of the gradient in the direction `v`.
///
/// # Errors
/// As [`value_and_grad`]; shape error when `v` does not fit.
///
/// ```
/// use cotangent::{hvp, Tensor};
/// let x = Tensor::from_slice(&[1f64, 2.0], [2])?;
/// let v = Tensor::from_slice(&[1f64, 1.0], [2])?;
/// let (g, hv) = hvp(&x, &v, |x| x.square()?.mul(x)?.sum(..))?; // Σ x³
/// assert_eq!((g.to_vec::<f64>()?, hv.to_vec::<f64>()?), (vec![3.0, 12.0], vec![6.0, 12.0]));
/// # Ok::<(), cotangent::Error>(())
/// ```
#[track_caller]
pub fn hvp<M, F>(at: &M, v: &M, f: F) -> Result<(Grads<M>, Grads<M>)>
where
    M: Module + Clone,
    F: FnOnce(&M) -> Result<Tensor>,
{
    let location = Location::caller();
    let run = || {
        let scope = Scope::new(at)?;
        let y = f(&scope.tree)?;
        let (x_bar, h) = scope.core.hessian(y, &mut scope.tree.clone(), &mut v.clone())?;
        Ok((scope.grads((x_bar, Vec::new()))?, scope.grads((h, Vec::new()))?))
    };
    run().map_err(|e: Error| e.in_op("hvp", location))
}

/// The Jacobian of a tensor-valued function: for each tensor of the tree, a tensor of shape `value.shape ++ its.shape`.
///
/// One sweep per element of the value. Tensors that it does not depend on have zeros, and are named by [`Grads::disconnected`].
///
/// # Errors
/// As of [`vjp`].
///
/// ```
/// use cotangent::{jacobian, Tensor};
/// let x = Tensor::from_slice(&[1f64, 2.0], [2])?;
/// let j = jacobian(&x, |x| x.square())?;
/// assert_eq!((j.shape().to_vec(), j.to_vec::<f64>()?), (vec![2, 2], vec![2.0, 0.0, 0.0, 4.0]));
/// # Ok::<(), cotangent::Error>(())
/// ```
#[track_caller]
pub fn jacobian<M, F>(at: &M, f: F) -> Result<Grads<M>>
where
    M: Module + Clone,
    F: FnOnce(&M) -> Result<Tensor>,
{
    let location = Location::caller();
    let run = || {
        let scope = Scope::new(at)?;
        let y = f(&scope.tree)?;
        scope.core.require_used(std::slice::from_ref(&y))?;
        scope.grads(scope.core.jacobian(&y)?)
    };
    run().map_err(|e: Error| e.in_op("jacobian", location))
}

/// Checks the gradient of a function of a model (or any tree) against finite differences, parameter by parameter.
///
/// The function may return any shape; it is checked with a random cotangent. Parameters must be `f64`: cast the model
/// first (`model.cast(F64)?`).
///
/// # Errors
/// Gradient-check error that lists every parameter whose gradient is wrong or missing; dtype error unless `f64`; what
/// `f` returns.
///
/// ```
/// use cotangent::{gradcheck_module, nn::Linear, Key, Tensor, F64};
/// let layer = Linear::new(3, 2, F64, Key::new(1))?;
/// let x = Tensor::randn([4, 3], F64, Key::new(2))?;
/// let report = gradcheck_module(&layer, |l| l.forward(&x)?.tanh())?;
/// assert_eq!(report.inputs[0].name, "weight");
/// # Ok::<(), cotangent::Error>(())
/// ```
#[track_caller]
pub fn gradcheck_module<M, F>(at: &M, f: F) -> Result<GradCheckReport>
where
    M: Module + Clone,
    F: Fn(&M) -> Result<Tensor>,
{
    GradCheck::default().run_named(
        |x| {
            let mut tree = at.clone();
            scope::put(&mut tree, x);
            f(&tree)
        },
        &at.trainable(),
    )
}
