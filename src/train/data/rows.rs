//! Batches of rows of tensors.

use super::Batches;
use super::order::{Epoch, Epochs, Hash, Order};
use crate::dtype::I64;
use crate::error::{Error, Result, bail};
use crate::module::Module;
use crate::rng::Key;
use crate::tensor::Tensor;

/// How many rows the tensors of a tree have; `None` without tensors.
fn rows_of<M: Module + Clone>(all: &M) -> Result<Option<usize>> {
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
    Ok(rows)
}

/// The rows (along axis 0) of tensors that belong together in two parts: the others, and `count` of them that the key draws, for a test on
/// what training has not seen. Both are shuffled; the same key gives the same parts.
///
/// ```
/// use cotangent::{F32, Key, Tensor, train::{Order, Rows, hold_out}};
/// let x = Tensor::randn([100, 3], F32, Key::new(1))?;
/// let y = x.sum(-1)?;
/// let (train, (x_test, y_test)) = hold_out((x, y), 20, Key::new(2))?;
/// assert_eq!((x_test.shape().dims(), y_test.shape().dims()), (&[20, 3][..], &[20][..]));
/// assert_eq!(Rows::new(train, 8, Order::Shuffled, Key::new(3))?.epoch(), 10); // batches
/// # Ok::<(), cotangent::Error>(())
/// ```
///
/// # Errors
/// Argument error unless both parts have a row; shape error for a scalar, or tensors with different numbers of rows; out of memory.
#[doc(alias("train_test_split", "random_split"))]
#[track_caller]
pub fn hold_out<M: Module + Clone>(all: M, count: usize, key: Key) -> Result<(M, M)> {
    let at = std::panic::Location::caller();
    let make = || {
        let rows = rows_of(&all)?.unwrap_or(0);
        if count == 0 || count >= rows {
            bail!(argument, "of {rows} rows, {count} cannot be held out: both parts need one");
        }
        let order = Tensor::randperm(rows, I64, key)?;
        let part = |start: usize, len: usize| {
            let ids = order.narrow(0, start, len)?;
            all.map(|_, t| t.detach().index_select(0, &ids.to_device(t.device())?))
        };
        Ok((part(count, rows - count)?, part(0, count)?))
    };
    make().map_err(|e: Error| e.in_op("hold_out", at).called_at(at))
}

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
            let rows = rows_of(&all)?.unwrap_or(0);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::F64;

    /// Each row is in one part, beside what belongs to it; the key decides which.
    #[test]
    fn held_out_rows_are_the_others() -> Result<()> {
        let x = Tensor::arange(0.0, 50.0, 1.0, F64)?;
        let pairs = |key| hold_out((x.clone(), x.mul_scalar(-1.0)?.reshape([50, 1])?), 12, Key::new(key));
        let ((a, minus_a), (b, minus_b)) = pairs(1)?;
        assert_eq!((a.shape().dims(), minus_b.shape().dims()), (&[38][..], &[12, 1][..]));
        for (plain, minus) in [(&a, &minus_a), (&b, &minus_b)] {
            assert_eq!(plain.add(&minus.flatten(0, 1)?)?.abs()?.max(..)?.item()?, 0.0);
        }
        let mut all = [a.to_vec::<f64>()?, b.to_vec::<f64>()?].concat();
        all.sort_by(f64::total_cmp);
        assert_eq!(all, x.to_vec::<f64>()?);
        assert_eq!(pairs(1)?.1.0.to_vec::<f64>()?, b.to_vec::<f64>()?);
        assert_ne!(pairs(2)?.1.0.to_vec::<f64>()?, b.to_vec::<f64>()?);
        for count in [0, 50, 51] {
            let e = hold_out(x.clone(), count, Key::new(1)).unwrap_err();
            assert!(e.to_string().starts_with(&format!("hold_out: of 50 rows, {count} cannot be held out")), "{e}");
        }
        assert!(hold_out((x.clone(), x.narrow(0, 0, 49)?), 5, Key::new(1)).unwrap_err().to_string().contains("`1` has 49 rows"));
        Ok(())
    }
}
