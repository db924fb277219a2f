//! What images need. Convolutions over one, two or three spatial axes, their transposes and the gradients of their kernels: the three are the
//! derivatives of one trilinear form, so that the derivatives of each are the other two, to any order. Pooling, windows as columns, resampling,
//! reading at positions.

pub mod adaptive_pool;
pub mod affine_grid;
pub mod avg_pool;
#[allow(clippy::module_inception)] // reason: the family's first op has the family's name
pub mod conv;
pub mod conv_input;
pub mod conv_weight;
mod define;
pub mod grid_sample;
pub mod interpolate;
pub mod local_response_norm;
pub mod max_pool;
mod options;
pub mod resample;
mod samples;
mod sliding;
pub mod unfold;

pub use crate::backend::resample::{InterpolateMode, Resampling};
pub use interpolate::{InterpolateOptions, InterpolateSize};
pub use options::{
    AvgPool1dOptions, AvgPool2dOptions, AvgPool3dOptions, AvgPoolOptions, Conv1dOptions, Conv2dOptions, Conv3dOptions, ConvOptions,
    ConvTranspose1dOptions, ConvTranspose2dOptions, ConvTranspose3dOptions, ConvTransposeOptions, GridSampleMode, GridSampleOptions,
    GridSamplePadding, MaxPool1dOptions, MaxPool2dOptions, MaxPool3dOptions, MaxPoolOptions, Padding, UnfoldOptions,
};
pub use sliding::{Sliding, Window};
