//! Whether targets are what a language model should predict: its inputs shifted by one.

use crate::error::{Error, Result};
use crate::memory;
use crate::tensor::Tensor;
use std::fmt;
use std::panic::Location;

/// What to expect of a batch; see [`Alignment::check`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Alignment {
    /// The target that the loss ignores (PyTorch's −100).
    pub ignore: Option<i64>,
    /// The token that fills short rows up.
    pub padding: Option<i64>,
    /// Number of tokens: ids outside are reported.
    pub vocabulary: Option<usize>,
}

/// One thing that is wrong with a batch, or keeps the check from a judgement.
#[derive(Clone, Debug, PartialEq)]
pub enum Misalignment {
    /// Targets equal the inputs shifted by this and not by one. 0: the model is asked to copy what it sees; 2: shifted
    /// twice, by the data and by the loss; negative: the model would predict the past.
    Shifted {
        /// `targets[t] = inputs[t + by]`.
        by: isize,
        /// Share of the counted targets that match.
        share: f64,
    },
    /// Targets are no shift of the inputs.
    Unrelated {
        /// Share that matches the shift by one.
        share: f64,
    },
    /// Some targets do not match the shift by one.
    Partly {
        /// Share that matches.
        share: f64,
        /// Row and position of the first that does not.
        first: (usize, usize),
    },
    /// The last target of the rows is their first token: a rotation was taken for a shift.
    Wrapped,
    /// Padding counts in the loss.
    UnmaskedPadding {
        /// How many targets.
        count: usize,
        /// Row and position of the first.
        first: (usize, usize),
    },
    /// Every target is ignored: the loss is NaN or zero.
    NothingCounts,
    /// No target has a neighbour in its row to compare with: no rows, rows of one token, or only padding.
    NothingCompared,
    /// Targets equal the inputs shifted by one and the inputs themselves: each row repeats one token.
    CannotTell,
    /// An id that the vocabulary does not have.
    OutsideVocabulary {
        /// The id.
        id: i64,
        /// Row and position.
        at: (usize, usize),
        /// Whether it is a target.
        target: bool,
    },
}

impl fmt::Display for Misalignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |s: &f64| format!("{:.1} %", 100.0 * s);
        match self {
            Self::Shifted { by: 0, share } => {
                write!(
                    f,
                    "label leakage: {} of the targets equal the input at their own position; shift the targets by one",
                    percent(share)
                )
            }
            Self::Shifted { by, share } => {
                let why =
                    if *by > 1 { "shifted too often: once by the data and again by the loss?" } else { "the model would predict the past" };
                write!(f, "off by {}: {} of the targets are inputs[t + {by}] instead of inputs[t + 1]; {why}", by - 1, percent(share))
            }
            Self::Unrelated { share } => write!(f, "targets are not a shift of the inputs: only {} match inputs[t + 1]", percent(share)),
            Self::Partly { share, first } => {
                write!(
                    f,
                    "{} of the targets match inputs[t + 1]; the first that does not is row {}, position {}",
                    percent(share),
                    first.0,
                    first.1
                )
            }
            Self::Wrapped => write!(f, "the last target of every row is its first token: a rotation was taken for a shift"),
            Self::UnmaskedPadding { count, first } => write!(
                f,
                "{count} targets are padding and count in the loss (first: row {}, position {}); set them to the ignored target",
                first.0, first.1
            ),
            Self::NothingCounts => write!(f, "every target is ignored: there is nothing to learn from"),
            Self::NothingCompared => write!(f, "nothing could be compared: no counted target has a next input in its row"),
            Self::CannotTell => write!(f, "cannot tell: each row repeats one token, so every shift of the inputs is the same"),
            Self::OutsideVocabulary { id, at, target } => {
                let what = if *target { "target" } else { "input" };
                write!(f, "{what} {id} at row {}, position {} is outside the vocabulary", at.0, at.1)
            }
        }
    }
}

/// What a check found. Prints the findings and decoded samples.
#[derive(Clone, Debug)]
pub struct AlignmentReport {
    /// What is wrong or could not be judged; empty when all is right.
    pub findings: Vec<Misalignment>,
    /// Targets that count in the loss.
    pub counted: usize,
    /// Share of the counted targets that equal `inputs[t + 1]` (those that can be compared).
    pub matching: f64,
    /// Decoded first rows: inputs, and targets that count.
    pub samples: Vec<(String, String)>,
}

impl AlignmentReport {
    /// Whether nothing is wrong.
    pub fn is_aligned(&self) -> bool {
        self.findings.is_empty()
    }
}

impl fmt::Display for AlignmentReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_aligned() {
            writeln!(f, "targets are the inputs shifted by one ({} targets count)", self.counted)?;
        }
        for x in &self.findings {
            let unclear = matches!(x, Misalignment::NothingCompared | Misalignment::CannotTell);
            writeln!(f, "{}: {x}", if unclear { "UNCLEAR" } else { "WRONG" })?;
        }
        for (input, target) in &self.samples {
            writeln!(f, "inputs  {input:?}\ntargets {target:?}")?;
        }
        Ok(())
    }
}

impl Alignment {
    /// Rows that a report decodes.
    pub const SAMPLES: usize = 2;

    /// Checks a batch `[batch, time]` of inputs and targets; `decode` turns ids into text for the report.
    ///
    /// ```
    /// use cotangent::{diagnostics::Alignment, Tensor};
    /// let inputs = Tensor::from_slice(&[3i64, 1, 4, 1, 5, 9], [1, 6])?;
    /// let right = Tensor::from_slice(&[1i64, 4, 1, 5, 9, 2], [1, 6])?;
    /// let decode = |ids: &[i64]| format!("{ids:?}");
    /// assert!(Alignment::default().check(&inputs, &right, decode)?.is_aligned());
    /// let report = Alignment::default().check(&inputs, &inputs, decode)?;
    /// assert!(report.to_string().contains("label leakage"));
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Errors
    /// Shape error unless both are `[batch, time]`; dtype error for floats.
    #[track_caller]
    pub fn check(&self, inputs: &Tensor, targets: &Tensor, decode: impl Fn(&[i64]) -> String) -> Result<AlignmentReport> {
        let at = Location::caller();
        let refuse = |e: Error| e.in_op("alignment", at);
        let &[_, time] = inputs.shape().dims() else {
            return Err(refuse(Error::shape(format!("inputs must have shape [batch, time], found {}", inputs.shape()))));
        };
        if inputs.shape() != targets.shape() {
            return Err(refuse(Error::shape(format!("inputs have shape {}, targets {}", inputs.shape(), targets.shape()))));
        }
        if let Some(t) = [inputs, targets].iter().find(|t| t.dtype().is_float()) {
            return Err(refuse(Error::dtype(format!("ids are integers, found {}", t.dtype()))));
        }
        let ids = |t: &Tensor| -> Result<Vec<i64>> { memory::try_collect(t.to_f64_vec()?.iter().map(|v| *v as i64)) };
        let (x, y) = (ids(inputs)?, ids(targets)?);
        let place = |i: usize| (i / time.max(1), i % time.max(1));
        let counts = |i: usize| Some(y[i]) != self.ignore;
        let counted = memory::try_collect((0..y.len()).filter(|&i| counts(i)))?;
        let mut findings = Vec::new();
        if counted.is_empty() && !y.is_empty() {
            findings.push(Misalignment::NothingCounts);
        }
        // A padded position has no neighbour to compare with; what it should be is judged below.
        let real = |i: usize| Some(x[i]) != self.padding && Some(y[i]) != self.padding;
        // Share of matches of a shift, and the first target that does not match.
        let matches = |by: isize| -> (f64, Option<usize>, usize) {
            let (mut same, mut all, mut first) = (0usize, 0usize, None);
            for &i in counted.iter().filter(|&&i| real(i)) {
                let Some(there) = (i % time).checked_add_signed(by).filter(|t| *t < time) else { continue };
                all += 1;
                if x[i - i % time + there] == y[i] {
                    same += 1;
                } else {
                    first = first.or(Some(i));
                }
            }
            (same as f64 / all.max(1) as f64, first, all)
        };
        let (matching, first, compared) = matches(1);
        if compared == 0 && findings.is_empty() {
            findings.push(Misalignment::NothingCompared);
        }
        if compared > 0 && first.is_none() && matches(0).1.is_none() {
            findings.push(Misalignment::CannotTell);
        }
        if let Some(first) = first.filter(|_| compared > 0) {
            let shares = [0, 2, -1, 3, -2].map(|by| (by, matches(by)));
            let best = shares.iter().filter(|(_, m)| m.2 > 0).max_by(|a, b| a.1.0.total_cmp(&b.1.0));
            findings.push(match best {
                Some(&(by, (share, ..))) if share > 0.9 && share > matching => Misalignment::Shifted { by, share },
                _ if matching < 0.5 => Misalignment::Unrelated { share: matching },
                _ => Misalignment::Partly { share: matching, first: place(first) },
            });
        }
        let rows = || x.chunks_exact(time.max(1)).zip(y.chunks_exact(time.max(1)));
        // By chance one row may end as it began; several, with different tokens, do not.
        let differ = rows().any(|(row, _)| row[0] != x[0]);
        if time > 1 && differ && findings.is_empty() && rows().all(|(x, y)| y[time - 1] == x[0]) {
            findings.push(Misalignment::Wrapped);
        }
        if let Some(padding) = self.padding.filter(|p| Some(*p) != self.ignore) {
            let padded = memory::try_collect(counted.iter().copied().filter(|&i| y[i] == padding || x[i] == padding))?;
            if let Some(&first) = padded.first() {
                findings.push(Misalignment::UnmaskedPadding { count: padded.len(), first: place(first) });
            }
        }
        if let Some(n) = self.vocabulary {
            let outside = |id: i64| usize::try_from(id).map_or(true, |id| id >= n);
            let bad = |target: bool, i: usize, id: i64| Misalignment::OutsideVocabulary { id, at: place(i), target };
            findings.extend(x.iter().position(|&id| outside(id)).map(|i| bad(false, i, x[i])));
            findings.extend(counted.iter().copied().find(|&i| outside(y[i])).map(|i| bad(true, i, y[i])));
        }
        let visible = |row: &[i64]| memory::try_collect(row.iter().copied().filter(|id| Some(*id) != self.ignore));
        let samples = rows().take(Self::SAMPLES).map(|(x, y)| Ok((decode(x), decode(&visible(y)?))));
        let samples = memory::try_collect_ok(samples).map_err(refuse)?;
        Ok(AlignmentReport { findings, counted: counted.len(), matching, samples })
    }
}
