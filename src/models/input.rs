//! What a language model is given, and what it keeps between calls.

use crate::backend::Device;
use crate::dtype::DType;
use crate::error::{Result, bail};
use crate::memory;
use crate::nn::{Embedding, KvCache, Linear, Rotation};
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// Keys and values of every layer: what a sequence that goes on needs of its past.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    pub(super) layers: Vec<KvCache>,
    /// The position of the next token, if the device knows it and the host does not.
    slot: Option<Slot>,
}

/// A place in memory of a fixed size that changes from replay to replay of a captured step: everything that depends on it is computed
/// on the device.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    capacity: usize,
    /// The places of the memory, for each window one less than its length further on; `None`: no window.
    keys: BTreeMap<Option<usize>, Tensor>,
    /// `[batch, 1, 1, 1]`, where rows are padded.
    pads: Option<Tensor>,
    /// A row for each position, where frequencies are no powers of a base.
    table: Option<Rotation>,
    /// Of this step, each one `i64`: the place in memory; and the row's position `[1]`, or of each row `[batch, 1]`.
    at: Tensor,
    positions: Tensor,
}

impl Slot {
    /// For layers of these windows. `table` has the rotations of all positions.
    pub fn new(
        device: Device,
        capacity: usize,
        windows: impl Iterator<Item = Option<usize>>,
        pads: &[usize],
        table: Option<Rotation>,
    ) -> Result<Self> {
        let numbers = |from: usize, count: usize| -> Result<Tensor> {
            Tensor::from_vec(memory::try_collect((from..from + count).map(|i| i as i64))?, [count])?.to_device(device)
        };
        let mut keys = BTreeMap::from([(None, numbers(0, capacity)?)]);
        for w in windows.flatten() {
            keys.insert(Some(w), numbers(w.saturating_sub(1), capacity)?);
        }
        let padded = pads.iter().any(|&p| p > 0);
        let pads = if padded {
            Some(Tensor::from_vec(memory::try_collect(pads.iter().map(|&p| p as i64))?, [pads.len(), 1, 1, 1])?.to_device(device)?)
        } else {
            None
        };
        let table = table.map(|t| t.to_device(device)).transpose()?;
        let zero = numbers(0, 1)?;
        Ok(Slot { capacity, keys, pads, table, at: zero.clone(), positions: zero })
    }

    /// At another place.
    pub fn moved(&self, at: Tensor, positions: Tensor) -> Self {
        Slot { at, positions, ..self.clone() }
    }

    /// What this step's query sees: `[batch or 1, 1, 1, capacity]`.
    fn mask(&self, window: Option<usize>) -> Result<Tensor> {
        let mut sees = self.keys[&None].le(&self.at)?;
        if window.is_some() {
            sees = sees.logical_and(&self.keys[&window].ge(&self.at)?)?;
        }
        match &self.pads {
            Some(pads) => sees.logical_and(&self.keys[&None].ge(pads)?),
            None => sees.reshape([1, 1, 1, self.capacity]),
        }
    }
}

impl Cache {
    /// An empty one for so many layers, which takes memory for so many positions at its first use and by blocks from then on.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(layers: usize, positions: usize) -> Result<Self> {
        Ok(Cache { layers: memory::vec_of(KvCache::with_capacity(positions), layers)?, slot: None })
    }

    /// Keys and values in turn, layer by layer, in memory of a fixed size, for one token at a place that the device knows.
    pub(super) fn fixed(memory: Vec<Tensor>, slot: Slot) -> Self {
        let mut memory = memory.into_iter();
        let mut layers = Vec::new();
        while let (Some(k), Some(v)) = (memory.next(), memory.next()) {
            layers.push(KvCache::fixed(k, v, slot.at.clone()));
        }
        Cache { layers, slot: Some(slot) }
    }

    /// What [`Cache::fixed`] was given, with this step's keys and values.
    pub(super) fn into_memory(self) -> Vec<Tensor> {
        self.layers.into_iter().filter_map(KvCache::into_memory).flat_map(|(k, v)| [k, v]).collect()
    }

    /// Number of positions kept.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, KvCache::len)
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The layers' caches.
    pub fn layers(&self) -> &[KvCache] {
        &self.layers
    }

    /// Forgets all positions from `len` on.
    ///
    /// # Errors
    /// As [`KvCache::truncate`].
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.layers.iter_mut().try_for_each(|l| l.truncate(len))
    }
}

/// What a language model is given; [`Input::new`] is tokens alone.
#[derive(Debug)]
pub struct Input<'a> {
    /// Token ids `[batch, time]`; with a cache they follow what that holds.
    pub tokens: &'a Tensor,
    /// For each row, how many of the first positions are filling (batches are padded on the left); empty: none.
    pub pads: &'a [usize],
    /// Keys and values of the past; those of these tokens are added.
    pub cache: Option<&'a mut Cache>,
    /// Logits of the last position alone, `[batch, 1, vocabulary]`: the output matrix is large.
    pub last: bool,
}

impl<'a> Input<'a> {
    /// Tokens `[batch, time]`.
    pub fn new(tokens: &'a Tensor) -> Self {
        Input { tokens, pads: &[], cache: None, last: false }
    }
}

/// The positions of the tokens of an [`Input`].
pub(super) struct Place {
    pub batch: usize,
    pub time: usize,
    /// Positions before these tokens.
    pub start: usize,
    pads: Vec<usize>,
    slot: Option<Slot>,
}

impl Place {
    pub fn of(input: &Input<'_>, layers: usize) -> Result<Self> {
        let &[batch, time] = input.tokens.shape().dims() else {
            bail!(shape, "tokens must have shape [batch, time], found {}", input.tokens.shape());
        };
        if !input.pads.is_empty() && input.pads.len() != batch {
            bail!(shape, "{} pads for a batch of {batch} rows", input.pads.len());
        }
        if let Some(cache) = &input.cache
            && cache.layers.len() != layers
        {
            bail!(argument, "the cache is of {} layers, the model has {layers}", cache.layers.len());
        }
        let slot = input.cache.as_ref().and_then(|c| c.slot.clone());
        if slot.is_some() && time != 1 {
            bail!(shape, "a captured step takes one token per row, found {time}");
        }
        let start = slot.as_ref().map_or_else(|| input.cache.as_ref().map_or(0, |c| c.len()), |s| s.capacity - 1);
        let pads = if input.pads.iter().all(|&p| p == 0) { Vec::new() } else { input.pads.to_vec() };
        Ok(Place { batch, time, start, pads, slot })
    }

    /// Positions up to the end of these tokens.
    pub fn end(&self) -> usize {
        self.start + self.time
    }

    /// Tokens of the longest row up to the end of these, without its filling; 0 where only the device knows.
    pub fn longest(&self) -> usize {
        if self.slot.is_some() { 0 } else { self.end().saturating_sub(self.pads.iter().min().copied().unwrap_or(0)) }
    }

    pub fn padded(&self) -> bool {
        !self.pads.is_empty()
    }

    /// Each row's positions, counted from its first token; one list where all rows have the same.
    pub fn positions(&self) -> Result<Vec<Vec<usize>>> {
        let row = |pad: usize| memory::try_collect((self.start..self.end()).map(|t| t.saturating_sub(pad)));
        if self.padded() { memory::try_collect_ok(self.pads.iter().map(|&p| row(p))) } else { Ok(vec![row(0)?]) }
    }

    /// [`Place::positions`] as integers `[batch, time]` or `[time]` on a device; `None` where they are consecutive and the host knows
    /// them.
    pub fn position_ids(&self, device: Device) -> Result<Option<Tensor>> {
        if let Some(slot) = &self.slot {
            return Ok(Some(slot.positions.clone()));
        }
        if !self.padded() {
            return Ok(None);
        }
        let rows: Vec<i64> = memory::try_collect(self.positions()?.into_iter().flatten().map(|p| p as i64))?;
        Tensor::from_vec(rows, [self.batch, self.time])?.to_device(device).map(Some)
    }

    /// The rotation of these positions by frequencies that are no powers of a base, which `of` gives for a length.
    pub fn rotation(&self, dtype: DType, of: impl FnOnce(usize) -> Result<(Vec<f64>, f64)>) -> Result<Rotation> {
        if let Some(Slot { table: Some(table), positions, .. }) = &self.slot {
            return table.at(positions);
        }
        let (frequencies, factor) = of(self.end())?;
        Rotation::new(&frequencies, factor, &self.positions()?, dtype)
    }

    /// Whether keys and values have memory of a fixed size, all of which attention is given.
    pub fn fixed(&self) -> bool {
        self.slot.is_some()
    }

    /// Which keys a query may see besides what attention leaves out by itself: none of the filling, and in memory of a fixed size only
    /// those that are there, the latest `window`; `None` where that is all. `[batch or 1, 1, time, keys]`, on a device.
    pub fn mask(&self, window: Option<usize>, device: Device) -> Result<Option<Tensor>> {
        if let Some(slot) = &self.slot {
            return slot.mask(window).map(Some);
        }
        if !self.padded() {
            return Ok(None);
        }
        let keys = self.end();
        let mut sees = memory::room(self.batch.saturating_mul(self.time).saturating_mul(keys))?;
        for &pad in &self.pads {
            for query in self.start..keys {
                // A query of the filling would see nothing: it sees itself, and nobody reads it.
                sees.extend((0..keys).map(|k| u8::from(k >= pad || k == query)));
            }
        }
        Tensor::from_vec(sees, [self.batch, 1, self.time, keys])?.to_device(device).map(Some)
    }
}

/// The last position of hidden values `[batch, time, width]`, if that is all that is asked for.
pub(super) fn asked(x: Tensor, last: bool) -> Result<Tensor> {
    let time = x.shape()[1];
    if last && time > 1 { x.narrow(1, time - 1, 1) } else { Ok(x) }
}

/// Logits by the output matrix, or by the token table where that is it.
pub(super) fn logits(head: Option<&Linear>, table: &Embedding, x: &Tensor) -> Result<Tensor> {
    head.map_or_else(|| table.unembed(x), |head| head.forward(x))
}
