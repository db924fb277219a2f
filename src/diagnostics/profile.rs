//! Where time and memory go: by op and by module, forward and backward.

use super::modules;
use crate::error::Result;
use crate::memory;
use crate::module::Module;
use crate::tape::{Observer, Pulled, Ran};
use crate::tensor::Tensor;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One recorded op of a [`Profile`].
#[derive(Clone, Debug)]
pub struct OpTime {
    /// Its name.
    pub op: &'static str,
    /// The line that called it, as `file:line`.
    pub at: String,
    /// The module it belongs to: whose parameter it takes; without one, the closest module that holds both the one before
    /// and the one after it.
    pub module: String,
    /// When its forward pass began, from the start of the profile.
    pub began: Duration,
    /// Time of the forward pass; zero for views.
    pub forward: Duration,
    /// When its derivative began.
    pub back_began: Option<Duration>,
    /// Time of its derivative; zero when none was taken.
    pub backward: Duration,
    /// Bytes kept for the derivative; memory that nodes share counts each time.
    pub saved: usize,
    /// Bytes of its results; zero for views.
    pub output: usize,
}

/// Totals of ops that have something in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Total {
    /// How many ops.
    pub calls: usize,
    /// Forward time.
    pub forward: Duration,
    /// Backward time.
    pub backward: Duration,
    /// Bytes kept for derivatives.
    pub saved: usize,
    /// Bytes of results.
    pub output: usize,
}

/// Where the time and memory of a step went; prints as two tables.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// The ops in the order in which they ran.
    pub ops: Vec<OpTime>,
}

/// Records a [`Profile`] inside a gradient function.
///
/// Waits for the device after every op, so on a GPU the sum is longer than an unobserved step; the shares are right. Ops on
/// untracked tensors are not seen, and a checkpointed function counts as one op.
///
/// ```
/// use cotangent::{diagnostics::Profiler, nn::Linear, value_and_grad, Key, Tensor, F32};
/// let layers = vec![Linear::new(8, 8, F32, Key::new(1))?, Linear::new(8, 1, F32, Key::new(2))?];
/// let x = Tensor::ones([4, 8], F32)?;
/// let profiler = Profiler::new();
/// value_and_grad(&layers, |m| {
///     profiler.attach(m)?;
///     m[1].forward(&m[0].forward(&x)?.tanh()?)?.mean(..)
/// })?;
/// let profile = profiler.finish();
/// assert_eq!(profile.by_op()["linear"].calls, 2);
/// println!("{profile}");
/// let _for_chrome_tracing_or_perfetto = profile.chrome_trace()?;
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone)]
pub struct Profiler(Arc<Mutex<State>>);

struct State {
    start: Instant,
    ops: Vec<OpTime>,
    by_node: HashMap<usize, usize>,
}

impl Default for Profiler {
    fn default() -> Self {
        Self::new()
    }
}

impl Profiler {
    /// A profiler whose clock starts now.
    pub fn new() -> Self {
        Profiler(Arc::new(Mutex::new(State { start: Instant::now(), ops: Vec::new(), by_node: HashMap::new() })))
    }

    /// Measures what is computed from a model's parameters from now on, and the sweep over it.
    ///
    /// # Errors
    /// Tape error when no tape tracks the model.
    #[track_caller]
    pub fn attach<M: Module + Clone>(&self, model: &M) -> Result<()> {
        super::observe(model, Arc::new(self.clone()))
    }

    /// What was measured; the profiler is empty afterwards.
    pub fn finish(&self) -> Profile {
        let mut s = self.state();
        s.by_node.clear();
        let mut ops = std::mem::take(&mut s.ops);
        place_between(&mut ops);
        Profile { ops }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes(t: &Tensor) -> usize {
    t.numel() * t.dtype().size()
}

impl Observer for Profiler {
    fn ran(&self, op: &Ran<'_>) -> Result<()> {
        let mut s = self.state();
        let began = op.began.saturating_duration_since(s.start);
        let (node, place) = (op.node, s.ops.len());
        let (at, module) = (format!("{}:{}", op.at.file(), op.at.line()), modules::of(op).unwrap_or_default());
        // A text may be set in for the module that ran before and after.
        memory::small(at.len() + module.len().max(64))?;
        memory::grow(&mut s.ops, 1)?;
        memory::insert(&mut s.by_node, node, place)?;
        s.ops.push(OpTime {
            op: op.name,
            at,
            module,
            began,
            forward: op.time,
            back_began: None,
            backward: Duration::ZERO,
            saved: op.saved_bytes,
            // A view has its operand's memory.
            output: op.outputs.iter().filter(|y| !op.inputs.iter().any(|x| x.shares_storage(y))).map(bytes).sum(),
        });
        Ok(())
    }

    fn pulled(&self, op: &Pulled<'_>) -> Result<()> {
        let mut s = self.state();
        let began = op.began.saturating_duration_since(s.start);
        if let Some(&i) = s.by_node.get(&op.node) {
            s.ops[i].back_began = Some(began);
            s.ops[i].backward += op.time;
        }
        Ok(())
    }

    fn tapped(&self, _: &str, _: &Tensor) {}
}

/// Ops without parameters get the closest module that holds the modules before and after them.
fn place_between(ops: &mut [OpTime]) {
    let mut start = 0;
    while start < ops.len() {
        // A stretch without modules ends where one is known, and so does what precedes it.
        let len = ops[start..].iter().take_while(|o| o.module.is_empty()).count();
        let (before, rest) = ops.split_at_mut(start);
        let (stretch, after) = rest.split_at_mut(len);
        let module = |o: Option<&OpTime>| o.map_or(String::new(), |o| o.module.clone());
        let (before, after) = (module(before.last()), module(after.first()));
        stretch.iter_mut().for_each(|o| common(&before, &after).clone_into(&mut o.module));
        start += len + 1;
    }
}

/// An op with when it began and how long it took, in a pass; `None` where it was not swept.
fn pass(o: &OpTime, backward: bool) -> Option<(&OpTime, Duration, Duration)> {
    Some(if backward { (o, o.back_began?, o.backward) } else { (o, o.began, o.forward) })
}

/// The longest path that both begin with.
fn common<'a>(a: &'a str, b: &str) -> &'a str {
    let same = a.split('.').zip(b.split('.')).take_while(|(x, y)| x == y).map(|(x, _)| x.len() + 1).sum::<usize>();
    &a[..same.saturating_sub(1).min(a.len())]
}

impl Profile {
    fn totals(&self, key: impl Fn(&OpTime) -> Vec<String>) -> BTreeMap<String, Total> {
        let mut out: BTreeMap<String, Total> = BTreeMap::new();
        for o in &self.ops {
            for k in key(o) {
                let t = out.entry(k).or_default();
                t.calls += 1;
                t.forward += o.forward;
                t.backward += o.backward;
                t.saved += o.saved;
                t.output += o.output;
            }
        }
        out
    }

    /// Totals by op.
    pub fn by_op(&self) -> BTreeMap<String, Total> {
        self.totals(|o| vec![o.op.to_owned()])
    }

    /// Totals by module; a module's total includes those inside it, and `""` is everything.
    pub fn by_module(&self) -> BTreeMap<String, Total> {
        self.totals(|o| {
            let ends = o.module.match_indices('.').map(|(i, _)| o.module[..i].to_owned());
            let mut all = vec![String::new()];
            all.extend(ends);
            if !o.module.is_empty() {
                all.push(o.module.clone());
            }
            all
        })
    }

    /// The events as JSON for `chrome://tracing` or <https://ui.perfetto.dev>: modules above their ops, the forward pass
    /// first and the sweep after it.
    ///
    /// # Errors
    /// Out of memory.
    pub fn chrome_trace(&self) -> Result<String> {
        let micros = |d: Duration| d.as_secs_f64() * 1e6;
        let mut text = String::from("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[");
        let mut add = |event: Value| {
            let before = if text.ends_with('[') { "" } else { "," };
            memory::append(&mut text, before)?;
            memory::append(&mut text, &event.to_string())
        };
        for (tid, name) in [(1, "ops"), (2, "modules")] {
            add(json!({"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": name}}))?;
        }
        // Name, category, track, beginning, end.
        let mut span = |name: &str, cat: &str, tid: u32, from: Duration, time: Duration, args: Value| {
            add(json!({"ph": "X", "pid": 1, "tid": tid, "name": name, "cat": cat, "ts": micros(from), "dur": micros(time), "args": args}))
        };
        for backward in [false, true] {
            let cat = if backward { "backward" } else { "forward" };
            let mut timed = memory::try_collect(self.ops.iter().filter_map(|o| pass(o, backward)))?;
            // Sorting takes as much again.
            memory::ensure(timed.len() * size_of::<(&OpTime, Duration, Duration)>())?;
            timed.sort_by_key(|t| t.1);
            for (o, from, time) in &timed {
                span(o.op, cat, 1, *from, *time, json!({"module": o.module, "at": o.at, "saved": o.saved, "output": o.output}))?;
            }
            // Stretches of ops of one module, at each depth of the path.
            let deepest = timed.iter().map(|(o, ..)| o.module.split('.').count()).max().unwrap_or(0);
            for depth in 1..=deepest {
                let prefix = |o: &OpTime| o.module.splitn(depth + 1, '.').take(depth).collect::<Vec<_>>().join(".");
                let has = |o: &OpTime| !o.module.is_empty() && o.module.split('.').count() >= depth;
                for run in timed.chunk_by(|a, b| has(a.0) && has(b.0) && prefix(a.0) == prefix(b.0)) {
                    if let (Some(first), Some(last)) = (run.first().filter(|f| has(f.0)), run.last()) {
                        span(&prefix(first.0), cat, 2, first.1, (last.1 + last.2).saturating_sub(first.1), json!({}))?;
                    }
                }
            }
        }
        memory::append(&mut text, "]}")?;
        Ok(text)
    }

    /// Writes [`Profile::chrome_trace`] to a file.
    ///
    /// # Errors
    /// I/O error, and an old file stays then; out of memory.
    #[track_caller]
    pub fn write_chrome_trace(&self, path: impl AsRef<Path>) -> Result<()> {
        let at = std::panic::Location::caller();
        let write = || crate::io::write_text(path.as_ref(), &self.chrome_trace()?);
        write().map_err(|e| e.in_op("write_chrome_trace", at))
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ops, modules) = (self.by_op(), self.by_module());
        let whole = modules.get("").map_or(0.0, |t| (t.forward + t.backward).as_secs_f64()).max(1e-12);
        let width = ops.keys().chain(modules.keys()).map(String::len).max().unwrap_or(0).max("(everything)".len());
        let head = |f: &mut fmt::Formatter<'_>, what: &str| {
            writeln!(
                f,
                "{what:<width$} {:>7} {:>12} {:>12} {:>7} {:>12} {:>12}",
                "calls", "forward ms", "backward ms", "share", "saved KiB", "output KiB"
            )
        };
        let row = |f: &mut fmt::Formatter<'_>, name: &str, t: &Total| {
            let (forward, backward) = (t.forward.as_secs_f64(), t.backward.as_secs_f64());
            writeln!(
                f,
                "{name:<width$} {:>7} {:>12.3} {:>12.3} {:>6.1}% {:>12.1} {:>12.1}",
                t.calls,
                1e3 * forward,
                1e3 * backward,
                100.0 * (forward + backward) / whole,
                t.saved as f64 / 1024.0,
                t.output as f64 / 1024.0
            )
        };
        head(f, "op")?;
        let mut sorted: Vec<_> = ops.iter().collect();
        sorted.sort_by_key(|(_, t)| std::cmp::Reverse(t.forward + t.backward));
        sorted.into_iter().try_for_each(|(name, t)| row(f, name, t))?;
        writeln!(f)?;
        head(f, "module")?;
        modules.iter().try_for_each(|(name, t)| row(f, if name.is_empty() { "(everything)" } else { name }, t))
    }
}
