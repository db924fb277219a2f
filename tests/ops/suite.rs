//! The generated suite: every check on every op of the registry.
//!
//! `COTANGENT_QUICK=1` does less of everything; `COTANGENT_OP=name` (a part of the name) looks at some ops only;
//! `COTANGENT_CASES=n` sets the number of random cases; `COTANGENT_SNAPSHOT=1` rewrites the snapshot of messages.

use cotangent::ops::registry;
use cotangent::testing::{Config, OpEntry, Report};
use proptest::test_runner::{Config as RunnerConfig, TestCaseError, TestError, TestRunner};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

fn quick() -> bool {
    std::env::var_os("COTANGENT_QUICK").is_some_and(|v| v != "0")
}

pub fn entries() -> Vec<OpEntry> {
    let wanted = std::env::var("COTANGENT_OP").unwrap_or_default();
    registry().into_iter().filter(|e| e.name.contains(&wanted)).collect()
}

/// Runs `f` on every entry, on as many threads as the machine has.
pub fn for_all(entries: &[OpEntry], f: impl Fn(&OpEntry) -> Report + Sync) -> (Report, Vec<(Duration, &'static str)>) {
    let (next, all) = (AtomicUsize::new(0), Mutex::new((Report::default(), Vec::new())));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|s| {
        for _ in 0..threads {
            s.spawn(|| {
                while let Some(e) = entries.get(next.fetch_add(1, Relaxed)) {
                    let start = Instant::now();
                    let r = f(e);
                    let mut all = all.lock().unwrap();
                    all.0.merge(r);
                    all.1.push((start.elapsed(), e.name));
                }
            });
        }
    });
    all.into_inner().unwrap()
}

pub fn show(failures: &[String]) -> String {
    let shown = failures.iter().take(40).map(String::as_str).collect::<Vec<_>>().join("\n");
    format!("{} failures, the first of them:\n{shown}", failures.len())
}

/// The smallest sizes at which an op still fails.
fn shrink(entry: &OpEntry, seed: u64, limit: usize) -> Report {
    for limit in 1..=limit {
        let mut r = Report::default();
        entry.check(&Config { seed, limit, quick: quick(), ..Config::default() }, &mut r);
        if !r.failures.is_empty() {
            return r;
        }
    }
    Report::default()
}

#[test]
fn every_op_passes_every_check() {
    let entries = entries();
    let rounds: &[(u64, usize)] = if quick() { &[(0, 3), (1, 9)] } else { &[(0, 3), (1, 5), (2, 9), (3, 17)] };
    let (report, mut times) = for_all(&entries, |e| {
        let mut all = Report::default();
        for &(seed, limit) in rounds {
            let mut r = Report::default();
            e.check(&Config { seed, limit, quick: quick(), ..Config::default() }, &mut r);
            if !r.failures.is_empty() {
                let small = shrink(e, seed, limit);
                if !small.failures.is_empty() {
                    r = small;
                }
                all.merge(r);
                break;
            }
            all.merge(r);
        }
        all
    });
    println!("{}", report.table());
    times.sort();
    let slowest: Vec<String> = times.iter().rev().take(8).map(|(t, n)| format!("{n} {t:.1?}")).collect();
    crate::say(&format!("{} checks of {} ops; slowest: {}", report.total(), entries.len(), slowest.join(", ")));
    let missing = report.missing(&entries);
    assert!(report.failures.is_empty(), "{}", show(&report.failures));
    assert!(missing.is_empty(), "coverage is missing:\n{}", missing.join("\n"));
}

/// Random seeds and sizes on random ops; a failure shrinks to the smallest sizes and seed that still fail.
#[test]
fn random_cases() {
    let entries = entries();
    let cases = std::env::var("COTANGENT_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(if quick() { 20 } else { 150 });
    let mut runner = TestRunner::new(RunnerConfig { cases, failure_persistence: None, max_shrink_iters: 200, ..RunnerConfig::default() });
    let result = runner.run(&(0..entries.len(), 0..1_000_000u64, 1..14usize), |(i, seed, limit)| {
        let mut r = Report::default();
        entries[i].check(&Config { seed, limit, quick: true, ..Config::default() }, &mut r);
        // Whether options matter is asked at the suite's own sizes: at random ones, axes of extent 1 may make two of them the same.
        let wrong: Vec<String> = r.failures.iter().filter(|f| !f.contains(": options: ")).cloned().collect();
        if wrong.is_empty() { Ok(()) } else { Err(TestCaseError::fail(show(&wrong))) }
    });
    if let Err(TestError::Fail(why, (i, seed, limit))) = result {
        panic!("cotangent::ops::replay({:?}, {seed}, {limit}): {why}", entries[i].name);
    }
}

/// Cases that the search above once found, each with what was wrong.
#[test]
fn cases_that_once_failed() {
    const CASES: [(&str, u64, usize); 3] = [
        // Second derivatives were composed in f16, whose intermediate values underflow where the kernel's do not.
        ("gelu_vjp", 923_159, 1),
        ("normal_cdf_vjp", 648_851, 1),
        // The derivative of a sum of probabilities, which is 0, was computed and left its rounding error in f32.
        ("log_softmax_vjp", 829_946, 1),
    ];
    for (name, seed, limit) in CASES {
        let r = cotangent::ops::replay(name, seed, limit);
        assert!(r.total() > 0 && r.failures.is_empty(), "{name}, {seed}, {limit}: {}", show(&r.failures));
    }
}

/// What users read when an op refuses its inputs, word for word.
#[test]
fn messages_of_refused_inputs() {
    let mut shown = Report::default();
    for e in registry() {
        let mut r = Report::default();
        e.check_rejections(&Config::default(), &mut r);
        shown.merge(r);
    }
    assert!(shown.failures.is_empty(), "{}", show(&shown.failures));
    let text: String = shown.rejections.iter().map(|m| format!("{m}\n")).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/reject.txt");
    if std::env::var_os("COTANGENT_SNAPSHOT").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let stored = std::fs::read_to_string(path).unwrap_or_default();
    for line in text.lines().filter(|l| !stored.lines().any(|s| s == *l)) {
        println!("new: {line}");
    }
    assert!(text == stored, "messages changed: look at them, then run with COTANGENT_SNAPSHOT=1 to accept");
}

#[test]
fn names_are_unique() {
    let mut names: Vec<&str> = registry().iter().map(|e| e.name).collect();
    names.sort_unstable();
    let twice: Vec<_> = names.windows(2).filter(|w| w[0] == w[1]).map(|w| w[0]).collect();
    assert!(twice.is_empty(), "ops of the same name: {twice:?}");
}
