//! Device memory that is recycled: freed blocks wait by size and are handed out again in the order of the queue.
//!
//! All work of a device goes through one queue, so a block that was freed on the host while kernels still use it can be
//! reused at once: what is queued later runs later. A training step finds every block it needs after the first step, at
//! the same addresses.

use super::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Device memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Held by live tensors.
    pub allocated: usize,
    /// Highest `allocated` so far.
    pub peak: usize,
    /// Taken from the device: held by tensors or waiting for reuse.
    pub reserved: usize,
    /// How many blocks were ever taken from the device; constant in a steady training loop.
    pub fresh_blocks: usize,
}

#[derive(Debug, Default)]
pub(super) struct Pool {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    free: BTreeMap<usize, Vec<u64>>,
    stats: DeviceMemory,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No operation leaves the state half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stats(&self) -> DeviceMemory {
        self.lock().stats
    }
}

/// Blocks are multiples of 512 bytes, and of an eighth of the power of two above: at most an eighth is wasted. An
/// emulated block is exact, so that the first byte beyond it is guarded.
fn block_size(bytes: usize, exact: bool) -> Option<usize> {
    if exact {
        return bytes.checked_next_multiple_of(16);
    }
    let step = (bytes.checked_next_power_of_two()? / 8).max(512);
    bytes.checked_next_multiple_of(step)
}

/// Typed device memory of a fixed length; returns to the pool when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    on: &'static Context,
    addr: u64,
    bytes: usize,
    dtype: DType,
    len: usize,
}

impl Buffer {
    pub(super) fn alloc(on: &'static Context, dtype: DType, len: usize) -> Result<Self> {
        let mut buffer = Buffer { on, addr: 0, bytes: 0, dtype, len };
        if len == 0 {
            return Ok(buffer);
        }
        let oom = || Error::out_of_memory(format!("{len} elements of {dtype} exceed the address space"));
        let wanted = len.checked_mul(dtype.size()).ok_or_else(oom)?;
        let bytes = block_size(wanted, on.is_emulated()).ok_or_else(oom)?;
        let pool = on.pool();
        let cached = pool.lock().free.get_mut(&bytes).and_then(Vec::pop);
        buffer.addr = match cached {
            Some(addr) => addr,
            None => {
                let addr = match on.driver().alloc(bytes) {
                    Ok(addr) => addr,
                    // Blocks of other sizes may be in the way: give them back and try once more.
                    Err(e) if e.is_out_of_memory() => {
                        release(on)?;
                        on.driver().alloc(bytes).map_err(|e| {
                            let s = pool.stats();
                            Error::out_of_memory(format!(
                                "cannot allocate {bytes} bytes on {}: {} bytes are held by tensors, the device has {} ({e})",
                                on.device(),
                                s.allocated,
                                on.driver().properties().memory
                            ))
                        })?
                    }
                    Err(e) => return Err(e),
                };
                let mut state = pool.lock();
                state.stats.reserved += bytes;
                state.stats.fresh_blocks += 1;
                addr
            }
        };
        buffer.bytes = bytes;
        let mut state = pool.lock();
        state.stats.allocated += bytes;
        state.stats.peak = state.stats.peak.max(state.stats.allocated);
        drop(state);
        if crate::backend::cpu::is_poisoning() {
            // All bits set: NaN in every float type, the largest or -1 in integers.
            // SAFETY: the block was just allocated with this size and nothing else uses it.
            unsafe { on.driver().fill(buffer.addr, bytes, 0xff)? };
        }
        Ok(buffer)
    }

    pub(crate) fn context(&self) -> &'static Context {
        self.on
    }

    pub(crate) fn addr(&self) -> u64 {
        self.addr
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Copies the elements from the host; one value per element.
    ///
    /// # Panics
    /// If the type or the length differs: a bug in the crate.
    pub(crate) fn upload<T: crate::dtype::Element>(&mut self, data: &[T]) -> Result<()> {
        assert!(T::DTYPE == self.dtype && data.len() == self.len, "upload of another type or length");
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: element types are plain numbers without padding, so their memory may be read as bytes.
        let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), size_of_val(data)) };
        // SAFETY: the block holds `len` elements of this type, and `&mut self` makes the write exclusive.
        unsafe { self.on.driver().upload(self.addr, bytes) }
    }

    /// Copies all elements to the host; waits for queued work.
    ///
    /// # Panics
    /// If the type differs: a bug in the crate.
    pub(crate) fn download<T: crate::dtype::Element>(&self) -> Result<Vec<T>> {
        assert_eq!(T::DTYPE, self.dtype, "download of another type");
        let mut data = vec![T::default(); self.len];
        if self.len == 0 {
            return Ok(data);
        }
        // SAFETY: every bit pattern is valid for the seven element types, and the vector owns this memory.
        let bytes = unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast::<u8>(), self.len * size_of::<T>()) };
        // SAFETY: the block holds `len` elements of this type.
        unsafe { self.on.driver().download(bytes, self.addr)? };
        Ok(data)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let mut state = self.on.pool().lock();
            state.stats.allocated -= self.bytes;
            state.free.entry(self.bytes).or_default().push(self.addr);
        }
    }
}

/// Gives all waiting blocks back to the device.
pub(super) fn release(on: &Context) -> Result<()> {
    let blocks = std::mem::take(&mut on.pool().lock().free);
    if blocks.is_empty() {
        return Ok(());
    }
    on.driver().synchronize()?;
    for (bytes, addresses) in blocks {
        for addr in addresses {
            // SAFETY: the block was in the free list, so nothing refers to it, and the queue is empty.
            unsafe { on.driver().free(addr, bytes) };
            on.pool().lock().stats.reserved -= bytes;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::block_size;

    #[test]
    fn blocks_waste_at_most_a_quarter() {
        for b in [1usize, 512, 513, 4097, 1 << 20, (1 << 20) + 1, 123_456_789] {
            let c = block_size(b, false).unwrap();
            assert!(c >= b && c <= b + b / 4 + 512, "{b} -> {c}");
            assert_eq!(block_size(b, true), Some(b.next_multiple_of(16)));
        }
        assert_eq!(block_size(usize::MAX, false), None);
    }
}
