//! A small residual network learns to read handwritten digits.
//!
//! `cargo run --release --example digits` trains on 1437 of the 1797 digits of 8×8 pixels in `examples/data`, tests on the other 360, prints
//! which digits are taken for which, and writes a page with the pictures of the mistakes. `--data FOLDER` takes MNIST's files, or others of
//! their format, instead.

mod page;

use clap::Parser;
use cotangent::io::{NpzFile, read_idx};
use cotangent::nn::{Pass, ResNet, ResNetConfig, ResNetStem};
use cotangent::ops::PadMode;
use cotangent::optim::{AdamW, WarmupCosine};
use cotangent::train::{Batches, Event, Loss, Options, Order, Progress, Rows, Trainer, hold_out};
use cotangent::{Error, F32, I64, Key, Module, Result, Tensor};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

#[path = "../shared/mod.rs"]
mod shared;

/// Trains a small residual network on images of digits.
#[derive(Parser)]
#[command(name = "digits")]
struct Args {
    /// Folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, unpacked.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Times that each image is seen.
    #[arg(long, default_value_t = 30)]
    epochs: usize,
    /// Images of a step.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = 4e-3)]
    lr: f64,
    /// Channels of the first stage.
    #[arg(long, default_value_t = 16)]
    width: usize,
    /// Of weights, order and shifts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the page with the mistakes goes.
    #[arg(long, value_name = "FILE", default_value = "target/digits.html")]
    page: PathBuf,
    /// Fails below this share of right answers.
    #[arg(long, value_name = "SHARE")]
    at_least: Option<f64>,
}

/// Images `[n, 1, height, width]` from 0 to 1, and their classes.
type Images = (Tensor, Tensor);

/// Training and test images.
fn data(folder: Option<&Path>, key: Key) -> Result<(Images, Images)> {
    let scaled = |images: Tensor, classes: Tensor, white: f64| -> Result<Images> {
        Ok((images.cast(F32)?.div_scalar(white)?.unsqueeze(1)?, classes.cast(I64)?))
    };
    if let Some(folder) = folder {
        let part = |name: &str| {
            let file = |what: &str| read_idx(folder.join(format!("{name}-{what}-ubyte")));
            let (images, classes) = (file("images-idx3")?, file("labels-idx1")?);
            if images.rank() != 3 || classes.rank() != 1 || images.shape()[0] != classes.shape()[0] {
                return Err(Error::argument(format!("{name}: images {} and classes {}", images.shape(), classes.shape())));
            }
            scaled(images, classes, 255.0)
        };
        return Ok((part("train")?, part("t10k")?));
    }
    let file = NpzFile::open(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/digits.npz"))?;
    hold_out(scaled(file.tensor("images")?, file.tensor("labels")?, 16.0)?, 360, key)
}

/// A batch moved by at most a pixel along each axis: nine times the images.
fn shifted(x: &Tensor, key: Key) -> Result<Tensor> {
    let (height, width) = (x.size(2)?, x.size(3)?);
    let by = |i| (f64::from(key.uniform_f32(i)) * 3.0) as usize;
    x.pad_with(&[(0, 0), (0, 0), (1, 1), (1, 1)], PadMode::Replicate)?.narrow(2, by(0), height)?.narrow(3, by(1), width)
}

/// The class of each image.
fn classify(net: &ResNet, images: &Tensor) -> Result<Tensor> {
    let parts: Vec<Tensor> = Rows::new(images.clone(), 256, Order::Sequential, Key::new(0))?
        .iter_epoch(0)
        .map(|x| net.forward(&x?)?.argmax(1))
        .collect::<Result<_>>()?;
    Tensor::concat(&parts, 0)
}

fn run(args: &Args) -> Result<()> {
    let (started, key) = (Instant::now(), Key::new(args.seed));
    let (train, (images, classes)) = data(args.data.as_deref(), key.fold(0))?;
    let labels = 1 + train.1.to_vec::<i64>()?.into_iter().max().unwrap_or(0) as usize;
    let (w, n) = (args.width, train.1.numel());
    let config = ResNetConfig {
        channels: 1,
        stem: ResNetStem::Small,
        width: w,
        widths: vec![w, 2 * w, 4 * w],
        depths: vec![1, 1, 1],
        bottleneck: false,
        classes: labels,
    };
    let net = ResNet::new(&config, F32, key.fold(1))?;
    println!(
        "{n} images of {} x {} pixels to learn, {} to test; {} parameters",
        images.size(2)?,
        images.size(3)?,
        classes.numel(),
        net.num_params()
    );

    let rows = Rows::new(train, args.batch, Order::Shuffled, key.fold(2))?;
    let steps = args.epochs * rows.epoch();
    let data = |i: u64| rows.batch(i);
    let progress = Progress::new(args.batch, "images");
    let mut trainer = Trainer::new(net, AdamW { weight_decay: 0.05, ..AdamW::default() });
    trainer.options = Options { steps, evaluate_every: rows.epoch() * args.epochs.div_ceil(6).max(1), ..Options::default() };
    trainer.schedule = Some(Box::new(WarmupCosine { peak: args.lr, floor: args.lr / 100.0, warmup: (steps / 10).max(1), end: steps }));
    trainer.key = key.fold(3);
    trainer.evaluate_with(|net| Ok(1.0 - classify(net, &images)?.eq(&classes)?.cast(F32)?.mean(..)?.item()?));
    trainer.on(progress.callback());
    trainer.on(|event| {
        if let Event::Evaluated { step, loss, .. } = event {
            progress.suspend(|| println!("step {step:>5}: {:.2} % of the test images right", 100.0 * (1.0 - loss)));
        }
        Ok(())
    });
    let outcome = trainer.run(&data, |net, (x, y), key| {
        let mut pass = Pass::train();
        let logits = net.forward_in(&shifted(x, key)?, &mut pass)?;
        Ok(Loss::new(logits.cross_entropy(y)?).pass(pass))
    })?;
    progress.finish();

    let net = &trainer.model;
    let (found, right) = (classify(net, &images)?.to_vec::<i64>()?, classes.to_vec::<i64>()?);
    println!("\nrows: what it is; columns: what it is taken for\n{}", table(&right, &found, labels));
    let wrong: Vec<usize> = (0..right.len()).filter(|&i| right[i] != found[i]).collect();
    page::write(&args.page, &images, &wrong, &right, &found)?;
    let share = 1.0 - wrong.len() as f64 / right.len() as f64;
    println!(
        "{:.2} % right, {} mistakes ({}), in {:.1} s, of which {:.1} s training",
        100.0 * share,
        wrong.len(),
        args.page.display(),
        started.elapsed().as_secs_f64(),
        outcome.seconds
    );
    match args.at_least {
        Some(least) if share < least => Err(Error::argument(format!("{share} of the answers are right, {least} were asked for"))),
        _ => Ok(()),
    }
}

/// How often each class was taken for each.
fn table(right: &[i64], found: &[i64], labels: usize) -> String {
    let mut text = format!("    {}\n", (0..labels).map(|c| format!("{c:>5}")).collect::<String>());
    for is in 0..labels as i64 {
        let count = |taken: i64| right.iter().zip(found).filter(|&(r, f)| (*r, *f) == (is, taken)).count();
        let row: String =
            (0..labels as i64).map(|c| if count(c) == 0 { format!("{:>5}", ".") } else { format!("{:>5}", count(c)) }).collect();
        text.push_str(&format!("{is:>4}{row}\n"));
    }
    text
}

fn main() -> ExitCode {
    shared::exit("digits", run(&Args::parse()))
}
