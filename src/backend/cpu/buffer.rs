//! Host memory that is recycled.
//!
//! First touch of fresh pages costs several times the arithmetic done on them, so freed buffers wait in size classes
//! and the next request of that class takes the most recently freed (warmest) one. A training loop allocates nothing
//! after its first step.

use crate::dtype::{DType, Element, with_dtype};
use crate::error::{Error, Result};
use std::alloc::{Layout as AllocLayout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// Cache line and widest vector register; every buffer starts at such an address.
const ALIGN: usize = 64;

static POISON: AtomicBool = AtomicBool::new(false);
static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static CACHED: AtomicUsize = AtomicUsize::new(0);
static FRESH: AtomicUsize = AtomicUsize::new(0);
static FREE: LazyLock<Mutex<HashMap<usize, Vec<Block>>>> = LazyLock::new(Mutex::default);

/// Host memory held by tensors, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryStats {
    /// Held by live tensors.
    pub in_use: usize,
    /// Highest `in_use` so far.
    pub peak: usize,
    /// Freed by tensors and kept for reuse.
    pub cached: usize,
    /// How many blocks were ever requested from the system; constant in a steady training loop.
    pub fresh_blocks: usize,
}

/// Memory held by the CPU backend at this moment.
pub fn memory_stats() -> MemoryStats {
    MemoryStats { in_use: IN_USE.load(Relaxed), peak: PEAK.load(Relaxed), cached: CACHED.load(Relaxed), fresh_blocks: FRESH.load(Relaxed) }
}

/// Returns every cached block to the system.
pub fn release_cached_memory() {
    // Take the blocks out first: freeing happens without the lock.
    let blocks = std::mem::take(&mut *free_list());
    for b in blocks.into_values().flatten() {
        CACHED.fetch_sub(b.bytes, Relaxed);
        b.free();
    }
}

/// Tests switch this on: every new buffer is filled with NaN (floats) or the largest value (integers), so that a
/// kernel which reads memory it has not written shows.
pub fn poison_fresh_memory(on: bool) {
    POISON.store(on, Relaxed);
}

/// Whether fresh memory is poisoned, on every device.
pub(crate) fn is_poisoning() -> bool {
    POISON.load(Relaxed)
}

fn free_list() -> MutexGuard<'static, HashMap<usize, Vec<Block>>> {
    // The map is valid after any panic: no operation on it is left half done.
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A raw block of initialised memory.
#[derive(Debug)]
struct Block {
    /// What the system gave.
    base: NonNull<u8>,
    /// Its first address that is a multiple of [`ALIGN`].
    ptr: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a block is plain memory with one owner; nothing in it is tied to a thread.
unsafe impl Send for Block {}
// SAFETY: shared access only reads (see `Buffer::slice`), mutation needs `&mut`.
unsafe impl Sync for Block {}

/// Sizes are rounded up to four classes per power of two: at most a quarter is wasted.
fn size_class(bytes: usize) -> Option<usize> {
    let b = bytes.max(ALIGN);
    let step = (b.checked_next_power_of_two()? / 8).max(ALIGN);
    b.checked_next_multiple_of(step)
}

impl Block {
    fn alloc(bytes: usize) -> Result<Self> {
        let oom = || Error::out_of_memory(format!("cannot allocate {bytes} bytes of host memory ({} in use)", IN_USE.load(Relaxed)));
        let class = size_class(bytes).filter(|&c| c <= isize::MAX as usize - 2 * ALIGN).ok_or_else(oom)?;
        if let Some(b) = free_list().get_mut(&class).and_then(Vec::pop) {
            CACHED.fetch_sub(class, Relaxed);
            return Ok(b);
        }
        // Zeroed memory is initialised memory, and for large blocks the system provides it without touching pages: but not when more
        // than its own alignment is asked for, where the standard library writes the zeros. So the block is aligned here.
        // SAFETY: the layout is not zero-sized.
        let base = unsafe { alloc_zeroed(system_layout(class).ok_or_else(oom)?) };
        FRESH.fetch_add(1, Relaxed);
        let base = NonNull::new(base).ok_or_else(oom)?;
        // SAFETY: the offset is below ALIGN, by which the layout is larger than the class.
        let ptr = unsafe { base.add(base.align_offset(ALIGN)) };
        Ok(Block { base, ptr, bytes: class })
    }

    fn free(self) {
        let Some(layout) = system_layout(self.bytes) else { return };
        // SAFETY: `base` came from `alloc_zeroed` with exactly this layout, and `self` is consumed.
        unsafe { dealloc(self.base.as_ptr(), layout) }
    }
}

/// What is asked of the system for a block: room to align it.
fn system_layout(class: usize) -> Option<AllocLayout> {
    AllocLayout::from_size_align(class.checked_add(ALIGN)?, align_of::<u64>()).ok()
}

/// The memory of some elements, to be filled with what they are stored as.
pub(crate) fn bytes_mut<T: Element>(x: &mut [T]) -> &mut [u8] {
    // SAFETY: the slice is initialised and held exclusively, and every bit pattern is valid for the seven element types.
    unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast(), size_of_val(x)) }
}

/// Typed host memory of a fixed length; returns to the cache when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    block: Option<Block>,
    dtype: DType,
    len: usize,
}

impl Buffer {
    pub(crate) fn alloc(dtype: DType, len: usize) -> Result<Self> {
        let bytes = len
            .checked_mul(dtype.size())
            .ok_or_else(|| Error::out_of_memory(format!("{len} elements of {dtype} exceed the address space")))?;
        let block = if len == 0 { None } else { Some(Block::alloc(bytes)?) };
        if let Some(b) = &block {
            let now = IN_USE.fetch_add(b.bytes, Relaxed) + b.bytes;
            PEAK.fetch_max(now, Relaxed);
        }
        let mut buffer = Buffer { block, dtype, len };
        if POISON.load(Relaxed) {
            with_dtype!(dtype, T => buffer.slice_mut::<T>().fill(if dtype.is_float() { T::from_f64(f64::NAN) } else { T::from_f64(dtype.max_value()) }));
        }
        Ok(buffer)
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All elements.
    ///
    /// # Panics
    /// If `T` is not the buffer's element type: kernels are dispatched on the dtype, so that is a bug in the crate.
    pub(crate) fn slice<T: Element>(&self) -> &[T] {
        assert_eq!(T::DTYPE, self.dtype, "kernel dispatched on the wrong dtype");
        match &self.block {
            None => &[],
            // SAFETY: the block is initialised, aligned to 64, holds at least `len * size_of::<T>()` bytes, lives as
            // long as `self`; every bit pattern is valid for the seven element types, and `&self` allows no writes.
            Some(b) => unsafe { std::slice::from_raw_parts(b.ptr.as_ptr().cast::<T>(), self.len) },
        }
    }

    /// All elements, writable. See [`Buffer::slice`].
    pub(crate) fn slice_mut<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(T::DTYPE, self.dtype, "kernel dispatched on the wrong dtype");
        match &mut self.block {
            None => &mut [],
            // SAFETY: as in `slice`; `&mut self` makes the access exclusive.
            Some(b) => unsafe { std::slice::from_raw_parts_mut(b.ptr.as_ptr().cast::<T>(), self.len) },
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(b) = self.block.take() {
            IN_USE.fetch_sub(b.bytes, Relaxed);
            CACHED.fetch_add(b.bytes, Relaxed);
            free_list().entry(b.bytes).or_default().push(b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_waste_at_most_a_quarter() {
        for b in [1usize, 64, 65, 100, 1000, 4097, 1 << 20, (1 << 20) + 1, 123_456_789] {
            let c = size_class(b).unwrap();
            assert!(c >= b && (c <= 64 || c <= b + b / 4 + 64), "{b} -> {c}");
        }
        assert_eq!(size_class(usize::MAX), None);
    }

    #[test]
    fn blocks_are_aligned() {
        for bytes in [1, 100, 4096, 1 << 20, 40 << 20] {
            let block = Block::alloc(bytes).unwrap();
            assert!(block.ptr.align_offset(ALIGN) == 0 && block.ptr.addr() >= block.base.addr());
            block.free();
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        assert!(Buffer::alloc(DType::F64, usize::MAX / 4).unwrap_err().is_out_of_memory());
        assert!(Buffer::alloc(DType::F32, isize::MAX as usize / 4).unwrap_err().is_out_of_memory());
    }
}
