//! Device memory that is recycled: freed blocks wait by size and are handed out again in the order of the stream.
//!
//! All work of a device goes through one stream, so a block that was freed on the host while kernels still use it can be
//! reused at once: what is enqueued later runs later. A training step finds every block it needs after the first step, at
//! the same addresses.

use super::context::Context;
use super::pool::{Block, DeviceMemory, Private, block_size};
use super::running::Running;
use super::step_memory;
use crate::dtype::DType;
use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Typed device memory of a fixed length; returns to the pool when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    on: &'static Context,
    block: Block,
    /// The captured step that it belongs to.
    home: Option<Arc<Private>>,
}

impl Context {
    /// Memory for `len` elements, unwritten.
    pub(crate) fn alloc(&'static self, dtype: DType, len: usize) -> Result<Buffer> {
        Buffer::alloc(self, dtype, len)
    }
}

impl Buffer {
    /// A block that a captured step had taken over.
    pub(super) fn again(on: &'static Context, block: Block) -> Self {
        Buffer { on, block, home: None }
    }

    fn alloc(on: &'static Context, dtype: DType, len: usize) -> Result<Self> {
        let mut buffer = Buffer { on, block: Block { addr: 0, bytes: 0, dtype, len, op: None }, home: None };
        if len == 0 {
            return Ok(buffer);
        }
        let oom = || Error::out_of_memory(format!("{len} elements of {dtype} exceed the address space"));
        let wanted = len.checked_mul(dtype.size()).ok_or_else(oom)?;
        let bytes = block_size(wanted, on.is_emulated()).ok_or_else(oom)?;
        let pool = on.pool();
        let home = step_memory::private(on.device());
        // Blocks of the shared pool are safe in a capture: all work that used them is already enqueued.
        let cached = home.as_ref().and_then(|h| h.free().get_mut(&bytes).and_then(Vec::pop));
        let own = cached.is_some();
        let cached = cached.or_else(|| pool.lock().free.take(bytes));
        buffer.block.addr = match cached {
            Some(addr) => addr,
            None => {
                if !on.is_capturing() {
                    let old = {
                        let mut state = pool.lock();
                        let DeviceMemory { allocated, peak, .. } = state.stats;
                        state.free.make_room(bytes, allocated, peak)
                    };
                    on.free(old)?;
                }
                // Blocks of other sizes may be in the way.
                let addr = on.with_room(|| format!("cannot allocate {bytes} bytes"), || on.driver().alloc(bytes))?;
                let mut state = pool.lock();
                state.stats.reserved += bytes;
                state.stats.fresh_blocks += 1;
                addr
            }
        };
        buffer.block.bytes = bytes;
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
            buffer.block.op = Some(name);
        }
        drop(state);
        if crate::backend::cpu::is_poisoning() {
            // All bits set: NaN in every float type, the largest or -1 in integers.
            // SAFETY: the block was just allocated with this size and nothing else uses it.
            unsafe { on.fill(buffer.block.addr, bytes, 0xff)? };
        }
        Ok(buffer)
    }

    pub(crate) fn context(&self) -> &'static Context {
        self.on
    }

    pub(crate) fn addr(&self) -> u64 {
        self.block.addr
    }

    pub(crate) fn dtype(&self) -> DType {
        self.block.dtype
    }

    pub(crate) fn len(&self) -> usize {
        self.block.len
    }

    /// Copies the elements from the host; one value per element.
    ///
    /// # Panics
    /// If the type or the length differs: a bug in the crate.
    pub(crate) fn upload<T: crate::dtype::Element>(&mut self, data: &[T]) -> Result<()> {
        assert!(T::DTYPE == self.block.dtype && data.len() == self.block.len, "upload of another type or length");
        if self.block.len == 0 {
            return Ok(());
        }
        // SAFETY: element types are plain numbers without padding, so their memory may be read as bytes.
        let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), size_of_val(data)) };
        // SAFETY: the block holds `len` elements of this type, and `&mut self` makes the write exclusive.
        unsafe { self.on.upload(self.block.addr, bytes) }
    }

    /// Copies words over the first elements, for a captured step's own memory.
    ///
    /// # Panics
    /// If there are more than elements, or the type differs: a bug in the crate.
    pub(super) fn upload_prefix(&mut self, words: &[i64]) -> Result<()> {
        assert!(self.block.dtype == DType::I64 && words.len() <= self.block.len, "upload of another type or length");
        // SAFETY: integers without padding may be read as bytes.
        let bytes = unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), size_of_val(words)) };
        // SAFETY: the block holds more elements of this type, and `&mut self` makes the write exclusive.
        unsafe { self.on.upload(self.block.addr, bytes) }
    }

    /// Enqueues the write of one value into the first element; nothing waits.
    ///
    /// # Panics
    /// If the type differs: a bug in the crate.
    pub(crate) fn put<T: crate::dtype::Element>(&mut self, value: T) -> Result<()> {
        assert!(T::DTYPE == self.block.dtype && self.block.len > 0, "a value of another type");
        let mut bits = [0u8; 8];
        // SAFETY: element types are plain numbers of at most 8 bytes.
        unsafe { std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), bits.as_mut_ptr(), size_of::<T>()) };
        // SAFETY: the block holds an element of this type, and `&mut self` makes the write exclusive.
        unsafe { self.on.put(self.block.addr, size_of::<T>(), u64::from_le_bytes(bits)) }
    }

    /// Whether it belongs to a captured step.
    pub(crate) fn is_private(&self) -> bool {
        self.home.is_some()
    }

    /// Copies all elements to the host; waits for enqueued work.
    ///
    /// # Panics
    /// If the type differs: a bug in the crate.
    pub(crate) fn download<T: crate::dtype::Element>(&self) -> Result<Vec<T>> {
        self.download_prefix(self.block.len)
    }

    /// The first `len` elements only.
    ///
    /// # Panics
    /// If there are fewer, or the type differs: a bug in the crate.
    pub(super) fn download_prefix<T: crate::dtype::Element>(&self, len: usize) -> Result<Vec<T>> {
        assert!(T::DTYPE == self.block.dtype && len <= self.block.len, "download of another type or length");
        let mut data = crate::memory::vec_of(T::default(), len)?;
        if len == 0 {
            return Ok(data);
        }
        // SAFETY: every bit pattern is valid for the seven element types, and the vector owns this memory.
        let bytes = unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast::<u8>(), len * size_of::<T>()) };
        // SAFETY: the block holds at least `len` elements of this type.
        unsafe { self.on.download(bytes, self.block.addr)? };
        Ok(data)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.block.bytes > 0 {
            if self.home.is_none() && step_memory::retire(self.on.device(), self.block) {
                return;
            }
            let mut state = self.on.pool().lock();
            state.stats.allocated -= self.block.bytes;
            if let (Some(name), Some(ops)) = (self.block.op, &mut state.ops)
                && let Some(of) = ops.get_mut(name)
            {
                of.held = of.held.saturating_sub(self.block.bytes);
            }
            match &self.home {
                None => state.free.put(self.block.bytes, self.block.addr),
                Some(home) => {
                    drop(state);
                    home.free().entry(self.block.bytes).or_default().push(self.block.addr);
                    home.live.fetch_sub(1, Relaxed);
                }
            }
        }
    }
}
