//! Layers: plain structs that are parameter trees. Layer L5; no op is defined here.
//!
//! Field names are those of Hugging Face and nanoGPT checkpoints, so that weights load without a mapping.

mod attention;
mod block;
mod cache;
mod conv;
mod gpt;
mod init;
mod layers;
mod mlp;
mod norms;
mod pass;
mod plain;
mod recurrent;
mod resnet;
mod rotation;
mod sequence;
mod sequential;
mod torch;
mod transformer;
mod unet;

pub(crate) use attention::attend;
pub use attention::{Attend, AttentionConfig, CausalSelfAttention, MultiHeadAttention};
pub use block::{Block, DecoderLayer, NormOrder};
pub use cache::KvCache;
pub(crate) use cache::write;
pub use conv::{Conv, Conv1d, Conv2d, Conv3d, ConvTranspose, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d};
pub use gpt::{Gpt, GptConfig, Transformer};
pub use init::{Fans, Init};
pub use layers::{Activation, Embedding, LayerNorm, Linear, LinearOptions, RmsNorm};
pub use mlp::{GatedMlp, Mlp};
pub use norms::{
    BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, GroupNorm, InstanceNorm, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d,
};
pub use pass::Pass;
pub use plain::{
    AdaptiveAvgPool, AdaptiveAvgPool1d, AdaptiveAvgPool2d, AdaptiveAvgPool3d, AdaptiveMaxPool, AdaptiveMaxPool1d, AdaptiveMaxPool2d,
    AdaptiveMaxPool3d, AvgPool, AvgPool1d, AvgPool2d, AvgPool3d, Flatten, LocalResponseNorm, MaxPool, MaxPool1d, MaxPool2d, MaxPool3d,
    PixelShuffle, Upsample,
};
pub use recurrent::{GruCell, LstmCell, RnnCell};
pub use resnet::{BasicBlock, Bottleneck, Downsample, ResNet, ResNetBlock, ResNetConfig, ResNetStem};
pub use rotation::Rotation;
pub use sequence::{Gru, Lstm, Recur, RecurrentConfig, Rnn};
pub use sequential::{AnyLayer, Dropout, Func, Layer, Residual, Sequential};
pub use torch::from_torch;
pub use transformer::{TransformerConfig, TransformerDecoderLayer, TransformerEncoderLayer};
pub use unet::{DoubleConv, UNet, UNetConfig, UNetUp};
