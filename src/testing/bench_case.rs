//! Bench samples as closures to time.

use super::Input;
use super::suite::AnySample;
use crate::backend::Device;
use crate::dtype::{DType, Element, with_dtype};
use crate::error::Result;
use crate::op::Outputs;
use crate::rng::Key;
use crate::tape::Tape;
use crate::tensor::Tensor;
use std::sync::Arc;

/// A case to time: call `forward` or `backward` once per iteration.
pub struct BenchCase {
    /// Op name and shapes.
    pub id: String,
    /// Bytes of all inputs and outputs.
    pub bytes: usize,
    /// Forward.
    pub forward: Box<dyn Fn() -> Result<Outputs>>,
    /// Forward and backward to every differentiable input, with a random cotangent; `None` when there is none.
    pub backward: Option<Box<dyn Fn() -> Result<()>>>,
}

fn tensor(values: &[f64], shape: &crate::Shape, dtype: DType, device: Device) -> Result<Tensor> {
    with_dtype!(dtype, T => {
        let v: Vec<T> = values.iter().map(|&x| <T as Element>::from_f64(x)).collect();
        Tensor::from_slice(&v, shape)?.to_device(device)
    })
}

/// A sample to time.
pub(super) fn bench_case(s: AnySample, dtype: DType, device: Device) -> Result<BenchCase> {
    let x: Vec<Tensor> =
        s.inputs.iter().map(|i: &Input| tensor(&i.to_vec(), i.shape(), i.dtype().unwrap_or(dtype), device)).collect::<Result<_>>()?;
    let y = s.op.run(&x.iter().collect::<Vec<_>>())?;
    let bytes = x.iter().chain(&y).map(|t| t.numel() * t.dtype().size()).sum();
    let shapes: Vec<String> = x.iter().map(|t| t.shape().to_string()).collect();
    let id = format!("{}/{}", s.op.name(), shapes.join("x"));
    let key = Key::new(11);
    let seeds: Vec<Option<Tensor>> = y
        .iter()
        .map(|y| {
            let values = || (0..y.numel()).map(|i| key.uniform_f64(i as u64) - 0.5).collect::<Vec<_>>();
            y.dtype().is_float().then(|| tensor(&values(), y.shape(), y.dtype(), device)).transpose()
        })
        .collect::<Result<_>>()?;
    let s = Arc::new(s);
    let watches = |s: &AnySample, i: usize, t: &Tensor| t.dtype().is_float() && !s.no_grad.contains(&i);
    let differentiable = seeds.iter().any(Option::is_some) && x.iter().enumerate().any(|(i, t)| watches(&s, i, t));
    let (inputs, sample) = (x.clone(), Arc::clone(&s));
    let backward = move || {
        let tape = Tape::new();
        let watched: Vec<Tensor> = inputs
            .iter()
            .enumerate()
            .map(|(i, t)| if watches(&sample, i, t) { tape.watch(t) } else { Ok(t.clone()) })
            .collect::<Result<_>>()?;
        let y = sample.op.run(&watched.iter().collect::<Vec<_>>())?;
        let pairs: Vec<(&Tensor, Tensor)> =
            y.iter().zip(&seeds).filter_map(|(y, s)| Some((y, s.clone()?))).filter(|(y, _)| y.is_tracked()).collect();
        let wrt: Vec<&Tensor> = watched.iter().filter(|t| t.is_tracked()).collect();
        tape.cotangents(&pairs, &wrt).map(drop)
    };
    Ok(BenchCase {
        id,
        bytes,
        forward: Box::new(move || s.op.run(&x.iter().collect::<Vec<_>>())),
        backward: if differentiable { Some(Box::new(backward)) } else { None },
    })
}
