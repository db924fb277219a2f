//! Numbers over steps, in files.

use super::event::Event;
use crate::error::{Error, Result, bail};
use crate::io::{Lock, failed, folder_of, free_name, lock, lock_around, open_to_append, replace, set_aside, sweep_partial};
use crate::memory;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::panic::Location;
use std::path::{Path, PathBuf};

/// Bytes of a line that is read back, at most.
const LONGEST_LINE: u64 = 1 << 20;

/// Something that takes named numbers at steps.
pub trait MetricSink {
    /// Takes the numbers of one step.
    ///
    /// # Errors
    /// I/O error; argument error for a name that it has no place for.
    fn write(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()>;

    /// Brings what was written to the disk: called at every snapshot, so that a power cut costs no row of a step before it.
    ///
    /// # Errors
    /// I/O error.
    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A callback for [`Trainer::on`](super::Trainer::on) that hands what every step and evaluation gives to a sink, under the names
/// of [`Csv::COLUMNS`]; numbers that a loss or an evaluation has besides come under their own names, those of evaluations with
/// `validation_` before them. A [`Csv`] needs a column for each.
pub fn record<M>(mut sink: impl MetricSink) -> impl FnMut(&Event<'_, M>) -> Result<()> {
    let truth = |b| if b { 1.0 } else { 0.0 };
    move |event| match event {
        Event::Step { report: r, metrics, .. } => {
            let mut values = vec![
                ("loss", r.loss),
                ("learning_rate", r.learning_rate),
                ("gradient_norm", r.norm),
                ("clipped", truth(r.clipped.clipped)),
                ("skipped", truth(r.skipped)),
                ("seconds", r.seconds),
            ];
            values.extend(metrics.iter().map(|(name, v)| (name.as_str(), *v)));
            sink.write(r.step, &values)
        }
        Event::Evaluated { step, loss, metrics, .. } => {
            let names: Vec<String> = metrics.iter().map(|(name, _)| format!("validation_{name}")).collect();
            let mut values = vec![("validation_loss", *loss)];
            values.extend(names.iter().zip(*metrics).map(|(name, (_, v))| (name.as_str(), *v)));
            sink.write(*step, &values)
        }
        Event::Saved { .. } => sink.sync(),
        _ => Ok(()),
    }
}

/// A table with a row per step or evaluation; cells without a number are empty.
#[derive(Debug)]
pub struct Csv {
    file: Lines,
    title: String,
    columns: Vec<String>,
}

impl Csv {
    /// What [`record`] writes.
    pub const COLUMNS: [&'static str; 7] = ["loss", "learning_rate", "gradient_norm", "clipped", "skipped", "seconds", "validation_loss"];

    /// Opens the table for a run that continues at `step`. Rows from there on, which a run that was killed wrote after its last snapshot,
    /// are taken away when the first new one is written, so a run that is refused costs none. A run that begins at step 0 finds the
    /// rows of another: their file is renamed to `NAME.old` then.
    ///
    /// What a power cut leaves at the end of the file (half a row, zeros, bytes that are not text) goes with these rows. Where more is taken
    /// away than half a row and zeros, or rows of later steps come before rows that stay, the file is damaged: a copy of all of it is kept
    /// as `NAME.damaged`, with a warning (`tracing`).
    ///
    /// # Errors
    /// Argument error while a run of another process has the folder, or another process writes the file; I/O error, also for what is no
    /// regular file; corrupt-file error when the file is something else: has other columns, a row without a step or a line of more
    /// than a mebibyte. It stays as it is then.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>, columns: &[&str], step: usize) -> Result<Self> {
        let at = Location::caller();
        Self::open_at(path.as_ref(), columns, step).map_err(|e| e.in_op("csv", at))
    }

    fn open_at(path: &Path, columns: &[&str], step: usize) -> Result<Self> {
        let title = format!("step,{}", columns.join(","));
        let (mut first, mut titled) = (true, false);
        let mut file = Lines::open(path, step, |line, whole| {
            if std::mem::take(&mut first) {
                titled = whole;
                if line != title && (whole || !title.starts_with(line)) {
                    if line.strip_suffix('\r') == Some(&title) {
                        bail!(corrupt_file, "{}: lines end in CR LF, as an editor may have left them, instead of LF", path.display());
                    }
                    bail!(corrupt_file, "{} has the columns `{}` instead of `{title}`", path.display(), shown(line));
                }
                return Ok(Place::Title);
            }
            match line.split(',').next().and_then(|s| s.parse::<usize>().ok()) {
                Some(s) => Ok(Place::Row(s)),
                None if !whole && line.is_empty() => Ok(Place::Torn),
                None => bail!(corrupt_file, "{} has the row `{}`, without a step", path.display(), shown(line)),
            }
        })?;
        // A title that is not whole goes with all that follows.
        file.titled = titled;
        Ok(Csv { file, title, columns: columns.iter().map(|c| (*c).to_owned()).collect() })
    }
}

impl MetricSink for Csv {
    fn write(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        if let Some((name, _)) = values.iter().find(|(n, _)| !self.columns.iter().any(|c| c == n)) {
            bail!(argument, "{} has no column `{name}`", self.file.path.display());
        }
        let mut line = step.to_string();
        for c in &self.columns {
            line.push(',');
            if let Some((_, x)) = values.iter().find(|(n, _)| n == c) {
                line.push_str(&x.to_string());
            }
        }
        self.file.put(Some(&self.title), &line)
    }

    fn sync(&mut self) -> Result<()> {
        self.file.sync()
    }
}

/// A JSON object per line: `{"loss":2.5,"step":3}`. Numbers that are not finite are texts, since JSON has none.
#[derive(Debug)]
pub struct Jsonl(Lines);

impl Jsonl {
    /// Opens the file; lines of `step` and later are taken away by the first new one, as in [`Csv::open`].
    ///
    /// # Errors
    /// As [`Csv::open`]; corrupt-file error when a line is something else than an object with a step.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>, step: usize) -> Result<Self> {
        let at = Location::caller();
        Self::open_at(path.as_ref(), step).map_err(|e| e.in_op("jsonl", at))
    }

    fn open_at(path: &Path, step: usize) -> Result<Self> {
        let lines = Lines::open(path, step, |line, whole| match serde_json::from_str::<Value>(line).map(|v| v["step"].as_u64()) {
            Ok(Some(s)) => Ok(Place::Row(usize::try_from(s).unwrap_or(usize::MAX))),
            Err(_) if !whole && (line.is_empty() || line.starts_with('{')) => Ok(Place::Torn),
            _ => bail!(corrupt_file, "{} has the line `{}`, which is not an object with a step", path.display(), shown(line)),
        });
        Ok(Jsonl(lines?))
    }
}

impl MetricSink for Jsonl {
    fn write(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        let number = |x: f64| if x.is_finite() { Value::from(x) } else { Value::from(x.to_string()) };
        let mut line: Map<String, Value> = values.iter().map(|(n, x)| ((*n).to_owned(), number(*x))).collect();
        line.insert("step".to_owned(), step.into());
        self.0.put(None, &Value::from(line).to_string())
    }

    fn sync(&mut self) -> Result<()> {
        self.0.sync()
    }
}

/// What a line is.
enum Place {
    Title,
    /// Of that step.
    Row(usize),
    /// The beginning of one, as a killed process leaves it.
    Torn,
}

/// A text file that grows by lines. Nothing in it changes before the first new line comes.
#[derive(Debug)]
struct Lines {
    path: PathBuf,
    out: BufWriter<File>,
    /// Whether the title is there already.
    titled: bool,
    /// What the first new line does before.
    cut: Cut,
    /// Whether more goes by that than is made again: a copy of all is kept.
    damaged: bool,
    /// Whether the first new line has come.
    begun: bool,
    /// Bytes there were when this was found out.
    length: u64,
    // The files' before the folder's.
    _mine: Lock,
    _run: Option<Lock>,
}

/// What is to be done with old lines.
#[derive(Debug)]
enum Cut {
    Nothing,
    /// The file ends here.
    At(u64),
    /// The file has lines to keep after others: those at these offsets.
    Keep(Vec<Range<u64>>),
    /// All lines are of another run.
    Aside,
}

impl Lines {
    /// Opens a file for lines of `step` and later. `of` gets a line and whether it is whole, and says what it is or refuses it: a last
    /// one without its end is what a killed process left, and goes.
    fn open(path: &Path, step: usize, mut of: impl FnMut(&str, bool) -> Result<Place>) -> Result<Self> {
        let run = lock_around(path)?;
        let file = open_to_append(path)?;
        let mine = own(&file, path)?;
        let (mut reader, mut line) = (BufReader::new(&file), Vec::new());
        let (mut kept, mut at, mut rows) = (Vec::<Range<u64>>::new(), 0, false);
        // The first line that is no text, which may begin what a power cut left.
        let mut noise: Option<Error> = None;
        loop {
            line.clear();
            let n = (&mut reader).take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(|e| failed("read", path, e))? as u64;
            if n == 0 {
                break;
            }
            let (bytes, whole) = line.strip_suffix(b"\n").map_or((&line[..], false), |l| (l, true));
            if n == LONGEST_LINE && !whole {
                bail!(corrupt_file, "{} has a line of more than {LONGEST_LINE} bytes", path.display());
            }
            match text_of(bytes, whole) {
                // Between rows it is not what a power cut leaves.
                Some(text) if noise.is_none() || of(text, whole).is_ok_and(|place| whole && matches!(place, Place::Row(_))) => {
                    if let Some(e) = noise {
                        return Err(e);
                    }
                    let keeps = match of(text, whole)? {
                        Place::Title => whole,
                        Place::Row(s) => {
                            rows |= whole;
                            whole && s < step
                        }
                        Place::Torn => false,
                    };
                    if keeps {
                        match kept.last_mut() {
                            Some(last) if last.end == at => last.end += n,
                            _ => memory::push(&mut kept, at..at + n)?,
                        }
                    }
                }
                Some(_) => {}
                None => {
                    let e = Error::corrupt_file(format!("{} has bytes that are not text, at byte {at} or later", path.display()));
                    if at == 0 {
                        return Err(e);
                    }
                    noise.get_or_insert(e);
                }
            }
            at += n;
        }
        let (cut, out_of_order) = match &kept[..] {
            _ if step == 0 && rows => (Cut::Aside, false),
            [] if at == 0 => (Cut::Nothing, false),
            [] => (Cut::At(0), false),
            [all] if *all == (0..at) => (Cut::Nothing, false),
            [first] if first.start == 0 => (Cut::At(first.end), false),
            _ => (Cut::Keep(kept), true),
        };
        let damaged = out_of_order || noise.is_some() && !matches!(cut, Cut::Aside);
        let out = BufWriter::new(file);
        Ok(Lines { path: path.to_owned(), out, titled: false, cut, damaged, begun: false, length: at, _mine: mine, _run: run })
    }

    /// Appends a line, visible to readers at once; before the first, the title if it is not there.
    fn put(&mut self, title: Option<&str>, line: &str) -> Result<()> {
        self.begin()?;
        let fail = |e| failed("write", &self.path, e);
        if let Some(title) = title
            && !self.titled
        {
            writeln!(self.out, "{title}").map_err(fail)?;
            self.titled = true;
        }
        writeln!(self.out, "{line}").and_then(|()| self.out.flush()).map_err(fail)
    }

    /// Takes old lines away.
    fn begin(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.begun, true) && matches!(self.cut, Cut::Nothing) {
            return Ok(());
        }
        // Where the path is a link, its file.
        let real = self.path.canonicalize().map_err(|e| failed("write", &self.path, e));
        if let Ok(real) = &real {
            // Untidy at worst: what was killed while it took lines away left a half of the file.
            let _ = sweep_partial(folder_of(real), |name| real.file_name() == Some(name));
        }
        let path = &self.path;
        if matches!(self.cut, Cut::Nothing) {
            return Ok(());
        }
        let real = real?;
        let about = self.out.get_ref().metadata().map_err(|e| failed("read", path, e))?;
        if about.len() != self.length {
            // By another handle of this process: what it wrote must not go.
            bail!(argument, "{} was written to since it was opened: one run has one handle of it", path.display());
        }
        if self.damaged {
            let mut old = self.out.get_ref();
            let copy = free_name(&real, "damaged")?;
            replace(&copy, |out| {
                old.seek(SeekFrom::Start(0)).map_err(|e| failed("read", path, e))?;
                std::io::copy(&mut old, out).map(drop).map_err(|e| failed("write", &copy, e))
            })?;
            tracing::warn!(path = %copy.display(), "metrics are damaged: the readable rows are continued, all of them are kept");
            self.damaged = false;
        }
        match &self.cut {
            Cut::Nothing => {}
            Cut::At(end) => self.out.get_ref().set_len(*end).map_err(|e| failed("write", path, e))?,
            Cut::Keep(kept) => {
                let mut old = self.out.get_ref();
                replace(path, |out| {
                    kept.iter().try_for_each(|part| {
                        old.seek(SeekFrom::Start(part.start)).map_err(|e| failed("read", path, e))?;
                        std::io::copy(&mut old.take(part.end - part.start), out).map(drop).map_err(|e| failed("write", path, e))
                    })
                })?;
                self.reopen()?;
            }
            Cut::Aside => {
                let old = set_aside(&real, "old")?;
                tracing::info!(path = %old.display(), "the rows of another run were kept");
                self.reopen()?;
                self.out.get_ref().set_permissions(about.permissions()).map_err(|e| failed("write", &self.path, e))?;
                self.titled = false;
            }
        }
        self.cut = Cut::Nothing;
        Ok(())
    }

    fn reopen(&mut self) -> Result<()> {
        let file = open_to_append(&self.path)?;
        self._mine = own(&file, &self.path)?;
        self.out = BufWriter::new(file);
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.out.get_ref().sync_data().map_err(|e| failed("flush", &self.path, e))
    }
}

/// The text of a line without the zeros at the end of the last one, which a power cut leaves where a file had grown already; half a
/// character at that end is left out too. None: it is no text.
fn text_of(bytes: &[u8], whole: bool) -> Option<&str> {
    let zeros = if whole { 0 } else { bytes.iter().rev().take_while(|b| **b == 0).count() };
    let bytes = &bytes[..bytes.len() - zeros];
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) if !whole && e.error_len().is_none() => std::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default(),
        Err(_) => return None,
    };
    (!text.contains('\0')).then_some(text)
}

/// The beginning of a line, for a message: with what cannot be seen.
fn shown(line: &str) -> String {
    let mut out: String = line.chars().take(200).flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] }).collect();
    if line.chars().nth(200).is_some() {
        out.push_str(" ...");
    }
    out
}

fn own(file: &File, path: &Path) -> Result<Lock> {
    match lock(file.try_clone().map_err(|e| failed("lock", path, e))?, path)? {
        Some(mine) => Ok(mine),
        None => bail!(argument, "another process writes {} at this moment: take another file", path.display()),
    }
}
