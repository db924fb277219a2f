//! What an error of a kernel says.

use super::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, Specs, apply1};
use crate::backend::cuda::{self, kernels};
use crate::backend::{Device, cpu};
use crate::error::Result;
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};

/// Copies more than there is.
#[derive(Clone, Debug)]
struct Overrun;

impl Describe for Overrun {
    const NAME: &'static str = "overrun";
    const MATH: Math = Math { forward: "y = x", vjp: "x̄ = ȳ", kinks: "none", cost: "too much", references: "none" };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        vec![x[0].clone()]
    }

    fn samples(_: &mut Gen) -> Vec<Sample<Self>> {
        Vec::new()
    }
}

impl Op for Overrun {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<Specs> {
        Ok(Specs::from_iter([x[0].clone()]))
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        y[0].slice::<f32>().copy_from_slice(&x[0].contiguous::<f32>()?);
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let (on, n) = (y[0].context(), y[0].numel());
        let (src, mut view) = x[0].view()?;
        view.rank = 0;
        kernels::copy::gather(on, cuda::grid(on, 1, 4), &y[0].dst(), &src, view, 2 * n as i64 + 4096)
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(InputCotangents::from_iter([Some(y_bar.only()?.clone())]))
    }
}

#[test]
fn an_error_of_a_kernel_names_op_line_kernel_and_thread() {
    let device = Device::cuda_emulated().unwrap();
    cuda::set_blocking(device, true).unwrap();
    let x = Tensor::from_slice(&[1f32; 8], [8]).unwrap().to_device(device).unwrap();
    let (e, line) = (apply1(Overrun, &[&x]).unwrap_err(), line!());
    let text = e.to_string();
    cuda::set_blocking(device, false).unwrap();
    for part in ["overrun: ", "copy_gather", "thread", &format!("op_tests.rs:{line}")] {
        assert!(text.contains(part), "`{part}` is missing: {text}");
    }
    // As on a GPU, nothing goes on after such a fault. No other unit test takes the process's own emulated device.
    for e in [x.to_vec::<f32>().unwrap_err(), x.square().and_then(|y| y.to_vec::<f32>()).unwrap_err()] {
        assert!(e.is_device_unavailable() && e.to_string().contains("restart it"), "{e}");
    }
}
