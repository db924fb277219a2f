//! Which items make a batch.

use crate::error::Result;
use crate::memory;
use crate::rng::Key;
use std::sync::{Arc, Mutex, PoisonError};

/// Which windows or rows make a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Drawn independently, windows from anywhere: nanoGPT's way.
    Random,
    /// Windows side by side, or rows; each once an epoch, in an order that the key and the number of the epoch decide.
    Shuffled,
    /// Windows side by side, or rows, from the first to the last, again and again: for evaluation.
    Sequential,
}

/// The items of batches, as a function of the batch's position.
#[derive(Debug)]
pub(super) struct Epochs {
    pub order: Order,
    key: Key,
    // The order of the last epoch that was asked for: a permutation is drawn once.
    last: Mutex<Option<(u64, Arc<Vec<u32>>)>>,
}

impl Epochs {
    pub fn new(order: Order, key: Key) -> Self {
        Epochs { order, key, last: Mutex::new(None) }
    }

    /// `batch` independent numbers below `n`.
    pub fn random(&self, position: u64, batch: usize, n: usize) -> Result<Vec<usize>> {
        let key = self.key.fold(position);
        memory::try_collect((0..batch as u64).map(|b| key.below(b, n as u64) as usize))
    }

    /// The items of a batch, of `n` of which an epoch takes whole batches; `n` is at least `batch`, and fits 32 bits.
    pub fn items(&self, position: u64, batch: usize, n: usize) -> Result<Vec<usize>> {
        let epoch = (n / batch) as u64;
        let of_epoch = (0..batch).map(|b| (position % epoch) as usize * batch + b);
        match self.order {
            Order::Random => self.random(position, batch, n),
            Order::Sequential => memory::try_collect(of_epoch),
            Order::Shuffled => {
                let order = self.permutation(position / epoch, n)?;
                memory::try_collect(of_epoch.map(|i| order[i] as usize))
            }
        }
    }

    /// The items in the order of an epoch (Fisher & Yates).
    fn permutation(&self, epoch: u64, n: usize) -> Result<Arc<Vec<u32>>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((e, order)) = &*last
            && *e == epoch
        {
            return Ok(Arc::clone(order));
        }
        let key = self.key.fold(epoch);
        let mut order = memory::try_collect(0..n as u32)?;
        for i in (1..order.len()).rev() {
            order.swap(i, key.below(i as u64, i as u64 + 1) as usize);
        }
        let order = Arc::new(order);
        *last = Some((epoch, Arc::clone(&order)));
        Ok(order)
    }
}
