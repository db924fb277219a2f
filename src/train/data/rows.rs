//! Batches of rows of tensors.

use super::Batches;
use super::order::{Epoch, Epochs, Hash, Order};
use crate::error::{Error, Result, bail};
use crate::module::{Module, ModuleExt};
use crate::rng::Key;
use crate::tensor::Tensor;

/// Batches of rows (along axis 0) of tensors that belong together: of one, of a tuple, or of any [`Module`].
///
/// ```
/// use cotangent::{F32, Key, Tensor, train::{Batches, Order, Rows}};
/// let x = Tensor::randn([100, 3], F32, Key::new(1))?;
/// let y = x.sum(-1)?;
/// let rows = Rows::new((x, y), 8, Order::Shuffled, Key::new(2))?;
/// let (x, y) = rows.batch(0)?;
/// assert_eq!((x.shape().dims(), y.shape().dims()), (&[8, 3][..], &[8][..]));
/// assert_eq!(rows.epoch(), 12); // batches
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Debug)]
pub struct Rows<M> {
    all: M,
    rows: usize,
    batch: usize,
    epochs: Epochs,
}

impl<M: Module + Clone> Rows<M> {
    /// Of `all`, `batch` rows at a time. What is left at the end of an epoch is a batch of fewer rows in [`Order::Sequential`], and left
    /// out otherwise: see [`Rows::keep_last`].
    ///
    /// # Errors
    /// Argument error without rows, for a batch of 0, or of more rows than there are unless the order is sequential; shape error for a scalar, or tensors with different
    /// numbers of rows.
    #[track_caller]
    pub fn new(all: M, batch: usize, order: Order, key: Key) -> Result<Self> {
        let at = std::panic::Location::caller();
        let make = || {
            let mut rows = None;
            for (name, t) in all.named_tensors() {
                let n = match t.shape().dims() {
                    [] => bail!(shape, "`{name}` is a scalar: it has no rows"),
                    dims => dims[0],
                };
                if *rows.get_or_insert(n) != n {
                    bail!(shape, "`{name}` has {n} rows, the tensors before it have {}", rows.unwrap_or(0));
                }
            }
            let rows = rows.unwrap_or(0);
            let most = if order == Order::Sequential { usize::MAX } else { rows };
            if batch == 0 || rows == 0 || batch > most || u32::try_from(rows).is_err() {
                bail!(argument, "batches of {batch} rows cannot be made of {rows}");
            }
            Ok(Rows { rows, batch, epochs: Epochs::new(order, key), all: all.map(|_, t| Ok(t.detach()))? })
        };
        make().map_err(|e: Error| e.in_op("rows", at))
    }

    /// Whether an epoch ends with a batch of the rows that are left, so that each row is seen. Without effect in [`Order::Random`], which
    /// has no epochs.
    #[must_use]
    pub fn keep_last(mut self, keep: bool) -> Self {
        self.epochs.keep_last = keep;
        self
    }

    /// Batches in an epoch.
    pub fn epoch(&self) -> usize {
        self.epochs.batches(self.batch, self.rows)
    }

    /// The batches of one epoch, the first being 0.
    ///
    /// ```
    /// use cotangent::{F32, Key, Tensor, train::{Order, Rows}};
    /// let rows = Rows::new(Tensor::arange(0.0, 10.0, 1.0, F32)?, 4, Order::Sequential, Key::new(1))?;
    /// let sizes: Vec<usize> = rows.iter_epoch(0).map(|batch| Ok(batch?.numel())).collect::<cotangent::Result<_>>()?;
    /// assert_eq!(sizes, [4, 4, 2]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn iter_epoch(&self, epoch: u64) -> Epoch<'_, Self> {
        let n = self.epoch() as u64;
        let first = epoch.saturating_mul(n);
        Epoch { data: self, positions: first..first.saturating_add(n) }
    }
}

impl<M: Module + Clone> Batches for Rows<M> {
    type Batch = M;

    fn batch(&self, position: u64) -> Result<M> {
        let items: Vec<i64> =
            crate::memory::try_collect(self.epochs.items(position, self.batch, self.rows)?.into_iter().map(|i| i as i64))?;
        let items = Tensor::from_slice(&items, [items.len()])?;
        self.all.map(|_, t| t.index_select(0, &items.to_device(t.device())?))
    }

    fn fingerprint(&self) -> Result<Option<String>> {
        let mut hash = Hash::new();
        let drawn = self.epochs.describe(&mut hash);
        let sampled: Vec<i64> = Hash::sampled(self.rows).into_iter().map(|i| i as i64).collect();
        let sampled = Tensor::from_slice(&sampled, [sampled.len()])?;
        for (_, t) in self.all.named_tensors() {
            let some = t.index_select(0, &sampled.to_device(t.device())?)?;
            some.to_f64_vec()?.into_iter().for_each(|v| hash.add(v.to_bits()));
        }
        Ok(Some(format!("{} rows in batches of {}, {drawn}, {}", self.rows, self.batch, hash.text())))
    }
}
