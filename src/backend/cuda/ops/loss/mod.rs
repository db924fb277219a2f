//! Losses of class targets.

pub(crate) mod linear;

use crate::backend::cuda::abi::Grid;
use crate::backend::cuda::device::{Buffer, Context, Dst, Src, capture};
use crate::backend::cuda::launch::kernels::{cross_entropy, loss, nll_loss};
use crate::backend::cuda::launch::{Dense, In, Out, THREADS, grid};
use crate::dtype::DType;
use crate::error::{Result, bail};
use std::ops::Range;

/// Class targets as indices on the device, and what a mean divides by.
pub(crate) struct Targets {
    of: Buffer,
    /// The weight of all counted targets, and of all classes.
    weight: Buffer,
    rows: usize,
}

/// What a loss is made with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Number of classes.
    pub classes: usize,
    /// Share of the target distribution that is spread evenly.
    pub smoothing: f64,
    /// Times the square of the log-sum-exp.
    pub z: f64,
    /// One loss per target.
    pub each: bool,
    /// Divided by the weight of the targets.
    pub mean: bool,
}

/// One block, with at most a thread for each item.
fn one_block(items: usize) -> Grid {
    Grid { blocks: [1, 1, 1], threads: items.next_multiple_of(32).clamp(32, 1024) as u32, shared: 0 }
}

/// One block per row, with a thread for every 16 bytes of short rows.
fn rows(on: &Context, rows: usize, classes: usize) -> Grid {
    let threads = if classes <= 256 {
        32
    } else if classes <= 2048 {
        128
    } else {
        512
    };
    Grid::rows(rows, threads, on.grid_cap())
}

fn acc(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// The error of the first target out of range, if one was found.
fn outside(found: &[i64], classes: usize) -> Result<()> {
    if let &[at, t] = found
        && at >= 0
    {
        bail!(
            index,
            "target {t} at position {at} is outside 0..{classes}: classes count from 0; ignore_index leaves targets of one number out"
        );
    }
    Ok(())
}

impl Targets {
    /// Reads targets and, if `checked`, waits for them to be found inside `0..classes`: an error names the first that is
    /// not. Unchecked ones that lie outside count as ignored.
    pub(crate) fn read(x: &In<'_>, classes: usize, ignored: Option<i64>, weights: Option<&Src<'_>>, checked: bool) -> Result<Self> {
        let (on, rows) = (x.context(), x.numel());
        let (mut of, mut bad, mut weight) = (on.alloc(DType::I64, rows)?, on.alloc(DType::I64, 2)?, on.alloc(DType::F64, 2)?);
        let (n, c) = (rows as i64, classes as i64);
        let (to, sums) = (Dst::new(&mut of), Dst::new(&mut weight));
        // A captured step goes on, with such targets ignored; the check is read after each replay.
        let later = if checked { capture::check(2, move |found| outside(found, classes))? } else { None };
        let own = later.is_none().then(|| Dst::new(&mut bad));
        let Some(report) = later.as_ref().or(own.as_ref()) else { bail!(argument, "the check has no place") };
        let targets = x.contiguous()?;
        loss::classes(on, one_block(rows), &to, report, &sums, &targets.src(), n, c, ignored.unwrap_or(0), i32::from(ignored.is_some()))?;
        if let Some(w) = weights {
            loss::weights(on, one_block(rows.max(classes)), &Dst::new(&mut weight), w, &Src::new(&of, 0), n, c)?;
        }
        if checked && later.is_none() {
            outside(&bad.download::<i64>()?, classes)?;
        }
        Ok(Targets { of, weight, rows })
    }

    fn of(&self) -> Src<'_> {
        Src::new(&self.of, 0)
    }

    fn weight(&self) -> Src<'_> {
        Src::new(&self.weight, 0)
    }

    /// The result from the loss of every target: `each` writes them into their place, or into the buffer it is given.
    pub(super) fn reduce(&self, o: Options, y: &mut Out<'_>, each: impl FnOnce(&Dst<'_>, Option<&Dst<'_>>) -> Result<()>) -> Result<()> {
        reduce(self.rows, Some(&self.weight()), o, y, each)
    }
}

/// [`Targets::reduce`]; a mean without a weight divides by the number of losses.
fn reduce(
    rows: usize,
    weight: Option<&Src<'_>>,
    o: Options,
    y: &mut Out<'_>,
    each: impl FnOnce(&Dst<'_>, Option<&Dst<'_>>) -> Result<()>,
) -> Result<()> {
    let on = y.context();
    if o.each {
        return if rows == 0 { Ok(()) } else { each(&y.dst(), None) };
    }
    let mut losses = on.alloc(acc(y.dtype()), rows)?;
    if rows > 0 {
        each(&y.dst(), Some(&Dst::new(&mut losses)))?;
    }
    loss::reduce(on, one_block(rows), &y.dst(), &Src::new(&losses, 0), weight, rows as i64, i32::from(o.mean))
}

/// Cross-entropy of logits with probabilities `q`; `stats` gets three numbers of every row.
pub(crate) fn soft(x: &In<'_>, q: &In<'_>, w: Option<&Src<'_>>, o: Options, n: usize, y: &mut Out<'_>, stats: &mut Out<'_>) -> Result<()> {
    let (on, x, q) = (y.context(), x.contiguous()?, q.contiguous()?);
    reduce(n, None, o, y, |y, losses| {
        let grid = rows(on, n, o.classes);
        cross_entropy::soft(on, grid, y, losses, &stats.dst(), &x.src(), &q.src(), w, n as i64, o.classes as i64, o.smoothing, o.z)
    })
}

/// The derivative of [`soft`] in the logits or in the probabilities, given logits, probabilities and the loss's cotangent; without
/// `stats` they are computed again.
pub(crate) fn soft_vjp(
    [x, q, g]: [&In<'_>; 3],
    w: Option<&Src<'_>>,
    stats: Option<&In<'_>>,
    o: Options,
    n: usize,
    by_logits: bool,
    y: &mut Out<'_>,
) -> Result<()> {
    if y.numel() == 0 {
        return Ok(());
    }
    let (on, x, q, g) = (y.context(), x.contiguous()?, q.contiguous()?, g.contiguous()?);
    let stats = stats.map(In::contiguous).transpose()?;
    let stats = stats.as_ref().map(Dense::src);
    let (grid, c) = (rows(on, n, o.classes), o.classes as i64);
    let scale = if o.mean { 1.0 / n as f64 } else { 1.0 };
    let (each, by_targets) = (i32::from(o.each), i32::from(!by_logits));
    let (x, q, g) = (x.src(), q.src(), g.src());
    cross_entropy::soft_vjp(on, grid, &y.dst(), &x, &q, w, &g, stats.as_ref(), n as i64, c, o.smoothing, o.z, scale, each, by_targets)
}

/// The weights in row-major order.
pub(crate) fn weights<'a>(w: Option<&In<'a>>) -> Result<Option<Dense<'a>>> {
    w.map(In::contiguous).transpose()
}

/// Losses `−w x` of log-probabilities.
pub(crate) fn nll(x: &In<'_>, t: &Targets, w: Option<&Src<'_>>, o: Options, y: &mut Out<'_>) -> Result<()> {
    let on = y.context();
    let (x, view) = x.view()?;
    t.reduce(o, y, |y, losses| {
        let grid = Grid::over(t.rows, THREADS, on.grid_cap());
        nll_loss::fwd(on, grid, y, losses, &x, view, &t.of(), w, t.rows as i64, o.classes as i64)
    })
}

/// The derivative of [`nll`] in `x`, from the cotangent `g`.
pub(crate) fn nll_vjp(t: &Targets, w: Option<&Src<'_>>, g: &In<'_>, o: Options, y: &mut Out<'_>) -> Result<()> {
    let (on, n) = (y.context(), y.numel());
    if n == 0 {
        return Ok(());
    }
    let g = g.contiguous()?;
    let grid = grid(on, n, y.dtype().size());
    let (each, mean) = (i32::from(o.each), i32::from(o.mean));
    nll_loss::vjp(on, grid, &y.dst(), &t.of(), w, &t.weight(), &g.src(), n as i64, o.classes as i64, each, mean)
}

/// Cross-entropy of logits; `stats` gets the maximum and the sum of exponentials of every row.
pub(crate) fn cross_entropy(x: &In<'_>, t: &Targets, w: Option<&Src<'_>>, o: Options, y: &mut Out<'_>, stats: &mut Out<'_>) -> Result<()> {
    let x = x.contiguous()?;
    t.reduce(o, y, |y, losses| some_rows(&x.src(), t, w, o, 0..t.rows, y, losses, &stats.dst()))
}

/// Losses and statistics of rows of logits that begin at `x`.
pub(super) fn some_rows(
    x: &Src<'_>,
    t: &Targets,
    w: Option<&Src<'_>>,
    o: Options,
    of: Range<usize>,
    y: &Dst<'_>,
    losses: Option<&Dst<'_>>,
    stats: &Dst<'_>,
) -> Result<()> {
    let (on, first, n, c) = (t.of.context(), of.start, of.len(), o.classes as i64);
    // Losses that are not reduced go where the result is.
    let y = y.offset(if losses.is_none() { first } else { 0 });
    let losses = losses.map(|l| l.offset(first));
    let (grid, stats) = (rows(on, n, o.classes), stats.offset(2 * first));
    let (targets, weight) = (t.of().offset(first), t.weight());
    cross_entropy::fwd(on, grid, &y, losses.as_ref(), &stats, x, &targets, w, &weight, n as i64, c, o.smoothing, o.z)
}

/// The derivative in rows of logits that begin at `x`, written to `y`, which may be the same memory. Without `g` the losses'
/// cotangent is 1.
pub(super) fn some_rows_vjp(
    x: &Src<'_>,
    t: &Targets,
    w: Option<&Src<'_>>,
    g: Option<&Src<'_>>,
    stats: Option<&Src<'_>>,
    o: Options,
    of: Range<usize>,
    y: &Dst<'_>,
) -> Result<()> {
    let (on, first, n, c) = (t.of.context(), of.start, of.len(), o.classes as i64);
    let (each, mean) = (i32::from(o.each), i32::from(o.mean));
    let g = g.map(|g| g.offset(if o.each { first } else { 0 }));
    let stats = stats.map(|s| s.offset(2 * first));
    let (grid, targets, weight) = (rows(on, n, o.classes), t.of().offset(first), t.weight());
    cross_entropy::vjp(on, grid, y, x, &targets, w, &weight, g.as_ref(), stats.as_ref(), n as i64, c, o.smoothing, o.z, each, mean)
}

/// The derivative of [`cross_entropy`] in the logits; without `stats` they are computed again.
pub(crate) fn cross_entropy_vjp(
    x: &In<'_>,
    t: &Targets,
    w: Option<&Src<'_>>,
    g: &In<'_>,
    stats: Option<&In<'_>>,
    o: Options,
    y: &mut Out<'_>,
) -> Result<()> {
    if y.numel() == 0 {
        return Ok(());
    }
    let (x, g) = (x.contiguous()?, g.contiguous()?);
    let stats = stats.map(In::contiguous).transpose()?;
    let stats = stats.as_ref().map(Dense::src);
    some_rows_vjp(&x.src(), t, w, Some(&g.src()), stats.as_ref(), o, 0..t.rows, &y.dst())
}

/// Minus the target distribution of every row, divided by the weight of a mean.
pub(crate) fn target_rows(t: &Targets, w: Option<&Src<'_>>, o: Options, dtype: DType) -> Result<Buffer> {
    let on = t.of.context();
    let mut y = on.alloc(dtype, t.rows * o.classes)?;
    if y.len() > 0 {
        let grid = rows(on, t.rows, o.classes);
        cross_entropy::targets(
            on,
            grid,
            &Dst::new(&mut y),
            &t.of(),
            w,
            &t.weight(),
            t.rows as i64,
            o.classes as i64,
            o.smoothing,
            i32::from(o.mean),
        )?;
    }
    Ok(y)
}
