//! What optimizers remember: saved, loaded and continued; refused when it is another's.

use cotangent::optim::{Adam, AdamW, Group, Muon, Optimizer, Sgd, State};
use cotangent::{BF16, DType, F32, F64, Grads, Key, Module, Param, Result, Tensor, grad, module, nn::Linear};

#[derive(Clone, Debug)]
struct Net {
    a: Linear,
    gain: Param,
}
module!(Net { a, gain });

fn net(dtype: DType) -> Net {
    Net { a: Linear::new(5, 7, dtype, Key::new(1)).unwrap(), gain: Tensor::randn([7], dtype, Key::new(2)).unwrap().into() }
}

fn gradient(m: &Net, step: u64) -> Grads<Net> {
    let x = Tensor::randn([3, 5], m.gain.dtype(), Key::new(100 + step)).unwrap();
    grad(m, |m| m.a.forward(&x)?.mul(&m.gain)?.tanh()?.square()?.sum(..)).unwrap()
}

fn bits(m: &Net) -> Vec<(String, Vec<u64>)> {
    m.named_tensors().into_iter().map(|(n, t)| (n, t.to_f64_vec().unwrap().iter().map(|v| v.to_bits()).collect())).collect()
}

type Make = fn() -> Box<dyn Optimizer<Net>>;

/// Every optimizer, with options that keep all there is to keep.
fn all() -> Vec<Make> {
    vec![
        || Box::new(AdamW { lr: 1e-2, amsgrad: true, groups: vec![Group::new(|n, _| n == "gain").lr(0.5)], ..AdamW::default() }),
        || Box::new(AdamW { lr: 1e-2, ..AdamW::default() }),
        || Box::new(Adam { lr: 1e-2, weight_decay: 0.1, ..Adam::default() }),
        || Box::new(Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.1, ..Sgd::new(0.05) }),
        || Box::new(Sgd { momentum: 0.9, dampening: 0.3, ..Sgd::new(0.05) }),
        || Box::new(Sgd::new(0.05)),
        || Box::new(Muon { lr: 1e-2, ..Muon::default() }),
    ]
}

/// A resumed run is the run [D23]. State is taken in the middle and carried into a new optimizer through host values, as
/// a file carries it; half precision includes the masters.
#[test]
fn a_loaded_optimizer_continues_bitwise() {
    for (i, make) in all().into_iter().enumerate() {
        for dtype in [F32, F64, BF16] {
            let (mut model, mut optimizer) = (net(dtype), make());
            for s in 0..3 {
                let g = gradient(&model, s);
                optimizer.step(&mut model, &g).unwrap();
            }
            let State { mut tensors, numbers } = optimizer.state();
            for t in tensors.values_mut() {
                let copy = Tensor::from_slice(&t.to_f64_vec().unwrap(), t.shape().clone()).unwrap().cast(t.dtype()).unwrap();
                assert!(!copy.shares_storage(t));
                *t = copy;
            }
            let mut other = make();
            other.load_state(State { tensors, numbers }).unwrap();
            let mut copy = model.map(|_, t| Tensor::from_slice(&t.to_f64_vec()?, t.shape().clone())?.cast(t.dtype())).unwrap();
            for s in 3..6 {
                let g = gradient(&model, s);
                optimizer.step(&mut model, &g).unwrap();
                let g = gradient(&copy, s);
                other.step(&mut copy, &g).unwrap();
                assert_eq!(bits(&model), bits(&copy), "optimizer {i} in {dtype}, step {s}");
            }
            assert_ne!(bits(&model), bits(&net(dtype)), "optimizer {i} moved nothing");
            let (a, b) = (optimizer.state(), other.state());
            assert_eq!(a.numbers, b.numbers);
            assert_eq!(a.tensors.keys().collect::<Vec<_>>(), b.tensors.keys().collect::<Vec<_>>());
        }
    }
}

fn stepped(mut optimizer: impl Optimizer<Net>, dtype: DType) -> State {
    let mut m = net(dtype);
    let g = gradient(&m, 0);
    optimizer.step(&mut m, &g).unwrap();
    optimizer.state()
}

/// A snapshot that was taken before later steps does not change with them.
#[test]
fn a_state_is_a_value() {
    let (mut m, mut adam) = (net(F32), AdamW::default());
    let g = gradient(&m, 0);
    adam.step(&mut m, &g).unwrap();
    let state = adam.state();
    let before = state.tensors["adamw.exp_avg.a.weight"].to_vec::<f32>().unwrap();
    adam.step(&mut m, &g).unwrap();
    assert_eq!(state.tensors["adamw.exp_avg.a.weight"].to_vec::<f32>().unwrap(), before);
    assert_ne!(adam.moments("a.weight").unwrap().0.to_vec::<f32>().unwrap(), before);
    assert_eq!(state.numbers["adamw.steps"], 1.0);
}

#[test]
fn state_of_another_is_refused_by_name() {
    let state = stepped(AdamW::default(), F32);
    let refused = |e: Result<()>, words: &[&str]| {
        let e = e.unwrap_err().to_string();
        assert!(words.iter().all(|w| e.contains(w)), "{e}: expected {words:?}");
    };
    // Another optimizer; an incomplete state; a count that is none.
    refused(Sgd::new(0.1).load_state(state.clone()), &["sgd: ", "`adamw."]);
    refused(Adam::default().load_state(state.clone()), &["adam: ", "`adamw."]);
    refused(AdamW::default().load_state(State::default()), &["`adamw.steps`"]);
    let mut odd = state.clone();
    odd.numbers.insert("adamw.steps".into(), 1.5);
    refused(AdamW::default().load_state(odd), &["`adamw.steps`", "1.5"]);
    let mut odd = state.clone();
    odd.numbers.remove("adamw.steps.gain");
    refused(AdamW::default().load_state(odd), &["`adamw.exp_avg.gain`"]);
    // A damaged one: shapes that differ among themselves, a dtype that moments never have.
    for (t, word) in [(Tensor::zeros([8], F32).unwrap(), "[8]"), (Tensor::zeros([7], BF16).unwrap(), "bf16")] {
        let mut odd = state.clone();
        odd.tensors.insert("adamw.exp_avg.gain".into(), t);
        refused(AdamW::default().load_state(odd), &["`gain`", word]);
    }
    // Other options, another dtype, another model: seen in the step, before anything changes.
    let try_step = |mut adam: AdamW, state: State, model: &mut Net| {
        adam.load_state(state).unwrap();
        let (before, g) = (bits(model), gradient(model, 1));
        let result = adam.step(model, &g);
        assert_eq!(bits(model), before);
        result
    };
    refused(try_step(AdamW { amsgrad: true, ..AdamW::default() }, state.clone(), &mut net(F32)), &["max_exp_avg_sq", "`a.bias`"]);
    let amsgrad = stepped(AdamW { amsgrad: true, ..AdamW::default() }, F32);
    refused(try_step(AdamW::default(), amsgrad, &mut net(F32)), &["max_exp_avg_sq", "`a.bias`"]);
    refused(try_step(AdamW::default(), state.clone(), &mut net(F64)), &["`a.weight`", "f64", "f32"]);
    refused(try_step(AdamW::default(), stepped(AdamW::default(), BF16), &mut net(F32)), &["`a.weight`", "master"]);
    let wide = Net { a: Linear::new(5, 7, F32, Key::new(1)).unwrap(), gain: Tensor::ones([1], F32).unwrap().into() };
    refused(try_step(AdamW::default(), state.clone(), &mut wide.clone()), &["`gain`", "[1]", "[7]"]);
    let mut bare = net(F32);
    bare.a.bias = None;
    refused(try_step(AdamW::default(), state.clone(), &mut bare), &["`a.bias`"]);
    let mut few = state.clone();
    few.tensors.retain(|n, _| !n.ends_with("gain"));
    few.numbers.retain(|n, _| !n.ends_with("gain"));
    refused(try_step(AdamW::default(), few.clone(), &mut net(F32)), &["`gain`"]);
    // An optimizer that has stepped knows its parameters and refuses at once.
    let (mut m, mut adam) = (net(F32), AdamW::default());
    let g = gradient(&m, 0);
    adam.step(&mut m, &g).unwrap();
    refused(adam.load_state(few), &["`gain`"]);
    refused(adam.load_state(stepped(AdamW::default(), F64)), &["`a.bias`", "f64", "f32"]);
    adam.load_state(state).unwrap();
    assert_eq!(adam.steps(), 1);
}

#[test]
fn learning_rates_are_checked() {
    for make in all() {
        let mut o = make();
        o.set_learning_rate(0.125).unwrap();
        for bad in [f64::NAN, f64::INFINITY, -1.0] {
            assert!(o.set_learning_rate(bad).unwrap_err().is_argument());
        }
        assert_eq!(o.learning_rate(), 0.125);
    }
}
