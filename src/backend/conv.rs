//! What both backends are told of a convolution.
//!
//! Its three ops are the derivatives of one trilinear form, `Σ ȳ[n, o, p] · w[o, c, k] · x[n, c, p·stride − low + k·dilation]`: by ȳ it is
//! the convolution, by x the transposed convolution, by w the gradient of the kernel. So they share these numbers.

/// One spatial axis: position `p` of the output and element `k` of the kernel meet at `p·stride − low + k·dilation` of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Axis {
    pub(crate) input: usize,
    pub(crate) kernel: usize,
    pub(crate) output: usize,
    pub(crate) stride: usize,
    pub(crate) dilation: usize,
    /// Padding before the input; negative where the input's beginning is left out.
    pub(crate) low: isize,
}

impl Axis {
    /// An axis that is not there.
    pub(crate) const NONE: Self = Axis { input: 1, kernel: 1, output: 1, stride: 1, dilation: 1, low: 0 };

    /// Where element `k` of the kernel meets the input for position 0 of the output.
    #[inline(always)]
    pub(crate) fn offset(&self, k: usize) -> isize {
        (k * self.dilation) as isize - self.low
    }

    /// The axis of a kernel that begins with this element, and ends with it.
    pub(crate) fn element(&self, k: usize) -> Self {
        Axis { kernel: 1, low: self.low - (k * self.dilation) as isize, ..*self }
    }

    /// The positions of the output for which element `k` of the kernel lies inside the input: the first, and the one after the last.
    #[inline(always)]
    pub(crate) fn inside(&self, k: usize) -> (usize, usize) {
        let (offset, stride) = (self.offset(k), self.stride);
        let first = if offset < 0 { offset.unsigned_abs().div_ceil(stride) } else { 0 };
        let left = if offset < 0 { self.input + offset.unsigned_abs() } else { self.input.saturating_sub(offset as usize) };
        let end = left.div_ceil(stride).min(self.output);
        (first.min(end), end)
    }
}

/// A convolution: channels are counted per group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conv {
    pub(crate) images: usize,
    pub(crate) groups: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) axes: [Axis; 3],
}

impl Conv {
    /// Positions of the input.
    pub(crate) fn input(&self) -> usize {
        self.axes.iter().map(|a| a.input).product()
    }

    /// Positions of the output.
    pub(crate) fn output(&self) -> usize {
        self.axes.iter().map(|a| a.output).product()
    }

    /// Elements of the kernel for one pair of channels.
    pub(crate) fn taps(&self) -> usize {
        self.axes.iter().map(|a| a.kernel).product()
    }

    /// Numbers that an output is the sum of.
    pub(crate) fn depth(&self) -> usize {
        self.inputs * self.taps()
    }

    /// Whether input and output have the same positions and each meets its own alone.
    pub(crate) fn is_pointwise(&self) -> bool {
        self.axes.iter().all(|a| a.kernel == 1 && a.stride == 1 && a.low == 0 && a.input == a.output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_inside_are_those_of_a_search() {
        for input in 0..7 {
            for (stride, dilation, low) in [(1, 1, 0), (1, 2, 3), (2, 1, 1), (3, 2, 5), (2, 3, -1), (5, 1, -2), (4, 7, 9)] {
                for output in 0..6 {
                    let axis = Axis { input, kernel: 4, output, stride, dilation, low };
                    for k in 0..4 {
                        let at = |p: usize| (p * stride + k * dilation) as isize - low;
                        let found: Vec<usize> = (0..output).filter(|&p| (0..input as isize).contains(&at(p))).collect();
                        let (first, end) = axis.inside(k);
                        assert_eq!((first..end).collect::<Vec<_>>(), found, "{axis:?}, {k}");
                    }
                }
            }
        }
    }
}
