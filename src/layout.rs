//! How a tensor is laid out in memory: extents, strides and an offset, all in elements. Layer L0.
//!
//! Views (transpose, slice, broadcast) are new layouts over the same storage. Strides are never negative: a reversed
//! axis is a copy (`flip`), which keeps every kernel's address arithmetic unsigned.

use crate::error::{Result, bail};
use crate::shape::{Dims, Shape};

/// Extents, strides and offset of a view, in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    shape: Shape,
    strides: Dims,
    offset: usize,
}

impl Layout {
    /// Row-major layout that starts at the storage's first element. Where the shape has more elements than can be counted, strides
    /// stop at `usize::MAX`, and [`Layout::end`] is `None`.
    pub fn contiguous(shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        let strides = contiguous_strides(&shape);
        Layout { shape, strides, offset: 0 }
    }

    /// A layout from its parts; used by tests and by file readers.
    ///
    /// # Errors
    /// Shape error when the number of strides differs from the rank; out of memory when an element lies further away than can be
    /// counted.
    pub fn from_parts(shape: Shape, strides: Dims, offset: usize) -> Result<Self> {
        if shape.rank() != strides.len() {
            bail!(shape, "layout: shape {shape} has rank {}, but there are {} strides", shape.rank(), strides.len());
        }
        shape.checked_numel()?;
        let layout = Layout { shape, strides, offset };
        if layout.end().is_none() {
            bail!(
                out_of_memory,
                "layout: strides {:?} from {offset} on reach beyond memory in shape {}",
                layout.strides.to_vec(),
                layout.shape
            );
        }
        Ok(layout)
    }

    /// The extents.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Elements to step over per unit of each axis.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// Storage index of the first element.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.rank()
    }

    /// Number of elements of the view.
    pub fn numel(&self) -> usize {
        self.shape.numel()
    }

    /// Whether the elements lie in row-major order without gaps (the offset may be anything).
    pub fn is_contiguous(&self) -> bool {
        if self.numel() == 0 {
            return true;
        }
        let mut want = 1;
        for (&d, &s) in self.shape.iter().zip(&self.strides).rev() {
            if d != 1 && s != want {
                return false;
            }
            want = want.saturating_mul(d);
        }
        true
    }

    /// One past the largest storage index that the view touches; 0 for an empty view. `None` if it overflows.
    pub fn end(&self) -> Option<usize> {
        if self.numel() == 0 {
            return Some(0);
        }
        let mut last = self.offset;
        for (&d, &s) in self.shape.iter().zip(&self.strides) {
            last = last.checked_add((d - 1).checked_mul(s)?)?;
        }
        last.checked_add(1)
    }

    /// Axes in a new order.
    ///
    /// # Errors
    /// Shape error unless `order` names every axis exactly once.
    pub fn permute(&self, order: &[usize]) -> Result<Self> {
        let rank = self.rank();
        let mut seen = Dims::from_elem(0, rank);
        for &a in order {
            if a >= rank || seen[a] == 1 {
                bail!(shape, "order {order:?} is not a permutation of the {rank} axes of {}", self.shape);
            }
            seen[a] = 1;
        }
        if order.len() != rank {
            bail!(shape, "order {order:?} names {} axes, but shape {} has {rank}", order.len(), self.shape);
        }
        Ok(Layout {
            shape: order.iter().map(|&a| self.shape[a]).collect(),
            strides: order.iter().map(|&a| self.strides[a]).collect(),
            offset: self.offset,
        })
    }

    /// Broadcast to a larger shape with stride 0 on the repeated axes.
    ///
    /// # Errors
    /// Shape error when an extent differs and is not 1, or `shape` has fewer axes; out of memory when it has more elements than can be
    /// counted.
    pub fn expand(&self, shape: &Shape) -> Result<Self> {
        let (old, new) = (self.rank(), shape.rank());
        shape.checked_numel()?;
        if new < old {
            bail!(shape, "cannot expand {} to {shape}: the target has fewer axes", self.shape);
        }
        let lead = new - old;
        let mut strides = Dims::from_elem(0, new);
        for i in 0..old {
            let (d, t) = (self.shape[i], shape[lead + i]);
            if d == t {
                strides[lead + i] = self.strides[i];
            } else if d != 1 {
                bail!(shape, "cannot expand {} to {shape} (axis {i}: {d} vs {t}); only extents of 1 expand", self.shape);
            }
        }
        Ok(Layout { shape: shape.clone(), strides, offset: self.offset })
    }

    /// Elements `start, start + step, …` (`len` of them) of one axis.
    ///
    /// # Errors
    /// Shape error when there is no such axis; index error when they do not lie within it; argument error for step 0.
    pub fn slice(&self, axis: usize, start: usize, len: usize, step: usize) -> Result<Self> {
        let Some(&d) = self.shape.get(axis) else {
            bail!(shape, "axis {axis} does not exist: the layout has shape {}", self.shape);
        };
        if step == 0 {
            bail!(argument, "step must be at least 1");
        }
        let last = len.checked_sub(1).map_or(Some(0), |n| n.checked_mul(step)).and_then(|n| n.checked_add(start));
        let inside = if len == 0 { start <= d } else { last.is_some_and(|l| l < d) };
        if !inside {
            bail!(index, "{len} elements from {start} by {step} do not fit axis {axis} of {}", self.shape);
        }
        let mut out = self.clone();
        // An empty slice at the end must not move the offset beyond the storage.
        if len > 0 {
            let by = start.checked_mul(self.strides[axis]).and_then(|by| out.offset.checked_add(by));
            let Some(offset) = by else { bail!(out_of_memory, "element {start} of axis {axis} of {} is beyond memory", self.shape) };
            out.offset = offset;
        }
        out.shape = out.shape.with_dim(axis, len);
        out.strides[axis] = self.strides[axis].saturating_mul(step);
        Ok(out)
    }

    /// The same elements under a new shape as a view, or `None` when only a copy can provide it.
    ///
    /// `None` as well when the element counts differ.
    pub fn reshape(&self, shape: &Shape) -> Option<Self> {
        if self.shape.checked_numel().ok()? != shape.checked_numel().ok()? {
            return None;
        }
        if self.is_contiguous() {
            return Some(Layout { shape: shape.clone(), strides: contiguous_strides(shape), offset: self.offset });
        }
        // Group old axes into runs that are contiguous among themselves, and cut each run into new axes.
        let old: Vec<(usize, usize)> = self.shape.iter().copied().zip(self.strides.iter().copied()).filter(|&(d, _)| d != 1).collect();
        let mut strides = Dims::from_elem(0, shape.rank());
        let (mut o, mut n) = (0, 0);
        while o < old.len() {
            let (mut from, mut to) = (old[o].0, 1);
            let n0 = n;
            o += 1;
            while from != to {
                if to < from {
                    to *= *shape.get(n)?;
                    n += 1;
                } else {
                    let (d, s) = *old.get(o)?;
                    if old[o - 1].1 != d.wrapping_mul(s) {
                        return None;
                    }
                    from *= d;
                    o += 1;
                }
            }
            // The run of old axes that ends before `o` becomes the new axes [n0, n).
            let mut s = old[o - 1].1;
            for i in (n0..n).rev() {
                strides[i] = s;
                s = s.wrapping_mul(shape[i]);
            }
        }
        Some(Layout { shape: shape.clone(), strides, offset: self.offset })
    }

    /// Removes the axis, whose extent must be 1, or inserts one of extent 1.
    pub(crate) fn with_axis(&self, axis: usize, insert: bool) -> Self {
        let mut shape: Dims = self.shape.iter().copied().collect();
        let mut strides = self.strides.clone();
        if insert {
            shape.insert(axis, 1);
            strides.insert(axis, 0);
        } else {
            shape.remove(axis);
            strides.remove(axis);
        }
        Layout { shape: shape.into(), strides, offset: self.offset }
    }

    /// Storage indices of all elements in row-major order.
    pub fn indices(&self) -> Indices {
        Indices {
            dims: self.shape.iter().copied().collect(),
            strides: self.strides.clone(),
            counter: Dims::from_elem(0, self.rank()),
            at: self.offset,
            left: self.numel(),
        }
    }
}

/// Row-major strides of a shape.
pub fn contiguous_strides(shape: &[usize]) -> Dims {
    let mut strides = Dims::from_elem(1, shape.len());
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i].max(1));
    }
    strides
}

/// Drops axes of extent 1 and merges neighbours that every operand steps through evenly, so that a kernel sees the
/// fewest, longest loops. Returns the extents and one stride list per operand.
pub fn collapse(shape: &[usize], strides: &[&[usize]]) -> (Dims, Vec<Dims>) {
    let mut dims = Dims::new();
    let mut out: Vec<Dims> = vec![Dims::new(); strides.len()];
    for i in 0..shape.len() {
        let d = shape[i];
        if d == 1 {
            continue;
        }
        let merges = !dims.is_empty() && strides.iter().zip(&out).all(|(s, o)| o[o.len() - 1] == s[i].wrapping_mul(d));
        if merges {
            let k = dims.len() - 1;
            dims[k] = usize::saturating_mul(dims[k], d);
            for (o, s) in out.iter_mut().zip(strides) {
                o[k] = s[i];
            }
        } else {
            dims.push(d);
            for (o, s) in out.iter_mut().zip(strides) {
                o.push(s[i]);
            }
        }
    }
    (dims, out)
}

/// Iterator over the storage indices of a view; see [`Layout::indices`].
#[derive(Clone, Debug)]
pub struct Indices {
    dims: Dims,
    strides: Dims,
    counter: Dims,
    at: usize,
    left: usize,
}

impl Iterator for Indices {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let here = self.at;
        for i in (0..self.dims.len()).rev() {
            self.counter[i] += 1;
            if self.counter[i] < self.dims[i] {
                self.at = self.at.wrapping_add(self.strides[i]);
                break;
            }
            self.at = self.at.wrapping_sub(self.strides[i].wrapping_mul(self.dims[i] - 1));
            self.counter[i] = 0;
        }
        Some(here)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Indices {}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(l: &Layout) -> Vec<usize> {
        l.indices().collect()
    }

    #[test]
    fn views_walk_the_right_elements() {
        let l = Layout::contiguous([2, 3]);
        assert_eq!(all(&l.permute(&[1, 0]).unwrap()), [0, 3, 1, 4, 2, 5]);
        assert_eq!(all(&l.slice(1, 0, 2, 2).unwrap()), [0, 2, 3, 5]);
        let row = Layout::contiguous([3]).expand(&[2, 3].into()).unwrap();
        assert_eq!(all(&row), [0, 1, 2, 0, 1, 2]);
        assert_eq!(all(&Layout::contiguous(())), [0]);
        assert_eq!(all(&Layout::contiguous([2, 0])), [] as [usize; 0]);
    }

    #[test]
    fn reshape_is_a_view_exactly_when_the_order_allows() {
        // Against brute force: a view exists iff some strides reproduce the row-major walk.
        let bases = [
            Layout::contiguous([2, 3, 4]),
            Layout::contiguous([2, 3, 4]).permute(&[1, 0, 2]).unwrap(),
            Layout::contiguous([4, 3, 4]).slice(0, 0, 2, 2).unwrap(),
            Layout::contiguous([2, 1, 1]).expand(&[2, 3, 4].into()).unwrap(),
        ];
        for base in &bases {
            for shape in [vec![24], vec![6, 4], vec![2, 12], vec![3, 8], vec![2, 3, 2, 2], vec![1, 24, 1], vec![3, 2, 4]] {
                let shape = Shape::from(shape);
                if let Some(v) = base.reshape(&shape) {
                    assert_eq!(all(&v), all(base), "{base:?} -> {shape}");
                }
            }
        }
        assert!(bases[1].reshape(&[24].into()).is_none());
        assert!(bases[1].reshape(&[3, 2, 2, 2].into()).is_some());
        assert!(bases[3].reshape(&[2, 12].into()).is_some());
    }

    #[test]
    fn bad_slices_are_errors() {
        let l = Layout::contiguous([4]);
        assert!(l.slice(0, 2, 3, 1).is_err());
        assert!(l.slice(0, 0, 2, usize::MAX).is_err());
        assert!(l.slice(0, 0, 1, 0).unwrap_err().is_argument());
        assert_eq!(l.slice(0, 4, 0, 1).unwrap().end(), Some(0));
    }

    #[test]
    fn collapse_merges_what_all_operands_allow() {
        let (d, s) = collapse(&[2, 3, 4], &[&[12, 4, 1], &[0, 4, 1]]);
        assert_eq!((d.to_vec(), s[0].to_vec(), s[1].to_vec()), (vec![2, 12], vec![12, 1], vec![0, 1]));
    }
}
