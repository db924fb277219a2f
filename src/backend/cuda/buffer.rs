//! Device memory that is recycled: freed blocks wait by size and are handed out again in the order of the queue.
//!
//! All work of a device goes through one queue, so a block that was freed on the host while kernels still use it can be
//! reused at once: what is queued later runs later. A training step finds every block it needs after the first step, at
//! the same addresses.

use super::capture::{self, Running};
use super::context::Context;
use crate::backend::freed::Freed;
use crate::dtype::DType;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Device memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Held by live tensors.
    pub allocated: usize,
    /// Highest `allocated` so far.
    pub peak: usize,
    /// Taken from the device: held by tensors or waiting for reuse. Bounded by the peak as the host's memory is.
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
    free: Freed<u64>,
    stats: DeviceMemory,
    /// By name, while it is recorded.
    ops: Option<HashMap<&'static str, OpMemory>>,
}

/// Blocks that wait within a captured step, by size.
type Free = BTreeMap<usize, Vec<u64>>;

/// What one op took of a device's memory since [`record_memory_by_op`](super::record_memory_by_op) was called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpMemory {
    /// Bytes that it took, given back or not.
    pub taken: usize,
    /// Bytes of it that tensors hold at this moment.
    pub held: usize,
    /// Highest `held` so far.
    pub peak: usize,
    /// How many blocks it took.
    pub blocks: usize,
}

/// The memory of a captured step: blocks that it took and gave back are handed out again within it, and to nothing else until
/// the recording and every tensor of it are gone.
#[derive(Debug)]
pub(super) struct Private {
    on: &'static Context,
    free: Mutex<Free>,
    live: AtomicUsize,
    reserved: AtomicUsize,
}

impl Private {
    pub(super) fn new(on: &'static Context) -> Arc<Self> {
        Arc::new(Private { on, free: Mutex::default(), live: AtomicUsize::new(0), reserved: AtomicUsize::new(0) })
    }

    /// Blocks that tensors hold.
    pub(super) fn live(&self) -> usize {
        self.live.load(Relaxed)
    }

    /// Bytes taken from the device or its pool.
    pub(super) fn reserved(&self) -> usize {
        self.reserved.load(Relaxed)
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        // No operation leaves the lists half done.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let blocks = std::mem::take(&mut *self.free());
        let mut state = self.on.pool().lock();
        for (bytes, addresses) in blocks {
            addresses.into_iter().for_each(|addr| state.free.put(bytes, addr));
        }
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No operation leaves the state half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stats(&self) -> DeviceMemory {
        self.lock().stats
    }

    /// The peak begins anew with what is held now.
    pub(super) fn reset_peak(&self) {
        let mut state = self.lock();
        state.stats.peak = state.stats.allocated;
    }

    /// Forgets what was recorded by op; from now on records, or does not.
    pub(super) fn record(&self, on: bool) {
        self.lock().ops = on.then(HashMap::new);
    }

    /// What was recorded, by name.
    pub(super) fn by_op(&self) -> BTreeMap<&'static str, OpMemory> {
        self.lock().ops.iter().flatten().map(|(&name, &of)| (name, of)).collect()
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
    /// The captured step that it belongs to.
    home: Option<Arc<Private>>,
    /// Who took it, while that is recorded.
    op: Option<&'static str>,
}

impl Buffer {
    pub(super) fn alloc(on: &'static Context, dtype: DType, len: usize) -> Result<Self> {
        let mut buffer = Buffer { on, addr: 0, bytes: 0, dtype, len, home: None, op: None };
        if len == 0 {
            return Ok(buffer);
        }
        let oom = || Error::out_of_memory(format!("{len} elements of {dtype} exceed the address space"));
        let wanted = len.checked_mul(dtype.size()).ok_or_else(oom)?;
        let bytes = block_size(wanted, on.is_emulated()).ok_or_else(oom)?;
        let pool = on.pool();
        let home = capture::private(on);
        // What waits for all was freed by work that is done or queued: a captured step may have it too.
        let cached = home.as_ref().and_then(|h| h.free().get_mut(&bytes).and_then(Vec::pop));
        let own = cached.is_some();
        let cached = cached.or_else(|| pool.lock().free.take(bytes));
        buffer.addr = match cached {
            Some(addr) => addr,
            None => {
                if !capture::is_capturing(on) {
                    let old = {
                        let mut state = pool.lock();
                        let DeviceMemory { allocated, peak, .. } = state.stats;
                        state.free.make_room(bytes, allocated, peak)
                    };
                    free(on, old)?;
                }
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
        if let Some(home) = &home {
            home.live.fetch_add(1, Relaxed);
            if !own {
                home.reserved.fetch_add(bytes, Relaxed);
            }
        }
        buffer.home = home;
        let mut state = pool.lock();
        state.stats.allocated += bytes;
        state.stats.peak = state.stats.peak.max(state.stats.allocated);
        if let Some(ops) = &mut state.ops {
            let name = Running::op().map_or("outside of ops", |(name, _)| name);
            let of = ops.entry(name).or_default();
            of.taken += bytes;
            of.blocks += 1;
            of.held += bytes;
            of.peak = of.peak.max(of.held);
            buffer.op = Some(name);
        }
        drop(state);
        if crate::backend::cpu::is_poisoning() {
            // All bits set: NaN in every float type, the largest or -1 in integers.
            // SAFETY: the block was just allocated with this size and nothing else uses it.
            unsafe { on.fill(buffer.addr, bytes, 0xff)? };
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
        unsafe { self.on.upload(self.addr, bytes) }
    }

    /// Copies words over the first elements, for a captured step's own memory.
    ///
    /// # Panics
    /// If there are more than elements, or the type differs: a bug in the crate.
    pub(super) fn upload_prefix(&mut self, words: &[i64]) -> Result<()> {
        assert!(self.dtype == DType::I64 && words.len() <= self.len, "upload of another type or length");
        // SAFETY: integers without padding may be read as bytes.
        let bytes = unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), size_of_val(words)) };
        // SAFETY: the block holds more elements of this type, and `&mut self` makes the write exclusive.
        unsafe { self.on.upload(self.addr, bytes) }
    }

    /// Queues the write of one value into the first element; nothing waits.
    ///
    /// # Panics
    /// If the type differs: a bug in the crate.
    pub(crate) fn put<T: crate::dtype::Element>(&mut self, value: T) -> Result<()> {
        assert!(T::DTYPE == self.dtype && self.len > 0, "a value of another type");
        let mut bits = [0u8; 8];
        // SAFETY: element types are plain numbers of at most 8 bytes.
        unsafe { std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), bits.as_mut_ptr(), size_of::<T>()) };
        // SAFETY: the block holds an element of this type, and `&mut self` makes the write exclusive.
        unsafe { self.on.put(self.addr, size_of::<T>(), u64::from_le_bytes(bits)) }
    }

    /// Whether it belongs to a captured step.
    pub(crate) fn is_private(&self) -> bool {
        self.home.is_some()
    }

    /// Copies all elements to the host; waits for queued work.
    ///
    /// # Panics
    /// If the type differs: a bug in the crate.
    pub(crate) fn download<T: crate::dtype::Element>(&self) -> Result<Vec<T>> {
        self.download_prefix(self.len)
    }

    /// The first `len` elements only.
    ///
    /// # Panics
    /// If there are fewer, or the type differs: a bug in the crate.
    pub(super) fn download_prefix<T: crate::dtype::Element>(&self, len: usize) -> Result<Vec<T>> {
        assert!(T::DTYPE == self.dtype && len <= self.len, "download of another type or length");
        let mut data = crate::memory::vec_of(T::default(), len)?;
        if len == 0 {
            return Ok(data);
        }
        // SAFETY: every bit pattern is valid for the seven element types, and the vector owns this memory.
        let bytes = unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast::<u8>(), len * size_of::<T>()) };
        // SAFETY: the block holds at least `len` elements of this type.
        unsafe { self.on.download(bytes, self.addr)? };
        Ok(data)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let state = || Buffer { op: self.op, home: None, ..*self };
            if capture::retire(self, state) {
                return;
            }
            let mut state = self.on.pool().lock();
            state.stats.allocated -= self.bytes;
            if let (Some(name), Some(ops)) = (self.op, &mut state.ops)
                && let Some(of) = ops.get_mut(name)
            {
                of.held = of.held.saturating_sub(self.bytes);
            }
            match &self.home {
                None => state.free.put(self.bytes, self.addr),
                Some(home) => {
                    drop(state);
                    home.free().entry(self.bytes).or_default().push(self.addr);
                    home.live.fetch_sub(1, Relaxed);
                }
            }
        }
    }
}

/// Gives all waiting blocks back to the device.
pub(super) fn release(on: &Context) -> Result<()> {
    if capture::is_capturing(on) {
        // It would have to wait for the device.
        return Ok(());
    }
    let blocks = on.pool().lock().free.take_all();
    free(on, blocks.collect())
}

/// Gives some blocks that waited back to the device.
fn free(on: &Context, blocks: Vec<(usize, u64)>) -> Result<()> {
    if blocks.is_empty() {
        return Ok(());
    }
    // Waiting for the device would break a capture of another thread.
    let _turn = on.turn();
    if let Err(e) = on.driver().synchronize() {
        let mut state = on.pool().lock();
        blocks.into_iter().for_each(|(bytes, addr)| state.free.put(bytes, addr));
        return Err(e);
    }
    for (bytes, addr) in blocks {
        // SAFETY: the block was in the free list, so nothing refers to it, and the queue is empty.
        unsafe { on.driver().free(addr, bytes) };
        on.pool().lock().stats.reserved -= bytes;
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
