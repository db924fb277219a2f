//! Programs that run and mean something else: what a reader of the code would ask about.

use crate::dtype::DType;
use crate::error::Result;
use crate::functional::{GradOptions, Grads, gradient};
use crate::module::Module;
use crate::tape::{Composed, Observer, Pulled, Ran};
use crate::tensor::Tensor;
use std::fmt;
use std::panic::Location;
use std::sync::{Arc, Mutex, PoisonError};

/// What kind of slip a [`Suspicion`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Slip {
    /// A difference of `[n, 1]` and `[n]`: all pairs, where pairs of the same index were meant.
    AllPairs,
    /// Classes may be on axis 1, as PyTorch has them; here they are the last axis, and both have the same extent.
    ClassAxis,
    /// Probabilities where logits are expected: a softmax or sigmoid is applied twice.
    Twice,
    /// A softmax, or a loss, over an axis of one element: constant, whatever the model gives.
    OneClass,
    /// Scores of an `nll_loss` that are no logarithms of probabilities: some are positive.
    NotLogProbabilities,
    /// Targets that are to be probabilities and are outside of 0 to 1.
    NoProbabilities,
    /// A mask where indices are expected: rows 0 and 1 are taken, once for each position of the mask.
    MaskAsIndex,
    /// A mean over no elements: NaN.
    MeanOfNothing,
    /// A sum over no elements: 0, whatever the model gives.
    SumOfNothing,
    /// Every target of a loss is to be left out: it does not depend on the model.
    NoTargets,
    /// A softmax over axis 0, which is the batch in most programs.
    BatchAxis,
    /// An attention mask of zeros and ones in a float type, which is added to the scores.
    MaskAsScores,
    /// An attention mask that hides every key from some queries: it may mark padding with 1, as PyTorch's `key_padding_mask` does.
    NothingSeen,
    /// An attention mask of three axes that is taken for one mask for each head, where there are as many heads as sequences.
    MaskOfHeads,
    /// Attention of more heads than tokens: axes may be `[batch, tokens, heads, width]`.
    HeadsAxis,
    /// Two dropouts that keep the same elements: by one key.
    SameDropout,
    /// The loss is NaN or infinite.
    LossNotFinite,
}

/// Something that is allowed and rarely meant.
#[derive(Clone, Debug)]
pub struct Suspicion {
    /// The kind of slip.
    pub slip: Slip,
    /// The op.
    pub op: &'static str,
    /// The line that called it.
    pub at: &'static Location<'static>,
    /// What was seen, and what to do if it was not meant.
    pub text: String,
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (at {}:{})", self.op, self.text, self.at.file(), self.at.line())
    }
}

/// Runs a loss once, with its gradient, and lists what is allowed and rarely meant: the silent slips of people who come from another
/// framework. For the first batch of a new program; an empty list is no proof.
///
/// Seen are ops on tracked values outside of checkpoints. Each line is reported once for each kind of slip.
///
/// ```
/// use cotangent::{Key, Tensor, F32, diagnostics::{Slip, lint}, nn::Linear};
/// let net = Linear::new(3, 1, F32, Key::new(1))?;
/// let x = Tensor::randn([8, 3], F32, Key::new(2))?;
/// let y = Tensor::randn([8], F32, Key::new(3))?;
/// // [8, 1] − [8] is [8, 8].
/// let (_, _, found) = lint(&net, |net| net.forward(&x)?.sub(&y)?.square()?.mean(..))?;
/// assert_eq!(found[0].slip, Slip::AllPairs);
/// assert!(found[0].text.contains("squeeze"), "{}", found[0]);
/// # Ok::<(), cotangent::Error>(())
/// ```
///
/// # Errors
/// As [`value_and_grad`](crate::value_and_grad).
#[track_caller]
pub fn lint<M: Module + Clone>(model: &M, f: impl FnOnce(&M) -> Result<Tensor>) -> Result<(Tensor, Grads<M>, Vec<Suspicion>)> {
    let at = Location::caller();
    let seen = Arc::new(Watch::default());
    let watch = Arc::clone(&seen);
    let (loss, grads) = gradient("lint", model, GradOptions::default(), move |m| {
        super::observe(m, watch)?;
        f(m)
    })
    .map_err(|e| e.in_op("lint", at))?;
    let mut found = std::mem::take(&mut seen.state.lock().unwrap_or_else(PoisonError::into_inner).found);
    if !loss.to_f64_vec()?.iter().all(|v| v.is_finite()) {
        let hint = "an optimizer skips such a step; detect_anomaly names the op that gave the first";
        found.push(Suspicion { slip: Slip::LossNotFinite, op: "lint", at, text: format!("the loss is {}; {hint}", loss.item()?) });
    }
    Ok((loss, grads, found))
}

/// Where this crate's own calls are.
const SOURCES: &str = file!().split_at(file!().len() - "diagnostics/lint.rs".len()).0;

#[derive(Default)]
struct Watch {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Results of softmax, sigmoid and log-softmax. Kept, so that no other value takes their memory.
    probabilities: Vec<(&'static str, &'static Location<'static>, Tensor)>,
    /// What dropouts did to their first elements: line, and whether each was dropped, where that can be seen.
    dropouts: Vec<(&'static Location<'static>, Vec<Option<bool>>)>,
    found: Vec<Suspicion>,
}

impl State {
    fn add(&mut self, slip: Slip, op: &Ran<'_>, text: String) {
        self.add_at(slip, op.name, op.at, text);
    }

    /// What is seen of an op and of a composition alike.
    fn arguments(&mut self, op: &'static str, at: &'static Location<'static>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        if let ("mse_loss" | "cross_entropy" | "nll_loss" | "bce_with_logits", Some(x)) = (op, x.first())
            && x.numel() == 0
        {
            self.add_at(Slip::MeanOfNothing, op, at, format!("the loss of {}, no elements, says nothing", x.shape()));
        }
        match (op, x) {
            ("bce_with_logits" | "cross_entropy", [_, targets, ..]) if targets.dtype().is_float() => {
                // Further out than rounding leaves them.
                let values = targets.untracked().to_f64_vec()?;
                if let Some(v) = values.iter().find(|v| !(-1e-3..=1.001).contains(*v)) {
                    let text = format!(
                        "the targets {} are to be probabilities, and one of them is {v}; of classes -1 and 1: add_scalar(1.0)?.div_scalar(2.0)",
                        targets.shape()
                    );
                    self.add_at(Slip::NoProbabilities, op, at, text);
                }
            }
            ("index_select" | "embedding", [of, index]) => self.mask(op, at, of, index, y.first())?,
            ("index_add", [of, index, source]) => self.mask(op, at, of, index, Some(source))?,
            ("gather" | "scatter_add" | "scatter_reduce", [of, index, ..]) => self.mask(op, at, of, index, Some(index))?,
            _ => {}
        }
        Ok(())
    }

    /// An index of zeros and ones with a place for each of the operand's: `chosen` then has the operand's shape. Axes of two could be
    /// meant to have such indices.
    fn mask(
        &mut self,
        op: &'static str,
        at: &'static Location<'static>,
        of: &Tensor,
        index: &Tensor,
        chosen: Option<&Tensor>,
    ) -> Result<()> {
        let one_each = chosen.is_some_and(|c| c.shape() == of.shape()) && index.shape().iter().all(|&n| n > 2);
        if index.dtype() == DType::U8 && one_each && index.untracked().to_f64_vec()?.iter().all(|&v| v <= 1.0) {
            let (of, index) = (of.shape(), index.shape());
            let text = format!(
                "the index {index} beside {of} has zeros and ones alone, and takes rows 0 and 1; if it is a mask: \
                 index_select(axis, &mask.nonzero()?.squeeze(-1)?), where_cond or masked_fill"
            );
            self.add_at(Slip::MaskAsIndex, op, at, text);
        }
        Ok(())
    }

    fn add_at(&mut self, slip: Slip, op: &'static str, at: &'static Location<'static>, text: String) {
        if !self.found.iter().any(|s| s.slip == slip && s.at == at) {
            self.found.push(Suspicion { slip, op, at, text });
        }
    }

    /// The op, and its line, that made a value which is a probability.
    fn maker(&self, x: &Tensor) -> Option<(&'static str, &'static Location<'static>)> {
        self.probabilities.iter().find(|(_, _, p)| p.shares_storage(x)).map(|&(name, at, _)| (name, at))
    }
}

impl Observer for Watch {
    fn ran(&self, op: &Ran<'_>) -> Result<()> {
        let state = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.arguments(op.name, op.at, op.inputs, op.outputs)?;
        match (op.name, op.inputs) {
            ("sub" | "mse_loss", [a, b]) => {
                if let Some(n) = all_pairs(a, b) {
                    let (a, b) = (a.shape(), b.shape());
                    let text = format!(
                        "{a} and {b} broadcast to [{n}, {n}], every pair; if pairs of one index are meant: squeeze(-1) or unsqueeze(-1)"
                    );
                    state.add(Slip::AllPairs, op, text);
                }
            }
            ("softplus", [x, ..]) => twice(state, op, x, &["sigmoid"], "bce_with_logits takes logits"),
            ("softmax" | "log_softmax", [x, ..]) => {
                if let Some(y) = op.outputs.first() {
                    if y.shape().dims().last() == Some(&1) {
                        one_class(state, op, x);
                    }
                    batch_axis(state, op, y)?;
                }
                twice(state, op, x, &["softmax", "log_softmax"], "it is a softmax of a softmax");
            }
            ("cross_entropy", [x, targets, ..]) if targets.dtype().is_float() => {
                if x.shape().dims().last() == Some(&1) {
                    one_class(state, op, x);
                }
                twice(state, op, x, &["softmax", "log_softmax", "sigmoid"], "cross_entropy takes logits");
            }
            ("cross_entropy" | "nll_loss", [x, targets, ..]) => {
                classes(state, op, x, targets);
                no_targets(state, op, targets)?;
                // By more than rounding leaves above 0, in half types too.
                if op.name == "nll_loss" && x.to_f64_vec()?.iter().any(|&v| v > 1e-3) {
                    let text = format!(
                        "some of the scores {} are positive, which logarithms of probabilities are not; of logits: cross_entropy",
                        x.shape()
                    );
                    state.add(Slip::NotLogProbabilities, op, text);
                }
                if op.name == "cross_entropy" {
                    twice(state, op, x, &["softmax", "log_softmax", "sigmoid"], "cross_entropy takes logits");
                }
            }
            ("scaled_dot_product_attention", [q, _, _, rest @ ..]) => attention(state, op, q, rest)?,
            ("dropout" | "dropout_add", [x, residual @ ..]) => dropped(state, op, x, residual.first().copied())?,
            ("mean", [x, ..]) if x.numel() == 0 => {
                state.add(Slip::MeanOfNothing, op, format!("the mean of {}, no elements, is NaN", x.shape()));
            }
            // Of a loss, the loss is what is told.
            ("sum", [x, ..]) if x.numel() == 0 && !op.at.file().starts_with(SOURCES) => {
                state.add(Slip::SumOfNothing, op, format!("the sum of {}, no elements, is 0: is the batch empty?", x.shape()));
            }
            _ => {}
        }
        if matches!(op.name, "softmax" | "log_softmax" | "sigmoid")
            && let Some(y) = op.outputs.first()
        {
            crate::memory::push(&mut state.probabilities, (op.name, op.at, y.detach()))?;
        }
        Ok(())
    }

    fn pulled(&self, _: &Pulled<'_>) -> Result<()> {
        Ok(())
    }

    fn tapped(&self, _: &str, _: &Tensor) {}

    fn composed(&self, op: &Composed<'_>) -> Result<()> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).arguments(op.name, op.at, op.inputs, op.outputs)
    }
}

/// `n` when one is `[n, 1]` and the other `[n]`, or the last axes are.
fn all_pairs(a: &Tensor, b: &Tensor) -> Option<usize> {
    let column = |x: &Tensor, y: &Tensor| match (x.shape().dims(), y.shape().dims()) {
        (&[n, 1], &[m]) if n == m && n > 1 => Some(n),
        _ => None,
    };
    column(a, b).or_else(|| column(b, a))
}

/// Reported at the line of the first op: it is the one to leave out, and the second may be a part of a loss.
fn twice(state: &mut State, op: &Ran<'_>, x: &Tensor, of: &[&str], what: &str) {
    if let Some((first, at)) = state.maker(x).filter(|(first, _)| of.contains(first)) {
        let text = format!("its result is the operand of {}; {what}: leave the {first} out", op.name);
        state.add_at(Slip::Twice, first, at, text);
    }
}

fn one_class(state: &mut State, op: &Ran<'_>, x: &Tensor) {
    state.add(
        Slip::OneClass,
        op,
        format!("the axis of {} that is normalised has one element: the result does not depend on it", x.shape()),
    );
}

fn classes(state: &mut State, op: &Ran<'_>, x: &Tensor, targets: &Tensor) {
    match *x.shape().dims() {
        [.., 1] => one_class(state, op, x),
        [_, c, .., last] if x.rank() > 2 && c == last => {
            let (x, targets) = (x.shape(), targets.shape());
            let text =
                format!("scores {x}, targets {targets}: classes are the last axis; if they are on axis 1, as in PyTorch: transpose(1, -1)");
            state.add(Slip::ClassAxis, op, text);
        }
        _ => {}
    }
}

/// Classes are not negative, so a target that is stands for one to be left out.
fn no_targets(state: &mut State, op: &Ran<'_>, targets: &Tensor) -> Result<()> {
    if targets.numel() > 0 && targets.untracked().to_f64_vec()?.iter().all(|&t| t < 0.0) {
        let text =
            format!("every one of the targets {} is negative, which leaves it out: nothing is learnt from this batch", targets.shape());
        state.add(Slip::NoTargets, op, text);
    }
    Ok(())
}

/// Probabilities that sum to 1 along axis 0, and not along the last.
fn batch_axis(state: &mut State, op: &Ran<'_>, y: &Tensor) -> Result<()> {
    let (&[n, ..], true) = (y.shape().dims(), y.rank() > 1 && (1..=JUDGED).contains(&y.numel())) else { return Ok(()) };
    let y = y.untracked().cast(DType::F64)?;
    let p = if op.name == "log_softmax" { y.exp()? } else { y };
    let sums_to_one = |axis: i32| -> Result<bool> { Ok(p.sum(axis)?.to_f64_vec()?.iter().all(|s| (s - 1.0).abs() < 0.05)) };
    if n > 1 && sums_to_one(0)? && !sums_to_one(-1)? {
        let text =
            format!("{} is normalised along axis 0, which is the batch in most programs; of classes in the last axis: -1", p.shape());
        state.add(Slip::BatchAxis, op, text);
    }
    Ok(())
}

/// A value with more elements is not looked at.
const JUDGED: usize = 1 << 20;

fn attention(state: &mut State, op: &Ran<'_>, q: &Tensor, rest: &[&Tensor]) -> Result<()> {
    if let [.., heads, tokens, _] = *q.shape().dims()
        && tokens > 1
        && heads > 2 * tokens
    {
        let text = format!(
            "q {} are {heads} heads of {tokens} tokens: axes are [batch, heads, tokens, width]; of [batch, tokens, heads, width]: transpose(1, 2)",
            q.shape()
        );
        state.add(Slip::HeadsAxis, op, text);
    }
    if let (Some(mask), [batch, heads, ..]) = (rest.first(), q.shape().dims())
        && q.rank() == 4
        && mask.rank() == 3
        && batch == heads
        && mask.shape()[0] == *heads
        && *heads > 1
    {
        let text = format!(
            "the mask {} beside q {} is one for each head, alike for all sequences; of one for each sequence: mask.unsqueeze(1)?",
            mask.shape(),
            q.shape()
        );
        state.add(Slip::MaskOfHeads, op, text);
    }
    if let Some(mask) = rest.first().filter(|m| m.dtype() == DType::U8 && (1..=JUDGED).contains(&m.numel())) {
        let (values, keys) = (mask.untracked().to_f64_vec()?, mask.shape().dims().last().copied().unwrap_or(1));
        let blind = values.chunks(keys).filter(|row| row.iter().all(|v| *v == 0.0)).count();
        if blind > 0 {
            let text = format!(
                "{blind} of the {} rows of the mask {} hide every key; 1 is a key that is seen: if it marks padding, mask.logical_not()?",
                values.len() / keys,
                mask.shape()
            );
            state.add(Slip::NothingSeen, op, text);
        }
    }
    if let Some(mask) = rest.first().filter(|m| m.dtype().is_float() && (1..=JUDGED).contains(&m.numel())) {
        let values = mask.untracked().to_f64_vec()?;
        if values.iter().all(|v| *v == 0.0 || *v == 1.0) && values.contains(&1.0) {
            let text = format!(
                "the mask {} has zeros and ones alone and is of {}, so it is added to the scores, and hides nothing; if 1 says attend: \
                 mask.cast(U8)?",
                mask.shape(),
                mask.dtype()
            );
            state.add(Slip::MaskAsScores, op, text);
        }
    }
    Ok(())
}

/// Elements of a dropout that are compared.
const COMPARED: usize = 4096;
/// How improbable it must be that the elements agree by chance.
const BY_CHANCE: f64 = 1e-9;

fn dropped(state: &mut State, op: &Ran<'_>, x: &Tensor, residual: Option<&Tensor>) -> Result<()> {
    let Some(y) = op.outputs.first() else { return Ok(()) };
    let first = |t: &Tensor| {
        let t = t.untracked();
        t.reshape(t.numel())?.narrow(0, 0, t.numel().min(COMPARED))?.to_f64_vec()
    };
    let (x, y) = (first(x)?, first(y)?);
    let base = residual.map(first).transpose()?;
    let mut seen = crate::memory::room(x.len())?;
    seen.extend(x.iter().zip(&y).enumerate().map(|(i, (x, y))| {
        let base = base.as_ref().map_or(0.0, |b| b[i]);
        (*x != 0.0 && y.is_finite()).then_some(*y == base)
    }));
    let same = |other: &[Option<bool>]| {
        // Of two rates, what the lower one drops is dropped by the higher one, too.
        let both = || seen.iter().zip(other).filter_map(|(a, b)| a.zip(*b));
        let (n, here, there) = (both().count(), both().filter(|(a, _)| *a).count(), both().filter(|(_, b)| *b).count());
        let (fewer, more) = (here.min(there), here.max(there));
        let nested = both().all(|(a, b)| if here <= there { !a || b } else { a || !b });
        nested && n > 0 && (more as f64 / n as f64).powf(fewer as f64) < BY_CHANCE
    };
    if let Some((before, _)) = state.dropouts.iter().find(|(_, other)| same(other)) {
        let text = format!(
            "it drops the same elements as the dropout at {}:{}: both have one key; give each its own (Key::split, Key::fold)",
            before.file(),
            before.line()
        );
        state.add(Slip::SameDropout, op, text);
    }
    crate::memory::push(&mut state.dropouts, (op.at, seen))
}
