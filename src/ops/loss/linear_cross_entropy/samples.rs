//! Inputs on which the cross-entropy of a linear layer's logits is checked.

use super::{LinearCrossEntropy, LinearCrossEntropyVjp};
use crate::dtype::DType;
use crate::error::ErrorKind;
use crate::ops::loss::cross_entropy::{CrossEntropyLoss, CrossEntropyOptions};
use crate::ops::loss::reduction::Reduction;
use crate::testing::{Gen, Input, Purpose, Sample};

#[inline]
pub(super) fn samples(g: &mut Gen) -> Vec<Sample<LinearCrossEntropy>> {
    let plain = CrossEntropyOptions::default().op();
    let op = |of: &CrossEntropyLoss, keep| LinearCrossEntropy { of: of.clone(), rows: 2, bias: false, keep };
    let ints = |shape: &[usize], v: &[i64]| Input::ints(DType::I64, shape, v);
    let mut out = Vec::new();
    for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
        for label_smoothing in [0.0, 0.1] {
            for weighted in [false, true] {
                for z_loss in [0.0, 0.3] {
                    let of = CrossEntropyLoss { ignore_index: Some(-1), label_smoothing, reduction, weighted, z_loss };
                    let mut x = vec![g.normal([5, 3]), g.normal([4, 3]), ints(&[5], &[0, -1, 2, 3, 1])];
                    x.extend(weighted.then(|| g.uniform([4], 0.2, 2.0)));
                    out.push(
                        Sample::check(op(&of, [false; 3]), x)
                            .no_grad(if weighted { &[3] } else { &[] })
                            .note("every pair of options, with an ignored target and a last piece of one row [C2, C5, C6, C8]"),
                    );
                }
            }
        }
    }
    for keep in [[true, true, false], [true, false, false], [false, true, false]] {
        for reduction in [Reduction::Mean, Reduction::Sum] {
            let of = CrossEntropyLoss { label_smoothing: 0.1, reduction, weighted: true, ..plain.clone() };
            let x = [g.normal([5, 3]), g.normal([4, 3]), ints(&[5], &[0, -100, 2, 3, 1]), g.uniform([4], 0.2, 2.0)];
            out.push(Sample::check(op(&of, keep), x).no_grad(&[3]).note("gradients computed beside the loss"));
        }
    }
    // A bias beside every other option, and kept or not.
    let with_bias = |of: &CrossEntropyLoss, keep| LinearCrossEntropy { bias: true, ..op(of, keep) };
    for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
        for weighted in [false, true] {
            for keep in [[false; 3], [true; 3], [false, false, true]] {
                let of = CrossEntropyLoss { ignore_index: Some(-1), label_smoothing: 0.1, reduction, weighted, z_loss: 0.2 };
                let mut x = vec![g.normal([5, 3]), g.normal([4, 3]), ints(&[5], &[0, -1, 2, 3, 1])];
                x.extend(weighted.then(|| g.uniform([4], 0.2, 2.0)));
                x.push(g.normal([4]));
                out.push(Sample::check(with_bias(&of, keep), x).no_grad(if weighted { &[3] } else { &[] }).note("a bias"));
            }
        }
    }
    out.extend([
        Sample::check(
            with_bias(&plain, [false; 3]),
            [g.normal([2, 3, 4]), g.normal([7, 4]), g.below(DType::I64, [2, 3], 7), g.normal([7])],
        )
        .note("[batch, time, width] with a bias"),
        Sample::check(with_bias(&plain, [true; 3]), [g.normal([3, 0]), g.normal([4, 0]), ints(&[3], &[0, 1, 2]), g.normal([4])])
            .note("no width: the bias alone"),
        Sample::check(with_bias(&plain, [true; 3]), [g.normal([0, 3]), g.normal([4, 3]), ints(&[0], &[]), g.normal([4])]).note("no rows"),
        Sample::reject(
            with_bias(&plain, [false; 3]),
            [g.normal([1, 4]), g.normal([5, 4]), ints(&[1], &[0]), g.normal([4])],
            ErrorKind::Shape,
        ),
        Sample::reject(
            with_bias(&plain, [false; 3]),
            [g.normal([1, 4]), g.normal([5, 4]), ints(&[1], &[0]), g.normal([5]).of_dtype(DType::F64)],
            ErrorKind::Dtype,
        ),
        Sample::bench(
            LinearCrossEntropy { rows: 333, ..with_bias(&plain, [false; 3]) },
            [g.normal([512, 768]), g.normal([50_257, 768]), g.below(DType::I64, [512], 50_257), g.normal([50_257])],
        ),
    ]);
    for targets in [[-100, -100, -100], [0, 2, 1]] {
        out.push(
            Sample::check(op(&plain, [false; 3]), [g.normal([3, 2]), g.normal([3, 2]), ints(&[3], &targets)])
                .note("all targets ignored: zero, with zero gradients; and none [C7]"),
        );
    }
    out.extend([
        Sample::check(op(&plain, [false; 3]), [g.normal([2, 3, 4]), g.normal([7, 4]), g.below(DType::I64, [2, 3], 7)])
            .note("[batch, time, width]: pieces across batches"),
        Sample::check(op(&plain, [false; 3]), [g.normal([4]), g.normal([3, 4]), g.below(DType::U8, (), 3)]).note("one row without an axis"),
        Sample::check(op(&plain, [false; 3]), [g.normal([0, 3]), g.normal([4, 3]), ints(&[0], &[])]).note("no rows [B16]"),
        Sample::check(op(&plain, [false; 3]), [g.normal([3, 0]), g.normal([4, 0]), ints(&[3], &[0, 1, 2])]).note("no width"),
        // The loss is 0 whatever the operands are: a second derivative would compare exact zeros with the rounding of the definition.
        Sample::check(op(&plain, [false; 3]), [g.normal([3, 1]), g.normal([1, 1]), ints(&[3], &[0, 0, 0])]).first_order().note("one class"),
        Sample::value(
            LinearCrossEntropy { rows: 33, ..op(&plain, [false; 3]) },
            [g.normal([70, 24]), g.normal([130, 24]), g.below(DType::I64, [70], 130)],
        )
        .note("pieces that do not divide the rows"),
        Sample::reject(op(&plain, [false; 3]), [g.normal([3, 4]), g.normal([5, 3]), ints(&[3], &[0, 1, 2])], ErrorKind::Shape),
        Sample::reject(op(&plain, [false; 3]), [g.normal([3, 4]), g.normal([5, 4]), ints(&[2], &[0, 1])], ErrorKind::Shape),
        Sample::reject(op(&plain, [false; 3]), [g.normal([1, 4]), g.normal([5, 4]), ints(&[1], &[5])], ErrorKind::Index),
        Sample::reject(op(&plain, [false; 3]), [g.normal([1, 4]), g.normal([5, 4]), g.normal([1])], ErrorKind::Dtype),
        Sample::bench(
            LinearCrossEntropy { rows: 333, ..op(&plain, [false; 3]) },
            [g.normal([512, 768]), g.normal([50_257, 768]), g.below(DType::I64, [512], 50_257)],
        ),
    ]);
    out
}

#[inline]
pub(super) fn vjp_samples(g: &mut Gen) -> Vec<Sample<LinearCrossEntropyVjp>> {
    let mut out = Vec::new();
    for s in samples(g).into_iter().filter(|s| matches!(s.purpose, Purpose::Check | Purpose::Value)) {
        let bar = if s.op.of.reduction == Reduction::None { g.normal(s.inputs[2].shape()) } else { g.normal(()) };
        let mut s = s.map(|of| LinearCrossEntropyVjp { want: [true, true, of.bias], of, stats: false });
        s.inputs.push(bar);
        out.push(s);
    }
    let of = LinearCrossEntropy { of: CrossEntropyOptions::default().op(), rows: 2, bias: false, keep: [false; 3] };
    let t = Input::ints(DType::I64, [3], &[2, 0, 1]);
    for want in [[true, false, true], [false, true, false], [false, false, true]] {
        let op = LinearCrossEntropyVjp { of: LinearCrossEntropy { bias: true, ..of.clone() }, stats: false, want };
        let x = [g.normal([3, 2]), g.normal([4, 2]), t.clone(), g.normal([4]), g.normal(())];
        out.push(Sample::check(op, x).note("every subset of wanted gradients, with a bias [C16]"));
    }
    for want in [[true, false, false], [false, true, false]] {
        let op = LinearCrossEntropyVjp { of: of.clone(), stats: false, want };
        out.push(
            Sample::check(op, [g.normal([3, 2]), g.normal([4, 2]), t.clone(), g.normal(())]).note("every subset of wanted gradients [C16]"),
        );
    }
    let op = LinearCrossEntropyVjp { of, stats: false, want: [true, true, false] };
    out.push(
        Sample::check(op.clone(), [g.normal([3, 2]), g.normal([4, 2]), t.clone(), Input::values((), [0.0])]).note("zero cotangent [A24]"),
    );
    out.push(Sample::reject(op, [g.normal([3, 2]), g.normal([4, 2]), t, g.normal([3])], ErrorKind::Shape));
    out
}
