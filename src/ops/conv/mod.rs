//! Convolutions over one, two or three spatial axes, their transposes, and the gradients of their kernels. The three are the
//! derivatives of one trilinear form, so that the derivatives of each are the other two, to any order.

#[allow(clippy::module_inception)] // reason: the family's first op has the family's name
pub mod conv;
pub mod conv_input;
pub mod conv_weight;
mod define;
mod options;
mod samples;
mod sliding;

pub use options::{
    Conv1dOptions, Conv2dOptions, Conv3dOptions, ConvOptions, ConvTranspose1dOptions, ConvTranspose2dOptions, ConvTranspose3dOptions,
    ConvTransposeOptions, Padding,
};
pub use sliding::{Sliding, Window};
