//! What a run survives: processes that are killed while they save, disks that are full, files that are damaged. The book's page "What
//! survives what" makes the promises; other tests that need a process of their own start it here.

use crate::files::Folder;
use cotangent::io::{TensorFile, save_safetensors, write_atomically};
use cotangent::optim::AdamW;
use cotangent::train::{Csv, Event, Jsonl, MetricSink, Order, Rows, Snapshots, TensorBoard, Trainer, record};
use cotangent::{Error, F32, Key, Result, Tensor};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

#[allow(dead_code)]
#[path = "../../examples/shared/run.rs"]
mod run;

pub const STEPS: usize = 60;
const MODE: &str = "COTANGENT_CHILD";
const FOLDER: &str = "COTANGENT_CHILD_FOLDER";
/// How a child says that the run gave an error, as it should.
const REFUSED: i32 = 3;

/// A run of [`STEPS`] short steps, a snapshot after every fifth.
pub fn tiny<'a>(folder: Option<&Path>) -> Result<Trainer<'a, Tensor, AdamW>> {
    let mut t = Trainer::new(Tensor::randn([4], F32, Key::new(3))?, AdamW { lr: 0.05, ..AdamW::default() });
    t.options.steps = STEPS;
    t.settings = [("task".to_owned(), "tiny".to_owned())].into();
    t.snapshots = folder.map(|f| Snapshots::open(f, 5)).transpose()?;
    Ok(t)
}

pub fn metrics(t: &mut Trainer<'_, Tensor, AdamW>, folder: &Path) -> Result<()> {
    let step = t.step();
    t.on(record(Csv::open(folder.join("metrics.csv"), &Csv::COLUMNS, step)?));
    t.on(record(Jsonl::open(folder.join("metrics.jsonl"), step)?));
    t.on(record(TensorBoard::create(folder.join("tensorboard"), step)?));
    Ok(())
}

pub fn train(t: &mut Trainer<'_, Tensor, AdamW>) -> Result<bool> {
    let data = Rows::new(Tensor::randn([40, 4], F32, Key::new(8))?, 4, Order::Shuffled, Key::new(9))?;
    Ok(t.run(&data, |w, x, _| x.mul(w)?.sum(-1)?.square()?.mean(..))?.stopped)
}

/// The whole of a run in a folder, from wherever it is, as its last bits.
pub fn whole(folder: &Path) -> Result<Vec<u32>> {
    let mut t = tiny(Some(folder))?;
    t.resume()?;
    metrics(&mut t, folder)?;
    train(&mut t)?;
    Ok(bits(&t.model))
}

pub fn bits(w: &Tensor) -> Vec<u32> {
    w.to_vec::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
}

/// The bits of a run that nothing disturbed.
pub fn undisturbed() -> Vec<u32> {
    let mut t = tiny(None).unwrap();
    train(&mut t).unwrap();
    bits(&t.model)
}

/// Each step has its row, once and in order, in both files.
pub fn rows_are_complete(folder: &Path) {
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let csv: Vec<usize> = text("metrics.csv").lines().skip(1).map(|l| l.split(',').next().unwrap().parse().unwrap()).collect();
    let of = |l: &str| serde_json::from_str::<serde_json::Value>(l).unwrap()["step"].as_u64().unwrap() as usize;
    let jsonl: Vec<usize> = text("metrics.jsonl").lines().map(of).collect();
    let want: Vec<usize> = (0..STEPS).collect();
    assert_eq!((&csv, &jsonl), (&want, &want));
}

/// This test binary as another program, which does `mode` in a folder.
pub fn child(mode: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "train::survives::as_a_child", "--nocapture"]).env(MODE, mode).env(FOLDER, folder);
    command
}

/// The same under a shell that first does `before`.
pub fn child_after(before: &str, mode: &str, folder: &Path) -> Command {
    let exe = std::env::current_exe().unwrap();
    let mut command = Command::new("bash");
    command.args(["-c", &format!("{before}; exec \"$0\" --exact train::survives::as_a_child --nocapture")]).arg(exe);
    command.env(MODE, mode).env(FOLDER, folder);
    command
}

/// Waits for the line that a child says when it is at work.
pub fn wait_for(child: &mut Child, word: &str) -> BufReader<std::process::ChildStdout> {
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains(word) {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "the child ended before it said `{word}`");
    }
    out
}

/// Not a test by itself: what [`child`] starts.
#[test]
fn as_a_child() {
    let Ok(mode) = std::env::var(MODE) else { return };
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let result = match mode.split_once(' ').unwrap_or((&mode, "")) {
        ("run", _) => whole(&folder).map(|bits| crate::say(&format!("bits {bits:?}"))),
        ("write", n) => write_for_ever(&folder.join("file.safetensors"), n.parse().unwrap()),
        ("intrude", _) => intrude(&folder),
        ("watch", _) => train_and_say(&folder, false),
        ("hold", _) => train_and_say(&folder, true),
        ("starve", _) => resume_without_files(&folder),
        ("copy", _) => save_without_a_copy(&folder),
        other => panic!("{other:?}"),
    };
    // At once: the test runner would report on an output that may be closed.
    std::process::exit(match result {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("refused: {e}");
            REFUSED
        }
    })
}

/// Saves ever again, in one size and one number.
fn write_for_ever(path: &Path, n: usize) -> Result<()> {
    let t = Tensor::from_slice(&vec![n as f32; 50_000 * n], [50_000 * n])?;
    crate::say("ready");
    loop {
        save_safetensors(path, [("all", &t)], &[])?;
    }
}

/// Tries to open everything in the folder of a run of another process; the error, if all of it is refused.
fn intrude(folder: &Path) -> Result<()> {
    let tries: [(&str, Result<()>); 5] = [
        ("csv", Csv::open(folder.join("metrics.csv"), &Csv::COLUMNS, 0).and_then(|mut f| f.write(0, &[("loss", 1.0)]))),
        ("jsonl", Jsonl::open(folder.join("metrics.jsonl"), 0).and_then(|mut f| f.write(0, &[("loss", 1.0)]))),
        ("tensorboard", TensorBoard::create(folder.join("tensorboard"), 0).map(drop)),
        ("snapshots", Snapshots::open(folder, 1).map(drop)),
        ("run", whole(folder).map(drop)),
    ];
    let mut last = Ok(());
    for (what, result) in tries {
        match result {
            Err(e) if e.is_argument() => last = Err(e),
            other => {
                eprintln!("{what} was not refused: {other:?}");
                return Ok(());
            }
        }
    }
    last
}

/// Trains slowly, says every step, and stops at signals, as the examples do; with `hold` it waits for one at the third step, however
/// late it comes.
fn train_and_say(folder: &Path, hold: bool) -> Result<()> {
    let mut t = tiny(Some(folder))?;
    t.resume()?;
    metrics(&mut t, folder)?;
    t.snapshots.as_mut().unwrap().every = 0;
    let stop = run::stop_on_signals("child");
    t.stop = stop.clone();
    t.on(move |event| {
        if let Event::Step { report, .. } = event {
            run::say("child", format_args!("step {}", report.step));
            std::thread::sleep(Duration::from_millis(30));
            for _ in 0..6000 {
                if !hold || report.step < 3 || stop.load(Relaxed) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    });
    train(&mut t).map(drop)
}

/// Opens the folder, then has no file descriptors left for reading a snapshot.
fn resume_without_files(folder: &Path) -> Result<()> {
    let mut t = tiny(Some(folder))?;
    let mut all = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        all.push(file);
    }
    let result = t.resume();
    drop(all);
    result.map(|found| eprintln!("resumed from {found:?}"))
}

/// Memory that saving takes beside the tensors, which lie in order and not.
fn save_without_a_copy(folder: &Path) -> Result<()> {
    let peak = || -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
    };
    let mut t = Tensor::zeros([8192, 24 * 1024], cotangent::U8)?;
    t.update::<u8>(|x| x[7] = 1)?;
    let (before, path) = (peak(), folder.join("large.safetensors"));
    save_safetensors(&path, [("all", &t)], &[])?;
    let after = peak();
    let part = t.narrow(0, 0, 4096)?.narrow(1, 0, 16 * 1024)?.transpose(0, 1)?;
    save_safetensors(&path, [("all", &part)], &[])?;
    crate::say(&format!("MiB {} {}", after - before, peak() - after));
    Ok(())
}

/// Fifty processes are killed while they save, two at a time under one name, beside a reader: no read is torn.
#[test]
fn fifty_kills_while_two_save_and_one_reads() {
    const KILLS: usize = 50;
    let folder = Folder::new("kills");
    let path = folder.join("file.safetensors");
    let random = Key::new(std::process::id().into());
    let start = |i: usize| {
        let mode = format!("write {}", 1 + i % 2 * 5);
        let mut c = child(&mode, folder.path()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        wait_for(&mut c, "ready");
        c
    };
    let done = AtomicBool::new(false);
    let (reads, kills) = std::thread::scope(|s| {
        let reader = s.spawn(|| {
            let mut reads = 0;
            while !done.load(Relaxed) {
                if !path.exists() {
                    continue;
                }
                let t = TensorFile::open(&path).and_then(|f| f.tensor("all")).unwrap_or_else(|e| panic!("torn after {reads} reads: {e}"));
                let values = t.to_vec::<f32>().unwrap();
                let n = values[0];
                assert!(values.len() == 50_000 * n as usize && values.iter().all(|x| *x == n), "values of two writers");
                reads += 1;
            }
            reads
        });
        let mut writers = [start(0), start(1)];
        for kill in 0..KILLS {
            std::thread::sleep(Duration::from_micros(random.below(kill as u64, 30_000)));
            let w = &mut writers[kill % 2];
            assert!(w.try_wait().unwrap().is_none(), "a writer ended by itself");
            w.kill().unwrap(); // SIGKILL
            w.wait().unwrap();
            *w = start(kill);
        }
        for w in &mut writers {
            w.kill().unwrap();
            w.wait().unwrap();
        }
        done.store(true, Relaxed);
        (reader.join().unwrap(), KILLS)
    });
    assert!(reads > KILLS, "{reads} reads");
    // What the killed left is cleared away by the next writer.
    save_safetensors(&path, [("all", &Tensor::scalar(1f32).unwrap())], &[]).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    crate::say(&format!("{kills} writers killed while they saved: {reads} reads, 0 torn"));
}

/// The disk is full at twenty moments of a run, which says so; with room again it continues to the same bits.
#[cfg(unix)]
#[test]
fn a_full_disk_costs_nothing() {
    let want = format!("bits {:?}", undisturbed());
    let random = Key::new(std::process::id().into());
    // A file system of its own where that is allowed; else files that must not grow.
    let probe = Folder::new("full");
    let mount = Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "none"]).arg(probe.path()).stderr(Stdio::null()).status();
    let mounts = mount.is_ok_and(|s| s.success());
    let mut failed = 0;
    for moment in 0..20 {
        let folder = Folder::new(&format!("full-{moment}"));
        let inside = folder.join("run");
        std::fs::create_dir(&inside).unwrap();
        let exe = "\"$0\" --exact train::survives::as_a_child --nocapture";
        // By turns, so that there are many different moments: a file system has pages.
        let mounts = mounts && moment % 2 == 0;
        let script = if mounts {
            let kib = 4 + 4 * random.below(moment, 6);
            format!(
                "mount -t tmpfs -o size={kib}k none \"$1\" && {{ {exe}; echo first $?; mount -o remount,size=16m \"$1\" && {exe}; \
                 echo second $?; mkdir \"$1\"/../out; cp \"$1\"/metrics.* \"$1\"/../out; }}"
            )
        } else {
            let kib = 1 + random.below(moment, 7);
            format!(
                "trap '' XFSZ; (ulimit -f {kib}; {exe}); echo first $?; {exe}; echo second $?; mkdir \"$1\"/../out; cp \"$1\"/metrics.* \"$1\"/../out"
            )
        };
        let mut command = if mounts { Command::new("unshare") } else { Command::new("bash") };
        command.args(if mounts { &["-m", "bash", "-c"][..] } else { &["-c"] }).arg(&script);
        command.arg(std::env::current_exe().unwrap()).arg(&inside).env(MODE, "run").env(FOLDER, &inside);
        let out = command.output().unwrap();
        let (said, wrong) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(said.contains("second 0") && said.contains(&want), "{script}\n{said}\n{wrong}");
        match () {
            () if said.contains("first 0") => {}
            () if said.contains(&format!("first {REFUSED}")) => {
                failed += 1;
                assert!(wrong.contains("cannot write") || wrong.contains("cannot create") || wrong.contains("cannot flush"), "{wrong}");
                assert!(wrong.contains("No space left") || wrong.contains("File too large"), "{wrong}");
            }
            () => panic!("{said}\n{wrong}"),
        }
        rows_are_complete(&folder.join("out"));
    }
    assert!(failed >= 5, "the disk was full {failed} times only");
    crate::say(&format!(
        "disk full at {failed} of 20 moments ({}): same bits after",
        if mounts { "tmpfs, file limit" } else { "file limit" }
    ));
}

/// A writer that fails after any number of bytes leaves the old file.
#[test]
fn a_writer_that_fails_leaves_the_old_file() {
    let folder = Folder::new("fails");
    let path = folder.join("precious");
    std::fs::write(&path, "old").unwrap();
    for n in [0usize, 1, 100, 1 << 20, (1 << 20) + 1, 3 << 20] {
        let e = write_atomically(&path, |out| {
            out.write_all(&vec![7; n])?;
            Err(Error::argument("enough"))
        });
        assert!(e.unwrap_err().is_argument());
        let panicked = std::panic::catch_unwind(|| {
            write_atomically(&path, |out| {
                out.write_all(&vec![7; n])?;
                std::panic::resume_unwind(Box::new("as a loader of the caller's might"))
            })
        });
        assert!(panicked.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

pub fn content(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file());
    files.map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&p).unwrap())).collect()
}

/// One of twenty ways to damage a file.
fn damage(bytes: &mut Vec<u8>, way: u64, random: Key) {
    let n = bytes.len() as u64;
    let at = random.below(0, n.max(1)) as usize;
    let noise = |count: u64| (0..count).map(|i| random.below(2 + i, 256) as u8).collect::<Vec<u8>>();
    match way {
        0..8 if n > 0 => bytes[at] ^= 1 << (way % 8),
        8..12 => bytes.truncate(at),
        12 => bytes.clear(),
        13 | 14 => bytes.extend(noise(100)),
        15 | 16 => {
            let end = (at + 64).min(bytes.len());
            bytes[at..end].fill(0);
        }
        17 => *bytes = noise(n),
        18 => bytes.fill(0),
        _ => drop(bytes.drain(..at)),
    }
}

/// Twenty damages of every kind of file that a run leaves: it continues bit for bit or says what is wrong with which file, and what was
/// damaged is still there.
#[test]
fn twenty_damages_of_every_file_of_a_run() {
    let (template, want) = (Folder::new("damages"), undisturbed());
    let mut half = tiny(Some(template.path())).unwrap();
    half.options.steps = 40;
    metrics(&mut half, template.path()).unwrap();
    train(&mut half).unwrap();
    drop(half);
    let whole_files = content(template.path());
    let (newest, older) = ("step-000000040.safetensors", "step-000000035.safetensors");
    let kinds = [newest, older, "metrics.csv", "metrics.jsonl", "run.lock", "tensorboard"];
    let (mut continued, mut refused) = (0, 0);
    for (k, name) in kinds.into_iter().enumerate() {
        for way in 0..20 {
            let folder = Folder::new(&format!("damages-{k}-{way}"));
            let random = Key::new(std::process::id().into()).fold(k as u64).fold(way);
            for (n, bytes) in &whole_files {
                std::fs::write(folder.join(n), bytes).unwrap();
            }
            std::fs::create_dir(folder.join("tensorboard")).unwrap();
            let path = if name == "tensorboard" { folder.join("tensorboard/events.out.tfevents.1.2.3") } else { folder.join(name) };
            let mut bytes = whole_files.get(name).cloned().unwrap_or_else(|| vec![3; 500]);
            damage(&mut bytes, way, random);
            std::fs::write(&path, &bytes).unwrap();
            let before = content(folder.path());
            match whole(folder.path()) {
                Ok(last) => {
                    continued += 1;
                    assert_eq!(last, want, "{name}, damage {way}");
                    if name == newest && bytes != whole_files[newest] {
                        assert_eq!(std::fs::read(folder.join(&format!("{newest}.damaged"))).unwrap(), bytes, "damage {way}");
                    }
                }
                Err(e) => {
                    refused += 1;
                    let text = e.to_string();
                    assert!(text.contains(name), "{name}, damage {way}: {text}");
                    assert!(e.is_corrupt_file() || text.contains("version"), "{name}, damage {way}: {text}");
                    assert_eq!(content(folder.path()), before, "{name}, damage {way}");
                }
            }
        }
    }
    assert!(continued >= 60, "{continued} continued, {refused} were refused");
    crate::say(&format!("120 damaged files of a run: {continued} times the same bits, {refused} times refused with the reason"));
}

/// What a child wrote to its error stream, and how it ended.
pub fn ended(mut c: Child) -> (Option<i32>, String) {
    let mut wrong = String::new();
    c.stderr.take().unwrap().read_to_string(&mut wrong).unwrap();
    (c.wait().unwrap().code(), wrong)
}
