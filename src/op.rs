//! The op contract. Layer L4a: it knows tensors and the tape, and names no op.
//!
//! Every op is described once ([`Describe`]: name, mathematics, definition, samples) and implemented in one of three
//! ways: a kernel ([`Op`]), a change of layout ([`View`]), or a composition of other ops ([`Composite`]). No method
//! has a default: an op without its derivative, its definition or its samples does not compile. Your own ops use the
//! same contract and are checked by the same suite; see `examples/custom_op.rs`.

use crate::array::Array;
use crate::backend::{Device, Storage, cpu, cuda};
use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::layout::Layout;
use crate::memory;
use crate::shape::Shape;
use crate::tape::{self, Pull, PullContext};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::SmallVec;
use std::fmt::Debug;
use std::panic::Location;
use std::sync::Arc;

pub use crate::tape::{Cotangents, InputCotangents, Saved, Stretch, once_differentiable};

/// Outputs of an op, in order.
pub type Outputs = SmallVec<[Tensor; 2]>;

/// Shape and dtype of every output, in order.
pub type Specs = SmallVec<[Spec; 2]>;

/// Shape and dtype of an operand, without data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Extents.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
}

impl Spec {
    /// A spec from its parts.
    pub fn new(shape: impl Into<Shape>, dtype: DType) -> Self {
        Spec { shape: shape.into(), dtype }
    }
}

/// What an op computes, in words: a row of docs/ops.md. No field may be empty.
#[derive(Clone, Copy, Debug)]
pub struct Math {
    /// The value.
    pub forward: &'static str,
    /// The derivative rule.
    pub vjp: &'static str,
    /// What happens at kinks, ties, limits and outside the domain.
    pub kinks: &'static str,
    /// Bytes moved and arithmetic done.
    pub cost: &'static str,
    /// Where the definition comes from.
    pub references: &'static str,
}

impl Math {
    /// Whether every field says something; checked at compile time for registered ops.
    pub const fn is_complete(&self) -> bool {
        !self.forward.is_empty() && !self.vjp.is_empty() && !self.kinks.is_empty() && !self.cost.is_empty() && !self.references.is_empty()
    }
}

/// What every op says about itself, however it is implemented.
pub trait Describe: Clone + Debug + Send + Sync + 'static {
    /// Error prefix, profiler range, bench id, row of docs/ops.md.
    const NAME: &'static str;
    /// The mathematics in words.
    const MATH: Math;

    /// The op as textbook loops over any scalar: values, dual numbers (exact derivatives) and error bounds all run
    /// through this one text, and every kernel is checked against it. Inputs satisfy what the op's shape rule demands.
    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>>;

    /// Inputs that exercise the op: sizes, values, every option; inputs it must refuse; inputs worth timing.
    fn samples(g: &mut Gen) -> Vec<Sample<Self>>;
}

/// An op with kernels of its own.
pub trait Op: Describe {
    /// How many outputs at the end are internal: saved for the derivative, never tracked.
    const AUX: usize;

    /// Shape and dtype of every output, or why the inputs do not fit.
    ///
    /// # Errors
    /// Shape, dtype or argument error.
    fn infer(&self, x: &[Spec]) -> Result<Specs>;

    /// The CPU kernel: writes every element of every output.
    ///
    /// # Errors
    /// What only the data shows: an index out of range; out of memory.
    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()>;

    /// The CUDA kernels: enqueues what writes every element of every output. The values stay on the device.
    ///
    /// # Errors
    /// What the device reports; out of memory; for an op without CUDA kernels, an error that says so.
    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()>;

    /// Keeps what the wanted derivatives need, and no more. `y` includes the internal outputs.
    fn save(&self, x: &[&Tensor], y: &[Tensor], want: &[bool]) -> Saved;

    /// Cotangents of the wanted inputs from those of the outputs, in tensor ops. `None` means zero.
    /// A cotangent may have the shape an input was broadcast to: the sweep sums it.
    ///
    /// # Errors
    /// What the tensor ops refuse.
    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents>;
}

/// An op that only changes the layout: no data moves on any device.
pub trait View: Describe {
    /// The output's layout over the input's storage, or why the input does not fit.
    ///
    /// # Errors
    /// Shape or index error.
    fn layout(&self, x: &Layout) -> Result<Layout>;

    /// The input's cotangent, given the input's shape.
    ///
    /// # Errors
    /// What the tensor ops refuse.
    fn vjp(&self, x: &Spec, y_bar: &Tensor) -> Result<Tensor>;

    /// For a stretch of one axis of the input, which one: a sweep puts the cotangents of many such parts of one value side by side,
    /// instead of adding as many tensors of the value's size. `None` for any other view.
    fn stretch(&self, x: &Shape) -> Option<Stretch>;
}

/// An op made of other ops; its derivative is theirs.
pub trait Composite: Describe {
    /// The composition.
    ///
    /// # Errors
    /// What the parts refuse.
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs>;
}

/// Runs an [`Op`] and records it when an input is tracked. Returns all but the internal outputs.
///
/// # Errors
/// What the op refuses; device error for operands on different devices; tape error for operands of different tapes.
#[track_caller]
pub fn apply<O: Op>(op: O, x: &[&Tensor]) -> Result<Outputs> {
    apply_at(O::NAME, op, x, Location::caller())
}

/// [`apply`] for an op with one output.
///
/// # Errors
/// As [`apply`].
#[track_caller]
pub fn apply1<O: Op>(op: O, x: &[&Tensor]) -> Result<Tensor> {
    apply1_as(O::NAME, op, x)
}

/// [`apply`] by another name: one op serves several methods, and an error of `argmin` must not mention `argmax`.
///
/// # Errors
/// As [`apply`].
#[track_caller]
pub(crate) fn apply_as<O: Op>(name: &'static str, op: O, x: &[&Tensor]) -> Result<Outputs> {
    apply_at(name, op, x, Location::caller())
}

/// [`apply1`] by another name.
///
/// # Errors
/// As [`apply`].
#[track_caller]
pub(crate) fn apply1_as<O: Op>(name: &'static str, op: O, x: &[&Tensor]) -> Result<Tensor> {
    let mut y = apply_at(name, op, x, Location::caller())?;
    Ok(y.swap_remove(0))
}

/// A refusal with the op's name, the caller's line, the operands' shapes and the parameters among them.
#[cold]
fn refused(e: Error, name: &'static str, x: &[&Tensor], at: &'static Location<'static>) -> Error {
    e.with_shapes(x.iter().map(|t| t.shape())).with_parameters(|| tape::parameters(x)).in_op(name, at)
}

/// [`Op`] without its type: `apply` is then compiled once, not once per op.
trait AnyOp: Pull {
    fn name(&self) -> &'static str;
    fn aux(&self) -> usize;
    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>>;
    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()>;
    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()>;
    fn save(&self, x: &[&Tensor], y: &[Tensor], want: &[bool]) -> Saved;
}

impl<O: Op> AnyOp for RecordedOp<O> {
    fn name(&self) -> &'static str {
        self.1
    }
    fn aux(&self) -> usize {
        O::AUX
    }
    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        self.0.infer(x)
    }
    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        self.0.cpu(x, y)
    }
    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        self.0.cuda(x, y)
    }
    fn save(&self, x: &[&Tensor], y: &[Tensor], want: &[bool]) -> Saved {
        self.0.save(x, y, want)
    }
}

fn apply_at<O: Op>(name: &'static str, op: O, x: &[&Tensor], at: &'static Location<'static>) -> Result<Outputs> {
    apply_any(Arc::new(RecordedOp(op, name)), x, at).map_err(|e| refused(e, name, x, at))
}

fn apply_any(op: Arc<dyn AnyOp>, x: &[&Tensor], at: &'static Location<'static>) -> Result<Outputs> {
    let started = tape::start(x);
    let device = common_device(x)?;
    let specs: SmallVec<[Spec; 4]> = x.iter().map(|t| Spec { shape: t.shape().clone(), dtype: t.dtype() }).collect();
    let out_specs = op.infer(&specs)?;
    let _running = (device != Device::Cpu).then(|| cuda::Running::new(op.name(), at));
    let mut storages: SmallVec<[Storage; 2]> = SmallVec::new();
    for s in &out_specs {
        storages.push(Storage::alloc(device, s.dtype, s.shape.checked_numel()?)?);
    }
    if device == Device::Cpu {
        let ins = x.iter().map(|t| t.array.cpu()).collect::<Result<SmallVec<[cpu::In<'_>; 4]>>>()?;
        let mut outs: SmallVec<[cpu::Out<'_>; 2]> = SmallVec::new();
        for (s, spec) in storages.iter_mut().zip(&out_specs) {
            if let Storage::Cpu(b) = s {
                outs.push(cpu::Out::new(b, &spec.shape));
            }
        }
        op.cpu(&ins, &mut outs)?;
    } else {
        let ins = x.iter().map(|t| t.array.cuda()).collect::<Result<SmallVec<[cuda::In<'_>; 4]>>>()?;
        let mut outs: SmallVec<[cuda::Out<'_>; 2]> = SmallVec::new();
        for (s, spec) in storages.iter_mut().zip(&out_specs) {
            if let Storage::Cuda(b) = s {
                outs.push(cuda::Out::new(b, &spec.shape));
            }
        }
        op.cuda(&ins, &mut outs)?;
    }
    let mut y: Outputs =
        storages.into_iter().zip(out_specs).map(|(s, spec)| Tensor::from_array(Array::from_storage(s, spec.dtype, spec.shape))).collect();
    let started = started.stop()?;
    let visible = y.len() - op.aux();
    if let Some(tape) = tape::common_tape(x)?
        && tape.is_recording()?
    {
        let want: SmallVec<[bool; 4]> = x.iter().map(|t| t.is_tracked()).collect();
        let differentiable = y[..visible].iter().any(|t| t.dtype().is_float());
        if differentiable {
            // An op may save its own outputs: attach them to their node first.
            let id = tape::reserve(&tape, op.name(), at, x, &mut y[..visible])?;
            let saved = op.save(x, &y, &want);
            let (name, bytes) = (op.name(), started.bytes(&saved));
            tape::fulfil(&tape, id, saved, op);
            tape::ran(&tape, id, started, name, at, x, &y[..visible], bytes)?;
        } else {
            // Only a cast's name leaves open what it gives.
            let to = y.first().map(Tensor::dtype).filter(|_| op.name() == "cast");
            tape::stops(op.name(), at, x, to);
        }
    }
    y.truncate(visible);
    Ok(y)
}

/// An op, and by which name it was called.
struct RecordedOp<O>(O, &'static str);

impl<O: Op> Pull for RecordedOp<O> {
    fn pull(&self, ctx: &PullContext<'_>, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        self.0.vjp(&ctx.saved, y_bar, want)
    }
}

/// Runs a [`View`] and records it when the input is tracked.
///
/// # Errors
/// What the view refuses.
#[track_caller]
pub fn apply_view<V: View>(view: V, x: &Tensor) -> Result<Tensor> {
    apply_view_as(V::NAME, view, x)
}

/// [`apply_view`] by another name, as [`apply_as`].
///
/// # Errors
/// As [`apply_view`].
#[track_caller]
pub(crate) fn apply_view_as<V: View>(name: &'static str, view: V, x: &Tensor) -> Result<Tensor> {
    let at = Location::caller();
    let run = || {
        let mut y = Tensor::from_array(x.array.with_layout(view.layout(x.layout())?)?);
        if let Some(tape) = tape::common_tape(&[x])?
            && tape.is_recording()?
        {
            let spec = Spec { shape: x.shape().clone(), dtype: x.dtype() };
            let stretch = view.stretch(&spec.shape);
            let pull = Arc::new(RecordedView(view, spec, stretch));
            tape::record(&tape, name, at, &[x], std::slice::from_mut(&mut y), Saved::none(), pull, tape::start(&[x]))?;
        }
        Ok(y)
    };
    run().map_err(|e: Error| refused(e, name, &[x], at))
}

struct RecordedView<V>(V, Spec, Option<Stretch>);

impl<V: View> Pull for RecordedView<V> {
    fn pull(&self, _: &PullContext<'_>, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        Ok(SmallVec::from_iter([if want[0] { Some(self.0.vjp(&self.1, y_bar.only()?)?) } else { None }]))
    }

    fn stretch(&self) -> Option<Stretch> {
        self.2
    }
}

/// Several views of one operand as one node, whose derivative sees all their cotangents at once; `vjp` gets at least one.
/// For compositions: the caller names the op in errors.
///
/// # Errors
/// Layouts that leave the storage; tape error for a consumed tape.
#[track_caller]
pub(crate) fn apply_parts(
    name: &'static str,
    x: &Tensor,
    layouts: impl IntoIterator<Item = Result<Layout>>,
    vjp: impl Fn(&Cotangents) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Outputs> {
    let at = Location::caller();
    let view = |layout: Result<Layout>| Ok(Tensor::from_array(x.array.with_layout(layout?)?));
    let mut y: Outputs = memory::try_short(layouts.into_iter().map(view))?;
    if let Some(tape) = tape::common_tape(&[x])?
        && tape.is_recording()?
    {
        tape::record(&tape, name, at, &[x], &mut y, Saved::none(), Arc::new(RecordedParts(vjp)), tape::start(&[x]))?;
    }
    Ok(y)
}

struct RecordedParts<F>(F);

impl<F: Fn(&Cotangents) -> Result<Tensor> + Send + Sync> Pull for RecordedParts<F> {
    fn pull(&self, _: &PullContext<'_>, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let bar = if want[0] { Some((self.0)(y_bar)?) } else { None };
        Ok(SmallVec::from_iter([bar]))
    }
}

/// Runs a [`Composite`]; errors carry its own name and the line of its caller.
///
/// # Errors
/// What its parts refuse.
#[track_caller]
pub fn compose<C: Composite>(op: C, x: &[&Tensor]) -> Result<Outputs> {
    compose_at(C::NAME, op, x, Location::caller())
}

fn compose_at<C: Composite>(name: &'static str, op: C, x: &[&Tensor], at: &'static Location<'static>) -> Result<Outputs> {
    // The parts' nodes name the line that called the composition: reports about them point there.
    let e = |e: Error| e.with_parameters(|| tape::parameters(x)).rename_op(name).called_at(at);
    tape::composed(name, x, at, || op.compose(x)).map_err(e)
}

/// [`compose`] for an op with one output.
///
/// # Errors
/// As [`compose`].
#[track_caller]
pub fn compose1<C: Composite>(op: C, x: &[&Tensor]) -> Result<Tensor> {
    compose1_as(C::NAME, op, x)
}

/// [`compose1`] by another name, as [`apply_as`].
///
/// # Errors
/// As [`compose`].
#[track_caller]
pub(crate) fn compose1_as<C: Composite>(name: &'static str, op: C, x: &[&Tensor]) -> Result<Tensor> {
    let mut y = compose_at(name, op, x, Location::caller())?;
    Ok(y.swap_remove(0))
}

fn common_device(x: &[&Tensor]) -> Result<Device> {
    let Some(first) = x.first() else { return Ok(Device::Cpu) };
    let device = first.device();
    if let Some(other) = x.iter().find(|t| t.device() != device) {
        bail!(device, "operands are on different devices: {device} and {}; move one with to_device()", other.device());
    }
    Ok(device)
}

/// Checks shared by shape rules.
pub mod expect {
    use super::{Result, Spec, bail};
    use crate::dtype::DType;

    /// The operands' common float dtype.
    ///
    /// # Errors
    /// Dtype error when one is no float or they differ.
    pub fn same_float(x: &[Spec]) -> Result<DType> {
        let Some(first) = x.first() else { bail!(argument, "at least one tensor is needed") };
        for (i, s) in x.iter().enumerate() {
            if !s.dtype.is_float() {
                let which = if x.len() == 1 { String::new() } else { format!(" as operand {i}") };
                let hint = match s.dtype {
                    DType::U8 => "; as numbers: .cast(F32)?; to choose by a mask: where_cond or masked_fill",
                    _ => "; as numbers: .cast(F32)?, and for whole numbers .cast(F64)? and back",
                };
                bail!(dtype, "expected floats, found {} {}{which}{hint}", s.dtype, s.shape);
            }
        }
        same_dtype(x)?;
        Ok(first.dtype)
    }

    /// The operands' common dtype.
    ///
    /// # Errors
    /// Dtype error when they differ.
    pub fn same_dtype(x: &[Spec]) -> Result<DType> {
        let Some(first) = x.first() else { bail!(argument, "at least one tensor is needed") };
        if let Some((i, s)) = x.iter().enumerate().find(|(_, s)| s.dtype != first.dtype) {
            let (a, b) = (first.dtype, s.dtype);
            bail!(dtype, "operands have different dtypes: operand 0 is {a} {}, operand {i} is {b} {}; cast one", first.shape, s.shape);
        }
        Ok(first.dtype)
    }

    /// Float operands of one dtype and one shape.
    pub(crate) fn same_shapes(x: &[Spec]) -> Result<()> {
        same_float(x)?;
        if let Some(other) = x.iter().find(|s| s.shape != x[0].shape) {
            bail!(shape, "operands must have one shape: {} and {}", x[0].shape, other.shape);
        }
        Ok(())
    }

    /// Dtype error unless every operand is a mask.
    pub(crate) fn masks(x: &[Spec]) -> Result<()> {
        if let Some(s) = x.iter().find(|s| s.dtype != DType::U8) {
            bail!(dtype, "expected a u8 mask, found {} {}: compare it first (`x.ne_scalar(0.0)`)", s.dtype, s.shape);
        }
        Ok(())
    }

    /// An index dtype (`i64`, `u32` or `u8`).
    ///
    /// # Errors
    /// Dtype error for floats.
    pub fn index(x: &Spec) -> Result<()> {
        if x.dtype.is_float() {
            bail!(dtype, "expected integer indices (i64, u32 or u8), found {}", x.dtype);
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "emulator"))]
#[path = "op_tests.rs"]
mod tests;
