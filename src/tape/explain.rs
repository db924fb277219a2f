//! What a tape can say about a gradient that was lost, and about an op that refused: names, ops, lines.

use super::{Inner, Kind, Node, NodeRef, Under, observe};
use crate::dtype::DType;
use crate::tensor::Tensor;
use std::collections::VecDeque;
use std::panic::Location;
use std::sync::{Arc, Mutex, PoisonError};

/// Places where values left the tape: by ops whose results have no gradient, by `detach`, by reading back; and where a sweep ended, by
/// derivatives that gave a value nothing. Only the last are kept.
#[derive(Default)]
pub(super) struct Stops(Mutex<VecDeque<Stop>>);

#[derive(Clone, Copy, PartialEq, Eq)]
struct Stop {
    node: usize,
    op: &'static str,
    /// What the op's result holds, where its name does not say it.
    to: Option<DType>,
    at: &'static Location<'static>,
    way: Way,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It left the tape.
    Forward,
    /// Its op's derivative has no cotangent for it.
    Flat,
    /// As [`Way::Flat`], and a user wrote the derivative.
    Users,
}

const KEPT: usize = 1024;

impl Stops {
    fn push(&self, stop: Stop) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == KEPT {
            all.pop_front();
        }
        all.push_back(stop);
    }

    /// Those of a tape whose nodes now begin at `offset` of this one.
    pub(super) fn take_over(&self, other: &Stops, offset: usize) {
        let moved = std::mem::take(&mut *other.0.lock().unwrap_or_else(PoisonError::into_inner));
        moved.into_iter().for_each(|s| self.push(Stop { node: s.node + offset, ..s }));
    }

    fn list(&self) -> Vec<Stop> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

/// Notes that what follows from these values has no gradient; costs nothing for untracked ones.
pub(crate) fn stops(op: &'static str, at: &'static Location<'static>, x: &[&Tensor], to: Option<DType>) {
    let at = Under::line(at);
    for node in x.iter().filter_map(|t| t.node.as_ref()) {
        if let Some((tape, id)) = place(node) {
            tape.stops.push(Stop { node: id, op, to, at, way: Way::Forward });
        }
    }
}

/// Notes that an op's derivative gave a value on the tape no cotangent, though one was wanted.
pub(super) fn gave_none(tape: &Inner, node: usize, op: &'static str, at: &'static Location<'static>, users: bool) {
    tape.stops.push(Stop { node, op, to: None, at, way: if users { Way::Users } else { Way::Flat } });
}

fn place(node: &NodeRef) -> Option<(Arc<Inner>, usize)> {
    node.resolve().ok()
}

/// Why a result does not depend on a watched value.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Loss {
    /// No op took it, and nobody read it.
    Unused,
    /// What is computed from it ends here.
    Stopped(String),
    /// It was used, but the result is not computed from that.
    Aside {
        /// The op that took it first, and its line.
        first: String,
    },
    /// The result is computed from it, and every derivative on the way is zero: the op where the sweep ended, and its line.
    Flat(Option<String>),
    /// The result is computed from it, and a derivative that the user wrote gave it nothing.
    Denied(String),
}

impl Loss {
    /// A clause about what was lost: `it`, or names.
    pub(crate) fn of(&self, subject: &str, several: bool) -> String {
        match self {
            Loss::Unused if several => format!("{} were never used", if subject == "it" { "they" } else { subject }),
            Loss::Unused => format!("{subject} was never used"),
            _ => {
                let subject = if several && subject == "it" { "them" } else { subject };
                match self {
                    Loss::Stopped(places) => format!("what is computed from {subject} ends in {places}"),
                    Loss::Aside { first } => format!("{first} took {subject}, but the result is not computed from that"),
                    Loss::Denied(place) if place.starts_with("`checkpoint") => {
                        format!(
                            "what {place} runs gives {subject} no gradient: something in it has none, as `detach`, `argmax` or a comparison"
                        )
                    }
                    Loss::Denied(place) => format!("the derivative of {place} returned `None` on the way to {subject}, which says zero"),
                    Loss::Flat(Some(place)) => {
                        format!("the result follows from {subject} only by ops whose derivative is zero everywhere, as that of {place}")
                    }
                    _ => format!("the result follows from {subject} only by ops whose derivative is zero everywhere"),
                }
            }
        }
    }
}

/// What is said when the values at `ends` do not depend on these leaves (name, place) of `total` that were watched.
/// `allow` is how the caller allows it.
pub(crate) fn lost_message(tape: &Inner, lost: &[(String, usize)], total: usize, ends: &[usize], allow: &str) -> String {
    let all = lost.len() == total;
    let names: Vec<&str> = lost.iter().map(|(name, _)| name.as_str()).collect();
    let what = if all && names.len() > 1 { "any parameter".to_owned() } else { list(&names) };
    // Of parameters that share a fate it is said once.
    let mut fates: Vec<(Loss, Vec<&str>)> = Vec::new();
    for (i, (name, id)) in lost.iter().enumerate() {
        let fate = if i < EXPLAINED { explain(tape, *id, ends) } else { continue };
        match fates.iter_mut().find(|(f, _)| *f == fate) {
            Some((_, names)) => names.push(name),
            None => fates.push((fate, vec![name])),
        }
    }
    if let (true, [(Loss::Unused, _)]) = (all, fates.as_slice()) {
        return none_used(&what);
    }
    let one = fates.len() == 1;
    let said = fates.iter().map(|(fate, names)| fate.of(&if one { "it".to_owned() } else { list(names) }, names.len() > 1));
    let said = said.collect::<Vec<_>>().join("; ");
    let hint = if all { String::new() } else { format!("; {allow}") };
    format!("the result does not depend on {what}: its gradient would be lost; {said}{hint}")
}

fn none_used(what: &str) -> String {
    format!(
        "the result does not depend on {what}: none was used. Does the function compute with its argument, or with a model or tensor that it \
         captured? Write `|m| m.forward(&x)`, not `|_| model.forward(&x)`"
    )
}

/// What is said when no op took any of the leaves, which lie one after the other, nobody read one, and none is a result itself. Mostly the
/// first op after them is one that did.
pub(crate) fn unused(tape: &Inner, leaves: &[usize], ends: &[usize], name: &str) -> Option<String> {
    let (first, last) = (*leaves.first()?, *leaves.last()?);
    let is_leaf = |id: &usize| (first..=last).contains(id);
    let nodes = tape.nodes();
    let takes = |node: &Node| matches!(&node.kind, Kind::Op(op) if op.parents.iter().flatten().any(is_leaf));
    let used = ends.iter().any(is_leaf) || nodes[last + 1..].iter().any(takes) || tape.stops.list().iter().any(|s| is_leaf(&s.node));
    (!used).then(|| none_used(if leaves.len() > 1 { "any parameter" } else { name }))
}

/// Lost parameters that are looked into: each takes a walk over the tape.
const EXPLAINED: usize = 64;

/// Names one after the other; after a dozen, how many more.
fn list(names: &[&str]) -> String {
    let shown = names.iter().take(12).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 12 { format!("{shown} and {} more", names.len() - 12) } else { shown }
}

/// Why the values at `ends` do not depend on the leaf. Also of a tape that was swept: its nodes keep where they came from.
pub(crate) fn explain(tape: &Inner, leaf: usize, ends: &[usize]) -> Loss {
    let (stops, ended): (Vec<Stop>, Vec<Stop>) = tape.stops.list().into_iter().partition(|s| s.way == Way::Forward);
    let nodes = tape.nodes();
    let (mut below, mut used) = (vec![false; nodes.len()], vec![false; nodes.len()]);
    let mut first = None;
    below[leaf] = true;
    for id in leaf + 1..nodes.len() {
        below[id] = match &nodes[id].kind {
            Kind::Op(op) => op.parents.iter().flatten().fold(false, |any, &p| {
                used[p] = true;
                any | below[p]
            }),
            Kind::Sibling(back) => below[id - back],
            Kind::Leaf(_) => false,
        };
        if let (true, None, Kind::Op(op)) = (below[id], &first, &nodes[id].kind) {
            first = Some(at(op.name, None, nodes[id].at));
        }
    }
    if ends.iter().any(|&e| below[e]) {
        // A sweep that ended twice on the way ended first at the one nearer to the leaf, or by the user's own derivative.
        let mut on_the_way = ended.iter().rev().filter(|s| below.get(s.node) == Some(&true));
        let last = on_the_way.clone().find(|s| s.way == Way::Users).or_else(|| on_the_way.next());
        return match last.map(|s| (s.way, at(s.op, s.to, s.at))) {
            Some((Way::Users, place)) => Loss::Denied(place),
            last => Loss::Flat(last.map(|(_, place)| place)),
        };
    }
    // The last places, each once.
    let mut places: Vec<String> = Vec::new();
    let mut add = |text: String| {
        if !places.contains(&text) && places.len() < 3 {
            places.push(text);
        }
    };
    for s in stops.iter().rev().filter(|s| below.get(s.node) == Some(&true)) {
        add(at(s.op, s.to, s.at));
    }
    // Integers beside floats, as the indices of `topk`: where the floats went nowhere, or nothing else ended it.
    for s in &stops {
        if let Some(used) = used.get_mut(s.node) {
            *used = true;
        }
    }
    let nothing_else = stops.iter().all(|s| below.get(s.node) != Some(&true));
    for id in (leaf + 1..nodes.len()).rev().filter(|&id| below[id] && !nodes[id].dtype.is_float()) {
        if let Kind::Sibling(back) = nodes[id].kind
            && let Kind::Op(op) = &nodes[id - back].kind
            && (nothing_else || !(id - back..id - back + op.outputs).any(|output| used[output]))
        {
            add(format!("the {} results of {}", nodes[id].dtype, at(op.name, None, nodes[id].at)));
        }
    }
    places.reverse();
    match (places.is_empty(), first) {
        (false, _) => Loss::Stopped(places.join(", ")),
        (true, None) => Loss::Unused,
        (true, Some(first)) => Loss::Aside { first },
    }
}

fn at(op: &str, to: Option<DType>, at: &Location<'_>) -> String {
    let to = to.map(|d| format!(" to {d}")).unwrap_or_default();
    format!("`{op}`{to} ({}:{})", at.file(), at.line())
}

/// The watched parameters among operands, directly or through casts and permutations: name, and what is there.
pub(crate) fn parameters(x: &[&Tensor]) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = Vec::new();
    for t in x {
        let Some((tape, _)) = t.node.as_ref().and_then(place) else { continue };
        if let Some(name) = observe::parameter(&tape, t)
            && !out.iter().any(|(n, _)| *n == name)
        {
            out.push((name, format!("{}{}", t.dtype(), t.shape())));
        }
    }
    out
}
