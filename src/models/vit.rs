//! The vision transformer (Dosovitskiy et al. 2020): an encoder of patches, under Hugging Face's names.

use super::skeleton::{Intermediate, Projections, Skeleton, fresh};
use crate::dtype::DType;
use crate::error::{Result, bail};
use crate::io::{self, VitConfig};
use crate::memory::try_collect_ok;
use crate::module::Param;
use crate::nn::{Activation, Conv2d, LayerNorm, Linear};
use crate::ops::Conv2dOptions;
use crate::rng::Key;
use crate::tensor::Tensor;
use std::panic::Location;

#[derive(Clone, Debug)]
struct PatchEmbeddings {
    projection: Conv2d,
}
crate::module!(PatchEmbeddings { projection });

/// Patches to vectors, behind a vector for the whole image; positions are added.
#[derive(Clone, Debug)]
pub struct VitEmbeddings {
    /// `[1, 1, width]`: what stands before the patches, and is read out.
    pub cls_token: Param,
    /// `[1, patches + 1, width]`.
    pub position_embeddings: Param,
    patch_embeddings: PatchEmbeddings,
}
crate::module!(VitEmbeddings { cls_token, position_embeddings, patch_embeddings });

#[derive(Clone, Debug)]
struct Attention {
    of: Projections,
    output: Intermediate,
}
crate::module!(Attention { of as "attention", output });

/// A block: attention and MLP, each behind a norm, around which its input is added.
#[derive(Clone, Debug)]
pub struct VitLayer {
    attention: Attention,
    intermediate: Intermediate,
    output: Intermediate,
    /// Before attention.
    pub layernorm_before: LayerNorm,
    /// Before the MLP.
    pub layernorm_after: LayerNorm,
    activation: Activation,
    heads: usize,
}
crate::module!(VitLayer { attention, intermediate, output, layernorm_before, layernorm_after } skip { activation, heads });

impl VitLayer {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let seen = self.attention.of.attend(&self.layernorm_before.forward(x)?, self.heads, None)?;
        let (normed, x) = self.layernorm_after.forward_sum(x, &self.attention.output.dense.forward(&seen)?)?;
        let h = self.activation.apply(&self.intermediate.dense.forward(&normed)?)?;
        x.add(&self.output.dense.forward(&h)?)
    }
}

#[derive(Clone, Debug)]
struct VitEncoder {
    layer: Vec<VitLayer>,
}
crate::module!(VitEncoder { layer });

/// A vision transformer without its head.
#[derive(Clone, Debug)]
pub struct VitBackbone {
    /// Patches to vectors.
    pub embeddings: VitEmbeddings,
    encoder: VitEncoder,
    /// After the last block.
    pub layernorm: LayerNorm,
}
crate::module!(VitBackbone { embeddings, encoder, layernorm });

/// A vision transformer that scores images, under Hugging Face's names.
///
/// ```
/// use cotangent::{F32, Key, Tensor, io::{ImageNetwork, ModelConfig}, models::Vit};
/// # let json = r#"{"model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
/// #     "num_attention_heads": 2, "id2label": {"0": "cat", "1": "dog"}}"#;
/// let ModelConfig::Image(config) = ModelConfig::parse(json)? else { unreachable!() };
/// let ImageNetwork::Vit(vit) = config.network else { unreachable!() };
/// let model = Vit::new(&vit, F32, Key::new(1))?;
/// assert_eq!(model.forward(&Tensor::ones([5, 3, 8, 8], F32)?)?.shape(), &[5, 2]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Vit {
    /// All but the head.
    pub vit: VitBackbone,
    /// From the first vector to scores.
    pub classifier: Linear,
    config: VitConfig,
}
crate::module!(Vit { vit, classifier } skip { config });

impl Vit {
    /// A fresh model: matrices normal with σ = 0.02, norms one, biases zero.
    ///
    /// # Errors
    /// Argument error when the configuration is impossible; out of memory.
    #[track_caller]
    pub fn new(config: &VitConfig, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        config.validate()?;
        let mut model = Self::skeleton(config, dtype)?;
        fresh(&mut model, config.layers, key.into(), |_| false)?;
        Ok(model)
    }

    pub(super) fn skeleton(c: &VitConfig, dtype: DType) -> Result<Self> {
        let s = Skeleton(dtype);
        let options = Conv2dOptions { stride: c.patch, ..Conv2dOptions::default() };
        let [height, width] = c.patch;
        let projection = Conv2d { weight: s.param([c.width, c.channels, height, width])?, bias: Some(s.param([c.width])?), options };
        let layer = |_| {
            Ok(VitLayer {
                attention: Attention {
                    of: s.projections(c.width, c.qkv_bias)?,
                    output: Intermediate { dense: s.linear(c.width, c.width, true)? },
                },
                intermediate: Intermediate { dense: s.linear(c.width, c.hidden, true)? },
                output: Intermediate { dense: s.linear(c.hidden, c.width, true)? },
                layernorm_before: s.layer_norm(c.width, c.norm_eps)?,
                layernorm_after: s.layer_norm(c.width, c.norm_eps)?,
                activation: super::activation(c.activation),
                heads: c.heads,
            })
        };
        Ok(Vit {
            vit: VitBackbone {
                embeddings: VitEmbeddings {
                    cls_token: s.param([1, 1, c.width])?,
                    position_embeddings: s.param([1, c.patches() + 1, c.width])?,
                    patch_embeddings: PatchEmbeddings { projection },
                },
                encoder: VitEncoder { layer: try_collect_ok((0..c.layers).map(layer))? },
                layernorm: s.layer_norm(c.width, c.norm_eps)?,
            },
            classifier: s.linear(c.width, c.classes, true)?,
            config: c.clone(),
        })
    }

    /// Sizes and options.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// Images `[batch, channels, height, width]` of the model's extents to scores `[batch, classes]`.
    ///
    /// # Errors
    /// Shape error for images of another shape.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let at = Location::caller();
        self.run(x).and_then(|y| self.classifier.forward(&y.narrow(1, 0, 1)?.squeeze(1)?)).map_err(|e| io::at_callers_line(e, "vit", at))
    }

    /// The last layer's values `[batch, patches + 1, width]`, the vector for the whole image first.
    ///
    /// # Errors
    /// As [`Vit::forward`].
    #[track_caller]
    pub fn features(&self, x: &Tensor) -> Result<Tensor> {
        let at = Location::caller();
        self.run(x).map_err(|e| io::at_callers_line(e, "vit", at))
    }

    fn run(&self, x: &Tensor) -> Result<Tensor> {
        let (c, e) = (&self.config, &self.vit.embeddings);
        let [height, width] = c.image;
        let &[batch, channels, h, w] = x.shape().dims() else {
            bail!(shape, "images are [batch, {}, {height}, {width}], found {}", c.channels, x.shape());
        };
        if (channels, h, w) != (c.channels, height, width) {
            bail!(shape, "images are [batch, {}, {height}, {width}], found {}; `interpolate` changes their extents", c.channels, x.shape());
        }
        let patches = e.patch_embeddings.projection.forward(x)?.flatten(2, 3)?.transpose(1, 2)?;
        let first = e.cls_token.expand([batch, 1, c.width])?;
        let mut x = Tensor::concat(&[&first, &patches], 1)?.add(&e.position_embeddings)?;
        for (i, layer) in self.vit.encoder.layer.iter().enumerate() {
            x = layer.forward(&x)?;
            x.tap(|| format!("vit.encoder.layer.{i}"));
        }
        self.vit.layernorm.forward(&x)
    }
}
