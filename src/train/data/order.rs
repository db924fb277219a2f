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
    /// Windows side by side, or rows, from the first to the last, again and again: for evaluation. The last batch of an epoch holds
    /// what is left, so that all are seen.
    Sequential,
}

/// The items of batches, as a function of the batch's position.
#[derive(Debug)]
pub(super) struct Epochs {
    pub order: Order,
    /// Whether an epoch ends with a batch that is partly filled.
    pub keep_last: bool,
    key: Key,
    // The order of the last epoch that was asked for: a permutation is drawn once.
    last: Mutex<Option<(u64, Arc<Vec<u32>>)>>,
}

impl Epochs {
    pub fn new(order: Order, key: Key) -> Self {
        Epochs { order, key, keep_last: order == Order::Sequential, last: Mutex::new(None) }
    }

    /// `batch` independent numbers below `n`.
    pub fn random(&self, position: u64, batch: usize, n: usize) -> Result<Vec<usize>> {
        let key = self.key.fold(position);
        memory::try_collect((0..batch as u64).map(|b| key.below(b, n as u64) as usize))
    }

    /// Batches in an epoch of `n` items; at least one, which may be empty.
    pub fn batches(&self, batch: usize, n: usize) -> usize {
        if self.keep_last && self.order != Order::Random { n.div_ceil(batch) } else { n / batch }.max(1)
    }

    /// The items of a batch, of `n`, which fit 32 bits.
    pub fn items(&self, position: u64, batch: usize, n: usize) -> Result<Vec<usize>> {
        let epoch = self.batches(batch, n) as u64;
        let first = (position % epoch) as usize * batch;
        let of_epoch = first..first.saturating_add(batch).min(n);
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

/// The batches of one epoch, in order; made by [`Rows::iter_epoch`](super::Rows::iter_epoch) and
/// [`Windows::iter_epoch`](super::Windows::iter_epoch).
#[derive(Debug)]
pub struct Epoch<'a, D> {
    pub(super) data: &'a D,
    pub(super) positions: std::ops::Range<u64>,
}

impl<D: super::Batches> Iterator for Epoch<'_, D> {
    type Item = crate::error::Result<D::Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.positions.next().map(|p| self.data.batch(p))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.positions.size_hint()
    }
}

/// FNV-1a: tells data apart, nothing more.
#[derive(Debug)]
pub(super) struct Hash(u64);

impl Hash {
    pub fn new() -> Self {
        Hash(0xcbf2_9ce4_8422_2325)
    }

    pub fn add(&mut self, v: u64) {
        for b in v.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// At most 64 of `n` items, evenly spread, the first and the last among them.
    pub fn sampled(n: usize) -> Vec<usize> {
        let k = n.min(64);
        (0..k).map(|i| if k == 1 { 0 } else { ((n - 1) as u128 * i as u128 / (k - 1) as u128) as usize }).collect()
    }

    pub fn text(&self) -> String {
        format!("{:016x}", self.0)
    }
}

impl Epochs {
    /// For a fingerprint: how batches are drawn.
    pub fn describe(&self, hash: &mut Hash) -> String {
        let (a, b) = self.key.parts();
        hash.add(a);
        hash.add(b);
        format!("{:?}{}", self.order, if self.keep_last { ", the last partly filled" } else { "" })
    }
}
