//! What the kernels of convolutions and pooling take.

use crate::backend::conv::Conv;

/// A convolution in numbers: `struct Sliding` of kernels/common/sliding.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sliding {
    images: i64,
    groups: i64,
    inputs: i64,
    outputs: i64,
    input: [i64; 3],
    kernel: [i64; 3],
    output: [i64; 3],
    stride: [i64; 3],
    dilation: [i64; 3],
    low: [i64; 3],
}

// The struct of the same name in kernels/common/sliding.cuh has this size as well.
const _: () = assert!(size_of::<Sliding>() == 176);

impl From<&Conv> for Sliding {
    fn from(c: &Conv) -> Self {
        // A stride beyond any position is as good as another.
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let of = |f: fn(&crate::backend::conv::Axis) -> usize| c.axes.each_ref().map(|a| count(f(a)));
        Sliding {
            images: count(c.images),
            groups: count(c.groups),
            inputs: count(c.inputs),
            outputs: count(c.outputs),
            input: of(|a| a.input),
            kernel: of(|a| a.kernel),
            output: of(|a| a.output),
            stride: of(|a| a.stride),
            dilation: of(|a| a.dilation),
            low: c.axes.each_ref().map(|a| a.low as i64),
        }
    }
}
