//! Shapes and axes: what users write where an extent or an axis is wanted. Layer L0.

use crate::error::{Result, bail};
use smallvec::SmallVec;
use std::fmt;

/// Extents or strides of up to six axes without a heap allocation.
pub type Dims = SmallVec<[usize; 6]>;

/// The extents of a tensor, outermost axis first. `[]` is a scalar with one element.
///
/// Anything that reads like a shape converts: `[2, 3]`, `&[2, 3][..]`, `vec![2, 3]`, `5` (one axis), `()` (scalar).
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(Dims);

impl Shape {
    /// The shape of a scalar.
    pub fn scalar() -> Self {
        Self::default()
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The extents.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// Number of elements.
    ///
    /// Shapes of existing tensors never overflow; [`Shape::checked_numel`] is for shapes from outside, of which this gives at most
    /// `usize::MAX`.
    pub fn numel(&self) -> usize {
        if self.0.contains(&0) { 0 } else { self.0.iter().fold(1, |n, &d| n.saturating_mul(d)) }
    }

    /// Number of elements, or an error when it does not fit the address space.
    ///
    /// # Errors
    /// Out of memory when the product of the non-zero extents exceeds `isize::MAX`.
    pub fn checked_numel(&self) -> Result<usize> {
        let limit = isize::MAX as usize;
        let mut zero = false;
        let mut n = 1usize;
        for &d in &self.0 {
            if d == 0 {
                zero = true;
                continue;
            }
            n = match n.checked_mul(d) {
                Some(n) if n <= limit => n,
                _ => bail!(out_of_memory, "shape {self} has more elements than memory can address"),
            };
        }
        Ok(if zero { 0 } else { n })
    }

    /// Resolves a possibly negative axis.
    ///
    /// # Errors
    /// Shape error when the axis is outside `-rank..rank`.
    pub fn axis(&self, axis: impl Into<Axis>) -> Result<usize> {
        axis.into().resolve(self.rank())
    }

    /// The shape both operands broadcast to, by NumPy's rule: align at the last axis; extents are equal or one of them is 1.
    ///
    /// # Errors
    /// Shape error that shows both shapes.
    pub fn broadcast(&self, other: &Shape) -> Result<Shape> {
        let (a, b) = (self.dims(), other.dims());
        let rank = a.len().max(b.len());
        let mut out = Dims::from_elem(1, rank);
        for i in 0..rank {
            let x = if i < a.len() { a[a.len() - 1 - i] } else { 1 };
            let y = if i < b.len() { b[b.len() - 1 - i] } else { 1 };
            out[rank - 1 - i] = match (x, y) {
                (x, y) if x == y => x,
                (1, y) => y,
                (x, 1) => x,
                (x, y) => bail!(shape, "shapes do not broadcast: lhs {self}, rhs {other} (axis -{}: {x} vs {y})", i + 1),
            };
        }
        Ok(Shape(out))
    }

    /// This shape with the given axes of extent 1 (`keep`) or without them.
    pub(crate) fn reduced(&self, axes: &[usize], keep: bool) -> Shape {
        let it = self.0.iter().enumerate();
        if keep {
            it.map(|(i, &d)| if axes.contains(&i) { 1 } else { d }).collect()
        } else {
            it.filter(|(i, _)| !axes.contains(i)).map(|(_, &d)| d).collect()
        }
    }

    /// This shape with one extent replaced.
    pub(crate) fn with_dim(&self, axis: usize, extent: usize) -> Shape {
        let mut d = self.0.clone();
        d[axis] = extent;
        Shape(d)
    }

    /// (product of extents before `axis`, extent, product after).
    pub(crate) fn split_at(&self, axis: usize) -> (usize, usize, usize) {
        (self.0[..axis].iter().product(), self.0[axis], self.0[axis + 1..].iter().product())
    }
}

impl std::ops::Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl FromIterator<usize> for Shape {
    fn from_iter<I: IntoIterator<Item = usize>>(it: I) -> Self {
        Shape(it.into_iter().collect())
    }
}

impl PartialEq<[usize]> for Shape {
    fn eq(&self, other: &[usize]) -> bool {
        self.dims() == other
    }
}

impl<const N: usize> PartialEq<[usize; N]> for Shape {
    fn eq(&self, other: &[usize; N]) -> bool {
        self.dims() == other
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(d: [usize; N]) -> Self {
        Shape(SmallVec::from_slice(&d))
    }
}
impl<const N: usize> From<&[usize; N]> for Shape {
    fn from(d: &[usize; N]) -> Self {
        Shape(SmallVec::from_slice(d))
    }
}
impl From<&[usize]> for Shape {
    fn from(d: &[usize]) -> Self {
        Shape(SmallVec::from_slice(d))
    }
}
impl From<Vec<usize>> for Shape {
    fn from(d: Vec<usize>) -> Self {
        Shape(d.into())
    }
}
impl From<Dims> for Shape {
    fn from(d: Dims) -> Self {
        Shape(d)
    }
}
impl From<usize> for Shape {
    fn from(d: usize) -> Self {
        Shape(SmallVec::from_slice(&[d]))
    }
}
impl From<()> for Shape {
    fn from((): ()) -> Self {
        Shape::scalar()
    }
}
impl From<&Shape> for Shape {
    fn from(s: &Shape) -> Self {
        s.clone()
    }
}

/// What [`Tensor::reshape`](crate::Tensor::reshape) takes: anything that reads like a shape, in which one extent may be left open, to follow
/// from the number of elements: `[batch, 6]`, `[-1, 6]`, or a tuple of up to six of mixed types, `(batch, ())`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a shape to reshape to",
    label = "not extents",
    note = "extents are integers: `[2, 3]`, `&[usize]`, a `Shape`; one may be open: `[-1, 6]`, or `(batch, ())` beside a `usize`"
)]
pub trait Extents {
    /// The shape, for a tensor of so many elements.
    ///
    /// # Errors
    /// Shape error when no open extent gives that number, or every one does; for a negative extent that is not −1.
    fn resolve(self, numel: usize) -> Result<Shape>;
}

/// One extent of a tuple: a number, or `()` or −1 for the one that follows from the number of elements.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an extent",
    label = "not an extent",
    note = "an extent is an integer, or `()` for the one that follows from the number of elements: `x.reshape((batch, ()))`"
)]
pub trait Extent {
    /// The number; `None` when it is open.
    ///
    /// # Errors
    /// Shape error for a negative number that is not −1.
    fn known(self) -> Result<Option<usize>>;
}

impl Extent for usize {
    fn known(self) -> Result<Option<usize>> {
        Ok(Some(self))
    }
}

impl Extent for () {
    fn known(self) -> Result<Option<usize>> {
        Ok(None)
    }
}

macro_rules! signed {
    ($($t:ty),*) => {$(
        impl Extent for $t {
            fn known(self) -> Result<Option<usize>> {
                match usize::try_from(self) {
                    Ok(n) => Ok(Some(n)),
                    Err(_) if self == -1 => Ok(None),
                    Err(_) => bail!(shape, "an extent is {self}: only -1 has a meaning, the extent that follows from the number of elements"),
                }
            }
        }

        impl Extents for $t {
            fn resolve(self, numel: usize) -> Result<Shape> {
                infer(&[self.known()?], numel)
            }
        }

        impl<const N: usize> Extents for [$t; N] {
            fn resolve(self, numel: usize) -> Result<Shape> {
                let known = self.iter().map(|&n| n.known()).collect::<Result<SmallVec<[Option<usize>; 6]>>>()?;
                infer(&known, numel)
            }
        }
    )*};
}
signed!(i32, i64, isize);

macro_rules! given {
    ($([$($generic:tt)*] $t:ty;)*) => {$(
        impl<$($generic)*> Extents for $t {
            fn resolve(self, _: usize) -> Result<Shape> {
                Ok(self.into())
            }
        }
    )*};
}
given! {
    [] Shape; [] &Shape; [] Dims; [] Vec<usize>; [] &[usize]; [] usize; [] ();
    [const N: usize] [usize; N]; [const N: usize] &[usize; N];
}

/// The shape of extents of which at most one is open.
fn infer(extents: &[Option<usize>], numel: usize) -> Result<Shape> {
    let known: Shape = extents.iter().flatten().copied().collect();
    let open = extents.iter().filter(|e| e.is_none()).count();
    if open == 0 {
        return Ok(known);
    }
    let shown = || extents.iter().map(|e| e.map_or_else(|| "?".to_owned(), |n| n.to_string())).collect::<Vec<_>>().join(", ");
    if open > 1 {
        bail!(shape, "{open} extents of ({}) are open: one can follow from the number of elements", shown());
    }
    let found = match known.checked_numel()? {
        0 => None,
        n if numel.is_multiple_of(n) => Some(numel / n),
        _ => None,
    };
    let Some(found) = found else {
        bail!(shape, "cannot infer the open extent of ({}): {numel} elements are not a unique multiple of {}", shown(), known.numel());
    };
    Ok(extents.iter().map(|e| e.unwrap_or(found)).collect())
}

/// Calls a macro with the tuples of one to twelve types, `(A 0, B 1, ..)`: a letter for the type, a number for the field.
macro_rules! up_to_twelve {
    ($m:ident) => {
        $m! {
            (A 0);
            (A 0, B 1);
            (A 0, B 1, C 2);
            (A 0, B 1, C 2, D 3);
            (A 0, B 1, C 2, D 3, E 4);
            (A 0, B 1, C 2, D 3, E 4, F 5);
            (A 0, B 1, C 2, D 3, E 4, F 5, G 6);
            (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);
            (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8);
            (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9);
            (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10);
            (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11);
        }
    };
}
pub(crate) use up_to_twelve;

macro_rules! tuples {
    ($(($($T:ident $i:tt),+);)*) => {$(
        impl<$($T: Extent),+> Extents for ($($T,)+) {
            fn resolve(self, numel: usize) -> Result<Shape> {
                infer(&[$(self.$i.known()?),+], numel)
            }
        }
    )*};
}
up_to_twelve!(tuples);

/// One axis; negative values count from the end (`-1` is the last).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis(pub isize);

impl Axis {
    /// The axis as an index below `rank`.
    ///
    /// # Errors
    /// Shape error when it is outside `-rank..rank`.
    pub fn resolve(self, rank: usize) -> Result<usize> {
        let r = rank as isize;
        if self.0 < -r || self.0 >= r {
            if rank == 0 {
                bail!(shape, "axis {} does not exist: the tensor is a scalar", self.0);
            }
            bail!(shape, "axis {} does not exist: the tensor has rank {rank} (valid: -{rank}..={})", self.0, rank - 1);
        }
        Ok(if self.0 < 0 { self.0 + r } else { self.0 } as usize)
    }
}

impl From<i32> for Axis {
    fn from(a: i32) -> Self {
        Axis(a as isize)
    }
}
impl From<isize> for Axis {
    fn from(a: isize) -> Self {
        Axis(a)
    }
}
impl From<usize> for Axis {
    fn from(a: usize) -> Self {
        // An absurdly large axis must stay out of range instead of wrapping to a negative one.
        Axis(isize::try_from(a).unwrap_or(isize::MAX))
    }
}

/// A set of axes to reduce over: `..` (all), `-1`, `[0, 2]`, `&axes[..]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Axes {
    /// Every axis.
    All,
    /// These axes, in any order, each once.
    List(SmallVec<[Axis; 4]>),
}

impl Axes {
    /// Sorted axis indices below `rank`. An empty list (`[0isize; 0]`: a bare `[]` has no type) means no axis, not every axis.
    ///
    /// # Errors
    /// Shape error when an axis is out of range or named twice.
    pub fn resolve(&self, rank: usize) -> Result<Dims> {
        let mut out = self.ordered(rank)?;
        out.sort_unstable();
        Ok(out)
    }

    /// Axis indices below `rank` in the order in which they were given.
    ///
    /// # Errors
    /// Shape error when an axis is out of range or named twice.
    pub fn ordered(&self, rank: usize) -> Result<Dims> {
        match self {
            Axes::All => Ok((0..rank).collect()),
            Axes::List(list) => {
                let mut out = Dims::new();
                for a in list {
                    let i = a.resolve(rank)?;
                    if out.contains(&i) {
                        let first = list.iter().find(|b| b.resolve(rank).is_ok_and(|j| j == i)).map_or(a.0, |b| b.0);
                        bail!(shape, "axis {} of {rank} axes is named twice: as {first} and as {}", i, a.0);
                    }
                    out.push(i);
                }
                Ok(out)
            }
        }
    }
}

impl From<std::ops::RangeFull> for Axes {
    fn from(_: std::ops::RangeFull) -> Self {
        Axes::All
    }
}
impl From<Axis> for Axes {
    fn from(a: Axis) -> Self {
        Axes::List(SmallVec::from_slice(&[a]))
    }
}
impl From<i32> for Axes {
    fn from(a: i32) -> Self {
        Axis::from(a).into()
    }
}
impl From<isize> for Axes {
    fn from(a: isize) -> Self {
        Axis(a).into()
    }
}
impl From<usize> for Axes {
    fn from(a: usize) -> Self {
        Axis::from(a).into()
    }
}
impl<T: Copy + Into<Axis>, const N: usize> From<[T; N]> for Axes {
    fn from(a: [T; N]) -> Self {
        Axes::List(a.iter().map(|&x| x.into()).collect())
    }
}
impl<T: Copy + Into<Axis>> From<&[T]> for Axes {
    fn from(a: &[T]) -> Self {
        Axes::List(a.iter().map(|&x| x.into()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_follows_numpy() {
        let b = |a: &[usize], b: &[usize]| Shape::from(a).broadcast(&Shape::from(b)).map(|s| s.to_vec());
        assert_eq!(b(&[5, 1, 3], &[1, 4, 1]).unwrap(), [5, 4, 3]);
        assert_eq!(b(&[], &[2, 0]).unwrap(), [2, 0]);
        assert_eq!(b(&[1], &[0]).unwrap(), [0]);
        assert!(b(&[2], &[0]).unwrap_err().is_shape());
        let e = b(&[2, 3], &[4, 3]).unwrap_err().to_string();
        assert_eq!(e, "shapes do not broadcast: lhs [2, 3], rhs [4, 3] (axis -2: 2 vs 4)");
    }

    #[test]
    fn axes_resolve_or_say_why() {
        assert_eq!(Axis(-1).resolve(3).unwrap(), 2);
        assert!(Axis(3).resolve(3).is_err() && Axis(-4).resolve(3).is_err() && Axis(0).resolve(0).is_err());
        assert!(Axis::from(usize::MAX).resolve(3).is_err());
        assert_eq!(Axes::from([-1, 0]).resolve(3).unwrap().to_vec(), [0, 2]);
        assert!(Axes::from([-1, 2]).resolve(3).unwrap_err().to_string().contains("named twice"));
    }

    #[test]
    fn one_extent_may_be_inferred() {
        assert_eq!((2, ()).resolve(6).unwrap(), [2, 3]);
        assert_eq!(((), 2, 3).resolve(6).unwrap(), [1, 2, 3]);
        assert_eq!((2, (), 5, 1).resolve(0).unwrap(), [2, 0, 5, 1]);
        assert_eq!([2, 3].resolve(7).unwrap(), [2, 3]);
        let e = (4, (), 1).resolve(6).unwrap_err();
        assert!(e.is_shape() && e.to_string().starts_with("cannot infer the open extent of (4, ?, 1): 6 elements"), "{e}");
        assert!(((), 0).resolve(0).unwrap_err().is_shape());
        assert!((usize::MAX, 2, ()).resolve(6).unwrap_err().is_out_of_memory());
        // PyTorch's spelling, alone, in lists and in tuples beside `usize`.
        assert_eq!((-1).resolve(6).unwrap(), [6]);
        assert_eq!([-1, 2].resolve(6).unwrap(), [3, 2]);
        assert_eq!([2i64, -1, 1].resolve(6).unwrap(), [2, 3, 1]);
        assert_eq!((2usize, -1, 1).resolve(6).unwrap(), [2, 3, 1]);
        assert!([-1, -1].resolve(4).unwrap_err().to_string().contains("2 extents of (?, ?) are open"));
        assert!([-2, 3].resolve(6).unwrap_err().to_string().contains("an extent is -2"));
        assert!([4, -1].resolve(6).unwrap_err().is_shape() && [0, -1].resolve(0).is_err());
    }

    #[test]
    fn numel_overflow_is_an_error() {
        assert!(Shape::from([usize::MAX, 2]).checked_numel().unwrap_err().is_out_of_memory());
        // A zero extent does not hide an overflow of the others.
        assert!(Shape::from([0, usize::MAX, 2]).checked_numel().is_err());
        assert_eq!(Shape::from([0, 7]).checked_numel().unwrap(), 0);
    }
}
