//! Calls every public method of `Tensor`, layers, optimizers, layouts and data with random shapes, layouts, dtypes and arguments,
//! absurd ones among them, in every context of the tape. Nothing may panic, and gradients have the shape and dtype of what they
//! are of; values are checked by other tests.
//!
//! `COTANGENT_FUZZ_CALLS=200000 COTANGENT_FUZZ_SEED=7 cargo test --all-features --test main api_fuzz -- --nocapture` makes more calls;
//! a failure names the call, and `COTANGENT_FUZZ_ONLY=number` makes that one alone. The calls are made in a process of their own
//! with limited address space, so that absurd sizes fail at once.

mod modules;
mod table;

use crate::say;
use cotangent::{
    BF16, DType, Error, F16, F32, F64, I64, Key, Result, Tape, Tensor, U8, U32, checkpoint, grad, hvp, jacobian, jvp, value_and_grad, vjp,
};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// A function of tensors: the call under test.
pub(super) type Call = Arc<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync>;

/// Random choices of one call.
pub(super) struct Pick {
    key: Key,
    drawn: u64,
}

impl Pick {
    fn new(seed: u64, call: u64) -> Self {
        Pick { key: Key::new(seed).fold(call), drawn: 0 }
    }

    /// A number below `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.drawn += 1;
        self.key.below(self.drawn, n.max(1) as u64) as usize
    }

    pub(super) fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// True once in `n` times.
    pub(super) fn rarely(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(super) fn key(&mut self) -> Key {
        self.drawn += 1;
        self.key.fold(self.drawn)
    }

    /// A size: mostly small, sometimes at the end of a type.
    pub(super) fn size(&mut self) -> usize {
        if self.rarely(12) {
            return self.one(&[1 << 11, 1 << 31, (1 << 32) + 1, 1 << 40, isize::MAX as usize, usize::MAX - 1, usize::MAX]);
        }
        self.one(&[0, 1, 1, 2, 2, 3, 4, 5, 7, 8, 16, 33])
    }

    pub(super) fn whole(&mut self) -> isize {
        if self.rarely(12) {
            return self.one(&[isize::MIN, isize::MIN + 1, -(1 << 40), 1 << 40, isize::MAX - 1, isize::MAX]);
        }
        self.below(13) as isize - 6
    }

    /// An axis: mostly one that exists.
    pub(super) fn axis(&mut self, rank: usize) -> isize {
        if rank == 0 || self.rarely(20) {
            return self.whole();
        }
        self.below(2 * rank) as isize - rank as isize
    }

    /// Some axes, mostly different ones.
    pub(super) fn axes(&mut self, rank: usize) -> Vec<isize> {
        let n = self.below(rank + 1);
        let mut out: Vec<isize> = Vec::new();
        for _ in 0..n {
            let a = self.axis(rank);
            if self.rarely(20) || !out.iter().any(|b| b.rem_euclid(rank.max(1) as isize) == a.rem_euclid(rank.max(1) as isize)) {
                out.push(a);
            }
        }
        out
    }

    pub(super) fn number(&mut self) -> f64 {
        if self.rarely(10) {
            return self.one(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, 1e-320, -0.0, 1e40, 65_536.0]);
        }
        self.one(&[0.0, 1.0, -1.0, 0.5, 2.0, -3.25, 1e-5, 0.9])
    }

    pub(super) fn float(&mut self) -> DType {
        self.one(&[F32, F32, F32, F64, F64, BF16, F16])
    }

    pub(super) fn dtype(&mut self) -> DType {
        if self.rarely(4) { self.one(&[I64, U32, U8]) } else { self.float() }
    }

    pub(super) fn extents(&mut self) -> Vec<usize> {
        let rank = self.one(&[0, 1, 1, 2, 2, 2, 3, 3, 4, 5]);
        (0..rank).map(|_| self.one(&[0, 1, 1, 2, 2, 3, 3, 4, 5, 7, 8, 17])).collect()
    }

    /// Like `shape`, or what broadcasts with it, or something else.
    pub(super) fn near(&mut self, shape: &[usize]) -> Vec<usize> {
        match self.below(8) {
            0 => self.extents(),
            1 => shape.iter().map(|&d| if self.rarely(2) { 1 } else { d }).collect(),
            2 => shape[self.below(shape.len() + 1)..].to_vec(),
            3 => std::iter::once(2).chain(shape.iter().copied()).collect(),
            _ => shape.to_vec(),
        }
    }

    /// A tensor of these extents in a random layout.
    pub(super) fn tensor(&mut self, shape: &[usize], dtype: DType) -> Tensor {
        self.laid_out(shape, dtype, None)
    }

    /// Values where they are few; else zeros, which take no memory.
    pub(super) fn of_any_size(&mut self, shape: &[usize], dtype: DType) -> Tensor {
        let few = shape.iter().map(|&d| d as f64).product::<f64>() < 1e6;
        if few { self.tensor(shape, dtype) } else { Tensor::zeros(shape, dtype).unwrap() }
    }

    /// Integers below `limit`, now and then outside.
    pub(super) fn ids(&mut self, shape: &[usize], limit: usize) -> Tensor {
        let dtype = self.one(&[I64, I64, I64, U32, U8]);
        self.laid_out(shape, dtype, Some(limit))
    }

    pub(super) fn ids_of(&mut self, dtype: DType, shape: &[usize], limit: usize) -> Tensor {
        self.laid_out(shape, dtype, Some(limit))
    }

    pub(super) fn mask(&mut self, shape: &[usize]) -> Tensor {
        let dtype = if self.rarely(20) { self.dtype() } else { U8 };
        self.laid_out(shape, dtype, Some(2))
    }

    fn laid_out(&mut self, shape: &[usize], dtype: DType, limit: Option<usize>) -> Tensor {
        let kind = self.below(8);
        let mut large = shape.to_vec();
        let axis = if large.is_empty() { 0 } else { self.below(large.len()) };
        if !large.is_empty() && (kind == 1 || kind == 2) {
            large[axis] = large[axis].saturating_mul(kind).saturating_add(1);
        }
        let many = |shape: &[usize]| shape.iter().fold(1usize, |n, &d| n.saturating_mul(d)) > 1 << 16;
        // A large shape beside an extent of 0 has no elements; what it is cut from has.
        if many(shape) || many(&large) {
            // The shape of a large tensor without memory: another one.
            let other = Tensor::full(shape, if limit == Some(0) { 0.0 } else { 1.0 }, dtype);
            return other.or_else(|_| Tensor::full([1], 0.0, dtype)).unwrap();
        }
        if kind == 0 {
            // One value everywhere, also in shapes that no memory holds.
            let mut shape = shape.to_vec();
            if self.rarely(4)
                && let Some(d) = shape.first_mut()
            {
                *d = self.one(&[1 << 11, 1 << 33, 1 << 40, 1 << 50]);
            }
            if let Ok(t) = Tensor::full(shape, if limit == Some(0) { 0.0 } else { 1.0 }, dtype) {
                return t;
            }
        }
        let t = self.values(&large, dtype, limit);
        let rank = large.len();
        let made = match kind {
            1 if rank > 0 => t.narrow(axis, 1, shape[axis]),
            2 if rank > 0 => t.slice_step(axis, .., 2).and_then(|t| t.narrow(axis, 0, shape[axis])),
            3 if rank > 1 => {
                // Transposed in memory.
                let order: Vec<usize> = (0..rank).rev().collect();
                let turned = t.permute(&order[..]).and_then(|t| t.contiguous());
                turned.and_then(|t| t.permute(&order[..]))
            }
            4 if rank > 0 && shape[axis] > 0 => t.narrow(axis, 0, 1).and_then(|t| t.expand(shape)),
            _ => Ok(t),
        };
        let made = made.unwrap();
        assert_eq!(made.shape(), shape);
        made
    }

    fn values(&mut self, shape: &[usize], dtype: DType, limit: Option<usize>) -> Tensor {
        let n: usize = shape.iter().product();
        let strange = self.rarely(8);
        let values: Vec<f64> = (0..n)
            .map(|_| {
                self.drawn += 1;
                if let Some(limit) = limit {
                    let out = strange && self.rarely(16);
                    return if out { self.one(&[-1.0, -100.0, limit as f64, 1e9, 255.0]) } else { self.below(limit) as f64 };
                }
                if strange && self.rarely(4) {
                    return self.one(&[0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e30, -1e30, 1e-42, 1e-310]);
                }
                self.key.normal(self.drawn)
            })
            .collect();
        // Casts saturate: every dtype holds something.
        Tensor::from_vec(values, shape).unwrap().cast(dtype).unwrap()
    }
}

/// The sum of all float results: something to differentiate.
fn total(outputs: &[Tensor]) -> Result<Tensor> {
    let mut sum = None::<Tensor>;
    for y in outputs.iter().filter(|y| y.dtype().is_float()) {
        let s = y.cast(F64)?.sum(..)?;
        sum = Some(match sum {
            None => s,
            Some(t) => t.add(&s)?,
        });
    }
    sum.map_or_else(|| Tensor::scalar(0f64), Ok)
}

/// Floats that are differentiated, and where they stand among all operands.
fn parameters(x: &[Tensor]) -> (Vec<Tensor>, Vec<usize>) {
    let places: Vec<usize> = (0..x.len()).filter(|&i| x[i].dtype().is_float()).collect();
    (places.iter().map(|&i| x[i].clone()).collect(), places)
}

fn with(x: &[Tensor], places: &[usize], p: &[Tensor]) -> Vec<Tensor> {
    let mut all = x.to_vec();
    for (&i, p) in places.iter().zip(p) {
        all[i] = p.clone();
    }
    all
}

const CONTEXTS: [&str; 11] = ["plain", "plain", "plain", "grad", "grad", "grad of grad", "checkpoint", "vjp", "jvp", "hvp", "jacobian"];

/// A refusal begins with the name of the method that was called; `_keep` and `_with` are options of the one without.
fn says_its_name(method: &str, e: &Error) {
    let plain = method.trim_end_matches("_keepdim").trim_end_matches("_with");
    let known = table::NAMED.iter().find(|(m, _)| *m == method).map_or(&[][..], |(_, names)| *names);
    let op = e.op().unwrap_or_default();
    assert!(op == method || op == plain || known.contains(&op), "its refusal is called `{op}`: {e}");
}

/// Runs a call in a context; panics where a promise is broken.
fn run(context: &str, name: &str, x: &[Tensor], f: &Call, g: &mut Pick) -> Result<()> {
    let (p, places) = parameters(x);
    let same = |grads: &[Tensor]| {
        assert_eq!(grads.len(), p.len());
        for (g, p) in grads.iter().zip(&p) {
            assert_eq!((g.shape(), g.dtype()), (p.shape(), p.dtype()), "a gradient of another shape or dtype");
        }
    };
    let of = |p: &Vec<Tensor>| f(&with(x, &places, p));
    match context {
        "plain" => {
            let y = f(x).inspect_err(|e| says_its_name(name, e))?;
            for y in &y {
                // Layouts of results lie inside of their storage.
                assert!(y.layout().end().is_some());
                if y.numel() <= 64 {
                    assert_eq!(y.to_f64_vec()?.len(), y.numel());
                    assert!(!y.to_string().is_empty());
                }
            }
        }
        "grad" => same(&value_and_grad(&p, |p| total(&of(p)?))?.1),
        "grad of grad" => {
            let twice = grad(&p, |p| {
                let first = grad(p, |q| total(&of(q)?))?;
                total(&first.iter().map(Tensor::square).collect::<Result<Vec<_>>>()?)
            })?;
            same(&twice);
        }
        "checkpoint" => {
            let tape = Tape::new();
            let watched = p.iter().map(|t| tape.watch(&t.detach())).collect::<Result<Vec<_>>>()?;
            let (all, f) = (with(x, &places, &watched), Arc::clone(f));
            let y = checkpoint(&all.iter().collect::<Vec<_>>(), move |x| f(x))?;
            let loss = total(&y)?;
            let found = tape.backward(&loss)?;
            for (w, p) in watched.iter().zip(&p) {
                if let Ok(g) = found.get(w) {
                    assert_eq!((g.shape(), g.dtype()), (p.shape(), p.dtype()), "a gradient of another shape or dtype");
                }
            }
        }
        "vjp" => {
            let back = vjp(&p, |p| of(p))?;
            let mut bars = Vec::new();
            for y in &back.value {
                let wrong = g.rarely(6);
                bars.push(if wrong { Tensor::ones([3], F32)? } else { y.ones_like()? });
            }
            same(&back.pull(&bars)?);
        }
        "jvp" => {
            let dots = p.iter().map(|t| if g.rarely(10) { Tensor::ones([2], F64) } else { t.ones_like() }).collect::<Result<Vec<_>>>()?;
            let (y, y_dot) = jvp(&p, &dots, |p| of(p))?;
            assert_eq!(y.len(), y_dot.len());
        }
        "hvp" => {
            let v = p.iter().map(Tensor::ones_like).collect::<Result<Vec<_>>>()?;
            same(&hvp(&p, &v, |p| total(&of(p)?))?.1);
        }
        _ => {
            let j = jacobian(&p, |p| {
                let y = total(&of(p)?)?;
                Tensor::stack(&[&y, &y], 0)
            })?;
            for (j, p) in j.iter().zip(&p) {
                assert_eq!(&j.shape()[1..], &p.shape()[..], "a Jacobian of another shape");
            }
        }
    }
    Ok(())
}

/// What the calls came to, by entry: Ok and Err.
type Tally = BTreeMap<&'static str, [u64; 2]>;

/// One call; the panic's message if there was one.
fn one(seed: u64, call: u64, tally: &mut Tally) -> std::result::Result<(), String> {
    let mut g = Pick::new(seed, call);
    let entries = table::TABLE.len() + modules::MODULES.len();
    // In turn, so that each has its share.
    let which = (call % entries as u64) as usize;
    let mut context = "";
    let (name, result) = if let Some((name, make)) = table::TABLE.get(which) {
        context = g.one(&CONTEXTS);
        let run_it = || {
            let (x, f) = make(&mut g);
            run(context, name, &x, &f, &mut g)
        };
        (*name, catch_unwind(AssertUnwindSafe(run_it)))
    } else {
        let (name, make) = &modules::MODULES[which - table::TABLE.len()];
        (*name, catch_unwind(AssertUnwindSafe(|| make(&mut g))))
    };
    match result {
        Ok(r) => {
            tally.entry(name).or_default()[usize::from(r.is_err())] += 1;
            Ok(())
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(format!("call {call} of seed {seed}, `{name}` {context}: {}", text.unwrap_or_default()))
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{name} is not a number: {v}")))
}

#[test]
fn no_call_panics() {
    const CHILD: &str = "COTANGENT_FUZZ_CHILD";
    if std::env::var_os(CHILD).is_none() {
        // 2000 MiB: absurd sizes fail at once, and a machine is not filled.
        let exe = std::env::current_exe().unwrap();
        let child = std::process::Command::new("sh")
            .args(["-c", "ulimit -v 2048000; exec \"$@\"", "sh"])
            .arg(exe)
            .args(["--exact", "engine::api_fuzz::no_call_panics", "--nocapture"])
            .envs([(CHILD, "1"), ("RAYON_NUM_THREADS", "2")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        let ended = said.contains("1 passed") && child.status.success();
        assert!(ended, "{}\n{said}\n{}", child.status, String::from_utf8_lossy(&child.stderr));
        said.lines().filter(|l| l.starts_with("api_fuzz")).for_each(say);
        return;
    }
    let (calls, seed) = (number("COTANGENT_FUZZ_CALLS", 20_000), number("COTANGENT_FUZZ_SEED", 1));
    let only = std::env::var("COTANGENT_FUZZ_ONLY").ok().map(|_| number("COTANGENT_FUZZ_ONLY", 0));
    say(&format!("api_fuzz: {calls} calls of seed {seed}"));
    // Failures are collected; their messages come at the end.
    if only.is_none() {
        std::panic::set_hook(Box::new(|_| ()));
    }
    let (mut tally, mut failures) = (Tally::new(), Vec::new());
    let mut slowest = (std::time::Duration::ZERO, 0);
    for call in only.map_or(0..calls, |c| c..c + 1) {
        let start = std::time::Instant::now();
        if let Err(e) = one(seed, call, &mut tally) {
            failures.push(e);
        }
        slowest = slowest.max((start.elapsed(), call));
    }
    let _ = std::panic::take_hook();
    let sum = |i: usize| tally.values().map(|t| t[i]).sum::<u64>();
    say(&format!(
        "api_fuzz: {} Ok, {} Err, {} panics in {} entries; the slowest call, {}, took {:.1?}",
        sum(0),
        sum(1),
        failures.len(),
        tally.len(),
        slowest.1,
        slowest.0
    ));
    assert!(failures.is_empty(), "{} panics:\n{}", failures.len(), failures[..failures.len().min(40)].join("\n"));
    // An entry that never succeeds tests nothing but its refusals.
    if only.is_none() && calls >= 20_000 {
        let never: Vec<_> = tally.iter().filter(|(_, t)| t[0] == 0).map(|(n, _)| *n).collect();
        assert!(never.is_empty(), "never Ok: {never:?}");
    }
}

/// Public methods of `Tensor` in the sources, those that macros write included.
fn public_methods() -> BTreeSet<String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut folders) = (Vec::new(), vec![root]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    let mut out = BTreeSet::new();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "rs")) {
        let source = std::fs::read_to_string(file).unwrap();
        let mut inside = None::<usize>;
        for line in source.lines() {
            let indent = line.len() - line.trim_start().len();
            let text = line.trim_start();
            if text.starts_with("impl Tensor {") {
                inside = Some(indent);
            } else if inside == Some(indent) && text == "}" {
                inside = None;
            } else if inside.is_some()
                && let Some(rest) = text.strip_prefix("pub fn ")
            {
                out.insert(rest.split(['(', '<']).next().unwrap().to_owned());
            }
        }
        // `methods! { … any, any_keepdim, …; }` and `reduction_method!(… max, max_keepdim … => …)`.
        for name in ["methods! {", "reduction_method! {", "reduction_method!("] {
            for (at, _) in source.match_indices(name).filter(|(at, _)| !source[..*at].ends_with("macro_rules! ")) {
                let rest = &source[at + name.len()..];
                let end = rest.find(if name.ends_with('(') { "\n);" } else { "\n}" }).unwrap_or(rest.len());
                for line in rest[..end].lines().filter(|l| !l.trim_start().starts_with("//")) {
                    let line = line.split("=>").next().unwrap();
                    let line = line.rsplit('"').next().unwrap();
                    out.extend(
                        line.split(',')
                            .map(|w| w.split(':').next().unwrap().trim().trim_end_matches(';'))
                            .filter(|w| is_method(w))
                            .map(str::to_owned),
                    );
                }
            }
        }
    }
    out.retain(|n| !n.starts_with('$'));
    out
}

fn is_method(word: &str) -> bool {
    !["", "true", "false", "ddof", "p", "correction", "f64", "usize"].contains(&word)
        && word.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
}

#[test]
fn every_public_method_of_tensor_is_in_the_table() {
    let known: BTreeSet<&str> = table::TABLE.iter().map(|(n, _)| *n).chain(table::ELSEWHERE.iter().map(|(n, _)| *n)).collect();
    let methods = public_methods();
    assert!(methods.len() > 150, "only {} methods were found: {methods:?}", methods.len());
    let missing: Vec<&String> = methods.iter().filter(|m| !known.contains(m.as_str())).collect();
    assert!(missing.is_empty(), "add to tests/engine/api_fuzz/table.rs: {missing:?}");
    let gone: Vec<&&str> = known.iter().filter(|n| !methods.contains(**n)).collect();
    assert!(gone.is_empty(), "no methods of Tensor any more: {gone:?}");
}
