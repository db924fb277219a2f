//! Gradients as functions of functions: the everyday door. Layer L5.
//!
//! Nothing tracked outlives a call, so parameters can be updated in place afterwards. All functions take any tree of
//! tensors ([`Module`]): a tensor, a tuple, a model. Inside one another they give higher derivatives.

mod grads;

pub use grads::Grads;
pub(crate) use grads::Losses;

use crate::error::{Error, Result, bail};
use crate::memory;
use crate::module::{Module, ModuleExt, try_walk, unique_names, walk};
use crate::ops::ACCUMULATE;
use crate::tape::{Inner, Isolated, Sweep, Tape, common_tape, lost_message, sweep};
use crate::tensor::Tensor;
use crate::testing::{GradCheck, GradCheckReport};
use std::panic::Location;
use std::sync::Arc;

/// How to take a gradient.
#[derive(Clone, Copy, Debug, Default)]
pub struct GradOptions {
    /// Give zeros for parameters that the result does not depend on, instead of an error that names them. Optimizers leave such
    /// parameters alone; see [`Grads::disconnected`].
    pub allow_disconnected: bool,
}

/// The value of a scalar function of a tree, and its gradient.
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
    let (y, (), grads) = value_aux_and_grad(at, options, |m| Ok((f(m)?, ())))?;
    Ok((y, grads))
}

/// [`value_and_grad`] of a function that returns more than the scalar: logits, statistics. The extra tensors come back
/// detached.
///
/// # Errors
/// As [`value_and_grad`].
#[track_caller]
pub fn value_aux_and_grad<M, A, F>(at: &M, options: GradOptions, f: F) -> Result<(Tensor, A, Grads<M>)>
where
    M: Module + Clone,
    A: Module + Clone,
    F: FnOnce(&M) -> Result<(Tensor, A)>,
{
    let location = Location::caller();
    let run = || {
        let scope = Scope::new(at)?;
        let (y, aux) = f(&scope.tree)?;
        if y.numel() != 1 {
            bail!(shape, "the function's value has shape {}; a gradient needs a scalar (reduce it, or use vjp)", y.shape());
        }
        let mut grads = scope.pull(&[&y], &[y.ones_like()?], options, true)?;
        if !scope.records() {
            grads.of_loss(&y)?;
        }
        let (y, aux) = if scope.records() { (y, aux) } else { (y.detach(), aux.map(|_, t| Ok(t.detach()))?) };
        Ok((y, aux, grads))
    };
    run().map_err(|e: Error| e.in_op("value_and_grad", location))
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
    Ok(value_and_grad(at, f)?.1)
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
        let bars: Vec<Tensor> = y_bar.named_tensors().into_iter().map(|(_, t)| t).collect();
        let outputs: Vec<&Tensor> = self.outputs.iter().collect();
        self.scope.pull(&outputs, &bars, GradOptions { allow_disconnected: true }, false).map_err(|e| e.in_op("vjp", location))
    }
}

/// Vector–Jacobian products of any function of trees: runs it once, and pulls cotangents back any number of times.
///
/// # Errors
/// What `f` returns.
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
        let y = f(&scope.tree)?;
        let outputs = y.named_tensors().into_iter().map(|(_, t)| t).collect();
        let value = if scope.records() { y } else { y.map(|_, t| Ok(t.detach()))? };
        Ok(Pullback { value, scope, outputs })
    };
    run().map_err(|e: Error| e.in_op("vjp", location))
}

/// Jacobian–vector product: the value of `f` and its derivative in the direction `x_dot`.
///
/// By reverse mode twice (the pullback is linear in the cotangent, so its transpose is the pushforward): exact, at
/// about three times the cost of `f`.
///
/// # Errors
/// What `f` returns; shape error when `x_dot` does not fit.
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
        let y = f(&scope.tree)?;
        let outputs: Vec<Tensor> = y.named_tensors().into_iter().map(|(_, t)| t).collect();
        let floats: Vec<Tensor> = outputs.iter().filter(|t| t.dtype().is_float()).cloned().collect();
        let zeros: Vec<Tensor> = floats.iter().map(Tensor::zeros_like).collect::<Result<_>>()?;
        let dummies = Isolated::new(&zeros, Some(scope.place()?.0.inner));
        let x_bar = scope.cotangents(&floats, &dummies.inputs, true)?;
        let directions = trainable_like(&scope.tree, x_dot)?;
        let along = inner_product(&x_bar, &directions)?;
        let mut tangents = Vec::new();
        if let Some(s) = along.filter(Tensor::is_tracked) {
            let want = vec![true; zeros.len()];
            tangents = dummies.pull_back(std::slice::from_ref(&s), &[Some(s.ones_like()?)], &want, scope.records(), ACCUMULATE)?.into_vec();
        }
        tangents.resize(zeros.len(), None);
        let mut it = tangents.into_iter().zip(zeros);
        let y_dot = y.map(|_, t| {
            if !t.dtype().is_float() {
                return t.zeros_like();
            }
            let (dot, zero) = it.next().ok_or_else(|| Error::tape("the function's value changed while it was walked"))?;
            Ok(dot.unwrap_or(zero))
        })?;
        let y = if scope.records() { y } else { y.map(|_, t| Ok(t.detach()))? };
        Ok((y, y_dot))
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
        if y.numel() != 1 {
            bail!(shape, "the function's value has shape {}; a Hessian needs a scalar", y.shape());
        }
        let ones = y.ones_like()?;
        let x_bar = scope.cotangents(std::slice::from_ref(&y), &[ones], true)?;
        scope.require_connected(&x_bar, GradOptions::default(), std::slice::from_ref(&y))?;
        let directions = trainable_like(&scope.tree, v)?;
        let along = inner_product(&x_bar, &directions)?;
        let h = match along.filter(Tensor::is_tracked) {
            Some(s) => scope.cotangents(std::slice::from_ref(&s), &[s.ones_like()?], scope.records())?,
            None => vec![None; x_bar.len()],
        };
        let x_bar = if scope.records() { x_bar } else { x_bar.into_iter().map(|t| t.map(|t| t.detach())).collect() };
        Ok((scope.grads(x_bar)?, scope.grads(h)?))
    };
    run().map_err(|e: Error| e.in_op("hvp", location))
}

/// The Jacobian of a tensor-valued function: for each tensor of the tree, a tensor of shape `value.shape ++ its.shape`.
///
/// One sweep per element of the value.
///
/// # Errors
/// What `f` returns.
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
        let n = y.numel();
        let mut rows: Vec<Vec<Tensor>> = vec![Vec::new(); scope.leaves.len()];
        for i in 0..n {
            let mut seed = y.detach().zeros_like()?;
            crate::dtype::with_float!(seed.dtype(), T => seed.update(|v: &mut [T]| v[i] = <T as crate::Element>::from_f64(1.0))?);
            let found = scope.cotangents(std::slice::from_ref(&y), &[seed], scope.records())?;
            for ((row, g), leaf) in rows.iter_mut().zip(found).zip(&scope.leaves) {
                memory::push(row, g.map_or_else(|| leaf.detach().zeros_like(), Ok)?)?;
            }
        }
        let mut stacked = Vec::new();
        for (row, leaf) in rows.iter().zip(&scope.leaves) {
            let shape: crate::Shape = y.shape().iter().chain(leaf.shape().iter()).copied().collect();
            stacked.push(Some(if n == 0 {
                Tensor::full_on(shape, 0.0, leaf.dtype(), leaf.device())?
            } else {
                Tensor::stack(&memory::try_collect(row.iter())?, 0)?.reshape(shape)?
            }));
        }
        scope.grads(stacked)
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
/// let layer = Linear::new(3, 2, true, F64, Key::new(1))?;
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
            let mut it = x.iter();
            let mut tree = at.clone();
            walk(&mut tree, |_, leaf| {
                if leaf.is_trainable()
                    && let Some(t) = it.next()
                {
                    *leaf.tensor = t.clone();
                }
            });
            f(&tree)
        },
        &at.trainable(),
    )
}

/// A tree whose trainable tensors are nodes of a tape of its own, or of the tape that already tracks one of them (then
/// the derivative is recorded there: this is a derivative inside a derivative).
struct Scope<M> {
    tape: Tape,
    floor: usize,
    tree: M,
    leaves: Vec<Tensor>,
    names: Vec<String>,
    inside: bool,
}

impl<M: Module + Clone> Scope<M> {
    fn new(at: &M) -> Result<Self> {
        let original = at.trainable();
        unique_names(at)?;
        let outer = common_tape(&original.iter().map(|(_, t)| t).collect::<Vec<_>>())?;
        let inside = outer.is_some();
        let tape = Tape { inner: outer.unwrap_or_else(Inner::for_function) };
        let (names, values): (Vec<String>, Vec<Tensor>) = original.into_iter().unzip();
        let isolated = Isolated::named(&values, &names, Some(Arc::clone(&tape.inner)));
        let leaves = isolated.inputs.clone();
        let mut it = leaves.iter();
        let mut tree = at.clone();
        walk(&mut tree, |_, leaf| {
            if leaf.is_trainable()
                && let Some(t) = it.next()
            {
                *leaf.tensor = t.clone();
            }
        });
        let floor = tape.inner.len();
        Ok(Scope { tape, floor, tree, leaves, names, inside })
    }

    /// The tape that holds the nodes of the function now, and where they start: another one's when the function met
    /// values of an outer gradient function.
    fn place(&self) -> Result<(Tape, usize)> {
        match Arc::clone(&self.tape.inner).settled() {
            Some((inner, offset)) => Ok((Tape { inner }, self.floor + offset)),
            None => bail!(tape, "the outer gradient function has ended"),
        }
    }

    /// Whether this runs inside another gradient function, so that the derivative is recorded.
    fn records(&self) -> bool {
        self.inside || self.place().is_ok_and(|(tape, _)| !Arc::ptr_eq(&tape.inner, &self.tape.inner))
    }

    fn run(&self, y: &[Tensor], y_bar: &[Tensor], record: bool, consume: bool) -> Result<Vec<Option<Tensor>>> {
        if y.len() != y_bar.len() {
            bail!(shape, "{} cotangents for {} values", y_bar.len(), y.len());
        }
        let (tape, floor) = self.place()?;
        let mut seeds = Vec::new();
        for (y, bar) in y.iter().zip(y_bar) {
            if y.shape() != bar.shape() {
                bail!(shape, "the cotangent has shape {}, its value {}", bar.shape(), y.shape());
            }
            // A value on another tape never met this function's inputs.
            if let Some((own, id)) = y.node.as_ref().map(|n| n.resolve()).transpose()?
                && Arc::ptr_eq(&own, &tape.inner)
            {
                seeds.push((id, bar.clone()));
            }
        }
        let ids: Vec<usize> = self.leaves.iter().map(|t| tape.id_of(t)).collect::<Result<_>>()?;
        let found = sweep(&tape.inner, Sweep { seeds, wanted: &ids, floor, consume, record }, ACCUMULATE)?;
        Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
    }

    fn cotangents(&self, y: &[Tensor], y_bar: &[Tensor], record: bool) -> Result<Vec<Option<Tensor>>> {
        self.run(y, y_bar, record, false)
    }

    fn pull(&self, y: &[&Tensor], y_bar: &[Tensor], options: GradOptions, last: bool) -> Result<Grads<M>> {
        let y: Vec<Tensor> = y.iter().map(|&t| t.clone()).collect();
        let found = self.run(&y, y_bar, self.records(), last && !self.records())?;
        let disconnected = self.require_connected(&found, options, &y)?;
        let mut grads = self.grads(found)?;
        grads.set_disconnected(disconnected);
        Ok(grads)
    }

    /// The names without a cotangent; an error unless that is allowed.
    fn require_connected(&self, found: &[Option<Tensor>], options: GradOptions, ends: &[Tensor]) -> Result<Vec<String>> {
        let missing: Vec<String> = self.names.iter().zip(found).filter(|(_, g)| g.is_none()).map(|(n, _)| n.clone()).collect();
        if options.allow_disconnected {
            return Ok(missing);
        }
        if found.is_empty() {
            bail!(argument, "there is nothing to differentiate: every tensor of the input is frozen or holds integers");
        }
        if missing.is_empty() {
            return Ok(missing);
        }
        let tape = self.place()?.0;
        let ids = |tensors: &[Tensor]| tensors.iter().filter_map(|t| tape.id_of(t).ok()).collect::<Vec<_>>();
        let lost: Vec<Tensor> = self.leaves.iter().zip(found).filter(|(_, g)| g.is_none()).map(|(t, _)| t.clone()).collect();
        let lost: Vec<(String, usize)> = missing.iter().map(|n| quoted(n)).zip(ids(&lost)).collect();
        Err(Error::disconnected(lost_message(&tape.inner, &lost, found.len(), &ids(ends))).with_names(missing))
    }

    /// Gradients in the tree's own shape: zeros where there are none.
    fn grads(&self, found: Vec<Option<Tensor>>) -> Result<Grads<M>> {
        let mut it = found.into_iter();
        let mut tree = self.tree.clone();
        try_walk(&mut tree, |_, leaf| {
            let g = if leaf.is_trainable() { it.next().flatten() } else { None };
            *leaf.tensor = match g {
                Some(g) => g,
                None => leaf.tensor.detach().zeros_like()?,
            };
            Ok(())
        })?;
        Ok(Grads::new(tree))
    }
}

/// A parameter's name for messages; a tensor given alone has none.
fn quoted(name: &str) -> String {
    if name.is_empty() { "the input".into() } else { format!("`{name}`") }
}

/// The tensors of `directions` that belong to the trainable tensors of `tree`.
fn trainable_like<M: Module + Clone>(tree: &M, directions: &M) -> Result<Vec<Tensor>> {
    let (own, other) = (tree.trainable(), directions.named_tensors());
    let (all, given) = (tree.names(), directions.names());
    if all != given {
        bail!(argument, "the direction is another tree: it has [{}], the function's input [{}]", given.join(", "), all.join(", "));
    }
    own.iter()
        .map(|(name, t)| {
            let Some((_, d)) = other.iter().find(|(n, _)| n == name) else { bail!(argument, "the direction has no {}", quoted(name)) };
            if d.shape() != t.shape() {
                bail!(shape, "the direction of {} has shape {}, the parameter {}", quoted(name), d.shape(), t.shape());
            }
            if d.dtype() != t.dtype() {
                bail!(dtype, "the direction of {} is {}, the parameter {}", quoted(name), d.dtype(), t.dtype());
            }
            Ok(d.clone())
        })
        .collect()
}

/// `Σ ⟨a, b⟩` over the pairs that have both.
fn inner_product(a: &[Option<Tensor>], b: &[Tensor]) -> Result<Option<Tensor>> {
    let mut sum: Option<Tensor> = None;
    for (a, b) in a.iter().zip(b) {
        if let Some(a) = a {
            let term = a.mul(b)?.sum(..)?;
            sum = Some(match sum {
                None => term,
                Some(s) => s.add(&term)?,
            });
        }
    }
    Ok(sum)
}
