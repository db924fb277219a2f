//! The op of a case as its definition: where the error bounds come from.

use super::cases::{Case, Numbers};
use cotangent::testing::{AnyScalar, Ball, Dual, Nd, Scalar};
use cotangent::{DType, Result, Tensor};

/// One run gives everything: the value, its derivative along the case's direction, along an axis, and along both; each with a
/// bound of its rounding error.
pub type S = Dual<Dual<Ball>>;

pub trait Definition: Send + Sync {
    fn name(&self) -> &'static str;
    fn show(&self) -> String;
    fn define(&self, x: &[Nd<AnyScalar>]) -> Vec<Nd<AnyScalar>>;
}

impl dyn Definition + '_ {
    /// By one compiled definition for all kinds of scalars.
    fn run(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let any: Vec<_> = x.iter().map(Nd::convert).collect();
        self.define(&any).iter().map(Nd::convert).collect()
    }
}

impl<O: cotangent::op::Describe> Definition for O {
    fn name(&self) -> &'static str {
        O::NAME
    }
    fn show(&self) -> String {
        super::calls::shown(self)
    }
    fn define(&self, x: &[Nd<AnyScalar>]) -> Vec<Nd<AnyScalar>> {
        cotangent::op::Describe::define(self, x)
    }
}

pub type Run = Box<dyn Fn(&[Tensor], DType) -> Result<Vec<Tensor>> + Send + Sync>;

/// How a case is computed, and by which op.
pub struct Call {
    /// `None` for constructors, which are no ops.
    pub op: Option<Box<dyn Definition>>,
    pub name: &'static str,
    pub run: Run,
}

impl Call {
    /// A constructor.
    pub fn bare(name: &'static str, run: impl Fn(DType) -> Result<Tensor> + Send + Sync + 'static) -> Call {
        Call { op: None, name, run: Box::new(move |_, dtype| Ok(vec![run(dtype)?])) }
    }
}

pub fn of<O: cotangent::op::Describe>(op: O, run: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static) -> Call {
    Call { op: Some(Box::new(op)), name: O::NAME, run: Box::new(move |x, _| run(x)) }
}

pub fn one<O: cotangent::op::Describe>(op: O, run: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static) -> Call {
    of(op, move |x| Ok(vec![run(x)?]))
}

/// What the definition says about a case, in the order of the case's own lists.
#[derive(Default)]
pub struct Reference {
    pub values: Vec<Vec<Ball>>,
    pub gradients: Vec<Vec<Ball>>,
    pub second: Vec<Vec<Ball>>,
    pub second_seeds: Vec<Vec<Ball>>,
}

fn ball(v: f64) -> Ball {
    Ball::lit(v)
}

impl Reference {
    pub fn new(c: &Case, op: &dyn Definition) -> Reference {
        let direction = |i: usize, j: usize| {
            let k = c.diff.iter().position(|&d| d == i);
            k.and_then(|k| c.directions.get(k)).map_or(0.0, |d: &Numbers| d.data[j])
        };
        let mut x: Vec<Nd<S>> = c
            .inputs
            .iter()
            .enumerate()
            .map(|(i, n)| {
                let data = n
                    .data
                    .iter()
                    .enumerate()
                    .map(|(j, &v)| Dual::new(Dual::new(ball(v), ball(direction(i, j))), Dual::new(ball(0.0), ball(0.0))));
                Nd::new(&n.shape[..], data.collect())
            })
            .collect();
        let mut out = Reference::default();
        let plain = op.run(&x);
        for y in &plain {
            out.values.push(y.data.iter().map(|y| y.v.v).collect());
            out.second_seeds.push(y.data.iter().map(|y| y.v.d).collect());
        }
        if c.order == 0 {
            return out;
        }
        for &i in &c.diff {
            let (mut first, mut second) = (Vec::new(), Vec::new());
            for j in 0..x[i].data.len() {
                x[i].data[j].d.v = ball(1.0);
                let y = op.run(&x);
                x[i].data[j].d.v = ball(0.0);
                let along = |part: fn(&S) -> Ball| {
                    let terms = y.iter().zip(&c.seeds).filter_map(|(y, s)| Some((y, s.as_ref()?)));
                    let terms: Vec<Ball> = terms.flat_map(|(y, s)| y.data.iter().zip(&s.data).map(|(y, &s)| part(y) * ball(s))).collect();
                    Ball::sum(&terms)
                };
                first.push(along(|y| y.d.v));
                second.push(along(|y| y.d.d));
            }
            out.gradients.push(first);
            out.second.push(second);
        }
        out
    }
}
