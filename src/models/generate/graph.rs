//! A decoding step as a graph: on a GPU a token of a small model takes less time than the launches of its kernels.

use super::{Input, LanguageModel, device, ids};
use crate::capture::Graph;
use crate::error::{Error, Result, bail};
use crate::io::{ModelConfig, RopeScaling};
use crate::memory;
use crate::models::Cache;
use crate::models::input::Slot;
use crate::nn::{Rotation, write};
use crate::rng::Key;
use crate::tensor::Tensor;

/// A captured step: one token for each row, keys and values in memory of a fixed size, the place in it in device memory.
pub(super) struct Decode {
    graph: Graph,
    /// Keys and values in turn, layer by layer: `[batch, kv_heads, capacity, head]`.
    memory: Vec<Tensor>,
    pads: Vec<usize>,
    /// Positions that there are, where they are learned.
    limit: usize,
    /// Places that are taken.
    len: usize,
    capacity: usize,
}

impl Decode {
    /// Goes on from a cache, with room for `capacity` positions in all.
    ///
    /// # Errors
    /// Argument error when the rotation's frequencies follow the length, which a graph cannot; out of memory; what the device reports.
    pub fn new(model: &LanguageModel, cache: &Cache, pads: &[usize], capacity: usize) -> Result<Self> {
        let (device, len) = (device(model), cache.len());
        let mut memory = Vec::new();
        for layer in cache.layers() {
            let Some((k, v)) = layer.get()? else { bail!(argument, "a captured step continues a prompt: the cache is empty") };
            for old in [k, v] {
                let mut new = Tensor::full_on(old.shape().with_dim(2, capacity), 0.0, old.dtype(), device)?;
                write(&mut new, 0, None, &old)?;
                memory.push(new);
            }
        }
        let dtype = memory.first().map_or(crate::F32, Tensor::dtype);
        let (windows, table) = match model.config() {
            ModelConfig::Decoder(c) if !matches!(c.rope.scaling, RopeScaling::None) => {
                let (frequencies, factor) = c.rope.frequencies(c.head_dim, capacity)?;
                if c.rope.frequencies(c.head_dim, 1)? != (frequencies.clone(), factor) {
                    bail!(argument, "the rotation's frequencies follow the length of the text: its steps cannot be captured");
                }
                (c.windows, Some(Rotation::new(&frequencies, factor, &[memory::try_collect(0..capacity)?], dtype)?))
            }
            ModelConfig::Decoder(c) => (c.windows, None),
            _ => (Vec::new(), None),
        };
        let slot = Slot::new(device, capacity, windows.into_iter(), pads, table)?;
        let step = |memory: &mut Vec<Tensor>, x: &[Tensor], _: Key| -> Result<Vec<Tensor>> {
            let mut cache = Cache::fixed(std::mem::take(memory), slot.moved(x[1].clone(), x[2].clone()));
            let logits = model.forward_with(Input { cache: Some(&mut cache), last: true, ..Input::new(&x[0]) });
            *memory = cache.into_memory();
            Ok(vec![logits?])
        };
        let tokens = memory::vec_of(0, pads.len())?;
        let limit = model.limit().unwrap_or(usize::MAX);
        let first = inputs(&tokens, pads, len, limit)?;
        let there = memory::try_collect_ok(first.iter().map(|x| x.to_device(device)))?;
        // Loads the kernels. What it writes is written over by the first real step.
        step(&mut memory, &there, Key::new(0))?;
        drop(there);
        let graph = device.capture(&mut memory, &first.each_ref(), Key::new(0), step)?;
        Ok(Decode { graph, memory, pads: memory::copied(pads)?, limit, len, capacity })
    }

    /// Logits `[batch, 1, vocabulary]` after one more token of each row.
    pub fn step(&mut self, tokens: &[u32]) -> Result<Tensor> {
        if self.len == self.capacity {
            bail!(argument, "the memory of {} positions is full", self.capacity);
        }
        let x = inputs(tokens, &self.pads, self.len, self.limit)?;
        let mut out = self.graph.replay(&mut self.memory, &x.each_ref(), Key::new(0))?;
        self.len += 1;
        out.pop().ok_or_else(|| Error::capture("the step has no output"))
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.memory.iter().map(|t| t.numel() * t.dtype().size()).sum()
    }
}

/// Tokens `[batch, 1]`, the place `[1]`, and the rows' positions `[1]`, or `[batch, 1]` where rows are padded. A row that is over may stand
/// beyond the last position that there is: nobody reads what comes of it.
fn inputs(tokens: &[u32], pads: &[usize], place: usize, limit: usize) -> Result<[Tensor; 3]> {
    let at = Tensor::from_slice(&[place as i64], [1])?;
    let positions = if pads.iter().all(|&p| p == 0) {
        at.clone()
    } else {
        Tensor::from_vec(memory::try_collect(pads.iter().map(|&p| place.saturating_sub(p).min(limit - 1) as i64))?, [pads.len(), 1])?
    };
    Ok([ids(tokens, tokens.len())?, at, positions])
}
