//! `Nd`: the row-major arrays that definitions are written on. Plain and slow on purpose.

use super::Scalar;
use crate::layout::contiguous_strides;
use crate::shape::Shape;

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
        let shape = shape.into();
        let mut index = vec![0; shape.rank()];
        let data = (0..shape.numel())
            .map(|_| {
                let y = f(&index);
                for i in (0..index.len()).rev() {
                    index[i] += 1;
                    if index[i] < shape[i] {
                        break;
                    }
                    index[i] = 0;
                }
                y
            })
            .collect();
        Nd { shape, data }
    }

    /// The element at an index.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn at(&self, index: &[usize]) -> S {
        assert_eq!(index.len(), self.shape.rank(), "index {index:?} into {}", self.shape);
        let strides = contiguous_strides(&self.shape);
        self.data[index.iter().zip(&strides).map(|(i, s)| i * s).sum::<usize>()]
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
    pub fn map(&self, f: impl FnMut(S) -> S) -> Self {
        Nd { shape: self.shape.clone(), data: self.data.iter().copied().map(f).collect() }
    }

    /// Applies `f` to each line along `axis`: lines of `n` elements become lines of however many `f` returns.
    ///
    /// # Panics
    /// If `f` returns lines of different lengths.
    pub fn map_lines(&self, axis: usize, out: usize, mut f: impl FnMut(&[S]) -> Vec<S>) -> Self {
        let (outer, n, inner) = self.shape.split_at(axis);
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
        Nd { shape: self.shape.with_dim(axis, out), data }
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
