//! Cross-entropy of a linear layer's logits, some rows at a time.

use super::{Options, Targets, some_rows, some_rows_vjp};
use crate::backend::cuda::abi::{Gemm, Matrices, Plus};
use crate::backend::cuda::device::{Buffer, Context, Dst, Src};
use crate::backend::cuda::launch::kernels::{binary, cross_entropy as kernels};
use crate::backend::cuda::launch::{Dense, In, Out, copy, grid};
use crate::backend::cuda::ops::elementwise::BinaryKernels;
use crate::backend::cuda::ops::linalg;
use crate::dtype::{DType, Element, with_float};
use crate::error::Result;
use crate::layout::Layout;
use crate::shape::Shape;
use std::ops::Range;

/// A row-major matrix in device memory, or the transpose of one.
#[derive(Clone, Copy)]
struct Mat {
    addr: u64,
    rows: usize,
    cols: usize,
    transposed: bool,
}

impl Mat {
    fn new(addr: u64, rows: usize, cols: usize) -> Self {
        Mat { addr, rows, cols, transposed: false }
    }

    fn t(self) -> Self {
        Mat { transposed: !self.transposed, ..self }
    }

    fn shape(self) -> [usize; 2] {
        if self.transposed { [self.cols, self.rows] } else { [self.rows, self.cols] }
    }

    fn matrices(self) -> Matrices {
        let stride = if self.transposed { [1, self.cols] } else { [self.cols, 1] };
        Matrices::new(self.addr, self.shape(), stride, 0)
    }
}

/// `c ← a·b + plus`; nothing when there is nothing to add up or to write.
fn product(on: &Context, dtype: DType, a: Mat, b: Mat, c: u64, plus: Plus) -> Result<()> {
    let ([m, k], [_, n]) = (a.shape(), b.shape());
    if m == 0 || n == 0 || k == 0 {
        return Ok(());
    }
    linalg::product(on, &Gemm { dtype, batch: 1, m, n, k, a: a.matrices(), b: b.matrices(), c, plus })
}

/// The operands: `x [rows, width]`, `w [classes, width]`, `b [classes]`, targets, class weights, and how many rows of logits there are
/// at a time.
pub(crate) struct Head<'a> {
    pub x: &'a In<'a>,
    pub w: &'a In<'a>,
    pub bias: Option<&'a In<'a>>,
    pub targets: &'a Targets,
    pub weights: Option<&'a Src<'a>>,
    pub options: Options,
    pub rows: usize,
    pub chunk: usize,
}

/// Where a cotangent is added up: in the result, or for half types in a sum of full precision.
struct Sum<'a, 'b> {
    y: &'a mut Out<'b>,
    wide: Option<(Buffer, Buffer)>,
}

impl<'a, 'b> Sum<'a, 'b> {
    fn new(on: &'static Context, y: &'a mut Out<'b>, chunks: usize) -> Result<Self> {
        y.zero(on)?;
        let wide = if y.dtype().is_half() && chunks > 1 {
            let mut sum = on.alloc(DType::F32, y.numel())?;
            // SAFETY: the buffer holds this many bytes, and nothing else refers to it.
            unsafe { on.fill(Dst::new(&mut sum).addr(), y.numel() * 4, 0)? };
            Some((sum, on.alloc(y.dtype(), y.numel())?))
        } else {
            None
        };
        Ok(Sum { y, wide })
    }

    fn add(&mut self, on: &'static Context, a: Mat, b: Mat) -> Result<()> {
        let (dtype, n) = (self.y.dtype(), self.y.numel());
        let Some((sum, part)) = &mut self.wide else { return product(on, dtype, a, b, self.y.dst().addr(), Plus::Itself) };
        product(on, dtype, a, b, Dst::new(part).addr(), Plus::Nothing)?;
        kernels::gather(on, grid(on, n, 4), &Dst::new(sum), &Src::new(part, 0), n as i64)
    }

    fn finish(self, on: &'static Context) -> Result<()> {
        let n = self.y.numel();
        match &self.wide {
            Some((sum, _)) => kernels::round(on, grid(on, n, 4), &self.y.dst(), &Src::new(sum, 0), n as i64),
            None => Ok(()),
        }
    }
}

impl Head<'_> {
    fn width(&self) -> usize {
        let s = self.x.shape();
        s[s.rank() - 1]
    }

    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, chunk) = (self.rows, self.chunk);
        (0..rows).step_by(chunk.max(1)).map(move |first| first..(first + chunk).min(rows))
    }

    /// Calls `f` with every piece of logits: its rows, and where they are.
    fn each_chunk(&self, mut f: impl FnMut(&Context, Range<usize>, u64, Mat, Mat) -> Result<()>) -> Result<()> {
        let (on, dtype) = (self.x.context(), self.x.dtype());
        let (classes, width) = (self.options.classes, self.width());
        let (x, w) = (self.x.contiguous()?, self.w.contiguous()?);
        let w = Mat::new(w.src().addr(), classes, width);
        let longest = self.chunk.min(self.rows);
        let mut logits = on.alloc(dtype, longest * classes)?;
        let bias = self.bias.map(|b| b.aligned(16)).transpose()?;
        let plus = bias.as_ref().map_or(Plus::Nothing, |b| Plus::Bias(b.src().addr()));
        // Without a product the bias is all that there is.
        let alone = bias.as_ref().filter(|_| width == 0);
        for of in self.chunks() {
            let rows = Mat::new(x.src().offset(of.start * width).addr(), of.len(), width);
            if let Some(b) = alone {
                let everywhere = Layout::contiguous([classes]).expand(&Shape::from([of.len(), classes]))?;
                copy::gather(on, b.src(), &everywhere, Dst::new(&mut logits))?;
            } else if width == 0 {
                // SAFETY: the buffer holds this many bytes, and nothing else refers to it.
                unsafe { on.fill(Dst::new(&mut logits).addr(), longest * classes * dtype.size(), 0)? };
            }
            let at = Dst::new(&mut logits).addr();
            product(on, dtype, rows, w.t(), at, plus)?;
            f(on, of, at, rows, w)?;
        }
        Ok(())
    }

    /// The loss; with `kept`, also the cotangents of x, w and b for a loss whose own is 1.
    pub(crate) fn forward(&self, y: &mut Out<'_>, stats: &mut Out<'_>, kept: [Option<&mut Out<'_>>; 3]) -> Result<()> {
        let (on, o, dtype) = (self.x.context(), self.options, self.x.dtype());
        let mut bars = Bars::new(self, kept)?;
        if o.classes == 0 {
            stats.zero(on)?;
        }
        self.targets.reduce(o, y, |y, losses| {
            if o.classes == 0 {
                // Every target is ignored.
                let to = losses.unwrap_or(y);
                // SAFETY: there is a loss for every row, and nothing else refers to them now.
                return unsafe { on.fill(to.addr(), self.rows * to.dtype().size(), 0) };
            }
            self.each_chunk(|_, of, at, rows, w| {
                let logits = Src::at(at, dtype);
                some_rows(&logits, self.targets, self.weights, o, of.clone(), y, losses, &stats.dst())?;
                if bars.is_empty() {
                    return Ok(());
                }
                let stats = stats.dst();
                let stats = Src::at(stats.addr(), stats.dtype());
                some_rows_vjp(&logits, self.targets, self.weights, None, Some(&stats), o, of.clone(), &Dst::at(at, dtype))?;
                bars.pull(on, &of, at, rows, w)
            })
        })?;
        bars.finish(on)
    }

    /// Those of x̄, w̄ and b̄ that are asked for; the logits are computed again.
    pub(crate) fn backward(&self, g: &In<'_>, stats: Option<&In<'_>>, y: [Option<&mut Out<'_>>; 3]) -> Result<()> {
        let (on, o, dtype) = (self.x.context(), self.options, self.x.dtype());
        let mut bars = Bars::new(self, y)?;
        let g = g.contiguous()?;
        let stats = stats.map(In::contiguous).transpose()?;
        let stats = stats.as_ref().map(Dense::src);
        if o.classes > 0 && (self.width() > 0 || bars.db.is_some()) {
            self.each_chunk(|_, of, at, rows, w| {
                let (logits, g) = (Src::at(at, dtype), g.src());
                some_rows_vjp(&logits, self.targets, self.weights, Some(&g), stats.as_ref(), o, of.clone(), &Dst::at(at, dtype))?;
                bars.pull(on, &of, at, rows, w)
            })?;
        }
        bars.finish(on)
    }
}

/// The cotangents of x, w and b as far as they are wanted.
struct Bars<'a, 'b> {
    dx: Option<&'a mut Out<'b>>,
    dw: Option<Sum<'a, 'b>>,
    /// With a column of ones, which the logits' cotangents are multiplied with.
    db: Option<(Sum<'a, 'b>, Buffer)>,
    width: usize,
}

impl<'a, 'b> Bars<'a, 'b> {
    fn new(head: &Head<'_>, [mut dx, dw, db]: [Option<&'a mut Out<'b>>; 3]) -> Result<Self> {
        let (on, dtype, chunks) = (head.x.context(), head.x.dtype(), head.chunks().count());
        if let Some(dx) = &mut dx {
            dx.zero(on)?;
        }
        let dw = dw.map(|d| Sum::new(on, d, chunks)).transpose()?;
        let db = match db {
            Some(db) => {
                let n = head.chunk.min(head.rows);
                let (mut one, mut ones) = (on.alloc(dtype, 1)?, on.alloc(dtype, n)?);
                with_float!(dtype, T => one.put(<T as Element>::from_f64(1.0))?);
                if n > 0 {
                    copy::gather(on, Src::new(&one, 0), &Layout::contiguous([1]).expand(&Shape::from([n]))?, Dst::new(&mut ones))?;
                }
                Some((Sum::new(on, db, chunks)?, ones))
            }
            None => None,
        };
        Ok(Bars { dx, dw, db, width: head.width() })
    }

    fn is_empty(&self) -> bool {
        self.dx.is_none() && self.dw.is_none() && self.db.is_none()
    }

    /// Takes in a piece of the logits' cotangents.
    fn pull(&mut self, on: &'static Context, of: &Range<usize>, at: u64, rows: Mat, w: Mat) -> Result<()> {
        let bars = Mat::new(at, of.len(), w.rows);
        if let Some(dx) = &mut self.dx {
            let to = dx.dst().offset(of.start * self.width).addr();
            product(on, dx.dtype(), bars, w, to, Plus::Nothing)?;
        }
        if let Some(dw) = &mut self.dw {
            dw.add(on, bars.t(), rows)?;
        }
        if let Some((db, ones)) = &mut self.db {
            db.add(on, bars.t(), Mat::new(Src::new(ones, 0).addr(), of.len(), 1))?;
        }
        Ok(())
    }

    fn finish(self, on: &'static Context) -> Result<()> {
        for sum in [self.dw, self.db.map(|(sum, _)| sum)].into_iter().flatten() {
            sum.finish(on)?;
        }
        Ok(())
    }
}

/// `y = kept · g` with the scalar cotangent of the loss.
pub(crate) fn scaled(kept: &In<'_>, g: &In<'_>, y: &mut Out<'_>) -> Result<()> {
    BinaryKernels::new(binary::mul, []).forward(kept, g, y)
}
