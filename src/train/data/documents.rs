//! Attention within documents, where a window holds several.

use crate::array::Array;
use crate::backend::Device;
use crate::dtype::DType;
use crate::error::{Result, bail};
use crate::tensor::Tensor;

/// Which positions may see which, when `separator` ends a document: `[batch, 1, time, time]` of `u8`, 1 where the key is in the
/// query's document and not after it. Goes to
/// [`scaled_dot_product_attention`](Tensor::scaled_dot_product_attention) as its mask; it is causal already.
///
/// ```
/// use cotangent::{Tensor, train::document_mask};
/// let tokens = Tensor::from_slice(&[5i64, 0, 6, 7], [1, 4])?; // two documents: 5 and its end, then 6 and 7
/// let mask = document_mask(&tokens, 0)?;
/// assert_eq!(mask.shape(), &[1, 1, 4, 4]);
/// assert_eq!(mask.to_vec::<u8>()?, [1, 0, 0, 0,  1, 1, 0, 0,  0, 0, 1, 0,  0, 0, 1, 1]);
/// # Ok::<(), cotangent::Error>(())
/// ```
///
/// # Errors
/// Shape error unless `tokens` is `[batch, time]`; dtype error unless it is `i64`; out of memory.
#[track_caller]
pub fn document_mask(tokens: &Tensor, separator: i64) -> Result<Tensor> {
    let at = std::panic::Location::caller();
    masked(tokens, separator).map_err(|e| e.in_op("document_mask", at))
}

fn masked(tokens: &Tensor, separator: i64) -> Result<Tensor> {
    let &[batch, time] = tokens.shape().dims() else {
        bail!(shape, "tokens must have shape [batch, time], found {}", tokens.shape());
    };
    let ids = ids_of("tokens", tokens)?;
    let fill = |mask: &mut [u8]| {
        mask.fill(0);
        for (row, ids) in mask.chunks_mut((time * time).max(1)).zip(ids.chunks(time.max(1))) {
            let mut start = 0;
            for (t, id) in ids.iter().enumerate() {
                row[t * time + start..=t * time + t].fill(1);
                if *id == separator {
                    start = t + 1;
                }
            }
        }
    };
    Ok(Tensor::from_array(Array::build([batch, 1, time, time].into(), Device::Cpu, fill)?))
}

/// Ids, by the name of the argument that has them.
pub(in crate::train) fn ids_of(what: &str, ids: &Tensor) -> Result<Vec<i64>> {
    if ids.dtype() != DType::I64 {
        bail!(dtype, "{what} are ids of i64, found {}{}", ids.dtype(), ids.shape());
    }
    ids.detach().to_vec::<i64>()
}
