//! Ops on a CUDA device, timed by the device's own clock.
//!
//! Each run is preceded by a write of more than the L2 cache holds, which also lets the host get ahead of the device: what is
//! timed is the device's work, not the launches. (An op that waits for the device, to check indices, is timed with its wait.)

use cotangent::backend::cuda;
use cotangent::ops::registry;
use cotangent::testing::BenchCase;
use cotangent::{DType, Device, Error, Result, Tensor};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// What a card can do at most: bytes per second, and operations per second in f32 and in half types. Measured copy and matrix
/// product for the H200; for the H100 and the A100 (80 GB) the maker's figures.
struct Limits {
    card: &'static str,
    bytes: f64,
    float: f64,
    half: f64,
}

const CARDS: [Limits; 3] = [
    Limits { card: "H200", bytes: 4.3e12, float: 67e12, half: 790e12 },
    Limits { card: "H100", bytes: 3.35e12, float: 67e12, half: 989e12 },
    Limits { card: "A100", bytes: 2.04e12, float: 19.5e12, half: 312e12 },
];

/// More than any L2 holds.
const FLUSH: usize = 64 << 20;

/// Shapes of a case's operands: `matmul/[4, 3]x[3, 2]` gives two.
fn shapes(id: &str) -> Vec<Vec<usize>> {
    let list = id.split_once('/').map_or("", |(_, s)| s);
    let one = |s: &str| s.trim_start_matches('[').split(',').filter_map(|n| n.trim().parse().ok()).collect();
    list.split(']').filter(|s| s.contains('[')).map(|s| one(s.trim_start_matches('x'))).collect()
}

/// Operations of a forward run, where they and not the bytes decide: products of matrices, and of attention (not counting what a
/// causal mask saves, for a case does not say whether it has one).
fn operations(op: &str, id: &str) -> f64 {
    let x = shapes(id);
    let last = |s: &[usize], k: usize| s.len().checked_sub(k).map_or(1.0, |i| s[i] as f64);
    let all = |s: &[usize]| s.iter().product::<usize>() as f64;
    match (op, x.as_slice()) {
        ("matmul", [a, b, ..]) => 2.0 * all(a) * last(b, 1),
        ("linear", [a, w, ..]) => 2.0 * all(a) * last(w, 2),
        ("scaled_dot_product_attention", [q, k, v, ..]) => 2.0 * all(q) * last(k, 2) + 2.0 * all(q) / last(q, 1) * last(k, 2) * last(v, 1),
        _ => 0.0,
    }
}

/// Median and smallest seconds of some runs.
fn time(device: Device, flush: &Tensor, f: &dyn Fn() -> Result<()>) -> Result<(f64, f64)> {
    f()?;
    let (mut times, started) = (Vec::new(), Instant::now());
    while times.len() < 5 || (times.len() < 50 && started.elapsed() < Duration::from_millis(500)) {
        drop(flush.add_scalar(1.0)?);
        times.push(cuda::time(device, f)?);
    }
    times.sort_by(f64::total_cmp);
    Ok((times[times.len() / 2], times[0]))
}

/// Times every op whose name contains a word of the command line, prints a table and writes it as CSV.
pub fn run(device: Device, dtypes: &[DType]) -> Result<()> {
    let properties = cuda::properties(device)?;
    let limits = CARDS.iter().find(|c| properties.name.contains(c.card));
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let n = if device == Device::CudaEmulated { 1 << 10 } else { FLUSH };
    let flush = Tensor::from_slice(&vec![0f32; n], [n])?.to_device(device)?;
    let mut csv = String::from("op,shapes,dtype,direction,median_us,min_us,bytes,operations,gb_s,tflop_s,percent_of_limit,device\n");
    println!("{device}: {}; limits of {}", properties.name, limits.map_or("no known card", |l| l.card));
    for &dtype in dtypes {
        for entry in registry().iter().filter(|e| words.is_empty() || words.iter().any(|w| e.name.contains(w.as_str()))) {
            for case in entry.bench_on(dtype, device) {
                let forward = || (case.forward)().map(drop);
                let one = |direction, f: &dyn Fn() -> Result<()>, csv: &mut String| {
                    row(device, &flush, limits, entry.name, &case, dtype, direction, f, csv)
                };
                one("forward", &forward, &mut csv)?;
                if let Some(backward) = &case.backward {
                    one("forward+backward", backward, &mut csv)?;
                }
            }
        }
    }
    let path = std::env::var("COTANGENT_BENCH_CSV").unwrap_or_else(|_| "target/bench-device.csv".into());
    std::fs::write(&path, csv).map_err(|e| Error::io(format!("{path}: {e}")))?;
    println!("written to {path}");
    Ok(())
}

#[allow(clippy::too_many_arguments)] // one line of a table
fn row(
    device: Device,
    flush: &Tensor,
    limits: Option<&Limits>,
    op: &str,
    case: &BenchCase,
    dtype: DType,
    direction: &str,
    f: &dyn Fn() -> Result<()>,
    csv: &mut String,
) -> Result<()> {
    let before = cuda::rows_left_out(device)?;
    let (median, least) = time(device, flush, f)?;
    let left_out = cuda::rows_left_out(device)? - before;
    // Bytes and operations are declared of the forward run; the derivative's are not, so there is no share of a limit.
    let forward = direction == "forward";
    let (bytes, operations) = (case.bytes as f64, operations(op, &case.id));
    let rate = |amount: f64| if forward { amount / median } else { f64::NAN };
    let limit = limits.filter(|_| forward).map(|l| {
        let speed = if dtype.is_half() { l.half } else { l.float };
        (bytes / l.bytes).max(if dtype == DType::F64 { 0.0 } else { operations / speed })
    });
    let percent = limit.map_or(f64::NAN, |l| 100.0 * l / median);
    let shapes = case.id.split_once('/').map_or("", |(_, s)| s);
    println!(
        "{op:32} {shapes:40} {dtype:5} {direction:17} {:10.1} us {:8.1} GB/s {:7.2} TFLOP/s {percent:5.1} %",
        1e6 * median,
        rate(bytes) / 1e9,
        rate(operations) / 1e12
    );
    if left_out > 0 {
        println!("{:32} the tensor cores left out {left_out} times 16 rows, which were computed again", "");
    }
    let number = |x: f64| if x.is_finite() { format!("{x:.4}") } else { String::new() };
    let numbers = [1e6 * median, 1e6 * least, bytes, operations, rate(bytes) / 1e9, rate(operations) / 1e12, percent].map(number);
    writeln!(csv, "{op},\"{shapes}\",{dtype},{direction},{},{device}", numbers.join(","))
        .map_err(|e| Error::io(format!("a line of the table: {e}")))
}

/// The device that `COTANGENT_BENCH_DEVICE` names, if it does.
pub fn chosen() -> Result<Option<Device>> {
    match std::env::var("COTANGENT_BENCH_DEVICE") {
        Ok(name) if !name.is_empty() && name != "cpu" => Ok(Some(name.parse()?)),
        _ => Ok(None),
    }
}
