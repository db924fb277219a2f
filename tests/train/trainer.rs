//! The trainer and what stands around it: data, generation, metrics.

use crate::files::Folder;
use cotangent::diagnostics::{ClipTracker, HealthHistory};
use cotangent::optim::{AdamW, Sgd};
use cotangent::train::{
    Batches, Bytes, Characters, Csv, Event, Jsonl, Loss, MetricSink, Options, Order, Prefetch, Rows, Sampling, TensorBoard, Tokenizer,
    Tokens, Trainer, Width, Windows, document_mask, record,
};
use cotangent::{Error, F32, F64, I64, Key, Result, Tensor, ops::SdpaOptions, value_and_grad};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// A batch of numbers and the loss `mean((x·w − 1)²)`.
fn numbers(i: u64) -> Result<Tensor> {
    Tensor::randn([4, 3], F64, Key::new(9).fold(i))
}

fn loss(w: &Tensor, x: &Tensor, _: Key) -> Result<Tensor> {
    x.mul(w)?.add_scalar(-1.0)?.square()?.mean(..)
}

fn weights() -> Tensor {
    Tensor::from_slice(&[0.5f64, -1.0, 2.0], [3]).unwrap()
}

#[test]
fn the_trainer_does_what_the_loop_by_hand_does() {
    let mut by_hand = weights();
    let mut adam = AdamW { lr: 0.01, ..AdamW::default() };
    for step in 0..20u64 {
        let (_, mut g) = value_and_grad(&by_hand, |w| loss(w, &numbers(2 * step)?, Key::new(0))).unwrap();
        let (_, more) = value_and_grad(&by_hand, |w| loss(w, &numbers(2 * step + 1)?, Key::new(0))).unwrap();
        g.accumulate(&more).unwrap();
        g.scale(0.5).unwrap();
        g.clip_global_norm(0.7).unwrap();
        adam.lr = 0.01 / (step + 1) as f64;
        adam.step(&mut by_hand, &g).unwrap();
    }
    struct Falling;
    impl cotangent::optim::Schedule for Falling {
        fn at(&self, step: usize) -> f64 {
            0.01 / (step + 1) as f64
        }
    }
    let mut t = Trainer::new(weights(), AdamW::default());
    t.options = Options { steps: 20, accumulate: 2, clip: Some(0.7), evaluate_every: 8, ..Options::default() };
    t.schedule = Some(Box::new(Falling));
    t.evaluate_with(|w| Ok(Some(w.square()?.sum(..)?.item()?)));
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = log.clone();
    t.on(move |e| {
        match e {
            Event::Evaluated { step, .. } => seen.lock().unwrap().push(format!("evaluated {step}")),
            Event::Step { report, .. } if report.step % 10 == 0 => seen.lock().unwrap().push(format!("step {}", report.step)),
            _ => {}
        }
        Ok(())
    });
    let outcome = t.run(&numbers, loss).unwrap();
    assert_eq!(t.model.to_vec::<f64>().unwrap(), by_hand.to_vec::<f64>().unwrap());
    assert_eq!(*log.lock().unwrap(), ["evaluated 0", "step 0", "evaluated 8", "step 10", "evaluated 16", "evaluated 20"]);
    assert_eq!((outcome.steps, outcome.made, outcome.skipped, outcome.stopped), (20, 20, 0, false));
    assert_eq!(outcome.evaluation, Some(by_hand.square().unwrap().sum(..).unwrap().item().unwrap()));
    assert!(outcome.clipped > 0 && outcome.grads.is_some());
}

#[test]
fn steps_that_are_not_finite_change_nothing_and_too_many_are_an_error() {
    let poisoned = |i: u64| if (3..6).contains(&i) { Tensor::full([4, 3], f64::NAN, F64) } else { numbers(i) };
    let run = |patience| {
        let mut t = Trainer::new(weights(), Sgd { lr: 0.1, momentum: 0.0, ..Sgd::default() });
        t.options = Options { steps: 10, patience, ..Options::default() };
        let outcome = t.run(&poisoned, loss);
        (t, outcome)
    };
    let (t, outcome) = run(3);
    let outcome = outcome.unwrap();
    assert_eq!((outcome.steps, outcome.skipped), (10, 3));
    let mut by_hand = weights();
    let mut sgd = Sgd { lr: 0.1, momentum: 0.0, ..Sgd::default() };
    for i in [0, 1, 2, 6, 7, 8, 9] {
        let (_, g) = value_and_grad(&by_hand, |w| loss(w, &numbers(i)?, Key::new(0))).unwrap();
        sgd.step(&mut by_hand, &g).unwrap();
    }
    assert_eq!(t.model.to_vec::<f64>().unwrap(), by_hand.to_vec::<f64>().unwrap());

    let (t, outcome) = run(2);
    let e = outcome.err().unwrap();
    assert!(e.is_argument() && e.to_string().contains("step 5") && e.to_string().contains("3 steps in a row"), "{e}");
    assert_eq!(t.step(), 5);
}

/// Shorter than the patience, and all for nothing.
#[test]
fn a_run_that_trained_nothing_is_an_error_and_skipped_steps_are_events() {
    let run = |steps, poisoned: u64| {
        let mut seen = Vec::new();
        let mut t = Trainer::new(weights(), AdamW::default());
        t.options.steps = steps;
        t.on(|e| {
            if let Event::Skipped { step, loss, in_a_row, .. } = e {
                assert!(loss.is_nan());
                seen.push((*step, *in_a_row));
            }
            Ok(())
        });
        let outcome = t.run(&|i| if i < poisoned { Tensor::full([4, 3], f64::NAN, F64) } else { numbers(i) }, loss).map(|o| o.skipped);
        drop(t);
        (outcome, seen)
    };
    let (outcome, seen) = run(3, 3);
    let e = outcome.unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("nothing was trained: in all 3 steps"), "{e}");
    assert_eq!(seen, [(0, 1), (1, 2), (2, 3)]);
    // Finite losses of batches in which no target counts: said as what they are.
    let mut empty = Trainer::new(weights(), AdamW::default());
    (empty.options.steps, empty.options.patience) = (9, 2);
    let Err(e) = empty.run(&numbers, |m: &Tensor, x: &Tensor, k| Ok(Loss::new(loss(m, x, k)?).targets(0.0))) else { panic!("trained") };
    assert!(e.to_string().contains("step 2: no targets (`Loss::targets` is 0) for 3 steps in a row"), "{e}");
    let (outcome, seen) = run(3, 2);
    assert_eq!((outcome.unwrap(), seen), (2, vec![(0, 1), (1, 2)]));
    assert_eq!(run(0, 0).0.unwrap(), 0, "no steps are no failure");
}

/// What clipping found reaches the diagnostics as they take it.
#[test]
fn step_reports_feed_the_gradient_history() {
    for clip in [Some(0.7), None] {
        let mut history = HealthHistory::new();
        let mut tracker = ClipTracker::new(10);
        let mut t = Trainer::new(weights(), AdamW::default());
        t.options = Options { steps: 6, clip, ..Options::default() };
        t.on(|event| {
            if let Event::Step { report: r, model, grads, .. } = event {
                tracker.push(&r.clipped);
                history.record(r.step as u64, *model, grads, r.loss, r.learning_rate, &r.clipped)?;
            }
            Ok(())
        });
        let outcome = t.run(&numbers, loss).unwrap();
        drop(t);
        assert_eq!((tracker.steps(), tracker.non_finite(), history.steps.len()), (6, 0, 6));
        assert_eq!(tracker.total_rate(), outcome.clipped as f64 / 6.0);
        assert_eq!(outcome.clipped > 0, clip.is_some());
        // By layer, as they were before clipping.
        for s in &history.steps {
            assert!((s.norms[0] - s.norm).abs() < 1e-5 * s.norm, "{} and {}", s.norms[0], s.norm);
        }
    }
}

/// Not a line inside the crate, whatever part refused.
#[test]
fn the_trainer_names_the_callers_line() {
    struct Negative;
    impl cotangent::optim::Schedule for Negative {
        fn at(&self, _: usize) -> f64 {
            -1.0
        }
    }
    let here = |what: &str, e: Error, line: u32| {
        let at = e.location().unwrap();
        assert!(at.file().ends_with("trainer.rs") && at.line() == line, "{what}: {e}, not line {line}");
    };
    let new = || Trainer::new(weights(), AdamW::default());
    let mut t = new();
    t.options.clip = Some(-1.0);
    here("clip", t.run(&numbers, loss).err().unwrap(), line!());
    let mut t = new();
    t.schedule = Some(Box::new(Negative));
    here("rate", t.run(&numbers, loss).err().unwrap(), line!());
    here("disconnected", new().run(&numbers, |_, x, _| x.sum(..)).err().unwrap(), line!());
    here("not scalar", new().run(&numbers, |w, x, _| x.mul(w)).err().unwrap(), line!());
    // The loss's own line says more.
    let line = line!() + 1;
    let e = new().run(&numbers, |w, x, _| x.reshape([5])?.mul(w)).err().unwrap();
    here("in the loss", e, line);
    let e = Windows::new(Tokens::from(vec![1]), 1, 4, Order::Random, Key::new(1)).unwrap_err();
    here("windows", e, line!() - 1);
}

#[test]
fn options_and_callbacks_that_fail_end_the_run() {
    let mut t = Trainer::new(weights(), AdamW::default());
    t.options.accumulate = 0;
    assert!(t.run(&numbers, loss).err().unwrap().is_argument());
    t.options = Options { clip: Some(-1.0), ..Options::default() };
    assert!(t.run(&numbers, loss).err().unwrap().is_argument());
    t.options = Options { steps: 9, ..Options::default() };
    t.on(|e| match e {
        Event::Step { report, .. } if report.step == 4 => Err(Error::io("the disk is full")),
        _ => Ok(()),
    });
    assert!(t.run(&numbers, loss).err().unwrap().is_io());
    assert_eq!(t.step(), 5, "the step itself was whole");
    assert_eq!(t.run(&numbers, loss).unwrap().made, 4);
    assert!(t.resume().unwrap_err().is_argument(), "no folder");
}

#[test]
fn prefetched_batches_are_the_same_and_errors_come_at_their_place() {
    let made = Arc::new(AtomicU64::new(0));
    let count = made.clone();
    let data = Prefetch::new(
        move |i: u64| {
            count.fetch_add(1, Relaxed);
            if i == 12 { Err(Error::io("batch 12")) } else { Ok(i * i) }
        },
        3,
    );
    for i in (0..12).chain(5..12) {
        assert_eq!(data.batch(i).unwrap(), i * i);
    }
    assert!(data.batch(12).unwrap_err().is_io());
    assert!(data.batch(12).unwrap_err().is_io(), "again");
    assert_eq!(data.batch(13).unwrap(), 169);
    drop(data);
    let n = made.load(Relaxed);
    assert!(n < 40, "{n} made: the thread runs ahead by four at most");

    let panics = Prefetch::new(|i: u64| if i == 1 { panic!("planted") } else { Ok(i) }, 0);
    assert_eq!(panics.batch(0).unwrap(), 0);
    assert!(panics.batch(1).unwrap_err().to_string().contains("panicked"));
}

#[test]
fn windows_cover_the_text_once_an_epoch() {
    let tokens = Tokens::from((0..101).collect::<Vec<u32>>());
    let new = |order| Windows::new(tokens.clone(), 2, 10, order, Key::new(4)).unwrap();
    let firsts = |w: &Windows, epoch: u64| -> Vec<i64> {
        let n = w.epoch() as u64;
        (epoch * n..(epoch + 1) * n).flat_map(|i| w.batch(i).unwrap().0.select(1, 0).unwrap().to_vec::<i64>().unwrap()).collect()
    };
    let shuffled = new(Order::Shuffled);
    assert_eq!(shuffled.epoch(), 5);
    let (one, two) = (firsts(&shuffled, 0), firsts(&shuffled, 1));
    assert_ne!(one, two, "each epoch has an order of its own");
    assert_eq!(one, firsts(&new(Order::Shuffled), 0), "which depends on the key alone");
    for mut epoch in [one, two, firsts(&new(Order::Sequential), 3)] {
        epoch.sort_unstable();
        assert_eq!(epoch, (0..10).map(|w| w * 10).collect::<Vec<_>>());
    }
    let (x, y) = new(Order::Random).batch(77).unwrap();
    assert_eq!(x.to_vec::<i64>().unwrap().iter().map(|t| t + 1).collect::<Vec<_>>(), y.to_vec::<i64>().unwrap());
    for (batch, context) in [(0, 4), (4, 0), (2, 101), (11, 10)] {
        assert!(
            Windows::new(tokens.clone(), batch, context, Order::Shuffled, Key::new(1)).unwrap_err().is_argument(),
            "{batch} × {context}"
        );
    }
    assert!(Windows::new(tokens, usize::MAX, 10, Order::Random, Key::new(1)).unwrap_err().is_out_of_memory());
}

#[test]
fn token_files_read_like_memory() {
    let folder = Folder::new("tokens");
    let key = Key::new(8);
    let ids: Vec<u32> = (0..1000).map(|i| key.below(i, 60_000) as u32).collect();
    let memory = Tokens::from(ids.clone());
    for width in [Width::U16, Width::U32] {
        let path = folder.join("tokens.bin");
        memory.save(&path, width).unwrap();
        let file = Tokens::open(&path, width).unwrap();
        assert_eq!(file.read(0, 1000).unwrap(), ids);
        let (_, tail) = file.split_at(900).unwrap();
        assert_eq!((tail.len(), tail.read(7, 20).unwrap()), (100, ids[907..927].to_vec()));
        assert!(tail.read(90, 11).unwrap_err().is_index());
        let batch = |t: &Tokens| Windows::new(t.clone(), 4, 16, Order::Random, key).unwrap().batch(5).unwrap().0.to_vec::<i64>().unwrap();
        assert_eq!(batch(&file), batch(&memory));
        // Cut short while it is open: an error, not the end of the process.
        std::fs::write(&path, [0; 8]).unwrap();
        assert!(file.read(500, 10).unwrap_err().is_io());
    }
    let path = folder.join("odd.bin");
    std::fs::write(&path, [0; 3]).unwrap();
    assert!(Tokens::open(&path, Width::U16).unwrap_err().is_corrupt_file());
    assert!(Tokens::open(folder.path(), Width::U16).unwrap_err().is_io());
    assert!(Tokens::from(vec![70_000]).save(&path, Width::U16).unwrap_err().is_index());
}

#[test]
fn tokenizers_go_there_and_back() {
    let text = "Ünïcode — 🦀 and\nlines";
    for t in [&Bytes as &dyn Tokenizer, &Characters::of(text)] {
        let ids = t.encode(text).unwrap();
        assert!(ids.iter().all(|&i| (i as usize) < t.vocabulary()));
        assert_eq!(t.decode(&ids).unwrap(), text);
        assert!(t.decode(&[100_000]).unwrap_err().is_index());
    }
    assert!(Characters::of("abc").encode("abd").unwrap_err().to_string().contains("'d' at byte 2"));
}

#[cfg(feature = "tokenizers")]
#[test]
fn tokenizer_files_encode_and_decode() {
    use cotangent::train::TokenizerFile;
    let folder = Folder::new("tokenizer");
    let path = folder.join("tokenizer.json");
    // Byte-level pairs, with the look-ahead that plain regular expressions lack.
    std::fs::write(
        &path,
        r#"{"version":"1.0","truncation":null,"padding":null,"normalizer":null,"post_processor":null,"decoder":{"type":"Fuse"},
        "added_tokens":[{"id":5,"content":"<end>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
        "pre_tokenizer":{"type":"Split","pattern":{"Regex":"\\s+(?!\\S)|\\s+|\\S+"},"behavior":"Isolated","invert":false},
        "model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,
        "byte_fallback":false,"vocab":{"a":0,"b":1," ":2,"ab":3,"abab":4},"merges":[["a","b"],["ab","ab"]]}}"#,
    )
    .unwrap();
    let t = TokenizerFile::open(&path).unwrap();
    assert_eq!(t.vocabulary(), 6);
    assert_eq!(t.encode("abab ab<end>a").unwrap(), [4, 2, 3, 5, 0]);
    assert_eq!(t.decode(&[4, 2, 3, 5, 0]).unwrap(), "abab ab<end>a");
    assert_eq!(t.decode(&[4, 99, 2]).unwrap(), "abab "); // an id without a text
    std::fs::write(&path, "{}").unwrap();
    assert!(TokenizerFile::open(&path).unwrap_err().is_corrupt_file());
    assert!(TokenizerFile::open(folder.join("gone")).unwrap_err().is_io());
}

/// Steps, evaluations and what is left out can be seen by any `tracing` subscriber.
#[test]
fn what_happens_is_logged() {
    use tracing::{Event as Logged, Metadata, Subscriber, field, span};
    struct Seen(Arc<Mutex<Vec<String>>>);
    struct Message(String);
    impl field::Visit for Message {
        fn record_debug(&mut self, field: &field::Field, value: &dyn std::fmt::Debug) {
            if field.name() == "message" {
                self.0 = format!("{value:?}");
            }
        }
    }
    impl Subscriber for Seen {
        fn enabled(&self, about: &Metadata<'_>) -> bool {
            about.target().starts_with("cotangent::train")
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, event: &Logged<'_>) {
            let mut message = Message(String::new());
            event.record(&mut message);
            self.0.lock().unwrap().push(format!("{} {}", event.metadata().level(), message.0));
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }
    let log = Arc::new(Mutex::new(Vec::new()));
    tracing::subscriber::with_default(Seen(log.clone()), || {
        let mut t = Trainer::new(weights(), AdamW::default());
        t.options.steps = 2;
        t.evaluate_with(|_| Ok(Some(1.0)));
        t.run(&|i| if i == 1 { Tensor::full([4, 3], f64::NAN, F64) } else { numbers(i) }, loss).unwrap();
    });
    assert_eq!(*log.lock().unwrap(), ["DEBUG step", "WARN not finite: the step is left out", "DEBUG step", "INFO evaluated"]);
}

/// With the mask of two documents in one window, attention gives what each gives alone.
#[test]
fn document_masks_keep_documents_apart() {
    let tokens = Tensor::from_slice(&[5i64, 6, 0, 7, 8, 9], [1, 6]).unwrap();
    let mask = document_mask(&tokens, 0).unwrap();
    let [q, k, v] = [1, 2, 3].map(|i| Tensor::randn([1, 2, 6, 4], F64, Key::new(i)).unwrap());
    let packed = q.scaled_dot_product_attention(&k, &v, Some(&mask), &SdpaOptions::default()).unwrap();
    for part in [0..3, 3..6] {
        let cut = |t: &Tensor| t.slice(2, part.clone()).unwrap();
        let alone = cut(&q).scaled_dot_product_attention(&cut(&k), &cut(&v), None, &SdpaOptions::causal()).unwrap();
        let apart = cut(&packed).sub(&alone).unwrap().abs().unwrap().max(..).unwrap().item().unwrap();
        assert!(apart < 1e-12, "{apart}");
    }
    assert!(document_mask(&q, 0).unwrap_err().is_shape());
}

#[test]
fn sampling_follows_its_distribution() {
    let logits = [1.0f64, 3.0, 2.0, 0.0, f64::NEG_INFINITY];
    let key = Key::new(2);
    let n = 20_000;
    let frequencies = |s: Sampling| {
        let mut counts = [0f64; 5];
        (0..n).for_each(|i| counts[s.draw(&logits, key.uniform_f64(i)).unwrap()] += 1.0);
        counts.map(|c| c / n as f64)
    };
    let softmax = |t: f64, keep: &[usize]| {
        let w: Vec<f64> = (0..5).map(|i| if keep.contains(&i) { (logits[i] / t).exp() } else { 0.0 }).collect();
        w.iter().map(|x| x / w.iter().sum::<f64>()).collect::<Vec<_>>()
    };
    // Probabilities at temperature 1: 0.644, 0.237, 0.087, 0.032, 0.
    for (sampling, expected) in [
        (Sampling::default(), softmax(1.0, &[0, 1, 2, 3])),
        (Sampling { temperature: 0.5, ..Sampling::default() }, softmax(0.5, &[0, 1, 2, 3])),
        (Sampling { top_k: Some(2), ..Sampling::default() }, softmax(1.0, &[1, 2])),
        (Sampling { top_k: Some(99), ..Sampling::default() }, softmax(1.0, &[0, 1, 2, 3])),
        (Sampling { top_p: 0.8, ..Sampling::default() }, softmax(1.0, &[1, 2])),
        (Sampling { top_p: 0.1, ..Sampling::default() }, softmax(1.0, &[1])),
        (Sampling { top_k: Some(3), top_p: 0.95, ..Sampling::default() }, softmax(1.0, &[0, 1, 2])),
        (Sampling::GREEDY, softmax(1.0, &[1])),
    ] {
        for (i, (f, e)) in frequencies(sampling).iter().zip(&expected).enumerate() {
            // Five standard deviations.
            let tolerance = 5.0 * (e * (1.0 - e) / n as f64).sqrt();
            assert!((f - e).abs() <= tolerance, "{sampling:?}: token {i} came {f}, expected {e}");
        }
    }
    // Of equals the first, zeros of either sign included.
    for (ties, first) in [(&[1.0, 3.0, 3.0, 0.0, 3.0][..], 1), (&[-0.0, 0.0], 0), (&[0.0, -0.0], 0)] {
        assert_eq!(Sampling::GREEDY.draw(ties, 0.99).unwrap(), first, "{ties:?}");
    }
    for bad in [Sampling { temperature: -1.0, ..Sampling::default() }, Sampling { top_k: Some(0), ..Sampling::default() }] {
        assert!(bad.draw(&logits, 0.5).unwrap_err().is_argument());
    }
    assert!(Sampling { top_p: f64::NAN, ..Sampling::default() }.draw(&logits, 0.5).is_err());
    for bad in [&[][..], &[f64::NAN, 1.0], &[-f64::NAN, 1.0], &[f64::INFINITY, 1.0], &[f64::NEG_INFINITY]] {
        assert!(Sampling::default().draw(bad, 0.5).unwrap_err().is_argument(), "{bad:?}");
    }
}

#[test]
fn metrics_continue_where_the_snapshot_was() {
    let folder = Folder::new("metrics");
    let (csv, jsonl) = (folder.join("metrics.csv"), folder.join("metrics.jsonl"));
    let read = |p: &std::path::Path| std::fs::read_to_string(p).unwrap();
    let mut table = Csv::open(&csv, &["loss", "validation_loss"], 0).unwrap();
    let mut lines = Jsonl::open(&jsonl, 0).unwrap();
    for step in 0..4 {
        for sink in [&mut table as &mut dyn MetricSink, &mut lines] {
            sink.write(step, &[("loss", 1.0 / (step as f64 - 2.0))]).unwrap();
        }
    }
    assert_eq!(read(&csv), "step,loss,validation_loss\n0,-0.5,\n1,-1,\n2,inf,\n3,1,\n");
    assert!(read(&jsonl).ends_with("{\"loss\":\"inf\",\"step\":2}\n{\"loss\":1.0,\"step\":3}\n"), "{}", read(&jsonl));
    assert!(table.write(4, &[("unknown", 1.0)]).unwrap_err().is_argument());
    // A killed process may leave half a line; the snapshot was after step 2.
    for (path, half) in [(&csv, "4,0."), (&jsonl, "{\"loss\":0.")] {
        std::fs::write(path, read(path) + half).unwrap();
    }
    let mut table = Csv::open(&csv, &["loss", "validation_loss"], 2).unwrap();
    table.write(2, &[("validation_loss", 7.0)]).unwrap();
    assert_eq!(read(&csv), "step,loss,validation_loss\n0,-0.5,\n1,-1,\n2,,7\n");
    // Nothing goes before something comes.
    let mut lines = Jsonl::open(&jsonl, 2).unwrap();
    assert!(read(&jsonl).ends_with("\n{\"loss\":0."));
    lines.write(2, &[("loss", 7.0)]).unwrap();
    assert_eq!(read(&jsonl).lines().count(), 3);
    assert!(Csv::open(&csv, &["other"], 2).unwrap_err().is_corrupt_file());
    // From step 0 on all is new, and what was there is kept; half a title is what a killed process left.
    let (old, begin) = (read(&csv), |csv| Csv::open(csv, &["loss", "validation_loss"], 0).unwrap().write(0, &[("loss", 2.0)]).unwrap());
    begin(&csv);
    assert_eq!(read(&csv), "step,loss,validation_loss\n0,2,\n");
    assert_eq!(read(&folder.join("metrics.csv.old")), old);
    std::fs::write(&csv, "step,lo").unwrap();
    begin(&csv);
    assert_eq!(read(&csv), "step,loss,validation_loss\n0,2,\n");
}

/// A file that is no table of this kind is somebody else's: it is refused, at step 0 too, and stays.
#[test]
fn files_of_others_are_no_metrics() {
    let folder = Folder::new("foreign");
    let path = folder.join("precious");
    let table = |step| Csv::open(&path, &["loss"], step).map(drop);
    let lines = |step| Jsonl::open(&path, step).map(drop);
    for step in [0, 5] {
        for (foreign, csv, jsonl) in [
            ("name,age\nAda,36\n", false, false),
            ("name,age", false, false),
            ("step,loss\n1,2\nthe end\n", false, false),
            ("step,loss\n1,2\n", true, false),
            ("{\"step\":1}\nnot json\n{\"step\":2}\n", false, false),
            ("{\"step\":1}\n{\"name\":2}\n", false, false),
            ("{\"name\":2}", false, false),
            ("{\"step\":1}\n{\"lo", false, true),
        ] {
            for (open, legal) in [(&table as &dyn Fn(usize) -> Result<()>, csv), (&lines, jsonl)] {
                std::fs::write(&path, foreign).unwrap();
                match open(step) {
                    Ok(()) => assert!(legal, "{foreign:?} was taken at step {step}"),
                    Err(e) => {
                        assert!(!legal && e.is_corrupt_file() && e.to_string().contains("precious"), "{foreign:?}: {e}");
                        assert_eq!(std::fs::read_to_string(&path).unwrap(), foreign, "stays");
                    }
                }
            }
        }
    }
}

/// Reads the records back: lengths, checksums (by a definition of CRC-32C bit by bit), and the scalars in them.
#[test]
fn event_files_hold_checked_records() {
    let folder = Folder::new("tensorboard");
    let mut t = Trainer::new(weights(), AdamW::default());
    t.options.steps = 3;
    t.on(record(TensorBoard::create(folder.path(), 300).unwrap()));
    t.run(&numbers, loss).unwrap();
    drop(t);
    let crc = |bytes: &[u8]| {
        let sum =
            !bytes.iter().fold(!0u32, |c, b| (0..8).fold(c ^ u32::from(*b), |c, _| c >> 1 ^ if c & 1 == 1 { 0x82f6_3b78 } else { 0 }));
        sum.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
    };
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(file).unwrap();
    let (mut rest, mut events) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let n = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(rest[8..12], crc(&rest[..8]));
        assert_eq!(rest[12 + n..16 + n], crc(&rest[12..12 + n]));
        events.push(&rest[12..12 + n]);
        rest = &rest[16 + n..];
    }
    assert_eq!(events.len(), 2 + 3);
    assert!(events[0].ends_with(b"\x1a\x0dbrain.Event:2"));
    assert!(events[1].ends_with(&[0x10, 0xac, 0x02, 0x3a, 0x02, 0x08, 0x01]), "step 300 starts the session: {:x?}", events[1]);
    let contains = |e: &[u8], part: &[u8]| e.windows(part.len()).any(|w| w == part);
    for e in &events[2..] {
        assert!(contains(e, b"\x0a\x04loss\x15") && contains(e, b"\x0a\x0dgradient_norm\x15"));
    }
}

#[test]
fn rows_cover_the_tensors_once_an_epoch() -> Result<()> {
    let x = Tensor::arange(0.0, 10.0, 1.0, I64)?;
    let pair = (x.reshape([5, 2])?, Tensor::arange(0.0, 5.0, 1.0, F32)?);
    let rows = Rows::new(pair.clone(), 2, Order::Shuffled, Key::new(1))?;
    let mut orders = Vec::new();
    for epoch in 0..4 {
        let mut seen = Vec::new();
        for i in 0..rows.epoch() as u64 {
            let (x, y) = rows.batch(epoch * rows.epoch() as u64 + i)?;
            for (row, n) in x.to_vec::<i64>()?.chunks(2).zip(y.to_vec::<f32>()?) {
                assert_eq!(row, [2 * n as i64, 2 * n as i64 + 1]);
                seen.push(n as i64);
            }
        }
        orders.push(seen.clone());
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 4); // the fifth row waits for another epoch
    }
    assert!(orders.iter().any(|o| *o != orders[0]));
    assert_eq!(Rows::new(pair.clone(), 2, Order::Sequential, Key::new(1))?.batch(4)?.1.to_vec::<f32>()?, [2.0, 3.0]);
    assert_eq!(Rows::new(pair.clone(), 3, Order::Random, Key::new(1))?.batch(7)?.0.shape(), &[3, 2]);
    for batch in [0, 6] {
        assert!(Rows::new(pair.clone(), batch, Order::Random, Key::new(1)).unwrap_err().is_argument());
    }
    assert!(Rows::new((), 1, Order::Random, Key::new(1)).unwrap_err().is_argument());
    let e = Rows::new((pair.0, Tensor::zeros([4], F32)?), 1, Order::Random, Key::new(1)).unwrap_err();
    assert!(e.is_shape() && e.to_string().contains("has 4 rows, the tensors before it have 5"), "{e}");
    assert!(Rows::new(Tensor::scalar(1f32)?, 1, Order::Random, Key::new(1)).unwrap_err().is_shape());
    Ok(())
}
