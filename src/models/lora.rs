//! Fine-tuning by changes of low rank (LoRA, Hu et al. 2021).

use crate::dtype::{DType, F32};
use crate::error::{Error, Result, bail};
use crate::memory;
use crate::module::{LowRank, Module, tensors_of, try_walk};
use crate::rng::Key;
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// How changes of low rank are made; the default is rank 8 with a scale of 2, in `f32`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lora {
    /// Rank of the change.
    pub rank: usize,
    /// The change is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// Of the new parameters; the matrices keep theirs.
    pub dtype: DType,
    /// Draws the first values.
    pub key: Key,
}

impl Default for Lora {
    fn default() -> Self {
        Lora { rank: 8, alpha: 16.0, dtype: F32, key: Key::new(0) }
    }
}

/// Freezes a model, and puts a trainable change of low rank beside every matrix that `of` says. The model computes the same as before,
/// since each change is zero at first. Gives the number of matrices.
///
/// Frozen matrices are not watched: they get no gradient, and no memory for one.
///
/// ```
/// use cotangent::{F32, Key, Module, Tensor, models::{Lora, add_lora, merge_lora}, nn::Linear, optim::AdamW, value_and_grad};
/// let mut layer = Linear::new(6, 4, F32, Key::new(1))?;
/// let x = Tensor::randn([5, 6], F32, Key::new(2))?;
/// let before = layer.forward(&x)?;
/// assert_eq!(add_lora(&mut layer, Lora { rank: 2, ..Lora::default() }, |name, _| name == "weight")?, 1);
/// assert_eq!(layer.trainable().iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["weight.lora_a", "weight.lora_b"]);
/// let mut adam = AdamW { lr: 0.1, ..AdamW::default() };
/// for _ in 0..3 {
///     let (_, grads) = value_and_grad(&layer, |l| l.forward(&x)?.square()?.mean(..))?;
///     adam.step(&mut layer, &grads)?;
/// }
/// let plain = merge_lora(&layer)?; // to be saved: the names are those of before
/// assert_eq!(plain.names(), ["weight", "bias"]);
/// let (a, b) = (plain.forward(&x)?, layer.forward(&x)?);
/// assert!(a.sub(&b)?.abs()?.max(..)?.item()? < 1e-5 && b.sub(&before)?.abs()?.max(..)?.item()? > 0.1);
/// # Ok::<(), cotangent::Error>(())
/// ```
///
/// # Errors
/// Argument error when the rank is 0 or larger than a matrix, the scale is not finite, nothing matches, what matches is no matrix, or a
/// change is there already; dtype error for integers; out of memory.
#[track_caller]
pub fn add_lora<M: Module>(model: &mut M, options: Lora, of: impl Fn(&str, &Tensor) -> bool) -> Result<usize> {
    let at = std::panic::Location::caller();
    add(model, options, &of).map_err(|e| e.in_op("add_lora", at))
}

fn add(model: &mut dyn Module, o: Lora, of: &dyn Fn(&str, &Tensor) -> bool) -> Result<usize> {
    if o.rank == 0 || !o.alpha.is_finite() || !o.dtype.is_float() {
        bail!(argument, "rank must be at least 1, alpha finite and the dtype a float; found {}, {}, {}", o.rank, o.alpha, o.dtype);
    }
    let mut made = BTreeMap::new();
    try_walk(model, |name, leaf| {
        if name.ends_with(".lora_a") || name.ends_with(".lora_b") {
            bail!(argument, "`{name}` is there already: merge it first");
        }
        if !of(name, leaf.tensor) {
            return Ok(());
        }
        if !leaf.tensor.dtype().is_float() {
            bail!(argument, "`{name}` is of {}: a change of low rank needs floats", leaf.tensor.dtype());
        }
        let &[rows, columns] = leaf.tensor.shape().dims() else {
            bail!(argument, "`{name}` is {}, no matrix", leaf.tensor.shape());
        };
        if o.rank > rows.min(columns) {
            bail!(argument, "a change of rank {} to `{name}`, which is {}, would be no smaller", o.rank, leaf.tensor.shape());
        }
        // The usual bound of a linear layer's first weights, on the side of the columns; the other side is zero.
        let bound = 1.0 / (columns as f64).sqrt();
        let device = leaf.tensor.device();
        let a = Tensor::uniform([o.rank, columns], -bound..bound, o.dtype, o.key.fold(made.len() as u64))?.to_device(device)?;
        let b = Tensor::zeros([rows, o.rank], o.dtype)?.to_device(device)?;
        made.insert(name.to_owned(), LowRank { a: a.into(), b: b.into(), scale: o.alpha / o.rank as f64 });
        Ok(())
    })?;
    if made.is_empty() {
        let names = tensors_of(model, false);
        bail!(argument, "no parameter of the model matches; it has: {}", memory::some(names.iter().map(|(name, _)| name.as_str())));
    }
    let count = made.len();
    try_walk(model, |name, mut leaf| {
        if let Some(change) = made.remove(name) {
            leaf.replace_low_rank(Some(change))?;
        } else if name.ends_with(".lora_a") || name.ends_with(".lora_b") {
            return Ok(()); // put there just now
        }
        if !leaf.set_frozen(true) && leaf.is_trainable() {
            return Err(Error::argument(format!("`{name}` is a plain tensor, which cannot be frozen: make it a `Param`")));
        }
        Ok(())
    })?;
    Ok(count)
}

/// The same model with every change of low rank added to its matrix, which is rounded once to its own dtype. Everything is trainable again.
///
/// # Errors
/// Out of memory.
#[track_caller]
pub fn merge_lora<M: Module + Clone>(model: &M) -> Result<M> {
    let at = std::panic::Location::caller();
    let mut out = model.clone();
    let merged = try_walk(&mut out, |_, mut leaf| {
        leaf.set_frozen(false);
        if let Ok(Some(change)) = leaf.replace_low_rank(None) {
            let wide = change.a.dtype();
            let delta = change.b.matmul(&change.a)?.mul_scalar(change.scale)?;
            *leaf.tensor = leaf.tensor.cast(wide)?.add(&delta)?.cast(leaf.tensor.dtype())?;
        }
        Ok(())
    });
    merged.map_err(|e| e.rename_op("merge_lora").called_at(at))?;
    debug_assert_eq!(out.names().iter().filter(|n| n.contains(".lora_")).count(), 0);
    Ok(out)
}
