//! Batches of windows into a long list of tokens.

use super::order::{Epoch, Epochs, Hash, Order};
use super::{Batches, Tokens};
use crate::error::{Error, Result, bail};
use crate::memory;
use crate::rng::Key;
use crate::tensor::Tensor;

/// Next-token batches: inputs and targets, `[batch, context]` of `i64` each; targets are the inputs one token later.
///
/// ```
/// use cotangent::{Key, train::{Batches, Order, Tokens, Windows}};
/// let tokens = Tokens::from((0..100).collect::<Vec<u32>>());
/// let windows = Windows::new(tokens, 2, 8, Order::Shuffled, Key::new(1))?;
/// let (x, y) = windows.batch(0)?;
/// assert_eq!(x.shape(), &[2, 8]);
/// assert_eq!(y.select(1, 0)?.to_vec::<i64>()?, x.select(1, 1)?.to_vec::<i64>()?);
/// assert_eq!(windows.epoch(), 6); // batches: of the 12 windows, two at a time
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Debug)]
pub struct Windows {
    tokens: Tokens,
    batch: usize,
    context: usize,
    epochs: Epochs,
}

impl Windows {
    /// Windows of `context` tokens and the one after, `batch` at a time. Windows that do not fill the last batch of an epoch are a batch
    /// of fewer in [`Order::Sequential`], and left out in [`Order::Shuffled`]: see [`Windows::keep_last`].
    ///
    /// # Errors
    /// Argument error for a size of zero, or when there are too few tokens for one window, or for one batch of shuffled windows; out of memory.
    #[track_caller]
    pub fn new(tokens: Tokens, batch: usize, context: usize, order: Order, key: Key) -> Result<Self> {
        let out = Windows { tokens, batch, context, epochs: Epochs::new(order, key) };
        let at = std::panic::Location::caller();
        out.check().map_err(|e| e.in_op("windows", at))?;
        Ok(out)
    }

    fn check(&self) -> Result<()> {
        let (batch, context, tokens) = (self.batch, self.context, self.tokens.len());
        if batch == 0 || context == 0 {
            bail!(argument, "batch and context must be at least 1, found {batch} and {context}");
        }
        if batch.checked_mul(context).is_none_or(|n| n > isize::MAX as usize / 8) {
            bail!(out_of_memory, "a batch of {batch} × {context} tokens does not fit memory");
        }
        if tokens <= context {
            bail!(
                argument,
                "{tokens} tokens are too short for a context of {context}, whose targets are the tokens after it: {} are needed",
                context.saturating_add(1)
            );
        }
        if self.epochs.order == Order::Shuffled && self.windows() < batch {
            bail!(argument, "{tokens} tokens have {} windows of {context}, fewer than a batch of {batch}", self.windows());
        }
        if u32::try_from(self.windows()).is_err() {
            bail!(argument, "{} windows are more than can be shuffled; use a longer context or random order", self.windows());
        }
        Ok(())
    }

    /// Windows side by side.
    fn windows(&self) -> usize {
        (self.tokens.len() - 1) / self.context
    }

    /// Whether an epoch ends with a batch of the windows that are left, so that each is seen. Without effect in [`Order::Random`], which
    /// has no epochs.
    #[must_use]
    pub fn keep_last(mut self, keep: bool) -> Self {
        self.epochs.keep_last = keep;
        self
    }

    /// Batches in an epoch of windows side by side.
    pub fn epoch(&self) -> usize {
        self.epochs.batches(self.batch, self.windows())
    }

    /// The batches of one epoch, the first being 0.
    pub fn iter_epoch(&self, epoch: u64) -> Epoch<'_, Self> {
        let n = self.epoch() as u64;
        let first = epoch.saturating_mul(n);
        Epoch { data: self, positions: first..first.saturating_add(n) }
    }

    /// Where the windows of a batch start.
    fn starts(&self, position: u64) -> Result<Vec<usize>> {
        if self.epochs.order == Order::Random {
            let last = self.tokens.len() - self.context;
            return self.epochs.random(position, self.batch, last);
        }
        memory::try_collect(self.epochs.items(position, self.batch, self.windows())?.into_iter().map(|w| w * self.context))
    }
}

impl Batches for Windows {
    type Batch = (Tensor, Tensor);

    fn batch(&self, position: u64) -> Result<(Tensor, Tensor)> {
        let context = self.context;
        let starts = self.starts(position)?;
        let rows = starts.len();
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for v in [&mut x, &mut y] {
            v.try_reserve_exact(rows * context)
                .map_err(|_| Error::out_of_memory(format!("a batch of {rows} × {context} tokens does not fit memory")))?;
        }
        for start in starts {
            let ids = self.tokens.read(start, context + 1)?;
            x.extend(ids[..context].iter().map(|&t| i64::from(t)));
            y.extend(ids[1..].iter().map(|&t| i64::from(t)));
        }
        Ok((Tensor::from_slice(&x, [rows, context])?, Tensor::from_slice(&y, [rows, context])?))
    }

    fn fingerprint(&self) -> Result<Option<String>> {
        let mut hash = Hash::new();
        let drawn = self.epochs.describe(&mut hash);
        let n = self.tokens.len();
        for i in Hash::sampled(n) {
            self.tokens.read(i, 64.min(n - i))?.into_iter().for_each(|id| hash.add(u64::from(id)));
        }
        Ok(Some(format!("{n} tokens in batches of {} windows of {}, {drawn}, {}", self.batch, self.context, hash.text())))
    }
}
