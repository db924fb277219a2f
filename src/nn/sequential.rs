//! Layers in a row: tuples and lists where the types are known, `Sequential` where they are chosen at run time.

use super::conv::{Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d};
use super::layers::{Activation, Embedding, LayerNorm, Linear, RmsNorm};
use super::norms::{BatchNorm, GroupNorm, InstanceNorm};
use super::pass::Pass;
use super::plain::{AdaptiveAvgPool, AdaptiveMaxPool, AvgPool, Flatten, LocalResponseNorm, MaxPool, PixelShuffle, Upsample};
use crate::error::{Error, Result, bail};
use crate::module::{Module, Visitor};
use crate::rng::Key;
use crate::shape::up_to_twelve;
use crate::tensor::Tensor;

/// A layer from one tensor to one tensor. Tuples and lists of layers are layers that call theirs in turn.
///
/// ```
/// use cotangent::{F32, Key, Module, Tensor, nn::{Activation, Dropout, Layer, Linear}};
/// let net = (Linear::new(4, 8, F32, Key::new(1))?, Activation::Relu, Dropout { p: 0.1 }, Linear::new(8, 2, F32, Key::new(2))?);
/// assert_eq!(net.names(), ["0.weight", "0.bias", "3.weight", "3.bias"]);
/// let y = net.call(&Tensor::ones([5, 4], F32)?, Some(Key::new(3)))?; // with a key: training
/// assert_eq!(y.shape(), &[5, 2]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a layer",
    label = "not a `Layer`",
    note = "a function is one as `nn::Func(|x| x.relu())`; a struct of your own implements `Layer::call` beside `module!`",
    note = "tuples of up to twelve layers, `Vec`, arrays, `Option`, `Box` and `Sequential` of layers are layers; of more than twelve: tuples in a tuple",
    note = "a type parameter of a struct has its bounds in `module!` too: `module!(Net<L: Layer> {{ layer }})`"
)]
pub trait Layer: Module {
    /// The layer's value. With a key, dropout is active.
    ///
    /// # Errors
    /// What its ops return.
    #[track_caller]
    fn call(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor>;

    /// The layer's value in a [`Pass`]: of layers with running statistics, too. A struct of one's own with such a layer in it implements
    /// this beside [`call`](Layer::call), which it can express as `self.call_in(x, &mut Pass::eval())`.
    ///
    /// # Errors
    /// What its ops return.
    #[track_caller]
    fn call_in(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        self.call(x, pass.key)
    }

    /// How deep layers are nested: 1 for a layer that holds none. One that holds others adds 1 to the largest of theirs, so
    /// that [`Sequential`] can refuse what no stack holds.
    fn nesting(&self) -> usize {
        1
    }
}

/// Layers in one another, at most: a call, a walk and a drop go down one by one.
const DEEPEST: usize = 1000;

macro_rules! without_key {
    ($($type:ty),*) => {$(
        impl Layer for $type {
            fn call(&self, x: &Tensor, _: Option<Key>) -> Result<Tensor> {
                self.forward(x)
            }
        }
    )*};
}
without_key!(Linear, Embedding, LayerNorm, RmsNorm);
without_key!(GroupNorm, InstanceNorm);
without_key!(Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d);
without_key!(MaxPool<1>, MaxPool<2>, MaxPool<3>, AvgPool<1>, AvgPool<2>, AvgPool<3>);
without_key!(AdaptiveAvgPool<1>, AdaptiveAvgPool<2>, AdaptiveAvgPool<3>, AdaptiveMaxPool<1>, AdaptiveMaxPool<2>, AdaptiveMaxPool<3>);
without_key!(Upsample, PixelShuffle, LocalResponseNorm, Flatten);

/// Layers with running statistics: called by a pass, in evaluation by the running ones. A call with a key, which means training, is an
/// error: statistics of the batch have no way out of it.
macro_rules! layers_in_a_pass {
    ($($type:ty),*) => {$(
        impl $crate::nn::Layer for $type {
            fn call(&self, x: &$crate::Tensor, key: Option<$crate::Key>) -> $crate::Result<$crate::Tensor> {
                $crate::nn::sequential::refuse_key(key)?;
                self.forward_in(x, &mut $crate::nn::Pass::eval())
            }

            fn call_in(&self, x: &$crate::Tensor, pass: &mut $crate::nn::Pass) -> $crate::Result<$crate::Tensor> {
                self.forward_in(x, pass)
            }
        }
    )*};
}
pub(super) use layers_in_a_pass;
layers_in_a_pass!(BatchNorm);

pub(super) fn refuse_key(key: Option<Key>) -> Result<()> {
    if key.is_some() {
        bail!(
            argument,
            "batch_norm: in training its statistics must be kept: call the layers by `call_in` with a `Pass::train()`, and its `update` \
             afterwards; or use GroupNorm"
        );
    }
    Ok(())
}

impl Module for Activation {
    fn visit(&mut self, _: &mut Visitor<'_>) {}
}

impl Layer for Activation {
    fn call(&self, x: &Tensor, _: Option<Key>) -> Result<Tensor> {
        self.apply(x)
    }
}

/// Sets each element to zero with probability `p` when called with a key, and scales the others by `1/(1 − p)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of dropping an element.
    pub p: f64,
}
crate::module!(Dropout {} skip { p });

impl Dropout {
    /// The value in training (with a key), or as it is (without).
    ///
    /// # Errors
    /// Argument error when `p` is not a probability, with a key or without.
    #[track_caller]
    pub fn forward(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        if !(0.0..=1.0).contains(&self.p) {
            let text = format!("the dropout probability must be between 0 and 1, found {}", self.p);
            return Err(Error::argument(text).in_op("dropout", std::panic::Location::caller()));
        }
        match key {
            Some(key) if self.p != 0.0 => x.dropout(self.p, key),
            _ => Ok(x.clone()),
        }
    }
}

impl Layer for Dropout {
    fn call(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        self.forward(x, key)
    }
}

/// A function as a layer: it has no parameters, and the key is not passed on.
///
/// ```
/// use cotangent::{F32, Key, Tensor, nn::{Func, Layer, Linear}};
/// let net = (Linear::new(4, 8, F32, Key::new(1))?, Func(|x| x.relu()), Func(|x| x.reshape((2, 2, ()))), Func(Tensor::square));
/// assert_eq!(net.call(&Tensor::ones([2, 4], F32)?, None)?.shape(), &[2, 2, 4]);
///
/// // Where the type has to be written, it is that of a function pointer.
/// #[derive(Clone)]
/// struct Gate { layers: (Linear, Func<fn(&Tensor) -> cotangent::Result<Tensor>>) }
/// cotangent::module!(Gate { layers });
/// let gate = Gate { layers: (Linear::new(4, 8, F32, Key::new(2))?, Func(|x| x.softplus()?.neg())) };
/// assert_eq!(gate.layers.call(&Tensor::ones([2, 4], F32)?, None)?.shape(), &[2, 8]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Func<F: Fn(&Tensor) -> Result<Tensor>>(
    /// The function.
    pub F,
);

impl<F: Fn(&Tensor) -> Result<Tensor>> std::fmt::Debug for Func<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(std::any::type_name::<F>())
    }
}

impl<F: Fn(&Tensor) -> Result<Tensor>> Module for Func<F> {
    fn visit(&mut self, _: &mut Visitor<'_>) {}
}

impl<F: Fn(&Tensor) -> Result<Tensor>> Layer for Func<F> {
    fn call(&self, x: &Tensor, _: Option<Key>) -> Result<Tensor> {
        (self.0)(x)
    }
}

/// A layer around which its input is added: `x + inner(x)`. Its names are those of the inner layer.
#[derive(Clone, Debug)]
pub struct Residual<L> {
    /// The layer inside.
    pub inner: L,
}

impl<L: Module> Module for Residual<L> {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        let Self { inner } = self;
        inner.visit(v);
    }
}

impl<L: Layer> Layer for Residual<L> {
    fn call(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        x.add(&self.inner.call(x, key)?)
    }

    fn call_in(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        x.add(&self.inner.call_in(x, pass)?)
    }

    fn nesting(&self) -> usize {
        self.inner.nesting().saturating_add(1)
    }
}

impl<L: Layer + ?Sized> Layer for Box<L> {
    fn call(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        (**self).call(x, key)
    }

    fn call_in(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        (**self).call_in(x, pass)
    }

    fn nesting(&self) -> usize {
        (**self).nesting()
    }
}

impl<L: Layer> Layer for Option<L> {
    fn call(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        match self {
            Some(l) => l.call(x, key),
            None => Ok(x.clone()),
        }
    }

    fn call_in(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        match self {
            Some(l) => l.call_in(x, pass),
            None => Ok(x.clone()),
        }
    }

    fn nesting(&self) -> usize {
        self.as_ref().map_or(1, Layer::nesting)
    }
}

/// Calls layers one after the other. A refusal says which of them it was.
#[track_caller]
fn in_turn<'a, L: Layer + ?Sized + 'a>(layers: impl Iterator<Item = &'a L>, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
    let mut x = x.clone();
    for (i, l) in layers.enumerate() {
        x = place(l.call(&x, key.map(|k| k.fold(i as u64))), i)?;
    }
    Ok(x)
}

/// [`in_turn`] in a pass.
#[track_caller]
fn in_turn_in<'a, L: Layer + ?Sized + 'a>(layers: impl Iterator<Item = &'a L>, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
    let mut x = x.clone();
    for (i, l) in layers.enumerate() {
        x = place(pass.fold(i as u64, |pass| l.call_in(&x, pass)), i)?;
    }
    Ok(x)
}

fn place(y: Result<Tensor>, i: usize) -> Result<Tensor> {
    y.map_err(|e| e.in_layer(i))
}

impl<L: Layer> Layer for Vec<L> {
    fn call(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        in_turn(self.iter(), x, key)
    }

    fn call_in(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        in_turn_in(self.iter(), x, pass)
    }

    fn nesting(&self) -> usize {
        self.iter().map(Layer::nesting).max().unwrap_or(0).saturating_add(1)
    }
}

impl<L: Layer, const N: usize> Layer for [L; N] {
    fn call(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        in_turn(self.iter(), x, key)
    }

    fn call_in(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        in_turn_in(self.iter(), x, pass)
    }
}

macro_rules! tuples {
    ($(($($L:ident $i:tt),+);)*) => {$(
        impl<$($L: Layer),+> Layer for ($($L,)+) {
            fn call(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
                let x = x.clone();
                $(let x = place(self.$i.call(&x, key.map(|k| k.fold($i))), $i)?;)+
                Ok(x)
            }

            fn call_in(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
                let x = x.clone();
                $(let x = place(pass.fold($i, |pass| self.$i.call_in(&x, pass)), $i)?;)+
                Ok(x)
            }

            fn nesting(&self) -> usize {
                [$(self.$i.nesting()),+].into_iter().max().unwrap_or(0).saturating_add(1)
            }
        }
    )*};
}
up_to_twelve!(tuples);

/// A layer of any type that can be cloned: what a [`Sequential`] holds. Implemented by every such layer.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a layer for a `Sequential`",
    label = "not a `Layer` that can be cloned and sent",
    note = "a function is one as `nn::Func(|x| x.relu())`; a struct of your own implements `Layer::call` beside `module!`, and is `Clone`"
)]
pub trait AnyLayer: Layer + Send + Sync {
    /// A clone in a box.
    fn boxed(&self) -> Box<dyn AnyLayer>;
}

impl<L: Layer + Clone + Send + Sync + 'static> AnyLayer for L {
    fn boxed(&self) -> Box<dyn AnyLayer> {
        Box::new(self.clone())
    }
}

/// Layers whose number and types are chosen at run time, called in turn.
///
/// ```
/// use cotangent::{F32, Key, Module, Tensor, nn::{Activation, Layer, Linear, Sequential}};
/// let mut net = Sequential::new();
/// for (i, (inputs, outputs)) in [(4, 8), (8, 8), (8, 2)].into_iter().enumerate() {
///     net = net.push(Linear::no_bias(inputs, outputs, F32, Key::new(i as u64))?).push(Activation::Silu);
/// }
/// assert_eq!(net.names(), ["0.weight", "2.weight", "4.weight"]);
/// assert_eq!(net.call(&Tensor::ones([5, 4], F32)?, None)?.shape(), &[5, 2]);
/// # Ok::<(), cotangent::Error>(())
/// ```
///
/// Layers are nested at most 1000 deep: what a further `push` would nest is let go, and calls are errors that say so.
#[derive(Default)]
pub struct Sequential {
    layers: Vec<Box<dyn AnyLayer>>,
    /// Of this and all that it holds.
    nesting: usize,
}

impl Sequential {
    /// No layers: the identity.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more layer at the end, called by its number.
    #[must_use]
    pub fn push(mut self, layer: impl AnyLayer + 'static) -> Self {
        self.nesting = self.nesting.max(layer.nesting().saturating_add(1));
        if self.nesting <= DEEPEST {
            self.layers.push(Box::new(layer));
        }
        self
    }

    /// Number of layers.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    fn check_nesting(&self) -> Result<()> {
        if self.nesting > DEEPEST {
            bail!(argument, "sequential: layers are nested more than {DEEPEST} deep");
        }
        Ok(())
    }
}

impl Clone for Sequential {
    fn clone(&self) -> Self {
        Sequential { layers: self.layers.iter().map(|l| (**l).boxed()).collect(), nesting: self.nesting }
    }
}

impl std::fmt::Debug for Sequential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sequential").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Module for Sequential {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        let Self { layers, nesting: _ } = self;
        for (i, l) in layers.iter_mut().enumerate() {
            v.field(&i.to_string(), &mut **l);
        }
    }
}

impl Layer for Sequential {
    fn call(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        self.check_nesting()?;
        in_turn(self.layers.iter().map(|l| &**l), x, key)
    }

    fn call_in(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        self.check_nesting()?;
        in_turn_in(self.layers.iter().map(|l| &**l), x, pass)
    }

    fn nesting(&self) -> usize {
        self.nesting.max(1)
    }
}
