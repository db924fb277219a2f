//! `Nd`: the row-major arrays that definitions are written on. Plain and slow on purpose.

use super::Scalar;
use crate::shape::{Axes, Axis, Shape};

/// A row-major array of scalars.
#[derive(Clone, Debug)]
pub struct Nd<S> {
    /// Extents.
    pub shape: Shape,
    /// Elements in row-major order.
    pub data: Vec<S>,
}

impl<S: Scalar> Nd<S> {
    /// An array from its elements.
    ///
    /// # Panics
    /// If their number does not fit the shape.
    pub fn new(shape: impl Into<Shape>, data: Vec<S>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.numel(), data.len(), "element count of {shape}");
        Nd { shape, data }
    }

    /// A scalar.
    pub fn scalar(x: S) -> Self {
        Nd { shape: Shape::scalar(), data: vec![x] }
    }

    /// `f(index)` for every index.
    pub fn from_fn(shape: impl Into<Shape>, mut f: impl FnMut(&[usize]) -> S) -> Self {
        Self::filled(shape.into(), &mut f)
    }

    // Hundreds of definitions, three scalars each: what takes a closure is a shell, so that its body is compiled once a scalar.
    fn filled(shape: Shape, f: &mut dyn FnMut(&[usize]) -> S) -> Self {
        let mut index = vec![0; shape.rank()];
        let mut data = Vec::with_capacity(shape.numel());
        for _ in 0..shape.numel() {
            data.push(f(&index));
            for i in (0..index.len()).rev() {
                index[i] += 1;
                if index[i] < shape[i] {
                    break;
                }
                index[i] = 0;
            }
        }
        Nd { shape, data }
    }

    /// The element at an index.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn at(&self, index: &[usize]) -> S {
        assert_eq!(index.len(), self.shape.rank(), "index {index:?} into {}", self.shape);
        self.data[index.iter().zip(self.shape.iter()).fold(0, |at, (&i, &extent)| at * extent + i)]
    }

    /// The element that broadcasting shows at an index of a larger shape.
    ///
    /// # Panics
    /// If this array does not broadcast to a shape with that index.
    pub fn broadcast_at(&self, index: &[usize]) -> S {
        let lead = index.len() - self.shape.rank();
        let own: Vec<usize> = self.shape.iter().enumerate().map(|(i, &d)| if d == 1 { 0 } else { index[lead + i] }).collect();
        self.at(&own)
    }

    /// Applies `f` to every element.
    pub fn map(&self, mut f: impl FnMut(S) -> S) -> Self {
        self.mapped(&mut f)
    }

    fn mapped(&self, f: &mut dyn FnMut(S) -> S) -> Self {
        Nd { shape: self.shape.clone(), data: self.data.iter().map(|&x| f(x)).collect() }
    }

    /// Applies `f` to each line along `axis`: lines of `n` elements become lines of however many `f` returns.
    ///
    /// # Panics
    /// If `f` returns lines of different lengths.
    pub fn map_lines(&self, axis: usize, out: usize, mut f: impl FnMut(&[S]) -> Vec<S>) -> Self {
        self.mapped_lines(axis, out, &mut f)
    }

    fn mapped_lines(&self, axis: usize, out: usize, f: &mut dyn FnMut(&[S]) -> Vec<S>) -> Self {
        let (outer, n, inner) =
            (self.shape[..axis].iter().product::<usize>(), self.shape[axis], self.shape[axis + 1..].iter().product::<usize>());
        let mut data = vec![S::zero(); outer * out * inner];
        for o in 0..outer {
            for i in 0..inner {
                let line: Vec<S> = (0..n).map(|k| self.data[(o * n + k) * inner + i]).collect();
                let y = f(&line);
                assert_eq!(y.len(), out, "length of a line");
                for (k, v) in y.into_iter().enumerate() {
                    data[(o * out + k) * inner + i] = v;
                }
            }
        }
        Nd::new(self.extents_with(axis, out), data)
    }

    /// The same numbers as scalars of another type.
    pub fn convert<T>(&self) -> Nd<T>
    where
        S: Into<T>,
    {
        Nd { shape: self.shape.clone(), data: self.data.iter().map(|&x| x.into()).collect() }
    }

    /// The index of an axis that may be counted from the end.
    pub fn axis_at(&self, axis: Axis) -> usize {
        axis_index(axis, self.shape.rank())
    }

    /// The indices of axes, in the order given.
    pub fn axes_at(&self, axes: &Axes) -> Vec<usize> {
        match axes {
            Axes::All => (0..self.shape.rank()).collect(),
            Axes::List(list) => list.iter().map(|&a| self.axis_at(a)).collect(),
        }
    }

    /// The extents with another one along `axis`.
    pub fn extents_with(&self, axis: usize, extent: usize) -> Vec<usize> {
        let mut out = self.shape.to_vec();
        out[axis] = extent;
        out
    }

    /// The extents without those of some axes, or with 1 in their place.
    pub fn extents_without(&self, axes: &[usize], keep: bool) -> Vec<usize> {
        let mut out = Vec::new();
        for (a, &extent) in self.shape.iter().enumerate() {
            match (axes.contains(&a), keep) {
                (false, _) => out.push(extent),
                (true, true) => out.push(1),
                (true, false) => {}
            }
        }
        out
    }

    /// The same elements under another shape.
    ///
    /// # Panics
    /// If the element counts differ.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Self {
        Nd::new(shape, self.data.clone())
    }

    /// Integer values (indices, masks).
    pub fn indices(&self) -> Vec<i64> {
        self.data.iter().map(|x| x.re() as i64).collect()
    }
}

/// The index of an axis of `rank` that may be counted from the end. Definitions have their own count, so that a mistake in
/// [`Axis::resolve`] shows.
pub fn axis_index(axis: Axis, rank: usize) -> usize {
    if axis.0 < 0 { rank - axis.0.unsigned_abs() } else { axis.0 as usize }
}

/// The extents to which arrays broadcast: aligned at the last axis, the one that is not 1.
pub fn broadcast_extents<S>(x: &[Nd<S>]) -> Vec<usize> {
    let rank = x.iter().map(|x| x.shape.rank()).max().unwrap_or(0);
    let mut out = vec![1; rank];
    for x in x {
        for (at, &extent) in out[rank - x.shape.rank()..].iter_mut().zip(x.shape.iter()) {
            if extent != 1 {
                *at = extent;
            }
        }
    }
    out
}
