//! Batches of rows of tensors.

use super::Batches;
use super::order::{Epochs, Order};
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
    /// Of `all`, `batch` rows at a time; an incomplete batch at the end of an epoch is left out.
    ///
    /// # Errors
    /// Argument error for a batch of 0 or of more rows than there are; shape error for a scalar, or tensors with different
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
            if batch == 0 || batch > rows || u32::try_from(rows).is_err() {
                bail!(argument, "batches of {batch} rows cannot be made of {rows}");
            }
            Ok(Rows { rows, batch, epochs: Epochs::new(order, key), all: all.map(|_, t| Ok(t.detach()))? })
        };
        make().map_err(|e: Error| e.in_op("rows", at))
    }

    /// Batches in an epoch.
    pub fn epoch(&self) -> usize {
        self.rows / self.batch
    }
}

impl<M: Module + Clone> Batches for Rows<M> {
    type Batch = M;

    fn batch(&self, position: u64) -> Result<M> {
        let items: Vec<i64> =
            crate::memory::try_collect(self.epochs.items(position, self.batch, self.rows)?.into_iter().map(|i| i as i64))?;
        let items = Tensor::from_slice(&items, [self.batch])?;
        self.all.map(|_, t| t.index_select(0, &items.to_device(t.device())?))
    }
}
