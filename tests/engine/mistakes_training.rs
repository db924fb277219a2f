//! The mistakes of `mistakes.rs`, second part: options, recurrence, attention, functions of functions, optimizers, training, files.

use super::mistakes::{Row, a_row, ids, linear, x};
use cotangent::io::{CsvFile, CsvOptions, ModuleFile, TensorFile, read_npy};
use cotangent::nn::{AttentionConfig, Linear, LstmCell, MultiHeadAttention};
use cotangent::ops::{RopeOptions, SdpaOptions};
use cotangent::optim::{AdamW, Group, Sgd};
use cotangent::train::{
    Batches, Characters, Options, Order, Rows, Sampling, Snapshots, Tokenizer, Tokens, Trainer, Width, Windows, count_targets,
    document_mask, generate,
};
use cotangent::{DType, F32, F64, I64, Key, Module, Result, Tape, Tensor, checkpoint, custom_vjp, grad, jvp, value_and_grad, vjp};

/// A folder of this file's own.
pub fn folder(name: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("cotangent-mistakes-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// What does not depend on the folder's name.
pub fn without(folder: &std::path::Path, result: Result<()>) -> Result<()> {
    result.map_err(|e| {
        let lines = e.to_string().matches(" (at ").count();
        assert!(lines == 1 && e.op().is_some(), "one line and an op are named: {e}");
        // Lines of this file change.
        let text = e.to_string().replace(&folder.display().to_string(), "FOLDER");
        let parts =
            text.split(" (at ").map(|part| part.split_once(')').filter(|(at, _)| at.contains(".rs:")).map_or(part, |(_, rest)| rest));
        cotangent::Error::argument(parts.collect::<String>())
    })
}

fn options() -> Vec<Row> {
    let row = a_row;
    let a = x(&[2, 3]);
    let q = x(&[1, 2, 4, 6]);
    vec![
        row("topk of more than there are", &["topk", "4", "3"], a.topk(4, -1).map(drop)),
        row("parts that do not fill the axis", &["split", "[1, 1]", "3"], a.split(&[1, 1], 1).map(drop)),
        row("an axis too far for unsqueeze", &["unsqueeze", "4", "rank 2"], a.unsqueeze(4).map(drop)),
        row("a stack of other shapes", &["stack", "[2, 3]", "[3, 2]"], Tensor::stack(&[&a, &x(&[3, 2])], 0).map(drop)),
        row("a pad for each axis but one", &["pad", "1", "[2, 3]"], a.pad(&[(1, 1)], 0.0).map(drop)),
        row("random integers by randn", &["randn", "i64"], Tensor::randn([2], I64, Key::new(1)).map(drop)),
        row("a range backwards", &["uniform", "1", "0"], Tensor::uniform([2], 1.0..0.0, F32, Key::new(1)).map(drop)),
        row("a step of zero", &["arange", "step", "0"], Tensor::arange(0.0, 1.0, 0.0, F32).map(drop)),
        row("a class beyond one_hot's", &["one_hot", "3", "0..3"], ids(&[0, 3]).one_hot(3, F32).map(drop)),
        row("a rate of dropout as a percentage", &["dropout", "50"], a.dropout(50.0, Key::new(1)).map(drop)),
        row("a negative ε", &["layer_norm", "eps", "-1"], a.layer_norm(1, None, None, -1.0).map(drop)),
        row("a row of odd width for rope", &["rope", "3"], a.rope(&RopeOptions::default()).map(drop)),
        row(
            "integer targets of bce",
            &["bce_with_logits", "predictions are f32", "targets i64", "targets.cast(F32)"],
            x(&[2]).bce_with_logits(&ids(&[0, 1])).map(drop),
        ),
        row(
            "a mask of another length",
            &["scaled_dot_product_attention", "[4, 5]", "[1, 2, 4, 4]"],
            q.scaled_dot_product_attention(&q, &q, Some(&x(&[4, 5])), &SdpaOptions::default()).map(drop),
        ),
        row(
            "keys of another width",
            &["scaled_dot_product_attention", "[1, 2, 4, 6]", "[1, 2, 4, 5]"],
            q.scaled_dot_product_attention(&x(&[1, 2, 4, 5]), &q, None, &SdpaOptions::default()).map(drop),
        ),
        row(
            "key heads that do not divide the heads",
            &["heads", "3", "2"],
            MultiHeadAttention::new(
                &AttentionConfig { width: 8, heads: 3, kv_heads: 2, head: 4, ..AttentionConfig::default() },
                F32,
                Key::new(1),
            )
            .map(drop),
        ),
        row("a negative temperature", &["sampling: ", "temperature", "-1"], Sampling { temperature: -1.0, ..Sampling::default() }.check()),
    ]
}

fn functions() -> Vec<Row> {
    let row = a_row;
    let a = x(&[2, 3]);
    let cell = LstmCell::new(4, 5, F32, Key::new(1)).unwrap();
    let tape = Tape::new();
    let old = tape.watch(&a).unwrap();
    let loss = old.sum(..).unwrap();
    tape.backward(&loss).unwrap();
    let other = Tape::new();
    let (left, right) = (other.watch(&a).unwrap(), Tape::new());
    let right_value = right.watch(&a).unwrap();
    vec![
        row(
            "a state of another batch",
            &["lstm", "[2, 4]", "[3, 5]", "state"],
            cell.forward(&x(&[2, 4]), (&x(&[3, 5]), &x(&[3, 5]))).map(drop),
        ),
        row("a tangent of another shape", &["jvp", "[2, 3]", "[3]"], jvp(&a, &x(&[3]), |a| a.square()).map(drop)),
        row(
            "a cotangent of another shape",
            &["vjp", "[2, 3]", "[3]"],
            vjp(&a, |a| a.square()).and_then(|back| back.pull(&x(&[3]))).map(drop),
        ),
        row("a tape that was swept", &["consumed", "Tape::cotangents"], old.square().map(drop)),
        row("values of two tapes", &["add", "tape"], left.add(&right_value).map(drop)),
        row(
            "a derivative of another shape",
            &["custom_vjp", "[3]", "[2, 3]"],
            grad(&a, |a| custom_vjp(&[a], |x| Ok(vec![x[0].square()?]), |_, _, _| Ok(vec![Some(x(&[3]))]))?[0].sum(..)).map(drop),
        ),
        row("a derivative too few", &["custom_vjp", "1", "0"], {
            grad(&a, |a| custom_vjp(&[a], |x| Ok(vec![x[0].square()?]), |_, _, _| Ok(vec![]))?[0].sum(..)).map(drop)
        }),
        row("a derivative of nothing", &["custom_vjp", "mistakes_training.rs", "returned `None`"], {
            grad(&a, |a| custom_vjp(&[a], |x| Ok(vec![x[0].square()?]), |_, _, _| Ok(vec![None]))?[0].sum(..)).map(drop)
        }),
        row("a value that became integers inside", &["custom_vjp", "to i64", "ends in"], {
            grad(&a, |a| custom_vjp(&[a], |x| Ok(vec![x[0].argmax(1)?]), |_, _, _| Ok(vec![None]))?[0].cast(F32)?.sum(..)).map(drop)
        }),
        row("a checkpoint that detaches", &["checkpoint", "mistakes_training.rs", "`detach`"], {
            grad(&a, |a| checkpoint(&[a], |x| Ok(vec![x[0].detach().square()?]))?[0].sum(..)).map(drop)
        }),
        row("a hook on what is not tracked", &["register_hook", "not tracked"], Tape::new().register_hook(&a, |_| {})),
        row("a tensor that is not there", &["get_tensor", "`weigth`", "weight, bias"], linear(2, 1).get_tensor("weigth").map(drop)),
        row("targets that are no ids", &["count_targets", "targets", "i64", "f32[2, 3]"], count_targets(&a, -100).map(drop)),
        row("a text of floats", &["document_mask", "tokens", "f32[2, 3]"], document_mask(&a, 0).map(drop)),
        row("a limit of minus", &["clip_value", "-1"], grad(&a, |a| a.square()?.sum(..)).and_then(|mut g| g.clip_value(-1.0))),
        row("gradients of a model that was frozen since", &["adamw", "gradient of `weight`", "frozen since"], {
            let mut net = linear(2, 1);
            let grads = grad(&net, |n| n.forward(&x(&[3, 2]))?.square()?.mean(..)).unwrap();
            let _ = net.freeze(|name| name == "weight");
            AdamW::default().step(&mut net, &grads)
        }),
        row("a parameter caught by a checkpoint", &["checkpointed", "captured", "pass it as an input"], {
            grad(&a, |a| {
                let caught = a.clone();
                checkpoint(&[&a.exp()?], move |x| Ok(vec![x[0].mul(&caught)?]))?[0].sum(..)
            })
            .map(drop)
        }),
    ]
}

fn training() -> Vec<Row> {
    let row = a_row;
    let step = |optimizer: &mut AdamW| {
        let mut w = x(&[3]);
        let (_, g) = value_and_grad(&w, |w| w.square()?.sum(..))?;
        optimizer.step(&mut w, &g)
    };
    let sgd = |mut optimizer: Sgd| {
        let mut w = x(&[3]);
        let (_, g) = value_and_grad(&w, |w| w.square()?.sum(..))?;
        optimizer.step(&mut w, &g)
    };
    let clip = |most: f64| value_and_grad(&x(&[3]), |w| w.square()?.sum(..))?.1.clip_global_norm(most);
    let data = |i: u64| Tensor::randn([3], F32, Key::new(i));
    let train = |options: Options, f: fn(&Tensor, &Tensor) -> Result<Tensor>| {
        let mut t = Trainer::new(x(&[3]), Sgd::new(0.1));
        t.options = options;
        t.run(&data, |w, x, _| f(w, x)).map(drop)
    };
    let steps = Options { steps: 5, ..Options::default() };
    let inside = folder("training");
    let run = |rate: f64| {
        let mut t = Trainer::new(x(&[3]), Sgd::new(rate));
        t.options = Options { steps: 2, ..Options::default() };
        t.snapshots = Some(Snapshots::open(&inside, 1)?);
        t.resume()?;
        t.options.steps += t.step();
        t.run(&data, |w, x, _| w.sub(x)?.square()?.sum(..)).map(drop)
    };
    run(0.1).unwrap();
    let again = without(&inside, run(0.2));
    let thawed = {
        let mut t = Trainer::new(linear(3, 1), Sgd::new(0.1));
        let frozen = t.model.freeze(|name| name == "bias");
        assert_eq!(frozen, 1);
        t.options = Options { steps: 2, ..Options::default() };
        let its = inside.join("frozen");
        t.snapshots = Some(Snapshots::open(&its, 1).unwrap());
        let loss = |l: &Linear, x: &Tensor, _: Key| l.forward(&x.unsqueeze(0)?)?.square()?.sum(..);
        t.run(&data, loss).unwrap();
        drop(t);
        let mut t = Trainer::new(linear(3, 1), Sgd::new(0.1));
        t.snapshots = Some(Snapshots::open(&its, 1).unwrap());
        without(&inside, t.resume().map(drop))
    };
    let another = |n: usize| {
        let mut t = Trainer::new(x(&[n]), Sgd::new(0.1));
        t.snapshots = Some(Snapshots::open(&inside, 1)?);
        t.resume().map(drop)
    };
    let wide = without(&inside, another(4));
    let newest = inside.join("step-000000002.safetensors");
    let mut bytes = std::fs::read(&newest).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    let before = inside.join("step-000000001.safetensors");
    let _ = std::fs::remove_file(&before);
    let damaged = without(&inside, another(3));
    let _ = std::fs::remove_dir_all(&inside);
    vec![
        row("a run that goes on with another width", &["resume", "[3]", "[4]", "FOLDER"], wide),
        row("a run that goes on from a damaged snapshot", &["resume", "damaged", "another folder"], damaged),
        row("a learning rate of minus", &["adamw", "lr", "-0.1"], step(&mut AdamW { lr: -0.1, ..AdamW::default() })),
        row("a moment of one", &["adamw", "beta", "1"], step(&mut AdamW { lr: 0.1, betas: (0.9, 1.0), ..AdamW::default() })),
        row("a rate that is not a number", &["sgd", "lr", "NaN"], sgd(Sgd::new(f64::NAN))),
        row("a group that is nobody's", &["group"], {
            step(&mut AdamW { lr: 0.1, groups: vec![Group::new(|name, _| name == "no such name")], ..AdamW::default() })
        }),
        row("clipping to nothing", &["clip", "0"], clip(0.0).map(drop)),
        row("a loss of many values", &["train", "[3]", "scalar"], train(steps, |w, x| w.mul(x))),
        row(
            "a loss that is never a number",
            &["train", "not finite", "detect_anomaly"],
            train(steps, |w, _| w.sum(..)?.sub_scalar(1e9)?.log()),
        ),
        row("a parameter that was frozen and is not any more", &["frozen was `bias`, is `none`", "allow_changes"], thawed),
        row("another rate for a run that goes on", &["learning_rate", "0.1", "0.2", "allow_changes"], again),
        row("a batch larger than the data", &["10", "4"], Rows::new(x(&[4, 2]), 10, Order::Shuffled, Key::new(1)).map(drop)),
        row(
            "rows of two lengths",
            &["rows", "`1`", "3 rows", "4"],
            Rows::new((x(&[4, 2]), ids(&[0, 1, 2])), 2, Order::Sequential, Key::new(1)).map(drop),
        ),
        row("a text shorter than a window", &["3", "8"], {
            Windows::new(Tokens::from(vec![0u32, 1, 2]), 2, 8, Order::Sequential, Key::new(1)).and_then(|w| w.batch(0)).map(drop)
        }),
        row("logits that are NaN", &["generate", "6 of the 6 logits are NaN", "review", "detect_anomaly"], {
            let nan = |_: &Tensor| Tensor::full([1, 1, 6], f64::NAN, F32);
            generate(&[1], 2, 4, Sampling::default(), Key::new(1), &Default::default(), nan).map(drop)
        }),
        row("logits of a text that are NaN", &["draw", "1 of the 2 logits"], Sampling::GREEDY.draw(&[0.0, f64::NAN], 0.0).map(drop)),
        row("an unknown character", &["'d'", "byte 2", "3 known"], Characters::of("abc").encode("abd").map(drop)),
    ]
}

fn files() -> Vec<Row> {
    let row = a_row;
    let inside = folder("files");
    let put = |name: &str, text: &[u8]| {
        std::fs::write(inside.join(name), text).unwrap();
        inside.join(name)
    };
    let text = put("model.safetensors", b"this is no model");
    let table = put("table.csv", b"a,b\n1,2\n3,none\n");
    let array = put(
        "array.npy",
        b"\x93NUMPY\x01\x00\x46\x00{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,), }           \n\0\0\0\0\0\0\0\0",
    );
    let semicolons = put("semicolons.csv", b"width;height\n1,5;2\n");
    let bars = put("bars.csv", b"1|2\n3|4\n");
    let empty = put("empty.csv", b"");
    let nothing = put("nothing.csv", b"\n\n");
    let latin = put("latin.csv", b"name,n\nJos\xe9,1\n");
    let bare = CsvOptions { header: false, ..CsvOptions::default() };
    let cell = |column: &str, dtype: DType| CsvFile::open(&table)?.numbers(&[column], dtype).map(drop);
    let missing = inside.join("nowhere.safetensors");
    let prose = put("train.bin", "Wäre es ein Text, so sähe man es ihm an: er hat Zeichen, und Ids haben Nullen.".as_bytes());
    let other = inside.join("other.safetensors");
    x(&[2]).save(&other).unwrap();
    let rows = vec![
        row(
            "a text instead of ids",
            &["FOLDER/train.bin", "text", "Tokens::save", "Characters"],
            without(&inside, Tokens::open(&prose, Width::U16).map(drop)),
        ),
        row(
            "a file of which nothing fits",
            &["load_partial", "FOLDER/other.safetensors", "nothing", "weight, bias"],
            without(&inside, linear(2, 3).load_partial(&other).map(drop)),
        ),
        row(
            "a model that is not there",
            &["FOLDER/nowhere.safetensors", "No such file"],
            without(&inside, linear(2, 3).load(&missing).map(drop)),
        ),
        row("a text instead of a model", &["FOLDER/model.safetensors", "safetensors"], without(&inside, TensorFile::open(&text).map(drop))),
        row("a column that is not there", &["`c`", "a", "b"], without(&inside, cell("c", F32))),
        row("a word among numbers", &["line 3", "`b`", "none"], without(&inside, cell("b", F64))),
        row(
            "semicolons for commas",
            &["line 2", "2 cells", "first row 1", "delimiter: b';'"],
            without(&inside, CsvFile::open(&semicolons).map(drop)),
        ),
        row(
            "bars for commas",
            &["`0`", "1|2", "delimiter: b'|'"],
            without(&inside, CsvFile::open_with(&bars, &bare).and_then(|t| t.numbers(&[], F32)).map(drop)),
        ),
        row("an empty table", &["empty.csv", "is empty", "names"], without(&inside, CsvFile::open(&empty).map(drop))),
        row("a table of empty lines", &["nothing.csv", "no row"], without(&inside, CsvFile::open(&nothing).map(drop))),
        row("a table in Latin-1", &["line 2", "0xe9", "UTF-8", "iconv -f WINDOWS-1252"], without(&inside, CsvFile::open(&latin).map(drop))),
        row("dates as an array", &["<M8[s]"], without(&inside, read_npy(&array).map(drop))),
    ];
    let _ = std::fs::remove_dir_all(&inside);
    rows
}

pub fn rows() -> Vec<Row> {
    [options(), functions(), training(), files()].into_iter().flatten().collect()
}
