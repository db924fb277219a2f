//! What happens when memory ends: every call is `Ok` or `Err`, the process goes on, and later has its results. And what is kept of
//! memory that was freed. Each test runs in a process of its own, whose address space the parent limits.

use crate::say;
use cotangent::backend::cpu::{memory_stats, release_cached_memory};
use cotangent::diagnostics::{Alignment, DepthProfile, HealthHistory, Profiler, Stats, Trace};
use cotangent::io::{TensorFile, save_safetensors};
use cotangent::nn::{Gpt, GptConfig, KvCache, Linear, Lstm, Recur, RecurrentConfig};
use cotangent::ops::{CrossEntropyOptions, RopeOptions, SdpaOptions};
use cotangent::optim::AdamW;
use cotangent::train::{Batches, Order, Snapshot, Tokens, Trainer, Windows, document_mask};
use cotangent::{BF16, F32, F64, I64, Key, Result, Tensor, hvp, value_and_grad};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

const CHILD: &str = "COTANGENT_MEMORY_CHILD";

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// This test again, in a process of its own.
fn child(test: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .envs([(CHILD, "1"), ("RAYON_NUM_THREADS", "2"), ("MALLOC_ARENA_MAX", "2")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A number of bytes from `/proc/PID/status`.
fn status(of: &str, field: &str) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{of}/status")).unwrap();
    let line = text.lines().find(|l| l.starts_with(field)).unwrap_or_else(|| panic!("no {field}"));
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

const N: usize = 1 << 19;

/// A selection of calls with scratch memory of their own, by name: a number that tells their result.
fn calls(folder: &std::path::Path) -> Vec<Call> {
    fn x(shape: impl Into<cotangent::Shape>) -> Result<Tensor> {
        Tensor::rand(shape, F32, Key::new(5))
    }
    fn ids(n: usize, below: i64) -> Result<Tensor> {
        Tensor::randint([n], 0..below, I64, Key::new(6))
    }
    fn sum(t: &Tensor) -> Result<f64> {
        t.cast(F32)?.sum(..)?.item()
    }
    let path = folder.join("a.safetensors");
    let saved = folder.join("b.safetensors");
    let snapshot = folder.join("c.safetensors");
    save_safetensors(&saved, [("x", &x([N]).unwrap())], &[]).unwrap();
    vec![
        ("to_vec", Box::new(|| Ok(x([N])?.to_vec::<f32>()?.iter().sum::<f32>().into()))),
        ("to_vec of a transposed one", Box::new(|| Ok(x([N / 64, 64])?.t()?.to_vec::<f32>()?[77].into()))),
        ("to_f64_vec", Box::new(|| Ok(x([N])?.to_f64_vec()?.iter().sum()))),
        ("add", Box::new(|| sum(&x([N])?.add(&x([N])?)?))),
        ("sum over columns", Box::new(|| sum(&x([N / 512, 512])?.sum(0)?))),
        ("matmul", Box::new(|| sum(&x([256, 512])?.matmul(&x([512, 256])?)?))),
        ("matmul of few outputs", Box::new(|| sum(&x([4, 1 << 16])?.matmul(&x([1 << 16, 4])?)?))),
        ("matmul in bf16", Box::new(|| sum(&x([128, 512])?.cast(BF16)?.matmul(&x([512, 128])?.cast(BF16)?)?))),
        ("batched matmul", Box::new(|| sum(&x([16, 64, 64])?.matmul(&x([16, 64, 64])?.transpose(1, 2)?)?))),
        ("sort", Box::new(|| sum(&x([N / 4])?.sort(0)?.0))),
        ("sort of columns in f64", Box::new(|| sum(&x([256, 256])?.cast(F64)?.sort_descending(0)?.0))),
        ("topk", Box::new(|| sum(&x([8, N / 64])?.topk(5, -1)?.0))),
        ("cumsum", Box::new(|| sum(&x([2, N / 4])?.cumsum(-1)?))),
        ("cumsum of columns", Box::new(|| sum(&x([512, 512])?.cumsum(0)?))),
        ("argmax", Box::new(|| sum(&x([N / 512, 512])?.argmax(0)?))),
        ("softmax", Box::new(|| sum(&x([512, 512])?.softmax(0)?))),
        ("logsumexp", Box::new(|| sum(&x([512, 512])?.logsumexp(0)?))),
        ("var", Box::new(|| sum(&x([512, 512])?.var([0], 1)?))),
        ("flip", Box::new(|| sum(&x([512, 512])?.flip([0, 1])?))),
        ("pad", Box::new(|| sum(&x([512, 512])?.pad(&[(1, 1), (2, 2)], 0.5)?))),
        ("gather", Box::new(|| sum(&x([N / 64, 64])?.gather(0, &ids(512 * 64, 512)?.reshape([512, 64])?)?))),
        (
            "scatter_add in bf16",
            Box::new(|| {
                let to = Tensor::zeros([512, 64], BF16)?;
                sum(&to.scatter_add(0, &ids(512 * 64, 512)?.reshape([512, 64])?, &x([512, 64])?.cast(BF16)?)?)
            }),
        ),
        ("rope", Box::new(|| sum(&x([N / 64, 64])?.rope(&RopeOptions::default())?))),
        ("one_hot", Box::new(|| sum(&ids(1 << 14, 32)?.one_hot(32, F32)?))),
        (
            "gradient of an embedding",
            Box::new(|| {
                let (w, i) = (x([1000, 16])?, ids(1 << 16, 1000)?);
                sum(&value_and_grad(&w, |w| w.embedding(&i, None)?.square()?.sum(..))?.1)
            }),
        ),
        (
            "cross_entropy",
            Box::new(|| {
                let (w, i) = (x([1 << 14, 16])?, ids(1 << 14, 16)?);
                let (l, g) = value_and_grad(&w, |w| w.cross_entropy_with(&i, &CrossEntropyOptions::default()))?;
                Ok(l.item()? + sum(&g.square()?)?)
            }),
        ),
        ("nll_loss", Box::new(|| x([1 << 15, 8])?.log_softmax(-1)?.nll_loss(&ids(1 << 15, 8)?)?.item())),
        (
            "linear_cross_entropy",
            Box::new(|| {
                let (h, w, i) = (x([512, 32])?, x([1000, 32])?, ids(512, 1000)?);
                let (l, g) = value_and_grad(&h, |h| h.linear_cross_entropy(&w, None, &i, &CrossEntropyOptions::default()))?;
                Ok(l.item()? + sum(&g.square()?)?)
            }),
        ),
        (
            "layer_norm",
            Box::new(|| {
                let (v, w) = (x([1024, 128])?, x([128])?);
                sum(&value_and_grad(&w, |w| v.layer_norm(1, Some(w), None, 1e-5)?.square()?.sum(..))?.1)
            }),
        ),
        (
            "attention",
            Box::new(|| {
                let q = x([1, 4, 128, 32])?;
                let f = |q: &Tensor| q.scaled_dot_product_attention(q, q, None, &SdpaOptions::causal())?.square()?.sum(..);
                let (l, g) = value_and_grad(&q, f)?;
                Ok(l.item()? + sum(&g.square()?)?)
            }),
        ),
        (
            "decoding",
            Box::new(|| {
                let (q, k) = (x([1, 8, 1, 32])?, x([1, 2, 2000, 32])?);
                sum(&q.scaled_dot_product_attention(&k, &k, None, &SdpaOptions::default())?)
            }),
        ),
        (
            "second derivative of a product",
            Box::new(|| {
                let v = x([300])?.add_scalar(0.5)?;
                sum(&hvp(&v, &v, |v| v.prod(..))?.1)
            }),
        ),
        ("einsum", Box::new(|| sum(&Tensor::einsum("bij,bkj->bik", &[&x([4, 128, 64])?, &x([4, 128, 64])?])?))),
        ("concat", Box::new(|| sum(&Tensor::concat(&[&x([N / 2])?, &x([N / 2])?], 0)?))),
        ("randperm", Box::new(|| Tensor::randperm(1 << 16, I64, Key::new(1))?.to_vec::<i64>().map(|v| v[3] as f64))),
        (
            "KvCache",
            Box::new(|| {
                let (mut cache, k) = (KvCache::with_capacity(1000), x([1, 2, 40, 64])?);
                cache.append(k.clone(), k.clone())?;
                sum(&cache.append(k.clone(), k)?.0)
            }),
        ),
        ("document_mask", Box::new(|| document_mask(&ids(1024, 9)?.reshape([1, 1024])?, 0)?.cast(F32)?.sum(..)?.item())),
        (
            "save",
            Box::new(move || {
                save_safetensors(&path, [("x", &x([N])?)], &[])?;
                Ok(1.0)
            }),
        ),
        (
            "Snapshot::save",
            Box::new(move || {
                let model = [("w".to_owned(), x([N])?)].into();
                Snapshot { model, ..Snapshot::default() }.save(&snapshot)?;
                Ok(1.0)
            }),
        ),
        ("Stats", Box::new(|| Ok(Stats::of(&x([N])?)?.mean))),
        ("load", Box::new(move || sum(&TensorFile::open(&saved)?.tensor("x")?))),
        ("print", Box::new(|| Ok(x([N])?.to_string().len() as f64))),
        (
            "train",
            Box::new(|| {
                let config = GptConfig { vocabulary: 17, context: 32, layers: 2, heads: 2, width: 32, ..GptConfig::default() };
                let data =
                    Windows::new(Tokens::from((0..500u32).map(|i| i * i % 17).collect::<Vec<_>>()), 4, 32, Order::Shuffled, Key::new(2))?;
                let mut trainer = Trainer::new(Gpt::new(&config, F32, Key::new(1))?, AdamW::default());
                trainer.options.steps = 3;
                trainer.run(&data, |m: &Gpt, (a, b): &(Tensor, Tensor), k| m.loss(a, b, Some(k)))?;
                let (a, b) = data.batch(9)?;
                trainer.model.loss(&a, &b, None)?.item()
            }),
        ),
    ]
}

/// Calls whose lists grow with the nodes of a tape, the steps of a run or the parts that are asked for.
fn records(folder: &std::path::Path) -> Vec<Call> {
    fn x(n: usize) -> Result<Tensor> {
        Tensor::rand([n], F32, Key::new(5))
    }
    let path = folder.join("many.safetensors");
    let traced = folder.join("trace.safetensors");
    vec![
        (
            "unbind",
            Box::new(|| {
                let f = |x: &Tensor| Tensor::stack(&x.unbind(0)?, 0)?.square()?.sum(..);
                value_and_grad(&x(1 << 12)?, f)?.1.sum(..)?.item()
            }),
        ),
        (
            "a loop over positions",
            Box::new(|| {
                let f = |x: &Tensor| (0..2000).step_by(2).try_fold(Tensor::zeros((), F32)?, |sum, i| sum.add(&x.select(0, i)?));
                value_and_grad(&x(2000)?, f)?.1.sum(..)?.item()
            }),
        ),
        (
            "a gradient in a gradient",
            Box::new(|| {
                // The outer one is met only after both have long tapes.
                let f = |w: &Tensor| {
                    let long = |x: &Tensor| (0..500).try_fold(x.clone(), |y, _| y.mul_scalar(1.001));
                    let (w, v) = (long(w)?, x(4)?);
                    value_and_grad(&v, |v| long(v)?.mul(&w)?.sum(..))?.1.square()?.sum(..)
                };
                value_and_grad(&x(4)?, f)?.1.sum(..)?.item()
            }),
        ),
        (
            "Lstm",
            Box::new(|| {
                let config = RecurrentConfig { inputs: 2, hidden: 2, ..RecurrentConfig::default() };
                assert!(Lstm::new(&RecurrentConfig { layers: usize::MAX, ..config.clone() }, F32, Key::new(1)).is_err());
                let lengths: Vec<usize> = (0..512).map(|i| i % 9).collect();
                let with = Recur { lengths: Some(&lengths), ..Recur::default() };
                Lstm::new(&config, F32, Key::new(1))?.forward_with(&x(512 * 8 * 2)?.reshape([512, 8, 2])?, None, with)?.0.sum(..)?.item()
            }),
        ),
        (
            "profile and trace",
            Box::new(|| {
                let (layer, profiler) = (Linear::new(4, 4, F32, Key::new(1))?, Profiler::new());
                let v = x(4)?.reshape([1, 4])?;
                value_and_grad(&layer, |l| {
                    profiler.attach(l)?;
                    (0..300).try_fold(v.clone(), |y, _| l.forward(&y)?.tanh())?.sum(..)
                })?;
                let profile = profiler.finish();
                profile.chrome_trace()?;
                let (_, trace) = Trace::of(&layer, |l| (0..300).try_fold(v.clone(), |y, _| l.forward(&y)))?;
                let same = trace.compare(&trace, 0.0)?;
                Ok((profile.ops.len() + same.rows.len()) as f64)
            }),
        ),
        (
            "a trace and a profile of many values",
            Box::new(move || {
                let one = x(1)?;
                let trace = Trace::from_values((0..4000).map(|i| (i.to_string(), one.clone())))?;
                trace.save(&traced)?;
                let depth = DepthProfile::new((0..4000).map(|i| (i.to_string(), 1.0)))?;
                Ok((Trace::load(&traced)?.entries().len() + depth.points.len()) as f64)
            }),
        ),
        (
            "HealthHistory",
            Box::new(|| {
                let layer = Linear::new(4, 4, F32, Key::new(1))?;
                let v = x(4)?.reshape([1, 4])?;
                let mut history = HealthHistory::new();
                for step in 0..100 {
                    let (loss, mut grads) = value_and_grad(&layer, |l| l.forward(&v)?.square()?.sum(..))?;
                    let clipped = grads.clip_global_norm(1.0)?;
                    history.record(step, &layer, &grads, loss.item()?, 0.1, &clipped)?;
                    history.updates(&layer, &layer)?;
                }
                Ok(history.html()?.len() as f64)
            }),
        ),
        (
            "Alignment",
            Box::new(|| {
                let all = Tensor::randint([(1 << 15) + 1], 0..99, I64, Key::new(2))?;
                let cut = |from: usize| all.narrow(0, from, 1 << 15)?.reshape([1, 1 << 15]);
                let report = Alignment::default().check(&cut(0)?, &cut(1)?, |ids| ids.len().to_string())?;
                Ok(report.counted as f64)
            }),
        ),
        (
            "save many",
            Box::new(move || {
                let (names, one) = ((0..4000).map(|i| format!("t{i}")).collect::<Vec<_>>(), x(1)?);
                save_safetensors(&path, names.iter().map(|n| (n.as_str(), &one)), &[])?;
                Ok(1.0)
            }),
        ),
    ]
}

/// Bytes that are left, at each level: 64 MB down to 1 MB, evenly in powers.
fn levels() -> Vec<usize> {
    (0..20).map(|i| (64e6 * 0.8f64.powi(i)) as usize).collect()
}

/// Takes what the allocator still has (it reserves much address space beforehand), but for so many bytes.
fn ballast(left: usize) -> Vec<Vec<u8>> {
    const PIECE: usize = 256 << 10;
    let mut pieces = Vec::with_capacity(4096);
    while pieces.len() < 4096 {
        let mut piece = Vec::new();
        if piece.try_reserve_exact(PIECE).is_err() {
            break;
        }
        pieces.push(piece);
    }
    let keep = pieces.len().saturating_sub(left.div_ceil(PIECE));
    pieces.truncate(keep);
    pieces
}

/// A call by its name, and a number that tells its result.
pub type Call = (&'static str, Box<dyn Fn() -> Result<f64>>);

/// The child's part of [`ends_at`]: every call at every level.
fn calls_at(levels: &[usize], calls: &[Call]) {
    // Threads, their stacks and scratch exist before the limit; so do the lines that are printed below.
    let expected: Vec<f64> = calls.iter().map(|(name, f)| f().unwrap_or_else(|e| panic!("{name}: {e}"))).collect();
    let mut answers = std::io::stdin().lines();
    let mut wait = |what: &str| {
        release_cached_memory();
        say(what);
        answers.next().unwrap().unwrap();
    };
    for &left in levels {
        wait("limit");
        let ballast = ballast(left);
        let (mut fine, mut refused) = (0, 0);
        for ((name, f), want) in calls.iter().zip(&expected) {
            // The last name that was noted is the call that ended the process.
            note(name);
            match f() {
                Ok(v) => {
                    assert_eq!(v.to_bits(), want.to_bits(), "{name}");
                    fine += 1;
                }
                // Threads and files may be what there is no memory for.
                Err(e) => {
                    assert!(e.is_out_of_memory() || e.is_io(), "{name}: {e}");
                    refused += 1;
                }
            }
        }
        drop(ballast);
        say(&format!("level {fine} {refused}"));
    }
    wait("free");
    for ((name, f), want) in calls.iter().zip(&expected) {
        assert_eq!(f().unwrap().to_bits(), want.to_bits(), "{name} afterwards");
    }
}

/// A line on the error stream, without memory.
fn note(name: &str) {
    let mut stderr = std::io::stderr();
    for part in ["call ", name, "\n"] {
        let _ = stderr.write_all(part.as_bytes());
    }
}

/// Runs a test in a process of its own, for which memory ends after so many bytes, and says how many calls were fine and how many
/// refused at each level; `None` where limits cannot be set.
fn ends_at(test: &str, levels: &[usize]) -> Option<(Vec<usize>, Vec<usize>)> {
    if Command::new("prlimit").arg("--version").output().is_err() {
        say(&format!("skipped: {test} needs prlimit (util-linux)"));
        return None;
    }
    let mut child = child(test);
    let pid = child.id().to_string();
    let mut to = child.stdin.take().unwrap();
    let mut left = levels.iter();
    let (mut fine, mut refused, mut seen) = (Vec::new(), Vec::new(), Vec::new());
    let mut errors = child.stderr.take().unwrap();
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        errors.read_to_string(&mut text).map(|_| text)
    });
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        // The runner's own line has no end yet when the first of ours comes.
        let limit = match line.rsplit("... ").next().unwrap_or_default().trim() {
            "limit" => (status(&pid, "VmSize:") + left.next().unwrap()).to_string(),
            "free" => "unlimited".to_owned(),
            other => {
                if let Some(counts) = other.strip_prefix("level ") {
                    let (a, b) = counts.split_once(' ').unwrap();
                    fine.push(a.parse::<usize>().unwrap());
                    refused.push(b.parse::<usize>().unwrap());
                }
                seen.push(line);
                continue;
            }
        };
        // The soft limit alone: it can be raised again.
        let set = Command::new("prlimit").args(["--pid", &pid, &format!("--as={limit}:")]).status().unwrap();
        assert!(set.success());
        to.write_all(b"go\n").unwrap();
    }
    let ended = child.wait().unwrap();
    let (said, errors) = (seen.join("\n"), errors.join().unwrap().unwrap());
    let last = errors.lines().rev().take(12).collect::<Vec<_>>().join("\n");
    assert!(ended.success() && said.contains("1 passed"), "{ended}, at level {}\n{said}\n{last}", fine.len());
    assert_eq!(fine.len(), levels.len());
    say(&format!("memory ends at {} levels: Ok {fine:?}, Err {refused:?}", levels.len()));
    Some((fine, refused))
}

/// [`ends_at`] with [`calls_at`] as the child's part, in a folder that is gone afterwards; `None` there, too.
pub fn calls_end_at(test: &str, levels: &[usize], calls: impl Fn(&std::path::Path) -> Vec<Call>) -> Option<(Vec<usize>, Vec<usize>)> {
    if !is_child() {
        return ends_at(test, levels);
    }
    let folder = std::env::temp_dir().join(format!("cotangent_{}_{}", test.replace("::", "_"), std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    calls_at(levels, &calls(&folder));
    std::fs::remove_dir_all(folder).unwrap();
    None
}

#[test]
fn no_call_aborts_when_memory_ends() {
    let Some((fine, refused)) = calls_end_at("engine::memory_limits::no_call_aborts_when_memory_ends", &levels(), calls) else { return };
    assert!(refused[0] < 3 && fine[0] > 0, "nearly all calls fit 64 MB: {refused:?}");
    assert!(refused[19] > fine[19], "few fit the last level: {fine:?}");
}

#[test]
fn no_record_aborts_when_memory_ends() {
    let Some((fine, refused)) = calls_end_at("engine::memory_limits::no_record_aborts_when_memory_ends", &levels(), records) else {
        return;
    };
    assert!(refused[0] == 0 && refused[19] > 0, "all fit 64 MB, some do not fit the last level: {fine:?}, {refused:?}");
}

#[test]
fn growing_sizes_hold_no_more_than_one_and_a_half_times_the_peak() {
    if !is_child() {
        let out = child("engine::memory_limits::growing_sizes_hold_no_more_than_one_and_a_half_times_the_peak").wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && said.contains("1 passed"), "{}\n{said}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
        said.lines().filter(|l| l.starts_with("grown")).for_each(say);
        return;
    }
    let before = status("self", "VmRSS:");
    let mut bytes = 4 << 20;
    while bytes < 400 << 20 {
        // One live tensor at a time, every page of it written.
        let t = Tensor::from_slice(&[1u8], [1]).unwrap().expand([bytes]).unwrap().contiguous().unwrap();
        drop(t);
        bytes += bytes / 16;
    }
    let (s, rss) = (memory_stats(), status("self", "VmRSS:") - before);
    say(&format!("grown: peak {} MB in use, {} MB cached, {} MB resident", s.peak >> 20, s.cached >> 20, rss >> 20));
    assert!(s.in_use + s.cached <= s.limit, "{s:?}");
    assert!(rss as f64 <= 1.5 * s.peak as f64, "{rss} bytes resident for a peak of {}", s.peak);
    // A hundred sizes at random: at most twice the peak.
    for i in 0..400u64 {
        let n = 1 + Key::new(9).below(i, 64 << 20) as usize;
        drop(Tensor::from_slice(&[1u8], [1]).unwrap().expand([n]).unwrap().contiguous().unwrap());
    }
    let s = memory_stats();
    assert!(s.in_use + s.cached <= 2 * s.peak, "{s:?}");
    release_cached_memory();
    assert_eq!(memory_stats().cached, 0);
    let left = status("self", "VmRSS:").saturating_sub(before);
    assert!(left < 64 << 20, "{left} bytes stay resident");
}

#[test]
fn cached_memory_is_given_back_when_an_allocation_fails() {
    if !is_child() {
        let me = std::env::current_exe().unwrap();
        let name = "engine::memory_limits::cached_memory_is_given_back_when_an_allocation_fails";
        let out = Command::new("sh")
            .args(["-c", "ulimit -v 2150400; exec \"$@\"", "sh"])
            .arg(me)
            .args(["--exact", name, "--nocapture"])
            .envs([(CHILD, "1"), ("RAYON_NUM_THREADS", "1")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && said.contains("1 passed"), "{}\n{said}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
        return;
    }
    // Memory that is asked for and not touched.
    let make = |mb: usize| Tensor::zeros([mb << 20], cotangent::U8).and_then(|t| t.narrow(0, 0, 1)?.expand([mb << 20])?.contiguous());
    for (first, then) in [(1200, 1000), (1000, 1200), (700, 1300)] {
        drop(make(first).unwrap());
        let fits = make(then).unwrap_or_else(|e| panic!("{first} then {then}: {e}"));
        assert!(make(1500).unwrap_err().is_out_of_memory());
        drop(fits);
        // The same for a list: what waits is in its way.
        let list = make(first).unwrap();
        let big = Tensor::zeros([then << 17], F64).unwrap();
        drop(list);
        assert_eq!(big.to_vec::<f64>().unwrap_or_else(|e| panic!("a list of {then} after {first}: {e}")).len(), then << 17);
    }
}
