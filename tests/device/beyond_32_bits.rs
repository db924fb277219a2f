//! Tensors of more elements than 32 bits count, on a GPU: what a kernel does with the last rows of such a tensor is what it does
//! with those rows alone. (Layouts that reach beyond 32 bits are one of the suite's arrangements, on the CPU.)

use cotangent::ops::{CrossEntropyOptions, Reduction};
use cotangent::{BF16, Device, F32, Key, Result, Tensor, value_and_grad};

/// More elements than 32 bits count [C9]: 8200 rows of a vocabulary of 262144 are 2.15e9 logits, 4.3 GB in bf16.
const ROWS: usize = 8200;
const WIDTH: usize = 262_144;
const LAST: usize = 3;

fn last(x: &Tensor) -> Result<Vec<f64>> {
    let rows = x.shape()[0];
    x.slice(0, rows - LAST..)?.contiguous()?.cast(F32)?.to_vec::<f32>().map(|v| v.into_iter().map(f64::from).collect())
}

#[test]
fn the_last_rows_of_a_tensor_beyond_32_bits() {
    let gpu = match Device::cuda(0) {
        Ok(gpu) => gpu,
        Err(e) => {
            assert!(std::env::var_os("REQUIRE_GPU").is_none_or(|v| v != "1"), "{e}");
            return crate::say(&format!("skipped: tensors beyond 32 bits ({e})"));
        }
    };
    check(gpu, ROWS, WIDTH).unwrap();
}

/// The same test on tensors that 32 bits do count: that it can pass at all.
#[test]
fn the_last_rows_of_small_tensors() {
    check(Device::Cpu, 9, 40).unwrap();
}

fn check(device: Device, rows: usize, width: usize) -> Result<()> {
    assert!(device == Device::Cpu || rows * width > i32::MAX as usize);
    let row = Tensor::randn([1, width], BF16, Key::new(1))?.to_device(device)?;
    let column = Tensor::randn([rows, 1], BF16, Key::new(2))?.to_device(device)?;
    let x = row.add(&column)?;
    let alone = x.slice(0, rows - LAST..)?.contiguous()?;
    let ids: Vec<i64> = (0..rows as u64).map(|i| Key::new(3).below(i, width as u64) as i64).collect();
    let targets = Tensor::from_slice(&ids, [rows])?.to_device(device)?;
    let losses = CrossEntropyOptions { reduction: Reduction::None, ..CrossEntropyOptions::default() };

    type Case<'a> = (&'a str, &'a dyn Fn(&Tensor, &Tensor) -> Result<Tensor>);
    let cases: [Case<'_>; 12] = [
        ("relu", &|x, _| x.relu()),
        ("gelu", &|x, _| x.gelu()),
        ("add, broadcast", &|x, _| x.add(&row)),
        ("mul, transposed twice", &|x, _| x.t()?.mul(&x.t()?)?.t()),
        ("softmax", &|x, _| x.softmax(-1)),
        ("layer_norm", &|x, _| x.layer_norm(1, None, None, 1e-5)),
        ("sum of rows", &|x, _| x.sum(1)?.unsqueeze(1)),
        ("largest of rows", &|x, _| x.max(1)?.unsqueeze(1)),
        ("cumsum", &|x, _| x.cumsum(1)),
        ("concat", &|x, _| Tensor::concat(&[x, &x.slice(1, ..1)?], 1)),
        ("cross_entropy", &|x, t| x.cross_entropy_with(t, &losses)?.unsqueeze(1)),
        ("gradient of cross_entropy", &|x, t| Ok(value_and_grad(x, |x| x.cross_entropy_with(t, &losses)?.sum(..))?.1.named()[0].1.clone())),
    ];
    for (name, op) in cases {
        let of_all = last(&op(&x, &targets)?)?;
        let of_few = last(&op(&alone, &targets.slice(0, rows - LAST..)?.contiguous()?)?)?;
        assert!(of_all.iter().any(|v| *v != 0.0), "{name}: only zeros");
        assert!(of_all.iter().zip(&of_few).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}: the last rows differ");
    }
    Ok(())
}
