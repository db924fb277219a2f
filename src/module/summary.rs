//! What a model consists of, as a table.

use super::Leaf;
use crate::dtype::DType;
use crate::shape::Shape;
use std::collections::BTreeMap;
use std::fmt;

/// What training does with a tensor of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Has a gradient, and is moved by optimizers.
    Trainable,
    /// A parameter that is left alone until it is thawed.
    Frozen,
    /// Saved with the model and never trained.
    Buffer,
    /// Integers, or a matrix in blocks: they have no gradient.
    Constant,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Trainable => "trainable",
            Role::Frozen => "frozen",
            Role::Buffer => "buffer",
            Role::Constant => "constant",
        })
    }
}

/// One tensor of a [`Summary`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SummaryRow {
    /// Its dotted name; empty for a tensor that is the whole tree.
    pub name: String,
    /// Extents.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
    /// What training does with it.
    pub role: Role,
}

impl SummaryRow {
    pub(super) fn new(name: &str, leaf: &Leaf<'_>) -> Self {
        let t = &leaf.tensor;
        SummaryRow { name: name.to_owned(), shape: t.shape().clone(), dtype: t.dtype(), role: leaf.role() }
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.numel()
    }

    /// Memory of the elements.
    pub fn bytes(&self) -> usize {
        self.numel() * self.dtype.size()
    }
}

/// Every tensor of a model; [`Module::summary`](crate::Module::summary) makes it, `{}` prints it as a table.
///
/// Elements count where they are named: memory that two names share counts twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// In the model's order.
    pub rows: Vec<SummaryRow>,
}

impl Summary {
    /// Number of elements that are trained.
    pub fn trainable(&self) -> usize {
        self.count(Role::Trainable)
    }

    /// Number of elements of frozen parameters.
    pub fn frozen(&self) -> usize {
        self.count(Role::Frozen)
    }

    /// Number of elements of buffers.
    pub fn buffers(&self) -> usize {
        self.count(Role::Buffer)
    }

    /// Number of elements in this role.
    pub fn count(&self, role: Role) -> usize {
        self.rows.iter().filter(|r| r.role == role).map(SummaryRow::numel).sum()
    }

    /// Memory of all tensors.
    pub fn bytes(&self) -> usize {
        self.rows.iter().map(SummaryRow::bytes).sum()
    }

    /// Memory by dtype, by the dtype's name.
    pub fn bytes_by_dtype(&self) -> Vec<(DType, usize)> {
        let mut sums: BTreeMap<String, (DType, usize)> = BTreeMap::new();
        for r in &self.rows {
            sums.entry(r.dtype.to_string()).or_insert((r.dtype, 0)).1 += r.bytes();
        }
        sums.into_values().collect()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["name", "shape", "dtype", "elements", "memory", ""].map(String::from);
        let row = |r: &SummaryRow| {
            [r.name.clone(), r.shape.to_string(), r.dtype.to_string(), r.numel().to_string(), memory(r.bytes()), r.role.to_string()]
        };
        let lines: Vec<[String; 6]> = std::iter::once(head).chain(self.rows.iter().map(row)).collect();
        let width = |c: usize| lines.iter().map(|l| l[c].chars().count()).max().unwrap_or(0);
        let [name, shape, dtype, elements, bytes] = [0, 1, 2, 3, 4].map(width);
        for [a, b, c, d, e, role] in &lines {
            writeln!(f, "{}", format!("{a:<name$}  {b:<shape$}  {c:<dtype$}  {d:>elements$}  {e:>bytes$}  {role}").trim_end())?;
        }
        let roles = [(Role::Trainable, "trainable"), (Role::Frozen, "frozen"), (Role::Buffer, "in buffers"), (Role::Constant, "constant")];
        let counts = roles.iter().filter(|&&(r, _)| r == Role::Trainable || self.count(r) > 0);
        let counts: Vec<String> = counts.map(|&(r, text)| format!("{} {text}", self.count(r))).collect();
        let by_dtype: Vec<String> = self.bytes_by_dtype().iter().map(|&(d, n)| format!("{d} {}", memory(n))).collect();
        write!(f, "{} elements: {}; {}", self.rows.iter().map(SummaryRow::numel).sum::<usize>(), counts.join(", "), memory(self.bytes()))?;
        if by_dtype.len() > 1 {
            write!(f, " ({})", by_dtype.join(", "))?;
        }
        Ok(())
    }
}

#[allow(clippy::cast_precision_loss)] // reason: shown with one decimal
fn memory(bytes: usize) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut n = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        if n < 1024.0 {
            break;
        }
        (n, unit) = (n / 1024.0, next);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{n:.1} {unit}") }
}
