//! Names of PyTorch's own layers, where they differ from this crate's.

use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::panic::Location;

/// A state dict of PyTorch's layers under the names of this crate's, for [`load_named`](crate::Module::load_named).
///
/// | PyTorch | here |
/// |---|---|
/// | `A.in_proj_weight [3·width, width]` of an `nn.MultiheadAttention` | `A.q_proj.weight`, `A.k_proj.weight`, `A.v_proj.weight`: its thirds |
/// | `A.in_proj_bias [3·width]` | `A.q_proj.bias`, `A.k_proj.bias`, `A.v_proj.bias` |
/// | `A.q_proj_weight`, `A.k_proj_weight`, `A.v_proj_weight` (other widths of keys) | `A.q_proj.weight`, … |
/// | `A.out_proj.weight`, `A.out_proj.bias` beside them | `A.o_proj.weight`, `A.o_proj.bias` |
///
/// All other names are equal: `nn.Linear`, `nn.Embedding`, `nn.LayerNorm`, `nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells, and the layers of
/// `nn.Transformer` around attention.
///
/// ```
/// use cotangent::{F32, Tensor, nn::from_torch};
/// let dict = [("attn.in_proj_weight", vec![12, 4]), ("attn.out_proj.weight", vec![4, 4]), ("head.out_proj.weight", vec![2, 4])];
/// let dict = dict.into_iter().map(|(n, s)| Ok((n.to_owned(), Tensor::zeros(s, F32)?))).collect::<cotangent::Result<_>>()?;
/// let names: Vec<String> = from_torch(dict)?.into_keys().collect();
/// assert_eq!(names, ["attn.k_proj.weight", "attn.o_proj.weight", "attn.q_proj.weight", "attn.v_proj.weight", "head.out_proj.weight"]);
/// # Ok::<(), cotangent::Error>(())
/// ```
///
/// # Errors
/// Shape error when an `in_proj` does not have three equal parts; argument error when two tensors get one name.
#[track_caller]
pub fn from_torch(tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let at = Location::caller();
    rename(&tensors).map_err(|e| e.in_op("from_torch", at).called_at(at))
}

fn rename(tensors: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let mut out = BTreeMap::new();
    let mut put = |name: String, t: Tensor| match out.insert(name.clone(), t) {
        None => Ok(()),
        Some(_) => Err(Error::argument(format!("two tensors are called `{name}` here"))),
    };
    // (path with its dot, last name)
    let split = |name: &str, ending: &str| name.strip_suffix(ending).filter(|p| p.is_empty() || p.ends_with('.')).map(str::to_owned);
    let is_attention = |path: &str| ["in_proj_weight", "q_proj_weight"].iter().any(|n| tensors.contains_key(&format!("{path}{n}")));
    for (name, t) in tensors {
        if let Some((path, kind)) = ["weight", "bias"].iter().find_map(|k| split(name, &format!("in_proj_{k}")).map(|p| (p, k))) {
            if t.rank() == 0 || !t.shape()[0].is_multiple_of(3) {
                return Err(Error::shape(format!(
                    "`{name}` has shape {}: it does not split into three equal parts for queries, keys and values",
                    t.shape()
                )));
            }
            for (part, third) in ["q", "k", "v"].iter().zip(t.chunk(3, 0)?) {
                put(format!("{path}{part}_proj.{kind}"), third)?;
            }
        } else if let Some((path, part)) = ["q", "k", "v"].iter().find_map(|k| split(name, &format!("{k}_proj_weight")).map(|p| (p, k))) {
            put(format!("{path}{part}_proj.weight"), t.clone())?;
        } else {
            let own = ["weight", "bias"].iter().find_map(|k| split(name, &format!("out_proj.{k}")).map(|p| (p, k)));
            match own.filter(|(path, _)| is_attention(path)) {
                Some((path, kind)) => put(format!("{path}o_proj.{kind}"), t.clone())?,
                None => put(name.clone(), t.clone())?,
            }
        }
    }
    Ok(out)
}
