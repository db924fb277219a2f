//! Convolutions over one, two or three spatial axes, their transposes and the gradients of their kernels, and pooling. The three
//! convolutions are the derivatives of one trilinear form, so that the derivatives of each are the other two, to any order.

pub mod adaptive_pool;
pub mod avg_pool;
#[allow(clippy::module_inception)] // reason: the family's first op has the family's name
pub mod conv;
pub mod conv_input;
pub mod conv_weight;
mod define;
pub mod max_pool;
mod options;
mod samples;
mod sliding;

pub use options::{
    AvgPool1dOptions, AvgPool2dOptions, AvgPool3dOptions, AvgPoolOptions, Conv1dOptions, Conv2dOptions, Conv3dOptions, ConvOptions,
    ConvTranspose1dOptions, ConvTranspose2dOptions, ConvTranspose3dOptions, ConvTransposeOptions, MaxPool1dOptions, MaxPool2dOptions,
    MaxPool3dOptions, MaxPoolOptions, Padding,
};
pub use sliding::{Sliding, Window};
