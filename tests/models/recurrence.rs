//! Recurrent layers over sequences, attention over a memory and transformer layers against PyTorch's: values, states and every gradient, in
//! float64. `scripts/update_layer_fixtures.py` makes the numbers.

use cotangent::io::TensorFile;
use cotangent::nn::{
    Activation, Attend, AttentionConfig, Gru, GruCell, KvCache, Layer, Linear, Lstm, LstmCell, MultiHeadAttention, NormOrder, Recur,
    RecurrentConfig, Rnn, RnnCell, TransformerConfig, TransformerDecoderLayer, TransformerEncoderLayer, from_torch,
};
use cotangent::{Error, F32, F64, GradOptions, I64, Key, Module, Result, Tensor, gradcheck_module, value_and_grad_with_aux};
use std::collections::BTreeMap;

struct Fixture(BTreeMap<String, Tensor>);

impl Fixture {
    fn open() -> Result<Self> {
        let file = TensorFile::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/layers.safetensors"))?;
        Ok(Fixture(file.names().map(|n| Ok((n.to_owned(), file.tensor(n)?))).collect::<Result<_>>()?))
    }

    fn under(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let found: BTreeMap<_, _> =
            self.0.iter().filter_map(|(n, t)| n.strip_prefix(&format!("{prefix}.")).map(|n| (n.to_owned(), t.clone()))).collect();
        assert!(!found.is_empty(), "{prefix}");
        found
    }

    /// Loads a case's parameters, and compares outputs, gradients of parameters and of inputs.
    fn compare<M, F>(&self, case: &str, mut module: M, f: F) -> Result<()>
    where
        M: Module + Clone,
        F: Fn(&M, &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>>,
    {
        module.load_named(&from_torch(self.under(&format!("{case}.param")))?)?;
        let inputs = self.under(&format!("{case}.in"));
        let (weights, outputs) = (self.under(&format!("{case}.weight")), self.under(&format!("{case}.out")));
        let tree = (module, inputs);
        let (_, got, grads) = value_and_grad_with_aux(&tree, GradOptions::default(), |(m, x)| {
            let y = f(m, x)?;
            let mut loss = Tensor::scalar(0f64)?;
            for (name, y) in &y {
                loss = loss.add(&y.mul(&weights[name])?.sum(..)?)?;
            }
            Ok((loss, y))
        })?;
        assert_eq!(got.keys().collect::<Vec<_>>(), outputs.keys().collect::<Vec<_>>(), "{case}");
        for (name, want) in &outputs {
            same(&format!("{case}.out.{name}"), &got[name], want)?;
        }
        let mut wanted = self.under(&format!("{case}.grad"));
        let inputs: BTreeMap<String, Tensor> =
            wanted.iter().filter_map(|(n, t)| n.strip_prefix("in.").map(|n| (format!("1.{n}"), t.clone()))).collect();
        wanted.retain(|n, _| !n.starts_with("in."));
        let mut wanted: BTreeMap<String, Tensor> = from_torch(wanted)?.into_iter().map(|(n, t)| (format!("0.{n}"), t)).collect();
        wanted.extend(inputs);
        let named = grads.named();
        assert_eq!(named.len(), wanted.len(), "{case}");
        for (name, g) in named {
            same(&format!("{case}.grad.{name}"), &g, &wanted[&name])?;
        }
        Ok(())
    }
}

fn same(what: &str, got: &Tensor, want: &Tensor) -> Result<()> {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let (a, b) = (got.to_f64_vec()?, want.to_f64_vec()?);
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        assert!((a - b).abs() <= 1e-11 * b.abs().max(1.0), "{what}[{i}]: {a}, PyTorch {b}");
    }
    Ok(())
}

fn named<const N: usize>(parts: [(&str, Tensor); N]) -> BTreeMap<String, Tensor> {
    parts.into_iter().map(|(n, t)| (n.to_owned(), t)).collect()
}

fn lengths(x: &BTreeMap<String, Tensor>) -> Result<Option<Vec<usize>>> {
    x.get("lengths").map(|t| Ok(t.to_vec::<i64>()?.into_iter().map(|n| n.try_into().unwrap()).collect())).transpose()
}

/// `nn.LSTM(num_layers, bidirectional)` and its relatives.
#[test]
fn recurrent_layers_give_pytorchs_values_and_gradients() -> Result<()> {
    let fixture = Fixture::open()?;
    for (tag, layers, bidirectional) in [("1", 1, false), ("2", 2, false), ("2b", 2, true)] {
        let config = RecurrentConfig { inputs: 4, hidden: 3, layers, bidirectional, dropout: 0.0 };
        for kind in ["", "zero", "packed"] {
            fixture.compare(&format!("lstm{tag}{kind}"), Lstm::new(&config, F64, Key::new(1))?, |m, x| {
                let lengths = lengths(x)?;
                let state = x.get("h").zip(x.get("c"));
                let (y, (h, c)) = m.forward_with(&x["x"], state, Recur { lengths: lengths.as_deref(), key: None })?;
                Ok(named([("y", y), ("h", h), ("c", c)]))
            })?;
        }
        for kind in ["", "packed"] {
            fixture.compare(&format!("gru{tag}{kind}"), Gru::new(&config, F64, Key::new(1))?, |m, x| {
                let lengths = lengths(x)?;
                let (y, h) = m.forward_with(&x["x"], Some(&x["h"]), Recur { lengths: lengths.as_deref(), key: None })?;
                Ok(named([("y", y), ("h", h)]))
            })?;
        }
        fixture.compare(&format!("rnn{tag}"), Rnn::new(&config, F64, Key::new(1))?, |m, x| {
            let (y, h) = m.forward(&x["x"], Some(&x["h"]))?;
            Ok(named([("y", y), ("h", h)]))
        })?;
    }
    Ok(())
}

#[test]
fn a_sequence_is_its_steps_and_its_pieces() -> Result<()> {
    let config = RecurrentConfig { inputs: 3, hidden: 4, ..RecurrentConfig::default() };
    let (x, h) = (Tensor::randn([2, 5, 3], F64, Key::new(1))?, Tensor::randn([1, 2, 4], F64, Key::new(2))?);
    let (lstm, gru) = (Lstm::new(&config, F64, Key::new(3))?, Gru::new(&config, F64, Key::new(4))?);
    let (all, (last, _)) = lstm.forward(&x, Some((&h, &h)))?;
    let (mut a, mut b) = (h.select(0, 0)?, h.select(0, 0)?);
    let mut g = h.select(0, 0)?;
    let (gated, _) = gru.forward(&x, Some(&h))?;
    for t in 0..5 {
        (a, b) = lstm.cells[0].forward(&x.select(1, t)?, (&a, &b))?;
        same("step", &a, &all.select(1, t)?)?;
        g = gru.cells[0].forward(&x.select(1, t)?, &g)?;
        same("step", &g, &gated.select(1, t)?)?;
    }
    same("last", &a, &last.select(0, 0)?)?;
    let (first, (h1, c1)) = lstm.forward(&x.narrow(1, 0, 2)?, Some((&h, &h)))?;
    let (rest, _) = lstm.forward(&x.narrow(1, 2, 3)?, Some((&h1, &c1)))?;
    same("pieces", &Tensor::concat(&[&first, &rest], 1)?, &all)?;

    // Lengths: a row is as if alone and cut; a length of 0 leaves the state as it was. Padding of NaN changes nothing.
    let both = RecurrentConfig { bidirectional: true, layers: 2, ..config.clone() };
    let m = Lstm::new(&both, F64, Key::new(5))?;
    let pad = Tensor::full([1, 2, 3], f64::NAN, F64)?;
    let x = Tensor::concat(&[&x.narrow(0, 0, 1)?, &Tensor::concat(&[&x.narrow(0, 1, 1)?.narrow(1, 0, 3)?, &pad], 1)?], 0)?;
    let (y, (hs, _)) = m.forward_with(&x, None, Recur { lengths: Some(&[5, 3]), key: None })?;
    let (alone, (h_alone, _)) = m.forward(&x.narrow(0, 1, 1)?.narrow(1, 0, 3)?, None)?;
    same("alone", &y.narrow(0, 1, 1)?.narrow(1, 0, 3)?, &alone)?;
    same("state alone", &hs.narrow(1, 1, 1)?, &h_alone)?;
    assert_eq!(y.narrow(0, 1, 1)?.narrow(1, 3, 2)?.to_f64_vec()?, vec![0.0; 16]);
    let (y, (hs, _)) = m.forward_with(&x, None, Recur { lengths: Some(&[5, 0]), key: None })?;
    assert_eq!((y.select(0, 1)?.abs()?.sum(..)?.item()?, hs.select(1, 1)?.abs()?.sum(..)?.item()?), (0.0, 0.0));

    // As a layer, with dropout between layers only in training; and by finite differences, bidirectional and packed.
    let dropping = Lstm { config: RecurrentConfig { dropout: 0.5, ..both.clone() }, ..m.clone() };
    let x = Tensor::randn([2, 3, 3], F64, Key::new(6))?;
    same("no key", &dropping.call(&x, None)?, &m.call(&x, None)?)?;
    let (a, b) = (dropping.call(&x, Some(Key::new(1)))?, dropping.call(&x, Some(Key::new(2)))?);
    assert_ne!(a.to_f64_vec()?, b.to_f64_vec()?);
    let small = RecurrentConfig { inputs: 3, hidden: 2, bidirectional: true, ..RecurrentConfig::default() };
    let net = (Lstm::new(&small, F64, Key::new(7))?, Linear::new(4, 1, F64, Key::new(1))?);
    gradcheck_module(&net, |m| m.1.forward(&m.0.forward_with(&x, None, Recur { lengths: Some(&[3, 2]), key: None })?.0))?;
    Ok(())
}

/// An LSTM state of another batch is named; it was "shapes do not broadcast".
#[test]
fn a_state_of_another_batch_is_called_one() -> Result<()> {
    let says = |e: Error, text: &str| {
        assert!(e.is_shape() && e.to_string().starts_with(text) && e.to_string().contains("(at tests/models/recurrence.rs:"), "{e}")
    };
    let state = |b: usize| Tensor::zeros([b, 4], F32).unwrap();
    let x = Tensor::zeros([2, 3], F32)?;
    let lstm = LstmCell::new(3, 4, F32, Key::new(1))?;
    says(
        lstm.forward(&x, (&state(3), &state(3))).unwrap_err(),
        "lstm_cell: the state does not fit the input: x [2, 3], h [3, 4] (expected [2, 4]): it is the state of another batch",
    );
    says(
        lstm.forward(&x, (&state(2), &state(3))).unwrap_err(),
        "lstm_cell: the state does not fit the input: x [2, 3], c [3, 4] (expected [2, 4])",
    );
    says(
        GruCell::new(3, 4, F32, Key::new(1))?.forward(&x, &Tensor::zeros([2, 5], F32)?).unwrap_err(),
        "gru_cell: the state does not fit the input: x [2, 3], h [2, 5] (expected [2, 4])",
    );
    says(RnnCell::new(3, 4, F32, Key::new(1))?.forward(&x, &state(7)).unwrap_err(), "rnn_cell: the state does not fit");
    assert_eq!(lstm.forward(&x, (&state(1), &state(1)))?.0.shape(), &[2, 4]);
    let config = RecurrentConfig { inputs: 3, hidden: 4, layers: 2, ..RecurrentConfig::default() };
    let (m, x, h) = (Lstm::new(&config, F32, Key::new(1))?, Tensor::zeros([2, 5, 3], F32)?, Tensor::zeros([2, 3, 4], F32)?);
    says(
        m.forward(&x, Some((&h, &h))).unwrap_err(),
        "lstm: the state does not fit the input: x [2, 5, 3], h [2, 3, 4] (expected [2, 2, 4]): it is the state of another batch",
    );
    let h = Tensor::zeros([1, 2, 4], F32)?;
    let e = Gru::new(&config, F32, Key::new(1))?.forward(&x, Some(&h)).unwrap_err();
    says(e, "gru: the state does not fit the input: x [2, 5, 3], h [1, 2, 4] (expected [2, 2, 4])");
    says(
        m.forward(&Tensor::zeros([5, 3], F32)?, None).unwrap_err(),
        "lstm: the input does not fit: expected x [batch, time, 3] with at least one step, found [5, 3]",
    );
    says(m.forward(&Tensor::zeros([2, 0, 3], F32)?, None).unwrap_err(), "lstm: the input does not fit: expected x [batch, time, 3]");
    let packed = |lengths: &[usize]| m.forward_with(&x, None, Recur { lengths: Some(lengths), key: None }).unwrap_err();
    assert!(packed(&[5]).to_string().starts_with("lstm: 1 lengths for a batch of 2"), "{}", packed(&[5]));
    assert!(packed(&[5, 6]).is_argument() && packed(&[5, 6]).to_string().contains("a length is 6, beyond the 5 steps"));
    assert!(Lstm::new(&RecurrentConfig { layers: 0, ..config }, F32, Key::new(1)).unwrap_err().is_argument());
    Ok(())
}

fn attention(kv_width: Option<usize>, bias: bool) -> Result<MultiHeadAttention> {
    let config = AttentionConfig {
        width: 8,
        kv_width,
        heads: 2,
        kv_heads: 2,
        head: 4,
        qkv_bias: bias,
        output_bias: bias,
        causal: false,
        ..AttentionConfig::default()
    };
    MultiHeadAttention::new(&config, F64, Key::new(1))
}

/// `nn.MultiheadAttention(q, k, v)`, encoder's and decoder's layers.
#[test]
fn attention_over_a_memory_and_transformer_layers_are_pytorchs() -> Result<()> {
    let fixture = Fixture::open()?;
    let y = |y: Tensor| Ok(named([("y", y)]));
    fixture.compare("cross", attention(None, true)?, |m, x| y(m.cross(&x["x"], &x["memory"], Attend::default())?))?;
    fixture.compare("cross_narrow", attention(Some(6), false)?, |m, x| y(m.cross(&x["x"], &x["memory"], Attend::default())?))?;
    fixture.compare("cross_masked", attention(None, true)?, |m, x| {
        let with = Attend { mask: x.get("mask"), key_padding: x.get("padding"), ..Attend::default() };
        y(m.cross(&x["x"], &x["memory"], with)?)
    })?;
    // The same with a mask that is added.
    fixture.compare("cross_masked", attention(None, true)?, |m, x| {
        let added = Tensor::zeros([5, 4], F64)?.masked_fill(&x["mask"].logical_not()?, f64::NEG_INFINITY)?;
        y(m.cross(&x["x"], &x["memory"], Attend { mask: Some(&added), key_padding: x.get("padding"), ..Attend::default() })?)
    })?;
    for (tag, order) in [("post", NormOrder::Post), ("pre", NormOrder::Pre)] {
        let activation = if order == NormOrder::Pre { Activation::Gelu } else { Activation::Relu };
        let config = TransformerConfig { width: 8, heads: 2, hidden: 12, activation, order, ..TransformerConfig::default() };
        fixture.compare(&format!("encoder_{tag}"), TransformerEncoderLayer::new(&config, F64, Key::new(1))?, |m, x| {
            y(m.forward_with(&x["x"], Attend { key_padding: x.get("padding"), ..Attend::default() })?)
        })?;
        let config = TransformerConfig { activation: Activation::Relu, ..config };
        fixture.compare(&format!("decoder_{tag}"), TransformerDecoderLayer::new(&config, F64, Key::new(1))?, |m, x| {
            let cross = Attend { key_padding: x.get("padding"), ..Attend::default() };
            y(m.forward_with(&x["x"], &x["memory"], Attend::default(), cross)?)
        })?;
    }
    Ok(())
}

#[test]
fn a_decoder_layer_with_a_cache_and_dropout() -> Result<()> {
    let config = TransformerConfig { width: 8, heads: 2, hidden: 12, dropout: 0.3, order: NormOrder::Pre, ..TransformerConfig::default() };
    let layer = TransformerDecoderLayer::new(&config, F64, Key::new(1))?;
    let (x, memory) = (Tensor::randn([2, 4, 8], F64, Key::new(2))?, Tensor::randn([2, 3, 8], F64, Key::new(3))?);
    let all = layer.forward(&x, &memory, None)?;
    let mut cache = KvCache::default();
    for t in 0..4 {
        let own = Attend { cache: Some(&mut cache), ..Attend::default() };
        same("cached", &layer.forward_with(&x.narrow(1, t, 1)?, &memory, own, Attend::default())?, &all.narrow(1, t, 1)?)?;
    }
    let train = |k| layer.forward(&x, &memory, Some(Key::new(k))).unwrap().to_f64_vec().unwrap();
    assert_eq!(train(1), train(1));
    assert_ne!(train(1), train(2));
    assert_ne!(train(1), all.to_f64_vec()?);
    // A stack of encoder layers is a layer.
    let encoder = vec![TransformerEncoderLayer::new(&config, F64, Key::new(4))?; 2];
    assert_eq!(encoder.call(&x, None)?.shape(), &[2, 4, 8]);
    // Refusals name what differs.
    let m = attention(None, true)?;
    let e = m.cross(&x, &Tensor::zeros([3, 3, 8], F64)?, Attend::default()).unwrap_err();
    assert!(e.to_string().starts_with("attention: input and memory are of different batches: x [2, 4, 8], memory [3, 3, 8]"), "{e}");
    let e = m.cross(&x, &Tensor::zeros([2, 3, 6], F64)?, Attend::default()).unwrap_err();
    assert!(e.is_shape() && e.to_string().contains("`k_proj.weight` f64[8, 8]"), "{e}");
    let wrong = Tensor::zeros([2, 4], cotangent::U8)?;
    let e = m.cross(&x, &memory, Attend { key_padding: Some(&wrong), ..Attend::default() }).unwrap_err();
    assert!(e.to_string().starts_with("attention: key_padding must be u8 [batch, keys]: key_padding u8 [2, 4], keys [2, 3]"), "{e}");
    let mut cache = KvCache::default();
    assert!(m.cross(&x, &memory, Attend { cache: Some(&mut cache), ..Attend::default() }).unwrap_err().is_argument());
    assert!(TransformerEncoderLayer::new(&TransformerConfig { heads: 3, ..config }, F64, Key::new(1)).unwrap_err().is_argument());
    assert!(from_torch(named([("a.in_proj_weight", Tensor::zeros([4, 4], F64)?)])).unwrap_err().is_shape());
    assert!(from_torch(named([("a.in_proj_bias", Tensor::zeros([3], I64)?), ("a.q_proj.bias", Tensor::zeros([1], I64)?)])).is_err());
    Ok(())
}
