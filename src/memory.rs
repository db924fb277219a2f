//! Lists whose length comes from data or an argument: there, or an error; never an abort. Layer L1, beside the backend, whose
//! cache is given back before an allocation is refused.
//!
//! Rust's `vec!`, `with_capacity` and `collect` end the process when there is no memory. Everything in this crate whose size
//! a caller decides comes from here or from [`Buffer`](crate::backend::cpu); `tests/house/tidy.rs::sizes_from_data_cannot_abort`
//! holds it. Small things of the standard library (a string, a node of a map, an error itself) are still allocated without
//! asking: for them [`MARGIN`] bytes are left whenever something large is handed out. Where data decides how many of them there
//! are, they are announced: [`small`] asks anew each time [`STEP`] bytes of them have come together. Before something is called
//! that takes memory without asking (a decoder, a parser of others), [`ensure`] asks for the most that it can take.
//!
//! Between question and use another thread, or another process, can take what was found: that race is left.

use crate::backend::cpu::release_cached_memory;
use crate::error::{Error, Result};
use smallvec::{Array, SmallVec};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// What is left for small things when something large is handed out.
const MARGIN: usize = 2 << 20;

/// From this size on it is made sure that [`MARGIN`] is left.
const LARGE: usize = 64 << 10;

/// Small things of a thread that may come together before it is made sure that [`MARGIN`] is left. Several threads do this side by
/// side.
const STEP: usize = 256 << 10;

/// What the allocator adds to a piece at most: near the end each may take a page of its own, since the arena cannot grow any more.
const PIECE: usize = 4096;

thread_local! {
    /// Bytes of small things since this thread last asked.
    static SMALL: Cell<usize> = const { Cell::new(0) };
}

/// Whether so many bytes can be had at this moment.
fn is_free(bytes: usize) -> bool {
    let mut probe: Vec<u8> = Vec::new();
    let found = probe.try_reserve_exact(bytes).is_ok();
    // An allocation that nobody looks at is optimised away.
    std::hint::black_box(probe.as_ptr());
    found
}

/// Whether something of this size may be handed out: enough is left for what cannot be refused. Many short things are as much as a
/// long one.
pub(crate) fn leaves_margin(bytes: usize) -> bool {
    if bytes < LARGE { small(bytes).is_ok() } else { is_free(MARGIN) }
}

/// Error unless so many bytes can be had: before something is called that takes them without asking.
pub(crate) fn ensure(bytes: usize) -> Result<()> {
    if is_free(bytes) || (release_cached_memory(), is_free(bytes)).1 { Ok(()) } else { Err(short(bytes, 1)) }
}

/// Announces a piece of so many bytes that is taken without asking, where data decides how many such pieces there are: a string, a
/// node of a map. Error when [`MARGIN`] would not be left.
pub(crate) fn small(bytes: usize) -> Result<()> {
    let all = SMALL.get().saturating_add(bytes).saturating_add(PIECE);
    if all < STEP {
        SMALL.set(all);
        return Ok(());
    }
    // On error the next piece asks again.
    SMALL.set(STEP);
    ensure(all.saturating_add(MARGIN))?;
    SMALL.set(0);
    Ok(())
}

/// A text of its own: `to_owned`.
pub(crate) fn text(text: &str) -> Result<String> {
    small(text.len())?;
    Ok(text.to_owned())
}

/// The bytes as text, what is not UTF-8 replaced: `from_utf8_lossy`, which copies again what is damaged.
pub(crate) fn text_lossy(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).or_else(|e| {
        let bytes = e.into_bytes();
        // A byte that is none becomes three.
        let mut text = String::new();
        let most = bytes.utf8_chunks().map(|c| c.valid().len() + if c.invalid().is_empty() { 0 } else { 3 }).sum();
        if text.try_reserve_exact(most).is_err() || !leaves_margin(most) {
            return Err(short(most, 1));
        }
        for chunk in bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        Ok(text)
    })
}

/// A map, or the first error: `collect::<Result<BTreeMap<_, _>>>`, which makes a list first. `each` is what a value has in pieces of
/// its own.
pub(crate) fn map<K: Ord, V>(items: impl IntoIterator<Item = Result<(K, V)>>, each: usize) -> Result<BTreeMap<K, V>> {
    let mut map = BTreeMap::new();
    for item in items {
        // Nodes are at least half full.
        small(2 * size_of::<(K, V)>() + each)?;
        let (key, value) = item?;
        map.insert(key, value);
    }
    Ok(map)
}

/// What a tensor has beside its elements, in pieces of its own: storage, shape, strides.
pub(crate) const TENSOR: usize = 512;

/// Names in an error: the first of them, since a file may have millions.
pub(crate) fn some<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 40;
    let mut names = names.into_iter();
    let mut shown = String::new();
    for (i, name) in names.by_ref().take(SHOWN).enumerate() {
        let end = name.char_indices().nth(100).map_or(name.len(), |(end, _)| end);
        shown.push_str(if i > 0 { ", " } else { "" });
        shown.push_str(&name[..end]);
        shown.push_str(if end < name.len() { "…" } else { "" });
    }
    match names.count() {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
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
        if list.try_reserve_exact(more).is_err() {
            return false;
        }
        list.capacity() == before || leaves_margin(list.capacity().saturating_mul(size_of::<T>()))
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
// One plain loop: one for a known length beside it, and the iterators' own way to fill a list, would be compiled for each of hundreds of
// callers.
pub(crate) fn extend<T>(list: &mut Vec<T>, items: impl IntoIterator<Item = T>) -> Result<()> {
    let items = items.into_iter();
    begin(list, items.size_hint().0)?;
    for item in items {
        if list.len() == list.capacity() {
            grow(list, 1)?;
        }
        list.push(item);
    }
    Ok(())
}

/// Room for at least `least` items: exactly that in an empty list, and one that grows again and again is not copied each time.
fn begin<T>(list: &mut Vec<T>, least: usize) -> Result<()> {
    if list.is_empty() { reserve(list, least) } else { grow(list, least) }
}

/// Adds to a text; doubles the room when there is too little.
pub(crate) fn append(text: &mut String, more: &str) -> Result<()> {
    if text.capacity() - text.len() < more.len() {
        let room = more.len().max(text.len());
        let ok = |text: &mut String| text.try_reserve_exact(room).is_ok() && leaves_margin(text.capacity());
        if !ok(text) && (release_cached_memory(), !ok(text)).1 {
            return Err(short(text.len().saturating_add(room), 1));
        }
    }
    text.push_str(more);
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

/// All items of a list that is usually short enough to be stored in place, or the first error.
pub(crate) fn try_short<A: Array>(items: impl IntoIterator<Item = Result<A::Item>>) -> Result<SmallVec<A>> {
    let mut list = SmallVec::new();
    for item in items {
        push_short(&mut list, item?)?;
    }
    Ok(list)
}

/// Adds an item to a list that is usually short enough to be stored in place.
pub(crate) fn push_short<A: Array>(list: &mut SmallVec<A>, item: A::Item) -> Result<()> {
    if list.len() == list.capacity() {
        let more = list.len().max(4);
        let bytes = list.len().saturating_add(more).saturating_mul(size_of::<A::Item>());
        let ok = |list: &mut SmallVec<A>| list.try_reserve(more).is_ok() && leaves_margin(bytes);
        if !ok(list) && (release_cached_memory(), !ok(list)).1 {
            return Err(short(list.len().saturating_add(more), size_of::<A::Item>()));
        }
    }
    list.push(item);
    Ok(())
}

/// Room for one more entry.
pub(crate) fn grow_table<K: Hash + Eq, V>(table: &mut HashMap<K, V>) -> Result<()> {
    if table.len() == table.capacity() {
        // It doubles, and has places that stay free.
        let bytes = table.capacity().max(4).saturating_mul(3 * size_of::<(K, V)>());
        let ok = |table: &mut HashMap<K, V>| table.try_reserve(1).is_ok() && leaves_margin(bytes);
        if !ok(table) && (release_cached_memory(), !ok(table)).1 {
            return Err(short(table.len().saturating_add(1), 3 * size_of::<(K, V)>()));
        }
    }
    Ok(())
}

/// Puts a value into a table that grows; the old value of that key.
pub(crate) fn insert<K: Hash + Eq, V>(table: &mut HashMap<K, V>, key: K, value: V) -> Result<Option<V>> {
    grow_table(table)?;
    Ok(table.insert(key, value))
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
    fn texts_are_those_of_the_standard_library() {
        for bytes in [&b"abc"[..], b"", b"a\xffb\xc3", b"\xf0\x9f\x98", "é😀".as_bytes(), &[0xff; 50]] {
            assert_eq!(text_lossy(bytes.to_vec()).unwrap(), String::from_utf8_lossy(bytes));
        }
        assert_eq!(text("é").unwrap(), "é");
        assert_eq!(some(["a", "b"]), "a, b");
        assert_eq!(some([]), "");
        assert!(some(["x"; 43]).ends_with("x, x and 3 more"));
        assert!(some(["é".repeat(200).as_str()]).ends_with("é…"));
    }

    #[test]
    fn small_pieces_add_up() {
        let e = small(1 << 60).unwrap_err();
        assert!(e.is_out_of_memory(), "{e}");
        // After a refusal the next piece asks again, and may be had.
        small(1).unwrap();
        assert_eq!(SMALL.get(), 0);
        small(1000).unwrap();
        assert_eq!(SMALL.get(), 1000 + PIECE);
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
        let list: SmallVec<[i32; 4]> = try_short((0..100).map(Ok)).unwrap();
        assert!(list.iter().copied().eq(0..100));
        let none: Result<SmallVec<[i32; 4]>> = try_short([Ok(1), Err(Error::argument("x"))]);
        assert!(none.unwrap_err().is_argument());
        let mut text = String::new();
        (0..1000).for_each(|i| append(&mut text, &i.to_string()).unwrap());
        assert_eq!(text, (0..1000).map(|i| i.to_string()).collect::<String>());
        let mut table = HashMap::new();
        assert!((0..100).all(|i| insert(&mut table, i % 50, i).unwrap() == (i >= 50).then(|| i - 50)));
        assert_eq!(table.len(), 50);
    }
}
