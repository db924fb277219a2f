//! Keys and values of the past, for generation token by token.

use crate::backend::{Device, cuda};
use crate::dtype::with_float;
use crate::error::{Result, bail};
use crate::tensor::Tensor;

/// Positions that memory is taken for at a time.
const BLOCK: usize = 128;

/// Keys and values that an attention layer has seen: `[batch, kv_heads, time, head]`, keys after their rotation.
///
/// One for each layer; starts empty. Memory is taken for blocks of positions, and new ones are written into it in place; while a tape
/// tracks them, appending copies what is there.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    past: Option<Past>,
    /// Positions to take memory for at once.
    reserve: usize,
    /// Where the next position goes, in device memory: then all that there is room for is given, and a mask hides what is not there.
    at: Option<Tensor>,
}

/// Memory for more positions than are kept.
#[derive(Clone, Debug)]
struct Past {
    k: Tensor,
    v: Tensor,
    len: usize,
}

impl Past {
    fn capacity(&self) -> usize {
        self.k.shape()[2]
    }

    /// Keys and values of the positions that are kept.
    fn kept(&self) -> Result<(Tensor, Tensor)> {
        if self.len == self.capacity() {
            return Ok((self.k.clone(), self.v.clone()));
        }
        Ok((self.k.narrow(2, 0, self.len)?, self.v.narrow(2, 0, self.len)?))
    }
}

impl KvCache {
    /// An empty one that takes memory for so many positions at its first use.
    pub fn with_capacity(positions: usize) -> Self {
        KvCache { past: None, reserve: positions, at: None }
    }

    /// Memory for a fixed number of positions, in which the next ones go where `at` (one `i64` on the device) says.
    pub(crate) fn fixed(k: Tensor, v: Tensor, at: Tensor) -> Self {
        KvCache { reserve: 0, past: Some(Past { len: k.shape()[2], k, v }), at: Some(at) }
    }

    /// The memory of keys and of values.
    pub(crate) fn into_memory(self) -> Option<(Tensor, Tensor)> {
        self.past.map(|p| (p.k, p.v))
    }

    /// Whether it gives all that there is room for.
    pub(crate) fn is_fixed(&self) -> bool {
        self.at.is_some()
    }

    /// Number of positions kept.
    pub fn len(&self) -> usize {
        self.past.as_ref().map_or(0, |p| p.len)
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keys and values, if there are any.
    ///
    /// # Errors
    /// Tape error when the cache was filled inside a gradient function that has ended.
    pub fn get(&self) -> Result<Option<(Tensor, Tensor)>> {
        self.past.as_ref().map(Past::kept).transpose()
    }

    /// Adds the keys and values of new positions at the end, and gives all.
    ///
    /// # Errors
    /// Shape or dtype error when they do not continue what is kept; out of memory. It is unchanged then.
    #[track_caller]
    pub fn append(&mut self, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
        let at = std::panic::Location::caller();
        // The parts inside would name themselves, and lines of this file.
        self.appended(k, v).map_err(|e: crate::Error| e.rename_op("kv_cache").called_at(at))
    }

    fn appended(&mut self, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
        if k.rank() != 4 || v.rank() != 4 || k.shape()[..3] != v.shape()[..3] {
            bail!(shape, "expected keys and values [batch, heads, time, head], found {} and {}", k.shape(), v.shape());
        }
        let by_copy = k.is_tracked() || v.is_tracked() || self.past.as_ref().is_some_and(|p| p.k.is_tracked() || p.v.is_tracked());
        if by_copy {
            let (k, v) = match &self.past {
                None => (k, v),
                Some(past) => {
                    let (old_k, old_v) = past.kept()?;
                    (Tensor::concat(&[&old_k, &k], 2)?, Tensor::concat(&[&old_v, &v], 2)?)
                }
            };
            self.past = Some(Past { len: k.shape()[2], k: k.clone(), v: v.clone() });
            return Ok((k, v));
        }
        if let Some(past) = &self.past {
            for (old, new) in [(&past.k, &k), (&past.v, &v)] {
                let fits = (0..4).all(|i| i == 2 || old.shape()[i] == new.shape()[i]);
                if old.device() != new.device() {
                    bail!(device, "the new positions are on {}, those that are kept on {}", new.device(), old.device());
                }
                if !fits || old.dtype() != new.dtype() {
                    let (a, b) = (old.shape().with_dim(2, past.len), new.shape());
                    bail!(shape, "{} {b} does not continue {} {a}", new.dtype(), old.dtype());
                }
            }
        }
        if let (Some(at), Some(past)) = (&self.at, &mut self.past) {
            write(&mut past.k, 0, Some(at), &k)?;
            write(&mut past.v, 0, Some(at), &v)?;
            return Ok((past.k.clone(), past.v.clone()));
        }
        let (start, time) = (self.len(), k.shape()[2]);
        let Some(end) = start.checked_add(time) else { bail!(out_of_memory, "{start} + {time} positions exceed the address space") };
        if self.past.as_ref().is_none_or(|p| p.capacity() < end) {
            let Some(capacity) = end.max(self.reserve).checked_next_multiple_of(BLOCK) else {
                bail!(out_of_memory, "memory for {} positions exceeds the address space", end.max(self.reserve));
            };
            let grown = |old: Option<&Tensor>, new: &Tensor| {
                let mut memory = Tensor::full_on(new.shape().with_dim(2, capacity), 0.0, new.dtype(), new.device())?;
                if let Some(old) = old {
                    write(&mut memory, 0, None, &old.narrow(2, 0, start)?)?;
                }
                Ok::<_, crate::Error>(memory)
            };
            let (k, v) = (grown(self.past.as_ref().map(|p| &p.k), &k)?, grown(self.past.as_ref().map(|p| &p.v), &v)?);
            self.past = Some(Past { k, v, len: start });
        }
        let Some(past) = &mut self.past else { bail!(argument, "the cache has no memory") };
        write(&mut past.k, start, None, &k)?;
        write(&mut past.v, start, None, &v)?;
        past.len = end;
        past.kept()
    }

    /// Forgets all positions from `len` on.
    ///
    /// # Errors
    /// Index error when there are fewer, and nothing is changed then; tape error when the cache was filled inside a gradient function that has ended.
    #[track_caller]
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.len() {
            let text = format!("it has {} positions: it cannot be cut to {len}", self.len());
            return Err(crate::Error::index(text).in_op("kv_cache", std::panic::Location::caller()));
        }
        if len == 0 {
            self.past = None;
        } else if let Some(past) = &mut self.past {
            past.len = len;
            if past.k.is_tracked() {
                // Their next append copies all that is there.
                let (k, v) = past.kept()?;
                *past = Past { k, v, len: past.len };
            }
        }
        Ok(())
    }
}

/// Writes `new` into the positions from `start` (on a device: plus `at`) on, in place unless a view of the memory is still alive.
pub(crate) fn write(memory: &mut Tensor, start: usize, at: Option<&Tensor>, new: &Tensor) -> Result<()> {
    let (capacity, head, time) = (memory.shape()[2], memory.shape()[3], new.shape()[2]);
    if time == 0 || head == 0 {
        return Ok(());
    }
    if memory.device() != Device::Cpu {
        let at = at.map(|a| a.array.cuda()).transpose()?;
        return cuda::index::put(memory.own_cuda()?, &new.array.cuda()?, at.as_ref(), start, capacity, head);
    }
    with_float!(new.dtype(), T => {
        let rows = new.array.cpu()?.contiguous::<T>()?;
        memory.update::<T>(|all| {
            for (to, from) in all.chunks_exact_mut(capacity * head).zip(rows.chunks_exact(time * head)) {
                to[start * head..(start + time) * head].copy_from_slice(from);
            }
        })
    })
}
