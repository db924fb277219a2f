//! Folders of runs that are not as they were left: snapshots, metrics and names that something else changed.

use crate::files::Folder;
#[cfg(unix)]
use crate::files::bad_conditions::specials;
use crate::files::bad_conditions::{as_version_3, names, two_snapshots};
use crate::train::survives::{STEPS, bits, content, tiny, train, undisturbed, whole};
use cotangent::optim::{ReduceLrOnPlateau, Sgd};
use cotangent::train::{Csv, Event, Jsonl, KeepBest, MetricSink, Options, Snapshot, Snapshots, Trainer};
use cotangent::{F64, Result, Tensor};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

const BEST: &str = "best.safetensors";

/// A weight that goes from 1 down by 1/8 in every step. It is evaluated after each by its distance to `target`, and saved.
fn walk<'a>(folder: &Path, steps: usize, target: f64) -> Result<Trainer<'a, Tensor, Sgd>> {
    let mut t = Trainer::new(Tensor::scalar(1f64)?, Sgd::new(0.125));
    t.options = Options { steps, evaluate_every: 1, ..Options::default() };
    t.evaluate_with(move |w| w.item().map(|w| ((w - target).abs(), [("height", w)])));
    t.keep_best = Some(KeepBest::lowest_loss());
    t.snapshots = Some(Snapshots::open(folder, 1)?);
    Ok(t)
}

fn go(t: &mut Trainer<'_, Tensor, Sgd>) -> Result<()> {
    t.run(&|_| Ok(()), |w, (), _| w.sum(..)).map(drop)
}

/// The folder of a walk of four steps whose best model was that of step 2, of value 0.
fn walked(name: &str) -> Result<Folder> {
    let folder = Folder::new(name);
    go(&mut walk(folder.path(), 4, 0.75)?)?;
    assert_eq!(Snapshot::load(folder.join(BEST))?.step, 2);
    Ok(folder)
}

/// A best model that is damaged or gone is said and kept, and nothing worse takes its place; what is better does.
#[test]
fn a_lost_best_model_is_said_and_its_value_counts() -> Result<()> {
    for gone in [false, true] {
        let folder = walked(&format!("review-best-{gone}"))?;
        let file = folder.join(BEST);
        let mut bytes = std::fs::read(&file)?;
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        if gone {
            std::fs::remove_file(&file)?
        } else {
            std::fs::write(&file, &bytes)?
        }
        let mut t = walk(folder.path(), 6, 0.75)?;
        let resumed = t.resume()?.unwrap();
        let [(path, e)] = &resumed.damaged[..] else { panic!("{resumed:?}") };
        assert_eq!(path, &file);
        assert!(e.op() == Some("resume") && e.location().unwrap().file().ends_with("train/run_folders.rs"), "{e}");
        assert!(e.to_string().contains(if gone { "is gone: the best model was that of step 2, with 0" } else { "checksum" }), "{e}");
        go(&mut t)?;
        assert!(t.best.is_none() && !file.exists(), "nothing was better than at step 2");
        if !gone {
            assert_eq!(std::fs::read(folder.join("best.safetensors.damaged"))?, bytes);
        }
        drop(t);
        // Snapshots still know it after another stop. A walk away from here gets better at once.
        let mut t = walk(folder.path(), 8, 0.75)?;
        t.resume()?.unwrap();
        t.evaluate_with(|w| Ok(Some(w.item()? - 1.0)));
        go(&mut t)?;
        assert_eq!((t.best.as_ref().unwrap().step, Snapshot::load(&file)?.step), (8, 8));
        drop(t);
        assert_eq!(walk(folder.path(), 8, 0.75)?.resume()?.unwrap().damaged.len(), 0);
    }
    Ok(())
}

/// Whatever else is wrong with it ends the resumption: nothing is passed over, and nothing changes.
#[cfg(unix)]
#[test]
fn a_best_model_that_cannot_be_read_now_ends_the_resumption() -> Result<()> {
    let folder = walked("review-best-kinds")?;
    let (file, aside) = (folder.join(BEST), Folder::new("review-best-aside"));
    let good = std::fs::read(&file)?;
    let mut newer = good.clone();
    as_version_3(&mut newer);
    let refused = |what: &str| -> Result<()> {
        let before = (names(folder.path()), content(folder.path()));
        let mut t = walk(folder.path(), 6, 0.75)?;
        let e = t.resume().unwrap_err();
        assert!(e.to_string().contains(what) && e.to_string().contains(BEST), "{what}: {e}");
        assert_eq!((t.step(), t.best.is_none(), t.model.item()?), (0, true, 1.0));
        assert_eq!((names(folder.path()), content(folder.path())), before, "{what}");
        Ok(())
    };
    std::fs::write(&file, newer)?;
    refused("is a snapshot of version 3")?;
    // A whole one that is not the best of anything.
    Snapshot { step: 2, model: [(String::new(), Tensor::scalar(1f64)?)].into(), ..Snapshot::default() }.save(&file)?;
    refused("does not say what it is the best by")?;
    // Of another model.
    let other = [(String::new(), Tensor::zeros([2], F64)?)];
    let numbers = [("best".to_owned(), 1.0), ("best_step".to_owned(), 2.0)];
    Snapshot { model: other.into(), numbers: numbers.into(), ..Snapshot::default() }.save(&file)?;
    refused("shape")?;
    std::fs::remove_file(&file)?;
    for (path, is, _held) in specials(&aside) {
        std::os::unix::fs::symlink(&path, &file)?;
        refused(is)?;
        // Nor does a run begin that could not write it.
        let (fresh, steps) = (Folder::new("review-best-fresh"), 3);
        std::os::unix::fs::symlink(&path, fresh.join(BEST))?;
        let mut t = walk(fresh.path(), steps, 0.75)?;
        let e = go(&mut t).unwrap_err();
        assert!(e.to_string().contains(is) && t.step() == 0, "{e}");
        std::fs::remove_file(&file)?;
    }
    std::os::unix::fs::symlink("/nowhere/at/all", &file)?;
    refused("it is a link to /nowhere/at/all, where nothing is now")?;
    std::fs::remove_file(&file)?;
    std::fs::write(&file, good)?;
    let mut t = walk(folder.path(), 6, 0.75)?;
    assert!(t.resume()?.unwrap().damaged.is_empty());
    assert_eq!(t.best.as_ref().map(|b| (b.step, b.value)), Some((2, 0.0)));
    Ok(())
}

/// The best model of another run, or by another rule, is not overwritten; one that could not be written is written by the next try.
#[test]
fn a_best_model_of_another_run_is_kept() -> Result<()> {
    let folder = walked("review-best-old")?;
    let (file, old) = (folder.join(BEST), folder.join("best.safetensors.old"));
    let first = std::fs::read(&file)?;
    // By another rule only where that is meant.
    let mut t = walk(folder.path(), 6, 0.75)?;
    t.keep_best = Some(KeepBest::highest("height"));
    let e = t.resume().unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("keep_best was `lowest loss`, is `highest `height``"), "{e}");
    assert!(std::fs::read(&file)? == first && !old.exists());
    t.options.allow_changes = true;
    t.resume()?.unwrap();
    go(&mut t)?;
    assert_eq!(t.best.as_ref().map(|b| (b.step, b.value)), Some((4, 0.5)));
    drop(t);
    assert!(std::fs::read(&old)? == first && Snapshot::load(&file)?.step == 4);
    // A new run where the snapshots are gone.
    let second = std::fs::read(&file)?;
    Snapshots::view(folder.path()).files()?.iter().for_each(|f| std::fs::remove_file(f).unwrap());
    go(&mut walk(folder.path(), 3, 0.75)?)?;
    assert_eq!(std::fs::read(folder.join("best.safetensors.old.1"))?, second);
    assert_eq!(Snapshot::load(&file)?.step, 2);
    // It cannot be written: the first evaluation again.
    let folder = Folder::new("review-best-again");
    let file = folder.join(BEST);
    let mut t = walk(folder.path(), 2, 9.0)?;
    let (place, mut first) = (file.clone(), true);
    t.evaluate_with(move |w| {
        if std::mem::take(&mut first) {
            std::fs::create_dir(&place)?;
        }
        Ok(Some(9.0 - w.item()?))
    });
    assert!(go(&mut t).unwrap_err().to_string().contains("it is a folder") && t.best.is_none());
    std::fs::remove_dir(&file)?;
    go(&mut t)?;
    assert_eq!((t.best.as_ref().unwrap().step, Snapshot::load(&file)?.step), (0, 0));
    Ok(())
}

/// What has a snapshot's name and cannot be read is no reason to continue from an older one, or to begin anew.
#[cfg(unix)]
#[test]
fn names_of_snapshots_that_are_no_files_end_the_resumption() -> Result<()> {
    let aside = Folder::new("review-special-aside");
    let mut all: Vec<_> = specials(&aside).into_iter().map(|(path, is, held)| (path, is.to_owned(), held)).collect();
    all.push(("/nowhere/x".into(), "it is a link to /nowhere/x, where nothing is now".to_owned(), None));
    let (folder, older, newest) = two_snapshots("review-special");
    let later = folder.join("step-000000200.safetensors");
    for (path, is, _) in &all {
        std::os::unix::fs::symlink(path, &later)?;
        let before = (names(folder.path()), content(folder.path()));
        let mut t = tiny(Some(folder.path()))?;
        let e = t.resume().unwrap_err();
        assert!(e.is_io() && e.to_string().contains(is) && e.to_string().contains("step-000000200"), "{e}");
        assert!(t.step() == 0 && Snapshots::view(folder.path()).newest().is_err());
        assert!(train(&mut t).unwrap_err().to_string().contains("there is a snapshot of another run"));
        assert_eq!((names(folder.path()), content(folder.path())), before);
        std::fs::remove_file(&later)?;
    }
    // The disk with all of them is away.
    for file in [&older, &newest] {
        std::fs::rename(file, aside.join(file.file_name().unwrap().to_str().unwrap()))?;
        std::os::unix::fs::symlink("/nowhere/x", file)?;
    }
    let mut t = tiny(Some(folder.path()))?;
    assert!(t.resume().unwrap_err().to_string().contains("where nothing is now"));
    drop(t);
    // It is there again: links to files are as good as files.
    for file in [&older, &newest] {
        std::fs::remove_file(file)?;
        std::os::unix::fs::symlink(aside.join(file.file_name().unwrap().to_str().unwrap()), file)?;
    }
    assert_eq!(tiny(Some(folder.path()))?.resume()?.unwrap().path, newest);
    Ok(())
}

/// A schedule that follows evaluations is told of each once, wherever the run was stopped.
#[test]
fn a_stop_at_an_evaluation_is_observed_once() -> Result<()> {
    fn new<'a>(folder: Option<&Path>, every: usize, stop_at: Option<usize>) -> Result<Trainer<'a, Tensor, Sgd>> {
        let mut t = Trainer::new(Tensor::from_slice(&[5f64, -3.0], [2])?, Sgd::new(0.1));
        t.options = Options { steps: 60, evaluate_every: 10, ..Options::default() };
        // Nothing is an improvement: each observation counts.
        let plateau = ReduceLrOnPlateau { patience: 2, threshold: 10.0, absolute: true, ..ReduceLrOnPlateau::new(0.1) };
        t.schedule = Some(Box::new(plateau));
        let stop = t.stop.clone();
        t.evaluate_with(|w| Ok(Some(w.square()?.sum(..)?.item()?)));
        t.on(move |e| {
            if let Event::Evaluated { step, .. } = e
                && Some(*step) == stop_at
            {
                stop.store(true, Relaxed);
            }
            Ok(())
        });
        t.snapshots = folder.map(|f| Snapshots::open(f, every)).transpose()?;
        if folder.is_some() {
            t.resume()?;
        }
        Ok(t)
    }
    let go = |t: &mut Trainer<'_, Tensor, Sgd>| t.run(&|_| Ok(()), |w, (), _| w.square()?.mul_scalar(0.5)?.sum(..)).map(|o| o.stopped);
    let end = |t: &Trainer<'_, Tensor, Sgd>| (t.model.to_vec::<f64>().unwrap(), t.optimizer.lr);
    let mut undisturbed = new(None, 0, None)?;
    go(&mut undisturbed)?;
    assert!(undisturbed.optimizer.lr < 0.1);
    // Where a snapshot of the step before the evaluation is there already, that one continues.
    for every in [0, 4, 5] {
        let folder = Folder::new(&format!("review-plateau-{every}"));
        for at in [10, 20, 30] {
            let mut t = new(Some(folder.path()), every, Some(at))?;
            assert!(go(&mut t)? && t.step() == at);
        }
        let mut t = new(Some(folder.path()), every, None)?;
        go(&mut t)?;
        assert_eq!(end(&t), end(&undisturbed), "a snapshot after every {every} steps");
    }
    // A trainer that is set back observes again what it observed after that.
    let mut t = new(None, 0, Some(10))?;
    t.options.steps = 5;
    go(&mut t)?;
    let early = t.snapshot()?;
    t.options.steps = 60;
    assert!(go(&mut t)?);
    t.restore(&early)?;
    t.stop.store(false, Relaxed);
    assert!(go(&mut t)?); // at 10 again
    t.stop.store(false, Relaxed);
    let at_10 = t.snapshot()?;
    assert_eq!((at_10.numbers["observed"], early.numbers["observed"]), (10.0, 0.0));
    Ok(())
}

/// Old snapshots go only when two newer ones are whole, and only those that a run wrote.
#[test]
fn snapshots_go_when_two_newer_ones_are_whole() -> Result<()> {
    let folder = Folder::new("review-kept");
    let snapshots = Snapshots::open(folder.path(), 1)?;
    let file = |step: u64| folder.join(&format!("step-{step:09}.safetensors"));
    let save = |step: u64| snapshots.save(&Snapshot { step, ..Snapshot::default() }).map(drop);
    let spoil = |path: &Path| std::fs::write(path, "short").unwrap();
    save(170)?;
    save(180)?;
    spoil(&file(180));
    save(190)?;
    assert_eq!(snapshots.files()?, [file(170), file(190)]);
    assert_eq!(std::fs::read(file(180).with_extension("safetensors.damaged"))?, b"short");
    spoil(&file(190));
    // There is one to continue from, whatever happened to the two after it.
    assert_eq!(Snapshots::view(folder.path()).newest()?.unwrap().snapshot.step, 170);
    save(200)?;
    assert_eq!(snapshots.files()?, [file(170), file(200)]);
    // A copy is no second snapshot, and is not taken away.
    let copy = folder.join("step-200.safetensors");
    std::fs::copy(file(200), &copy)?;
    save(210)?;
    assert_eq!(snapshots.files()?, [file(200), copy.clone(), file(210)]);
    std::fs::copy(file(210), folder.join("step-210.safetensors"))?;
    save(220)?;
    save(230)?;
    assert_eq!(snapshots.files()?, [copy, folder.join("step-210.safetensors"), file(220), file(230)]);
    Ok(())
}

/// A resumption that is refused for another reason does not rename what is damaged: the next one says it, too.
#[test]
fn a_refused_resumption_leaves_the_folder_as_it_was() -> Result<()> {
    let (folder, older, newest) = two_snapshots("review-refused");
    std::fs::write(&newest, "")?;
    let before = (names(folder.path()), content(folder.path()));
    let mut t = tiny(Some(folder.path()))?;
    t.settings.insert("task".to_owned(), "another".to_owned());
    let e = t.resume().unwrap_err();
    assert!(e.to_string().contains("task was `tiny`, is `another`") && e.to_string().contains("step-000000055"), "{e}");
    // The op and the line are said once.
    assert_eq!((e.to_string().matches("resume").count(), e.to_string().matches("train/run_folders.rs").count()), (1, 1), "{e}");
    assert_eq!((names(folder.path()), content(folder.path())), before);
    t.settings.insert("task".to_owned(), "tiny".to_owned());
    let resumed = t.resume()?.unwrap();
    assert_eq!((&resumed.path, &resumed.damaged[0].0, resumed.damaged.len()), (&older, &newest, 1));
    let e = &resumed.damaged[0].1;
    assert!(e.location().unwrap().file().ends_with("train/run_folders.rs") && e.to_string().contains("has 0 bytes"), "{e}");
    assert!(!newest.exists());
    drop(t);
    // All are damaged: each is named, and what can be done.
    std::fs::write(&older, "short")?;
    std::fs::write(&newest, "")?;
    let e = tiny(Some(folder.path()))?.resume().unwrap_err();
    for part in ["all 2 snapshots are damaged", "step-000000055", "step-000000060", "put back a whole copy"] {
        assert!(e.is_corrupt_file() && e.to_string().contains(part), "{e}");
    }
    std::fs::remove_file(&older)?;
    assert!(tiny(Some(folder.path()))?.resume().unwrap_err().to_string().contains("the only snapshot is damaged"));
    Ok(())
}

/// What a power cut leaves at the end of metrics costs no more than the rows that are made again.
#[test]
fn a_power_cut_costs_rows_and_no_more() -> Result<()> {
    let template = Folder::new("review-power");
    let mut t = tiny(Some(template.path()))?;
    t.options.steps = 30;
    crate::train::survives::metrics(&mut t, template.path())?;
    train(&mut t)?;
    drop(t);
    let files = content(template.path());
    for (tail, keeps) in [
        (&[0u8; 300][..], false),
        (b"29,0.\0\0\0", false),
        (b"{\"loss\":0.\0\0\0", false),
        (b"\xff\xfe", true),
        (b"\0\0\n\xff\xfe\n\0", true),
        (b"\0\0\0\xff", true),
    ] {
        for name in ["metrics.csv", "metrics.jsonl"] {
            if tail.starts_with(b"29") && name == "metrics.jsonl" || tail.starts_with(b"{") && name == "metrics.csv" {
                continue;
            }
            let folder = Folder::new("review-power-cut");
            files.iter().for_each(|(n, bytes)| std::fs::write(folder.join(n), bytes).unwrap());
            let bad = [&files[name][..], tail].concat();
            std::fs::write(folder.join(name), &bad)?;
            assert_eq!(whole(folder.path())?, undisturbed(), "{name} {tail:?}");
            crate::train::survives::rows_are_complete(folder.path());
            let kept = folder.join(&format!("{name}.damaged"));
            assert_eq!(kept.exists(), keeps, "{name} {tail:?}");
            assert!(!keeps || std::fs::read(kept)? == bad);
        }
    }
    // Nothing but zeros; and what is between rows, which no power cut leaves.
    let folder = Folder::new("review-zeros");
    let (csv, jsonl) = (folder.join("m.csv"), folder.join("m.jsonl"));
    let write = |step: usize| -> Result<()> {
        Csv::open(&csv, &["loss"], step)?.write(step, &[("loss", 1.0)])?;
        Jsonl::open(&jsonl, step)?.write(step, &[("loss", 1.0)])
    };
    [&csv, &jsonl].iter().for_each(|f| std::fs::write(f, [0; 100]).unwrap());
    write(3)?;
    assert_eq!(
        (std::fs::read_to_string(&csv)?, std::fs::read_to_string(&jsonl)?),
        ("step,loss\n3,1\n".to_owned(), "{\"loss\":1.0,\"step\":3}\n".to_owned())
    );
    assert_eq!(names(folder.path()), ["m.csv", "m.jsonl"]);
    for (file, text) in
        [(&csv, &b"step,loss\n1,\xff\n2,1\n"[..]), (&jsonl, b"{\"step\":1}\n\0\0\n{\"step\":2}\n"), (&csv, b"\xff\xfe"), (&jsonl, b"\xff")]
    {
        [&csv, &jsonl].iter().for_each(|f| drop(std::fs::remove_file(f)));
        std::fs::write(file, text)?;
        let e = write(3).unwrap_err();
        assert!(e.is_corrupt_file() && e.to_string().contains("bytes that are not text"), "{e}");
        assert_eq!(std::fs::read(file)?, text);
    }
    // A note without its line's end is nobody's half row.
    for (file, text) in [(&csv, "step,loss\n1,1\nprecious"), (&jsonl, "{\"step\":1}\nprecious")] {
        [&csv, &jsonl].iter().for_each(|f| drop(std::fs::remove_file(f)));
        std::fs::write(file, text)?;
        assert!(write(3).unwrap_err().to_string().contains("precious"));
        assert_eq!(std::fs::read_to_string(file)?, text);
    }
    Ok(())
}

/// Rows of later steps before rows that stay: they go, as all later rows do, but not without a copy.
#[test]
fn a_changed_row_is_kept_in_a_copy() -> Result<()> {
    let folder = Folder::new("review-row");
    whole(folder.path())?;
    let (path, copy) = (folder.join("metrics.csv"), folder.join("metrics.csv.damaged"));
    let changed = std::fs::read_to_string(&path)?.replace("\n30,", "\n3000,");
    std::fs::write(&path, &changed)?;
    let mut t = tiny(Some(folder.path()))?;
    t.options.steps = STEPS + 5;
    t.resume()?.unwrap();
    crate::train::survives::metrics(&mut t, folder.path())?;
    assert!(!copy.exists(), "nothing before the first new row");
    train(&mut t)?;
    drop(t);
    assert_eq!(std::fs::read_to_string(&copy)?, changed);
    let steps: Vec<String> = std::fs::read_to_string(&path)?.lines().skip(1).map(|l| l.split(',').next().unwrap().to_owned()).collect();
    let want: Vec<String> = (0..STEPS + 5).filter(|s| *s != 30).map(|s| s.to_string()).collect();
    assert_eq!(steps, want);
    Ok(())
}

/// Half-written metrics of a killed process go with the first new row, those of living ones and of others stay; messages show what
/// cannot be seen.
#[test]
fn metrics_clear_away_their_own_halves() -> Result<()> {
    let folder = Folder::new("review-halves");
    let path = folder.join("metrics.csv");
    let others = ["metrics.jsonl.77.3.partial", "metrics.csv.partial", "my.csv.77.3.partial"];
    others.iter().for_each(|n| std::fs::write(folder.join(n), "precious").unwrap());
    let half = folder.join("metrics.csv.77.3.partial");
    for step in 0..2 {
        std::fs::write(&half, "half")?;
        let mut table = Csv::open(&path, &["loss"], step)?;
        assert!(half.exists(), "nothing before the first new row");
        table.write(step, &[("loss", 1.0)])?;
        assert!(!half.exists());
    }
    assert!(others.iter().all(|n| folder.join(n).exists()));
    std::fs::write(&path, "step,loss\r\n1,2\r\n")?;
    let e = Csv::open(&path, &["loss"], 3).unwrap_err();
    assert!(e.is_corrupt_file() && e.to_string().contains("lines end in CR LF"), "{e}");
    std::fs::write(&path, "step,\u{7}loss\n")?;
    assert!(Csv::open(&path, &["loss"], 3).unwrap_err().to_string().contains("the columns `step,\\u{7}loss` instead of `step,loss`"));
    std::fs::write(&path, format!("step,loss\n{}\n", "x".repeat(100_000)))?;
    assert!(Csv::open(&path, &["loss"], 3).unwrap_err().to_string().len() < 1000);
    Ok(())
}

/// A bit of a text in a snapshot that makes it look like another version's is damage like any other.
#[test]
fn a_flipped_version_is_damage() -> Result<()> {
    let (folder, older, newest) = two_snapshots("review-version");
    let good = std::fs::read(&newest)?;
    let at = good.windows(10).position(|w| w == br#"version\":"#).unwrap() + 10;
    for digit in [b'3', b'6', b'0'] {
        let mut bad = good.clone();
        bad[at] = digit;
        std::fs::write(&newest, &bad)?;
        let mut t = tiny(Some(folder.path()))?;
        assert_eq!(t.resume()?.unwrap().path, older);
        train(&mut t)?;
        assert_eq!(bits(&t.model), undisturbed());
    }
    Ok(())
}
