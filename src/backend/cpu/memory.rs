//! Host memory that is recycled.
//!
//! First touch of fresh pages costs several times the arithmetic done on them, so freed buffers wait in size classes
//! and the next request of that class takes the most recently freed (warmest) one. A training loop allocates nothing
//! after its first steps. What waits is bounded ([`Freed`]), and given back before an allocation is refused.

use crate::backend::freed::Freed;
use crate::dtype::{DType, Element, with_dtype};
use crate::error::{Error, Result};
use crate::memory;
use std::alloc::{Layout as AllocLayout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// Cache line and widest vector register; every buffer starts at such an address.
const ALIGN: usize = 64;

/// A huge page. With them, streaming through memory is a seventh faster (fewer misses of the address translation, which cost
/// twice in a virtual machine).
const HUGE: usize = 2 << 20;

/// Blocks from this size on are on huge pages, where the system has them.
const LARGE: usize = 2 * HUGE;

static POISON: AtomicBool = AtomicBool::new(false);
static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static FRESH: AtomicUsize = AtomicUsize::new(0);
static FREE: LazyLock<Mutex<Freed<Block>>> = LazyLock::new(Mutex::default);

/// Host memory held by tensors, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryStats {
    /// Held by live tensors.
    pub in_use: usize,
    /// Highest `in_use` so far.
    pub peak: usize,
    /// Freed by tensors and kept for reuse.
    pub cached: usize,
    /// What `in_use` and `cached` may reach together: a quarter above the peak (16 MiB at least), or up to twice the peak for
    /// a program that keeps asking for what it freed.
    pub limit: usize,
    /// How many blocks were ever requested from the system; constant in a steady training loop.
    pub fresh_blocks: usize,
}

/// Memory held by the CPU backend at this moment.
pub fn memory_stats() -> MemoryStats {
    let free = free_list();
    let (in_use, peak) = (IN_USE.load(Relaxed), PEAK.load(Relaxed));
    MemoryStats { in_use, peak, cached: free.bytes(), limit: free.limit(peak), fresh_blocks: FRESH.load(Relaxed) }
}

/// Sets [`MemoryStats::peak`] to what is in use now, so that the peaks of two phases can be compared. How much freed memory is kept
/// follows the peak.
///
/// ```
/// use cotangent::{F32, Key, Tensor, backend::cpu};
/// drop(Tensor::rand([1 << 20], F32, Key::new(1))?);
/// let before = cpu::memory_stats().peak;
/// cpu::reset_peak_memory_stats();
/// assert!(before >= 4 << 20 && cpu::memory_stats().peak < before);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn reset_peak_memory_stats() {
    PEAK.store(IN_USE.load(Relaxed), Relaxed);
}

/// Returns every cached block to the system.
pub fn release_cached_memory() {
    // Take the blocks out first: freeing happens without the lock.
    let blocks = free_list().take_all();
    blocks.for_each(|(_, b)| b.free());
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

fn free_list() -> MutexGuard<'static, Freed<Block>> {
    // The lists are valid after any panic: no operation on it is left half done.
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A raw block of initialised memory.
#[derive(Debug)]
struct Block {
    ptr: NonNull<u8>,
    bytes: usize,
    /// What the allocator gave: `ptr` is less than an alignment after it.
    base: NonNull<u8>,
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
        let class = Self::class(bytes)?;
        let mut free = free_list();
        if let Some(b) = free.take(class) {
            return Ok(b);
        }
        let old = free.make_room(class, IN_USE.load(Relaxed), PEAK.load(Relaxed));
        drop(free);
        old.into_iter().for_each(|(_, b)| b.free());
        let block = Self::asked(class, bytes)?;
        FRESH.fetch_add(1, Relaxed);
        if class >= LARGE {
            // Not the whole class: a huge page that begins after the last element would be touched with it.
            on_huge_pages(block.ptr, bytes);
        }
        Ok(block)
    }

    fn class(bytes: usize) -> Result<usize> {
        size_class(bytes).filter(|&c| c <= isize::MAX as usize - HUGE).ok_or_else(|| Self::refused(bytes))
    }

    /// From the system, or refused.
    fn asked(class: usize, bytes: usize) -> Result<Self> {
        // With what else its tensor has.
        let fresh = || Self::fresh(class).filter(|b| memory::leaves_margin(class + memory::TENSOR) || b.give_back());
        let again = || {
            // Blocks of other sizes may be in the way.
            release_cached_memory();
            fresh()
        };
        fresh().or_else(again).ok_or_else(|| Self::refused(bytes))
    }

    fn refused(bytes: usize) -> Error {
        Error::out_of_memory(format!("cannot allocate {bytes} bytes of host memory ({} in use)", IN_USE.load(Relaxed)))
    }

    /// From the system: zeroed memory is initialised memory, and for large blocks the system provides it without touching pages.
    fn fresh(class: usize) -> Option<Self> {
        let base = system_memory(Self::layout(class)?)?;
        let skip = base.as_ptr().align_offset(Self::alignment(class));
        // SAFETY: `skip` is below the alignment, by which the layout is larger than the class.
        let ptr = unsafe { base.add(skip) };
        Some(Block { ptr, bytes: class, base })
    }

    /// Frees a block that was never handed out; false, for a chain of conditions.
    fn give_back(&self) -> bool {
        Block { ..*self }.free();
        false
    }

    fn alignment(class: usize) -> usize {
        if class >= LARGE { HUGE } else { ALIGN }
    }

    fn layout(class: usize) -> Option<AllocLayout> {
        AllocLayout::from_size_align(class.checked_add(Self::alignment(class))?, align_of::<usize>()).ok()
    }

    fn free(self) {
        if let Some(layout) = Self::layout(self.bytes) {
            // SAFETY: `base` came from `system_memory` with exactly this layout, and `self` is consumed.
            unsafe { give_back(self.base, layout) }
        }
    }
}

/// Whether a block is a mapping of its own: what is freed then leaves the process, whatever is beside it.
fn is_mapped(layout: AllocLayout) -> bool {
    cfg!(target_os = "linux") && layout.size() >= LARGE
}

/// Zeroed memory of a size that is not 0.
fn system_memory(layout: AllocLayout) -> Option<NonNull<u8>> {
    #[cfg(target_os = "linux")]
    if is_mapped(layout) {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the system's choice touches nothing that exists.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), layout.size(), access, kind, -1, 0) };
        return if base == libc::MAP_FAILED { None } else { NonNull::new(base.cast()) };
    }
    // SAFETY: the size is not 0: a class is at least ALIGN.
    NonNull::new(unsafe { alloc_zeroed(layout) })
}

/// # Safety
/// `base` came from [`system_memory`] with this layout, and nothing refers to it.
unsafe fn give_back(base: NonNull<u8>, layout: AllocLayout) {
    #[cfg(target_os = "linux")]
    if is_mapped(layout) {
        // SAFETY: exactly the mapping that was made, which nothing refers to.
        unsafe { libc::munmap(base.as_ptr().cast(), layout.size()) };
        return;
    }
    // SAFETY: by the caller's promise.
    unsafe { dealloc(base.as_ptr(), layout) }
}

/// Asks for huge pages; where there are none, nothing changes.
fn on_huge_pages(ptr: NonNull<u8>, bytes: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: an advice about the pages of a block that we own, which changes no content; it may be refused.
    unsafe {
        libc::madvise(ptr.as_ptr().cast(), bytes / HUGE * HUGE, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (ptr, bytes);
}

/// What some elements are stored as.
pub(crate) fn bytes<T: Element>(x: &[T]) -> &[u8] {
    // SAFETY: the seven element types are plain numbers without padding, so each of their bytes is initialised.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) }
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
    /// See [`Buffer::sparse`].
    sparse: bool,
}

impl Buffer {
    pub(crate) fn alloc(dtype: DType, len: usize) -> Result<Self> {
        let mut buffer = Self::alloc_untouched(dtype, len)?;
        if POISON.load(Relaxed) {
            with_dtype!(dtype, T => buffer.slice_mut::<T>().fill(if dtype.is_float() { T::from_f64(f64::NAN) } else { T::from_f64(dtype.max_value()) }));
        }
        Ok(buffer)
    }

    /// Memory that is not poisoned.
    pub(crate) fn alloc_untouched(dtype: DType, len: usize) -> Result<Self> {
        let bytes = Self::bytes(dtype, len)?;
        let block = if len == 0 { None } else { Some(Block::alloc(bytes)?) };
        if let Some(b) = &block {
            let now = IN_USE.fetch_add(b.bytes, Relaxed) + b.bytes;
            PEAK.fetch_max(now, Relaxed);
        }
        Ok(Buffer { block, dtype, len, sparse: false })
    }

    /// Gigabytes of which a few elements are written: the other pages cost nothing. It goes back to the system at once and does not
    /// count: kept for reuse, the few pages of each use would add up to the whole, and as part of a peak it would let everything
    /// else be kept.
    pub(crate) fn sparse(dtype: DType, len: usize) -> Result<Self> {
        let bytes = Self::bytes(dtype, len)?;
        Ok(Buffer { block: Some(Block::asked(Block::class(bytes)?, bytes)?), dtype, len, sparse: true })
    }

    fn bytes(dtype: DType, len: usize) -> Result<usize> {
        let exceeds = || Error::out_of_memory(format!("{len} elements of {dtype} exceed the address space"));
        len.checked_mul(dtype.size()).ok_or_else(exceeds)
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
            if self.sparse {
                return b.free();
            }
            let mut free = free_list();
            IN_USE.fetch_sub(b.bytes, Relaxed);
            let refused = free.try_put(b.bytes, b);
            drop(free);
            if let Err(b) = refused {
                b.free();
            }
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
    fn blocks_start_where_their_size_asks() {
        for (bytes, align) in [(1, ALIGN), (100_000, ALIGN), (LARGE, HUGE), (LARGE + 100, HUGE), (3 * LARGE, HUGE)] {
            let mut b = Buffer::alloc(DType::U8, bytes).unwrap();
            let s = b.slice_mut::<u8>();
            assert_eq!(s.as_ptr().addr() % align, 0, "{bytes}");
            s.fill(1);
        }
        release_cached_memory();
    }

    #[test]
    fn impossible_sizes_are_errors() {
        assert!(Buffer::alloc(DType::F64, usize::MAX / 4).unwrap_err().is_out_of_memory());
        assert!(Buffer::alloc(DType::F32, isize::MAX as usize / 4).unwrap_err().is_out_of_memory());
    }
}
