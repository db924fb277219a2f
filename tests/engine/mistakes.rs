//! The mistakes that newcomers make, and what they are told. A message has the full grade when it names the op, both values, the layer where
//! there is one, the user's line, and a remedy that fits the slip. The whole texts stand in `snapshots/mistakes.txt`.

use cotangent::diagnostics::{Slip, lint};
use cotangent::nn::{Embedding, GruCell, Layer, LayerNorm, Linear, Lstm, LstmCell, RecurrentConfig, Sequential};
use cotangent::ops::{CrossEntropyOptions, Reduction, SdpaOptions};
use cotangent::optim::AdamW;
use cotangent::testing::gradcheck;
use cotangent::{BF16, F32, F64, I64, Key, Module, Result, Tape, Tensor, U8, grad, value_and_grad};
use std::fmt::Write;

pub fn x(shape: &[usize]) -> Tensor {
    Tensor::randn(shape, F32, Key::new(7)).unwrap()
}

pub fn ids(values: &[i64]) -> Tensor {
    Tensor::from_slice(values, [values.len()]).unwrap()
}

pub fn linear(i: usize, o: usize) -> Linear {
    Linear::new(i, o, F32, Key::new(1)).unwrap()
}

fn lstm(inputs: usize) -> Lstm {
    Lstm::new(&RecurrentConfig { inputs, hidden: 3, ..RecurrentConfig::default() }, F32, Key::new(1)).unwrap()
}

fn net() -> Sequential {
    Sequential::new().push(linear(4, 5)).push(linear(6, 2))
}

fn io_by_question_mark() -> Result<Vec<u8>> {
    Ok(std::fs::read("/nowhere/at/all")?)
}

/// What was done, the words that the message must have, and the message; an empty list of words is a mistake in this table.
pub struct Row(&'static str, &'static [&'static str], Result<()>);

pub fn a_row(what: &'static str, words: &'static [&'static str], result: Result<()>) -> Row {
    Row(what, words, result)
}

fn rows() -> Vec<Row> {
    let row = a_row;
    let (a, mask) = (x(&[2, 3]), x(&[2, 3]).gt_scalar(0.0).unwrap());
    let scores = x(&[4, 3]);
    let mut rows = vec![
        // Shapes.
        row("a matrix product of [2, 3] and [2, 3]", &["matmul", "[2, 3]", "3 vs 2"], a.matmul(&a).map(drop)),
        row("shapes that do not broadcast", &["add", "[2, 3]", "[2]", "axis -1"], a.add(&x(&[2])).map(drop)),
        row("a reshape to another count", &["reshape", "[2, 3]", "6", "[4]"], a.reshape([4]).map(drop)),
        row("an axis that is not there", &["sum", "axis 2", "rank 2", "[2, 3]"], a.sum(2).map(drop)),
        row("an axis of softmax that is not there", &["softmax", "axis 2", "[2, 3]"], a.softmax(2).map(drop)),
        row("an axis of a transpose that is not there", &["transpose", "axis -3", "[2, 3]"], a.transpose(-3, 0).map(drop)),
        row("an axis twice", &["sum", "axis 0 of 2 axes is named twice", "as 0 and as -2", "[2, 3]"], a.sum([0, -2]).map(drop)),
        row("concat of other extents", &["concat", "[2, 3]", "[2, 2]"], Tensor::concat(&[&a, &x(&[2, 2])], 0).map(drop)),
        row("a slice beyond the end", &["slice", "5", "3"], a.slice(1, 0..5).map(drop)),
        row("a select beyond the end", &["select", "2"], a.select(0, 2).map(drop)),
        row("permute with a missing axis", &["permute", "[0] names 1 axes", "[2, 3] has 2"], a.permute([0]).map(drop)),
        row("squeeze of a long axis", &["squeeze", "axis 0", "2"], a.squeeze(0).map(drop)),
        row("expand of a long axis", &["expand", "[2, 3]", "[4, 3]"], a.expand([4, 3]).map(drop)),
        row(
            "values that do not fill the shape",
            &["from_slice", "[2, 2]", "4", "3 values"],
            Tensor::from_slice(&[1f32; 3], [2, 2]).map(drop),
        ),
        row("item of many", &["item", "[2, 3]"], a.item().map(drop)),
        row(
            "einsum with another number of operands",
            &["einsum", "ij,jk->ik", "2 operands", "1"],
            Tensor::einsum("ij,jk->ik", &[&a]).map(drop),
        ),
        // Layers.
        row(
            "a layer of another width",
            &["linear", "[7, 5]", "[2, 4]", "`weight`"],
            grad(&linear(4, 2), |l| l.forward(&x(&[7, 5]))?.sum(..)).map(drop),
        ),
        row(
            "the same inside Sequential",
            &["linear", "[4, 5]", "[2, 6]", "`1.weight`"],
            grad(&net(), |n| n.call(&x(&[4, 4]), None)?.sum(..)).map(drop),
        ),
        row("the same without a gradient", &["linear", "[4, 5]", "[2, 6]", "1"], net().call(&x(&[4, 4]), None).map(drop)),
        row(
            "f64 data into an f32 layer",
            &["linear", "f64", "f32", "weight", "cast"],
            grad(&linear(4, 2), |l| l.forward(&x(&[7, 4]).cast(F64)?)?.sum(..)).map(drop),
        ),
        row("a norm of another width", &["layer_norm", "[2, 3]", "4"], LayerNorm::new(4, F32).and_then(|n| n.forward(&a)).map(drop)),
        row(
            "an id beyond the table",
            &["embedding", "9", "0..5"],
            Embedding::normal(5, 2, 1.0, F32, Key::new(1)).and_then(|e| e.forward(&ids(&[1, 9]))).map(drop),
        ),
        row("float ids", &["embedding", "f32"], Embedding::normal(5, 2, 1.0, F32, Key::new(1)).and_then(|e| e.forward(&a)).map(drop)),
        // Dtypes.
        row("f32 plus f64", &["add", "f32", "f64", "cast"], a.add(&a.cast(F64).unwrap()).map(drop)),
        row("ids + 1", &["add_scalar", "i64", "cast(F64)"], ids(&[1, 2]).add_scalar(1.0).map(drop)),
        row("an integer by an integer", &["div", "i64", "cast"], ids(&[1, 2]).div(&ids(&[1, 2])).map(drop)),
        row("a sum of integers", &["sum", "i64", "cast"], ids(&[1, 2]).sum(..).map(drop)),
        row("a mean of a mask", &["mean", "u8", "[2, 3]", "cast(F32)"], mask.mean(..).map(drop)),
        row("a mask times floats", &["mul", "u8", "masked_fill"], mask.mul(&a).map(drop)),
        row("reading as another type", &["f32", "f64", "cast"], a.to_vec::<f64>().map(drop)),
        row(
            "the gradient of integers",
            &["nothing to differentiate", "holds integers"],
            grad(&ids(&[1]), |x| x.cast(F32)?.sum(..)).map(drop),
        ),
        row("bf16 into f32", &["matmul", "bf16", "f32"], a.cast(BF16).unwrap().matmul(&x(&[3, 2])).map(drop)),
        // Losses.
        row(
            "one-hot labels",
            &["cross_entropy", "[4, 3]", "class indices", "argmax(-1)"],
            scores.cross_entropy(&Tensor::zeros([4, 3], I64).unwrap()).map(drop),
        ),
        row(
            "classes on axis 1",
            &["cross_entropy", "[2, 7, 5]", "[2, 5]", "transpose(1, -1)"],
            x(&[2, 7, 5]).cross_entropy(&Tensor::zeros([2, 5], I64).unwrap()).map(drop),
        ),
        row("float labels", &["cross_entropy", "f32", "probabilities [4, 3]", "cast(I64)"], scores.cross_entropy(&x(&[4])).map(drop)),
        row(
            "a label beyond the classes",
            &["cross_entropy", "3", "0..3", "position 1"],
            scores.cross_entropy(&ids(&[0, 3, 1, 1])).map(drop),
        ),
        row("losses of other shapes", &["mse_loss", "[4, 1]", "[4]"], x(&[4, 1]).mse_loss(&x(&[4])).map(drop)),
        row("a gradient of many values", &["[2, 3]", "scalar"], grad(&a, |a| a.square()).map(drop)),
        // Gradients.
        row("the captured model instead of the argument", &["Does the function compute with its argument", "|m| m.forward(&x)"], {
            let n = linear(3, 2);
            grad(&n, |_| n.forward(&a)?.mean(..)).map(drop)
        }),
        row("detach on the way", &["detach"], grad(&a, |a| a.detach().square()?.sum(..)).map(drop)),
        row("argmax on the way", &["argmax"], grad(&a, |a| a.argmax(-1)?.cast(F32)?.sum(..)).map(drop)),
        row("one parameter not reached", &["bias", "allow_disconnected"], grad(&linear(3, 2), |l| l.weight.square()?.sum(..)).map(drop)),
        row("asking with the tensor before watch", &["get: ", "use the tensor that `watch` returned"], {
            let tape = Tape::new();
            let w = tape.watch(&a).unwrap();
            tape.backward(&w.sum(..).unwrap()).and_then(|g| g.get(&a).map(drop))
        }),
        row("indices of topk on the way", &["topk", "i64"], grad(&a, |a| a.topk(2, -1)?.1.cast(F32)?.sum(..)).map(drop)),
        row("a captured tensor under gradcheck", &["gradcheck", "input 0", "none was used", "captured"], {
            let x = Tensor::from_slice(&[1.0, 2.0], [2]).unwrap();
            gradcheck(|_| x.square(), std::slice::from_ref(&x)).map(drop)
        }),
        row(
            "a kink under gradcheck",
            &["gradcheck", "input 0", "a kink", "beside it"],
            gradcheck(|x| x[0].relu(), &[Tensor::from_slice(&[1.0, 0.0], [2]).unwrap()]).map(drop),
        ),
        row("gradcheck in f32", &["gradcheck", "f32", "f64"], gradcheck(|x| x[0].exp(), std::slice::from_ref(&a)).map(drop)),
        // Indices.
        row(
            "scatter_add with a list of rows",
            &["scatter_add", "[2]", "[4, 3]", "unsqueeze(-1)?.expand"],
            x(&[4, 3]).scatter_add(0, &ids(&[0, 1]), &a).map(drop),
        ),
        row("gather beyond", &["gather", "5"], a.gather(1, &Tensor::full([2, 1], 5.0, I64).unwrap()).map(drop)),
        row("where with a float condition", &["f32"], Tensor::where_cond(&a, &a, &a).map(drop)),
        // By the name that was called: one op serves several methods.
        row("a comparison of other shapes", &["lt: ", "[2, 3]", "[2]"], a.lt(&x(&[2])).map(drop)),
        row("a comparison of other types", &["eq: ", "f32 [2, 3]", "i64 [2]", "cast"], a.eq(&ids(&[1, 2])).map(drop)),
        row("logic on floats", &["logical_and: ", "u8 mask", "ne_scalar"], mask.logical_and(&a).map(drop)),
        row("narrow beyond the end", &["narrow: ", "5", "3"], a.narrow(1, 0, 5).map(drop)),
        row("an argmin of integers", &["argmin: ", "i64"], ids(&[1, 2]).argmin(0).map(drop)),
        row(
            "a product with a transposed matrix of another width",
            &["matmul_nt: ", "[2, 3]", "[4, 2]"],
            a.matmul_nt(&x(&[4, 2])).map(drop),
        ),
        row("counts for another axis", &["repeat_interleave: ", "3", "2"], a.repeat_interleave(&ids(&[1, 2]), 1).map(drop)),
        row(
            "a list that does not fill the shape",
            &["from_vec: ", "[2, 2]", "4", "3 values"],
            Tensor::from_vec(vec![1f32; 3], [2, 2]).map(drop),
        ),
        row("zeros of a shape beyond memory", &["zeros: "], Tensor::zeros([usize::MAX, 2], F32).map(drop)),
        // Recurrence.
        row(
            "a state of another type",
            &["lstm_cell: ", "x is f32 [2, 4]", "h is f64 [2, 5]", "cast", "weight_hh"],
            LstmCell::new(4, 5, F32, Key::new(1)).and_then(|c| {
                let h = x(&[2, 5]).cast(F64)?;
                c.forward(&x(&[2, 4]), (&h, &h)).map(drop)
            }),
        ),
        row(
            "a sequence for a cell",
            &["gru_cell: ", "[batch, 4]", "[2, 7, 4]", "nn::Gru", "weight_ih"],
            GruCell::new(4, 5, F32, Key::new(1)).and_then(|c| c.forward(&x(&[2, 7, 4]), &x(&[2, 5])).map(drop)),
        ),
        row(
            "sequences of another width in Sequential",
            &["lstm: ", "[batch, time, 5]", "[2, 7, 4]", "`1.weight_ih_l0` f32[12, 5]"],
            Sequential::new().push(linear(4, 4)).push(lstm(5)).call(&x(&[2, 7, 4]), None).map(drop),
        ),
        row(
            "the same with a gradient",
            &["lstm: ", "[batch, time, 5]", "[2, 7, 4]", "`1.weight_ih_l0` f32[12, 5]"],
            grad(&(linear(4, 4), lstm(5)), |m| m.call(&x(&[2, 7, 4]), None)?.sum(..)).map(drop),
        ),
        row(
            "doubles for a recurrent layer",
            &["lstm: ", "x is f64 [2, 7, 5]", "weight_ih is f32 [12, 5]"],
            lstm(5).forward(&x(&[2, 7, 5]).cast(F64).unwrap(), None).map(drop),
        ),
        // Where PyTorch computes something.
        row("a clamp of exchanged ends", &["clamp", "min 2", "max 1", "exchanged"], a.clamp(2.0, 1.0).map(drop)),
        row(
            "classes of two axes",
            &["linear_cross_entropy", "[2, 5, 3]", "3 axes", "[classes, 3]", "[2, 3]", "weight.flatten(0, -2)"],
            a.linear_cross_entropy(&x(&[2, 5, 3]), None, &ids(&[0, 1]), &CrossEntropyOptions::default()).map(drop),
        ),
        row(
            "probabilities of another number of classes",
            &["linear_cross_entropy", "[2, 4]"],
            a.linear_cross_entropy(&x(&[5, 3]), None, &x(&[2, 4]), &CrossEntropyOptions::default()).map(drop),
        ),
        // Files.
        row("a file of std by a question mark", &["io::read_file", "No such file"], io_by_question_mark().map(drop)),
        row("a model of another width", &["weight", "[2, 4]", "[2, 3]"], {
            let mut l = linear(3, 2);
            l.load_named(&linear(4, 2).named_tensors().into_iter().collect())
        }),
    ];
    let mut adam = AdamW { lr: 0.1, ..AdamW::default() };
    let step = |adam: &mut AdamW, n: usize| {
        let mut w = x(&[n]);
        let (_, g) = value_and_grad(&w, |w| w.square()?.sum(..))?;
        adam.step(&mut w, &g)
    };
    step(&mut adam, 2).unwrap();
    rows.push(row("an optimizer reused for another tensor", &["adamw", "[3]", "[2]"], step(&mut adam, 3).map(drop)));
    rows
}

/// Lines of these files change.
fn without_lines(message: &str) -> String {
    let mut parts = message.split(".rs:");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + ".rs" + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

#[test]
fn every_mistake_is_answered_in_full() {
    let mut text = String::new();
    let mut poor = Vec::new();
    for Row(what, words, result) in rows().into_iter().chain(super::mistakes_training::rows()).chain(super::mistakes_edges::rows()) {
        let e = match result {
            Ok(()) => {
                poor.push(format!("{what}: nothing was said"));
                continue;
            }
            Err(e) => e,
        };
        let message = e.to_string();
        for missing in words.iter().filter(|w| !message.contains(**w)) {
            poor.push(format!("{what}: {missing:?} is not said in: {message}"));
        }
        assert!(!words.is_empty(), "{what}: no words are demanded");
        if message.matches(" (at ").count() > 1 {
            poor.push(format!("{what}: more than one line: {message}"));
        }
        let outside = e.location().is_none_or(|at| at.file().contains("tests/engine/mistakes"));
        if !outside {
            poor.push(format!("{what}: the line is inside the crate: {message}"));
        }
        // Errors of the standard library come without either; those with a folder's name cut out had theirs checked.
        let bare = message.contains("outside of this crate") || message.contains("FOLDER");
        if !bare && (e.op().is_none() || e.location().is_none()) {
            poor.push(format!("{what}: no op or no line is named: {message}"));
        }
        let message = message.split(" (at ").next().unwrap_or_default().to_owned();
        writeln!(text, "{what}\n    {}", without_lines(&message).replace('\n', "\n    ")).unwrap();
    }
    assert!(poor.is_empty(), "{} messages are poor:\n{}", poor.len(), poor.join("\n"));
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/mistakes.txt");
    if std::env::var_os("COTANGENT_SNAPSHOT").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, old, "messages changed: look at them, then COTANGENT_SNAPSHOT=1 cargo test mistakes");
}

/// What the lint says of a loss of one linear layer.
fn slips(inputs: usize, outputs: usize, f: impl Fn(&Tensor) -> Result<Tensor>) -> Vec<Slip> {
    let net = linear(inputs, outputs);
    let (_, _, found) = lint(&net, |net| f(&net.forward(&x(&[6, inputs]))?)).unwrap();
    assert!(found.iter().all(|s| s.at.file().ends_with("tests/engine/mistakes.rs")), "{found:?}");
    found.into_iter().map(|s| s.slip).collect()
}

#[test]
fn silent_slips_are_seen_by_the_lint() {
    let classes = ids(&[0, 1, 2, 0, 1, 2]);
    assert_eq!(slips(3, 1, |y| y.sub(&x(&[6]))?.square()?.mean(..)), [Slip::AllPairs]);
    assert_eq!(slips(3, 1, |y| x(&[6]).sub(y)?.abs()?.mean(..)), [Slip::AllPairs]);
    assert_eq!(slips(3, 3, |y| y.softmax(-1)?.cross_entropy(&classes)), [Slip::Twice]);
    assert_eq!(slips(3, 3, |y| y.log_softmax(-1)?.cross_entropy(&classes)), [Slip::Twice]);
    let half = Tensor::full([6, 3], 0.5, F32).unwrap();
    assert_eq!(slips(3, 3, |y| y.sigmoid()?.bce_with_logits(&half)), [Slip::Twice]);
    assert_eq!(slips(3, 3, |y| y.softmax(-1)?.softmax(-1)?.square()?.sum(..)), [Slip::Twice]);
    assert_eq!(slips(3, 1, |y| y.softmax(-1)?.sum(..)), [Slip::OneClass]);
    assert_eq!(slips(3, 1, |y| y.cross_entropy(&ids(&[0; 6]))), [Slip::OneClass]);
    assert_eq!(slips(3, 3, |y| y.softmax(-1)?.cross_entropy(&half)), [Slip::Twice]);
    assert_eq!(slips(3, 1, |y| y.cross_entropy(&half.narrow(1, 0, 1)?)), [Slip::OneClass]);
    let square = |y: &Tensor| y.unsqueeze(0)?.expand([2, 6, 6])?.cross_entropy(&Tensor::zeros([2, 6], I64)?);
    assert_eq!(slips(3, 6, square), [Slip::ClassAxis]);
    assert_eq!(slips(3, 3, |y| y.slice(0, 0..0)?.mean(..)?.add(&y.sum(..)?)), [Slip::MeanOfNothing, Slip::LossNotFinite]);
    assert_eq!(slips(3, 3, |y| y.slice(0, 0..0)?.square()?.sum(..)?.add(&y.mean(..)?)), [Slip::SumOfNothing]);
    assert_eq!(slips(3, 3, |y| y.sum(..)?.sub_scalar(1e9)?.log()), [Slip::LossNotFinite]);
    assert_eq!(slips(3, 3, |y| y.square()?.nll_loss(&classes)), [Slip::NotLogProbabilities]);
    // Labels of -1 and 1, percentages, and NaN are no probabilities.
    for value in [-1.0, 50.0, f64::NAN] {
        let wrong = Tensor::full([6, 3], value, F32).unwrap();
        assert_eq!(
            slips(3, 3, |y| y.bce_with_logits_with(&wrong, &Reduction::Sum.into())?.mul_scalar(0.0)?.add(&y.sum(..)?))[0],
            Slip::NoProbabilities
        );
    }
    let two = Tensor::full([6, 3], 2.0, F32).unwrap();
    assert_eq!(slips(3, 3, |y| y.cross_entropy(&two)), [Slip::NoProbabilities]);
    // A mask counts as rows 0 and 1.
    let mask = x(&[6]).gt_scalar(0.0).unwrap();
    assert_eq!(slips(3, 3, |y| y.index_select(0, &mask)?.square()?.sum(..)), [Slip::MaskAsIndex]);
    assert_eq!(slips(3, 3, |y| y.index_add(0, &mask, &x(&[6, 3]))?.square()?.sum(..)), [Slip::MaskAsIndex]);
    assert_eq!(slips(3, 3, |y| y.gather(1, &x(&[6, 3]).gt_scalar(0.0)?)?.square()?.sum(..)), [Slip::MaskAsIndex]);
    // Along the batch, and of nothing.
    assert_eq!(slips(3, 3, |y| y.softmax(0)?.square()?.sum(..)), [Slip::BatchAxis]);
    assert_eq!(slips(3, 3, |y| y.log_softmax(0)?.narrow(0, 0, 1)?.sum(..)), [Slip::BatchAxis]);
    assert_eq!(slips(3, 3, |y| y.cross_entropy(&ids(&[-100; 6]))), [Slip::NoTargets]);
    assert_eq!(slips(3, 3, |y| y.slice(0, 0..0)?.mse_loss(&x(&[0, 3]))?.add(&y.sum(..)?)), [Slip::MeanOfNothing]);
    // Heads where tokens are, and a mask that is added.
    let attend = |y: &Tensor, shape: [usize; 4], mask: Option<&Tensor>| {
        let q = y.reshape(shape)?;
        q.scaled_dot_product_attention(&q, &q, mask, &SdpaOptions::default())?.square()?.sum(..)
    };
    assert_eq!(slips(3, 4, |y| attend(y, [1, 6, 2, 2], None)), [Slip::HeadsAxis]);
    let lower = Tensor::ones([3, 3], F32).unwrap().tril(0).unwrap();
    assert_eq!(slips(3, 4, |y| attend(y, [1, 2, 3, 4], Some(&lower))), [Slip::MaskAsScores]);
    // A mask that hides all keys from a query, as one of padding would.
    let padding = Tensor::from_slice(&[0u8, 0, 0, 0, 1, 1], [2, 1, 1, 3]).unwrap();
    assert_eq!(slips(3, 4, |y| attend(y, [2, 2, 3, 2], Some(&padding))), [Slip::NothingSeen]);
    // One mask for each sequence, of as many as there are heads.
    let each = Tensor::ones([2, 3, 3], U8).unwrap();
    assert_eq!(slips(3, 4, |y| attend(y, [2, 2, 3, 2], Some(&each))), [Slip::MaskOfHeads]);
    assert!(slips(3, 4, |y| attend(y, [2, 2, 3, 2], Some(&each.unsqueeze(1)?))).is_empty());
    // One key for two dropouts, of other shapes too.
    let twice = |y: &Tensor, second: u64| {
        let y = y.dropout(0.5, Key::new(3))?.reshape([12, 64])?;
        y.add_scalar(1.0)?.dropout(0.25, Key::new(second))?.dropout_add(&y, 0.5, Key::new(9))?.sum(..)
    };
    assert_eq!(slips(3, 128, |y| twice(y, 3)), [Slip::SameDropout], "of another rate, too");
    assert_eq!(slips(3, 128, |y| twice(y, 4)), []);
    let same = |y: &Tensor| y.dropout(0.5, Key::new(3))?.reshape([12, 64])?.add_scalar(1.0)?.dropout(0.5, Key::new(3))?.sum(..);
    assert_eq!(slips(3, 128, same), [Slip::SameDropout]);
    let added = |y: &Tensor| y.dropout(0.5, Key::new(3))?.add(&y.tanh()?.dropout_add(y, 0.5, Key::new(3))?)?.sum(..);
    assert_eq!(slips(3, 128, added), [Slip::SameDropout]);
}

#[test]
fn the_lint_is_quiet_on_what_is_right() {
    let classes = ids(&[0, 1, 2, 0, 1, 2]);
    let none: [Slip; 0] = [];
    assert_eq!(slips(3, 1, |y| y.sub(&x(&[6, 1]))?.square()?.mean(..)), none);
    assert_eq!(slips(3, 1, |y| y.squeeze(-1)?.sub(&x(&[6]))?.square()?.mean(..)), none);
    assert_eq!(slips(3, 3, |y| y.cross_entropy(&classes)), none);
    assert_eq!(slips(3, 3, |y| y.cross_entropy(&x(&[6, 3]).softmax(-1)?)), none);
    assert_eq!(slips(3, 3, |y| y.log_softmax(-1)?.nll_loss(&classes)), none);
    assert_eq!(slips(3, 3, |y| y.sub(&y.mean_keepdim(-1)?)?.square()?.mean(..)), none, "a column beside a matrix");
    assert_eq!(slips(3, 3, |y| y.sigmoid()?.mul(&y.tanh()?)?.softmax(-1)?.square()?.mean(..)), none);
    let half = Tensor::full([6, 3], 0.5, F32).unwrap();
    assert_eq!(slips(3, 3, |y| y.bce_with_logits(&half)), none);
    assert_eq!(slips(3, 3, |y| y.softmax(-1)?.log_softmax(1)?.exp()?.square()?.sum(..)), [Slip::Twice]);
    assert_eq!(slips(3, 128, |y| y.dropout(0.5, Key::new(1))?.dropout(0.5, Key::new(2))?.sum(..)), none);
    let scores = Tensor::ones([3, 3], F32).unwrap().tril(0).unwrap().log().unwrap();
    let attend = |y: &Tensor, mask: &Tensor| {
        let q = y.reshape([1, 2, 3, 4])?;
        q.scaled_dot_product_attention(&q, &q, Some(mask), &SdpaOptions::default())?.square()?.sum(..)
    };
    assert_eq!(slips(3, 4, |y| attend(y, &scores)), none);
    assert_eq!(slips(3, 4, |y| attend(y, &scores.eq_scalar(0.0)?)), none);
    assert_eq!(slips(3, 3, |y| y.cross_entropy(&ids(&[0, -100, 2, 0, -100, 2]))), none);
    // Indices of u8, a choice among two, and a mask that became indices.
    let bytes = ids(&[5, 0, 1, 2, 1, 0]).cast(U8).unwrap();
    assert_eq!(slips(3, 3, |y| y.index_select(0, &bytes)?.square()?.sum(..)), none);
    let either = x(&[6, 2]).gt_scalar(0.0).unwrap();
    assert_eq!(slips(3, 2, |y| y.gather(1, &either)?.square()?.sum(..)), none);
    let mask = x(&[6]).gt_scalar(0.0).unwrap();
    assert_eq!(slips(3, 3, |y| y.index_select(0, &mask.nonzero()?.squeeze(-1)?)?.square()?.sum(..)), none);
}
