//! Checkpoints of modules and trees: what `tape::checkpoint` does for lists of tensors.

use super::scope::{detach, replace, tensors};
use crate::error::{Error, Result};
use crate::module::Module;
use crate::shape::up_to_twelve;
use crate::tape::checkpoint;
use crate::tensor::Tensor;
use std::sync::{Arc, Mutex, PoisonError};

/// What a function takes: a tree by reference, or a tuple of such; see [`checkpoint_module`].
pub trait Inputs {
    /// The trees themselves.
    type Trees: Module + Clone + Send + Sync + 'static;
    /// Cheap clones of them.
    fn trees(self) -> Self::Trees;
}

impl<M: Module + Clone + Send + Sync + 'static> Inputs for &M {
    type Trees = M;
    fn trees(self) -> M {
        self.clone()
    }
}

macro_rules! tuples {
    ($(($($T:ident $i:tt),*);)*) => {$(
        impl<$($T: Inputs),*> Inputs for ($($T,)*) {
            type Trees = ($($T::Trees,)*);
            fn trees(self) -> Self::Trees {
                ($(self.$i.trees(),)*)
            }
        }
    )*};
}
up_to_twelve!(tuples);

/// [`checkpoint`] of a module: runs `f` and keeps only the module's parameters and the inputs for the derivative; the sweep runs `f`
/// again.
///
/// Inputs and result are trees: a tensor, a tuple, a state of your own. What `f` captures is constant; a captured tracked tensor is an
/// error. `f` must compute the same again, which is checked: give dropout a [`Key`](crate::Key).
///
/// # Gradient
/// That of `f`, bit for bit, for parameters and inputs; higher orders too.
///
/// # Errors
/// As [`checkpoint`].
///
/// ```
/// use cotangent::{F64, Key, Module, Tensor, checkpoint_module, grad, nn::Linear};
/// let layer = Linear::new(3, 3, F64, Key::new(1))?;
/// let (x, state) = (Tensor::randn([2, 3], F64, Key::new(2))?, Tensor::zeros([2, 3], F64)?);
/// let g = grad(&layer, |layer| {
///     let (y, _) = checkpoint_module(layer, (&x, &state), |layer, (x, state)| {
///         let state = layer.forward(&x.add(state)?)?.tanh()?;
///         Ok((state.square()?, state))
///     })?;
///     y.sum(..)
/// })?;
/// let plain = grad(&layer, |layer| layer.forward(&x.add(&state)?)?.tanh()?.square()?.sum(..))?;
/// assert_eq!(g.weight.to_vec::<f64>()?, plain.weight.to_vec::<f64>()?);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[track_caller]
pub fn checkpoint_module<M, I, Y, F>(module: &M, inputs: I, f: F) -> Result<Y>
where
    M: Module + Clone + Send + Sync + 'static,
    I: Inputs,
    Y: Module + Clone + Send + 'static,
    F: Fn(&M, &I::Trees) -> Result<Y> + Send + Sync + 'static,
{
    let mut trees = (module.clone(), inputs.trees());
    let given = tensors(&mut trees);
    detach(&mut trees);
    // The first run shows what the result looks like; the sweep's runs need not.
    let first: Arc<Mutex<Shell<Y>>> = Arc::default();
    let shell = Arc::clone(&first);
    let run = move |given: &[Tensor]| {
        let mut trees = trees.clone();
        replace(&mut trees, given.to_vec());
        let mut y = f(&trees.0, &trees.1)?;
        let list = tensors(&mut y);
        let mut shell = shell.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*shell, Shell::Wanted) {
            *shell = Shell::Seen(y);
        }
        Ok(list)
    };
    let outputs = checkpoint(&given.iter().collect::<Vec<_>>(), run)?;
    let seen = std::mem::replace(&mut *first.lock().unwrap_or_else(PoisonError::into_inner), Shell::Taken);
    match seen {
        Shell::Seen(mut y) => {
            replace(&mut y, outputs);
            Ok(y)
        }
        Shell::Wanted | Shell::Taken => Err(Error::tape("the checkpointed function was not run")),
    }
}

#[derive(Default)]
enum Shell<Y> {
    #[default]
    Wanted,
    Seen(Y),
    Taken,
}
