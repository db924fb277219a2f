//! One launch over many tensors: tables of addresses in the launch's parameters, for the steps of optimizers.

use crate::backend::cuda::abi::{ARRAYS, Grid, SETS, TENSORS, Tensors};
use crate::backend::cuda::device::{Buffer, Context, Dst};
use crate::backend::cuda::launch::THREADS;
use crate::dtype::DType;
use crate::error::Result;

/// Elements of a block.
const PIECE: usize = 8192;

/// A table that fills up; the launcher is called when it is full, and at the end.
///
/// It holds addresses, not memory: a caller that adds arrays keeps them until [`Table::finish`] has been called.
pub(crate) struct Table {
    on: &'static Context,
    dtype: DType,
    table: Box<Tensors>,
    blocks: usize,
    sets: usize,
    /// Where the numbers of a captured step begin that `which` counts from.
    live: Option<u64>,
}

/// What launches a table: the first array of its first tensor, the table, and where captured numbers begin.
type Launch<'a> = dyn Fn(&'static Context, Grid, &Dst<'_>, Tensors, Option<u64>) -> Result<()> + 'a;

impl Table {
    fn new(on: &'static Context, dtype: DType) -> Self {
        let table = Tensors {
            at: [[0; TENSORS]; ARRAYS],
            n: [0; TENSORS],
            first: [0; TENSORS + 1],
            which: [0; TENSORS],
            count: 0,
            numbers: [[0.0; 3]; SETS],
        };
        Table { on, dtype, table: Box::new(table), blocks: 0, sets: 0, live: None }
    }

    /// Which set holds these numbers; a new one if there is room.
    fn set(&mut self, numbers: [f64; 3]) -> Option<usize> {
        let bits = |n: [f64; 3]| n.map(f64::to_bits);
        if let Some(i) = self.table.numbers[..self.sets].iter().position(|n| bits(*n) == bits(numbers)) {
            return Some(i);
        }
        if self.sets == SETS {
            return None;
        }
        self.table.numbers[self.sets] = numbers;
        self.sets += 1;
        Some(self.sets - 1)
    }

    fn launch(&mut self, launch: &Launch<'_>) -> Result<()> {
        if self.table.count == 0 {
            return Ok(());
        }
        self.table.first[self.table.count as usize] = self.blocks as i32;
        let grid = Grid { blocks: [self.blocks as u32, 1, 1], threads: THREADS, shared: 0 };
        launch(self.on, grid, &Dst::at(self.table.at[0][0], self.dtype), *self.table, self.live)?;
        *self = Table::new(self.on, self.dtype);
        Ok(())
    }
}

/// Tables by device and type.
#[derive(Default)]
pub(crate) struct Tables(Vec<Table>);

impl Tables {
    /// Adds a tensor of `n` elements with its arrays and numbers; those of a captured step lie at `live`.
    pub(crate) fn push(
        &mut self,
        on: &'static Context,
        dtype: DType,
        n: usize,
        arrays: [u64; ARRAYS],
        numbers: [f64; 3],
        live: Option<u64>,
        launch: &Launch<'_>,
    ) -> Result<()> {
        if n == 0 {
            return Ok(());
        }
        let at = self.0.iter().position(|t| std::ptr::eq(t.on, on) && t.dtype == dtype).unwrap_or_else(|| {
            self.0.push(Table::new(on, dtype));
            self.0.len() - 1
        });
        let t = &mut self.0[at];
        let blocks = pieces(n);
        if t.table.count as usize == TENSORS
            || t.blocks + blocks > i32::MAX as usize
            || (t.table.count > 0 && t.live.is_some() != live.is_some())
        {
            t.launch(launch)?;
        }
        let which = match live {
            // Numbers lie 8 bytes apart, in any order.
            Some(live) => ((live as i64 - *t.live.get_or_insert(live) as i64) / 8) as i32,
            None => match t.set(numbers) {
                Some(i) => i as i32,
                None => {
                    t.launch(launch)?;
                    t.set(numbers).unwrap_or_default() as i32
                }
            },
        };
        let k = t.table.count as usize;
        for (to, at) in t.table.at.iter_mut().zip(arrays) {
            to[k] = at;
        }
        (t.table.n[k], t.table.first[k], t.table.which[k]) = (n as i64, t.blocks as i32, which);
        t.table.count += 1;
        t.blocks += blocks;
        Ok(())
    }

    /// Launches what has not been launched.
    pub(crate) fn finish(&mut self, launch: &Launch<'_>) -> Result<()> {
        self.0.iter_mut().try_for_each(|t| t.launch(launch))
    }
}

/// Blocks that a tensor of so many elements takes.
pub(crate) fn pieces(n: usize) -> usize {
    n.div_ceil(PIECE)
}

/// Address of a buffer that will be written in place.
pub(crate) fn address(b: &mut Buffer) -> u64 {
    Dst::new(b).addr()
}
