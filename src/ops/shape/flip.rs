//! Reversed and rotated axes.

use super::slice::identity;
use crate::backend::cpu::remap::{Run, remap};
use crate::backend::cuda::shape::AxisMap;
use crate::backend::{cpu, cuda};
use crate::dtype::{Element, with_dtype};
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1};
use crate::shape::{Axes, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Reversed axes; see [`Tensor::flip`].
#[derive(Clone, Debug)]
pub struct Flip(pub Axes);

impl Describe for Flip {
    const NAME: &'static str = "flip";
    const MATH: Math = Math {
        forward: "y[…, i, …] = x[…, n − 1 − i, …] for each of the axes",
        vjp: "x̄ = ȳ reversed along the same axes",
        kinks: "linear",
        cost: "reads x, writes y; saves nothing",
        references: "torch.flip; numpy.flip",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let shape = &x[0].shape;
        let axes = x[0].axes_at(&self.0);
        vec![Nd::from_fn(shape, |i| {
            let at: Vec<usize> = i.iter().enumerate().map(|(a, &i)| if axes.contains(&a) { shape[a] - 1 - i } else { i }).collect();
            x[0].at(&at)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = g.shape(3);
        let of = |axes: &[i32]| Flip(axes.into());
        let mut out: Vec<_> = [&[0][..], &[1], &[2], &[-1], &[0, 2], &[1, 2], &[0, 1, 2], &[]]
            .iter()
            .map(|a| Sample::check(of(a), [g.normal(&shape)]))
            .collect();
        out.push(Sample::check(Flip(Axes::All), [g.normal(&shape)]));
        out.push(Sample::check(of(&[0]), [g.normal([1])]));
        out.push(Sample::check(of(&[0]), [g.normal([0, 3])]).note("no elements"));
        out.push(Sample::check(Flip(Axes::All), [g.normal(())]).note("scalar"));
        out.push(Sample::value(of(&[0]), [g.normal([40_001])]).note("long row in parallel pieces"));
        out.push(Sample::value(of(&[0, 2]), [g.normal([33, 5, 257])]));
        out.push(Sample::reject(of(&[3]), [g.normal(&shape)], ErrorKind::Shape));
        out.push(Sample::reject(of(&[1, -2]), [g.normal(&shape)], ErrorKind::Shape).note("an axis named twice"));
        out.push(Sample::bench(of(&[1]), [g.normal([4096, 1024])]));
        out
    }
}

impl Op for Flip {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        self.0.resolve(x[0].shape.rank())?;
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let shape = x[0].shape();
        let mut runs = identity(shape);
        for a in self.0.resolve(shape.rank())? {
            if shape[a] > 1 {
                runs[a] = vec![Run::Backward { from: shape[a] - 1, len: shape[a] }];
            }
        }
        with_dtype!(x[0].dtype(), T => remap(&x[0], &runs, <T as Element>::from_f64(0.0), y[0].slice::<T>())?);
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let shape = x[0].shape();
        let mut axes: SmallVec<[AxisMap; 8]> = shape.iter().map(|&d| AxisMap::whole(d)).collect();
        for a in self.0.resolve(shape.rank())? {
            axes[a].reversed = shape[a] > 1;
        }
        cuda::shape::remap(&x[0], &axes, 0.0, &mut y[0])
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![Some(apply1(self.clone(), &[y_bar.only()?])?)])
    }
}

/// Rotated axes; see [`Tensor::roll`].
#[derive(Clone, Debug)]
pub struct Roll {
    /// By how much, for each of the axes.
    pub shifts: SmallVec<[isize; 4]>,
    /// The axes.
    pub axes: Axes,
}

impl Roll {
    /// For every axis of `shape` the shift as a number below its extent.
    fn resolve(&self, shape: &Shape) -> Result<Vec<usize>> {
        let axes = self.axes.ordered(shape.rank())?;
        if axes.len() != self.shifts.len() {
            bail!(argument, "{} shifts were given for {} axes of {shape}", self.shifts.len(), axes.len());
        }
        let mut out = vec![0; shape.rank()];
        for (&a, &s) in axes.iter().zip(&self.shifts) {
            if shape[a] > 0 {
                out[a] = s.rem_euclid(shape[a] as isize) as usize;
            }
        }
        Ok(out)
    }
}

impl Describe for Roll {
    const NAME: &'static str = "roll";
    const MATH: Math = Math {
        forward: "y[…, (i + shift) mod n, …] = x[…, i, …] for each of the axes",
        vjp: "x̄ = ȳ rotated back",
        kinks: "linear",
        cost: "reads x, writes y; saves nothing",
        references: "torch.roll; numpy.roll",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let shape = &x[0].shape;
        let axes = x[0].axes_at(&self.axes);
        vec![Nd::from_fn(shape, |i| {
            let mut at = i.to_vec();
            for (&a, &shift) in axes.iter().zip(&self.shifts) {
                at[a] = (i[a] as i128 - shift as i128).rem_euclid(shape[a] as i128) as usize;
            }
            x[0].at(&at)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = g.shape(3);
        let of = |shifts: &[isize], axes: &[i32]| Roll { shifts: shifts.into(), axes: axes.into() };
        let mut out = vec![
            Sample::check(of(&[1], &[0]), [g.normal(&shape)]),
            Sample::check(of(&[-1], &[1]), [g.normal(&shape)]),
            Sample::check(of(&[2], &[-1]), [g.normal(&shape)]),
            Sample::check(of(&[2, -1], &[2, 0]), [g.normal(&shape)]).note("axes in any order keep their shifts"),
            Sample::check(of(&[0, 100, -7], &[0, 1, 2]), [g.normal(&shape)]).note("further than the extent"),
            Sample::check(of(&[isize::MIN], &[0]), [g.normal([5])]),
            Sample::check(of(&[], &[]), [g.normal(())]).note("scalar"),
            Sample::check(of(&[1], &[0]), [g.normal([0, 2])]).note("no elements"),
            Sample::value(of(&[12_345], &[0]), [g.normal([40_000])]).note("long row in parallel pieces"),
            Sample::value(of(&[3, 1], &[0, 2]), [g.normal([40, 3, 200])]),
            Sample::reject(of(&[1], &[0, 1]), [g.normal(&shape)], ErrorKind::Argument),
            Sample::reject(of(&[1], &[3]), [g.normal(&shape)], ErrorKind::Shape),
        ];
        out.push(Sample::bench(of(&[100], &[0]), [g.normal([4096, 1024])]));
        out
    }
}

impl Op for Roll {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        self.resolve(&x[0].shape)?;
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let shape = x[0].shape();
        let mut runs = identity(shape);
        for (a, s) in self.resolve(shape)?.into_iter().enumerate() {
            if s > 0 {
                runs[a] = vec![Run::Forward { from: shape[a] - s, len: s }, Run::Forward { from: 0, len: shape[a] - s }];
            }
        }
        with_dtype!(x[0].dtype(), T => remap(&x[0], &runs, <T as Element>::from_f64(0.0), y[0].slice::<T>())?);
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let shape = x[0].shape();
        let mut axes: SmallVec<[AxisMap; 8]> = shape.iter().map(|&d| AxisMap::whole(d)).collect();
        for (a, s) in self.resolve(shape)?.into_iter().enumerate() {
            if s > 0 {
                axes[a] = AxisMap { shift: (shape[a] - s) as i64, wrap: shape[a], ..axes[a] };
            }
        }
        cuda::shape::remap(&x[0], &axes, 0.0, &mut y[0])
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let g = y_bar.only()?;
        let back = self.resolve(g.shape())?;
        // Every axis by the rest of a full turn: −shift, without overflow at the smallest isize.
        let shifts = back.iter().zip(g.shape().iter()).map(|(&s, &d)| (d - s) as isize).collect();
        Ok(smallvec![Some(apply1(Roll { shifts, axes: Axes::All }, &[g])?)])
    }
}

impl Tensor {
    /// The elements in reverse order along axes: `x.flip(0)`, `x.flip([0, -1])`, `x.flip(..)`. A copy.
    ///
    /// # Gradient
    /// `ȳ` reversed along the same axes; saves nothing.
    ///
    /// # Errors
    /// Shape error when an axis does not exist or is named twice.
    #[doc(alias = "reverse")]
    #[track_caller]
    pub fn flip(&self, axes: impl Into<Axes>) -> Result<Tensor> {
        apply1(Flip(axes.into()), &[self])
    }

    /// Moves elements along axes by `shifts` positions; what leaves at one end comes back at the other:
    /// `x.roll(&[1], 0)`, `x.roll(&[2, -1], [0, 1])`.
    ///
    /// # Gradient
    /// `ȳ` moved back; saves nothing.
    ///
    /// # Errors
    /// Argument error unless there is one shift per axis; shape error when an axis does not exist or is named twice.
    #[track_caller]
    pub fn roll(&self, shifts: &[isize], axes: impl Into<Axes>) -> Result<Tensor> {
        apply1(Roll { shifts: shifts.into(), axes: axes.into() }, &[self])
    }
}
