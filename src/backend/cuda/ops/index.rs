//! Elements and rows picked by index on the device, and sums back into them: the counterpart of the CPU's `index`.
//!
//! An index out of range is an `Err` here as on the CPU, so it has to be known before the op returns: [`indices`] lets a
//! kernel search for the first offender and reads at most 1 KiB back. **This waits for everything enqueued before it.** It is
//! the one synchronisation of these ops; the values themselves never leave the device. A captured step goes on with 0 in the
//! place of an index out of range, and what its checks found is read after each replay.

use crate::backend::cuda::abi::{Grid, View, bits};
use crate::backend::cuda::device::{Buffer, Context, Dst, Src, capture};
use crate::backend::cuda::launch::kernels::{indexing as kernels, segment};
use crate::backend::cuda::launch::{Dense, In, Out, THREADS, copy, grid};
use crate::dtype::{DType, I64};
use crate::error::{Error, Result, bail};
use crate::layout::Layout;
use crate::shape::{Dims, Shape};

/// Blocks that search for an index out of range; each reports one position and the index there.
const SEARCHERS: u32 = 64;

/// Keys per block of the sort, values of a digit, and longest run that one thread adds up: as in kernels/index/segment.cu.
const TILE: usize = 2048;
const DIGIT_BITS: u32 = 8;
const GROUP: usize = 64;

/// The indices in row-major order as `i64`, each found to be in `0..limit`. Waits for the device, except in a captured step.
///
/// # Errors
/// Index error that shows the first one out of range; dtype error for floats.
pub(crate) fn indices<'a>(x: &In<'a>, limit: usize) -> Result<Dense<'a>> {
    if x.dtype().is_float() {
        bail!(dtype, "expected integer indices (i64, u32 or u8), found {}", x.dtype());
    }
    let (on, n) = (x.context(), x.numel());
    let ids = x.contiguous_as(I64)?;
    if n == 0 {
        return Ok(ids);
    }
    let grid = Grid::over(n.div_ceil(8), THREADS, SEARCHERS);
    let words = 2 * grid.blocks[0] as usize;
    let most = i64::try_from(limit).unwrap_or(i64::MAX);
    let shape = x.shape().clone();
    let judge = move |found: &[i64]| outside(found, &shape, limit);
    if on.is_capturing() {
        let judge = judge.clone();
        let Some(found) = capture::check(words, judge)? else { bail!(capture, "the capture has ended") };
        let mut safe = on.alloc(I64, n)?;
        kernels::check(on, grid, &found, &ids.src(), Some(&Dst::new(&mut safe)), n as i64, most)?;
        return Ok(Dense::Owned(safe));
    }
    let mut found = on.alloc(I64, words)?;
    kernels::check(on, grid, &Dst::new(&mut found), &ids.src(), None, n as i64, most)?;
    judge(&found.download::<i64>()?)?;
    Ok(ids)
}

/// The error of the first index out of range, if blocks of the search found one.
fn outside(found: &[i64], shape: &Shape, limit: usize) -> Result<()> {
    let n = shape.numel() as i64;
    let Some(&[at, id]) = found.as_chunks::<2>().0.iter().min_by_key(|f| f[0]).filter(|f| f[0] < n) else { return Ok(()) };
    let mut rest = at as usize;
    let mut position = Dims::from_elem(0, shape.rank());
    for (p, &d) in position.iter_mut().zip(shape.iter()).rev() {
        *p = rest % d;
        rest /= d;
    }
    Err(Error::index(format!("index {id} at position {position:?} is outside 0..{limit}")))
}

/// Offsets of the elements that an index tensor selects along `axis`: a view of the index' shape with 0
/// there, and how far one step along the axis goes.
fn lines(of: &Layout, index: &Shape, axis: usize) -> Result<(View, i64)> {
    let mut strides: Dims = of.strides().iter().copied().collect();
    strides[axis] = 0;
    Ok((View::new(&Layout::from_parts(index.clone(), strides, 0)?)?, of.strides()[axis] as i64))
}

/// `y[o, k, i] = x[o, ids[o, k, i], i]` with `ids` checked and of the shape of `y`.
pub(crate) fn gather(x: &In<'_>, ids: &Dense<'_>, axis: usize, y: &mut Out<'_>) -> Result<()> {
    let (on, n) = (y.context(), y.numel());
    if n == 0 {
        return Ok(());
    }
    let (view, along) = lines(x.layout(), y.shape(), axis)?;
    kernels::gather(on, Grid::over(n, THREADS, on.grid_cap()), &y.dst(), &x.at(x.layout()), view, &ids.src(), along, n as i64)
}

/// `y[o, k, :] = x[o, ids[k], :]` with `x` in the shape `[outer, extent, inner]`; rows of `skip` become zero.
pub(crate) fn select_rows(
    x: &In<'_>,
    ids: &Dense<'_>,
    picked: usize,
    extent: usize,
    inner: usize,
    skip: Option<usize>,
    y: &mut Out<'_>,
) -> Result<()> {
    let (on, n) = (y.context(), y.numel());
    if n == 0 {
        return Ok(());
    }
    let x = x.contiguous()?;
    let grid = grid(on, n, y.dtype().size());
    let skip = skip.map_or(-1, |s| s as i64);
    kernels::rows(on, grid, &y.dst(), &x.src(), &ids.src(), picked as i64, extent as i64, inner as i64, skip, n as i64)
}

/// `y[k, c] = 1` where `c = ids[k]`, else 0.
pub(crate) fn one_hot(ids: &Dense<'_>, classes: usize, y: &mut Out<'_>) -> Result<()> {
    let (on, n) = (y.context(), y.numel());
    if n == 0 {
        return Ok(());
    }
    let one = bits(y.dtype(), 1.0);
    kernels::one_hot(on, grid(on, n, y.dtype().size()), &y.dst(), &ids.src(), classes as i64, one, n as i64)
}

/// `memory[o, first + t, :] = x[o, t, :]` for `memory` in the shape `[outer, capacity, inner]`; `at` is a position in device memory that is
/// added to `first`. What would lie beyond the capacity is left out.
///
/// # Errors
/// Shape error when `x` has more separate axes than a kernel addresses; what the device reports.
pub(crate) fn put(memory: &mut Buffer, x: &In<'_>, at: Option<&In<'_>>, first: usize, capacity: usize, inner: usize) -> Result<()> {
    let (on, n) = (x.context(), x.numel());
    if n == 0 || memory.len() == 0 {
        return Ok(());
    }
    let time = n / (memory.len() / capacity);
    let (from, view) = x.view()?;
    let at = at.map(|a| a.at(a.layout()));
    let grid = Grid::over(n, THREADS, on.grid_cap());
    let to = Dst::new(memory);
    kernels::put(on, grid, &to, &from, view, at.as_ref(), first as i64, capacity as i64, time as i64, inner as i64, n as i64)
}

/// `y[o, v, :] = Σ g[o, k, :]` over the `k` with `ids[k] = v`, in the order of `k`; the row of `skip`, and rows that no
/// index names, are zero. `y` is `[outer, extent, inner]`, `g` is `[outer, ids, inner]`.
pub(crate) fn add_rows(g: &In<'_>, ids: &Dense<'_>, extent: usize, inner: usize, skip: Option<usize>, y: &mut Out<'_>) -> Result<()> {
    let on = y.context();
    y.zero(on)?;
    if g.numel() == 0 || y.numel() == 0 {
        return Ok(());
    }
    let outer = y.numel() / (extent * inner);
    let n = g.numel() / (outer * inner);
    let runs = sort(on, &ids.src(), n, extent)?;
    runs.add(on, &g.contiguous()?.src(), outer, extent, inner, skip, y)
}

/// `y = x`, then `y[o, ids[o, k, i], i] += s[o, k, i]` in the order of `k`.
pub(crate) fn scatter_add(x: &In<'_>, ids: &Dense<'_>, s: &In<'_>, axis: usize, y: &mut Out<'_>) -> Result<()> {
    let (on, extent) = (y.context(), y.numel());
    match scatter_runs(x, ids, s, axis, y)? {
        Some(runs) => runs.add(on, &s.contiguous()?.src(), 1, extent, 1, None, y),
        None => Ok(()),
    }
}

/// `y = x`, then each of its elements joined with all of `s` that are put there: multiplied (`how` 0), their maximum (1) or minimum (2).
pub(crate) fn scatter_fold(x: &In<'_>, ids: &Dense<'_>, s: &In<'_>, axis: usize, how: i32, y: &mut Out<'_>) -> Result<()> {
    let (on, n) = (y.context(), s.numel());
    let Some(runs) = scatter_runs(x, ids, s, axis, y)? else { return Ok(()) };
    let (keys, order) = (Src::new(&runs.keys, 0), Src::new(&runs.order, 0));
    segment::fold(on, Grid::over(n, THREADS, on.grid_cap()), &y.dst(), &s.contiguous()?.src(), &keys, &order, n as i64, how)
}

/// Copies `x`, and sorts the places in it that the elements of `s` go to; `None` when there are none.
fn scatter_runs(x: &In<'_>, ids: &Dense<'_>, s: &In<'_>, axis: usize, y: &mut Out<'_>) -> Result<Option<Runs>> {
    let on = y.context();
    copy::gather(on, x.start(), x.layout(), y.dst())?;
    let n = s.numel();
    if n == 0 || y.numel() == 0 {
        return Ok(None);
    }
    let (view, along) = lines(&Layout::contiguous(y.shape().clone()), s.shape(), axis)?;
    let mut places = on.alloc(I64, n)?;
    kernels::places(on, Grid::over(n, THREADS, on.grid_cap()), &Dst::new(&mut places), view, &ids.src(), along, n as i64)?;
    sort(on, &Src::new(&places, 0), n, y.numel()).map(Some)
}

/// Keys in ascending order and the positions they came from; equal keys by position.
struct Runs {
    keys: Buffer,
    order: Buffer,
}

/// Sorts `n` keys in `0..limit`: stable, 8 bits a pass.
fn sort(on: &'static Context, keys: &Src<'_>, n: usize, limit: usize) -> Result<Runs> {
    let bits = (usize::BITS - limit.saturating_sub(1).leading_zeros()).max(1);
    let tiles = n.div_ceil(TILE);
    // One block per tile, and tiles are counted by the block's index.
    let Ok(blocks) = u32::try_from(tiles) else { bail!(argument, "{n} indices are more than can be sorted") };
    let per_tile = Grid { blocks: [blocks, 1, 1], threads: 256, shared: 0 };
    let counts = tiles << DIGIT_BITS;
    let one_block = Grid { blocks: [1; 3], threads: counts.min(1024) as u32, shared: 0 };
    let mut count = on.alloc(I64, counts)?;
    let mut sorted: Option<Runs> = None;
    let mut spare: Option<Runs> = None;
    for shift in (0..bits).step_by(DIGIT_BITS as usize) {
        let mut to = match spare.take() {
            Some(r) => r,
            None => Runs { keys: on.alloc(I64, n)?, order: on.alloc(I64, n)? },
        };
        let (from, order) = match &sorted {
            Some(r) => (Src::new(&r.keys, 0), Some(Src::new(&r.order, 0))),
            None => (*keys, None),
        };
        let width = DIGIT_BITS.min(bits - shift) as i32;
        let (n, shift) = (n as i64, shift as i32);
        segment::count(on, per_tile, &Dst::new(&mut count), &from, n, shift)?;
        segment::scan(on, one_block, &Dst::new(&mut count), counts as i64)?;
        let (to_keys, to_order) = (Dst::new(&mut to.keys), Dst::new(&mut to.order));
        segment::place(on, per_tile, &to_keys, &to_order, &from, order.as_ref(), &Src::new(&count, 0), n, shift, width)?;
        spare = sorted.replace(to);
    }
    match sorted {
        Some(r) => Ok(r),
        None => bail!(argument, "there is nothing to sort"),
    }
}

impl Runs {
    /// Adds the rows of `g` to the rows of `y` that the keys name.
    #[allow(clippy::too_many_arguments, reason = "three extents of both operands")]
    fn add(
        &self,
        on: &'static Context,
        g: &Src<'_>,
        outer: usize,
        extent: usize,
        inner: usize,
        skip: Option<usize>,
        y: &mut Out<'_>,
    ) -> Result<()> {
        let n = self.keys.len();
        let (keys, order) = (Src::new(&self.keys, 0), Src::new(&self.order, 0));
        let bytes = y.dtype().size();
        let [o, ni, e, i] = [outer, n, extent, inner].map(|v| v as i64);
        let mut partial = None;
        if n > GROUP {
            let windows = outer * n.div_ceil(GROUP) * inner;
            let acc = if y.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
            let mut sums = on.alloc(acc, windows)?;
            segment::partial(on, grid(on, windows, bytes), &Dst::new(&mut sums), g, &keys, &order, o, ni, i)?;
            partial = Some(sums);
        }
        let partial = partial.as_ref().map(|p| Src::new(p, 0));
        let grid = grid(on, outer * n * inner, bytes);
        segment::sum(on, grid, &y.dst(), g, partial.as_ref(), &keys, &order, o, ni, e, i, skip.map_or(-1, |s| s as i64))
    }
}
