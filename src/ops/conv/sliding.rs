//! How a kernel slides over an input: what the three ops of the family have in common.

use super::options::{ConvOptions, ConvTransposeOptions, Padding};
use crate::backend::conv::{Axis, Conv};
use crate::error::{Result, bail};
use crate::op::Spec;
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::SmallVec;

/// One spatial axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Positions of the input between neighbours of the output.
    pub stride: usize,
    /// Positions of the input between neighbours of the kernel.
    pub dilation: usize,
    /// Zeros before the input, and after it. Negative where the end of an input is not looked at: a transposed convolution that is made larger
    /// by its output padding is the transpose of such a one.
    pub padding: (isize, isize),
}

/// A kernel that slides over the spatial axes of an input. The extents are part of it: the derivatives need those of an operand that
/// is not saved, and a stride forgets the input's.
#[derive(Clone, Debug, PartialEq)]
pub struct Sliding {
    /// The spatial axes.
    pub axes: SmallVec<[Window; 3]>,
    /// Into how many groups channels are divided.
    pub groups: usize,
    /// The input's spatial extents.
    pub input: Shape,
    /// The kernel's.
    pub kernel: Shape,
}

/// `x` as a batch of one where it has channels and spatial axes alone, as PyTorch takes it.
#[track_caller]
pub(super) fn one_image(x: &Tensor, spatial: usize) -> Result<Option<Tensor>> {
    if x.rank() == spatial + 1 { x.unsqueeze(0).map(Some) } else { Ok(None) }
}

/// Sum over all but the channels: a bias's cotangent.
pub(super) fn over_channels(g: &Tensor) -> Result<Tensor> {
    let axes: SmallVec<[usize; 4]> = (0..g.rank()).filter(|&a| a != 1).collect();
    g.sum(&axes[..])
}

/// Shape error unless a bias has a number for each channel.
pub(super) fn bias_fits(x: &[Spec], channels: usize) -> Result<()> {
    match x.get(2) {
        Some(b) if b.shape != [channels] => bail!(shape, "bias {} does not fit weight {}; expected [{channels}]", b.shape, x[1].shape),
        _ => Ok(()),
    }
}

/// The axes of an operand in words.
fn axes_of(lead: &str, spatial: usize) -> String {
    let names = ["depth", "height", "width"];
    let names = if spatial == 1 { &["length"][..] } else { &names[3usize.saturating_sub(spatial)..] };
    format!("[{lead}, {}]", names.join(", "))
}

impl Sliding {
    /// Of a convolution.
    ///
    /// # Errors
    /// Argument error for a padding that does not go with the stride, or is too large.
    pub fn conv<const D: usize>(x: &Shape, w: &Shape, options: &ConvOptions<D>) -> Result<Self> {
        let kernel: Shape = w.get(2..).unwrap_or(&[]).into();
        let mut axes = SmallVec::new();
        for a in 0..D {
            let (stride, dilation) = (options.stride[a], options.dilation[a]);
            let (low, high) = match options.padding {
                Padding::Both(n) => (n[a], n[a]),
                Padding::Sides(n) => n[a],
                Padding::Same if options.stride != [1; D] => {
                    bail!(
                        argument,
                        "padding Same keeps extents with stride 1 alone, found {:?}: give the padding in numbers",
                        options.stride
                    )
                }
                Padding::Same => {
                    let all = dilation.saturating_mul(kernel.get(a).map_or(0, |k| k.saturating_sub(1)));
                    (all / 2, all - all / 2)
                }
                Padding::Valid => (0, 0),
            };
            let (Ok(low), Ok(high)) = (isize::try_from(low), isize::try_from(high)) else {
                bail!(argument, "padding {:?} is more than memory can address", options.padding)
            };
            axes.push(Window { stride, dilation, padding: (low, high) });
        }
        Ok(Sliding { axes, groups: options.groups, input: x.get(2..).unwrap_or(&[]).into(), kernel })
    }

    /// Of a transposed convolution: the convolution whose derivative by its input it is.
    ///
    /// # Errors
    /// Argument error for options that contradict each other; shape error for a result without positions.
    pub fn transposed<const D: usize>(y: &Shape, w: &Shape, options: &ConvTransposeOptions<D>) -> Result<Self> {
        let (outputs, kernel) = (y.get(2..).unwrap_or(&[]), w.get(2..).unwrap_or(&[]));
        let mut axes = SmallVec::new();
        let mut input = Shape::scalar();
        for a in 0..D {
            let (stride, dilation, padding, more) = (options.stride[a], options.dilation[a], options.padding[a], options.output_padding[a]);
            if more >= stride.max(dilation) {
                bail!(
                    argument,
                    "output_padding {:?} must be smaller than stride {:?} or dilation {:?} on every axis",
                    options.output_padding,
                    options.stride,
                    options.dilation
                );
            }
            let (Some(&n), Some(&k)) = (outputs.get(a), kernel.get(a)) else { break };
            let extent = || {
                let reach = n.checked_sub(1)?.checked_mul(stride)?.checked_add(k.checked_sub(1)?.checked_mul(dilation)?)?;
                let whole = isize::try_from(reach.checked_add(1)?.checked_add(more)?).ok()?;
                Some((whole.checked_sub(isize::try_from(padding).ok()?.checked_mul(2)?)?, padding as isize, more as isize))
            };
            let Some((extent, low, more)) = extent() else {
                bail!(shape, "{} and weight {w}: an axis is empty, or the result has more elements than memory can address", y)
            };
            if extent < 1 {
                bail!(shape, "x {y}, weight {w}: nothing of axis {} is left after padding {padding} at both ends; use less padding", a + 2);
            }
            axes.push(Window { stride, dilation, padding: (low, low - more) });
            input = input.iter().copied().chain([extent as usize]).collect();
        }
        // Where extents are missing the shape rule says so.
        while axes.len() < D {
            axes.push(Window { stride: 1, dilation: 1, padding: (0, 0) });
        }
        Ok(Sliding { axes, groups: options.groups, input, kernel: kernel.into() })
    }

    /// Of windows that are reduced.
    ///
    /// # Errors
    /// Argument error for padding of more than half of a window.
    pub fn pool<const D: usize>(
        x: &Shape,
        kernel: &[usize; D],
        stride: Option<[usize; D]>,
        padding: [usize; D],
        dilation: [usize; D],
        ceil: bool,
    ) -> Result<Self> {
        let stride = stride.unwrap_or(*kernel);
        let mut axes = SmallVec::new();
        for a in 0..D {
            let reach = kernel[a].saturating_sub(1).saturating_mul(dilation[a]).saturating_add(1);
            if padding[a] > reach / 2 {
                bail!(argument, "padding {padding:?} must be at most half of the window {kernel:?}");
            }
            // At most a quarter of what an address counts, by the check above, unless the window is beyond any input.
            let Ok(low) = isize::try_from(padding[a]) else { bail!(shape, "window {kernel:?} is larger than memory can address (x {x})") };
            let mut high = low;
            let n = x.get(2 + a).copied().unwrap_or(0).saturating_add(padding[a]);
            let padded = n.saturating_add(padding[a]);
            if ceil && stride[a] > 0 && padded >= reach {
                let mut last = (padded - reach).div_ceil(stride[a]);
                // A window that begins behind the input and the padding before it is left out.
                if last.saturating_mul(stride[a]) >= n {
                    last -= 1;
                }
                let end = last.saturating_mul(stride[a]).saturating_add(reach);
                high = isize::try_from(end).unwrap_or(isize::MAX).saturating_sub_unsigned(n);
            }
            axes.push(Window { stride: stride[a], dilation: dilation[a], padding: (low, high) });
        }
        Ok(Sliding { axes, groups: 1, input: x.get(2..).unwrap_or(&[]).into(), kernel: kernel[..].into() })
    }

    /// Shape error unless an operand has images, channels and the spatial axes.
    pub(super) fn planes(&self, x: &Shape) -> Result<()> {
        let d = self.axes.len();
        if x.rank() != d + 2 {
            let hint = if x.rank() == d + 1 { "; unsqueeze(0) adds the batch axis" } else { "" };
            bail!(shape, "x {x}: expected {}{hint}", axes_of("batch, channels", d));
        }
        Ok(())
    }

    /// Argument error for windows that see nothing of the input.
    pub(super) fn every_window_sees(&self, output: &Shape) -> Result<()> {
        for (a, w) in self.axes.iter().enumerate() {
            let sees = |p: usize| {
                (0..self.kernel[a])
                    .any(|k| (p * w.stride + k * w.dilation).checked_add_signed(-w.padding.0).is_some_and(|at| at < self.input[a]))
            };
            if !(0..output[a]).all(sees) {
                bail!(
                    argument,
                    "with padding {:?} a window of {} sees nothing of the input {}: use less padding",
                    w.padding,
                    self.kernel,
                    self.input
                );
            }
        }
        Ok(())
    }

    /// Shape error unless an operand has the axes that are expected of it.
    pub(super) fn ranks(&self, operands: [(&str, &Shape, &str); 2]) -> Result<()> {
        let [(p, a, lead_a), (q, b, lead_b)] = operands;
        let d = self.axes.len();
        if a.rank() != d + 2 || b.rank() != d + 2 {
            let hint = if a.rank() == d + 1 { "; unsqueeze(0) adds the batch axis" } else { "" };
            bail!(shape, "{p} {a}, {q} {b}: expected {p} {}, {q} {}{hint}", axes_of(lead_a, d), axes_of(lead_b, d));
        }
        Ok(())
    }

    /// Shape error unless `channels` of an operand are those that the kernel has, `each` in every group.
    pub(super) fn channels(&self, what: &str, of: &Shape, w: &Shape, each: usize) -> Result<()> {
        let (d, wanted) = (self.axes.len(), each.checked_mul(self.groups));
        if wanted != Some(of[1]) {
            let last = if wanted == Some(of[d + 1]) { "; are they the last axis? permute it to the second place" } else { "" };
            bail!(
                shape,
                "{what} {of} has {} channels, but weight {w} takes {each} in each of {} {}{last}",
                of[1],
                self.groups,
                if self.groups == 1 { "group" } else { "groups" }
            );
        }
        Ok(())
    }

    /// Argument error for a stride, dilation or number of groups of 0.
    pub(super) fn counts(&self) -> Result<()> {
        let of = |f: fn(&Window) -> usize| self.axes.iter().map(f).collect::<Shape>();
        if self.groups == 0 || self.axes.iter().any(|a| a.stride == 0 || a.dilation == 0) {
            let (s, d) = (of(|a| a.stride), of(|a| a.dilation));
            bail!(argument, "stride {s}, dilation {d} and groups {} must be at least 1", self.groups);
        }
        Ok(())
    }

    /// The output's spatial extents.
    ///
    /// # Errors
    /// Argument error for a stride, dilation or number of groups of 0; shape error for a kernel that is larger than the padded input.
    pub fn output(&self) -> Result<Shape> {
        self.counts()?;
        let padded = |(a, &n): (&Window, &usize)| n.checked_add_signed(a.padding.0)?.checked_add_signed(a.padding.1);
        let padded: Option<Shape> = self.axes.iter().zip(self.input.iter()).map(padded).collect();
        let Some(padded) = padded.filter(|p| p.iter().all(|&n| n <= isize::MAX as usize)) else {
            bail!(argument, "input {} cannot be padded by so much", self.input)
        };
        let reach = |(a, &k): (&Window, &usize)| k.checked_sub(1).map(|k| k.saturating_mul(a.dilation).saturating_add(1));
        let Some(reach) = self.axes.iter().zip(self.kernel.iter()).map(reach).collect::<Option<Shape>>() else {
            bail!(shape, "kernel {} has no elements along an axis", self.kernel)
        };
        if let Some(axis) = (0..padded.rank()).find(|&a| reach[a] > padded[a]) {
            let wide = if reach == self.kernel { String::new() } else { format!(", with its dilation {reach},") };
            bail!(
                shape,
                "kernel {}{wide} is larger than the padded input {padded} along spatial axis {axis} (input {}): add padding",
                self.kernel,
                self.input
            );
        }
        Ok(self.axes.iter().zip(padded.iter().zip(reach.iter())).map(|(a, (p, r))| (p - r) / a.stride + 1).collect())
    }

    /// Shape error unless the spatial extents of an operand are those that were given.
    pub(super) fn extents(&self, what: &str, of: &Shape, wanted: &Shape) -> Result<()> {
        if of[2..] != wanted[..] {
            bail!(shape, "{what} {of} must have the spatial extents {wanted} (input {}, kernel {})", self.input, self.kernel);
        }
        Ok(())
    }

    /// The numbers for kernels, of operands that were checked.
    pub(super) fn plan(&self, images: usize, inputs: usize, outputs: usize) -> Result<Conv> {
        let y = self.output()?;
        let mut axes = [Axis::NONE; 3];
        let first = 3 - self.axes.len();
        for (a, w) in self.axes.iter().enumerate() {
            axes[first + a] = Axis {
                input: self.input[a],
                kernel: self.kernel[a],
                output: y[a],
                stride: w.stride,
                dilation: w.dilation,
                low: w.padding.0,
            };
        }
        Ok(Conv { images, groups: self.groups, inputs, outputs: outputs / self.groups, axes })
    }
}
