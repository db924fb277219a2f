//! Options of attention on any device, and which keys a query sees.

use crate::error::{Error, Result, bail};
use crate::memory;
use crate::rng::Key;
use std::ops::Range;

/// Options of a problem, in numbers.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) scale: f64,
    /// Scores `s` become `c · tanh(s / c)`.
    pub(crate) softcap: Option<f64>,
    /// How many keys before and after its own position a query sees.
    pub(crate) band: Option<(usize, usize)>,
    /// Key and probability of keeping a weight.
    pub(crate) dropout: Option<(Key, f64)>,
}

/// Whether tensor cores take rows of `n` elements of a half type: packs of 16 bytes, up to the widest tile.
pub(crate) fn fits_tensor_cores(n: usize) -> bool {
    n > 0 && n <= 128 && n.is_multiple_of(8)
}

/// The keys that query `i` of `tq` sees when no mask hides them; the last query is aligned with the last key.
pub(crate) fn seen(band: Option<(usize, usize)>, i: usize, tq: usize, tk: usize) -> Range<usize> {
    let Some((left, right)) = band else { return 0..tk };
    let first = (i + tk).saturating_sub(tq.saturating_add(left)).min(tk);
    let end = (i + tk + 1).saturating_add(right).saturating_sub(tq).min(tk);
    first..end
}

/// The keys that each query of packed sequences sees.
pub(crate) fn seen_packed(band: Option<(usize, usize)>, q: &[usize], k: &[usize]) -> Result<Vec<Range<usize>>> {
    let sequences = q.windows(2).zip(k.windows(2));
    memory::try_collect(sequences.flat_map(|(q, k)| {
        let (tq, tk, first) = (q[1] - q[0], k[1] - k[0], k[0]);
        (0..tq).map(move |i| {
            let r = seen(band, i, tq, tk);
            first + r.start..first + r.end
        })
    }))
}

/// Cumulative offsets of packed sequences: `n + 1` numbers for `n` sequences, from 0 to the number of rows, never falling.
///
/// # Errors
/// Argument error that shows what is wrong.
pub(crate) fn check_offsets(what: &str, offsets: &[i64], rows: usize) -> Result<Vec<usize>> {
    match offsets.first() {
        Some(0) => {}
        Some(first) => bail!(argument, "offsets of {what} must start with 0, found {first}"),
        None => bail!(argument, "offsets of {what} must start with 0, found none"),
    }
    if let Some(i) = (1..offsets.len()).find(|&i| offsets[i] < offsets[i - 1]) {
        bail!(argument, "offsets of {what} fall from {} to {} at position {i}", offsets[i - 1], offsets[i]);
    }
    let last = offsets[offsets.len() - 1];
    if usize::try_from(last) != Ok(rows) {
        bail!(argument, "offsets of {what} end at {last}, but there are {rows} rows");
    }
    // Between 0 and the number of rows, each fits.
    memory::try_collect(offsets.iter().map(|&i| i as usize))
}

/// Refuses scores whose numbers do not fit a counter of the generator.
pub(crate) fn check_scores(heads: usize, tq: usize, tk: usize) -> Result<()> {
    let n = heads.checked_mul(tq).and_then(|n| n.checked_mul(tk));
    n.map(drop).ok_or_else(|| Error::out_of_memory(format!("{heads} × {tq} × {tk} scores cannot be numbered")))
}
