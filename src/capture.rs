//! A step captured once and replayed: the launches of a whole training or decoding step, enqueued by one call. Layer L5.
//!
//! See the book's chapter on GPUs for what a captured step may do.

use crate::array::Array;
use crate::backend::{Device, cuda};
use crate::error::{Error, Result, bail};
use crate::layout::Layout;
use crate::module::{Module, Phase, try_walk, walk_numbers};
use crate::rng::Key;
use crate::tensor::Tensor;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::panic::Location;

/// A captured step; made by [`Device::capture`].
pub struct Graph {
    captured: cuda::capture::Captured,
    inputs: Vec<Array>,
    state: Vec<(String, Array)>,
    outputs: Vec<Array>,
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph")
            .field("device", &self.device())
            .field("inputs", &self.inputs.len())
            .field("state", &self.state.len())
            .field("outputs", &self.outputs.len())
            .finish_non_exhaustive()
    }
}

/// Where a tensor of the state lay before the capture.
struct Place {
    name: String,
    addr: u64,
    array: Shell,
}

/// What an array was, without its memory: holding that would keep the step from writing it in place.
type Shell = (crate::DType, crate::Shape);

fn places<S: Module>(state: &mut S, device: Device) -> Result<Vec<Place>> {
    let mut out = Vec::new();
    try_walk(state, |name, leaf| {
        let t = leaf.tensor;
        if t.device() != device {
            bail!(device, "`{name}` of the state is on {}: move it to {device} first", t.device());
        }
        let addr = t.own_cuda()?.addr();
        out.push(Place { name: name.to_owned(), addr, array: (t.dtype(), t.shape().clone()) });
        Ok(())
    })?;
    Ok(out)
}

/// The tensors of the state as they are now, if they are those that were there before.
fn leaves<S: Module>(state: &mut S, places: &[Place]) -> Result<Vec<Array>> {
    let mut out: Vec<Array> = Vec::new();
    try_walk(state, |name, leaf| {
        match places.get(out.len()) {
            Some(p) if p.name == name => {}
            _ => bail!(capture, "the state had no `{name}` in this place before: take one step before the capture"),
        }
        if leaf.tensor.is_tracked() {
            bail!(tape, "`{name}` of the state is tracked: detach() it before it becomes part of the state");
        }
        out.push(leaf.tensor.array.clone());
        Ok(())
    })?;
    if out.len() != places.len() {
        bail!(capture, "the state has {} tensors; before it had {}", out.len(), places.len());
    }
    Ok(out)
}

/// Puts the tensors of the state back into the memory where they were before the capture, and returns them.
fn restore<S: Module>(state: &mut S, places: &[Place], retired: Vec<Array>) -> Result<Vec<Array>> {
    let mut memory: HashMap<u64, Array> = HashMap::new();
    for array in retired {
        memory.insert(array.cuda_buffer()?.addr(), array);
    }
    try_walk(state, |_, leaf| {
        if let Ok(b) = leaf.tensor.array.cuda_buffer() {
            memory.insert(b.addr(), leaf.tensor.array.clone());
        }
        Ok(())
    })?;
    let mut out = Vec::new();
    for p in places {
        let (dtype, shape) = &p.array;
        let found = match memory.get(&p.addr) {
            Some(a) if shape.numel() > 0 => a.with_layout(Layout::contiguous(shape.clone()))?,
            _ if shape.numel() == 0 => Array::full(0.0, *dtype, shape.clone(), Device::Cpu)?,
            _ => bail!(capture, "the memory of `{}` is still held outside of the state", p.name),
        };
        out.push(found);
    }
    let mut it = out.iter();
    try_walk(state, |_, leaf| {
        if let Some(a) = it.next()
            && a.device() != Device::Cpu
        {
            *leaf.tensor = Tensor::from_array(a.clone());
        }
        Ok(())
    })?;
    Ok(out)
}

impl Device {
    /// Captures a step on a CUDA device: runs `step` once without computing anything, and captures its launches as a graph that
    /// [`Graph::replay`] enqueues by one call, with other inputs.
    ///
    /// `state` is what the step changes (a model and its optimizer, a cache); it comes out as it went in. `inputs` give shapes
    /// and dtypes of what changes from replay to replay. Random ops must fold their keys from the key that the step is given.
    /// Everything else that `step` uses is a constant of the graph. Take one ordinary step first: the optimizer's moments must
    /// exist, and kernels be loaded. The optimizer is [`AdamW`](crate::optim::AdamW) with `skip_non_finite: false`.
    ///
    /// ```
    /// use cotangent::{optim::AdamW, value_and_grad, Device, Key, Param, Result, Tensor};
    /// # fn main() -> Result<()> {
    /// # let Ok(device) = Device::cuda_emulated() else { return Ok(()) };
    /// let w: Param = Tensor::from_slice(&[1f32, 2.0], [2])?.to_device(device)?.into();
    /// let mut state = (w, AdamW { lr: 0.1, skip_non_finite: false, ..AdamW::default() });
    /// let step = |(w, adam): &mut (Param, AdamW), x: &[Tensor], _: Key| {
    ///     let (loss, mut grads) = value_and_grad(w, |w| w.mul(&x[0])?.square()?.sum(..))?;
    ///     let norm = grads.clip_by_global_norm(1.0)?; // stays on the device
    ///     adam.step(w, &grads)?;
    ///     Ok(vec![loss, norm])
    /// };
    /// let x = Tensor::from_slice(&[1f32, -1.0], [2])?;
    /// step(&mut state, &[x.to_device(device)?], Key::new(0))?;
    /// let mut graph = device.capture(&mut state, &[&x], Key::new(0), step)?;
    /// for i in 1..4 {
    ///     state.1.lr *= 0.9;
    ///     let out = graph.replay(&mut state, &[&x], Key::new(0).fold(i))?;
    ///     assert!(out[0].item()? > 0.0);
    /// }
    /// assert_eq!(state.1.steps(), 4);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What `step` returns; capture error, with the op and its caller's line, for what cannot be replayed: reading values back,
    /// copying values from the host, waiting for the device, an optimizer outside of the state or without its moments, a random
    /// key that does not stem from the step's, a tensor of the step that outlives it without being an output, a state that gains
    /// or loses tensors. The device and the tensors that the state had are then as before.
    #[track_caller]
    pub fn capture<S, F>(self, state: &mut S, inputs: &[&Tensor], key: Key, step: F) -> Result<Graph>
    where
        S: Module,
        F: FnOnce(&mut S, &[Tensor], Key) -> Result<Vec<Tensor>>,
    {
        let at = Location::caller();
        self.capture_at(state, inputs, key, step).map_err(|e| e.in_op("capture", at))
    }

    fn capture_at<S, F>(self, state: &mut S, inputs: &[&Tensor], key: Key, step: F) -> Result<Graph>
    where
        S: Module,
        F: FnOnce(&mut S, &[Tensor], Key) -> Result<Vec<Tensor>>,
    {
        let on = cuda::Context::of(self)?;
        let places = places(state, self)?;
        let inputs: Vec<Array> = inputs.iter().map(|x| x.array.to_device(self)?.copy_cuda()).collect::<Result<_>>()?;
        let mut known: HashSet<u64> = places.iter().map(|p| p.addr).collect();
        for x in &inputs {
            known.insert(x.cuda_buffer()?.addr());
        }
        let numbers = walk_numbers(state, Phase::Begin)?.len();
        let session = cuda::capture::Session::begin(on, known.clone(), key, numbers);
        let run = |state: &mut S| -> Result<Vec<Array>> {
            let given: Vec<Tensor> = inputs.iter().map(|x| Tensor::from_array(x.clone())).collect();
            let outputs = step(state, &given, key)?;
            drop(given);
            let mut out = Vec::new();
            for y in outputs {
                if y.device() != self {
                    bail!(capture, "an output of the step is on {}: it would be the same after every replay", y.device());
                }
                // An output is the graph's own, whatever it was computed from.
                out.push(if y.array.cuda_buffer()?.is_private() { y.array } else { y.array.copy_cuda()? });
            }
            Ok(out)
        };
        let result = session.and_then(|session| {
            let outputs = run(state).and_then(|outputs| Ok((outputs, leaves(state, &places)?)));
            let retired = session.retired().map(Array::of_cuda).collect();
            let before = restore(state, &places, retired)?;
            let (outputs, after) = outputs?;
            write_back(&places, &before, after, &known)?;
            Ok((session.end()?, before, outputs))
        });
        walk_numbers(state, Phase::End)?;
        let (captured, before, outputs) = result?;
        let mut blocks: Vec<u64> =
            outputs.iter().filter_map(|y| y.cuda_buffer().ok()).map(cuda::Buffer::addr).filter(|&a| a != 0).collect();
        blocks.sort_unstable();
        blocks.dedup();
        let leaked = captured.live_blocks().saturating_sub(blocks.len());
        if leaked > 0 || inputs.iter().any(|x| x.sharers() > 1) {
            bail!(capture, "tensors of the step outlive it ({leaked} of them computed in it): return them as outputs, which are copied");
        }
        let state = places.into_iter().map(|p| p.name).zip(before).collect();
        Ok(Graph { captured, inputs, state, outputs })
    }
}

/// Copies the new state to the addresses of the state, as part of the step.
fn write_back(places: &[Place], before: &[Array], after: Vec<Array>, known: &HashSet<u64>) -> Result<()> {
    let mut copies = Vec::new();
    for ((p, old), new) in places.iter().zip(before).zip(after) {
        let (dtype, shape) = &p.array;
        if new.dtype() != *dtype || new.shape() != shape || (shape.numel() > 0 && new.device() != old.device()) {
            bail!(
                capture,
                "the step makes `{}` of the state {} {} on {}; it was {dtype} {shape} on {}",
                p.name,
                new.dtype(),
                new.shape(),
                new.device(),
                old.device()
            );
        }
        if shape.numel() == 0 {
            continue;
        }
        let addr = new.cuda_buffer()?.addr();
        if addr == p.addr && new.layout() == old.layout() {
            continue;
        }
        // Parts of the state that change places must not overwrite one another.
        copies.push((old, if known.contains(&addr) { new.copy_cuda()? } else { new }));
    }
    for (old, new) in copies {
        new.cuda()?.overwrite(old.cuda_buffer()?)?;
    }
    Ok(())
}

impl Graph {
    /// The device it runs on.
    pub fn device(&self) -> Device {
        self.captured.context().device()
    }

    /// Bytes of device memory that only this graph uses, state and inputs not counted.
    pub fn memory(&self) -> usize {
        self.captured.reserved()
    }

    /// Enqueues the step on this state with these inputs, and returns copies of its outputs. Inputs may be on any device. The
    /// step's random ops draw with `key` in the place of the key it was captured with.
    ///
    /// A call returns when its work is enqueued. A step that checks indices (embeddings, class targets) is waited for: an index out
    /// of range is an `Err` that names the op and the line as captured. Its element was read as index 0, a target as ignored:
    /// the state has taken that step.
    ///
    /// # Errors
    /// Shape, dtype or device error when inputs or state are not as captured; capture error when a tensor outside of the state
    /// shares its memory (it would change), or a number of the optimizer changed that is part of the graph; index errors; what
    /// the device reports. The state is unchanged in the first two cases.
    #[track_caller]
    pub fn replay<S: Module>(&mut self, state: &mut S, inputs: &[&Tensor], key: Key) -> Result<Vec<Tensor>> {
        let at = Location::caller();
        self.replay_at(state, inputs, key).map_err(|e| e.in_op("replay", at))
    }

    fn replay_at<S: Module>(&mut self, state: &mut S, inputs: &[&Tensor], key: Key) -> Result<Vec<Tensor>> {
        let device = self.device();
        if inputs.len() != self.inputs.len() {
            bail!(argument, "{} inputs; the step was captured with {}", inputs.len(), self.inputs.len());
        }
        for (i, (x, own)) in inputs.iter().zip(&self.inputs).enumerate() {
            if x.shape() != own.shape() {
                bail!(shape, "input {i} is {}, captured as {}", x.shape(), own.shape());
            }
            if x.dtype() != own.dtype() {
                bail!(dtype, "input {i} is {}, captured as {}", x.dtype(), own.dtype());
            }
        }
        self.settle(state)?;
        let numbers = walk_numbers(state, Phase::Step)?;
        for (x, own) in inputs.iter().zip(&self.inputs) {
            let there = x.array.to_device(device)?;
            there.cuda()?.overwrite(own.cuda_buffer()?)?;
        }
        self.captured.replay(&numbers, key)?;
        self.outputs.iter().map(|y| y.copy_cuda().map(Tensor::from_array)).collect()
    }

    /// Copies the state back to the addresses that the graph was captured with, if something else has moved it.
    fn settle<S: Module>(&self, state: &mut S) -> Result<()> {
        let mut found: Vec<Array> = Vec::new();
        try_walk(state, |name, leaf| {
            let Some((own, array)) = self.state.get(found.len()).filter(|(n, _)| n == name) else {
                bail!(capture, "the state has `{name}` where the captured one has another tensor or none");
            };
            let t = &*leaf.tensor;
            if t.is_tracked() {
                bail!(tape, "`{own}` of the state is tracked: a step writes it in place");
            }
            if t.shape() != array.shape() || t.dtype() != array.dtype() || t.device() != array.device() && t.numel() > 0 {
                bail!(
                    shape,
                    "`{own}` of the state is {} {} on {}, captured as {} {} on {}",
                    t.dtype(),
                    t.shape(),
                    t.device(),
                    array.dtype(),
                    array.shape(),
                    array.device()
                );
            }
            found.push(t.array.clone());
            Ok(())
        })?;
        if found.len() != self.state.len() {
            bail!(capture, "the state has {} tensors, the captured one {}", found.len(), self.state.len());
        }
        // One holder is the graph, others are the state itself and the list above.
        for (name, own) in &self.state {
            let inside = found.iter().filter(|a| a.same_storage(own)).count();
            if own.numel() > 0 && own.sharers() > 1 + 2 * inside {
                bail!(
                    capture,
                    "a tensor outside of the state shares the memory of `{name}`, which the step writes: drop it, or copy it with to_device() first"
                );
            }
        }
        let at_home = |a: &Array, own: &Array| a.same_storage(own) && a.layout() == own.layout();
        let mut copies = Vec::new();
        for (a, (_, own)) in found.iter().zip(&self.state) {
            if own.numel() > 0 && !at_home(a, own) {
                let foreign = self.state.iter().any(|(_, o)| o.same_storage(a));
                copies.push((own, if foreign { a.copy_cuda()? } else { a.clone() }));
            }
        }
        for (own, from) in &copies {
            from.cuda()?.overwrite(own.cuda_buffer()?)?;
        }
        if !copies.is_empty() {
            let mut it = self.state.iter();
            try_walk(state, |_, leaf| {
                if let Some((_, own)) = it.next()
                    && own.numel() > 0
                {
                    *leaf.tensor = Tensor::from_array(own.clone());
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// The error of a step that an optimizer cannot take inside a capture.
pub(crate) fn not_in_state(what: &str) -> Error {
    Error::capture(format!(
        "{what} is not part of the captured state: put it there beside the model, as in (model, adamw); of the optimizers AdamW alone can be captured"
    ))
}
