//! The trainer as users asked for it: numbers beside the loss, weighted micro-batches, the best
//! model, a state that goes on, several optimizers, and runs that do not continue by other rules unnoticed.

use crate::files::Folder;
use cotangent::io::ModuleFile;
use cotangent::optim::{AdamW, ReduceLrOnPlateau, Schedule, Sgd, Split, WarmupCosine};
use cotangent::train::{
    Batches, Characters, Csv, Event, HealthWatch, KeepBest, Loss, Options, Order, Prefetch, Rows, Snapshot, Snapshots, Tokenizer, Tokens,
    Trainer, Windows, count_targets, mean_loss, record,
};
use cotangent::{F32, F64, GradOptions, I64, Key, Param, Result, Tensor, module, nn::Linear, value_and_grad};
use std::process::Command;
use std::sync::atomic::AtomicBool;

fn weights() -> Tensor {
    Tensor::from_slice(&[0.5f64, -1.0, 2.0], [3]).unwrap()
}

fn numbers(i: u64) -> Result<Tensor> {
    Tensor::randn([4, 3], F64, Key::new(9).fold(i))
}

fn loss(w: &Tensor, x: &Tensor, _: Key) -> Result<Tensor> {
    x.mul(w)?.add_scalar(-1.0)?.square()?.mean(..)
}

fn bits(t: &Tensor) -> Vec<u64> {
    t.to_f64_vec().unwrap().iter().map(|x| x.to_bits()).collect()
}

/// Micro-batches with 2, 1 and 0 counted targets make the step of the whole batch.
#[test]
fn micro_batches_count_by_their_targets() -> Result<()> {
    let w = Tensor::randn([5, 4], F64, Key::new(1))?;
    let x = Tensor::randn([12, 4], F64, Key::new(2))?;
    let targets = Tensor::from_slice(&[0i64, 3, -100, 2, -100, -100, -100, -100, 1, 1, 4, 0], [12])?;
    let parts = |i: u64| Ok((x.narrow(0, 2 * i as usize, 2)?, targets.narrow(0, 2 * i as usize, 2)?));
    let halves = |i: u64| Ok((x.narrow(0, 6 * i as usize, 6)?, targets.narrow(0, 6 * i as usize, 6)?));
    let counted = |w: &Tensor, (x, y): &(Tensor, Tensor), _: Key| {
        let n = count_targets(y, -100)?;
        Ok(Loss::new(x.linear(w, None)?.cross_entropy(y)?).targets(n).metric("twice", 2.0 * n))
    };
    let new = |accumulate| {
        let mut t = Trainer::new(w.clone(), Sgd::new(0.7));
        t.options = Options { steps: 2, accumulate, clip: Some(10.0), ..Options::default() };
        t
    };
    let (mut many, mut one) = (new(3), new(1));
    let outcome = many.run(&parts, counted)?;
    let whole = one.run(&halves, counted)?;
    assert_eq!((outcome.skipped, whole.skipped), (0, 0));
    let apart = many.model.sub(&one.model)?.abs()?.max(..)?.item()?;
    assert!(apart < 1e-15, "{apart}");
    assert!((outcome.loss.unwrap() - whole.loss.unwrap()).abs() < 1e-15);
    // Without numbers of targets it is another step, by as much as this.
    let mut plain = new(3);
    plain.run(&parts, |w, (x, y), _| x.linear(w, None)?.cross_entropy(y))?;
    let apart = plain.model.sub(&one.model)?.abs()?.max(..)?.item()?;
    assert!(!(apart < 1e-2), "{apart}");
    // No target in the whole step: it is left out, and the run goes on.
    let empty = |i: u64| if i == 1 { Ok((x.narrow(0, 4, 2)?, targets.narrow(0, 4, 2)?)) } else { parts(0) };
    for accumulate in [1, 2] {
        let mut t = new(accumulate);
        t.options.steps = 2;
        let none = |i: u64| if accumulate == 1 { empty(i) } else { empty(u64::from(i >= 2)) };
        assert_eq!(t.run(&none, counted)?.skipped, 1, "{accumulate}");
    }
    let mut t = new(2);
    let e = t.run(&parts, |w, (x, y), _| {
        let l = Loss::new(x.linear(w, None)?.cross_entropy(y)?);
        Ok(if y.to_vec::<i64>()?[1] == 3 { l.targets(2.0) } else { l })
    });
    assert!(e.err().unwrap().to_string().contains("for some batches and not for others"));
    Ok(())
}

#[test]
fn numbers_beside_the_loss_reach_callbacks_and_sinks() -> Result<()> {
    let folder = Folder::new("aux");
    let path = folder.join("metrics.csv");
    let columns: Vec<&str> = Csv::COLUMNS.into_iter().chain(["half", "count", "validation_accuracy"]).collect();
    let mut seen = Vec::new();
    let mut t = Trainer::new(weights(), AdamW::default());
    t.options = Options { steps: 3, accumulate: 2, evaluate_every: 2, ..Options::default() };
    t.evaluate_with(|w| Ok((w.sum(..)?.item()?, [("accuracy", 0.75)])));
    t.on(record(Csv::open(&path, &columns, 0)?));
    t.on(|event| {
        match event {
            Event::Step { report, metrics, .. } => {
                assert!((metrics[0].1 - report.loss / 2.0).abs() < 1e-15);
                seen.push((metrics[0].0.clone(), metrics[1].1));
            }
            Event::Evaluated { loss, metrics, model, best, .. } => {
                assert_eq!((*loss, metrics[0].1, *best), (model.sum(..)?.item()?, 0.75, false));
            }
            _ => {}
        }
        Ok(())
    });
    t.run(&numbers, |w, x, key| {
        let l = loss(w, x, key)?;
        Ok(Loss::new(l.clone()).metric("half", l.mul_scalar(0.5)?).metric("count", x.numel() as f64))
    })?;
    // A tuple says the same.
    t.options.steps = 4;
    t.run(&numbers, |w, x, key| {
        let l = loss(w, x, key)?;
        let half = l.mul_scalar(0.5)?;
        Ok((l, [("half", half), ("count", Tensor::scalar(12i64)?)]))
    })?;
    // What is not a number, or a name that is taken, is refused.
    t.options.steps = 5;
    let e = t.run(&numbers, |w, x, key| Ok((loss(w, x, key)?, [("all", x.clone())]))).err().unwrap();
    assert!(e.is_shape() && e.to_string().contains("`all` has shape [4, 3]"), "{e}");
    let e = t.run(&numbers, |w, x, key| Ok((loss(w, x, key)?, [("loss", 1.0)]))).err().unwrap();
    assert!(e.is_argument() && e.to_string().contains("`loss`"), "{e}");
    drop(t);
    assert_eq!(seen, vec![("half".to_owned(), 12.0); 4]);
    let rows = std::fs::read_to_string(&path)?;
    let title = rows.lines().next().unwrap();
    assert!(title.ends_with("validation_loss,half,count,validation_accuracy"), "{title}");
    assert!(rows.lines().any(|r| r.ends_with(",12,")) && rows.lines().any(|r| r.ends_with(",0.75")), "{rows}");
    Ok(())
}

#[test]
fn the_best_model_is_kept_and_found_again() -> Result<()> {
    let folder = Folder::new("best");
    // The evaluation is lowest after 20 steps: distance to where the weights are then.
    let mut at_20 = Trainer::new(weights(), Sgd::new(0.05));
    at_20.options.steps = 20;
    at_20.run(&numbers, loss)?;
    let target = at_20.model.clone();
    let new = |steps: usize, folder: Option<&std::path::Path>| -> Result<Trainer<'_, Tensor, Sgd>> {
        let mut t = Trainer::new(weights(), Sgd::new(0.05));
        t.options = Options { steps, evaluate_every: 10, ..Options::default() };
        let target = target.clone();
        t.evaluate_with(move |w| {
            let d = w.sub(&target)?.square()?.sum(..)?.item()?;
            Ok((d, [("closeness", -d)]))
        });
        t.keep_best = Some(KeepBest::lowest_loss());
        t.snapshots = folder.map(|f| Snapshots::open(f, 10)).transpose()?;
        Ok(t)
    };
    let mut marked = Vec::new();
    let mut whole = new(50, None)?;
    whole.on(|e| {
        if let Event::Evaluated { step, best: true, .. } = e {
            marked.push(*step);
        }
        Ok(())
    });
    whole.run(&numbers, loss)?;
    let best = whole.best.take().unwrap();
    drop(whole);
    assert_eq!((best.step, best.value, bits(&best.model), marked), (20, 0.0, bits(&target), vec![0, 10, 20]));
    // By a number where more is better; one that the evaluation does not have is an error that names those it has.
    let mut t = new(50, None)?;
    t.keep_best = Some(KeepBest::highest("closeness"));
    t.run(&numbers, loss)?;
    assert_eq!(t.best.as_ref().map(|b| b.step), Some(20));
    t.keep_best = Some(KeepBest::lowest("error"));
    let e = t.run(&numbers, loss).err().unwrap();
    assert!(e.to_string().contains("`error`") && e.to_string().contains("[closeness]"), "{e}");
    // In a folder it outlives the process, also one that ends before the best or long after it.
    for first in [15, 35] {
        let _ = std::fs::remove_dir_all(folder.path());
        new(first, Some(folder.path()))?.run(&numbers, loss)?;
        let mut t = new(50, Some(folder.path()))?;
        t.resume()?.unwrap();
        if first == 35 {
            assert_eq!(t.best.as_ref().map(|b| (b.step, b.value)), Some((20, 0.0)));
        }
        t.run(&numbers, loss)?;
        let best = t.best.as_ref().unwrap();
        assert_eq!((best.step, bits(&best.model)), (20, bits(&target)), "{first}");
        let file = Snapshot::load(folder.join("best.safetensors"))?;
        assert_eq!((file.step, bits(&file.model[""])), (20, bits(&target)));
        drop(t);
        // One that is damaged is said, and the run goes on: tests/train/run_folders.rs.
        std::fs::write(folder.join("best.safetensors"), "x")?;
        let mut t = new(60, Some(folder.path()))?;
        let resumed = t.resume()?.unwrap();
        assert!(resumed.damaged[0].0.ends_with("best.safetensors") && t.best.is_none());
        t.run(&numbers, loss)?;
        assert!(t.best.is_none(), "none is better than that of step 20");
    }
    Ok(())
}

/// A recurrent state: taken on from batch to batch, part of the snapshot, and as before where a step is left out.
#[test]
fn a_carried_state_is_part_of_the_run() -> Result<()> {
    let folder = Folder::new("carry");
    let new = |steps: usize, every: Option<usize>| -> Result<Trainer<'_, Tensor, AdamW, (Tensor, Tensor)>> {
        let carry = (Tensor::zeros([4, 3], F64)?, Tensor::zeros([1], I64)?);
        let mut t = Trainer::with_carry(weights(), AdamW { lr: 0.05, ..AdamW::default() }, carry);
        t.options = Options { steps, accumulate: 2, quiet: true, ..Options::default() };
        t.snapshots = every.map(|e| Snapshots::open(folder.path(), e)).transpose()?;
        Ok(t)
    };
    let data = |i: u64| if i == 10 { Tensor::full([4, 3], f64::NAN, F64) } else { numbers(i) };
    let step = |w: &Tensor, x: &Tensor, _: Key, (h, n): &(Tensor, Tensor)| {
        let h = h.mul_scalar(0.5)?.add(&x.mul(w)?)?.tanh()?;
        let n = Tensor::from_slice(&[n.to_vec::<i64>()?[0] + 1], [1])?;
        Ok((h.square()?.mean(..)?, (h, n)))
    };
    let mut whole = new(12, None)?;
    let outcome = whole.run_carrying(&data, step)?;
    assert_eq!((outcome.skipped, whole.carry.1.to_vec::<i64>()?), (1, vec![22]), "two batches of the step left out");
    assert!(!whole.carry.0.is_tracked() && whole.carry.0.to_f64_vec()?.iter().all(|v| v.is_finite()));
    new(7, Some(0))?.run_carrying(&data, step)?;
    let mut second = new(12, Some(0))?;
    second.resume()?.unwrap();
    assert_eq!(second.carry.1.to_vec::<i64>()?, [12]);
    second.run_carrying(&data, step)?;
    assert_eq!((bits(&second.model), bits(&second.carry.0)), (bits(&whole.model), bits(&whole.carry.0)));
    // By hand.
    let (mut w, mut h, mut adam) = (weights(), Tensor::zeros([4, 3], F64)?, AdamW { lr: 0.05, ..AdamW::default() });
    for i in 0..12u64 {
        let mut next = h.clone();
        let mut sum: Option<cotangent::Grads<Tensor>> = None;
        for part in 0..2 {
            let x = data(2 * i + part)?;
            let (_, new, g) = cotangent::value_and_grad_with_aux(&w, GradOptions::default(), |w| {
                let h = next.mul_scalar(0.5)?.add(&x.mul(w)?)?.tanh()?;
                Ok((h.square()?.mean(..)?, h))
            })?;
            next = new;
            match &mut sum {
                None => sum = Some(g),
                Some(s) => s.accumulate(&g)?,
            }
        }
        let mut g = sum.unwrap();
        g.scale(0.5)?;
        if g.is_finite()? {
            adam.step(&mut w, &g)?;
            h = next;
        }
    }
    assert_eq!((bits(&w), bits(&h)), (bits(&whole.model), bits(&whole.carry.0)));
    // A state of another shape, or none, is refused by name.
    let snapshot = whole.snapshot()?;
    let mut none = Trainer::new(weights(), AdamW { lr: 0.05, ..AdamW::default() });
    none.options.accumulate = 2;
    assert!(none.restore(&snapshot).unwrap_err().to_string().contains("`carry.0`"));
    let mut wide =
        Trainer::with_carry(weights(), AdamW { lr: 0.05, ..AdamW::default() }, (Tensor::zeros([5, 3], F64)?, whole.carry.1.clone()));
    let e = wide.restore(&snapshot).unwrap_err();
    assert!(e.is_shape() && e.to_string().contains("`carry.0` is f64 [4, 3] in the snapshot, f64 [5, 3] here"), "{e}");
    Ok(())
}

#[derive(Clone)]
struct Gan {
    generator: Param,
    critic: Param,
}
module!(Gan { generator, critic });

/// Two losses in turn, two optimizers: as the loop by hand, and continued bit for bit.
#[test]
fn a_gan_trains_in_the_trainer_as_by_hand() -> Result<()> {
    let fresh = || Gan { generator: Tensor::scalar(0.5f64).unwrap().into(), critic: Tensor::scalar(-0.3f64).unwrap().into() };
    let of_generator = |g: &Tensor, c: &Tensor, z: &Tensor| z.add(g)?.mul(c)?.sigmoid()?.log()?.mean(..)?.neg();
    let of_critic = |g: &Tensor, c: &Tensor, z: &Tensor| {
        let (real, made) = (z.add_scalar(2.0)?.mul(c)?, z.add(g)?.mul(c)?);
        real.sigmoid()?.log()?.mean(..)?.add(&made.neg()?.sigmoid()?.log()?.mean(..)?)?.neg()
    };
    let data = |i: u64| Ok((i, Tensor::randn([8], F64, Key::new(4).fold(i))?));
    let optimizers =
        || (AdamW { lr: 0.02, weight_decay: 0.1, decays: |_, _| true, ..AdamW::default() }, Sgd { momentum: 0.5, ..Sgd::new(0.1) });
    let (mut by_hand, (mut adam, mut sgd)) = (fresh(), optimizers());
    for i in 0..30 {
        let (_, z) = data(i)?;
        if i % 2 == 0 {
            let (_, g) = value_and_grad(&by_hand.critic, |c| of_critic(&by_hand.generator, c, &z))?;
            sgd.step(&mut by_hand.critic, &g)?;
        } else {
            let (_, g) = value_and_grad(&by_hand.generator, |p| of_generator(p, &by_hand.critic, &z))?;
            adam.step(&mut by_hand.generator, &g)?;
        }
    }
    let new = |steps| {
        let (adam, sgd) = optimizers();
        let mut t = Trainer::new(fresh(), Split::new(|name| name == "generator", adam, sgd));
        t.options = Options { steps, gradients: GradOptions { allow_disconnected: true }, ..Options::default() };
        t
    };
    let run = |t: &mut Trainer<'_, Gan, Split<AdamW, Sgd>>| {
        t.run(&data, |m, (i, z), _| match i % 2 {
            0 => of_critic(&m.generator.detach(), &m.critic, z),
            _ => of_generator(&m.generator, &m.critic.detach(), z),
        })
    };
    let (mut whole, mut first, mut second) = (new(30), new(13), new(30));
    run(&mut whole)?;
    let both = |m: &Gan| (m.generator.item().unwrap().to_bits(), m.critic.item().unwrap().to_bits());
    assert_eq!(both(&whole.model), both(&by_hand));
    run(&mut first)?;
    second.restore(&first.snapshot()?)?;
    run(&mut second)?;
    assert_eq!(both(&second.model), both(&whole.model));
    assert_eq!(whole.optimizer.first.state().numbers["adamw.steps.generator"], 15.0);
    let e = Split::new(|n: &str| n == "gen", Sgd::new(0.1), Sgd::new(0.1))
        .step(&mut fresh(), &value_and_grad(&fresh(), |m| m.generator.mul(&m.critic))?.1);
    assert!(e.unwrap_err().to_string().contains("no parameter has a name for the first optimizer; the model has [generator, critic"));
    Ok(())
}

/// One line on stderr for the first step left out, without a subscriber; none when none is asked for.
#[test]
fn the_first_step_left_out_is_said() {
    const CHILD: &str = "COTANGENT_SKIP_CHILD";
    if let Some(quiet) = std::env::var_os(CHILD) {
        let mut t = Trainer::new(weights(), Sgd::new(0.1));
        t.options = Options { steps: 20, quiet: quiet == "yes", ..Options::default() };
        let half = |i: u64| if i % 2 == 1 { Tensor::full([4, 3], f64::NAN, F64) } else { numbers(i) };
        assert_eq!(t.run(&half, loss).unwrap().skipped, 10);
        return;
    }
    for (quiet, lines) in [("no", 1), ("yes", 0)] {
        let out = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "train::user_training::the_first_step_left_out_is_said", "--nocapture"])
            .env(CHILD, quiet)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{said}");
        assert_eq!(said.matches("cotangent: step 1 is left out: loss NaN").count(), lines, "{said}");
        assert_eq!(said.matches("is left out").count(), lines, "{said}");
    }
    let mut t = Trainer::new(weights(), Sgd::new(0.1));
    t.options = Options { steps: 2, quiet: true, ..Options::default() };
    let e = t.run(&|_: u64| Tensor::full([4, 3], f64::NAN, F64), loss).err().unwrap().to_string();
    assert!(e.contains("detect_anomaly"), "{e}");
}

/// What runs and trains nothing is said on stderr, in one line each; and not where none is asked for.
#[test]
fn what_trains_nothing_is_said() {
    const CHILD: &str = "COTANGENT_NOTHING_CHILD";
    if let Some(quiet) = std::env::var_os(CHILD) {
        let options = Options { steps: 3, evaluate_every: 1, quiet: quiet == "yes", ..Options::default() };
        let mut t = Trainer::new(weights(), Sgd::new(0.0));
        t.options = options;
        t.keep_best = Some(KeepBest::lowest_loss());
        t.evaluate_with(|_| Ok(f64::NAN));
        t.run(&numbers, loss).unwrap();
        // By hand: nobody looks at `skipped`.
        let (mut w, mut adam) = (weights(), AdamW { lr: 0.1, ..AdamW::default() });
        for _ in 0..25 {
            let (_, grads) = value_and_grad(&w, |w| w.mul_scalar(f64::NAN)?.sum(..)).unwrap();
            adam.step(&mut w, &grads).unwrap();
        }
        assert_eq!(adam.skipped(), 25);
        // After a good beginning, too; and once for each row of them.
        let mut sgd = Sgd::new(0.1);
        for step in 0..60 {
            let scale = if (5..35).contains(&step) { f64::NAN } else { 0.1 };
            let (_, grads) = value_and_grad(&w, |w| w.mul_scalar(scale)?.sum(..)).unwrap();
            sgd.step(&mut w, &grads).unwrap();
        }
        assert_eq!((sgd.skipped(), sgd.steps()), (30, 30));
        return;
    }
    for (quiet, lines) in [("no", 1), ("yes", 0)] {
        let out = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "train::user_training::what_trains_nothing_is_said", "--nocapture"])
            .env(CHILD, quiet)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{said}");
        assert_eq!(said.matches("cotangent: the learning rate is 0").count(), lines, "{said}");
        assert_eq!(said.matches("cotangent: no best model was kept: in every evaluation the loss was NaN").count(), lines, "{said}");
        assert_eq!(said.matches("cotangent: sgd: 10 steps in a row were skipped").count(), 1, "{said}");
        assert_eq!(said.matches("cotangent: adamw: 10 steps in a row were skipped").count(), 1, "{said}");
    }
}

#[test]
fn a_plateau_follows_the_evaluations_and_continues() -> Result<()> {
    let folder = Folder::new("plateau");
    let new = |steps: usize| -> Result<Trainer<'_, Tensor, Sgd>> {
        let mut t = Trainer::new(weights(), Sgd::new(0.2));
        t.options = Options { steps, evaluate_every: 2, ..Options::default() };
        t.schedule = Some(Box::new(ReduceLrOnPlateau { factor: 0.5, patience: 1, ..ReduceLrOnPlateau::new(0.2) }));
        t.evaluate_with(|w| loss(w, &numbers(1_000_000)?, Key::new(0))?.item());
        t.snapshots = Some(Snapshots::open(folder.path(), 3)?);
        Ok(t)
    };
    let mut whole = new(60)?;
    let outcome = whole.run(&numbers, loss)?;
    assert!(outcome.steps == 60 && whole.optimizer.lr < 0.1, "{}", whole.optimizer.lr);
    let expected = (bits(&whole.model), whole.optimizer.lr);
    drop(whole);
    std::fs::remove_dir_all(folder.path())?;
    for steps in [11, 12, 30, 31, 60] {
        let mut t = new(steps)?;
        t.resume()?;
        t.run(&numbers, loss)?;
        if steps == 60 {
            assert_eq!((bits(&t.model), t.optimizer.lr), expected);
        }
    }
    let mut deaf = Trainer::new(weights(), Sgd::new(0.2));
    deaf.schedule = Some(Box::new(ReduceLrOnPlateau::new(0.2)));
    assert!(deaf.run(&numbers, loss).err().unwrap().to_string().contains("follows an evaluation"));
    Ok(())
}

/// Another learning rate, schedule, hyperparameter or other data are said, and pass only when they are meant.
#[test]
fn a_run_does_not_continue_by_other_rules_unnoticed() -> Result<()> {
    let folder = Folder::new("rules");
    let data = |seed: u64, batch: usize| Rows::new(Tensor::randn([40, 3], F64, Key::new(seed))?, batch, Order::Shuffled, Key::new(3));
    let new = |folder: &std::path::Path| -> Result<Trainer<'static, Tensor, AdamW>> {
        let mut t = Trainer::new(weights(), AdamW { lr: 0.05, ..AdamW::default() });
        t.options.steps = 10;
        t.snapshots = Some(Snapshots::open(folder, 0)?);
        Ok(t)
    };
    let run = |t: &mut Trainer<'static, Tensor, AdamW>, d: Rows<Tensor>| t.run(&Prefetch::new(d, 1), loss).map(|o| o.steps);
    type Change = fn(&mut Trainer<'static, Tensor, AdamW>);
    let changes: [(&str, Change); 6] = [
        ("learning_rate was `0.05`, is `0.1`", |t| t.optimizer.lr = 0.1),
        ("optimizer.weight_decay was `0.01`, is `0.2`", |t| t.optimizer.weight_decay = 0.2),
        ("optimizer.betas was `(0.9, 0.999)`, is `(0.8, 0.999)`", |t| t.optimizer.betas.0 = 0.8),
        ("learning_rate was `0.05`, is a schedule's", |t| t.schedule = Some(Box::new(0.05))),
        ("accumulate was `1`, is `2`", |t| t.options.accumulate = 2),
        ("clip was `none`, is `1.0`", |t| t.options.clip = Some(1.0)),
    ];
    let mut first = new(folder.path())?;
    run(&mut first, data(1, 4)?)?;
    drop(first);
    for (what, change) in changes {
        let mut t = new(folder.path())?;
        t.options.steps = 20;
        change(&mut t);
        let e = t.resume().unwrap_err();
        assert!(e.is_argument() && e.to_string().contains(what) && e.to_string().contains("allow_changes"), "{e}");
        assert_eq!((t.step(), bits(&t.model)), (0, bits(&weights())), "nothing is changed");
        t.options.allow_changes = true;
        t.resume()?.unwrap();
        assert_eq!(t.step(), 10);
        if what.contains("0.1") {
            assert_eq!(t.optimizer.lr, 0.1, "what the program says now");
        }
    }
    let mut same = new(folder.path())?;
    same.options.steps = 20;
    same.resume()?.unwrap();
    for (other, what) in [(data(2, 4)?, "40 rows in batches of 4"), (data(1, 5)?, "in batches of 5")] {
        let e = run(&mut same, other).unwrap_err();
        assert!(e.is_argument() && e.to_string().contains("the data differ from those before") && e.to_string().contains(what), "{e}");
    }
    assert_eq!(run(&mut same, data(1, 4)?)?, 20);
    same.options.steps = 21;
    assert_eq!(run(&mut same, data(2, 4)?)?, 21, "within a program the data are its own affair");
    drop(same);
    // A schedule may go on otherwise, but not have been another.
    let other = Folder::new("rules2");
    let scheduled = |s: Box<dyn Schedule>| -> Result<Trainer<'static, Tensor, AdamW>> {
        let mut t = new(other.path())?;
        t.schedule = Some(s);
        Ok(t)
    };
    let cosine = WarmupCosine { peak: 0.1, floor: 0.0, warmup: 2, end: 40 };
    run(&mut scheduled(Box::new(cosine))?, data(1, 4)?)?;
    scheduled(Box::new(move |s: usize| if s < 10 { cosine.at(s) } else { 1e-3 }))?.resume()?.unwrap();
    let e = scheduled(Box::new(WarmupCosine { end: 80, ..cosine }))?.resume().unwrap_err();
    assert!(e.to_string().contains("the schedule gives other rates for the 10 steps that are done"), "{e}");
    // Windows tell themselves apart too.
    let ids = |seed: u64| Tokens::from((0..500).map(|i| Key::new(seed).below(i, 11) as u32).collect::<Vec<_>>());
    let windows = |seed, order| Windows::new(ids(seed), 3, 8, order, Key::new(1)).unwrap().fingerprint().unwrap().unwrap();
    assert_eq!(windows(1, Order::Random), windows(1, Order::Random));
    assert!(windows(1, Order::Random) != windows(2, Order::Random) && windows(1, Order::Random) != windows(1, Order::Shuffled));
    Ok(())
}

/// No row is left out of an evaluation.
#[test]
fn the_last_batch_is_kept_where_all_count() -> Result<()> {
    let all = Tensor::arange(0.0, 10.0, 1.0, F32)?;
    let seen = |rows: &Rows<Tensor>, epoch| -> Result<Vec<Vec<f32>>> { rows.iter_epoch(epoch).map(|b| b?.to_vec::<f32>()).collect() };
    let rows = Rows::new(all.clone(), 4, Order::Sequential, Key::new(1))?;
    let batches = vec![vec![0., 1., 2., 3.], vec![4., 5., 6., 7.], vec![8., 9.]];
    assert_eq!((rows.epoch(), seen(&rows, 0)?, seen(&rows, 7)?), (3, batches.clone(), batches));
    let cut = Rows::new(all.clone(), 4, Order::Sequential, Key::new(1))?.keep_last(false);
    assert_eq!((cut.epoch(), seen(&cut, 0)?.concat().len()), (2, 8));
    let shuffled = Rows::new(all.clone(), 4, Order::Shuffled, Key::new(1))?;
    assert_eq!((shuffled.epoch(), seen(&shuffled, 0)?.concat().len()), (2, 8));
    let shuffled = shuffled.keep_last(true);
    for epoch in 0..3 {
        let mut rows = seen(&shuffled, epoch)?.concat();
        rows.sort_by(f32::total_cmp);
        assert_eq!(rows, all.to_vec::<f32>()?, "each once in epoch {epoch}");
    }
    assert_eq!(seen(&Rows::new(all.clone(), 64, Order::Sequential, Key::new(1))?, 2)?, [all.to_vec::<f32>()?]);
    let exact = Rows::new(all.clone(), 5, Order::Sequential, Key::new(1))?;
    assert_eq!((exact.epoch(), seen(&exact, 1)?.concat()), (2, all.to_vec::<f32>()?));
    assert!(Rows::new(Tensor::zeros([0, 3], F32)?, 4, Order::Sequential, Key::new(1)).unwrap_err().is_argument());
    // Windows likewise: 10 windows of 10 tokens, 4 at a time.
    let tokens = Tokens::from((0..101).collect::<Vec<u32>>());
    let windows = Windows::new(tokens.clone(), 4, 10, Order::Sequential, Key::new(1))?;
    let firsts: Vec<Vec<i64>> = windows.iter_epoch(3).map(|b| b?.0.select(1, 0)?.to_vec::<i64>()).collect::<Result<_>>()?;
    assert_eq!(firsts, [vec![0, 10, 20, 30], vec![40, 50, 60, 70], vec![80, 90]]);
    assert_eq!(Windows::new(tokens.clone(), 4, 10, Order::Shuffled, Key::new(1))?.epoch(), 2);
    assert_eq!(Windows::new(tokens, 4, 10, Order::Shuffled, Key::new(1))?.keep_last(true).epoch(), 3);
    // The mean over an epoch counts rows, not batches.
    let mean = mean_loss(&rows, rows.epoch(), &AtomicBool::new(false), |x| Ok(Loss::new(x.mean(..)?).targets(x.numel() as f64)))?;
    assert_eq!(mean, Some(4.5));
    Ok(())
}

#[test]
fn messages_and_small_methods() -> Result<()> {
    // D: an unknown character, with the caller's line.
    let e = Characters::of("abc").encode("abd").unwrap_err();
    assert!(e.location().is_some_and(|l| l.file().ends_with("user_training.rs") && l.line() == line!() - 1), "{e}");
    assert!(e.to_string().contains("'d' at byte 2 is not among the 3 known: make `Characters` of all texts, or take `Bytes`"), "{e}");
    // D: resume with another width names one place, the caller's.
    let folder = Folder::new("width");
    let mut t = Trainer::new(Linear::new(3, 2, F32, Key::new(1))?, Sgd::new(0.1));
    t.options.steps = 1;
    t.snapshots = Some(Snapshots::open(folder.path(), 0)?);
    t.run(&|_: u64| Tensor::ones([4, 3], F32), |m, x, _| m.forward(x)?.square()?.mean(..))?;
    drop(t);
    let mut wide = Trainer::new(Linear::new(3, 3, F32, Key::new(1))?, Sgd::new(0.1));
    wide.snapshots = Some(Snapshots::open(folder.path(), 0)?);
    let e = wide.resume().unwrap_err().to_string();
    assert!(e.contains("`weight` has shape [2, 3] in the file, [3, 3] in the model") && !e.contains("src/train"), "{e}");
    // The trainable tensors alone.
    let mut net = (Linear::new(3, 2, F32, Key::new(1))?, Linear::new(2, 2, F32, Key::new(2))?);
    let _ = cotangent::Module::freeze(&mut net, |_| true);
    let e = net.save_trainable(folder.join("nothing.safetensors")).unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("nothing of the model is trainable"), "{e}");
    Ok(())
}

/// The page of a run has its validation losses beside those of training.
#[test]
fn a_watch_notes_what_was_evaluated() -> Result<()> {
    let mut all = Vec::new();
    let watch = HealthWatch::new(2);
    let off = HealthWatch::new(0);
    let mut t = Trainer::new(weights(), Sgd::new(0.01));
    t.options = Options { steps: 6, evaluate_every: 3, ..Options::default() };
    t.evaluate_with(|w| w.square()?.sum(..)?.item());
    t.on(watch.callback());
    t.on(off.callback());
    t.on(|event| {
        if let Event::Evaluated { step, loss, .. } = event {
            all.push((*step as u64, *loss));
        }
        Ok(())
    });
    t.run(&numbers, loss)?;
    drop(t);
    assert_eq!(all.iter().map(|v| v.0).collect::<Vec<_>>(), [0, 3, 6]);
    assert_eq!(watch.history().validation, all);
    assert!(off.history().validation.is_empty());
    assert!(watch.history().html()?.contains("validation"));
    Ok(())
}
