//! Parallel loops over chunks, compiled small.
//!
//! The methods read like rayon's and run on its pool, but every loop goes through one function over task numbers
//! ([`run`]). Rayon's own iterators compile some twenty functions per loop, which for the hundreds of loops of the kernels
//! was half of the crate's build time.

use crate::memory;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Calls `f` for every task below `n`, on the current rayon pool; at least `min` consecutive tasks stay together.
fn run(n: usize, min: usize, f: &(dyn Fn(usize) + Sync)) {
    use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
    if n <= min {
        (0..n).for_each(f);
    } else if min == 1 && n <= 256 {
        // Few, heavy tasks: each may go to another thread.
        (0..n).into_par_iter().with_max_len(1).for_each(f);
    } else {
        (0..n).into_par_iter().with_min_len(min).for_each(f);
    }
}

/// [`run`] for tasks that may fail: the error of the first task that has one.
fn try_run<E: Send>(n: usize, min: usize, f: &(dyn Fn(usize) -> Result<(), E> + Sync)) -> Result<(), E> {
    let first: Mutex<Option<(usize, E)>> = Mutex::new(None);
    run(n, min, &|i| {
        if let Err(e) = f(i) {
            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
            if first.as_ref().is_none_or(|(j, _)| i < *j) {
                *first = Some((i, e));
            }
        }
    });
    first.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), |(_, e)| Err(e))
}

/// A sequence whose items can be made independently, by number.
pub(crate) trait Parallel: Sized + Sync {
    /// What a task gets.
    type Item;

    /// Number of items.
    fn len(&self) -> usize;

    /// Fewest consecutive items per task.
    fn min_len(&self) -> usize {
        1
    }

    /// Item `i`.
    ///
    /// # Safety
    /// `i < self.len()`, and each `i` is asked for at most once.
    unsafe fn item(&self, i: usize) -> Self::Item;

    /// Pairs with another sequence; the shorter one decides.
    fn zip<B: IntoParallel>(self, other: B) -> Zip<Self, B::Sequence> {
        Zip(self, other.into_parallel())
    }

    /// Adds the number of each item.
    fn enumerate(self) -> Enumerate<Self> {
        Enumerate(self)
    }

    /// Maps each item, in its task.
    fn map<R, F: Fn(Self::Item) -> R + Sync>(self, f: F) -> Map<Self, F> {
        Map(self, f)
    }

    /// Keeps at least `min` consecutive items in one task: for items too small to be worth handing over.
    fn with_min_len(self, min: usize) -> MinLen<Self> {
        MinLen(self, min.max(1))
    }

    /// Calls `f` on every item.
    fn for_each(self, f: impl Fn(Self::Item) + Sync) {
        // SAFETY: `run` calls each number below `len` exactly once.
        run(self.len(), self.min_len(), &|i| f(unsafe { self.item(i) }));
    }

    /// Calls `f` on every item; the error of the first item that has one.
    fn try_for_each<E: Send>(self, f: impl Fn(Self::Item) -> Result<(), E> + Sync) -> Result<(), E> {
        // SAFETY: `try_run` calls each number below `len` exactly once.
        try_run(self.len(), self.min_len(), &|i| f(unsafe { self.item(i) }))
    }

    /// All items, in order.
    ///
    /// # Errors
    /// Out of memory.
    fn collect(self) -> crate::Result<Vec<Self::Item>>
    where
        Self::Item: Send,
    {
        let n = self.len();
        let mut out: Vec<Option<Self::Item>> = memory::try_collect((0..n).map(|_| None))?;
        let mut items = memory::room(n)?;
        out.par_chunks_mut(1).zip(self).for_each(|(slot, item)| slot[0] = Some(item));
        // Each task has filled its own.
        for item in out.into_iter().flatten() {
            items.push(item);
        }
        Ok(items)
    }
}

/// What can be looped over in parallel.
pub(crate) trait IntoParallel {
    /// The sequence it becomes.
    type Sequence: Parallel;
    /// Becomes a sequence.
    fn into_parallel(self) -> Self::Sequence;
}

impl<P: Parallel> IntoParallel for P {
    type Sequence = P;
    fn into_parallel(self) -> P {
        self
    }
}

impl<T: Send> IntoParallel for Vec<T> {
    type Sequence = Items<T>;
    fn into_parallel(self) -> Items<T> {
        Items(ManuallyDrop::new(self))
    }
}

/// `into_par_iter`, as rayon calls it.
pub(crate) trait IntoParIter: IntoParallel + Sized {
    /// Becomes a sequence.
    fn into_par_iter(self) -> Self::Sequence {
        self.into_parallel()
    }
}
impl<T: Send> IntoParIter for Vec<T> {}

/// The numbers of a range.
pub(crate) struct Numbers(Range<usize>);

/// The numbers of a range, as a sequence.
pub(crate) fn numbers(r: Range<usize>) -> Numbers {
    Numbers(r)
}

impl Parallel for Numbers {
    type Item = usize;
    fn len(&self) -> usize {
        self.0.len()
    }
    unsafe fn item(&self, i: usize) -> usize {
        self.0.start + i
    }
}

/// The elements of a vector, moved out one by one.
pub(crate) struct Items<T>(ManuallyDrop<Vec<T>>);

// SAFETY: tasks only move distinct elements out, so sharing the vector hands elements over to other threads: `T: Send`.
unsafe impl<T: Send> Sync for Items<T> {}

impl<T: Send> Parallel for Items<T> {
    type Item = T;
    fn len(&self) -> usize {
        self.0.len()
    }
    unsafe fn item(&self, i: usize) -> T {
        // SAFETY: in bounds and asked for once, so the element is moved out once; `drop` below does not drop elements.
        unsafe { std::ptr::read(self.0.as_ptr().add(i)) }
    }
}

impl<T> Drop for Items<T> {
    fn drop(&mut self) {
        // SAFETY: the vector is not used again. Its elements were moved out (or leak, if a loop panicked): only the
        // memory is returned.
        unsafe {
            self.0.set_len(0);
            ManuallyDrop::drop(&mut self.0);
        }
    }
}

/// Pieces of a slice; see [`ParSlice::par_chunks`].
pub(crate) struct Chunks<'a, T>(&'a [T], usize);

impl<'a, T: Sync> Parallel for Chunks<'a, T> {
    type Item = &'a [T];
    fn len(&self) -> usize {
        self.0.len().div_ceil(self.1)
    }
    unsafe fn item(&self, i: usize) -> &'a [T] {
        let start = i * self.1;
        &self.0[start..(start + self.1).min(self.0.len())]
    }
}

/// Writable pieces of a slice; see [`ParSliceMut::par_chunks_mut`].
pub(crate) struct ChunksMut<'a, T> {
    data: *mut T,
    len: usize,
    size: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: tasks get disjoint pieces of the borrowed slice, each as `&mut [T]`: that needs `T: Send`.
unsafe impl<T: Send> Sync for ChunksMut<'_, T> {}

impl<'a, T: Send> Parallel for ChunksMut<'a, T> {
    type Item = &'a mut [T];
    fn len(&self) -> usize {
        self.len.div_ceil(self.size)
    }
    unsafe fn item(&self, i: usize) -> &'a mut [T] {
        let start = i * self.size;
        // SAFETY: `i < len()`, so start < self.len; pieces of different numbers are disjoint, and each is asked for once.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), self.size.min(self.len - start)) }
    }
}

/// Pieces of shared slices.
pub(crate) trait ParSlice<T> {
    /// Pieces of `size` elements; the last may be shorter.
    ///
    /// # Panics
    /// If `size` is 0.
    fn par_chunks(&self, size: usize) -> Chunks<'_, T>;
}

impl<T> ParSlice<T> for [T] {
    fn par_chunks(&self, size: usize) -> Chunks<'_, T> {
        assert!(size > 0, "pieces must not be empty");
        Chunks(self, size)
    }
}

/// Pieces of writable slices.
pub(crate) trait ParSliceMut<T> {
    /// Writable pieces of `size` elements; the last may be shorter.
    ///
    /// # Panics
    /// If `size` is 0.
    fn par_chunks_mut(&mut self, size: usize) -> ChunksMut<'_, T>;

    /// Strips of `width` columns of each block of `rows` rows of `inner` elements; the last strip of a block may be narrower.
    ///
    /// # Panics
    /// If the slice is not whole blocks, or an argument is 0.
    fn par_columns(&mut self, rows: usize, inner: usize, width: usize) -> Columns<'_, T>;
}

impl<T> ParSliceMut<T> for [T] {
    fn par_chunks_mut(&mut self, size: usize) -> ChunksMut<'_, T> {
        assert!(size > 0, "pieces must not be empty");
        ChunksMut { data: self.as_mut_ptr(), len: self.len(), size, slice: PhantomData }
    }

    fn par_columns(&mut self, rows: usize, inner: usize, width: usize) -> Columns<'_, T> {
        assert!(width > 0 && self.len().is_multiple_of(rows * inner), "columns of blocks of {rows} by {inner}");
        Columns { data: self.as_mut_ptr(), blocks: self.len() / (rows * inner), rows, inner, width, slice: PhantomData }
    }
}

/// Strips of columns; see [`ParSliceMut::par_columns`].
pub(crate) struct Columns<'a, T> {
    data: *mut T,
    blocks: usize,
    rows: usize,
    inner: usize,
    width: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: tasks get disjoint columns of the borrowed slice, each as `&mut [T]`: that needs `T: Send`.
unsafe impl<T: Send> Sync for Columns<'_, T> {}

/// Some neighbouring columns of a row-major matrix.
pub(crate) struct Strip<'a, T> {
    data: *mut T,
    rows: usize,
    inner: usize,
    width: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<T> Strip<'_, T> {
    /// Number of columns.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// The strip's part of a row.
    ///
    /// # Panics
    /// If the row does not exist.
    #[inline(always)]
    pub(crate) fn row(&mut self, r: usize) -> &mut [T] {
        assert!(r < self.rows, "row {r} of {}", self.rows);
        // SAFETY: `data` is the first row's part inside a slice of `rows` rows of `inner` elements, and no other strip has
        // these columns; the borrow of self keeps the parts of two rows apart.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(r * self.inner), self.width) }
    }
}

impl<'a, T: Send> Parallel for Columns<'a, T> {
    type Item = Strip<'a, T>;
    fn len(&self) -> usize {
        self.blocks * self.inner.div_ceil(self.width)
    }
    unsafe fn item(&self, i: usize) -> Strip<'a, T> {
        let strips = self.inner.div_ceil(self.width);
        let column = i % strips * self.width;
        // SAFETY: `i < len()`, so the block exists and `column < inner`; numbers differ in the block or the columns, and each
        // is asked for once.
        let data = unsafe { self.data.add(i / strips * self.rows * self.inner + column) };
        Strip { data, rows: self.rows, inner: self.inner, width: self.width.min(self.inner - column), slice: PhantomData }
    }
}

/// Pairs; see [`Parallel::zip`].
pub(crate) struct Zip<A, B>(A, B);

impl<A: Parallel, B: Parallel> Parallel for Zip<A, B> {
    type Item = (A::Item, B::Item);
    fn len(&self) -> usize {
        self.0.len().min(self.1.len())
    }
    fn min_len(&self) -> usize {
        self.0.min_len().max(self.1.min_len())
    }
    unsafe fn item(&self, i: usize) -> Self::Item {
        // SAFETY: passed on.
        unsafe { (self.0.item(i), self.1.item(i)) }
    }
}

/// Numbered items; see [`Parallel::enumerate`].
pub(crate) struct Enumerate<A>(A);

impl<A: Parallel> Parallel for Enumerate<A> {
    type Item = (usize, A::Item);
    fn len(&self) -> usize {
        self.0.len()
    }
    fn min_len(&self) -> usize {
        self.0.min_len()
    }
    unsafe fn item(&self, i: usize) -> Self::Item {
        // SAFETY: passed on.
        (i, unsafe { self.0.item(i) })
    }
}

/// Mapped items; see [`Parallel::map`].
pub(crate) struct Map<A, F>(A, F);

impl<A: Parallel, R, F: Fn(A::Item) -> R + Sync> Parallel for Map<A, F> {
    type Item = R;
    fn len(&self) -> usize {
        self.0.len()
    }
    fn min_len(&self) -> usize {
        self.0.min_len()
    }
    unsafe fn item(&self, i: usize) -> R {
        // SAFETY: passed on.
        (self.1)(unsafe { self.0.item(i) })
    }
}

/// Grouped items; see [`Parallel::with_min_len`].
pub(crate) struct MinLen<A>(A, usize);

impl<A: Parallel> Parallel for MinLen<A> {
    type Item = A::Item;
    fn len(&self) -> usize {
        self.0.len()
    }
    fn min_len(&self) -> usize {
        self.1
    }
    unsafe fn item(&self, i: usize) -> A::Item {
        // SAFETY: passed on.
        unsafe { self.0.item(i) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_visited_once_and_in_its_place() {
        for (n, size) in [(0usize, 3usize), (1, 3), (7, 3), (9, 3), (1000, 1), (1000, 999)] {
            let x: Vec<usize> = (0..n).collect();
            let mut y = vec![0; n];
            y.par_chunks_mut(size).zip(x.par_chunks(size)).enumerate().for_each(|(i, (y, x))| {
                for (y, x) in y.iter_mut().zip(x) {
                    *y += x + i;
                }
            });
            assert!(y.iter().enumerate().all(|(k, &v)| v == k + k / size), "{n} by {size}");
            let sums = x.par_chunks(size).map(|c| c.iter().sum::<usize>()).collect().unwrap();
            assert_eq!(sums, x.chunks(size).map(|c| c.iter().sum::<usize>()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn columns_cover_every_element_once() {
        for (blocks, rows, inner, width) in [(1usize, 1usize, 1usize, 4usize), (3, 2, 5, 2), (2, 7, 16, 16), (1, 4, 33, 16)] {
            let mut y = vec![0; blocks * rows * inner];
            let strips = inner.div_ceil(width);
            y.par_columns(rows, inner, width).enumerate().for_each(|(i, mut strip)| {
                for r in 0..rows {
                    for (c, y) in strip.row(r).iter_mut().enumerate() {
                        *y += (i / strips * rows + r) * inner + i % strips * width + c + 1;
                    }
                }
            });
            assert!(y.iter().enumerate().all(|(k, &v)| v == k + 1), "{blocks} blocks of {rows} by {inner} in strips of {width}");
        }
    }

    #[test]
    fn vectors_are_moved_out_and_the_first_error_wins() {
        let words: Vec<String> = (0..100).map(|i| i.to_string()).collect();
        assert_eq!(words.clone().into_par_iter().map(|w| w.len()).collect().unwrap().iter().sum::<usize>(), 190);
        let e = words.into_par_iter().enumerate().with_min_len(7).try_for_each(|(i, w)| if i % 10 == 3 { Err(w) } else { Ok(()) });
        assert_eq!(e.unwrap_err(), "3");
    }
}
