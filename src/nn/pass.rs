//! What a call of a model is for, and what it leaves behind.

use crate::error::Result;
use crate::module::{BufferUpdates, Module};
use crate::notice::notice;
use crate::rng::Key;
use std::sync::Once;

/// A pass through a model: whether it is one of training, with which key, and what it does to buffers.
///
/// Layers that behave otherwise in training take it: batch norms normalise by the batch then and note their running statistics, dropout
/// drops by the key. [`Layer::call_in`](super::Layer::call_in) passes it on through tuples, lists and [`Sequential`](super::Sequential);
/// a struct of one's own takes `pass: &mut Pass` in its `forward_in` and gives it to its layers. After the gradient,
/// [`update`](Pass::update) writes the statistics into the model; [`Loss::pass`](crate::train::Loss::pass) lets a trainer do it.
///
/// ```
/// use cotangent::{F32, Key, Module, Param, Tensor, module, value_and_grad};
/// use cotangent::nn::{BatchNorm2d, Conv2d, Layer, Linear, Pass};
///
/// #[derive(Clone)]
/// struct Net { conv: Conv2d, norm: BatchNorm2d, fc: Linear }
/// module!(Net { conv, norm, fc });
///
/// impl Net {
///     fn forward_in(&self, x: &Tensor, pass: &mut Pass) -> cotangent::Result<Tensor> {
///         let x = self.norm.forward_in(&self.conv.forward(x)?, pass)?.relu()?;
///         self.fc.forward(&x.mean([2, 3])?)
///     }
/// }
///
/// let key = Key::new(1);
/// let mut net = Net { conv: Conv2d::new(3, 4, [3, 3], F32, key)?, norm: BatchNorm2d::new(4, F32)?, fc: Linear::new(4, 2, F32, key)? };
/// let (x, y) = (Tensor::randn([8, 3, 6, 6], F32, key)?, Tensor::from_slice(&[0i64, 1, 0, 1, 0, 1, 0, 1], [8])?);
/// let mut pass = Pass::train();
/// let (_, grads) = value_and_grad(&net, |net| net.forward_in(&x, &mut pass)?.cross_entropy(&y))?;
/// pass.update(&mut net)?; // running mean and variance
/// assert!(net.norm.running_mean.to_vec::<f32>()?.iter().all(|&m| m != 0.0));
/// let scores = net.forward_in(&x, &mut Pass::eval())?;
/// # assert_eq!(scores.shape(), &[8, 2]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Pass {
    /// With a key, dropout is active. Layers that hold others give each a key of its own.
    pub key: Option<Key>,
    /// What buffers are to become.
    pub updates: BufferUpdates,
    training: bool,
}

impl Pass {
    /// A pass of training. Without a key ([`with_key`](Pass::with_key)), nothing is dropped.
    pub fn train() -> Self {
        Pass { key: None, updates: BufferUpdates::new(), training: true }
    }

    /// A pass of evaluation: running statistics, no dropout, no updates.
    pub fn eval() -> Self {
        Pass { key: None, updates: BufferUpdates::new(), training: false }
    }

    /// With this key for dropout.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Key>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Whether it is one of training.
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// Calls a part with a key of its own, the pass's folded with `place`, and gives its value.
    ///
    /// # Errors
    /// What the part returns.
    pub fn fold<T>(&mut self, place: u64, part: impl FnOnce(&mut Pass) -> Result<T>) -> Result<T> {
        let key = self.key;
        self.key = key.map(|k| k.fold(place));
        let value = part(self);
        self.key = key;
        value
    }

    /// Writes what the pass noted into the model ([`BufferUpdates::apply`]), and forgets it: a pass that is made once, before a loop, notes
    /// each step anew.
    ///
    /// # Errors
    /// As there; what was noted stays then.
    #[track_caller]
    pub fn update<M: Module + ?Sized>(&mut self, model: &mut M) -> Result<()> {
        self.updates.apply(model)?;
        self.updates = BufferUpdates::new();
        Ok(())
    }

    /// What was noted, for another to apply.
    pub(crate) fn into_updates(mut self) -> BufferUpdates {
        std::mem::take(&mut self.updates)
    }
}

impl From<Pass> for BufferUpdates {
    fn from(pass: Pass) -> Self {
        pass.into_updates()
    }
}

/// Running statistics that nobody writes are found out by the first evaluation, long after: the first time, one line says so.
impl Drop for Pass {
    fn drop(&mut self) {
        static SAID: Once = Once::new();
        if !self.updates.is_empty() && !std::thread::panicking() {
            SAID.call_once(|| {
                let what = "a pass of training was let go with running statistics that no model got: call `pass.update(&mut net)` after the \
                            gradient, or hand it to the trainer by `Loss::pass(pass)`";
                tracing::warn!("{what}");
                notice(format_args!("{what}"));
            });
        }
    }
}
