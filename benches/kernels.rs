//! What models spend their time in, in the shapes of a small transformer: matrix products, random numbers, functions in cache.
//!
//! `cargo bench --bench kernels -- matmul` runs what contains the word. Throughput is in multiplications and additions for
//! `matmul`, in elements elsewhere.

use cotangent::{F32, Key, Result, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput};
use std::hint::black_box;
use std::time::Duration;

/// What, rows, columns, depth, and which operand is transposed.
const PRODUCTS: [(&str, usize, usize, usize, bool, bool); 13] = [
    ("forward", 768, 384, 128, false, false),
    ("forward", 2048, 1536, 384, false, false),
    ("forward W^T", 2048, 1536, 384, false, true),
    ("dx", 2048, 384, 1536, false, true),
    ("dw", 384, 1536, 2048, true, false),
    ("square", 256, 256, 256, false, false),
    ("square", 1024, 1024, 1024, false, false),
    ("scores", 256, 256, 64, false, true),
    ("values", 256, 64, 256, false, false),
    ("embedding", 64, 128, 12_000, true, false),
    ("gemv", 4096, 1, 4096, false, false),
    ("gemv^T", 1, 4096, 4096, false, false),
    ("vocabulary", 256, 50_257, 768, false, true),
];

fn matmul(c: &mut Criterion) -> Result<()> {
    let mut group = c.benchmark_group("matmul");
    for (name, m, n, k, transposed_a, transposed_b) in PRODUCTS {
        let operand = |rows, columns, transposed, key| {
            let x = Tensor::randn(if transposed { [columns, rows] } else { [rows, columns] }, F32, Key::new(key))?;
            if transposed { x.transpose(0, 1) } else { Ok(x) }
        };
        let (a, b) = (operand(m, k, transposed_a, 1)?, operand(k, n, transposed_b, 2)?);
        group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
        group.bench_function(BenchmarkId::new(name, format!("{m}x{k} {k}x{n}")), |bench| bench.iter(|| a.matmul(&b).expect("shapes fit")));
    }
    group.finish();
    Ok(())
}

fn random(c: &mut Criterion) {
    const N: usize = 1 << 20;
    let (key, mut x, mut z) = (Key::new(1), vec![0f32; N], vec![0f64; N]);
    let mut group = c.benchmark_group("random");
    group.throughput(Throughput::Elements(N as u64));
    group.bench_function("uniform f32", |b| b.iter(|| key.fill_uniform_f32(0, black_box(&mut x))));
    group.bench_function("normal f64", |b| b.iter(|| key.fill_normal(0, black_box(&mut z))));
    group.finish();
}

/// One thread, operands in the second-level cache: the arithmetic alone.
fn functions(c: &mut Criterion) -> Result<()> {
    const N: usize = 16 * 1024 - 1;
    let x = Tensor::uniform([N], 0.1..4.0, F32, Key::new(3))?;
    let mut group = c.benchmark_group("functions");
    group.throughput(Throughput::Elements(N as u64));
    type Function = fn(&Tensor) -> Result<Tensor>;
    let functions: [(&str, Function); 14] = [
        ("neg", |x| Ok(-x)),
        ("exp", Tensor::exp),
        ("expm1", Tensor::expm1),
        ("log", Tensor::log),
        ("log1p", Tensor::log1p),
        ("tanh", Tensor::tanh),
        ("erf", Tensor::erf),
        ("gelu", Tensor::gelu),
        ("silu", Tensor::silu),
        ("softplus", Tensor::softplus),
        ("sin", Tensor::sin),
        ("cos", Tensor::cos),
        ("powf", |x| x.powf(1.5)),
        ("powi", |x| x.powi(5)),
    ];
    for (name, f) in functions {
        group.bench_function(name, |b| b.iter(|| f(&x).expect("floats")));
    }
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    let mut c =
        Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).configure_from_args();
    matmul(&mut c)?;
    random(&mut c);
    functions(&mut c)?;
    c.final_summary();
    Ok(())
}
