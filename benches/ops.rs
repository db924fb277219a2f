//! Every op of the registry on its bench samples, forward and backward, beside a memory copy.
//!
//! `cargo bench --bench ops -- softmax` runs what contains the word. The dtype is f32 unless `COTANGENT_BENCH_DTYPES`
//! lists others (`f32,bf16`); threads are rayon's (`RAYON_NUM_THREADS`). Throughput counts the bytes of all inputs and
//! outputs once, so an elementwise op can be compared with `copy` of as many bytes.
//!
//! `COTANGENT_BENCH_DEVICE=cuda:0` times them on a CUDA device instead, by its events, with the L2 cache flushed before each run:
//! a table, and the same as CSV in `COTANGENT_BENCH_CSV` for benches/peers/torch_ops.py.

#[path = "ops/device.rs"]
mod device;

use cotangent::ops::registry;
use cotangent::{DType, Result};
use criterion::{BenchmarkId, Criterion, Throughput};
use std::collections::HashMap;
use std::hint::black_box;
use std::time::Duration;

/// Copies between two buffers that were touched before: what the memory can do. Bytes read and written both count.
fn copy(c: &mut Criterion) {
    let mut group = c.benchmark_group("copy");
    for mib in [1usize, 8, 16, 32, 48, 64, 128] {
        let n = (mib << 20) / 8;
        let (src, mut dst) = (vec![1f32; n], vec![0f32; n]);
        group.throughput(Throughput::Bytes((2 * n * size_of::<f32>()) as u64));
        group
            .bench_function(BenchmarkId::new("one thread", format!("{mib} MiB")), |b| b.iter(|| black_box(&mut dst).copy_from_slice(&src)));
        group.bench_function(BenchmarkId::new("all threads", format!("{mib} MiB")), |b| {
            let piece = n.div_ceil(rayon::current_num_threads());
            b.iter(|| {
                rayon::scope(|s| {
                    for (d, x) in black_box(&mut dst).chunks_mut(piece).zip(src.chunks(piece)) {
                        s.spawn(move |_| d.copy_from_slice(x));
                    }
                });
            });
        });
    }
    group.finish();
}

fn ops(c: &mut Criterion, dtype: DType) {
    for entry in registry() {
        let cases = entry.bench(dtype);
        if cases.is_empty() {
            continue;
        }
        let mut group = c.benchmark_group(entry.name);
        let mut seen: HashMap<String, usize> = HashMap::new();
        for case in cases {
            group.throughput(Throughput::Bytes(case.bytes as u64));
            let mut shapes = case.id.split_once('/').map_or(case.id.as_str(), |(_, shapes)| shapes).replace('/', "_");
            // Samples that differ in the op's options alone are numbered, in the order of the op's list.
            let count = seen.entry(shapes.clone()).or_default();
            *count += 1;
            if *count > 1 {
                shapes = format!("{shapes} #{count}");
            }
            group.bench_function(BenchmarkId::new(format!("{dtype} forward"), &shapes), |b| {
                b.iter(|| (case.forward)().expect("bench sample"));
            });
            if let Some(backward) = &case.backward {
                group.bench_function(BenchmarkId::new(format!("{dtype} forward+backward"), &shapes), |b| {
                    b.iter(|| backward().expect("bench sample"));
                });
            }
        }
        group.finish();
    }
}

fn main() -> Result<()> {
    let dtypes = std::env::var("COTANGENT_BENCH_DTYPES").unwrap_or_else(|_| "f32".into());
    let dtypes: Vec<DType> = dtypes.split(',').map(|name| name.trim().parse()).collect::<Result<_>>()?;
    if let Some(device) = device::chosen()? {
        return device::run(device, &dtypes);
    }
    let mut c =
        Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).configure_from_args();
    copy(&mut c);
    for dtype in dtypes {
        ops(&mut c, dtype);
    }
    c.final_summary();
    Ok(())
}
