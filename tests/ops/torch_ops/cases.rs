//! The stored cases of tests/fixtures/torch_ops, as scripts/torch_op_fixtures.py writes them.

use cotangent::{Axes, DType, Shape};
use serde_json::Value;
use std::path::Path;

/// Numbers in row-major order; `dtype` only for integers.
#[derive(Clone, Debug)]
pub struct Numbers {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
    pub dtype: Option<DType>,
}

#[derive(Clone, Debug)]
pub struct Options(Value);

/// One call with everything that PyTorch says about it.
#[derive(Clone, Debug)]
pub struct Case {
    pub op: String,
    pub name: String,
    pub options: Options,
    pub inputs: Vec<Numbers>,
    pub outputs: Vec<Numbers>,
    /// How many derivatives there are.
    pub order: usize,
    /// Inputs with a derivative.
    pub diff: Vec<usize>,
    /// Cotangents of the outputs; `None` for what has no derivative.
    pub seeds: Vec<Option<Numbers>>,
    /// Of the inputs in `diff`: the gradient, a direction, and the gradient of ⟨direction, gradient⟩.
    pub gradients: Vec<Numbers>,
    pub directions: Vec<Numbers>,
    pub second: Vec<Numbers>,
    /// The derivative of ⟨direction, gradient⟩ by the cotangents.
    pub second_seeds: Vec<Option<Numbers>>,
    /// Float types whose range holds the inputs.
    pub dtypes: Vec<DType>,
}

impl Options {
    pub fn number(&self, name: &str) -> Option<f64> {
        match &self.0[name] {
            Value::String(word) => word.parse().ok(),
            v => v.as_f64(),
        }
    }
    pub fn int(&self, name: &str) -> Option<i64> {
        self.0[name].as_i64()
    }
    pub fn flag(&self, name: &str) -> bool {
        self.0[name].as_bool().unwrap_or(false)
    }
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0[name].as_str()
    }
    pub fn dtype(&self, name: &str) -> Option<DType> {
        super::calls::dtype(self.text(name)?)
    }
    pub fn ints(&self, name: &str) -> Vec<i64> {
        self.0[name].as_array().map(|a| a.iter().filter_map(Value::as_i64).collect()).unwrap_or_default()
    }
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        self.0[name].as_array().map(|a| a.iter().filter_map(Value::as_f64).collect()).unwrap_or_default()
    }
    /// `null` is every axis.
    pub fn axes(&self, name: &str) -> Axes {
        if self.0[name].is_null() {
            return Axes::All;
        }
        let list: Vec<isize> = self.ints(name).into_iter().map(|a| a as isize).collect();
        list[..].into()
    }
    pub fn shape(&self, name: &str) -> Shape {
        self.ints(name).into_iter().map(|d| d as usize).collect()
    }
}

impl Case {
    pub fn id(&self) -> String {
        format!("{}/{}", self.op, self.name)
    }

    /// Whether every input is an ordinary number.
    pub fn finite(&self) -> bool {
        self.inputs.iter().all(|x| x.data.iter().all(|v| v.is_finite()))
    }
}

fn numbers(v: &Value) -> Numbers {
    let shape: Vec<usize> = v["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
    let data: Vec<f64> = v["data"].as_str().unwrap().split_whitespace().map(|w| w.parse().unwrap()).collect();
    assert_eq!(shape.iter().product::<usize>(), data.len());
    Numbers { shape, data, dtype: v["dtype"].as_str().and_then(super::calls::dtype) }
}

fn list(v: &Value) -> Vec<Numbers> {
    v.as_array().map(|a| a.iter().map(numbers).collect()).unwrap_or_default()
}

fn optional(v: &Value) -> Vec<Option<Numbers>> {
    v.as_array().map(|a| a.iter().map(|v| (!v.is_null()).then(|| numbers(v))).collect()).unwrap_or_default()
}

/// Every case of every family.
pub fn all() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch_ops");
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let mut out = Vec::new();
    for file in files {
        let family: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        for c in family["cases"].as_array().unwrap() {
            let dtypes = c["dtypes"]
                .as_array()
                .map_or(DType::FLOATS.to_vec(), |a| a.iter().map(|d| super::calls::dtype(d.as_str().unwrap()).unwrap()).collect());
            out.push(Case {
                op: c["op"].as_str().unwrap().into(),
                name: c["case"].as_str().unwrap().into(),
                options: Options(c["options"].clone()),
                inputs: list(&c["in"]),
                outputs: list(&c["out"]),
                order: if c["grad"].is_array() { c["order"].as_u64().unwrap() as usize } else { 0 },
                diff: c["diff"].as_array().map(|a| a.iter().map(|i| i.as_u64().unwrap() as usize).collect()).unwrap_or_default(),
                seeds: optional(&c["seed"]),
                gradients: list(&c["grad"]),
                directions: list(&c["dir"]),
                second: list(&c["second"]),
                second_seeds: optional(&c["second_seed"]),
                dtypes,
            });
        }
    }
    out
}
