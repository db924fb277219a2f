//! What a language model is given, and what it keeps between calls.

use crate::backend::Device;
use crate::error::{Result, bail};
use crate::nn::{Embedding, KvCache, Linear};
use crate::shape::Shape;
use crate::tensor::Tensor;

/// Keys and values of every layer: what a sequence that goes on needs of its past.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    pub(super) layers: Vec<KvCache>,
}

impl Cache {
    /// An empty one for so many layers, which takes memory for so many positions at its first use and by blocks from then on.
    pub fn new(layers: usize, positions: usize) -> Self {
        Cache { layers: vec![KvCache::with_capacity(positions); layers] }
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

/// Where the tokens of an [`Input`] stand.
pub(super) struct Place {
    pub batch: usize,
    pub time: usize,
    /// Positions before these tokens.
    pub start: usize,
    pads: Vec<usize>,
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
        let start = input.cache.as_ref().map_or(0, |c| c.len());
        let pads = if input.pads.iter().all(|&p| p == 0) { Vec::new() } else { input.pads.to_vec() };
        Ok(Place { batch, time, start, pads })
    }

    /// Positions up to the end of these tokens.
    pub fn end(&self) -> usize {
        self.start + self.time
    }

    pub fn padded(&self) -> bool {
        !self.pads.is_empty()
    }

    /// Each row's positions, counted from its first token; one list where all rows have the same.
    pub fn positions(&self) -> Vec<Vec<usize>> {
        let row = |pad: usize| (self.start..self.end()).map(|t| t.saturating_sub(pad)).collect();
        if self.padded() { self.pads.iter().map(|&p| row(p)).collect() } else { vec![row(0)] }
    }

    /// [`Place::positions`] as integers `[batch, time]` or `[time]`.
    pub fn position_ids(&self) -> Result<Tensor> {
        let rows: Vec<i64> = self.positions().into_iter().flatten().map(|p| p as i64).collect();
        let shape: Shape = if self.padded() { [self.batch, self.time].into() } else { [self.time].into() };
        Tensor::from_vec(rows, shape)
    }

    /// Which keys a query may see besides being causal: none of the filling; `None` where there is none. `[batch, 1, time, keys]`.
    pub fn mask(&self, device: Device) -> Result<Option<Tensor>> {
        if !self.padded() {
            return Ok(None);
        }
        let keys = self.end();
        let mut sees = Vec::with_capacity(self.batch * self.time * keys);
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
