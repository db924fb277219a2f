//! What the suite's small samples never reach on the emulated device: lines so long that kernels cut them or read them twice, in
//! every dtype, and words of one byte. Called by the suite's test, which then asks whether any kernel was left out.

use cotangent::{BF16, DType, Device, F16, F32, F64, I64, Key, Result, Tape, Tensor, U8, grad};

fn there(x: &Tensor) -> Tensor {
    x.to_device(Device::cuda_emulated().unwrap()).unwrap()
}

/// How far two sums of the same numbers in another order may lie apart, relative to one and the number.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        F64 => 1e-11,
        F32 => 1e-4,
        F16 => 2e-3,
        _ => 1.6e-2,
    }
}

/// Value and gradient on the emulated device against the CPU's.
fn agrees(what: &str, shape: &[usize], dtypes: &[DType], f: impl Fn(&Tensor) -> Result<Tensor>) {
    let run = |x: &Tensor, device: Device| -> Result<[Vec<f64>; 2]> {
        let tape = Tape::new();
        let x = tape.watch(&x.to_device(device)?)?;
        let y = f(&x)?;
        let seed = Tensor::randn(y.shape().clone(), x.dtype(), Key::new(2))?.to_device(device)?;
        let g = tape.backward_from(&[(&y, seed)])?;
        Ok([y.to_f64_vec()?, g.get(&x)?.to_f64_vec()?])
    };
    for &dtype in dtypes {
        let x = Tensor::randn(shape, dtype, Key::new(1)).unwrap();
        let want = run(&x, Device::Cpu).unwrap();
        let found = run(&x, Device::cuda_emulated().unwrap()).unwrap_or_else(|e| panic!("{what}: {e}"));
        for (k, (a, b)) in want.iter().flatten().zip(found.iter().flatten()).enumerate() {
            assert!((a - b).abs() <= tolerance(dtype) * (1.0 + a.abs()), "{what} in {dtype}, number {k}: {b} instead of {a}");
        }
    }
}

/// The same elements in both places.
fn same(what: &str, x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) {
    let (here, there) = (f(x).unwrap(), f(&there(x)).unwrap_or_else(|e| panic!("{what}: {e}")));
    assert_eq!(here.to_f64_vec().unwrap(), there.to_f64_vec().unwrap(), "{what} of {} {}", x.dtype(), x.shape());
}

#[test]
pub fn check() {
    let (all, long) = ([F32, F64, BF16, F16], [F32, F64]);
    for (shape, axis, dtypes) in [(&[2usize, 40_000][..], -1, &all[..]), (&[9000, 3][..], 0, &long), (&[5000, 8][..], 0, &long)] {
        agrees("sum", shape, dtypes, |x| x.sum(axis));
        agrees("max", shape, dtypes, |x| x.max(axis));
        agrees("min", shape, dtypes, |x| x.min(axis));
        agrees("logsumexp", shape, dtypes, |x| x.logsumexp(axis));
        agrees("var", shape, dtypes, |x| x.var(axis, 1));
        agrees("std", shape, dtypes, |x| x.std(axis, 0));
        agrees("norm", shape, dtypes, |x| x.norm(axis));
        agrees("prod", shape, dtypes, |x| x.mul_scalar(1e-3)?.add_scalar(1.0)?.prod(axis));
        agrees("softmax", shape, &long, |x| x.softmax(axis));
        agrees("log_softmax", shape, &long, |x| x.log_softmax(axis));
        for &dtype in dtypes {
            let x = Tensor::randn(shape, dtype, Key::new(3)).unwrap();
            same("argmax", &x, |x| x.argmax(axis));
            same("argmin", &x, |x| x.argmin(axis));
            for k in [7, 3000] {
                same("topk", &x, |x| Ok(x.topk(k, axis)?.0));
                same("the places of topk", &x, |x| Ok(x.topk(k, axis)?.1));
            }
        }
    }
    let parameter = |x: &Tensor, seed| Tensor::randn(x.shape()[1..].to_vec(), x.dtype(), Key::new(seed))?.to_device(x.device());
    for n in [600, 2000, 9001, 9008] {
        agrees("layer_norm", &[3, n], &long, |x| x.layer_norm(1, Some(&parameter(x, 4)?), Some(&parameter(x, 5)?), 1e-5));
        agrees("rms_norm", &[3, n], &long, |x| x.rms_norm(Some(&parameter(x, 4)?), 1e-5));
    }
    // The target distribution is only asked for by derivatives of the derivative.
    agrees("the derivative of cross_entropy", &[3, 5], &all, |x| {
        let targets = Tensor::from_slice(&[1i64, 4, 0], [3])?.to_device(x.device())?;
        Ok(grad(x, |x| x.cross_entropy(&targets))?.into_inner())
    });
    bytes();
}

/// Ops that move elements know four sizes of them; masks are those of one byte.
fn bytes() {
    let x = Tensor::randint([4, 6], 0..250, U8, Key::new(6)).unwrap();
    same("flip", &x, |x| x.flip([0, 1]));
    same("roll", &x, |x| x.roll(&[2], [1]));
    same("pad", &x, |x| x.pad(&[(1, 2), (0, 3)], 7.0));
    same("triu", &x, |x| x.triu(1));
    same("tril", &x, |x| x.tril(-1));
    same("transposed", &x, |x| x.transpose(0, 1)?.contiguous());
    same("concat", &x, |x| Tensor::concat(&[x, x], 1));
    same("repeat_interleave", &x, |x| x.repeat_interleave(3, 1));
    same("index_select", &x, |x| x.index_select(0, &Tensor::from_slice(&[3i64, 0, 3], [3])?.to_device(x.device())?));
    same("gather", &x, |x| x.gather(1, &Tensor::from_slice(&[3i64, 0, 5, 2], [4, 1])?.to_device(x.device())?));
    same("where_cond", &x, |x| x.triu(0)?.where_cond(x, &x.flip([0])?));
    same("cast", &x, |x| x.cast(I64));
    for n in [1usize, 3] {
        let long = Tensor::zeros([n, 100_000], U8).unwrap().pad(&[(0, 0), (0, 1)], 1.0).unwrap();
        same("any", &long, |x| x.any(-1));
        same("all", &long, |x| x.all(-1));
    }
}
