//! An op of your own, outside the crate, by the contract that the crate's ops follow; then every check on it.
//!
//! `smooth_abs` is √(x² + ε²) − ε: like |x|, but smooth at 0 (the pseudo-Huber or Charbonnier function).

use cotangent::testing::{Config, OpEntry, Report, gradcheck, gradgradcheck};
use cotangent::{Key, value_and_grad};

// <op>
use cotangent::DType;
use cotangent::backend::cpu::{Compute, In, Out, Real};
use cotangent::backend::cuda;
use cotangent::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, Specs, apply1, expect};
use cotangent::testing::{Gen, Input, Nd, Sample, Scalar};
use cotangent::{Error, ErrorKind, Result, Tensor};

/// The op with its options.
#[derive(Clone, Debug)]
pub struct SmoothAbs {
    /// Width of the rounded corner.
    pub eps: f64,
}

impl Describe for SmoothAbs {
    const NAME: &'static str = "smooth_abs";
    const MATH: Math = Math {
        forward: "y = √(x² + ε²) − ε, computed as x² / (√(x² + ε²) + ε), which does not cancel near 0",
        vjp: "x̄ = ȳ · x / √(x² + ε²)",
        kinks: "smooth; x² overflows beyond 1e19 in f32",
        cost: "reads x, writes y; saves x",
        references: "Charbonnier et al. 1997",
    };

    // The textbook's formula on any scalar: values, exact derivatives and error bounds come from this text.
    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let e = S::lit(self.eps);
        vec![x[0].map(|x| x * x / ((x * x + e * e).sqrt() + e))]
    }

    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = g.shape(2);
        vec![
            Sample::check(SmoothAbs { eps: 0.5 }, [g.normal(&shape)]),
            Sample::check(SmoothAbs { eps: 2.0 }, [g.normal(&shape)]),
            Sample::check(SmoothAbs { eps: 0.5 }, [Input::values([5], [0.0, 1e-6, -1e-3, 100.0, -2.0])]).note("both sides of the corner"),
            Sample::check(SmoothAbs { eps: 0.5 }, [g.normal([0, 3])]).note("no elements"),
            Sample::value(SmoothAbs { eps: 0.5 }, [Input::values([1], [f64::NAN])]),
            Sample::reject(SmoothAbs { eps: -1.0 }, [g.normal([2])], ErrorKind::Argument),
            Sample::bench(SmoothAbs { eps: 0.5 }, [g.normal([1 << 20])]),
        ]
    }
}

impl Op for SmoothAbs {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<Specs> {
        expect::same_float(x)?;
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            return Err(Error::argument(format!("eps must be positive and finite, found {}", self.eps)));
        }
        Ok(Specs::from_iter([x[0].clone()]))
    }

    fn cpu(&self, x: &[In<'_>], y: &mut [Out<'_>]) -> Result<()> {
        match x[0].dtype() {
            DType::F64 => kernel::<f64>(&x[0], &mut y[0], self.eps),
            DType::F32 => kernel::<f32>(&x[0], &mut y[0], self.eps),
            DType::BF16 => kernel::<cotangent::bf16>(&x[0], &mut y[0], self.eps),
            DType::F16 => kernel::<cotangent::f16>(&x[0], &mut y[0], self.eps),
            d => Err(Error::dtype(format!("expected a float dtype, found {d}"))),
        }
    }

    fn cuda(&self, _: &[cuda::In<'_>], _: &mut [cuda::Out<'_>]) -> Result<()> {
        Err(cuda::no_kernel(Self::NAME))
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[0])])
    }

    // In tensor ops: so it can be differentiated again.
    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let x = saved.get(0)?;
        let root = x.square()?.add_scalar(self.eps * self.eps)?.sqrt()?;
        Ok(InputCotangents::from_iter([Some(y_bar.only()?.mul(&x.div(&root)?)?)]))
    }
}

/// Any layout, any float type: half types are widened, and rounded once at the end.
fn kernel<T: Compute>(x: &In<'_>, y: &mut Out<'_>, eps: f64) -> Result<()> {
    let x = x.contiguous::<T>()?;
    let eps = <T::Acc as Real>::from_f64(eps);
    for (y, x) in y.slice::<T>().iter_mut().zip(x.iter()) {
        let square = x.load() * x.load();
        *y = T::store(square / ((square + eps * eps).sqrt() + eps));
    }
    Ok(())
}
// </op>

/// How users call it.
fn smooth_abs(x: &Tensor, eps: f64) -> Result<Tensor> {
    apply1(SmoothAbs { eps }, &[x])
}

fn main() -> Result<()> {
    // The suite that the crate's own ops pass: four dtypes, five layouts, exact derivatives, second derivatives, threads, …
    let entry = OpEntry::op::<SmoothAbs>();
    let mut report = Report::default();
    for (seed, limit) in [(0, 3), (1, 9), (2, 17)] {
        entry.check(&Config { seed, limit, ..Config::default() }, &mut report);
    }
    println!("{}", report.table());
    for failure in &report.failures {
        println!("{failure}");
    }
    for missing in report.missing(&[entry]) {
        println!("not covered: {missing}");
    }
    assert!(report.failures.is_empty() && report.missing(&[entry]).is_empty(), "the op fails its checks");

    // The checks work on functions too.
    let x = Tensor::randn([3, 4], cotangent::F64, Key::new(1))?;
    println!("{}", gradcheck(|x| smooth_abs(&x[0], 0.5), std::slice::from_ref(&x))?);
    println!("{}", gradgradcheck(|x| smooth_abs(&x[0], 0.5), std::slice::from_ref(&x))?);

    // And it is an op like any other.
    let (loss, grads) = value_and_grad(&x, |x| smooth_abs(x, 0.1)?.mean(..))?;
    println!("mean {:.4}, largest derivative {:.4}", loss.item()?, grads.abs()?.max(..)?.item()?);
    Ok(())
}
