//! Snapshots: a run that is killed and continued ends with the bits of one that was not.

use crate::files::Folder;
use cotangent::io::save_safetensors;
use cotangent::nn::{Gpt, GptConfig};
use cotangent::optim::{AdamW, Ema, LossScaler, Sgd, WarmupCosine};
use cotangent::train::{Event, Options, Order, Prefetch, Rows, Snapshot, Snapshots, TensorBoard, Tokens, Trainer, Windows};
use cotangent::{F16, F32, F64, Key, Module, Result, Tensor};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const STEPS: usize = 300;

#[allow(dead_code)]
#[path = "../../examples/train_gpt/args.rs"]
mod args;
#[allow(dead_code)]
#[path = "../../examples/train_gpt/data.rs"]
mod data;

/// A GPT with dropout on shuffled windows, two batches to a step: everything that a snapshot has to bring back.
fn trainer(folder: Option<&Path>) -> Result<Trainer<'static, Gpt, AdamW>> {
    let config = GptConfig { vocabulary: 11, context: 8, layers: 1, heads: 2, width: 16, dropout: 0.1, ..GptConfig::default() };
    let mut trainer = Trainer::new(Gpt::new(&config, F32, Key::new(1))?, AdamW::default());
    trainer.options = Options { steps: STEPS, accumulate: 2, clip: Some(0.5), ..Options::default() };
    trainer.schedule = Some(Box::new(WarmupCosine { peak: 1e-2, floor: 1e-3, warmup: 10, end: STEPS }));
    trainer.key = Key::new(5);
    trainer.settings = [("width".to_owned(), "16".to_owned())].into();
    if let Some(folder) = folder {
        trainer.snapshots = Some(Snapshots::open(folder, 1)?);
    }
    Ok(trainer)
}

fn windows() -> Result<Prefetch<Windows>> {
    let key = Key::new(3);
    let tokens: Vec<u32> = (0..500).map(|i| key.below(i, 11) as u32).collect();
    Ok(Prefetch::new(Windows::new(Tokens::from(tokens), 3, 8, Order::Shuffled, key.fold(1))?, 2))
}

fn train(trainer: &mut Trainer<'_, Gpt, AdamW>) -> Result<()> {
    trainer.run(&windows()?, |m, (x, y), key| m.loss(x, y, Some(key))).map(drop)
}

fn bits(model: &Gpt) -> Vec<Vec<u64>> {
    model.named_tensors().iter().map(|(_, t)| t.to_f64_vec().unwrap().iter().map(|x| x.to_bits()).collect()).collect()
}

/// Kills the run at random moments, twenty times (four in the quick mode), and continues each time.
#[test]
fn a_killed_run_continues_bit_for_bit() {
    const CHILD: &str = "COTANGENT_RESUME_FOLDER";
    if let Some(folder) = std::env::var_os(CHILD) {
        let mut t = trainer(Some(Path::new(&folder))).unwrap();
        t.resume().unwrap();
        train(&mut t).unwrap();
        return;
    }
    let mut whole = trainer(None).unwrap();
    train(&mut whole).unwrap();
    let folder = Folder::new("resume");
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "train::resume::a_killed_run_continues_bit_for_bit", "--nocapture"])
            .env(CHILD, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let snapshots = Snapshots::view(folder.path()); // the child has the folder
    let newest = || snapshots.newest().unwrap().map_or(0, |found| found.snapshot.step);
    let files = || snapshots.files().unwrap().last().cloned();
    let kills = if std::env::var_os("COTANGENT_QUICK").is_some() { 4 } else { 20 };
    let random = Key::new(std::process::id().into());
    for kill in 0..kills {
        let (before, mut child, begun) = (newest(), start(), Instant::now());
        let seen = files();
        // Once it writes, at any moment within the next steps: most of their time goes into writing snapshots.
        while files() == seen {
            assert!(begun.elapsed() < Duration::from_secs(60), "the child writes nothing");
            assert!(child.try_wait().unwrap().is_none(), "the child ended by itself after {before} steps");
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(random.below(kill, 20_000)));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        let after = newest();
        assert!(before < after && after < STEPS as u64, "kill {kill}: {before} to {after}");
        // Killed between writing and clearing away, each time: one more file, until the next save clears them all.
        assert!(snapshots.files().unwrap().len() as u64 <= 3 + kill);
    }
    assert!(start().wait().unwrap().success());
    let mut last = trainer(Some(folder.path())).unwrap();
    last.resume().unwrap().unwrap();
    assert_eq!(last.step(), STEPS);
    assert_eq!(bits(&last.model), bits(&whole.model));
    assert_eq!(snapshots.files().unwrap().len(), 2);
    crate::say(&format!("killed {kills} times and continued to the same bits"));
}

#[test]
fn a_stopped_run_is_saved_and_continues() {
    let folder = Folder::new("stopped");
    let mut whole = trainer(None).unwrap();
    train(&mut whole).unwrap();
    let mut first = trainer(Some(folder.path())).unwrap();
    first.snapshots.as_mut().unwrap().every = 0;
    let stop = first.stop.clone();
    let log = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = log.clone();
    first.on(move |e| {
        match e {
            Event::Step { report, .. } if report.step == 99 => stop.store(true, std::sync::atomic::Ordering::Relaxed),
            Event::Saved { step, .. } => seen.lock().unwrap().push(format!("saved {step}")),
            Event::Stopped { step } => seen.lock().unwrap().push(format!("stopped {step}")),
            _ => {}
        }
        Ok(())
    });
    train(&mut first).unwrap();
    assert_eq!(*log.lock().unwrap(), ["saved 100", "stopped 100"]);
    let mut new = trainer(Some(folder.path())).unwrap();
    let e = train(&mut new).unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("step-000000100.safetensors"), "{e}");
    let mut second = trainer(Some(folder.path())).unwrap();
    assert!(second.resume().unwrap().is_some());
    assert_eq!(second.step(), 100);
    train(&mut second).unwrap();
    assert_eq!(bits(&second.model), bits(&whole.model));
}

#[test]
fn damaged_and_foreign_snapshots_are_refused() {
    let folder = Folder::new("refused");
    let mut t = trainer(Some(folder.path())).unwrap();
    t.options.steps = 5;
    train(&mut t).unwrap();
    let snapshots = Snapshots::view(folder.path());
    let files = snapshots.files().unwrap();
    assert_eq!(files.len(), 2);
    let (older, newest) = (&files[0], &files[1]);
    let good = std::fs::read(newest).unwrap();

    // Every byte of the tensors counts; so does the header.
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    for at in [header, header + 1001, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(newest, &bad).unwrap();
        let e = Snapshot::load(newest).unwrap_err();
        assert!(e.is_corrupt_file() && e.to_string().contains("checksum"), "{e}");
    }
    std::fs::write(newest, &good[..good.len() - 1]).unwrap();
    assert!(Snapshot::load(newest).unwrap_err().to_string().contains("cut short"));

    // The one before it takes its place.
    let found = snapshots.newest().unwrap().unwrap();
    assert_eq!((&found.path, found.snapshot.step), (older, 4));
    // And whoever resumes is told, and finds it renamed.
    let resumed = trainer(Some(folder.path())).unwrap().resume().unwrap().unwrap();
    assert_eq!(snapshots.files().unwrap(), std::slice::from_ref(older));
    std::fs::rename(newest.with_extension("safetensors.damaged"), newest).unwrap();
    assert_eq!((&resumed.path, resumed.damaged.len()), (older, 1));
    assert!(&resumed.damaged[0].0 == newest && resumed.damaged[0].1.to_string().contains("cut short"), "{resumed:?}");
    std::fs::write(older, b"12345678").unwrap();
    assert!(snapshots.newest().unwrap_err().to_string().contains("cut short"), "the newest's reason");

    let t = Tensor::scalar(1f32).unwrap();
    save_safetensors(newest, [("model.weight", &t)], &[]).unwrap();
    let e = Snapshot::load(newest).unwrap_err();
    assert!(e.is_corrupt_file() && e.to_string().contains("is not a snapshot"), "{e}");
    for (entry, part) in [
        ("{}", "no version"),
        (r#"{"version":2}"#, "its checksum is missing"),
        (r#"{"version":0}"#, "its checksum is missing"),
        ("nonsense", "no JSON"),
    ] {
        save_safetensors(newest, [("model.weight", &t)], &[("cotangent.snapshot", entry)]).unwrap();
        let e = Snapshot::load(newest).unwrap_err();
        assert!(e.is_corrupt_file() && e.to_string().contains(part), "{entry}: {e}");
    }
}

#[test]
fn a_folder_of_snapshots_keeps_the_files_of_others() {
    let folder = Folder::new("others");
    let others = [
        "notes.partial",
        "step-7.safetensors.partial",
        "step-x.safetensors.1.2.partial",
        "step-+7.safetensors.1.2.partial",
        "step-5.safetensors",
    ];
    for name in others {
        std::fs::write(folder.join(name), "precious").unwrap();
    }
    for name in ["dir.partial", "step-000000001.safetensors.1.2.partial", "step-9.safetensors"] {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    let half = folder.join("step-000000002.safetensors.12.3.partial");
    std::fs::write(&half, "half").unwrap();
    let snapshots = Snapshots::open(folder.path(), 0).unwrap();
    assert!(!half.exists(), "ours");
    assert!(others.iter().all(|name| std::fs::read(folder.join(name)).unwrap() == b"precious"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), others.len() + 4, "and the lock");
    assert_eq!(snapshots.files().unwrap(), [folder.join("step-5.safetensors"), folder.join("step-9.safetensors")]);
    // Nor do they go when a run saves there.
    for step in [10, 11, 12] {
        snapshots.save(&Snapshot { step, ..Snapshot::default() }).unwrap();
    }
    assert!(others.iter().all(|name| std::fs::read(folder.join(name)).unwrap() == b"precious"));
    assert_eq!(snapshots.files().unwrap().len(), 4);
}

/// A file in the place of a folder is named, whichever of the folders on the way it is.
#[test]
fn a_file_is_no_folder_of_a_run() {
    let folder = Folder::new("file-for-folder");
    let file = folder.join("notes.txt");
    std::fs::write(&file, "notes").unwrap();
    for path in [file.clone(), file.join("run")] {
        for e in [Snapshots::open(&path, 0).unwrap_err(), TensorBoard::create(&path, 0).err().unwrap()] {
            assert!(e.is_io() && e.to_string().contains(&format!("{} is a file", file.display())), "{e}");
        }
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "notes");
}

/// Nobody can write there, root included.
#[cfg(target_os = "linux")]
#[test]
fn a_read_only_folder_is_found_when_it_is_opened() {
    let e = Snapshots::open("/proc/self", 0).unwrap_err();
    assert!(e.is_io() && e.to_string().contains("cannot write /proc/self/run.lock"), "{e}");
}

/// What the example says of its run: the text itself, not its file's name, and nothing silly of a run that is over.
#[test]
fn train_gpt_knows_its_text_and_its_end() {
    use clap::Parser;
    let folder = Folder::new("corpus");
    let (here, there) = (folder.join("here"), folder.join("there"));
    let identity = |path: &Path| data::Corpus::load(Some(path), 4).unwrap().identity();
    let text = "to be, or not to be ".repeat(10);
    std::fs::write(&here, &text).unwrap();
    std::fs::write(&there, &text).unwrap();
    let first = identity(&here);
    assert_eq!(first, identity(&there));
    std::fs::write(&here, text.replacen("or", "ro", 1)).unwrap();
    assert_ne!(first, identity(&here), "the same path and length, another text");

    let args = |steps: &str| args::Args::parse_from(["train_gpt", "--steps", steps, "--batch", "2", "--context", "4"]);
    assert_eq!(args("6").settings(first.clone())["data"], first);
    assert_eq!((args("6").patience(), args("500").patience(), args("100000").patience()), (3, 50, 100));
    assert_eq!(args("6").speed(0, 0.0), "no steps were left to make");
    assert_eq!(args("6").speed(4, 2.0), "4 steps in 2.0 s: 500.0 ms per step, 16 tokens/s");
}

#[test]
fn a_snapshot_of_another_run_is_refused_and_changes_nothing() {
    let mut t = trainer(None).unwrap();
    t.options.steps = 2;
    train(&mut t).unwrap();
    let mut snapshot = t.snapshot().unwrap();
    let mut fresh = trainer(None).unwrap();
    let before = bits(&fresh.model);

    snapshot.settings.insert("width".into(), "64".into());
    let e = fresh.restore(&snapshot).unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("width was `64`, is `16`"), "{e}");
    snapshot.settings = fresh.settings.clone();

    let wide = GptConfig { vocabulary: 11, context: 8, layers: 1, heads: 2, width: 32, ..GptConfig::default() };
    let mut other = Trainer::new(Gpt::new(&wide, F32, Key::new(1)).unwrap(), AdamW::default());
    other.settings = fresh.settings.clone();
    assert!(other.restore(&snapshot).unwrap_err().is_shape());
    let mut exact = Trainer::new(fresh.model.cast(F64).unwrap(), AdamW::default());
    exact.settings = fresh.settings.clone();
    assert!(exact.restore(&snapshot).unwrap_err().is_dtype(), "a cast would go on, with other numbers");
    let mut sgd = Trainer::new(fresh.model.clone(), Sgd { lr: 0.5, momentum: 0.9, ..Sgd::default() });
    sgd.settings = fresh.settings.clone();
    assert!(sgd.restore(&snapshot).unwrap_err().is_argument());
    assert_eq!((bits(&sgd.model), sgd.optimizer.lr, sgd.step()), (before.clone(), 0.5, 0));

    let gone = snapshot.model.keys().next().unwrap().clone();
    snapshot.model.remove(&gone);
    assert!(fresh.restore(&snapshot).unwrap_err().to_string().contains(&gone));
    assert_eq!((bits(&fresh.model), fresh.step()), (before, 0));
}

#[test]
fn numbers_survive_exactly() {
    let folder = Folder::new("numbers");
    let path = folder.join("step-000000007.safetensors");
    let numbers = [0.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 5e-324, f64::MAX, 1.0 / 3.0];
    let snapshot = Snapshot {
        step: u64::MAX,
        position: (1 << 53) + 1,
        key: (u64::MAX - 1, 3),
        numbers: numbers.iter().enumerate().map(|(i, x)| (i.to_string(), *x)).collect(),
        settings: [("text".to_owned(), "\"quoted\", ünïcode\n".to_owned())].into(),
        ..Snapshot::default()
    };
    snapshot.save(&path).unwrap();
    let back = Snapshot::load(&path).unwrap();
    assert_eq!((back.step, back.position, back.key, &back.settings), (snapshot.step, snapshot.position, snapshot.key, &snapshot.settings));
    let bits = |s: &Snapshot| s.numbers.values().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&back), bits(&snapshot));
}

/// The average of the weights and the loss scale are part of a snapshot: the rest of a run is the same.
#[test]
fn averages_and_the_loss_scale_continue() -> Result<()> {
    let data = Rows::new(Tensor::randn([40, 3], F32, Key::new(8))?, 4, Order::Shuffled, Key::new(9))?;
    let new = |steps: usize| -> Result<Trainer<'static, Tensor, Sgd>> {
        let w = Tensor::randn([3], F32, Key::new(3))?;
        let mut t = Trainer::new(w.clone(), Sgd::new(0.05));
        t.options.steps = steps;
        t.ema = Some(Ema::new(&w, 0.9)?);
        t.scaler = Some(LossScaler { scale: 2f64.powi(20), interval: 3, ..LossScaler::default() });
        Ok(t)
    };
    // In half precision the first scale overflows.
    let train =
        |t: &mut Trainer<'static, Tensor, Sgd>| t.run(&data, |w, x, _| x.cast(F16)?.mul(&w.cast(F16)?)?.sum(-1)?.square()?.mean(..));
    let (mut whole, mut first) = (new(30)?, new(11)?);
    let outcome = train(&mut whole)?;
    assert!(outcome.skipped > 0 && outcome.skipped < 20 && outcome.loss.is_some_and(|l| l < 10.0), "{}", outcome.skipped);
    train(&mut first)?;
    let mut second = new(30)?;
    second.restore(&first.snapshot()?)?;
    assert_eq!(second.scaler, first.scaler);
    train(&mut second)?;
    let bits = |t: &Tensor| t.to_vec::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let average = |t: &Trainer<'static, Tensor, Sgd>| t.ema.as_ref().unwrap().model(&t.model).unwrap();
    assert_eq!(bits(&second.model), bits(&whole.model));
    assert_eq!(bits(&average(&second)), bits(&average(&whole)));
    assert_eq!(second.scaler, whole.scaler);
    // Nothing is changed by a snapshot without them.
    let mut plain = new(3)?;
    (plain.ema, plain.scaler) = (None, None);
    plain.options.steps = 0;
    let (snapshot, before) = (plain.snapshot()?, bits(&average(&second)));
    assert!(second.restore(&snapshot).unwrap_err().to_string().contains("no average of the weights"));
    assert_eq!((bits(&average(&second)), second.step()), (before, 30));
    // Nor are they lost in silence.
    assert!(plain.restore(&whole.snapshot()?).is_err());
    Ok(())
}

/// Two processes in one folder would overwrite each other's snapshots.
#[test]
fn one_run_has_one_folder() -> Result<()> {
    let folder = Folder::new("locked");
    let data = |_: u64| Tensor::from_slice(&[1f32], [1]);
    let new = || -> Result<Trainer<'_, Tensor, Sgd>> {
        let mut t = Trainer::new(Tensor::from_slice(&[3f32], [1])?, Sgd::new(0.1));
        t.options.steps = 2;
        t.snapshots = Some(Snapshots::open(folder.path(), 0)?);
        Ok(t)
    };
    let loss = |w: &Tensor, x: &Tensor, _: Key| w.mul(x)?.square()?.sum(..);
    let mut inner = 0; // before the trainer, as the partial file's name
    let partial = folder.join("step-000000007.safetensors.12.3.partial");
    let mut first = new()?;
    first.on(|event| {
        if let Event::Begin { .. } = event {
            std::fs::write(&partial, "being written").unwrap();
            let e = new()?.run(&data, loss).err().unwrap();
            assert!(e.is_argument() && e.to_string().contains("another run trains in"), "{e}");
            assert!(partial.exists(), "half of a snapshot of the other run was taken away");
            inner += 1;
        }
        Ok(())
    });
    first.run(&data, loss)?;
    drop(first);
    assert_eq!(inner, 2);
    let e = new()?.run(&data, loss).err().unwrap(); // free again, but it has snapshots
    assert!(e.to_string().contains("there is a snapshot of another run"), "{e}");
    assert!(!partial.exists());
    Ok(())
}
