//! Numbers over steps, in files.

use super::event::Event;
use crate::error::{Error, Result, bail};
use crate::io::failed;
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Something that takes named numbers at steps.
pub trait MetricSink {
    /// Takes the numbers of one step.
    ///
    /// # Errors
    /// I/O error; argument error for a name that it has no place for.
    fn write(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()>;
}

/// A callback for [`Trainer::on`](super::Trainer::on) that hands what every step and evaluation gives to a sink, under the names
/// of [`Csv::COLUMNS`].
pub fn record<M>(mut sink: impl MetricSink) -> impl FnMut(&Event<'_, M>) -> Result<()> {
    let truth = |b| if b { 1.0 } else { 0.0 };
    move |event| match event {
        Event::Step { report: r, .. } => sink.write(
            r.step,
            &[
                ("loss", r.loss),
                ("learning_rate", r.learning_rate),
                ("gradient_norm", r.norm),
                ("clipped", truth(r.clipped.clipped)),
                ("skipped", truth(r.skipped)),
                ("seconds", r.seconds),
            ],
        ),
        Event::Evaluated { step, loss } => sink.write(*step, &[("validation_loss", *loss)]),
        _ => Ok(()),
    }
}

/// A table with a row per step or evaluation; cells without a number are empty.
#[derive(Debug)]
pub struct Csv {
    file: Lines,
    columns: Vec<String>,
}

impl Csv {
    /// What [`record`] writes.
    pub const COLUMNS: [&'static str; 7] = ["loss", "learning_rate", "gradient_norm", "clipped", "skipped", "seconds", "validation_loss"];

    /// Opens the table; rows from `step` on, which a run that was killed wrote after its last snapshot, are taken away: from step
    /// 0 on all of them.
    ///
    /// # Errors
    /// I/O error; corrupt-file error when the file is something else: has other columns, or a row without a step. It stays as it is
    /// then.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>, columns: &[&str], step: usize) -> Result<Self> {
        let path = path.as_ref();
        let title = format!("step,{}", columns.join(","));
        let (mut first, mut titled) = (true, false);
        let mut file = Lines::open(path, |line, whole| {
            if std::mem::take(&mut first) {
                titled = whole;
                if line != title && (whole || !title.starts_with(line)) {
                    bail!(corrupt_file, "{} has the columns `{line}` instead of `{title}`", path.display());
                }
                return Ok(true);
            }
            match line.split(',').next().and_then(|s| s.parse::<usize>().ok()) {
                Some(s) => Ok(s < step),
                None if whole => bail!(corrupt_file, "{} has the row `{line}`, without a step", path.display()),
                None => Ok(false),
            }
        })?;
        if !titled {
            file.put(&title)?;
        }
        Ok(Csv { file, columns: columns.iter().map(|c| (*c).to_owned()).collect() })
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
        self.file.put(&line)
    }
}

/// A JSON object per line: `{"loss":2.5,"step":3}`. Numbers that are not finite are texts, since JSON has none.
#[derive(Debug)]
pub struct Jsonl(Lines);

impl Jsonl {
    /// Opens the file; lines of `step` and later are taken away, as in [`Csv::open`].
    ///
    /// # Errors
    /// I/O error; corrupt-file error when a line is something else than an object with a step. The file stays as it is then.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>, step: usize) -> Result<Self> {
        let path = path.as_ref();
        let lines = Lines::open(path, |line, whole| match serde_json::from_str::<Value>(line) {
            Ok(v) if v["step"].is_u64() => Ok(v["step"].as_u64() < Some(step as u64)),
            Err(_) if !whole && line.starts_with('{') => Ok(false),
            _ => bail!(corrupt_file, "{} has the line `{line}`, which is no object with a step", path.display()),
        });
        Ok(Jsonl(lines?))
    }
}

impl MetricSink for Jsonl {
    fn write(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        let number = |x: f64| if x.is_finite() { Value::from(x) } else { Value::from(x.to_string()) };
        let mut line: Map<String, Value> = values.iter().map(|(n, x)| ((*n).to_owned(), number(*x))).collect();
        line.insert("step".to_owned(), step.into());
        self.0.put(&Value::from(line).to_string())
    }
}

/// A text file that grows by lines.
#[derive(Debug)]
struct Lines {
    path: PathBuf,
    out: BufWriter<File>,
}

impl Lines {
    /// Opens a file and keeps the lines that `keep` wants, which is told whether the line is whole: a last one without its end is
    /// what a killed process left, and goes unless `keep` refuses it.
    fn open(path: &Path, mut keep: impl FnMut(&str, bool) -> Result<bool>) -> Result<Self> {
        let mut kept = String::new();
        match File::open(path) {
            Ok(file) => {
                let mut reader = BufReader::new(file);
                let mut line = String::new();
                while reader.read_line(&mut line).map_err(|e| failed("read", path, e))? > 0 {
                    let (text, whole) = line.strip_suffix('\n').map_or((&line[..], false), |l| (l, true));
                    if keep(text, whole)? && whole {
                        kept.push_str(&line);
                    }
                    line.clear();
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed("read", path, e)),
        }
        crate::io::write_atomically(path, |out| Ok(out.write_all(kept.as_bytes())?))?;
        let file = OpenOptions::new().append(true).open(path).map_err(|e| failed("open", path, e))?;
        Ok(Lines { path: path.to_owned(), out: BufWriter::new(file) })
    }

    /// Appends a line, visible to readers at once.
    fn put(&mut self, line: &str) -> Result<()> {
        let written = writeln!(self.out, "{line}").and_then(|()| self.out.flush());
        written.map_err(|e| Error::io(format!("cannot write {}", self.path.display())).with_source(e))
    }
}
