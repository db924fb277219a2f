//! What optimizers remember about each parameter, and the walk that all of them share: it validates, skips steps that are not
//! finite, and updates parameters of half precision through a master copy in `f32`.

use super::{State, clip};
use crate::backend::cuda::capture;
use crate::backend::cuda::optim::{Adams, Descents};
use crate::capture::not_in_state;
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result, bail};
use crate::functional::{Grads, Losses};
use crate::module::{Module, Visitor, tensors_of, try_walk};
use crate::notice::notice;
use crate::tensor::{Short, Tensor};
use std::collections::{BTreeMap, BTreeSet};

/// Most tensors that an optimizer keeps for one parameter, the master aside.
const SLOTS: usize = 3;

/// An optimizer's name and those of what it keeps for each parameter.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: &'static str,
    pub(super) slots: &'static [&'static str],
    /// Whether it keeps squares of gradients, which overflow long before the gradients do.
    pub(super) squares: bool,
}

/// What an optimizer remembers between steps; starts empty.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    steps: u64,
    skipped: u64,
    /// Skipped since the last step that was taken.
    in_vain: u64,
    params: BTreeMap<String, Slots>,
    /// Loaded, and not yet compared with a model.
    unverified: bool,
    /// How many groups have been found to match some parameter.
    pub(super) grouped: usize,
    /// In a capture that this optimizer is part of: steps are launched and not counted, replays count them.
    live: bool,
    /// Numbers that are part of a captured step.
    pub(super) fixed: Option<Moments>,
}

/// How the moments are kept and used: what all forms of Adam share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Moments {
    pub(super) betas: (f64, f64),
    pub(super) eps: f64,
    pub(super) amsgrad: bool,
}

/// Steps on CUDA devices that have been described and not yet queued: many tensors share a launch.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) adam: Adams,
    pub(super) descent: Descents,
    /// Gradients in row-major order, until the launch that reads them is queued.
    gradients: Vec<Tensor>,
}

impl Pending {
    /// The gradient in row-major order, kept until [`Pending::queue`].
    pub(super) fn gradient(&mut self, g: &Tensor) -> Result<Tensor> {
        let g = g.contiguous()?;
        self.gradients.push(g.clone());
        Ok(g)
    }

    fn queue(&mut self) -> Result<()> {
        self.adam.finish()?;
        self.descent.finish()?;
        self.gradients.clear();
        Ok(())
    }
}

/// A parameter's tensors under their names.
struct Fields<'a>(&'static [&'static str], &'a mut [Option<Tensor>; SLOTS]);

impl Module for Fields<'_> {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        for (name, tensor) in self.0.iter().zip(self.1.iter_mut()) {
            if let Some(t) = tensor {
                v.field(name, t);
            }
        }
    }
}

/// Gradients without the type of their tree: a step is then compiled once, here, and not for every model by its user.
pub(super) struct Named {
    grads: Vec<(String, Tensor)>,
    /// Parameters without a gradient, in visiting order.
    absent: Vec<String>,
    /// No element is larger, where that is known.
    largest: Option<f64>,
    losses: Losses,
}

impl Named {
    pub(super) fn of<M: Module + Clone>(grads: &Grads<M>) -> Self {
        Named { grads: grads.named(), absent: grads.disconnected().to_vec(), largest: grads.largest, losses: grads.losses.clone() }
    }

    fn absent(&self) -> BTreeSet<&str> {
        self.absent.iter().map(String::as_str).collect()
    }

    /// What of a step is not finite.
    fn not_finite(&self, rule: &Rule) -> Result<Option<&'static str>> {
        if !self.losses.are_finite()? {
            return Ok(Some("the loss is not finite"));
        }
        Ok(match rule.squares {
            true if !clip::finite_squares(&self.grads, self.largest)? => Some("a gradient is not finite, or its square is not"),
            false if self.largest.is_none() && !clip::all_finite(&self.grads)? => Some("a gradient is not finite"),
            _ => None,
        })
    }
}

/// So many steps in a row that are skipped are said on stderr: a program that looks at nothing else would train nothing, for hours.
const IN_VAIN: u64 = 10;

/// What is remembered about one parameter.
#[derive(Clone, Default)]
pub(super) struct Slots {
    /// Steps of this parameter: fewer than the optimizer's when it was frozen meanwhile.
    pub(super) steps: u64,
    /// In the order of [`Rule::slots`].
    pub(super) tensors: [Option<Tensor>; SLOTS],
    master: Option<Tensor>,
    /// The rounded master as the model got it: shows whether something else has changed the parameter.
    given: Option<Tensor>,
    /// Which of a captured step's numbers are this parameter's.
    pub(super) live: Option<usize>,
    /// Whether the captured step has stepped it.
    captured: bool,
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kept: Vec<Short<'_>> = self.tensors.iter().chain([&self.master]).flatten().map(Short).collect();
        f.debug_struct("Slots").field("steps", &self.steps).field("kept", &kept).finish_non_exhaustive()
    }
}

impl Slots {
    /// The tensor of a slot, zero at first, on the parameter's device.
    pub(super) fn zeros(&mut self, slot: usize, p: &Tensor) -> Result<()> {
        if self.tensors[slot].is_none() {
            self.tensors[slot] = Some(p.zeros_like()?);
        }
        Ok(())
    }

    /// Address of the numbers that a captured step reads at this parameter.
    pub(super) fn live_numbers(&self) -> Option<u64> {
        self.live.and_then(capture::numbers)
    }

    /// Any tensor of the parameter's shape.
    pub(super) fn any(&self) -> Option<&Tensor> {
        self.tensors.iter().flatten().next()
    }

    fn follow(&mut self, p: &Tensor) -> Result<()> {
        for t in self.tensors.iter_mut().chain([&mut self.master]).flatten() {
            if t.device() != p.device() {
                *t = t.to_device(p.device())?;
            }
        }
        Ok(())
    }

    /// The master of a parameter; the parameter itself, widened, when there is none or someone else has changed it.
    fn master(&mut self, p: &Tensor) -> Result<Tensor> {
        let Some(master) = self.master.take() else { return p.cast(DType::F32) };
        let untouched = self.given.take().is_some_and(|g| g.shares_storage(p));
        if untouched || master.cast(p.dtype())?.to_f64_vec()? == p.to_f64_vec()? {
            return Ok(master);
        }
        p.cast(DType::F32)
    }

    /// Refuses what was kept for a parameter of another shape or dtype.
    fn fits(&self, rule: &Rule, name: &str, p: &Tensor) -> Result<()> {
        let kept = self.tensors.iter().zip(rule.slots).filter_map(|(t, slot)| t.as_ref().map(|t| (t, *slot)));
        for (t, slot) in kept.chain(self.master.as_ref().map(|t| (t, "master"))) {
            let dtype = if p.dtype().is_half() { DType::F32 } else { p.dtype() };
            let other = |kind| {
                let (pd, ps, td, ts) = (p.dtype(), p.shape(), t.dtype(), t.shape());
                let text = format!("{} is {pd} {ps}, its {slot} {td} {ts}: this optimizer has stepped another model", called(name));
                Err(Error::new(kind, text))
            };
            if t.shape() != p.shape() {
                return other(ErrorKind::Shape);
            }
            if t.dtype() != dtype || (slot == "master" && !p.dtype().is_half()) {
                return other(ErrorKind::Dtype);
            }
        }
        Ok(())
    }

    /// Refuses slots that are not those of the same parameter in another optimizer of this kind.
    fn same_as(&self, rule: &Rule, name: &str, other: &Slots) -> Result<()> {
        // One that no loss has reached yet has no slots.
        if self.steps == 0 || other.steps == 0 {
            return Ok(());
        }
        for (i, slot) in rule.slots.iter().enumerate() {
            match (&self.tensors[i], &other.tensors[i]) {
                (Some(a), Some(b)) if a.shape() != b.shape() => {
                    bail!(shape, "the {slot} of `{name}` is {} {} here, {} {} in the state", a.dtype(), a.shape(), b.dtype(), b.shape())
                }
                (Some(a), Some(b)) if a.dtype() != b.dtype() => {
                    bail!(dtype, "the {slot} of `{name}` is {} {} here, {} {} in the state", a.dtype(), a.shape(), b.dtype(), b.shape())
                }
                (Some(_), None) => bail!(argument, "the state has no {slot} of `{name}`: it was saved with other options"),
                (None, Some(_)) => bail!(argument, "the state has a {slot} of `{name}`, which these options do not keep"),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Memory {
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    pub(super) fn tensor(&self, name: &str, slot: usize) -> Option<&Tensor> {
        self.params.get(name).and_then(|s| s.tensors[slot].as_ref())
    }

    pub(super) fn master(&self, name: &str) -> Option<&Tensor> {
        self.params.get(name).and_then(|s| s.master.as_ref())
    }

    /// Calls `f(name, slots, parameter, gradient)` for every trainable parameter, after everything that can be refused
    /// has been. Parameter and gradient are `f32` or `f64`: half precision goes through the master. What `f` leaves pending is
    /// queued at the end, in as few launches as possible.
    pub(super) fn run(
        &mut self,
        rule: &Rule,
        model: &mut dyn Module,
        grads: &Named,
        skip_non_finite: bool,
        mut f: impl FnMut(&mut Pending, &str, &mut Slots, &mut Tensor, &Tensor) -> Result<()>,
    ) -> Result<()> {
        for_each_param(model, grads, |name, p, _| {
            if p.is_tracked() {
                bail!(tape, "{} is tracked: step the model that was watched, after the sweep", called(name));
            }
            match self.params.get(name) {
                Some(slots) => slots.fits(rule, name, p),
                None if self.unverified => bail!(argument, "the loaded state has no {}: it belongs to another model", called(name)),
                None => Ok(()),
            }
        })?;
        if self.unverified {
            let names: BTreeSet<String> = tensors_of(model, false).into_iter().map(|(name, _)| name).collect();
            if let Some(name) = self.params.keys().find(|n| !names.contains(*n)) {
                bail!(argument, "the loaded state has `{name}`, the model does not: it belongs to another model");
            }
            self.unverified = false;
        }
        if capture::active() {
            return self.capture(rule, model, grads, skip_non_finite, f);
        }
        if skip_non_finite && let Some(what) = grads.not_finite(rule)? {
            self.skipped += 1;
            tracing::warn!(
                optimizer = rule.name,
                skipped = self.skipped,
                "{what}: the step is skipped; `detect_anomaly` finds where it began"
            );
            self.in_vain += 1;
            if self.in_vain == IN_VAIN {
                notice(format_args!(
                    "{}: {IN_VAIN} steps in a row were skipped, the last because {what}: nothing is being trained \
                     (diagnostics::detect_anomaly finds the op)",
                    rule.name
                ));
            }
            return Ok(());
        }
        self.in_vain = 0;
        self.steps += 1;
        let absent = grads.absent();
        let mut pending = Pending::default();
        let mut rounded = false;
        for_each_param(model, grads, |name, p, g| {
            if !self.params.contains_key(name) {
                self.params.insert(name.to_owned(), Slots::default());
            }
            let Some(slots) = self.params.get_mut(name) else { bail!(argument, "the state of `{name}` is gone") };
            // Known by name from now on, and left alone.
            if absent.contains(name) {
                return Ok(());
            }
            slots.follow(p)?;
            slots.steps += 1;
            if !p.dtype().is_half() {
                return f(&mut pending, name, slots, p, g);
            }
            rounded = true;
            let mut master = slots.master(p)?;
            f(&mut pending, name, slots, &mut master, &g.cast(DType::F32)?)?;
            slots.master = Some(master);
            Ok(())
        })?;
        pending.queue()?;
        if !rounded {
            return Ok(());
        }
        for_each_param(model, grads, |name, p, _| {
            if let Some(slots) = self.params.get_mut(name).filter(|_| !absent.contains(name))
                && p.dtype().is_half()
                && let Some(master) = &slots.master
            {
                *p = master.cast(p.dtype())?;
                slots.given = Some(p.clone());
            }
            Ok(())
        })
    }

    /// [`run`](Memory::run) while a step is captured: what is launched now runs at every replay, which counts it.
    fn capture(
        &mut self,
        rule: &Rule,
        model: &mut dyn Module,
        grads: &Named,
        skip_non_finite: bool,
        mut f: impl FnMut(&mut Pending, &str, &mut Slots, &mut Tensor, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let mut pending = Pending::default();
        if !self.live {
            return Err(not_in_state("the optimizer"));
        }
        if skip_non_finite {
            bail!(
                capture,
                "skip_non_finite reads the gradients back: set it to false, and look at the norm that clip_by_global_norm returns"
            );
        }
        let absent = grads.absent();
        for_each_param(model, grads, |name, p, g| {
            if absent.contains(name) {
                return Ok(());
            }
            let Some(slots) = self.params.get_mut(name).filter(|s| rule.slots.is_empty() || s.any().is_some()) else {
                bail!(capture, "`{name}` has no state yet: take one step before the capture");
            };
            if p.dtype().is_half() {
                bail!(
                    capture,
                    "`{name}` is {}, whose master is compared on the host: keep it in f32 and cast it inside the step",
                    p.dtype()
                );
            }
            slots.captured = true;
            f(&mut pending, name, slots, p, g)
        })?;
        pending.queue()
    }

    /// The tensors of the state under their names, as a captured step sees them.
    pub(super) fn visit(&mut self, rule: &Rule, v: &mut Visitor<'_>) {
        for (name, p) in &mut self.params {
            v.field(name, &mut Fields(rule.slots, &mut p.tensors));
        }
    }

    /// How many numbers a captured step reads, `each` for every parameter.
    pub(super) fn numbers(&self, each: usize) -> usize {
        self.params.len() * each
    }

    /// A capture begins: the numbers of this optimizer begin at position `first`.
    pub(super) fn begin_capture(&mut self, first: usize, each: usize) {
        self.live = true;
        for (i, p) in self.params.values_mut().enumerate() {
            (p.live, p.captured) = (Some(first + i * each), false);
        }
    }

    /// It is over.
    pub(super) fn end_capture(&mut self) {
        self.live = false;
        self.params.values_mut().for_each(|p| p.live = None);
    }

    /// A replay: counts a step of all that the captured step has stepped, and calls `f(name, slots, numbers)` for each.
    pub(super) fn replay(&mut self, each: usize, numbers: &mut [f64], mut f: impl FnMut(&str, &Slots, &mut [f64])) {
        self.steps += 1;
        for ((name, p), numbers) in self.params.iter_mut().zip(numbers.chunks_exact_mut(each)) {
            if p.captured {
                p.steps += 1;
                f(name, p, numbers);
            }
        }
    }

    #[allow(clippy::cast_precision_loss)] // reason: step counts stay far below 2⁵³
    pub(super) fn state(&self, rule: &Rule) -> State {
        let Rule { name: own, slots, .. } = rule;
        let mut s = State::default();
        s.numbers.insert(format!("{own}.steps"), self.steps as f64);
        s.numbers.insert(format!("{own}.skipped"), self.skipped as f64);
        for (name, p) in &self.params {
            s.numbers.insert(format!("{own}.steps.{name}"), p.steps as f64);
            for (t, slot) in p.tensors.iter().zip(*slots) {
                if let Some(t) = t {
                    s.tensors.insert(format!("{own}.{slot}.{name}"), t.clone());
                }
            }
            if let Some(t) = &p.master {
                s.tensors.insert(format!("{own}.master.{name}"), t.clone());
            }
        }
        s
    }

    pub(super) fn load(&mut self, rule: &Rule, state: State) -> Result<()> {
        let own = rule.name;
        let mut new = Memory::default();
        for (key, number) in &state.numbers {
            let Some(rest) = key.strip_prefix(own).and_then(|k| k.strip_prefix('.')) else { return Err(foreign(rule, key)) };
            let n = integer(key, *number)?;
            match rest.split_once('.') {
                None if rest == "steps" => new.steps = n,
                None if rest == "skipped" => new.skipped = n,
                Some(("steps", name)) => new.params.entry(name.to_owned()).or_default().steps = n,
                _ => return Err(foreign(rule, key)),
            }
        }
        for n in ["steps", "skipped"] {
            count(&state.numbers, &format!("{own}.{n}"))?;
        }
        for (key, t) in state.tensors {
            let parts = key.strip_prefix(own).and_then(|k| k.strip_prefix('.')).and_then(|k| k.split_once('.'));
            let Some((slot, name)) = parts else { return Err(foreign(rule, &key)) };
            let Some(p) = new.params.get_mut(name) else { bail!(argument, "the state has `{key}`, but no `{own}.steps.{name}`") };
            match rule.slots.iter().position(|s| *s == slot) {
                Some(i) => p.tensors[i] = Some(t.detach()),
                None if slot == "master" => p.master = Some(t.detach()),
                None => return Err(foreign(rule, &key)),
            }
        }
        for (name, p) in &new.params {
            let all = p.tensors.iter().flatten().chain(&p.master);
            if let Some(first) = all.clone().next()
                && let Some(t) = all.clone().find(|t| t.shape() != first.shape())
            {
                bail!(shape, "the state holds tensors of `{name}` of shapes {} and {}", first.shape(), t.shape());
            }
            if let Some(t) = all.clone().find(|t| !matches!(t.dtype(), DType::F32 | DType::F64)) {
                bail!(dtype, "the state of `{name}` must be f32 or f64, found {}", t.dtype());
            }
        }
        // An optimizer that has stepped knows its parameters.
        if !self.params.is_empty() {
            for (name, p) in &self.params {
                match new.params.get(name) {
                    Some(other) => p.same_as(rule, name, other)?,
                    None => bail!(argument, "the state has no `{name}`: it belongs to another model"),
                }
            }
            if let Some(name) = new.params.keys().find(|n| !self.params.contains_key(*n)) {
                bail!(argument, "the state has `{name}`, of which this optimizer knows nothing: it belongs to another model");
            }
        }
        new.unverified = !new.params.is_empty();
        *self = new;
        Ok(())
    }

    /// Refuses a loaded state that lacks one of these slots for some parameter, or has one that is not kept now.
    pub(super) fn keeps(&self, rule: &Rule, keeps: impl Fn(&str, &Slots, usize) -> bool) -> Result<()> {
        for (name, p) in self.params.iter().filter(|_| self.unverified) {
            for (i, slot) in rule.slots.iter().enumerate() {
                match (&p.tensors[i], keeps(name, p, i)) {
                    (None, true) => bail!(argument, "the loaded state has no {slot} of `{name}`: it was saved with other options"),
                    (Some(_), false) => bail!(argument, "the loaded state has a {slot} of `{name}`, which these options do not keep"),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// A counter of a state.
///
/// # Errors
/// Argument error when it is missing or no integer that `f64` holds exactly.
pub(super) fn count(numbers: &BTreeMap<String, f64>, key: &str) -> Result<u64> {
    match numbers.get(key) {
        Some(n) => integer(key, *n),
        None => bail!(argument, "the state has no `{key}`: it is incomplete, or of another optimizer"),
    }
}

fn integer(key: &str, n: f64) -> Result<u64> {
    // Above 2⁵³ integers are not exact.
    if !((0.0..=9_007_199_254_740_992.0).contains(&n) && n.fract() == 0.0) {
        bail!(argument, "`{key}` must be a count, found {n}");
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // reason: checked above
    Ok(n as u64)
}

fn foreign(rule: &Rule, key: &str) -> crate::Error {
    let slots = rule.slots.join(", ");
    crate::Error::argument(format!(
        "the state has `{key}`, which is not {}'s (steps, skipped, {slots}, master): it is of another optimizer",
        rule.name
    ))
}

/// A parameter for messages: one that was given alone has no name.
fn called(name: &str) -> String {
    if name.is_empty() { "the parameter".to_owned() } else { format!("`{name}`") }
}

/// Calls `f(name, parameter, gradient)` for every trainable parameter.
///
/// # Errors
/// Shape, dtype or device error when a gradient does not fit its parameter; whatever `f` returns.
fn for_each_param(model: &mut dyn Module, grads: &Named, mut f: impl FnMut(&str, &mut Tensor, &Tensor) -> Result<()>) -> Result<()> {
    let mut it = grads.grads.iter();
    try_walk(model, |name, leaf| {
        if !leaf.is_trainable() {
            return Ok(());
        }
        let p = leaf.tensor;
        let g = match it.next() {
            Some((n, g)) if n == name => g,
            // Both are in visiting order: it is the other one that the model does not train any more.
            Some((other, _)) if grads.grads.iter().any(|(n, _)| n == name) => bail!(
                argument,
                "there is a gradient of {}, which the model does not train: it was frozen since, or the gradients are of another model",
                called(other)
            ),
            _ => bail!(argument, "the gradients have no {}: they belong to another model, or were taken while it was frozen", called(name)),
        };
        // Gradients of half parameters may have been accumulated in f32.
        let wide = p.dtype().is_half() && g.dtype() == DType::F32;
        if g.shape() != p.shape() || (g.dtype() != p.dtype() && !wide) {
            bail!(shape, "the gradient of {} is {} {}, the parameter {} {}", called(name), g.dtype(), g.shape(), p.dtype(), p.shape());
        }
        if g.device() != p.device() {
            bail!(device, "the gradient of {} is on {}, the parameter on {}", called(name), g.device(), p.device());
        }
        f(name, p, g)
    })?;
    match it.next() {
        Some((name, _)) => {
            bail!(argument, "the model has no trainable `{name}`, of which there is a gradient: it belongs to another model, or was frozen")
        }
        None => Ok(()),
    }
}
