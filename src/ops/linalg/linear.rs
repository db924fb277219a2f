//! The affine map of a dense layer.

use super::matmul::MatMul;
use crate::backend::cpu::par::*;
use crate::backend::cpu::{self, Real, matmul};
use crate::backend::cuda;
use crate::dtype::with_float;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, expect};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// `x wᵀ + b`; see [`Tensor::linear`]. The bias is the third input, if there is one.
#[derive(Clone, Debug)]
pub struct Linear;

impl Describe for Linear {
    const NAME: &'static str = "linear";
    const MATH: Math = Math {
        forward: "y = x wᵀ + b over the last axis of x",
        vjp: "x̄ = ȳ w, w̄ = ȳᵀ x over all rows at once, b̄ = Σ ȳ over all rows",
        kinks: "bilinear",
        cost: "2·rows·in·out arithmetic, three times that with both derivatives; saves w for x̄ and x for w̄",
        references: "torch.nn.functional.linear",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (w, lead) = (&x[1], x[0].shape.rank() - 1);
        let shape = x[0].extents_with(lead, w.shape[0]);
        vec![Nd::from_fn(shape, |i| {
            let (row, o) = (&i[..lead], i[lead]);
            let terms: Vec<S> = (0..w.shape[1]).map(|k| x[0].at(&[row, &[k]].concat()) * w.at(&[o, k])).collect();
            let y = S::sum(&terms);
            x.get(2).map_or(y, |b| y + b.at(&[o]))
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let (rows, k, n) = (g.extent().min(12), g.extent().min(12), g.extent().min(12));
        let mut out = Vec::new();
        let shapes: [(&[usize], usize, &'static str); 9] = [
            (&[rows, k], n, ""),
            (&[k], n, "one row without an axis"),
            (&[2, 3, k], n, "rows over two axes"),
            (&[1, 1, 7], 1, ""),
            (&[2, 1, 5], 3, ""),
            (&[3, 0], 4, "no inputs: the bias alone"),
            (&[0, 3], 4, "no rows: w̄ and b̄ are zero"),
            (&[3, 4], 0, "no outputs"),
            (&[33, 2], 3, ""),
        ];
        for (x, n, note) in shapes {
            let k = x[x.len() - 1];
            out.push(Sample::check(Linear, [g.normal(x), g.normal([n, k])]).note(note));
            out.push(Sample::check(Linear, [g.normal(x), g.normal([n, k]), g.normal([n])]).note(note));
        }
        out.push(
            Sample::value(Linear, [g.normal([70, 130]), g.normal([67, 130]), g.normal_with([67], 100.0, 1000.0)])
                .note("a large bias is rounded once"),
        );
        out.push(Sample::reject(Linear, [g.normal([4, 3]), g.normal([5, 2])], ErrorKind::Shape));
        out.push(Sample::reject(Linear, [g.normal([4, 3]), g.normal([5, 3]), g.normal([4])], ErrorKind::Shape));
        out.push(Sample::reject(Linear, [g.normal([4, 3]), g.normal([5, 3]), g.normal([1, 5])], ErrorKind::Shape));
        out.push(Sample::reject(Linear, [g.normal([4, 3]), g.normal([3])], ErrorKind::Shape));
        out.push(Sample::reject(Linear, [g.normal(()), g.normal([3, 1])], ErrorKind::Shape));
        out.push(Sample::reject(Linear, [g.normal([4, 3]), g.normal([5, 3]), g.normal([5]).of_dtype(crate::F64)], ErrorKind::Dtype));
        out.push(Sample::bench(Linear, [g.normal([8, 256, 384]), g.normal([1536, 384]), g.normal([1536])]));
        out.push(Sample::bench(Linear, [g.normal([512, 768]), g.normal([3072, 768])]));
        out
    }
}

impl Op for Linear {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = expect::same_float(x)?;
        let (xs, ws) = (&x[0].shape, &x[1].shape);
        let Some((&k, lead)) = xs.split_last() else {
            bail!(shape, "x {xs} has no axis to map: weight {ws}; expected x [.., in], weight [out, in]")
        };
        if ws.rank() != 2 || ws[1] != k {
            bail!(shape, "inner extents differ: x {xs}, weight {ws}; expected x [.., in], weight [out, in]");
        }
        if let Some(b) = x.get(2)
            && b.shape != [ws[0]]
        {
            bail!(shape, "bias {} does not fit weight {ws}; expected [{}]", b.shape, ws[0]);
        }
        Ok(smallvec![Spec { shape: lead.iter().copied().chain([ws[0]]).collect(), dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let rows = if x[0].shape().rank() == 1 { x[0].layout().with_axis(0, true) } else { x[0].layout().clone() };
        let w = x[1].layout().permute(&[1, 0])?;
        let n = w.shape()[1];
        with_float!(x[0].dtype(), T => {
            let y = y[0].slice::<T>();
            let beta = if let Some(b) = x.get(2) {
                let b = b.contiguous::<T>()?;
                // The product is added to the bias, so that a half type rounds the sum once.
                if n > 0 {
                    y.par_chunks_mut(n).with_min_len(32_768usize.div_ceil(n)).for_each(|row| row.copy_from_slice(&b));
                }
                1.0
            } else {
                0.0
            };
            matmul::matmul::<T>((&x[0], &rows), (&x[1], &w), Real::from_f64(beta), y)
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let rows = if x[0].shape().rank() == 1 { x[0].layout().with_axis(0, true) } else { x[0].layout().clone() };
        let w = x[1].layout().permute(&[1, 0])?;
        cuda::linalg::matmul(y[0].context(), (&x[0], &rows), (&x[1], &w), x.get(2), &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], want: &[bool]) -> Saved {
        Saved::list([want[1].then(|| x[0].clone()), want[0].then(|| x[1].clone())])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let g = y_bar.only()?;
        let n = g.shape()[g.rank() - 1];
        let product = |a: &Tensor, b: &Tensor, ta: bool| apply1(MatMul::new(a.shape(), b.shape(), ta, false), &[a, b]);
        let x_bar = if want[0] { Some(product(g, saved.get(1)?, false)?) } else { None };
        let w_bar = if want[1] {
            let x = saved.get(0)?;
            let rows: usize = g.shape()[..g.rank() - 1].iter().product();
            Some(product(&g.reshape([rows, n])?, &x.reshape([rows, x.shape()[x.rank() - 1]])?, true)?)
        } else {
            None
        };
        let mut out: InputCotangents = smallvec![x_bar, w_bar];
        if let Some(&wants_bias) = want.get(2) {
            let lead: Vec<usize> = (0..g.rank() - 1).collect();
            out.push(if wants_bias { Some(g.sum(&lead[..])?) } else { None });
        }
        Ok(out)
    }
}

impl Tensor {
    /// The affine map `x wᵀ + b` of a dense layer: `x` is `[.., in]`, `weight` `[out, in]`, `bias` `[out]`.
    ///
    /// ```
    /// use cotangent::{Tape, Tensor};
    /// let tape = Tape::new();
    /// let x = Tensor::from_slice(&[1f64, 2.], [1, 2])?;
    /// let w = tape.watch(&Tensor::from_slice(&[3f64, 4., 5., 6., 7., 8.], [3, 2])?)?;
    /// let y = x.linear(&w, None)?;
    /// assert_eq!(y.to_vec::<f64>()?, [11., 17., 23.]);
    /// let grads = tape.backward(&y.sum(..)?)?;
    /// assert_eq!(grads.get(&w)?.to_vec::<f64>()?, [1., 2., 1., 2., 1., 2.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// `x̄ = ȳ·w`, `w̄ = ȳᵀ·x` as one product over all rows, `b̄` the sum of `ȳ` over all rows. Saves `weight` for `x̄` and
    /// `x` for `w̄`.
    ///
    /// # Shapes
    /// `[.., in]` to `[.., out]`.
    ///
    /// # Numerics
    /// Half types accumulate in f32, bias included, and round once.
    ///
    /// # Errors
    /// Shape error when the extents do not fit; dtype error unless all have the same float type.
    #[doc(alias = "addmm")]
    #[track_caller]
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match bias {
            Some(b) => apply1(Linear, &[self, weight, b]),
            None => apply1(Linear, &[self, weight]),
        }
    }
}
