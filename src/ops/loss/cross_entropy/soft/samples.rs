//! Inputs on which cross-entropy with probabilities is checked.

use super::{SoftCrossEntropy, SoftCrossEntropyVjp};
use crate::dtype::{F64, I64};
use crate::error::ErrorKind;
use crate::ops::loss::cross_entropy::classes::CrossEntropyLoss;
use crate::ops::loss::reduction::Reduction;
use crate::testing::{Gen, Input, Purpose, Sample};

fn of(reduction: Reduction, label_smoothing: f64, weighted: bool, z_loss: f64) -> SoftCrossEntropy {
    SoftCrossEntropy { of: CrossEntropyLoss { ignore_index: Some(-100), label_smoothing, reduction, weighted, z_loss } }
}

#[inline]
pub(super) fn samples(g: &mut Gen) -> Vec<Sample<SoftCrossEntropy>> {
    let inf = f64::INFINITY;
    let plain = of(Reduction::Mean, 0.0, false, 0.0);
    let mut out = Vec::new();
    for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
        for label_smoothing in [0.0, 0.1] {
            for weighted in [false, true] {
                for z_loss in [0.0, 0.3] {
                    let mut x = vec![g.normal_with([4, 5], 2.0, 0.0), g.uniform([4, 5], 0.05, 0.4)];
                    x.extend(weighted.then(|| g.uniform([5], 0.2, 2.0)));
                    out.push(
                        Sample::check(of(reduction, label_smoothing, weighted, z_loss), x)
                            .no_grad(if weighted { &[2] } else { &[] })
                            .note("every pair of options; rows need not sum to one"),
                    );
                }
            }
        }
    }
    for c in [1, 2, 3, 31, 32, 33, 65] {
        out.push(Sample::check(plain.clone(), [g.normal([3, c]), g.uniform([3, c], 0.0, 1.0)]).note("around the vector width"));
    }
    out.extend([
        Sample::check(plain.clone(), [g.normal([2, 3, 4]), g.uniform([2, 3, 4], 0.1, 1.0)]).note("[batch, time, classes]"),
        Sample::check(plain.clone(), [g.normal([4]), g.uniform([4], 0.1, 1.0)]).note("one row without a batch axis"),
        Sample::check(plain.clone(), [g.normal([2, 3]), Input::values([2, 3], [0.0, 1.0, 0.0, 0.0, 0.0, 1.0])]).note("one-hot rows"),
        Sample::check(plain.clone(), [g.normal([2, 3]), Input::values([2, 3], [0.0; 6])]).note("rows of zeros count nothing"),
        Sample::check(of(Reduction::Mean, 1.0, false, 0.0), [g.normal([2, 3]), g.uniform([2, 3], 0.1, 1.0)])
            .note("smoothed into the uniform distribution"),
        Sample::check(plain.clone(), [Input::values([2, 2], [9.2103, 0.0, 0.0, 6.9068]), Input::values([2, 2], [1.0, 0.0, 0.0, 1.0])])
            .note("confident predictions [C1]"),
        Sample::value(
            plain.clone(),
            [Input::values([2, 3], [1e30, -1e30, 0.0, 500.0, 499.0, -500.0]), Input::values([2, 3], [1.0, 0.0, 0.0, 0.5, 0.25, 0.25])],
        )
        .note("huge logits"),
        Sample::value(
            of(Reduction::None, 0.0, false, 0.0),
            [
                Input::values([4, 3], [-inf, 1.0, 2.0, -inf, -inf, -inf, 0.1, -inf, 0.3, f64::NAN, 0.0, 1.0]),
                Input::values([4, 3], [0.0, 0.5, 0.5, 0.25, 0.25, 0.5, 0.5, 0.5, 0.0, 0.5, 0.5, 0.0]),
            ],
        )
        .note("masked classes without a share count nothing, with one ∞; a fully masked row [C13]"),
        Sample::value(plain.clone(), [g.normal([70, 1000]), g.uniform([70, 1000], 0.0, 0.002)]).note("several tasks"),
        Sample::value(
            of(Reduction::Sum, 0.1, true, 1e-4),
            [g.normal([1, 50_257]), g.uniform([1, 50_257], 0.0, 4e-5), g.uniform([50_257], 0.5, 1.5)],
        )
        .no_grad(&[2])
        .note("a vocabulary"),
        Sample::reject(plain.clone(), [g.normal([2, 5]), g.normal([2])], ErrorKind::Shape).note("float class indices"),
        Sample::reject(plain.clone(), [g.normal([2, 5]), g.uniform([2, 4], 0.0, 1.0)], ErrorKind::Shape),
        Sample::reject(plain.clone(), [g.normal([2, 5]), g.uniform([2, 5], 0.0, 1.0).of_dtype(F64)], ErrorKind::Dtype),
        Sample::reject(plain.clone(), [Input::ints(I64, [1, 2], &[0, 1]), g.uniform([1, 2], 0.0, 1.0)], ErrorKind::Dtype),
        Sample::reject(plain.clone(), [g.normal(()), g.normal(())], ErrorKind::Shape).note("no axis of classes"),
        Sample::reject(of(Reduction::Mean, 0.0, true, 0.0), [g.normal([2, 5]), g.normal([2, 5]), g.normal([4])], ErrorKind::Shape),
        Sample::reject(of(Reduction::Mean, -0.1, false, 0.0), [g.normal([2, 5]), g.normal([2, 5])], ErrorKind::Argument),
        Sample::reject(of(Reduction::Mean, 0.0, false, f64::NAN), [g.normal([2, 5]), g.normal([2, 5])], ErrorKind::Argument),
        Sample::bench(plain.clone(), [g.normal([1024, 50_257]), g.uniform([1024, 50_257], 0.0, 4e-5)]),
    ]);
    for offset in [-100.0, 100.0, 1e4] {
        out.push(
            Sample::check(plain.clone(), [g.normal_with([3, 5], 2.0, offset), g.uniform([3, 5], 0.05, 0.4)])
                .note("|logit| > 90, common offset [C4, A11]"),
        );
    }
    for reduction in [Reduction::Sum, Reduction::Mean, Reduction::None] {
        let op = of(reduction, 0.0, false, 0.0);
        out.push(Sample::check(op.clone(), [g.normal([0, 5]), g.normal([0, 5])]).note("no rows [B16]"));
        out.push(Sample::check(op, [g.normal([2, 0]), g.normal([2, 0])]).note("no classes: 0"));
    }
    let named = SoftCrossEntropy { of: CrossEntropyLoss { ignore_index: Some(2), ..plain.of } };
    out.push(Sample::reject(named, [g.normal([2, 5]), g.normal([2, 5])], ErrorKind::Argument).note("a class to ignore"));
    out
}

#[inline]
pub(super) fn vjp_samples(g: &mut Gen) -> Vec<Sample<SoftCrossEntropyVjp>> {
    let mut out = Vec::new();
    for s in samples(g).into_iter().filter(|s| matches!(s.purpose, Purpose::Check | Purpose::Value)) {
        let shape = s.inputs[0].shape();
        let bar = if s.op.of.reduction == Reduction::None { g.normal(&shape[..shape.rank() - 1]) } else { g.normal(()) };
        let mut s = s.map(|of| SoftCrossEntropyVjp { of, stats: false, want: [true, true] });
        s.inputs.push(bar);
        out.push(s);
    }
    let of = of(Reduction::None, 0.1, false, 0.01);
    for want in [[true, false], [false, true]] {
        let op = SoftCrossEntropyVjp { of: of.clone(), stats: false, want };
        out.push(
            Sample::check(op, [g.normal([3, 4]), g.uniform([3, 4], 0.1, 0.5), g.normal([3])]).note("every subset of wanted gradients"),
        );
    }
    let op = SoftCrossEntropyVjp { of, stats: false, want: [true, true] };
    out.push(
        Sample::check(op.clone(), [g.normal([3, 4]), g.uniform([3, 4], 0.1, 0.5), Input::values([3], [0.0, 1.5, 0.0])])
            .note("zeros among the cotangents [C2]"),
    );
    out.push(Sample::reject(op, [g.normal([3, 4]), g.uniform([3, 4], 0.1, 0.5), g.normal([2])], ErrorKind::Shape));
    out
}
