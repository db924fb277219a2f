//! A look at a model's weights: values that were drawn twice, and that are not finite.

use crate::dtype::DType;
use crate::error::Result;
use crate::module::{Module, Role, walk};
use crate::tensor::Tensor;
use std::fmt;

/// Two parameters with the same values, or values in one proportion.
#[derive(Clone, Debug, PartialEq)]
pub struct Twin {
    /// The parameter visited first.
    pub first: String,
    /// The other.
    pub second: String,
    /// They are clones of one tensor.
    pub shared: bool,
    /// The second's values are the first's times this.
    pub factor: f64,
}

/// What [`review`] found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Review {
    /// Parameters whose values were drawn from one key, or are copies.
    pub twins: Vec<Twin>,
    /// Parameters and buffers with values that are NaN or infinite, and how many: as of a file that was saved after a run had gone wrong.
    pub not_finite: Vec<(String, usize)>,
}

impl Review {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.twins.is_empty() && self.not_finite.is_empty()
    }
}

impl fmt::Display for Review {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() {
            return write!(f, "no two parameters have the same values, and all are finite");
        }
        let lines = self.not_finite.len() + self.twins.len();
        for (i, (name, n)) in self.not_finite.iter().enumerate() {
            write!(f, "`{name}` has {n} values that are NaN or infinite{}", if i + 1 == lines { "" } else { "\n" })?;
        }
        for (i, t) in self.twins.iter().enumerate() {
            let end = if self.not_finite.len() + i + 1 == lines { "" } else { "\n" };
            let Twin { first, second, .. } = t;
            match t.shared {
                true => write!(
                    f,
                    "`{first}` and `{second}` are clones of one tensor: training moves each by itself; a tied weight is one field{end}"
                )?,
                false if t.factor == 1.0 => write!(f, "`{first}` and `{second}` begin with the same values: was one key used twice?{end}")?,
                false => write!(f, "`{second}` begins with {:.4} times the values of `{first}`: was one key used twice?{end}", t.factor)?,
            }
        }
        Ok(())
    }
}

/// Looks for parameters that begin with the same random values, by a key that was used twice or a layer that was cloned; and for values
/// that are not finite, in buffers too.
///
/// For the first, reads the first values of each parameter. Constant ones (zeros of a bias, ones of a norm), and those of fewer than eight elements are not
/// judged; nor are buffers. Copies that are meant, as of a target network, are listed too.
///
/// ```
/// use cotangent::{F32, Key, Rng, diagnostics::review, nn::Linear};
/// let layer = |key| Linear::new(4, 4, F32, key);
/// let found = review(&(layer(Key::new(1))?, layer(Key::new(1))?))?;
/// assert_eq!(found.to_string().lines().next(), Some("`0.weight` and `1.weight` begin with the same values: was one key used twice?"));
/// let mut rng = Rng::seed(1);
/// assert!(review(&(layer(rng.next_key())?, layer(rng.next_key())?))?.is_clean());
/// # Ok::<(), cotangent::Error>(())
/// ```
///
/// # Errors
/// Device error; out of memory.
#[track_caller]
pub fn review<M: Module + Clone>(model: &M) -> Result<Review> {
    let at = std::panic::Location::caller();
    run(model).map_err(|e| e.in_op("review", at))
}

/// Values of each parameter that are looked at, at most.
const LOOKED_AT: usize = 64;
/// Values that are needed for a verdict.
const NEEDED: usize = 8;

fn run<M: Module + Clone>(model: &M) -> Result<Review> {
    let mut all: Vec<(String, Tensor)> = Vec::new();
    let mut floats: Vec<(String, Tensor)> = Vec::new();
    walk(&mut model.clone(), |name, leaf| {
        if leaf.tensor.dtype().is_float() {
            floats.push((name.to_owned(), leaf.tensor.untracked()));
        }
        if matches!(leaf.role(), Role::Trainable | Role::Frozen) && leaf.tensor.numel() >= NEEDED {
            all.push((name.to_owned(), leaf.tensor.untracked()));
        }
    });
    let mut not_finite = Vec::new();
    for (name, t) in floats {
        // A value that is not finite is not itself minus itself.
        let n = t.sub(&t)?.ne_scalar(0.0)?.cast(DType::F64)?.sum(..)?.item()?;
        if n > 0.0 {
            not_finite.push((name, n as usize));
        }
    }
    let mut values: Vec<(usize, Vec<f64>)> = Vec::new();
    for (i, (_, t)) in all.iter().enumerate() {
        let n = t.numel().min(LOOKED_AT);
        let v = t.reshape(t.numel())?.narrow(0, 0, n)?.to_f64_vec()?;
        let mut distinct = v.clone();
        distinct.sort_by(f64::total_cmp);
        distinct.dedup();
        // Zeros, ones, the corner of an identity: nothing that was drawn.
        if distinct.len() > 2 {
            values.push((i, v));
        }
    }
    let mut twins = Vec::new();
    for (k, (j, b)) in values.iter().enumerate() {
        // The first one that is alike represents the others.
        let twin = values[..k].iter().find_map(|(i, a)| factor(a, b, &all[*i].1, &all[*j].1).map(|f| (i, f)));
        if let Some((i, factor)) = twin {
            let ((first, a), (second, b)) = (&all[*i], &all[*j]);
            twins.push(Twin { first: first.clone(), second: second.clone(), shared: a.shares_storage(b), factor });
        }
    }
    Ok(Review { twins, not_finite })
}

/// What `b` is of `a` in the values that both have, if it is one number.
fn factor(a: &[f64], b: &[f64], whole_a: &Tensor, whole_b: &Tensor) -> Option<f64> {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    if a == b {
        return Some(1.0);
    }
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let factor = dot(a, b) / dot(a, a);
    let largest = b.iter().fold(0f64, |m, x| m.max(x.abs()));
    // Each was rounded once to its own dtype, around bounds that differ.
    let tolerance = if whole_a.dtype().is_half() || whole_b.dtype().is_half() { 1e-2 } else { 1e-5 };
    let alike = factor > 0.0 && factor.is_finite() && a.iter().zip(b).all(|(x, y)| (y - factor * x).abs() <= tolerance * largest);
    alike.then_some(if (factor - 1.0).abs() < tolerance { 1.0 } else { factor })
}
