//! Keys and values of the past, for generation token by token.

use crate::error::{Result, bail};
use crate::tensor::Tensor;

/// Keys and values that an attention layer has seen: `[batch, kv_heads, time, head]`, keys after their rotation.
///
/// One for each layer; starts empty. Appending copies what is there.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    past: Option<(Tensor, Tensor)>,
}

impl KvCache {
    /// Number of positions kept.
    pub fn len(&self) -> usize {
        self.past.as_ref().map_or(0, |(k, _)| k.shape()[2])
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keys and values, if there are any.
    pub fn get(&self) -> Option<(&Tensor, &Tensor)> {
        self.past.as_ref().map(|(k, v)| (k, v))
    }

    /// Adds the keys and values of new positions at the end, and gives all.
    ///
    /// # Errors
    /// Shape or dtype error when they do not continue what is kept; it is unchanged then.
    #[track_caller]
    pub fn append(&mut self, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
        let at = std::panic::Location::caller();
        let run = || {
            if k.rank() != 4 || v.rank() != 4 || k.shape()[..3] != v.shape()[..3] {
                bail!(shape, "expected keys and values [batch, heads, time, head], found {} and {}", k.shape(), v.shape());
            }
            match &self.past {
                None => Ok((k, v)),
                Some((old_k, old_v)) => Ok((Tensor::concat(&[old_k, &k], 2)?, Tensor::concat(&[old_v, &v], 2)?)),
            }
        };
        let all = run().map_err(|e: crate::Error| e.in_op("kv_cache", at))?;
        self.past = Some(all.clone());
        Ok(all)
    }

    /// Forgets all positions from `len` on; nothing when there are fewer.
    ///
    /// # Errors
    /// Tape error when the cache was filled inside a gradient function that has ended.
    #[track_caller]
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len == 0 {
            self.past = None;
        } else if let Some((k, v)) = &self.past
            && len < k.shape()[2]
        {
            self.past = Some((k.narrow(2, 0, len)?, v.narrow(2, 0, len)?));
        }
        Ok(())
    }
}
