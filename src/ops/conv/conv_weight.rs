//! The derivative of the convolution by its kernel.

use super::define;
use super::samples::{CHECKED, all, result, sliding};
use super::sliding::Sliding;
use crate::backend::{cpu, cuda};
use crate::dtype::with_float;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, expect};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// The gradient of a convolution's weight, which has the spatial extents of [`Sliding::kernel`]. Inputs: the convolution's input, and what
/// has the shape of its result.
#[derive(Clone, Debug)]
pub struct ConvWeight(pub Sliding);

impl Describe for ConvWeight {
    const NAME: &'static str = "conv_weight";
    const MATH: Math = Math {
        forward: "w[o, c, k] = Σ y[n, o, p] · x[n, c, p·stride − low + k·dilation] over images n and positions p, with c in o's group; the padding is 0",
        vjp: "x̄ = conv_input(y, w̄), ȳ = conv(x, w̄)",
        kinks: "bilinear; the padding takes part: 0 · ∞ is NaN",
        cost: "2·outputs·kernel·channels/groups arithmetic; saves x and y, each for the derivative by the other",
        references: "torch.nn.grad.conv2d_weight",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (axes, groups, y) = (&self.0.axes[..], self.0.groups, &x[1]);
        let (each, outputs) = (x[0].shape[1] / groups, y.shape[1] / groups);
        let input = &x[0].shape[2..];
        let shape = [&[y.shape[1], each], &self.0.kernel[..]].concat();
        let table = define::meetings(axes, input, &y.shape[2..], &self.0.kernel);
        let mut out = Vec::new();
        for o in 0..shape[0] {
            for c in 0..each {
                for k in 0..self.0.kernel.iter().product() {
                    let mut terms = Vec::new();
                    for image in 0..y.shape[0] {
                        for (p, meetings) in table.iter().enumerate() {
                            let v = define::read(&x[0], image, o / outputs * each + c, meetings[k]);
                            terms.push(v * define::read(y, image, o, Some(p)));
                        }
                    }
                    out.push(S::sum(&terms));
                }
            }
        }
        vec![Nd::new(shape, out)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = all(g, ConvWeight, |g, of| vec![g.normal(of.0), g.normal(result(of))]);
        let two = &CHECKED[5];
        let y = result(two);
        for (x, y, groups) in [(two.0, &[1, 3, 9, 9][..], 1), (two.0, &y[..], 2), (&[2, 2, 4, 6], &y[..], 1), (&[2, 2, 4], &y[..], 1)] {
            let op = Sliding { groups, ..sliding(two) };
            out.push(Sample::reject(ConvWeight(op), [g.normal(x), g.normal(y)], ErrorKind::Shape));
        }
        out
    }
}

impl Op for ConvWeight {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = expect::same_float(x)?;
        let (xs, ys) = (&x[0].shape, &x[1].shape);
        self.0.ranks([("x", xs, "batch, channels"), ("y", ys, "batch, out")])?;
        let spatial = self.0.output()?;
        let groups = self.0.groups;
        if xs[0] != ys[0] || !xs[1].is_multiple_of(groups) || !ys[1].is_multiple_of(groups) {
            bail!(shape, "x {xs} and y {ys} must have one batch, and channels that divide into {groups} groups");
        }
        self.0.extents("x", xs, &self.0.input)?;
        self.0.extents("y", ys, &spatial)?;
        let shape: Shape = [ys[1], xs[1] / groups].into_iter().chain(self.0.kernel.iter().copied()).collect();
        Ok(smallvec![Spec { shape, dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let plan = self.0.plan(x[0].shape()[0], x[0].shape()[1] / self.0.groups, x[1].shape()[1])?;
        with_float!(x[0].dtype(), T => cpu::conv::weight::<T>(&plan, &x[0], &x[1], y[0].slice::<T>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let plan = self.0.plan(x[0].shape()[0], x[0].shape()[1] / self.0.groups, x[1].shape()[1])?;
        cuda::conv::weight(&plan, &x[0], &x[1], &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], want: &[bool]) -> Saved {
        Saved::of([want[1].then_some(x[0]), want[0].then_some(x[1])])
    }

    fn vjp(&self, saved: &Saved, w_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let g = w_bar.only()?;
        let x_bar = if want[0] { Some(saved.get(1)?.conv_input_of(&self.0, g)?) } else { None };
        let y_bar = if want[1] { Some(saved.get(0)?.conv_of(&self.0, g)?) } else { None };
        Ok(smallvec![x_bar, y_bar])
    }
}

impl Tensor {
    /// The gradient of the weight with which this was convolved, for a cotangent of the result.
    pub(super) fn conv_weight_of(&self, windows: &Sliding, y: &Tensor) -> Result<Tensor> {
        apply1(ConvWeight(windows.clone()), &[self, y])
    }
}
