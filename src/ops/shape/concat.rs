//! Tensors joined along an existing axis or along a new one.

use crate::backend::cpu::{self, map};
use crate::backend::cuda;
use crate::dtype::with_dtype;
use crate::error::{ErrorKind, Result, bail};
use crate::memory;
use crate::op::{Composite, Cotangents, Describe, InputCotangents, Math, Op, Outputs, Saved, Spec, apply1, compose1, expect};
use crate::shape::Axis;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar, axis_index};
use smallvec::{SmallVec, smallvec};

/// Tensors joined along an axis; see [`Tensor::concat`].
#[derive(Clone, Debug)]
pub struct Concat {
    /// The axis.
    pub axis: Axis,
    /// Extent of every part along it: where the derivative cuts.
    pub sizes: SmallVec<[usize; 4]>,
}

impl Describe for Concat {
    const NAME: &'static str = "concat";
    const MATH: Math = Math {
        forward: "y = x₁, x₂, … one after the other along an axis",
        vjp: "x̄ᵢ = the part of ȳ that xᵢ became (a view)",
        kinks: "linear",
        cost: "reads every x, writes y; saves nothing",
        references: "torch.cat; numpy.concatenate",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = x[0].axis_at(self.axis);
        let total = x.iter().map(|p| p.shape[axis]).sum();
        vec![Nd::from_fn(x[0].extents_with(axis, total), |i| {
            let mut at = i.to_vec();
            let mut part = 0;
            while at[axis] >= x[part].shape[axis] {
                at[axis] -= x[part].shape[axis];
                part += 1;
            }
            x[part].at(&at)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = g.shape(3);
        let mut out = Vec::new();
        let of = |g: &mut Gen, base: &[usize], axis: i32, sizes: &[usize]| {
            let at = if axis < 0 { base.len() as i32 + axis } else { axis } as usize;
            let parts: Vec<Input> = sizes
                .iter()
                .map(|&n| {
                    let mut s = base.to_vec();
                    s[at] = n;
                    g.normal(s)
                })
                .collect();
            Sample::check(Concat { axis: axis.into(), sizes: sizes.into() }, parts)
        };
        for axis in [0, 1, 2, -1] {
            out.push(of(g, &shape, axis, &[2, 1, 3]).note("parts of different sizes [D10]"));
        }
        out.push(of(g, &shape, 1, &[2]).note("one part"));
        out.push(of(g, &shape, 1, &[2, 0, 1]).note("a part without elements"));
        out.push(of(g, &[2, 3], 0, &[0, 0]));
        out.push(of(g, &[0, 3], 1, &[1, 2]));
        out.push(of(g, &[4], 0, &[1; 9]).note("many parts"));
        let mut large = of(g, &[130, 65], 1, &[64, 1, 70]);
        large.purpose = crate::testing::Purpose::Value;
        out.push(large.note("more than one parallel piece"));
        let mut large = of(g, &[1, 65], 0, &[300, 7]);
        large.purpose = crate::testing::Purpose::Value;
        out.push(large);
        let two = |axis: i32, sizes: [usize; 2]| Concat { axis: axis.into(), sizes: SmallVec::from_slice(&sizes) };
        out.push(Sample::reject(two(0, [2, 2]), [g.normal([2, 3]), g.normal([2, 4])], ErrorKind::Shape));
        out.push(Sample::reject(two(0, [2, 2]), [g.normal([2, 3]), g.normal([2])], ErrorKind::Shape));
        out.push(Sample::reject(two(2, [2, 2]), [g.normal([2, 3]), g.normal([2, 3])], ErrorKind::Shape).note("axis out of range"));
        out.push(Sample::reject(two(0, [2, 2]), [g.normal([2, 3]), g.below(crate::DType::I64, [2, 3], 3)], ErrorKind::Dtype));
        out.push(Sample::reject(Concat { axis: Axis(0), sizes: smallvec![] }, Vec::new(), ErrorKind::Argument).note("nothing to join"));
        out.push(
            Sample::reject(Concat { axis: Axis(0), sizes: smallvec![1] }, [g.normal(())], ErrorKind::Shape).note("a scalar has no axis"),
        );
        out.push(Sample::bench(two(1, [768, 768]), [g.normal([4096, 768]), g.normal([4096, 768])]));
        out.push(Sample::bench(two(0, [2048, 2048]), [g.normal([2048, 1024]), g.normal([2048, 1024])]));
        out
    }
}

impl Op for Concat {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        if x.is_empty() {
            bail!(argument, "the list of tensors is empty");
        }
        let dtype = expect::same_dtype(x)?;
        let first = &x[0].shape;
        let axis = self.axis.resolve(first.rank())?;
        let mut total = 0usize;
        for (i, s) in x.iter().enumerate() {
            let fits = s.shape.rank() == first.rank() && (0..first.rank()).all(|a| a == axis || s.shape[a] == first[a]);
            if !fits {
                bail!(shape, "part {i} has shape {}, part 0 {first}; they may differ along axis {axis} only", s.shape);
            }
            if self.sizes.get(i) != Some(&s.shape[axis]) {
                bail!(shape, "part {i} has extent {} along axis {axis}, but the op was made for {:?}", s.shape[axis], self.sizes);
            }
            // An overflow stays one: no such shape has a valid element count.
            total = total.saturating_add(s.shape[axis]);
        }
        Ok(smallvec![Spec { shape: first.with_dim(axis, total), dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let shape = y[0].shape();
        let axis = self.axis.resolve(shape.rank())?;
        let (outer, total, inner) = shape.split_at(axis);
        with_dtype!(x[0].dtype(), T => {
            let y = y[0].slice::<T>();
            if outer == 1 {
                // The parts are stretches of y: gather each straight into its place.
                let mut rest = y;
                for x in x {
                    let (part, tail) = std::mem::take(&mut rest).split_at_mut(x.layout().numel());
                    cpu::copy_strided(x.storage::<T>(), x.layout(), part)?;
                    rest = tail;
                }
                return Ok(());
            }
            let parts = memory::try_collect_ok(x.iter().map(|x| x.contiguous::<T>()))?;
            let rows: Vec<(&[T], usize)> = memory::try_collect(parts.iter().zip(&self.sizes).map(|(p, &n)| (&**p, n * inner)))?;
            map::rows(y, total * inner, |row, out| {
                let mut start = 0;
                for &(part, n) in &rows {
                    out[start..start + n].copy_from_slice(&part[row * n..(row + 1) * n]);
                    start += n;
                }
            });
        });
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        cuda::shape::concat(x, self.axis.resolve(y[0].shape().rank())?, &mut y[0])
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let g = y_bar.only()?;
        let mut start = 0;
        let mut out = InputCotangents::new();
        for (&n, &want) in self.sizes.iter().zip(want) {
            memory::push_short(&mut out, if want { Some(g.narrow(self.axis, start, n)?) } else { None })?;
            start += n;
        }
        Ok(out)
    }
}

/// Tensors joined along a new axis; see [`Tensor::stack`].
#[derive(Clone, Debug)]
pub struct Stack(pub Axis);

impl Describe for Stack {
    const NAME: &'static str = "stack";
    const MATH: Math = Math {
        forward: "y[…, k, …] = x_k[…]",
        vjp: "x̄_k = ȳ[…, k, …] (a view)",
        kinks: "linear",
        cost: "reads every x, writes y; saves nothing",
        references: "torch.stack; numpy.stack",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = axis_index(self.0, x[0].shape.rank() + 1);
        let mut shape = x[0].shape.to_vec();
        shape.insert(axis, x.len());
        vec![Nd::from_fn(shape, |i| {
            let mut at = i.to_vec();
            let k = at.remove(axis);
            x[k].at(&at)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = g.shape(2);
        let of = |a: i32| Stack(a.into());
        let mut out: Vec<_> =
            [0, 1, 2, -1].iter().map(|&a| Sample::check(of(a), [g.normal(&shape), g.normal(&shape), g.normal(&shape)])).collect();
        out.push(Sample::check(of(0), [g.normal(&shape)]).note("one part"));
        out.push(Sample::check(of(0), [g.normal(()), g.normal(())]).note("scalars"));
        out.push(Sample::check(of(1), [g.normal([0]), g.normal([0])]).note("no elements"));
        out.push(Sample::reject(of(0), [g.normal([2, 3]), g.normal([2, 1])], ErrorKind::Shape));
        out.push(Sample::reject(of(3), [g.normal([2, 3]), g.normal([2, 3])], ErrorKind::Shape));
        out.push(Sample::reject(of(0), Vec::new(), ErrorKind::Argument));
        out
    }
}

impl Composite for Stack {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let Some(first) = x.first() else { bail!(argument, "the list of tensors is empty") };
        if let Some((i, other)) = x.iter().enumerate().find(|(_, t)| t.shape() != first.shape()) {
            bail!(shape, "part {i} has shape {}, part 0 {}; all must be equal", other.shape(), first.shape());
        }
        let parts = memory::try_collect_ok(x.iter().map(|t| t.unsqueeze(self.0)))?;
        Ok(smallvec![Tensor::concat(&parts, self.0)?])
    }
}

impl Tensor {
    /// Joins tensors along an axis: `Tensor::concat(&[&a, &b], 1)`, or of a list `Tensor::concat(&parts, 1)`. Any dtype; any number of
    /// parts, empty ones included.
    ///
    /// # Gradient
    /// Each part gets its stretch of `ȳ`, as a view; saves nothing.
    ///
    /// # Errors
    /// Shape error when extents differ along another axis, dtype error when dtypes differ, argument error for an empty list.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let a = Tensor::from_slice(&[1f32, 2.], [1, 2])?;
    /// let b = Tensor::from_slice(&[3f32, 4., 5., 6.], [2, 2])?;
    /// assert_eq!(Tensor::concat(&[&a, &b], 0)?.to_vec::<f32>()?, [1., 2., 3., 4., 5., 6.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[doc(alias("cat", "concatenate"))]
    #[track_caller]
    pub fn concat(parts: &[impl AsRef<Tensor>], axis: impl Into<Axis>) -> Result<Tensor> {
        concat(&refs(parts)?, axis.into())
    }

    /// Joins tensors of one shape along a new axis, which is axis `axis` of the result.
    ///
    /// ```
    /// # use cotangent::{F32, Tensor};
    /// let x = Tensor::zeros([4, 3], F32)?;
    /// // Of a list of tensors that one has, as `unbind` gives it:
    /// let rows = x.unbind(0)?;
    /// assert_eq!(Tensor::stack(&rows, 1)?.shape(), &[3, 4]);
    /// assert_eq!(Tensor::stack(&[&rows[0], &rows[2]], 0)?.shape(), &[2, 3]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// Each part gets its position of `ȳ`, as a view; saves nothing.
    ///
    /// # Errors
    /// Shape error when shapes differ, dtype error when dtypes differ, argument error for an empty list.
    #[track_caller]
    pub fn stack(parts: &[impl AsRef<Tensor>], axis: impl Into<Axis>) -> Result<Tensor> {
        compose1(Stack(axis.into()), &refs(parts)?)
    }
}

/// Tensors, parameters, or references to them, as ops take them.
pub(crate) fn refs<T: AsRef<Tensor>>(parts: &[T]) -> Result<Vec<&Tensor>> {
    memory::try_collect(parts.iter().map(AsRef::as_ref))
}

#[track_caller]
fn concat(parts: &[&Tensor], axis: Axis) -> Result<Tensor> {
    let size = |t: &&Tensor| axis.resolve(t.rank()).map_or(0, |a| t.shape()[a]);
    apply1(Concat { axis, sizes: memory::try_short(parts.iter().map(|t| Ok(size(t))))? }, parts)
}
