//! What the kernels of rotary embedding take.

/// Frequencies per launch: `struct Frequencies` of kernels/attention/rope.cu.
pub(crate) const CHUNK: usize = 128;

/// What some consecutive pairs turn by per position.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frequencies {
    /// One number a pair.
    pub f: [f64; CHUNK],
}

// The struct of the same name in kernels/attention/rope.cu has this size as well.
const _: () = assert!(size_of::<Frequencies>() == 1024);
