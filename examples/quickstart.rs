//! The README's example: a small network learns the sine.

use cotangent::{F32, Key, Result, Tensor, module, nn::Linear, optim::AdamW, value_and_grad};

#[derive(Clone)]
struct Net {
    hidden: Linear,
    out: Linear,
}
module!(Net { hidden, out }); // a forgotten field does not compile

impl Net {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.out.forward(&self.hidden.forward(x)?.tanh()?)
    }
}

fn main() -> Result<()> {
    let key = Key::new(1);
    let mut net = Net { hidden: Linear::new(1, 16, F32, key.fold(0))?, out: Linear::new(16, 1, F32, key.fold(1))? };
    let mut adam = AdamW { lr: 0.02, ..AdamW::default() };
    let x = Tensor::linspace(-3.0, 3.0, 64, F32)?.reshape([64, 1])?;
    let y = x.sin()?;
    for step in 0..300 {
        let (loss, mut grads) = value_and_grad(&net, |n| (n.forward(&x)? - &y).square()?.mean(..))?;
        let norm = grads.clip_global_norm(1.0)?.norm;
        adam.step(&mut net, &grads)?;
        if step % 100 == 0 {
            println!("step {step:>3}  loss {:.4}  gradient norm {norm:.3}", loss.item()?);
        }
    }
    let error = (net.forward(&x)? - &y).square()?.mean(..)?.item()?;
    println!("mean squared error {error:.5}");
    assert!(error < 0.01);
    Ok(())
}
