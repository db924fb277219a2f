//! The books of a device's memory: what is held, what waits for reuse by size, and the pools that captured steps have for themselves.

use crate::backend::freed::Freed;
use crate::dtype::DType;
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
pub(crate) struct Pool {
    state: Mutex<State>,
}

/// What a pool holds.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) free: Freed<u64>,
    pub(super) stats: DeviceMemory,
    /// By name, while it is recorded.
    pub(super) ops: Option<HashMap<&'static str, OpMemory>>,
}

/// Blocks that wait within a captured step, by size.
pub(super) type Free = BTreeMap<usize, Vec<u64>>;

/// What one op took of a device's memory since [`record_memory_by_op`](crate::backend::cuda::record_memory_by_op) was called.
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
pub(crate) struct Private {
    pool: &'static Pool,
    free: Mutex<Free>,
    pub(super) live: AtomicUsize,
    pub(super) reserved: AtomicUsize,
}

impl Private {
    pub(super) fn new(pool: &'static Pool) -> Arc<Self> {
        Arc::new(Private { pool, free: Mutex::default(), live: AtomicUsize::new(0), reserved: AtomicUsize::new(0) })
    }

    /// Blocks that tensors hold.
    pub(super) fn live(&self) -> usize {
        self.live.load(Relaxed)
    }

    /// Bytes taken from the device or its pool.
    pub(super) fn reserved(&self) -> usize {
        self.reserved.load(Relaxed)
    }

    pub(super) fn free(&self) -> MutexGuard<'_, Free> {
        // No operation leaves the lists half done.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let blocks = std::mem::take(&mut *self.free());
        let mut state = self.pool.lock();
        for (bytes, addresses) in blocks {
            addresses.into_iter().for_each(|addr| state.free.put(bytes, addr));
        }
    }
}

impl Pool {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // No operation leaves the state half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stats(&self) -> DeviceMemory {
        self.lock().stats
    }

    /// The peak begins anew with what is held now.
    pub(crate) fn reset_peak(&self) {
        let mut state = self.lock();
        state.stats.peak = state.stats.allocated;
    }

    /// Forgets what was recorded by op; from now on records, or does not.
    pub(crate) fn record(&self, on: bool) {
        self.lock().ops = on.then(HashMap::new);
    }

    /// What was recorded, by name.
    pub(crate) fn by_op(&self) -> BTreeMap<&'static str, OpMemory> {
        self.lock().ops.iter().flatten().map(|(&name, &of)| (name, of)).collect()
    }
}

/// Blocks are multiples of 512 bytes, and of an eighth of the power of two above: at most an eighth is wasted. An
/// emulated block is exact, so that the first byte beyond it is guarded.
pub(super) fn block_size(bytes: usize, exact: bool) -> Option<usize> {
    if exact {
        return bytes.checked_next_multiple_of(16);
    }
    let step = (bytes.checked_next_power_of_two()? / 8).max(512);
    bytes.checked_next_multiple_of(step)
}

/// A block that is held: what a buffer is, apart from the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) addr: u64,
    pub(super) bytes: usize,
    pub(super) dtype: DType,
    pub(super) len: usize,
    /// Who took it, while that is recorded.
    pub(super) op: Option<&'static str>,
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
