//! The trait of trees of parameters, and what every tree can do.

use super::{Leaf, Role, Summary, SummaryRow, Visitor, tensors_of, try_walk, walk};
use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::Location;

fn set_frozen<M: Module + ?Sized>(m: &mut M, frozen: bool, which: &dyn Fn(&str) -> bool) -> usize {
    let mut n = 0;
    walk(m, |name, mut leaf: Leaf<'_>| {
        if which(name) && leaf.set_frozen(frozen) {
            n += 1;
        }
    });
    n
}

/// Whether a tensor of a file is the counter of one of PyTorch's batch norms, which stands beside running statistics: it serves a
/// cumulative mean alone, and no layer here has one.
pub(crate) fn is_batch_counter(name: &str, own: &dyn Fn(&str) -> bool) -> bool {
    let path = name.strip_suffix("num_batches_tracked").filter(|p| p.is_empty() || p.ends_with('.'));
    path.is_some_and(|path| own(&format!("{path}running_mean")))
}

fn loaded<M: Module + Clone>(m: &M, tensors: &BTreeMap<String, Tensor>) -> Result<M> {
    let own: BTreeSet<String> = m.names().into_iter().collect();
    let missing: Vec<&str> = own.iter().filter(|n| !tensors.contains_key(*n)).map(String::as_str).collect();
    let known = |n: &str| own.contains(n) || is_batch_counter(n, &|n| own.contains(n));
    let unexpected: Vec<&str> = tensors.keys().filter(|n| !known(n)).map(String::as_str).collect();
    if !missing.is_empty() || !unexpected.is_empty() {
        bail!(argument, "names do not match: missing [{}], unexpected [{}]", missing.join(", "), unexpected.join(", "));
    }
    m.map(|name, old| {
        let new = &tensors[name];
        if new.shape() != old.shape() {
            let name = if name.is_empty() { "the tensor".to_owned() } else { format!("`{name}`") };
            bail!(shape, "{name} has shape {} in the file, {} in the model", new.shape(), old.shape());
        }
        if new.dtype().is_float() != old.dtype().is_float() {
            let name = if name.is_empty() { "the tensor".to_owned() } else { format!("`{name}`") };
            bail!(
                dtype,
                "{name} is {} in the file, {} in the model: numbers of the one kind are none of the other; cast it before, where they are meant",
                new.dtype(),
                old.dtype()
            );
        }
        new.cast(old.dtype())
    })
}

/// The tensors of a second tree, whose names must be those of the first.
fn paired(own: Vec<(String, Tensor)>, other: Vec<(String, Tensor)>) -> Result<Vec<Tensor>> {
    if let Some(((name, a), (_, b))) = own.iter().zip(&other).find(|((n, a), (m, b))| n == m && a.shape() != b.shape()) {
        let name = if name.is_empty() { "the tensor".to_owned() } else { format!("`{name}`") };
        bail!(
            shape,
            "{name} has shape {} in this tree, {} in the other: broadcasting would hide that; trees of other shapes are paired by `named_tensors`",
            a.shape(),
            b.shape()
        );
    }
    if !own.iter().map(|(n, _)| n).eq(other.iter().map(|(n, _)| n)) {
        let list = |t: &[(String, Tensor)]| t.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(", ");
        bail!(argument, "the other tree has [{}], this one [{}]", list(&other), list(&own));
    }
    Ok(other.into_iter().map(|(_, t)| t).collect())
}

/// A tree of parameters: a model, a layer, a tuple of tensors.
///
/// Write it with the [`module!`](crate::module) macro, which does not compile when a field is forgotten.
///
/// ```
/// use cotangent::{module, value_and_grad, Module, Param, Result, Tensor, F64};
/// #[derive(Clone)]
/// struct Line { slope: Param, offset: Param, name: &'static str }
/// module!(Line { slope, offset } skip { name });
///
/// let line = Line { slope: Tensor::scalar(2f64)?.into(), offset: Tensor::scalar(0f64)?.into(), name: "line" };
/// assert_eq!(line.names(), ["slope", "offset"]);
/// let x = Tensor::from_slice(&[1f64, 2., 3.], [3])?;
/// let (_, grads) = value_and_grad(&line, |l| x.mul(&l.slope)?.add(&l.offset)?.sum(..))?;
/// assert_eq!(grads.slope.item()?, 6.0);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a tree of parameters",
    label = "not a `Module`",
    note = "a struct of your own becomes one by `module!(Name {{ layer, weight }} skip {{ size }})`: parameters and sub-modules first, all else under `skip`",
    note = "a number, string or setting among the fields belongs under `skip`: `module!(Net {{ weight }} skip {{ size }})`",
    note = "parameters are `Param`, statistics `Buffer`; `Tensor`, `Option`, `Vec`, arrays, `Box`, maps by `String` and tuples of up to twelve are trees; of more than twelve: tuples in a tuple",
    note = "a type parameter that has bounds has all of them in `module!` too: `module!(Net<L: Module + Clone> {{ layer }})`"
)]
pub trait Module {
    /// Visits every field that holds parameters, in a fixed order, under the name it has in checkpoints.
    fn visit(&mut self, v: &mut Visitor<'_>);

    /// Dotted names of all tensors, in visiting order.
    fn names(&self) -> Vec<String>
    where
        Self: Sized + Clone,
    {
        self.named_tensors().into_iter().map(|(n, _)| n).collect()
    }

    /// All tensors by name, in visiting order (cheap clones).
    fn named_tensors(&self) -> Vec<(String, Tensor)>
    where
        Self: Sized + Clone,
    {
        tensors_of(&mut self.clone(), false)
    }

    /// The trainable tensors by name.
    fn trainable(&self) -> Vec<(String, Tensor)>
    where
        Self: Sized + Clone,
    {
        tensors_of(&mut self.clone(), true)
    }

    /// The buffers by name.
    fn buffers(&self) -> Vec<(String, Tensor)>
    where
        Self: Sized + Clone,
    {
        let mut out = Vec::new();
        walk(&mut self.clone(), |name, leaf| {
            if leaf.role() == Role::Buffer {
                out.push((name.to_owned(), leaf.tensor.clone()));
            }
        });
        out
    }

    /// Number of elements of all float parameters; frozen ones included, buffers not.
    fn num_params(&self) -> usize
    where
        Self: Sized + Clone,
    {
        let mut n = 0;
        walk(&mut self.clone(), |_, leaf| {
            if leaf.tensor.dtype().is_float() && leaf.role() != Role::Buffer {
                n = usize::saturating_add(n, leaf.tensor.numel());
            }
        });
        n
    }

    /// Every tensor with its name, shape, dtype, size and what training does with it: prints as a table.
    ///
    /// ```
    /// use cotangent::{F32, Key, Module, nn::Linear};
    /// let mut layer = Linear::new(3, 2, F32, Key::new(1))?;
    /// let _ = layer.freeze(|name| name == "bias");
    /// let summary = layer.summary();
    /// assert_eq!((summary.trainable(), summary.frozen(), summary.bytes()), (6, 2, 32));
    /// println!("{summary}");
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    fn summary(&self) -> Summary
    where
        Self: Sized + Clone,
    {
        let mut rows = Vec::new();
        walk(&mut self.clone(), |name, leaf| rows.push(SummaryRow::new(name, &leaf)));
        Summary { rows }
    }

    /// Freezes the parameters whose name satisfies `which`, beside those that are frozen already. Returns how many names matched.
    ///
    /// Frozen parameters are not watched, get no gradient and cost no gradient memory; [`thaw`](Self::thaw) is the way back. A count
    /// of 0 where some were meant is a name that matches nothing: compare it, `let _ =` where none is fine.
    ///
    /// ```compile_fail
    /// #![deny(unused_must_use)]
    /// use cotangent::{nn::Linear, Key, Module, F32};
    /// let mut layer = Linear::new(3, 2, F32, Key::new(1)).unwrap();
    /// layer.freeze(|name| name == "weigth"); // does not compile: nobody looks at the count, which is 0
    /// ```
    #[must_use = "0 means that no name matched"]
    fn freeze(&mut self, which: impl Fn(&str) -> bool) -> usize
    where
        Self: Sized + Clone,
    {
        set_frozen(self, true, &which)
    }

    /// Makes the parameters whose name satisfies `which` trainable again, and leaves all others as they are. Buffers are no parameters:
    /// they never thaw. Returns how many names matched.
    ///
    /// ```
    /// use cotangent::{nn::Linear, Key, Module, F32};
    /// let mut layer = Linear::new(3, 2, F32, Key::new(1))?;
    /// assert_eq!(layer.freeze(|_| true), 2);
    /// assert_eq!(layer.thaw(|name| name == "bias"), 1);
    /// assert_eq!(layer.trainable()[0].0, "bias");
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[must_use = "0 means that no name matched"]
    fn thaw(&mut self, which: impl Fn(&str) -> bool) -> usize
    where
        Self: Sized + Clone,
    {
        set_frozen(self, false, &which)
    }

    /// The same tree with every tensor replaced. Arrays and options have a `map` of their own, which comes first: for a tree that is one,
    /// `Module::map(&tree, ..)`.
    ///
    /// # Errors
    /// The first error of `f`.
    fn map(&self, mut f: impl FnMut(&str, &Tensor) -> Result<Tensor>) -> Result<Self>
    where
        Self: Sized + Clone,
    {
        let mut out = self.clone();
        try_walk(&mut out, |name, leaf| {
            *leaf.tensor = f(name, leaf.tensor)?;
            Ok(())
        })?;
        Ok(out)
    }

    /// The same tree with every tensor replaced by a function of itself and of the tensor at the same place of another such tree: JAX's
    /// `tree_map` of two trees. Gradients are a tree too, so this is a step of descent that an outer gradient passes through:
    ///
    /// ```
    /// use cotangent::{F64, Key, Module, Tensor, grad, nn::Linear};
    /// let (layer, x) = (Linear::new(3, 1, F64, Key::new(1))?, Tensor::ones([4, 3], F64)?);
    /// let meta = grad(&layer, |layer| {
    ///     let g = grad(layer, |l| l.forward(&x)?.square()?.mean(..))?;
    ///     let adapted = layer.zip_map(&g, |_, w, g| w.sub(&g.mul_scalar(0.1)?))?;
    ///     adapted.forward(&x)?.square()?.mean(..)
    /// })?;
    /// assert_eq!(meta.weight.shape(), &[1, 3]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Errors
    /// Argument error that lists the names when the other tree has other ones; shape error when two tensors at one place have different
    /// shapes; the first error of `f`.
    #[track_caller]
    fn zip_map(&self, other: &Self, mut f: impl FnMut(&str, &Tensor, &Tensor) -> Result<Tensor>) -> Result<Self>
    where
        Self: Sized + Clone,
    {
        let at = std::panic::Location::caller();
        let others = paired(self.named_tensors(), other.named_tensors()).map_err(|e| e.in_op("zip_map", at))?;
        let mut others = others.iter();
        let mut out = self.clone();
        try_walk(&mut out, |name, leaf| {
            if let Some(other) = others.next() {
                *leaf.tensor = f(name, leaf.tensor, other)?;
            }
            Ok(())
        })?;
        Ok(out)
    }

    /// The same tree with every float tensor cast. A recorded op when the tensors are tracked: inside a gradient
    /// function this is mixed precision, and the gradients arrive in the original dtype.
    ///
    /// # Errors
    /// Dtype error for an integer type, which would cut every parameter off to a whole number; out of memory.
    #[track_caller]
    fn cast(&self, dtype: DType) -> Result<Self>
    where
        Self: Sized + Clone,
    {
        let at = std::panic::Location::caller();
        if !dtype.is_float() {
            let text = format!(
                "floats of a tree cannot become {dtype}: every parameter would be cut off to a whole number; one tensor: `tensor.cast({})`; \
                 all, on purpose: `tree.map(|_, t| t.cast(..))`",
                dtype.name().to_uppercase()
            );
            return Err(Error::dtype(text).in_op("cast", at));
        }
        self.map(|_, t| if t.dtype().is_float() { t.cast(dtype) } else { Ok(t.clone()) }).map_err(|e| e.called_at(at))
    }

    /// The same tree with every tensor on a device.
    ///
    /// # Errors
    /// Device error when it is not available; out of memory.
    #[track_caller]
    fn to_device(&self, device: crate::Device) -> Result<Self>
    where
        Self: Sized + Clone,
    {
        let at = std::panic::Location::caller();
        self.map(|_, t| t.to_device(device)).map_err(|e| e.called_at(at))
    }

    /// The same tree with its trainable tensors watched by a tape, under their names.
    ///
    /// # Errors
    /// Tape error when one is already tracked.
    #[track_caller]
    fn watch(&self, tape: &crate::Tape) -> Result<Self>
    where
        Self: Sized + Clone,
    {
        let at = std::panic::Location::caller();
        let mut out = self.clone();
        try_walk(&mut out, |name, leaf| {
            if leaf.is_trainable() {
                *leaf.tensor = tape.watch_named(name, leaf.tensor).map_err(|e| e.called_at(at))?;
            }
            Ok(())
        })?;
        Ok(out)
    }

    /// Replaces every tensor by the one of the same name, cast to the dtype it has now. The counters `num_batches_tracked` of PyTorch's batch
    /// norms are passed over.
    ///
    /// # Errors
    /// Shape error when a shape differs; dtype error when one is of integers and the other of floats; argument error that lists all missing
    /// and all unexpected names. Nothing is changed on error.
    #[track_caller]
    fn load_named(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()>
    where
        Self: Sized + Clone,
    {
        let at = std::panic::Location::caller();
        let loaded = loaded(self, tensors).map_err(|e| e.in_op("load_named", at).called_at(at))?;
        *self = loaded;
        Ok(())
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// Argument error when there is none.
    #[track_caller]
    fn get_tensor(&self, name: &str) -> Result<Tensor>
    where
        Self: Sized + Clone,
    {
        let at = Location::caller();
        let found = self.named_tensors().into_iter().find(|(n, _)| n == name);
        let none = || Error::argument(format!("no tensor is called `{name}`; there are: {}", self.names().join(", ")));
        found.map(|(_, t)| t).ok_or_else(|| none().in_op("get_tensor", at))
    }
}
