//! Sums of products over named indices.

use crate::error::{ErrorKind, Result, bail};
use crate::op::{Composite, Describe, Math, Outputs, Spec, compose1, expect};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::smallvec;
use std::collections::BTreeMap;

/// An equation over named indices, such as `bij,bjk->bik`; see [`Tensor::einsum`].
#[derive(Clone, Debug)]
pub struct Einsum(pub String);

/// An index: a letter's code, or [`ELLIPSIS`] plus the axis of `...` counted from its last.
type Index = usize;

/// Above every letter's code.
const ELLIPSIS: Index = 256;

/// One side of the equation for one operand: letters before `...`, whether it is there, letters after it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    before: Vec<Index>,
    dots: bool,
    after: Vec<Index>,
}

impl Term {
    fn parse(text: &str, equation: &str) -> Result<Term> {
        let mut term = Term { before: Vec::new(), dots: false, after: Vec::new() };
        let mut rest = text.trim();
        while let Some(c) = rest.chars().next() {
            if let Some(tail) = rest.strip_prefix("...") {
                if term.dots {
                    bail!(argument, "`...` occurs twice in `{}` of equation \"{equation}\"", text.trim());
                }
                term.dots = true;
                rest = tail;
                continue;
            }
            if c.is_ascii_alphabetic() {
                let side = if term.dots { &mut term.after } else { &mut term.before };
                side.push(c as Index);
            } else if c != ' ' {
                let hint = match c {
                    '.' => "; an ellipsis has three dots",
                    '-' | '>' => "; the output follows a single `->`",
                    _ => "; indices are the letters a-z and A-Z",
                };
                bail!(argument, "unexpected character {c:?} in equation \"{equation}\"{hint}");
            }
            rest = &rest[c.len_utf8()..];
        }
        Ok(term)
    }

    fn letters(&self) -> impl Iterator<Item = Index> {
        self.before.iter().chain(&self.after).copied()
    }

    /// All indices, where `...` means this many axes.
    fn indices(&self, dots: usize) -> Vec<Index> {
        let dots = (0..dots).rev().map(|k| ELLIPSIS + k);
        self.before.iter().copied().chain(dots).chain(self.after.iter().copied()).collect()
    }
}

/// What an index is called in messages.
fn name(index: Index) -> String {
    u8::try_from(index).map_or_else(|_| format!("axis -{} of `...`", index - ELLIPSIS + 1), |c| char::from(c).to_string())
}

/// An equation applied to shapes: the index of every axis of every operand and of the output, and the indices' extents.
/// An axis of `...` may have extent 1 where the index has more.
#[derive(Debug)]
struct Plan {
    operands: Vec<Vec<Index>>,
    output: Vec<Index>,
    extents: BTreeMap<Index, usize>,
}

impl Plan {
    fn new(equation: &str, shapes: &[&Shape]) -> Result<Plan> {
        let (left, right) = match equation.split_once("->") {
            Some((l, r)) => (l, Some(Term::parse(r, equation)?)),
            None => (equation, None),
        };
        let terms: Vec<Term> = left.split(',').map(|t| Term::parse(t, equation)).collect::<Result<_>>()?;
        if terms.len() != shapes.len() {
            let comma = if terms.len() < shapes.len() { ": a comma is missing between two of them?" } else { "" };
            bail!(argument, "equation \"{equation}\" names {} operands, but {} are given{comma}", terms.len(), shapes.len());
        }
        let mut plan = Plan { operands: Vec::new(), output: Vec::new(), extents: BTreeMap::new() };
        let mut widest = 0;
        for (i, (term, shape)) in terms.iter().zip(shapes).enumerate() {
            let letters = term.letters().count();
            let fits = if term.dots { shape.rank() >= letters } else { shape.rank() == letters };
            if !fits {
                let least = if term.dots { "at least " } else { "" };
                let (rank, text) = (shape.rank(), left.split(',').nth(i).unwrap_or_default().trim());
                bail!(shape, "`{text}` names {least}{letters} axes, but operand {i} has shape {shape} (rank {rank}) in \"{equation}\"");
            }
            let dots = shape.rank() - letters;
            widest = widest.max(dots);
            plan.operands.push(term.indices(dots));
        }
        plan.find_extents(equation, shapes)?;
        plan.output = match right {
            Some(term) => {
                let mut seen = Vec::new();
                for index in term.letters() {
                    if !plan.extents.contains_key(&index) {
                        bail!(argument, "output index {} occurs in no operand of equation \"{equation}\"", name(index));
                    }
                    if seen.contains(&index) {
                        bail!(argument, "output index {} occurs twice in the output of equation \"{equation}\"", name(index));
                    }
                    seen.push(index);
                }
                if term.dots && !terms.iter().any(|t| t.dots) {
                    bail!(argument, "the output has `...`, but no operand has in equation \"{equation}\"");
                }
                // Without `...` in the output its axes are summed like any index that is not named there.
                term.indices(if term.dots { widest } else { 0 })
            }
            None => {
                let count = |index: Index| terms.iter().flat_map(Term::letters).filter(|&i| i == index).count();
                let once = plan.extents.keys().copied().filter(|&i| i < ELLIPSIS && count(i) == 1);
                (0..widest).rev().map(|k| ELLIPSIS + k).chain(once).collect()
            }
        };
        Ok(plan)
    }

    fn find_extents(&mut self, equation: &str, shapes: &[&Shape]) -> Result<()> {
        // Who set the extent, for the message.
        let mut set_by: BTreeMap<Index, usize> = BTreeMap::new();
        for (i, (indices, shape)) in self.operands.iter().zip(shapes).enumerate() {
            for (&index, &extent) in indices.iter().zip(shape.iter()) {
                let Some(&have) = self.extents.get(&index) else {
                    self.extents.insert(index, extent);
                    set_by.insert(index, i);
                    continue;
                };
                let broadcasts = index >= ELLIPSIS;
                if have == extent || (broadcasts && extent == 1) {
                    continue;
                }
                if broadcasts && have == 1 {
                    self.extents.insert(index, extent);
                    set_by.insert(index, i);
                    continue;
                }
                let first = set_by.get(&index).copied().unwrap_or(i);
                let index = name(index);
                if first == i {
                    bail!(shape, "extents differ for index {index} within operand {i} {shape} ({have} vs {extent}) in \"{equation}\"");
                }
                let other = shapes[first];
                bail!(
                    shape,
                    "extents differ for index {index}: operand {first} {other}, operand {i} {shape} ({have} vs {extent}) in \"{equation}\""
                );
            }
        }
        Ok(())
    }

    /// The indices with which an operand of this shape varies: all but axes of `...` along which it is broadcast.
    fn varying(&self, of: &[Index], shape: &Shape) -> Vec<Index> {
        of.iter().zip(shape.iter()).filter(|&(i, d)| self.extents[i] == *d).map(|(&i, _)| i).collect()
    }

    fn shape(&self, indices: &[Index]) -> Shape {
        indices.iter().map(|i| self.extents[i]).collect()
    }
}

/// A tensor whose axes have names, each once.
struct Named {
    x: Tensor,
    of: Vec<Index>,
}

impl Named {
    /// An operand: repeated indices become diagonals, axes along which it is broadcast disappear, and so do indices that
    /// nothing else needs, by summation.
    fn operand(x: &Tensor, of: &[Index], plan: &Plan, needed: impl Fn(Index) -> bool) -> Result<Named> {
        let (mut x, mut of) = (x.clone(), of.to_vec());
        while let Some((a, b)) = (0..of.len()).find_map(|b| Some((of[..b].iter().position(|&i| i == of[b])?, b))) {
            x = x.diagonal(a, b)?;
            let index = of.remove(b);
            of.remove(a);
            of.push(index);
        }
        for axis in (0..of.len()).rev() {
            if x.shape()[axis] != plan.extents[&of[axis]] {
                x = x.squeeze(axis)?;
                of.remove(axis);
            }
        }
        let free: Vec<usize> = (0..of.len()).filter(|&axis| !needed(of[axis])).collect();
        if !free.is_empty() {
            x = x.sum(&free[..])?;
            of.retain(|&i| needed(i));
        }
        Ok(Named { x, of })
    }

    /// The same with its axes in another order. No node when they already are.
    fn ordered(self, order: Vec<Index>) -> Result<Named> {
        if self.of == order {
            return Ok(self);
        }
        let axes: Vec<usize> = order.iter().filter_map(|i| self.of.iter().position(|j| j == i)).collect();
        Ok(Named { x: self.x.permute(&axes[..])?, of: order })
    }

    /// Product with the next operand, summed over what both have and nothing later needs.
    fn contract(self, other: Named, plan: &Plan, needed: impl Fn(Index) -> bool) -> Result<Named> {
        let shared = |want: bool| self.of.iter().copied().filter(|&i| other.of.contains(&i) && needed(i) == want).collect::<Vec<_>>();
        let (batch, inner) = (shared(true), shared(false));
        let rows: Vec<Index> = self.of.iter().copied().filter(|i| !other.of.contains(i)).collect();
        let columns: Vec<Index> = other.of.iter().copied().filter(|i| !self.of.contains(i)).collect();
        if inner.is_empty() && (rows.is_empty() || columns.is_empty()) {
            return if columns.is_empty() { self.scaled(other, plan) } else { other.scaled(self, plan) };
        }
        // Groups of axes become one, except the batch: it may have any strides.
        let matrix = |n: Named, first: &[Index], second: &[Index]| {
            let n = n.ordered([&batch[..], first, second].concat())?;
            let [r, c] = [first, second].map(|g| plan.shape(g).numel());
            reshaped(n.x, &batch.iter().map(|i| plan.extents[i]).chain([r, c]).collect())
        };
        let (a, b) = (matrix(self, &rows, &inner)?, matrix(other, &inner, &columns)?);
        let of = [&batch[..], &rows, &columns].concat();
        Ok(Named { x: reshaped(a.matmul(&b)?, &plan.shape(&of))?, of })
    }

    /// Elementwise product with a tensor that has no other axes.
    fn scaled(self, by: Named, plan: &Plan) -> Result<Named> {
        let by = {
            let order = self.of.iter().copied().filter(|i| by.of.contains(i)).collect();
            by.ordered(order)?
        };
        let shape: Shape = self.of.iter().map(|i| if by.of.contains(i) { plan.extents[i] } else { 1 }).collect();
        Ok(Named { x: self.x.mul(&reshaped(by.x, &shape)?)?, of: self.of })
    }
}

/// Under another shape; no node when it already has that.
fn reshaped(x: Tensor, shape: &Shape) -> Result<Tensor> {
    if x.shape() == shape { Ok(x) } else { x.reshape(shape) }
}

impl Describe for Einsum {
    const NAME: &'static str = "einsum";
    const MATH: Math = Math {
        forward: "y[output indices] = Σ over all other indices of the product of the operands at their indices; 0 over an empty index",
        vjp: "x̄ of an operand = the same sum with ȳ in its place, repeated along indices that only it has",
        kinks: "linear in every operand",
        cost: "sums indices that one operand has alone first, then one matrix product per further operand, from left to right; \
               saves the operands and the intermediate products",
        references: "numpy.einsum; torch.einsum",
    };

    // A reading of the equation of its own, shared with nothing: axes are characters, those of `...` are digits counted
    // from the last, and one loop runs over the values of all of them.
    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let text = self.0.replace(' ', "");
        let (left, right) = text.split_once("->").map_or((text.as_str(), None), |(l, r)| (l, Some(r)));
        let digits = |n: usize| "9876543210".get(10usize.saturating_sub(n)..).unwrap_or("");
        let spelt = |term: &str, dots: usize| term.replace("...", digits(dots));
        let dots = |term: &str, rank: usize| if term.contains("...") { rank + 3 - term.len() } else { 0 };
        let terms: Vec<&str> = left.split(',').collect();
        let operands: Vec<String> = terms.iter().zip(x).map(|(t, x)| spelt(t, dots(t, x.shape.rank()))).collect();
        let widest = terms.iter().zip(x).map(|(t, x)| dots(t, x.shape.rank())).max().unwrap_or(0);
        let output = right.map_or_else(
            || {
                let all = operands.concat();
                let mut once: Vec<char> = all.chars().filter(|&c| c.is_alphabetic() && all.matches(c).count() == 1).collect();
                once.sort_unstable();
                digits(widest).chars().chain(once).collect()
            },
            |r| spelt(r, widest),
        );
        // Every index once with its extent: the output's first, then those that are summed.
        let mut loops: Vec<(char, usize)> = Vec::new();
        for c in output.chars().chain(operands.concat().chars()) {
            if loops.iter().all(|&(known, _)| known != c) {
                let found = operands.iter().zip(x).flat_map(|(o, x)| o.chars().zip(x.shape.iter().copied()));
                // An axis of `...` may be 1 where the index has another extent, which may be 0.
                let extents: Vec<usize> = found.filter(|&(name, _)| name == c).map(|(_, d)| d).collect();
                loops.push((c, extents.iter().copied().find(|&d| d != 1).unwrap_or(1)));
            }
        }
        let given = output.chars().count();
        let (outer, inner) = (&loops[..given], &loops[given..]);
        let extents = |of: &[(char, usize)]| of.iter().map(|&(_, d)| d).collect::<Shape>();
        vec![Nd::from_fn(extents(outer), |o| {
            let terms = Nd::from_fn(extents(inner), |i| {
                let value = |c: char| loops.iter().zip(o.iter().chain(i)).find(|((name, _), _)| *name == c).map_or(0, |(_, &v)| v);
                let factors = operands.iter().zip(x).map(|(names, x)| {
                    let at: Vec<usize> = names.chars().zip(x.shape.iter()).map(|(c, &d)| if d == 1 { 0 } else { value(c) }).collect();
                    x.at(&at)
                });
                factors.reduce(|product, f| product * f).unwrap_or(S::one())
            });
            S::sum(&terms.data)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let of = |equation: &str| Einsum(equation.into());
        let (m, k, n) = (g.extent().min(6), g.extent().min(6), g.extent().min(6));
        let cases: [(&str, &[&[usize]], &'static str); 66] = [
            ("ij,jk->ik", &[&[m, k], &[k, n]], "matrix product"),
            ("ij,jk", &[&[m, k], &[k, n]], "the same, output implied"),
            ("ij,kj->ik", &[&[m, k], &[n, k]], "right side transposed"),
            ("ij,jk->ki", &[&[m, k], &[k, n]], "transposed result"),
            ("ba,cb", &[&[3, 2], &[4, 3]], "implied output is alphabetical: ac"),
            ("bij,bjk->bik", &[&[2, m, k], &[2, k, n]], "batched"),
            ("ibj,jkb->bki", &[&[m, 2, k], &[k, n, 2]], "batch axis anywhere"),
            ("bij,jk->bik", &[&[3, m, k], &[k, n]], "one matrix for all batches"),
            ("bhqd,bhkd->bhqk", &[&[2, 2, 3, 2], &[2, 2, 2, 2]], "attention scores"),
            ("bqhd,bkhd->bhqk", &[&[2, 3, 2, 2], &[2, 2, 2, 2]], "attention scores, heads behind positions"),
            ("bhqk,bkhd->bqhd", &[&[2, 2, 3, 2], &[2, 2, 2, 2]], "attention output"),
            ("abcd,cdef->abef", &[&[2, 1, 2, 3], &[2, 3, 2, 2]], "two contracted indices"),
            ("abcd,dcef->feba", &[&[2, 1, 2, 3], &[3, 2, 2, 2]], "in another order"),
            ("ij->ji", &[&[m, n]], "transpose"),
            ("ba", &[&[m, n]], "implied transpose"),
            ("ij->ij", &[&[m, n]], "unchanged"),
            ("abc->cab", &[&[2, 3, 2]], ""),
            ("ii->", &[&[n, n]], "trace"),
            ("ii", &[&[n, n]], "implied trace"),
            ("ii->i", &[&[n, n]], "diagonal"),
            ("bii->bi", &[&[2, n, n]], "diagonals"),
            ("iji->ji", &[&[3, 2, 3]], "diagonal over axes apart"),
            ("iii->i", &[&[3, 3, 3]], "thrice"),
            ("iijj->ij", &[&[2, 2, 3, 3]], "two diagonals"),
            ("ii,ij->j", &[&[n, n], &[n, 2]], "diagonal, then product"),
            ("ij,jj->i", &[&[2, n], &[n, n]], ""),
            ("ij->i", &[&[m, n]], "row sums"),
            ("ij->j", &[&[m, n]], "column sums"),
            ("ij->", &[&[m, n]], "sum"),
            ("ij,k->i", &[&[m, n], &[k]], "free indices of both are summed first"),
            ("ij,jk->", &[&[m, k], &[k, n]], "to a scalar"),
            ("i,i->", &[&[n], &[n]], "dot"),
            ("i,i", &[&[n], &[n]], "implied dot"),
            ("i,j->ij", &[&[m], &[n]], "outer"),
            ("bi,bj->bij", &[&[2, m], &[2, n]], "batched outer"),
            ("i,i->i", &[&[n], &[n]], "elementwise"),
            ("ij,ji->ij", &[&[m, n], &[n, m]], "elementwise with a transpose"),
            ("ij,j->ij", &[&[m, n], &[n]], "scaled columns"),
            ("i,ij->ij", &[&[m], &[m, n]], "scaled rows, small operand first"),
            (",ij->ij", &[&[], &[m, n]], "scalar times matrix"),
            (",->", &[&[], &[]], "scalars"),
            ("", &[&[]], "one scalar"),
            ("bi,bi->b", &[&[3, k], &[3, k]], "row dots"),
            ("i,ij,j->", &[&[m], &[m, n], &[n]], "bilinear form"),
            ("bi,oij,bj->bo", &[&[2, m], &[2, m, n], &[2, n]], "bilinear layer"),
            ("ij,jk,kl->il", &[&[2, m], &[m, 2], &[2, n]], "chain"),
            ("i,i,i,i->i", &[&[3], &[3], &[3], &[3]], "index that all operands share, kept"),
            ("i,i,i,i->", &[&[3], &[3], &[3], &[3]], "and summed in the last product"),
            ("...ij,...jk->...ik", &[&[2, 1, m, k], &[3, k, n]], "ellipsis broadcasts both ways"),
            ("...ij->...ji", &[&[2, m, n]], ""),
            ("i...,i...", &[&[m, 2], &[m, 1]], "implied output begins with the ellipsis"),
            ("i...j->j", &[&[m, 2, n]], "ellipsis summed"),
            ("...,...->", &[&[2, 1], &[1, 3]], "broadcast axes summed"),
            ("i...->i", &[&[m, 2, 3]], "an ellipsis that the output leaves out is summed"),
            ("...->", &[&[2, m, n]], "all of it"),
            ("...ij->ij", &[&[2, m, n]], "in front"),
            ("...ij->ji", &[&[2, 1, m, n]], "two axes, one of extent 1"),
            ("...k,...k->", &[&[2, m, k], &[2, m, k]], "of both operands"),
            ("...k,...k->k", &[&[2, m, k], &[1, k]], "broadcast, then summed"),
            ("ij,...->ij", &[&[4, 2], &[1]], "an extent of 1 alone"),
            ("ij,...->ij", &[&[m, n], &[3, 2]], "of one operand alone: its total scales the other"),
            ("...i,...j->ij", &[&[2, 3, m], &[3, n]], "of different ranks"),
            ("...ii->i", &[&[2, n, n]], "beside a diagonal"),
            ("b...,b...,b...->b", &[&[2, 3], &[2, 1], &[2, 3]], "of three operands"),
            ("...a,...b,...->ba", &[&[2, m], &[2, n], &[3, 2]], "of one that has nothing else"),
            ("a ... , ... b -> b ... a", &[&[m], &[2, n]], "spaces; no axes for one ellipsis"),
        ];
        let mut out = Vec::new();
        for (equation, shapes, note) in cases {
            out.push(Sample::check(of(equation), shapes.iter().map(|&s| g.normal(s)).collect::<Vec<Input>>()).note(note));
        }
        let empty: [(&str, &[&[usize]], &'static str); 9] = [
            ("ij,jk->ik", &[&[2, 0], &[0, 3]], "empty sum: zeros"),
            ("ij,jk->ik", &[&[0, 2], &[2, 3]], "no rows"),
            ("bij,bjk->bik", &[&[0, 2, 2], &[0, 2, 2]], "no batches"),
            ("ii->", &[&[0, 0]], "empty trace: zero"),
            ("i,j->ij", &[&[0], &[3]], "empty outer"),
            ("ij->j", &[&[0, 3]], "empty sum"),
            ("...i->i", &[&[0, 3]], "empty ellipsis summed"),
            ("i,i,j->j", &[&[0], &[0], &[2]], "zero scales the rest"),
            ("...i,...i->...", &[&[0, 2], &[1, 2]], "ellipsis of extent 1 meets 0"),
        ];
        for (equation, shapes, note) in empty {
            out.push(Sample::check(of(equation), shapes.iter().map(|&s| g.normal(s)).collect::<Vec<Input>>()).note(note));
        }
        out.push(Sample::value(of("bqhd,bkhd->bhqk"), [g.normal([2, 9, 3, 17]), g.normal([2, 11, 3, 17])]).note("beyond the tile sizes"));
        out.push(Sample::value(of("ij->j"), [g.normal([300, 40])]));
        let bad: [(&str, &[&[usize]], ErrorKind); 21] = [
            ("ij,jk->ik", &[&[2, 3], &[4, 5]], ErrorKind::Shape),
            ("ij,jk->ik", &[&[2, 1], &[4, 5]], ErrorKind::Shape),
            ("ii->i", &[&[2, 3]], ErrorKind::Shape),
            ("ijk->i", &[&[2, 3]], ErrorKind::Shape),
            ("i->i", &[&[2, 3]], ErrorKind::Shape),
            ("...ijk->i", &[&[2, 3]], ErrorKind::Shape),
            ("...i,...i->...", &[&[2, 3], &[4, 3]], ErrorKind::Shape),
            (",i->i", &[&[2], &[2]], ErrorKind::Shape),
            ("ij,jk->ik", &[&[2, 3]], ErrorKind::Argument),
            ("ij->ij", &[&[2, 3], &[2, 3]], ErrorKind::Argument),
            ("i->i", &[], ErrorKind::Argument),
            ("ij->ik", &[&[2, 3]], ErrorKind::Argument),
            ("ij->iji", &[&[2, 3]], ErrorKind::Argument),
            ("i1->i", &[&[2, 3]], ErrorKind::Argument),
            ("iä->i", &[&[2, 3]], ErrorKind::Argument),
            ("i..->i", &[&[2, 3]], ErrorKind::Argument),
            ("...i...->i", &[&[2, 3]], ErrorKind::Argument),
            ("ij->...ij", &[&[2, 3]], ErrorKind::Argument),
            ("ij->i->j", &[&[2, 3]], ErrorKind::Argument),
            ("ij-i", &[&[2, 3]], ErrorKind::Argument),
            ("ij->i,j", &[&[2, 3]], ErrorKind::Argument),
        ];
        for (equation, shapes, kind) in bad {
            out.push(Sample::reject(of(equation), shapes.iter().map(|&s| g.normal(s)).collect::<Vec<Input>>(), kind));
        }
        out.push(Sample::reject(of("i,i->i"), [g.normal([2]), g.normal([2]).of_dtype(crate::F64)], ErrorKind::Dtype));
        out.push(Sample::reject(of("ij->ji"), [g.below(crate::I64, [2, 2], 3)], ErrorKind::Dtype));
        out.push(Sample::bench(of("bqhd,bkhd->bhqk"), [g.normal([8, 256, 6, 64]), g.normal([8, 256, 6, 64])]));
        out.push(Sample::bench(of("bti,oi->bto"), [g.normal([8, 256, 384]), g.normal([384, 384])]));
        out
    }
}

impl Composite for Einsum {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let plan = Plan::new(&self.0, &x.iter().map(|t| t.shape()).collect::<Vec<_>>())?;
        expect::same_float(&x.iter().map(|t| Spec::new(t.shape(), t.dtype())).collect::<Vec<_>>())?;
        let varying: Vec<Vec<Index>> = x.iter().zip(&plan.operands).map(|(t, of)| plan.varying(of, t.shape())).collect();
        // Whether the output or an operand after `done` needs an index.
        let later = |i: Index, done: usize| plan.output.contains(&i) || varying[done + 1..].iter().any(|of| of.contains(&i));
        let mut acc: Option<Named> = None;
        for (k, (&t, of)) in x.iter().zip(&plan.operands).enumerate() {
            let earlier = |i: Index| acc.as_ref().is_some_and(|a| a.of.contains(&i));
            let next = Named::operand(t, of, &plan, |i| later(i, k) || earlier(i))?;
            acc = Some(match acc.take() {
                None => next,
                Some(a) => a.contract(next, &plan, |i| later(i, k))?,
            });
        }
        let Some(y) = acc else { bail!(argument, "at least one operand is needed") };
        Ok(smallvec![y.ordered(plan.output.clone())?.x])
    }
}

impl Tensor {
    /// Sum of products over named indices: `Tensor::einsum("bij,bjk->bik", &[&a, &b])` is a batched matrix product.
    ///
    /// Each operand's axes are named by letters, the operands separated by commas. An index that is not after `->` is
    /// summed; one that occurs twice in an operand takes its diagonal: `"ii->"` is the trace. Without `->` the output has
    /// the indices that occur only once, in alphabetical order. `...` means any further axes, which broadcast; without
    /// `->` they come first, and after `->` they are summed unless `...` is there too. Spaces do not count.
    ///
    /// Operands are combined from left to right: with three or more, put first what makes the product small.
    ///
    /// ```
    /// use cotangent::{Tape, Tensor};
    /// let tape = Tape::new();
    /// let x = tape.watch(&Tensor::from_slice(&[1f64, 2.], [2])?)?;
    /// let w = tape.watch(&Tensor::from_slice(&[3f64, 4., 5., 6., 7., 8.], [2, 3])?)?;
    /// let y = Tensor::from_slice(&[1f64, 0., -1.], [3])?;
    /// let form = Tensor::einsum("i,ij,j->", &[&x, &w, &y])?;
    /// assert_eq!(form.item()?, -6.0);
    /// let grads = tape.backward(&form)?;
    /// assert_eq!(grads.get(&x)?.to_vec::<f64>()?, [-2., -2.]);
    /// assert_eq!(grads.get(&w)?.to_vec::<f64>()?, [1., 0., -1., 2., 0., -2.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// Of an operand: the same sum with `ȳ` in its place. Made of [`Tensor::diagonal`], [`Tensor::sum`], [`Tensor::matmul`],
    /// [`Tensor::mul`] and views; the products save the factors whose partner is wanted.
    ///
    /// # Shapes
    /// An index has one extent everywhere; only axes of `...` broadcast.
    ///
    /// # Numerics
    /// Indices that a single operand has alone are summed before products. Products of half types accumulate in f32 and
    /// round once per operand.
    ///
    /// # Errors
    /// Argument error for a character that is no index, an output index that no operand has or that occurs twice, and a
    /// wrong number of operands; shape error when a rank does not fit or the extents of an index differ; dtype error unless
    /// all operands have the same float type.
    #[doc(alias = "tensordot")]
    #[track_caller]
    pub fn einsum(equation: &str, operands: &[impl AsRef<Tensor>]) -> Result<Tensor> {
        compose1(Einsum(equation.into()), &crate::ops::shape::concat::refs(operands)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(equation: &str, shapes: &[&[usize]]) -> Result<Plan> {
        let shapes: Vec<Shape> = shapes.iter().map(|&s| s.into()).collect();
        Plan::new(equation, &shapes.iter().collect::<Vec<_>>())
    }

    #[test]
    fn equations_name_axes() {
        let code = |s: &str| s.bytes().map(usize::from).collect::<Vec<_>>();
        let p = plan("ba, cb", &[&[3, 2], &[4, 3]]).unwrap();
        assert_eq!((p.operands, p.output), (vec![code("ba"), code("cb")], code("ac")));
        let p = plan("i...,...jB", &[&[2, 1, 5], &[4, 5, 7, 8]]).unwrap();
        assert_eq!(p.operands[0], [105, ELLIPSIS + 1, ELLIPSIS]);
        // Capitals come first, as in NumPy.
        assert_eq!(p.output, [ELLIPSIS + 1, ELLIPSIS, 66, 105, 106]);
        assert_eq!(p.shape(&p.output), [4, 5, 8, 2, 7]);
    }

    // Numbers worked out by hand; those of PyTorch are in tests/ops/user_numbers.rs.
    #[test]
    fn known_values() {
        let a = Tensor::from_slice(&[1f64, 2.0, 3.0, 4.0], [2, 2]).unwrap();
        let b = Tensor::from_slice(&[5f64, 6.0, 7.0, 8.0], [2, 2]).unwrap();
        let e = |equation: &str, x: &[&Tensor]| Tensor::einsum(equation, x).unwrap().to_vec::<f64>().unwrap();
        assert_eq!(e("ij,jk->ik", &[&a, &b]), [19.0, 22.0, 43.0, 50.0]);
        assert_eq!(e("ij,kj->ki", &[&a, &b]), [17.0, 39.0, 23.0, 53.0]);
        assert_eq!(e("ij,ij->", &[&a, &b]), [70.0]);
        assert_eq!(e("ij,ij->j", &[&a, &b]), [26.0, 44.0]);
        assert_eq!(e("ii", &[&a]), [5.0]);
        assert_eq!(e("ii,i...->...", &[&a, &b]), [33.0, 38.0]);
        assert_eq!(e("ij,kl->", &[&a, &b]), [260.0]);
        assert_eq!(e("ba", &[&a]), [1.0, 3.0, 2.0, 4.0]);
    }

    #[test]
    fn messages_show_what_differs() {
        let a = Tensor::from_slice(&[0f32; 6], [2, 3]).unwrap();
        let b = Tensor::from_slice(&[0f32; 8], [4, 2]).unwrap();
        let e = Tensor::einsum("ij,jk->ik", &[&a, &b]).unwrap_err().to_string();
        let want = "einsum: extents differ for index j: operand 0 [2, 3], operand 1 [4, 2] (3 vs 4) in \"ij,jk->ik\" (at src/ops/linalg/einsum.rs:";
        assert!(e.starts_with(want), "{e}");
    }
}
