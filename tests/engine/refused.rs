//! Arguments that make no sense, and questions that cannot be answered: refused or said, never passed over.

use cotangent::diagnostics::{Alignment, HealthHistory, HealthReport, Misalignment, Trace, detect_anomaly};
use cotangent::nn::Linear;
use cotangent::optim::{Adam, AdamW, Clipped, Decay, Group, Muon, Optimizer, Sgd, Warmup, WarmupCosine};
use cotangent::{BF16, Error, F32, F64, Grads, Key, Module, Result, Tape, Tensor, grad};

fn linear(inputs: usize) -> (Linear, Tensor) {
    (Linear::new(inputs, 2, F32, Key::new(1)).unwrap(), Tensor::randn([4, inputs], F32, Key::new(2)).unwrap())
}

fn grads(layer: &Linear, x: &Tensor) -> Result<Grads<Linear>> {
    grad(layer, |l| l.forward(x)?.square()?.mean(..))
}

/// The message of a refusal that points here.
fn refused<T>(what: &str, result: Result<T>) -> String {
    let Err(e) = result else { panic!("{what} was not refused") };
    here(what, &e);
    e.to_string()
}

fn here(what: &str, e: &Error) {
    assert!(e.location().is_some_and(|at| at.file().ends_with("tests/engine/refused.rs")), "{what} points into the crate: {e}");
}

#[test]
fn a_bare_layer_is_traced_as_the_root() -> Result<()> {
    let (layer, x) = linear(3);
    let (_, trace) = Trace::of(&layer, |l| l.forward(&x))?;
    assert_eq!(trace.entries().iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["(root):input", "(root)"]);
    let (_, other) = Trace::of(&layer.map(|_, t| t.mul_scalar(1.1))?, |l| l.forward(&x))?;
    assert_eq!(other.compare(&trace, 1e-5)?.first().map(|d| d.name.as_str()), Some("(root)"));
    let nothing = Trace::from_values([]).unwrap();
    assert!(refused("empty", nothing.compare(&trace, 1e-5)).contains("this trace is empty"));
    assert!(refused("empty", trace.compare(&nothing, 1e-5)).contains("the reference is empty"));
    Ok(())
}

#[test]
fn a_trace_refuses_tolerances_and_says_not_finite() -> Result<()> {
    let trace = |v: [f64; 3]| Trace::from_values([("a".to_owned(), Tensor::from_slice(&v, [3]).unwrap())]).unwrap();
    let plain = trace([1.0, 2.0, 3.0]);
    for bad in [-1.0, f64::NAN] {
        assert!(refused("tolerance", plain.compare(&plain, bad)).contains("must not be negative or NaN"));
    }
    let nan = trace([1.0, f64::NAN, 3.0]);
    let found = nan.compare(&nan, 1e-5)?.verdict();
    assert!(found.as_ref().is_some_and(|v| v.contains("not finite: 1 of 3 values here, 1 in the reference")), "{found:?}");
    // An infinity on both sides agrees, and hides nothing beside it.
    let infinite = trace([1.0, f64::INFINITY, 3.0]);
    assert!(infinite.compare(&infinite, 1e-5)?.first().is_none());
    assert!(infinite.compare(&trace([2.0, f64::INFINITY, 3.0]), 1e-5)?.first().is_some());
    Ok(())
}

#[test]
fn alignment_says_when_it_cannot_judge() -> Result<()> {
    let check = |x: &[i64], y: &[i64], shape: [usize; 2]| {
        let (x, y) = (Tensor::from_slice(x, shape)?, Tensor::from_slice(y, shape)?);
        Alignment::default().check(&x, &y, |ids| format!("{ids:?}"))
    };
    for report in [check(&[], &[], [0, 6])?, check(&[3, 4], &[9, 9], [2, 1])?] {
        assert_eq!(report.findings, [Misalignment::NothingCompared]);
        assert!(report.to_string().starts_with("UNCLEAR: nothing could be compared"), "{report}");
    }
    let same = check(&[5; 6], &[5; 6], [2, 3])?;
    assert!(same.findings == [Misalignment::CannotTell] && !same.is_aligned(), "{same}");
    assert!(check(&[5, 5, 6], &[5, 6, 7], [1, 3])?.is_aligned());
    Ok(())
}

#[test]
fn health_refuses_gradients_of_another_model() -> Result<()> {
    let ((small, _), (large, x)) = (linear(3), linear(5));
    let g = grads(&large, &x)?;
    let clip = Clipped { norm: 1.0, clipped: false, finite: true };
    assert!(refused("shapes", HealthReport::new(&small, &g)).contains("`weight` has shape [2, 5], the parameter [2, 3]"));
    assert!(refused("history", HealthHistory::new().record(0, &small, &g, 1.0, 0.1, &clip)).starts_with("health_history"));
    let mut frozen = large.clone();
    assert_eq!(frozen.freeze(|n| n == "bias"), 1);
    assert!(refused("frozen", HealthReport::new(&frozen, &g)).contains("no trainable `bias`"));
    assert!(refused("thawed", HealthReport::new(&large, &grads(&frozen, &x)?)).contains("have no `bias`"));
    assert!(HealthReport::new(&large, &g)?.rows.len() == 2);
    Ok(())
}

#[test]
fn optimizers_refuse_numbers_out_of_range_and_groups_that_match_nothing() -> Result<()> {
    let (layer, x) = linear(3);
    let g = grads(&layer, &x)?;
    let all = |lr: f64, weight_decay: f64, groups: Vec<Group>| -> Vec<Box<dyn Optimizer<Linear>>> {
        vec![
            Box::new(AdamW { lr, weight_decay, groups: groups.clone(), ..AdamW::default() }),
            Box::new(Adam { lr, weight_decay, groups: groups.clone(), ..Adam::default() }),
            Box::new(Sgd { lr, weight_decay, groups: groups.clone(), ..Sgd::default() }),
            Box::new(Muon { lr, weight_decay, groups, ..Muon::default() }),
        ]
    };
    let bias = || Group::new(|name, _| name == "bias");
    let wrong = [
        (-1.0, 0.1, vec![], "found -1, 0.1"),
        (0.1, -1.0, vec![], "found 0.1, -1"),
        (0.1, 0.1, vec![bias().lr(-1.0)], "groups[0]"),
        (0.1, 0.1, vec![bias(), bias().weight_decay(-1.0)], "groups[1]"),
        (
            0.1,
            0.1,
            vec![bias(), Group::new(|name, _| name == "biass")],
            "groups[1] matches no parameter of the model, which has: weight, bias",
        ),
    ];
    for (lr, decay, groups, says) in wrong {
        for mut optimizer in all(lr, decay, groups) {
            let mut model = layer.clone();
            let Err(e) = optimizer.step(&mut model, &g) else { panic!("not refused: {says}") };
            assert!(e.to_string().contains(says), "{e}");
            assert_eq!(model.weight.to_vec::<f32>()?, layer.weight.to_vec::<f32>()?);
        }
    }
    // A group of frozen parameters matches; one added later is asked, too.
    let (mut frozen, mut adam) = (layer.clone(), AdamW { groups: vec![bias()], ..AdamW::default() });
    assert_eq!(frozen.freeze(|n| n == "bias"), 1);
    let g = grads(&frozen, &x)?;
    adam.step(&mut frozen, &g)?;
    adam.groups.push(Group::new(|_, _| false));
    assert!(refused("added", adam.step(&mut frozen, &g)).contains("groups[1]"));
    Ok(())
}

#[test]
fn schedules_can_be_checked() {
    let good = WarmupCosine { peak: 1.0, floor: 0.1, warmup: 4, end: 14 };
    good.check().unwrap();
    for bad in [WarmupCosine { floor: 2.0, ..good }, WarmupCosine { warmup: 15, ..good }, WarmupCosine { peak: f64::NAN, ..good }] {
        assert!(refused("schedule", bad.check()).starts_with("schedule"));
    }
    let wsd = |from, end| Warmup { peak: 1.0, warmup: 4, decay: Decay::Wsd { from, end, floor: 0.0 } };
    wsd(8, 9).check().unwrap();
    refused("wsd", wsd(10, 9).check());
    Warmup { peak: 1.0, warmup: 4, decay: Decay::InverseSqrt }.check().unwrap();
}

#[test]
fn walks_over_a_model_name_the_callers_line() -> Result<()> {
    let (layer, x) = linear(3);
    let tape = Tape::new();
    let watched = layer.watch(&tape)?;
    refused("watch", watched.watch(&tape));
    refused("cast", Tensor::zeros([1 << 60], F64)?.named_cast());
    let broken = layer.map(|_, t| t.mul_scalar(f64::NAN))?;
    assert!(refused("anomaly", detect_anomaly(&broken, |l| l.forward(&x)?.sum(..))).contains("not finite before the first op"));
    Ok(())
}

trait NamedCast: Module + Clone {
    /// `Module::cast` of a type that has its own `cast`.
    #[track_caller]
    fn named_cast(&self) -> Result<Self> {
        Module::cast(self, BF16)
    }
}

impl NamedCast for Tensor {}
