//! Inputs on which cross-entropy is checked.

use super::{CrossEntropyLoss, CrossEntropyVjp};
use crate::dtype::DType;
use crate::error::ErrorKind;
use crate::ops::loss::reduction::Reduction;
use crate::testing::{Gen, Input, Purpose, Sample};

#[inline]
pub(super) fn samples(g: &mut Gen) -> Vec<Sample<CrossEntropyLoss>> {
    let inf = f64::INFINITY;
    let plain =
        CrossEntropyLoss { ignore_index: Some(-100), label_smoothing: 0.0, reduction: Reduction::Mean, weighted: false, z_loss: 0.0 };
    let ints = |shape: &[usize], v: &[i64]| Input::ints(DType::I64, shape, v);
    let mut out = Vec::new();
    // Every option with every other one, with and without ignored targets.
    for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
        for label_smoothing in [0.0, 0.1] {
            for weighted in [false, true] {
                for (targets, z_loss) in [([0, 4, 2, 2], 0.0), ([-1, 4, -1, 1], 0.0), ([-1, 4, -1, 1], 0.3)] {
                    let op = CrossEntropyLoss { ignore_index: Some(-1), label_smoothing, reduction, weighted, z_loss };
                    let mut x = vec![g.normal_with([4, 5], 2.0, 0.0), ints(&[4], &targets)];
                    if weighted {
                        x.push(g.uniform([5], 0.2, 2.0));
                    }
                    out.push(
                        Sample::check(op, x)
                            .no_grad(if weighted { &[2] } else { &[] })
                            .note("every pair of options; half of the targets ignored [C2, C5, C6, C8]"),
                    );
                }
            }
        }
    }
    for (reduction, weighted) in [(Reduction::Mean, false), (Reduction::Mean, true), (Reduction::Sum, false), (Reduction::None, true)] {
        let op = CrossEntropyLoss { reduction, weighted, label_smoothing: 0.1, ..plain.clone() };
        let mut x = vec![g.normal([2, 3]), ints(&[2], &[-100, -100])];
        if weighted {
            x.push(g.uniform([3], 0.5, 1.5));
        }
        out.push(Sample::check(op, x).no_grad(if weighted { &[2] } else { &[] }).note("all targets ignored: 0, with zero gradient [C7]"));
    }
    for c in [1, 2, 3, 31, 32, 33, 65] {
        out.push(
            Sample::check(plain.clone(), [g.normal([3, c]), g.below(DType::I64, [3], c)])
                .note("vocabularies of 1 and around the vector width"),
        );
    }
    out.push(
        Sample::check(plain.clone(), [g.normal([2, 3, 4]), g.below(DType::U32, [2, 3], 4)]).note("[batch, time, classes]; u32 targets"),
    );
    out.push(Sample::check(plain.clone(), [g.normal([4]), g.below(DType::U8, (), 4)]).note("one row without a batch axis; u8 target"));
    // p(y) of 0.9 to 0.9999 with two classes: the logit is ln(p / (1 − p)).
    let confident: Vec<f64> = [0.9, 0.99, 0.999, 0.9999].iter().flat_map(|p: &f64| [(p / (1.0 - p)).ln(), 0.0]).collect();
    out.push(
        Sample::check(plain.clone(), [Input::values([4, 2], confident), ints(&[4], &[0, 0, 0, 0])]).note("confident predictions [C1]"),
    );
    for offset in [-100.0, 100.0, 1e4] {
        out.push(
            Sample::check(plain.clone(), [g.normal_with([3, 5], 2.0, offset), ints(&[3], &[1, 0, 4])])
                .note("|logit| > 90, common offset [C4, A11]"),
        );
    }
    out.push(
        Sample::value(plain.clone(), [Input::values([2, 3], [1e30, -1e30, 0.0, 500.0, 499.0, -500.0]), ints(&[2], &[0, 1])])
            .note("huge logits"),
    );
    let masked = Input::values([3, 3], [-inf, 1.0, 2.0, -inf, -inf, -inf, 0.1, 0.2, 0.3]);
    for reduction in [Reduction::Mean, Reduction::None] {
        let op = CrossEntropyLoss { reduction, ..plain.clone() };
        out.push(
            Sample::check(op, [masked.clone(), ints(&[3], &[1, 0, 2])]).at_kink().note("masked classes, and a fully masked row [C13]"),
        );
    }
    out.push(
        Sample::value(plain.clone(), [Input::values([2, 2], [f64::NAN, 1.0, inf, 0.0]), ints(&[2], &[-100, -100])])
            .note("NaN in ignored rows stays out"),
    );
    for reduction in [Reduction::Sum, Reduction::Mean, Reduction::None] {
        let op = CrossEntropyLoss { reduction, ..plain.clone() };
        out.push(Sample::check(op, [g.normal([0, 5]), ints(&[0], &[])]).note("no rows [B16]"));
    }
    out.push(Sample::value(plain.clone(), [g.normal([70, 1000]), g.below(DType::I64, [70], 1000)]).note("several tasks"));
    out.push(
        Sample::value(CrossEntropyLoss { z_loss: 1e-4, ..plain.clone() }, [g.normal([1, 262_144]), ints(&[1], &[262_143])])
            .note("the largest vocabularies; z-loss of the usual size"),
    );
    out.push(Sample::value(plain.clone(), [g.normal([2, 151_936]), ints(&[2], &[151_935, 0])]).note("the vocabulary of Qwen2"));
    for (t, note) in [(5, "target out of range: an error, never silent"), (-1, "negative target that is not ignored")] {
        out.push(Sample::reject(plain.clone(), [g.normal([2, 5]), ints(&[2], &[0, t])], ErrorKind::Index).note(note));
    }
    out.push(Sample::reject(
        CrossEntropyLoss { ignore_index: None, ..plain.clone() },
        [g.normal([1, 5]), ints(&[1], &[-100])],
        ErrorKind::Index,
    ));
    out.push(Sample::reject(plain.clone(), [g.normal([2, 0]), ints(&[2], &[0, 0])], ErrorKind::Index).note("no classes"));
    out.push(Sample::reject(plain.clone(), [g.normal([2, 5]), ints(&[3], &[0, 1, 2])], ErrorKind::Shape));
    out.push(Sample::reject(plain.clone(), [g.normal([2, 5]), g.normal([2])], ErrorKind::Dtype).note("float targets"));
    out.push(Sample::reject(
        CrossEntropyLoss { z_loss: -1.0, ..plain.clone() },
        [g.normal([2, 5]), ints(&[2], &[0, 1])],
        ErrorKind::Argument,
    ));
    out.push(Sample::reject(
        CrossEntropyLoss { label_smoothing: 1.5, ..plain.clone() },
        [g.normal([2, 5]), ints(&[2], &[0, 1])],
        ErrorKind::Argument,
    ));
    out.push(Sample::reject(
        CrossEntropyLoss { weighted: true, ..plain.clone() },
        [g.normal([2, 5]), ints(&[2], &[0, 1]), g.normal([4])],
        ErrorKind::Shape,
    ));
    out.push(Sample::bench(plain.clone(), [g.normal([1024, 50_257]), g.below(DType::I64, [1024], 50_257)]));
    out
}

#[inline]
pub(super) fn vjp_samples(g: &mut Gen) -> Vec<Sample<CrossEntropyVjp>> {
    let mut out = Vec::new();
    for s in samples(g).into_iter().filter(|s| matches!(s.purpose, Purpose::Check | Purpose::Value)) {
        let bar = if s.op.reduction == Reduction::None { g.normal(s.inputs[1].shape()) } else { g.normal(()) };
        let mut s = s.map(|of| CrossEntropyVjp { of, stats: false });
        s.inputs.push(bar);
        out.push(s);
    }
    let of = CrossEntropyLoss { ignore_index: None, label_smoothing: 0.1, reduction: Reduction::None, weighted: false, z_loss: 0.01 };
    let op = CrossEntropyVjp { of, stats: false };
    let t = Input::ints(DType::I64, [3], &[2, 0, 1]);
    out.push(
        Sample::check(op.clone(), [g.normal([3, 4]), t.clone(), Input::values([3], [0.0, 1.5, 0.0])])
            .note("zeros among the cotangents [C2]"),
    );
    out.push(Sample::reject(op, [g.normal([3, 4]), t, g.normal([2])], ErrorKind::Shape));
    out
}
