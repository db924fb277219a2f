//! A deep equilibrium model (Bai, Kolter & Koltun 2019) reads digits: its layer is the fixed point of a cell.

use cotangent::io::NpzFile;
use cotangent::nn::{Linear, LinearOptions};
use cotangent::optim::Adam;
use cotangent::train::{Order, Rows, Trainer};
use cotangent::{F32, Result, Rng, Tensor, custom_vjp_module, module, vjp};

fn fixed_point(f: impl Fn(&Tensor) -> Result<Tensor>, mut z: Tensor) -> Result<Tensor> {
    for _ in 0..100 {
        let before = z;
        z = f(&before)?;
        if (&z - before).abs()?.max(..)?.item()? < 1e-6 {
            break;
        }
    }
    Ok(z)
}

#[derive(Clone)]
struct Cell {
    state: Linear,
    input: Linear,
}
module!(Cell { state, input });

impl Cell {
    fn forward(&self, z: &Tensor, x: &Tensor) -> Result<Tensor> {
        (self.state.forward(z)? + self.input.forward(x)?).tanh()
    }
}

#[derive(Clone)]
struct Equilibrium {
    cell: Cell,
    head: Linear,
}
module!(Equilibrium { cell, head });

impl Equilibrium {
    fn new(inputs: usize, width: usize, classes: usize, rng: &mut Rng) -> Result<Self> {
        let mut linear =
            |inputs, outputs, bias| Linear::with(inputs, outputs, F32, rng.next_key(), &LinearOptions { bias, ..LinearOptions::default() });
        let cell = Cell { state: linear(width, width, false)?, input: linear(inputs, width, true)? };
        Ok(Equilibrium { cell, head: linear(width, classes, true)? })
    }

    /// The solver is not recorded: the implicit function theorem gives the cotangents, by u = z̄ + Jᵀu.
    fn equilibrium(&self, x: &Tensor) -> Result<Tensor> {
        let start = Tensor::zeros([x.size(0)?, self.head.weight.size(1)?], x.dtype())?;
        let solve = |cell: &Cell, x: &Tensor| fixed_point(|z| cell.forward(z, x), start);
        custom_vjp_module(&self.cell, x, solve, |cell, x, z, z_bar| {
            let back = vjp(&(cell.clone(), x.clone(), z.clone()), |(cell, x, z)| cell.forward(z, x))?;
            let u = fixed_point(|u| Ok(z_bar + &back.pull(u)?.2), z_bar.clone())?;
            let (cell_bar, x_bar, _) = back.pull(&u)?.into_inner();
            Ok((cell_bar, x_bar))
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.head.forward(&self.equilibrium(x)?)
    }
}

fn digits() -> Result<(Tensor, Tensor)> {
    let file = NpzFile::open("examples/data/digits.npz")?;
    let (images, labels) = (file.tensor("images")?, file.tensor("labels")?);
    Ok((images.flatten(1, -1)?.cast(F32)? / 16, labels))
}

fn train(epochs: usize, rng: &mut Rng) -> Result<(Equilibrium, f64)> {
    let (x, y) = digits()?;
    let mut trainer = Trainer::new(Equilibrium::new(64, 32, 10, rng)?, Adam { lr: 5e-3, ..Adam::default() });
    let batches = Rows::new((x.slice(0, ..1500)?, y.slice(0, ..1500)?), 50, Order::Shuffled, rng.next_key())?;
    trainer.options.steps = epochs * batches.epoch();
    trainer.run(&batches, |m, (images, labels), _| m.forward(images)?.cross_entropy(labels))?;
    let right = trainer.model.forward(&x.slice(0, 1500..)?)?.argmax(-1)?.eq(&y.slice(0, 1500..)?)?;
    let accuracy = right.cast(F32)?.mean(..)?.item()?;
    Ok((trainer.model, accuracy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cotangent::{F64, Module, grad};

    #[test]
    fn it_reads_digits() -> Result<()> {
        let (model, accuracy) = train(5, &mut Rng::seed(1))?;
        println!("{accuracy:.3} right");
        // The digits that are judged are ten, about equally often: to guess is to be right once in ten times.
        assert!(accuracy > 0.85, "{accuracy:.3} right");
        // The layer's value is an equilibrium, also after training.
        let x = digits()?.0.slice(0, 1500..)?;
        let z = model.equilibrium(&x)?;
        let moved = (model.cell.forward(&z, &x)? - &z).abs()?.max(..)?.item()?;
        assert!(moved < 1e-4, "the cell moves it by {moved}");
        Ok(())
    }

    /// By the implicit function theorem, and through all the steps of the solver.
    #[test]
    fn its_gradient_is_that_of_the_unrolled_solver() -> Result<()> {
        let mut rng = Rng::seed(2);
        let model = Equilibrium::new(5, 6, 3, &mut rng)?.cast(F64)?;
        let x = Tensor::randn([4, 5], F64, &mut rng)?;
        let unrolled = |m: &Equilibrium, x: &Tensor| {
            let start = Tensor::zeros([4, 6], F64)?;
            let z = (0..200).try_fold(start, |z, _| m.cell.forward(&z, x))?;
            m.head.forward(&z)?.square()?.sum(..)
        };
        let implicit = |m: &Equilibrium, x: &Tensor| m.forward(x)?.square()?.sum(..);
        let both = (model.clone(), x.clone());
        let (a, b) = (grad(&both, |(m, x)| implicit(m, x))?, grad(&both, |(m, x)| unrolled(m, x))?);
        let apart = a.zip_map(&b, |_, a, b| (a - b).abs()?.max(..)?.div(&b.abs()?.max(..)?))?;
        for (name, t) in apart.named_tensors() {
            // The solver stops when a step is shorter than 1e-6.
            assert!(t.item()? < 1e-5, "{name} is off by {} of its largest element", t.item()?);
        }
        // The derivative is made of ops of its arguments: it has one, too.
        let second = |f: &dyn Fn(&Tensor) -> Result<Tensor>| grad(&x, |x| grad(x, f)?.square()?.sum(..));
        let (a, b) = (second(&|x| implicit(&model, x))?, second(&|x| unrolled(&model, x))?);
        let off = (a - &b).abs()?.max(..)?.item()?;
        assert!(off < 1e-4 * b.abs()?.max(..)?.item()?, "second derivatives are off by {off}");
        Ok(())
    }
}
