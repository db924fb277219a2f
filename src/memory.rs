//! Lists whose length comes from data or an argument: there, or an error; never an abort. Layer L1, beside the backend, whose
//! cache is given back before an allocation is refused.
//!
//! Rust's `vec!`, `with_capacity` and `collect` end the process when there is no memory. Everything in this crate whose size
//! a caller decides comes from here or from [`Buffer`](crate::backend::cpu); `tests/tidy.rs::sizes_from_data_cannot_abort`
//! holds it. Small things of the standard library (a string, a node of a map, an error itself) are still allocated without
//! asking: for them [`MARGIN`] bytes are left whenever something large is handed out.

use crate::backend::cpu::release_cached_memory;
use crate::error::{Error, Result};

/// What is left for small things when something large is handed out.
const MARGIN: usize = 2 << 20;

/// From this size on it is made sure that [`MARGIN`] is left.
const LARGE: usize = 64 << 10;

/// Whether so many bytes can be had at this moment.
fn is_free(bytes: usize) -> bool {
    let mut probe: Vec<u8> = Vec::new();
    let found = probe.try_reserve_exact(bytes).is_ok();
    // An allocation that nobody looks at is optimised away.
    std::hint::black_box(probe.as_ptr());
    found
}

/// Whether something of this size may be handed out: enough is left for what cannot be refused.
pub(crate) fn leaves_margin(bytes: usize) -> bool {
    bytes < LARGE || is_free(MARGIN)
}

/// Error unless so many bytes can be had: before something is called that takes them without asking.
pub(crate) fn ensure(bytes: usize) -> Result<()> {
    if is_free(bytes) || (release_cached_memory(), is_free(bytes)).1 { Ok(()) } else { Err(short(bytes, 1)) }
}

fn short(n: usize, size: usize) -> Error {
    let held = crate::backend::cpu::memory_stats().in_use;
    match n.checked_mul(size) {
        Some(bytes) => Error::out_of_memory(format!("cannot allocate {bytes} bytes of host memory ({held} in use)")),
        None => Error::out_of_memory(format!("{n} items of {size} bytes exceed the address space")),
    }
}

/// Room for `more` items.
pub(crate) fn reserve<T>(list: &mut Vec<T>, more: usize) -> Result<()> {
    let before = list.capacity();
    let ok = |list: &mut Vec<T>| {
        list.try_reserve_exact(more).is_ok() && (list.capacity() == before || leaves_margin(list.capacity().saturating_mul(size_of::<T>())))
    };
    if ok(list) {
        return Ok(());
    }
    release_cached_memory();
    if ok(list) {
        return Ok(());
    }
    Err(short(list.len().saturating_add(more), size_of::<T>()))
}

/// An empty list with room for `n` items.
pub(crate) fn room<T>(n: usize) -> Result<Vec<T>> {
    let mut list = Vec::new();
    reserve(&mut list, n)?;
    Ok(list)
}

/// `n` copies of a value: `vec![value; n]`.
pub(crate) fn vec_of<T: Clone>(value: T, n: usize) -> Result<Vec<T>> {
    let mut list = room(n)?;
    list.resize(n, value);
    Ok(list)
}

/// A copy of a slice: `to_vec`.
pub(crate) fn copied<T: Clone>(items: &[T]) -> Result<Vec<T>> {
    let mut list = room(items.len())?;
    list.extend_from_slice(items);
    Ok(list)
}

/// Room for `more` items in a list that grows: doubles it at least when there is too little.
pub(crate) fn grow<T>(list: &mut Vec<T>, more: usize) -> Result<()> {
    if list.capacity() - list.len() < more { reserve(list, more.max(list.len()).max(8)) } else { Ok(()) }
}

/// Adds an item; doubles the room when there is none left.
pub(crate) fn push<T>(list: &mut Vec<T>, item: T) -> Result<()> {
    grow(list, 1)?;
    list.push(item);
    Ok(())
}

/// Adds items.
pub(crate) fn extend<T>(list: &mut Vec<T>, items: impl IntoIterator<Item = T>) -> Result<()> {
    let items = items.into_iter();
    let (least, most) = items.size_hint();
    reserve(list, least)?;
    if most == Some(least) {
        // The length is known: one loop without questions.
        list.extend(items.take(least));
        return Ok(());
    }
    for item in items {
        push(list, item)?;
    }
    Ok(())
}

/// All items: `collect`.
pub(crate) fn try_collect<T>(items: impl IntoIterator<Item = T>) -> Result<Vec<T>> {
    let mut list = Vec::new();
    extend(&mut list, items)?;
    Ok(list)
}

/// All items, or the first error: `collect::<Result<Vec<_>>>`.
pub(crate) fn try_collect_ok<T>(items: impl IntoIterator<Item = Result<T>>) -> Result<Vec<T>> {
    let items = items.into_iter();
    let mut list = room(items.size_hint().0)?;
    for item in items {
        push(&mut list, item?)?;
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_sizes_are_errors_that_name_bytes() {
        let e = vec_of(0u64, 1 << 50).unwrap_err();
        assert!(e.is_out_of_memory() && e.to_string().contains("9007199254740992 bytes"), "{e}");
        let e = vec_of(0u64, usize::MAX).unwrap_err();
        assert!(e.is_out_of_memory() && e.to_string().contains("address space"), "{e}");
        assert!(room::<u8>(usize::MAX).unwrap_err().is_out_of_memory());
        assert!(ensure(1 << 60).unwrap_err().is_out_of_memory());
        assert!(try_collect(0..1u64 << 60).unwrap_err().is_out_of_memory());
    }

    #[test]
    fn lists_are_those_of_the_standard_library() {
        assert_eq!(vec_of(7, 3).unwrap(), [7, 7, 7]);
        assert_eq!(copied(&["a", "b"]).unwrap(), ["a", "b"]);
        assert_eq!(try_collect((0..100).filter(|i| i % 3 == 0)).unwrap(), (0..100).filter(|i| i % 3 == 0).collect::<Vec<_>>());
        assert_eq!(try_collect(0..1000).unwrap(), (0..1000).collect::<Vec<_>>());
        let none: Result<Vec<i32>> = try_collect_ok([Ok(1), Err(Error::argument("x")), Ok(2)]);
        assert!(none.unwrap_err().is_argument());
        assert_eq!(try_collect_ok((0..20).map(Ok)).unwrap().len(), 20);
        let mut list = Vec::new();
        (0..50).for_each(|i| push(&mut list, i).unwrap());
        assert_eq!(list.len(), 50);
    }
}
