//! What was checked, and what failed.

use super::Arrangement;
use crate::dtype::DType;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// A class of checks; every differentiable op passes all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// Kernel against definition, within the definition's error bound.
    Value,
    /// Cotangents against exact directional derivatives and columns of the exact Jacobian.
    Vjp,
    /// Cotangents in f64 against sixth-order finite differences of the kernel.
    FiniteDifferences,
    /// Derivatives of the derivative against nested dual numbers.
    Second,
    /// A zero cotangent gives exactly zero.
    ZeroCotangent,
    /// Every subset of wanted inputs gives the same bits.
    WantSubsets,
    /// Outputs that nothing used.
    UnusedOutputs,
    /// The same bits twice, and with 1, 2 and 3 threads.
    Determinism,
    /// Inputs and cotangents keep their bits.
    Unchanged,
    /// Every 16-bit pattern, forward and derivative.
    AllHalfPatterns,
    /// Index operands of every integer type.
    IndexTypes,
    /// Different options give different results on the same inputs.
    Options,
    /// Inputs that must be refused.
    Reject,
}

impl Check {
    /// Every class.
    pub const ALL: [Check; 13] = [
        Check::Value,
        Check::Vjp,
        Check::FiniteDifferences,
        Check::Second,
        Check::ZeroCotangent,
        Check::WantSubsets,
        Check::UnusedOutputs,
        Check::Determinism,
        Check::Unchanged,
        Check::AllHalfPatterns,
        Check::IndexTypes,
        Check::Options,
        Check::Reject,
    ];

    /// Short name, for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Check::Value => "value",
            Check::Vjp => "vjp",
            Check::FiniteDifferences => "differences",
            Check::Second => "second",
            Check::ZeroCotangent => "zero",
            Check::WantSubsets => "subsets",
            Check::UnusedOutputs => "unused",
            Check::Determinism => "determinism",
            Check::Unchanged => "unchanged",
            Check::AllHalfPatterns => "65536",
            Check::IndexTypes => "index types",
            Check::Options => "options",
            Check::Reject => "reject",
        }
    }
}

/// What was checked, and what failed.
#[derive(Debug, Default)]
pub struct Report {
    /// How often each (op, dtype, layout, check) ran.
    pub counts: BTreeMap<(&'static str, DType, Arrangement, Check), u64>,
    /// Readable failures.
    pub failures: Vec<String>,
    /// The messages of refused inputs, for a snapshot: op, inputs, message.
    pub rejections: BTreeSet<String>,
}

impl Report {
    pub(super) fn count(&mut self, op: &'static str, dtype: DType, layout: Arrangement, check: Check) {
        *self.counts.entry((op, dtype, layout, check)).or_default() += 1;
    }

    /// Adds what another report found.
    pub fn merge(&mut self, other: Report) {
        for (k, n) in other.counts {
            *self.counts.entry(k).or_default() += n;
        }
        self.failures.extend(other.failures);
        self.rejections.extend(other.rejections);
    }

    /// Number of checks.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// How often a class of checks ran on an op.
    pub fn ran(&self, op: &str, check: Check) -> u64 {
        self.counts.iter().filter(|(k, _)| k.0 == op && k.3 == check).map(|(_, n)| n).sum()
    }

    /// One line per op (counts by dtype, layout and check), and the totals.
    pub fn table(&self) -> String {
        let ops: BTreeSet<&str> = self.counts.keys().map(|k| k.0).collect();
        let width = ops.iter().map(|o| o.len()).max().unwrap_or(2).max(5);
        let sum = |keep: &dyn Fn(&(&'static str, DType, Arrangement, Check)) -> bool| {
            self.counts.iter().filter(|(k, _)| keep(k)).map(|(_, n)| n).sum::<u64>()
        };
        let mut out = String::new();
        let _ = write!(out, "{:width$}", "op");
        for d in DType::FLOATS {
            let _ = write!(out, " {:>8}", d.name());
        }
        for a in Arrangement::ALL {
            let _ = write!(out, " {:>10}", a.name());
        }
        for c in Check::ALL {
            let _ = write!(out, " {:>11}", c.name());
        }
        out.push('\n');
        let mut line = |name: &str, of: &dyn Fn(&str) -> bool| {
            let _ = write!(out, "{name:width$}");
            for d in DType::FLOATS {
                let _ = write!(out, " {:>8}", sum(&|k| of(k.0) && k.1 == d));
            }
            for a in Arrangement::ALL {
                let _ = write!(out, " {:>10}", sum(&|k| of(k.0) && k.2 == a));
            }
            for c in Check::ALL {
                let _ = write!(out, " {:>11}", sum(&|k| of(k.0) && k.3 == c));
            }
            out.push('\n');
        };
        for op in &ops {
            line(op, &|o| o == *op);
        }
        line("total", &|_| true);
        out
    }
}
