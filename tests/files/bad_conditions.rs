//! Files of a run under bad conditions: other processes, damage, links and devices in place of files, full outputs, signals.

use crate::files::Folder;
use crate::train::survives::{self, STEPS, child, child_after, ended, rows_are_complete, tiny, train, undisturbed, wait_for};
use cotangent::diagnostics::{HealthHistory, Profiler, Trace};
use cotangent::io::{
    GenerationConfig, GgufFile, ModelConfig, ModuleFile, TensorFile, WeightFiles, open_file, read_file, save_safetensors, write_atomically,
};
use cotangent::nn::{KvCache, Linear};
use cotangent::optim::{Clipped, State};
use cotangent::train::{Csv, Event, Jsonl, MetricSink, Snapshot, Snapshots, TensorBoard, Tokens, Width};
use cotangent::{Error, F32, Key, Result, Tensor, grad};
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

pub fn names(folder: &Path) -> Vec<String> {
    let mut all: Vec<String> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

/// A process that comes to the folder of a running one is refused by every door, before it changes anything.
#[test]
fn another_process_changes_nothing_in_the_folder_of_a_run() {
    let folder = Folder::new("a1");
    let mut refused = 0;
    let mut t = tiny(Some(folder.path())).unwrap();
    // Before this process has opened any metrics, too: the rows of an older run lie there.
    std::fs::write(folder.join("metrics.csv"), format!("step,{}\n0,1,,,,,,\n", Csv::COLUMNS.join(","))).unwrap();
    let intrude = || {
        let before = names(folder.path());
        let out = child("intrude", folder.path()).output().unwrap();
        let wrong = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(3) && wrong.contains("another run trains in"), "{wrong}");
        assert_eq!(names(folder.path()), before);
    };
    intrude();
    assert_eq!(std::fs::read_to_string(folder.join("metrics.csv")).unwrap().lines().count(), 2);
    survives::metrics(&mut t, folder.path()).unwrap();
    t.on(|event| {
        if let Event::Step { report, .. } = event
            && report.step % 20 == 7
        {
            intrude();
            refused += 1;
        }
        Ok(())
    });
    train(&mut t).unwrap();
    drop(t);
    assert_eq!(refused, 3);
    rows_are_complete(folder.path());
    assert_eq!(std::fs::read_to_string(folder.join("metrics.csv.old")).unwrap().lines().count(), 2, "the rows of the older run");
}

/// A run that is refused because the folder has another's snapshots costs no row of the finished one.
#[test]
fn a_refused_run_costs_a_finished_one_nothing() {
    let folder = Folder::new("a1-finished");
    survives::whole(folder.path()).unwrap();
    rows_are_complete(folder.path());
    let mut t = tiny(Some(folder.path())).unwrap();
    survives::metrics(&mut t, folder.path()).unwrap(); // for step 0
    assert!(train(&mut t).unwrap_err().to_string().contains("there is a snapshot of another run"));
    drop(t);
    rows_are_complete(folder.path());
    // Nor does one that was started to the end already, and one that dies before its first step.
    survives::whole(folder.path()).unwrap();
    let mut t = tiny(Some(folder.path())).unwrap();
    t.resume().unwrap().unwrap();
    survives::metrics(&mut t, folder.path()).unwrap();
    drop(t);
    rows_are_complete(folder.path());
}

/// Whoever looks on while a run saves and removes snapshots sees a whole one each time, and disturbs nothing.
#[test]
fn looking_on_always_finds_a_whole_snapshot() {
    let folder = Folder::new("a1-view");
    std::thread::scope(|s| {
        let run = s.spawn(|| {
            let mut t = tiny(Some(folder.path())).unwrap();
            t.snapshots.as_mut().unwrap().every = 1;
            train(&mut t).unwrap();
            survives::bits(&t.model)
        });
        let (mut last, view) = (0, Snapshots::view(folder.path()));
        while !run.is_finished() {
            if let Some(found) = view.newest().unwrap() {
                assert!(found.snapshot.step >= last && found.damaged.is_empty(), "{:?}", found.damaged);
                last = found.snapshot.step;
            }
        }
        assert_eq!(run.join().unwrap(), undisturbed());
    });
}

/// A program that another thread starts holds every open file until it is executed: that keeps nobody out.
#[test]
fn a_folder_is_free_while_programs_are_started() {
    let folder = Folder::new("a1-started");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    std::process::Command::new("true").stdin(std::process::Stdio::null()).status().unwrap();
                }
            });
        }
        let end = std::time::Instant::now() + std::time::Duration::from_millis(1500);
        let mut taken = 0;
        let refused = loop {
            let result = Snapshots::open(folder.path(), 1);
            taken += 1;
            if result.is_err() || std::time::Instant::now() > end {
                break result.err();
            }
        };
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(refused.is_none(), "taken for the {taken}th time: {}", refused.unwrap());
    });
}

/// Metrics without a run's folder have their own lock.
#[test]
fn a_metrics_file_has_one_process() {
    let folder = Folder::new("a1-file");
    let path = folder.join("metrics.csv");
    let mut table = Csv::open(&path, &Csv::COLUMNS, 0).unwrap();
    table.write(0, &[("loss", 1.0)]).unwrap();
    let out = child("intrude", folder.path()).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stderr).contains("jsonl was not refused: Ok"), "{out:?}"); // free: but the table was not
    table.write(1, &[("loss", 1.0)]).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 3);
}

/// Two handles of one file in one process: the second does not take away what the first wrote.
#[test]
fn a_second_handle_takes_no_rows() {
    let folder = Folder::new("a1-handles");
    let path = folder.join("metrics.csv");
    let open = |step| Csv::open(&path, &["loss"], step).unwrap();
    let row = |f: &mut Csv, step| f.write(step, &[("loss", 1.0)]);
    let mut first = open(0);
    (0..5).for_each(|step| row(&mut first, step).unwrap());
    let (mut second, mut third) = (open(3), open(3));
    row(&mut second, 3).unwrap();
    let before = std::fs::read_to_string(&path).unwrap();
    assert_eq!(before.lines().count(), 5);
    assert!(row(&mut third, 3).unwrap_err().to_string().contains("was written to since it was opened"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
}

/// The folder of a run that was made to 60 steps, whose newest snapshot is then treated badly.
pub fn two_snapshots(name: &str) -> (Folder, PathBuf, PathBuf) {
    let folder = Folder::new(name);
    survives::whole(folder.path()).unwrap();
    let files = Snapshots::view(folder.path()).files().unwrap();
    let [older, newest] = &files[..] else { panic!("{files:?}") };
    let (older, newest) = (older.clone(), newest.clone());
    (folder, older, newest)
}

/// What cannot be read now ends the resumption, and all stays.
#[test]
fn a_snapshot_that_cannot_be_read_now_is_not_damaged() {
    let (folder, _, newest) = two_snapshots("a2-now");
    let resume = || tiny(Some(folder.path()))?.resume().map(|r| r.map(|r| r.path));
    // No file descriptor is left.
    let out = child_after("ulimit -n 40", "starve", folder.path()).output().unwrap();
    let wrong = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(3) && wrong.contains("Too many open files"), "{wrong}");
    assert_eq!(resume().unwrap(), Some(newest.clone()));
    #[cfg(unix)]
    {
        use std::os::unix::fs::{PermissionsExt, symlink};
        // Another user's (root may read it).
        std::fs::set_permissions(&newest, PermissionsExt::from_mode(0o000)).unwrap();
        match resume() {
            Ok(found) => assert!(found == Some(newest.clone()) && std::fs::File::open(&newest).is_ok()),
            Err(e) => assert!(e.is_io() && e.to_string().contains("Permission denied"), "{e}"),
        }
        std::fs::set_permissions(&newest, PermissionsExt::from_mode(0o644)).unwrap();
        // A disk that is not there: here, a link that leads in circles.
        let aside = folder.join("aside");
        std::fs::rename(&newest, &aside).unwrap();
        symlink(&newest, &newest).unwrap();
        let before = names(folder.path());
        let e = resume().unwrap_err();
        assert!(e.is_io() && e.location().unwrap().file().ends_with("files/bad_conditions.rs"), "{e}");
        assert_eq!(names(folder.path()), before);
        std::fs::remove_file(&newest).unwrap();
        std::fs::rename(&aside, &newest).unwrap();
    }
    assert_eq!(resume().unwrap(), Some(newest));
}

/// What a later release would write, were its checksum the same.
pub fn as_version_3(bytes: &mut [u8]) {
    let at = |bytes: &[u8], key: &[u8]| bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len();
    let version = at(bytes, br#"version\":"#);
    assert_eq!(bytes[version], b'2');
    bytes[version] = b'3';
    let seal = at(bytes, br#""cotangent.crc32c":""#);
    bytes[seal..seal + 8].copy_from_slice(b"00000000");
    let sum = crc32c::crc32c(bytes);
    bytes[seal..seal + 8].copy_from_slice(format!("{sum:08x}").as_bytes());
}

/// A snapshot of a later release ends the resumption with its version.
#[test]
fn a_newer_format_is_not_damaged() {
    let (folder, older, newest) = two_snapshots("a2-version");
    let mut bytes = std::fs::read(&newest).unwrap();
    as_version_3(&mut bytes);
    let entry = [("cotangent.snapshot", r#"{"version":3,"step":60}"#)];
    // One that is sealed as ours, and one that is sealed in another way.
    for sealed in [true, false] {
        match sealed {
            true => std::fs::write(&newest, &bytes).unwrap(),
            false => save_safetensors(&newest, [("model.", &Tensor::scalar(1f32).unwrap())], &entry).unwrap(),
        }
        for e in [tiny(Some(folder.path())).unwrap().resume().unwrap_err(), Snapshot::load(&newest).unwrap_err()] {
            assert!(e.is_argument() && e.to_string().contains("is a snapshot of version 3; this release reads version 2"), "{e}");
        }
    }
    std::fs::write(&newest, &bytes).unwrap();
    drop(tiny(Some(folder.path())).unwrap().resume().unwrap_err());
    assert_eq!(Snapshots::view(folder.path()).files().unwrap(), [older, newest.clone()]);
    assert_eq!(std::fs::read(newest).unwrap(), bytes);
}

/// Proven damage is passed over and renamed; no later save removes it.
#[test]
fn damage_is_renamed_and_never_removed() {
    let (folder, older, newest) = two_snapshots("a2-damaged");
    let damaged = newest.with_extension("safetensors.damaged");
    for round in 0..2 {
        let mut bytes = std::fs::read(&newest).unwrap();
        let at = bytes.len() - 1;
        bytes[at] ^= 1;
        std::fs::write(&newest, &bytes).unwrap();
        // Looking changes nothing.
        let found = Snapshots::view(folder.path()).newest().unwrap().unwrap();
        assert!(found.path == older && found.damaged.len() == 1 && newest.exists());
        let mut t = tiny(Some(folder.path())).unwrap();
        let resumed = t.resume().unwrap().unwrap();
        assert_eq!((&resumed.path, &resumed.damaged[0].0, t.step()), (&older, &newest, STEPS - 5));
        assert!(!newest.exists() && damaged.exists());
        train(&mut t).unwrap();
        assert!(newest.exists() && damaged.exists());
        assert_eq!(damaged.with_extension("damaged.1").exists(), round == 1);
    }
    // A run that is set back to an earlier snapshot keeps the later one, too.
    let mut t = tiny(Some(folder.path())).unwrap();
    t.restore(&Snapshot::load(&older).unwrap()).unwrap();
    t.options.steps = STEPS - 3;
    train(&mut t).unwrap();
    assert!(!newest.exists() && newest.with_extension("safetensors.superseded").exists());
    // Where all are damaged nothing is renamed: the folder must not look like a new one.
    let files = Snapshots::view(folder.path()).files().unwrap();
    drop(t);
    files.iter().for_each(|f| std::fs::write(f, "short").unwrap());
    for _ in 0..2 {
        assert!(tiny(Some(folder.path())).unwrap().resume().unwrap_err().is_corrupt_file());
    }
    assert_eq!(Snapshots::view(folder.path()).files().unwrap(), files);
}

/// Two writers of one name, and a reader: whole files only, and no save fails.
#[test]
fn two_writers_leave_one_whole_file() {
    let folder = Folder::new("b1");
    let path = folder.join("file.safetensors");
    let saved = |n: usize| {
        let t = Tensor::from_slice(&vec![n as f32; n * 20_000], [n * 20_000]).unwrap();
        (0..150).for_each(|_| save_safetensors(&path, [("all", &t)], &[]).unwrap());
    };
    save_safetensors(&path, [("all", &Tensor::from_slice(&vec![1f32; 20_000], [20_000]).unwrap())], &[]).unwrap();
    std::thread::scope(|s| {
        let writers = [s.spawn(|| saved(1)), s.spawn(|| saved(5))];
        while writers.iter().any(|w| !w.is_finished()) {
            let values = TensorFile::open(&path).unwrap().tensor("all").unwrap().to_vec::<f32>().unwrap();
            assert!(values.len() == values[0] as usize * 20_000 && values.iter().all(|x| *x == values[0]));
        }
    });
    assert_eq!(names(folder.path()), ["file.safetensors"]);
}

pub type Write<'a> = Box<dyn Fn(&Path) -> Result<()> + 'a>;

/// Every function that writes a file.
pub fn writers() -> Vec<(&'static str, Write<'static>)> {
    fn boxed(f: impl Fn(&Path) -> Result<()> + 'static) -> Write<'static> {
        Box::new(f)
    }
    let layer = || Linear::new(3, 2, F32, Key::new(1)).unwrap();
    let t = || Tensor::scalar(1f32).unwrap();
    vec![
        ("save", boxed(move |p| layer().save(p))),
        ("save_safetensors", boxed(move |p| save_safetensors(p, [("t", &t())], &[]))),
        ("tokens", boxed(|p| Tokens::from(vec![1, 2]).save(p, Width::U16))),
        ("trace", boxed(move |p| Trace::from_values([("t".to_owned(), t())])?.save(p))),
        ("snapshot", boxed(|p| Snapshot::default().save(p))),
        (
            "write_html",
            boxed(move |p| {
                let (layer, mut history) = (layer(), HealthHistory::default());
                let x = Tensor::ones([4, 3], F32)?;
                let grads = grad(&layer, |l| l.forward(&x)?.square()?.mean(..))?;
                history.record(0, &layer, &grads, 1.0, 0.1, &Clipped { norm: 1.0, finite: true, clipped: false })?;
                history.write_html(p)
            }),
        ),
        (
            "write_chrome_trace",
            boxed(move |p| {
                let (layer, x) = (layer(), Tensor::ones([4, 3], F32)?);
                let profiler = Profiler::new();
                grad(&layer, |l| {
                    profiler.attach(l)?;
                    l.forward(&x)?.square()?.mean(..)
                })?;
                profiler.finish().write_chrome_trace(p)
            }),
        ),
        ("write_atomically", boxed(|p| write_atomically(p, |out| Ok(out.write_all(b"content")?)))),
        ("csv", boxed(|p| Csv::open(p, &["loss"], 0)?.write(0, &[("loss", 1.0)]))),
        ("jsonl", boxed(|p| Jsonl::open(p, 0)?.write(0, &[("loss", 1.0)]))),
    ]
}

#[cfg(unix)]
#[test]
fn links_are_followed_to_their_file_and_permissions_stay() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    for (name, write) in writers() {
        let grows = name == "csv" || name == "jsonl";
        let folder = Folder::new(&format!("b2-{name}"));
        std::fs::create_dir(folder.join("other")).unwrap();
        let (path, precious) = (folder.join("file"), folder.join("precious"));
        // What may be guessed of a name for the time of writing is not written through.
        std::fs::write(&precious, "precious").unwrap();
        symlink(&precious, folder.join("file.partial")).unwrap();
        // A private file stays one.
        write(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        write(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        // Links to a file that is there, to one that is not, and to a link.
        let target = folder.join("other/target");
        for (link, to) in [("absolute", target.clone()), ("relative", "other/new".into()), ("second", "absolute".into())] {
            let link = folder.join(link);
            symlink(&to, &link).unwrap();
            write(&link).unwrap();
            assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink() && std::fs::metadata(&link).unwrap().is_file(), "{name}");
        }
        let there = names(&folder.join("other"));
        assert!(there == ["new", "target"] || grows && there == ["new", "target", "target.old"], "{name}: {there:?}");
        assert_eq!(std::fs::read(&precious).unwrap(), b"precious", "{name}");
        let circle = folder.join("circle");
        symlink(&circle, &circle).unwrap();
        assert!(write(&circle).unwrap_err().is_io(), "{name}");
    }
}

/// Things that are no files, each under a name of its own; a device only where this process may make one.
#[cfg(unix)]
pub fn specials(folder: &Folder) -> Vec<(PathBuf, &'static str, Option<std::os::unix::net::UnixListener>)> {
    let (fifo, socket, device, inner) = (folder.join("fifo"), folder.join("socket"), folder.join("device"), folder.join("inner"));
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    std::fs::create_dir(&inner).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut all = vec![(fifo, "a FIFO", None), (socket, "a socket", Some(listener)), (inner, "a folder", None)];
    let made = Command::new("mknod").arg(&device).args(["c", "1", "5"]).stderr(Stdio::null()).status(); // another /dev/zero
    if made.is_ok_and(|s| s.success()) {
        all.push((device, "a character device", None));
    }
    all
}

/// Runs what may hang.
fn in_time<T: Send + 'static>(what: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || drop(send.send(f())));
    receive.recv_timeout(Duration::from_secs(20)).unwrap_or_else(|e| panic!("{what} hangs: {e}"))
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_replaced() {
    let folder = Folder::new("b2-special");
    let all = specials(&folder);
    let before = names(folder.path());
    for (path, is, _) in &all {
        let kind = std::fs::symlink_metadata(path).unwrap().file_type();
        for i in 0..writers().len() {
            let p = path.clone();
            let (name, result) = in_time(is, move || {
                let (name, write) = writers().swap_remove(i);
                (name, write(&p))
            });
            let e = result.err().unwrap_or_else(|| panic!("{name} wrote to {is}"));
            assert!(e.is_io() && e.to_string().contains(&format!("it is {is}")), "{name}: {e}");
            assert!(e.op().is_some() && e.location().unwrap().file().ends_with("files/bad_conditions.rs"), "{name}: {e}");
        }
        assert_eq!(std::fs::symlink_metadata(path).unwrap().file_type(), kind, "{is}");
    }
    assert_eq!(names(folder.path()), before);
}

type Read2 = fn(&Path) -> Result<()>;

/// Every function that reads a file.
const READERS: &[(&str, Read2)] = &[
    ("TensorFile", |p| TensorFile::open(p).map(drop)),
    ("WeightFiles", |p| WeightFiles::open(p).map(drop)),
    ("GgufFile", |p| GgufFile::open(p).map(drop)),
    ("ModelConfig", |p| ModelConfig::open(p).map(drop)),
    ("GenerationConfig", |p| GenerationConfig::open(p).map(drop)),
    ("Tokens", |p| Tokens::open(p, Width::U16)?.read(0, 1 << 50).map(drop)),
    #[cfg(feature = "tokenizers")]
    ("TokenizerFile", |p| cotangent::train::TokenizerFile::open(p).map(drop)),
    ("models::load", |p| cotangent::models::load(p, cotangent::models::LoadOptions::default()).map(drop)),
    ("Snapshot", |p| Snapshot::load(p).map(drop)),
    ("Trace", |p| Trace::load(p).map(drop)),
    ("Csv", |p| Csv::open(p, &["loss"], 3).map(drop)),
    ("Jsonl", |p| Jsonl::open(p, 3).map(drop)),
    ("load", |p| Linear::new(3, 2, F32, Key::new(1))?.load(p).map(drop)),
    ("load_partial", |p| Linear::new(3, 2, F32, Key::new(1))?.load_partial(p).map(drop)),
    ("read_file", |p| read_file(p, 1 << 20).map(drop)),
    ("open_file", |p| open_file(p)?.read(&mut [0; 8]).map(drop).map_err(Error::from)),
];

#[cfg(unix)]
#[test]
fn what_is_no_file_is_refused_at_once_by_every_reader() {
    let folder = Folder::new("b3");
    let mut all: Vec<_> = specials(&folder).into_iter().filter(|s| s.1 != "a folder").collect();
    all.push(("/dev/zero".into(), "a character device", None));
    for (path, is, _) in &all {
        for (name, read) in READERS {
            let p = path.clone();
            let e = in_time(name, move || read(&p)).err().unwrap_or_else(|| panic!("{name} reads {is}"));
            assert!(e.is_io() && e.to_string().contains(&format!("it is {is}")), "{name}: {e}");
        }
        // The files inside of a folder.
        for inside in ["config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json", "run.lock"] {
            let model = Folder::new("b3-inside");
            std::os::unix::fs::symlink(path, model.join(inside)).unwrap();
            let p = model.path().to_owned();
            let results = in_time(inside, move || {
                [
                    ModelConfig::open(&p).map(drop),
                    GenerationConfig::open(&p).map(drop),
                    WeightFiles::open(&p).map(drop),
                    cotangent::models::load(&p, cotangent::models::LoadOptions::default()).map(drop),
                    Snapshots::open(&p, 1).map(drop),
                    Csv::open(p.join("metrics.csv"), &["loss"], 0).map(drop),
                    TensorBoard::create(p.join("tensorboard"), 0).map(drop),
                ]
            });
            assert!(results.iter().filter_map(|r| r.as_ref().err()).any(|e| e.to_string().contains(is)), "{inside}: {results:?}");
        }
    }
    for (name, read) in READERS {
        assert!(read(folder.path()).is_err(), "{name} reads a folder");
    }
}

/// Lines and files without end, in bounded memory.
#[test]
fn files_without_end_are_refused() {
    let folder = Folder::new("b3-long");
    let path = folder.join("long");
    // A hole of a tebibyte: it takes no room, and would take all memory.
    std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    for (name, read) in READERS.iter().filter(|(name, _)| *name != "open_file") {
        let p = path.clone();
        let e = in_time(name, move || read(&p)).err().unwrap_or_else(|| panic!("{name} reads a tebibyte of nothing"));
        assert!(e.is_corrupt_file() || e.is_index(), "{name}: {e}");
    }
    for (text, refused) in [("x".repeat(1 << 21), true), (format!("step,loss\n1,{}\n", "2".repeat(1 << 20)), true)] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(Csv::open(&path, &["loss"], 0).err().map(|e| e.to_string().contains("a line of more than")), refused.then_some(true));
    }
}

/// A small snapshot with everything in it.
fn small() -> Snapshot {
    let named = |name: &str, values: &[f32]| [(name.to_owned(), Tensor::from_slice(values, [values.len()]).unwrap())].into();
    Snapshot {
        step: 20,
        position: 20,
        key: (3, 4),
        model: named("weight", &[1.5, -2.0]),
        optimizer: State { tensors: named("m.weight", &[0.5, 0.25]), numbers: [("steps".to_owned(), 20.0)].into() },
        numbers: [("clipped".to_owned(), 3.0), ("learning_rate".to_owned(), 0.1)].into(),
        settings: [("width".to_owned(), "2".to_owned())].into(),
    }
}

/// Every single bit of a snapshot counts: each flip is noticed, and the snapshot before it is taken; also where the flip looks like the
/// version of another release.
#[test]
fn every_bit_of_a_snapshot_counts() {
    let folder = Folder::new("b4");
    let (older, newest) = (folder.join("step-000000010.safetensors"), folder.join("step-000000020.safetensors"));
    Snapshot { step: 10, ..small() }.save(&older).unwrap();
    small().save(&newest).unwrap();
    let good = std::fs::read(&newest).unwrap();
    let back = Snapshot::load(&newest).unwrap();
    assert_eq!((back.step, back.position, back.key, back.settings), (20, 20, (3, 4), small().settings));
    let view = Snapshots::view(folder.path());
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            std::fs::write(&newest, &bad).unwrap();
            let found = view.newest().unwrap_or_else(|e| panic!("bit {bit} of byte {at}: {e}")).unwrap();
            assert!(found.path == older && found.damaged.len() == 1, "bit {bit} of byte {at} was not noticed");
        }
    }
    crate::say(&format!("{} flipped bits of a snapshot, all noticed", 8 * good.len()));
    // A length that is wrong, and the right content under another name.
    for n in 0..good.len() {
        std::fs::write(&newest, &good[..n]).unwrap();
        assert!(Snapshot::load(&newest).unwrap_err().is_corrupt_file());
    }
    std::fs::copy(&older, &newest).unwrap();
    let found = view.newest().unwrap().unwrap();
    assert_eq!(found.path, older);
    assert!(found.damaged[0].1.to_string().contains("holds the snapshot of step 10"), "{:?}", found.damaged);
}

/// The position, step and names of a run's newest snapshot, changed by a bit: the run continues from the one before to the same bits.
#[test]
fn a_changed_number_is_not_trained_on() {
    for (what, from, to) in
        [("position", r#"position\":60"#, r#"position\":62"#), ("step", r#"step\":60"#, r#"step\":20"#), ("name", "model.", "modem.")]
    {
        let (folder, older, newest) = two_snapshots(&format!("b4-{what}"));
        let mut bytes = std::fs::read(&newest).unwrap();
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap_or_else(|| panic!("{what}"));
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&newest, bytes).unwrap();
        let mut t = tiny(Some(folder.path())).unwrap();
        assert_eq!(t.resume().unwrap().unwrap().path, older, "{what}");
        train(&mut t).unwrap();
        assert_eq!(survives::bits(&t.model), undisturbed(), "{what}");
    }
}

/// A run whose reader goes away says so once and goes on to its end.
#[test]
fn a_closed_output_does_not_end_a_run() {
    let folder = Folder::new("b5");
    let mut c = child("watch", folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(wait_for(&mut c, "step 3"));
    let (code, wrong) = ended(c);
    assert_eq!(code, Some(0), "{wrong}");
    assert_eq!(wrong.lines().filter(|l| l.contains("the run goes on without it")).count(), 1, "{wrong}");
    rows_are_complete(folder.path());
    let mut t = tiny(Some(folder.path())).unwrap();
    t.resume().unwrap();
    assert_eq!((t.step(), survives::bits(&t.model)), (STEPS, undisturbed()));
}

/// Each signal that asks a process to end leaves a snapshot of that step, and no row is lost.
#[cfg(unix)]
#[test]
fn signals_save_and_stop() {
    for signal in ["INT", "TERM", "HUP"] {
        // Children of a process under `nohup` go on, as they should: asked, they would be waited for in vain.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = status.lines().find_map(|l| l.strip_prefix("SigIgn:")).and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
        if signal == "HUP" && ignored.is_some_and(|bits| bits & 1 == 1) {
            crate::say("skipped: SIGHUP, which this process ignores (nohup)");
            continue;
        }
        let folder = Folder::new(&format!("b6-{signal}"));
        let mut c = child("hold", folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = wait_for(&mut c, "step 3");
        assert!(Command::new("kill").args([format!("-{signal}"), c.id().to_string()]).status().unwrap().success());
        let mut rest = String::new();
        while out.read_line(&mut rest).unwrap() > 0 {}
        let (code, wrong) = ended(c);
        assert_eq!(code, Some(0), "{signal}: {wrong}");
        let done = Snapshots::view(folder.path()).newest().unwrap().unwrap().snapshot.step as usize;
        assert!((4..STEPS).contains(&done), "{signal}: {done} steps");
        assert_eq!(survives::whole(folder.path()).unwrap(), undisturbed(), "{signal}");
        rows_are_complete(folder.path());
    }
    // Under `nohup` a closed connection is no reason to stop.
    let folder = Folder::new("b6-nohup");
    let mut c = child_after("trap '' HUP", "watch", folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = wait_for(&mut c, "step 3");
    assert!(Command::new("kill").args(["-HUP".to_owned(), c.id().to_string()]).status().unwrap().success());
    let mut rest = String::new();
    while out.read_line(&mut rest).unwrap() > 0 {}
    assert_eq!(ended(c).0, Some(0));
    assert!(rest.contains(&format!("step {}", STEPS - 1)), "{rest}");
}

/// Tensors are written from where they lie, or a piece at a time: no second copy of one.
#[cfg(target_os = "linux")]
#[test]
fn saving_needs_no_second_copy() {
    let folder = Folder::new("a3");
    let out = child("copy", folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    let line = said.lines().find_map(|l| l.split_once("MiB ")).unwrap_or_else(|| panic!("{out:?}")).1;
    let grown: Vec<usize> = line.split(' ').map(|n| n.parse().unwrap()).collect();
    // Of 192 MiB in order and 64 MiB across.
    assert!(grown[0] < 16 && grown[1] < 48, "{line}");
    let file = TensorFile::open(folder.join("large.safetensors")).unwrap();
    assert_eq!(file.shape("all").unwrap().dims(), [16 * 1024, 4096]);
    // The pieces are the tensor.
    let across = file.tensor("all").unwrap();
    assert_eq!(across.select(0, 7).unwrap().select(0, 0).unwrap().item().unwrap(), 1.0);
    assert_eq!(across.narrow(0, 0, 64).unwrap().to_f64_vec().unwrap().iter().sum::<f64>(), 1.0);
}

/// Tables by whose lengths the library of tokenizers would cut: a merge longer than every token, a prefix longer than a token.
#[cfg(feature = "tokenizers")]
#[test]
fn tokenizers_whose_tables_do_not_fit_are_refused() {
    let folder = Folder::new("tables");
    for model in [
        r#"{"type":"BPE","vocab":{"a":0,"b":1},"merges":[["a","b"]]}"#,
        r#"{"type":"BPE","continuing_subword_prefix":"____","vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]}"#,
    ] {
        std::fs::write(folder.join("tokenizer.json"), format!(r#"{{"version":"1.0","added_tokens":[],"model":{model}}}"#)).unwrap();
        let e = cotangent::train::TokenizerFile::open(folder.join("tokenizer.json")).map(drop).unwrap_err();
        assert!(e.is_corrupt_file() && e.to_string().contains("do not fit each other"), "{e}");
    }
}

/// The entries of the fuzzer take seeds (as of scripts/fuzz_seeds), parts of them and changed bytes, and hold what they assert.
#[test]
fn entries_of_the_fuzzer_hold_on_damaged_files() {
    use crate::fuzz_entry;
    let folder = Folder::new("fuzz");
    small().save(folder.join("snapshot")).unwrap();
    let csv = b"step,loss\n0,1.5\n1,\n2,inf\n3,0.".to_vec();
    let jsonl = b"{\"loss\":1.5,\"step\":0}\n{\"loss\":\"inf\",\"step\":1}\n{\"lo".to_vec();
    type Entry = fn(&[u8]) -> Result<()>;
    let mut all: Vec<(Vec<u8>, Entry, u64)> = vec![
        (std::fs::read(folder.join("snapshot")).unwrap(), fuzz_entry::snapshot, 300),
        (csv, fuzz_entry::metrics, 300),
        (jsonl, fuzz_entry::metrics, 300),
    ];
    #[cfg(feature = "tokenizers")]
    all.push((
        br#"{"version":"1.0","added_tokens":[],"pre_tokenizer":{"type":"Whitespace"},"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]}}"#.to_vec(),
        fuzz_entry::tokenizer,
        300,
    ));
    for (seed, entry, changes) in &all {
        entry(seed).unwrap();
        let random = Key::new(std::process::id().into());
        for i in 0..*changes {
            let draw = |what: u64, n: usize| random.fold(i).below(what, n as u64) as usize;
            let mut bytes = seed[..seed.len() - draw(0, 3) / 2 * draw(1, seed.len())].to_vec();
            for change in 0..draw(2, 3) as u64 {
                if let Some(n) = bytes.len().checked_sub(1) {
                    bytes[draw(3 + change, n + 1)] = draw(9 + change, 256) as u8;
                }
            }
            drop(entry(&bytes));
        }
    }
}

/// Errors of what writes and reads name it and the caller's line.
#[test]
fn d_errors_name_the_callers_line() {
    let here = |what: &str, result: Result<()>, op: &str| {
        let e = result.err().unwrap_or_else(|| panic!("{what} was not refused"));
        assert!(e.op() == Some(op) && e.location().unwrap().file().ends_with("tests/files/bad_conditions.rs"), "{what}: {e}");
        e
    };
    let huge = || Tensor::zeros([1 << 30, 1 << 31], F32).unwrap();
    let nowhere = Path::new("/nowhere/at/all");
    let snapshot = Snapshot { model: [("w".to_owned(), Tensor::scalar(1f32).unwrap())].into(), ..Snapshot::default() };
    here("Snapshot::save", snapshot.save(nowhere), "snapshot");
    here("Snapshot::load", Snapshot::load(nowhere).map(drop), "snapshot");
    here("Trace::save", Trace::from_values([("t".to_owned(), huge())]).unwrap().save(nowhere), "trace");
    here("Trace::load", Trace::load(nowhere).map(drop), "trace");
    here("Csv::open", Csv::open(nowhere, &["loss"], 0).map(drop), "csv");
    here("Jsonl::open", Jsonl::open(nowhere, 0).map(drop), "jsonl");
    here("Snapshots::newest", Snapshots::view(nowhere).newest().map(drop), "snapshots");
    here("Snapshots::files", Snapshots::view(nowhere).files().map(drop), "snapshots");
    let view = Snapshots::view(std::env::temp_dir());
    assert!(here("Snapshots::save", view.save(&snapshot).map(drop), "snapshots").to_string().contains("is open for reading only"));
    let mut cache = KvCache::default();
    let e = here(
        "KvCache::append",
        cache
            .append(huge().reshape([1, 1, 1 << 30, 1usize << 31]).unwrap(), huge().reshape([1, 1, 1 << 30, 1usize << 31]).unwrap())
            .map(drop),
        "kv_cache",
    );
    assert!(e.is_out_of_memory(), "{e}");
    // Sizes beyond what can be counted.
    let beyond = Tensor::zeros([1 << 62], cotangent::F64).unwrap();
    let e = here("save_safetensors", save_safetensors(nowhere, [("t", &beyond)], &[]), "save_safetensors");
    assert!(e.is_out_of_memory(), "{e}");
}

/// A path that stands for an open file is not replaced, which would leave its writer with a file that nobody sees.
#[cfg(target_os = "linux")]
#[test]
fn c_open_files_are_not_replaced_and_files_of_the_kernel_not_read_by_length() {
    use std::os::fd::AsRawFd;
    let folder = Folder::new("c_open");
    let (path, link) = (folder.join("out.txt"), folder.join("link"));
    std::fs::write(&path, "before").unwrap();
    let file = std::fs::File::options().append(true).open(&path).unwrap();
    std::os::unix::fs::symlink(format!("/dev/fd/{}", file.as_raw_fd()), &link).unwrap();
    let model = Linear::new(2, 2, F32, Key::new(1)).unwrap();
    for way in [format!("/proc/self/fd/{}", file.as_raw_fd()), format!("/dev/fd/{}", file.as_raw_fd()), link.display().to_string()] {
        let e = model.save(&way).unwrap_err();
        assert!(e.is_io() && e.to_string().contains("a process has open"), "{way}: {e}");
        let e = write_atomically(&way, |out| Ok(out.write_all(b"x")?)).unwrap_err();
        assert!(e.to_string().contains("name the file"), "{way}: {e}");
    }
    assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), names(folder.path()).len()), ("before", 2));
    // Read they may be: that is the file itself.
    std::fs::write(&path, [1, 0, 2, 0]).unwrap();
    assert_eq!(Tokens::open(&link, Width::U16).unwrap().read(0, 2).unwrap(), [1, 2]);
    for path in ["/proc/self/maps", "/proc/self/mem", "/proc/cpuinfo"] {
        let e = Tokens::open(path, Width::U16).unwrap_err();
        assert!(e.is_io() && e.to_string().contains("of the kernel"), "{path}: {e}");
    }
    let e = TensorBoard::create("", 0).unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("is empty"), "{e}");
    #[cfg(feature = "readers")]
    {
        let path = folder.join("sparse.csv");
        std::fs::File::create(&path).unwrap().set_len(1 << 42).unwrap();
        let e = cotangent::io::CsvFile::open(&path).unwrap_err();
        assert!(e.is_out_of_memory() || e.is_corrupt_file(), "{e}");
    }
}
