//! Networks for images that others trained.

use super::Vit;
use super::load_options::LoadOptions;
use super::source::{Source, fill};
use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::io::{self, ImageConfig, ImageNetwork, LoadReport, ModelConfig, WeightFiles};
use crate::module::{Module, Visitor};
use crate::nn::{Pass, ResNet};
use crate::rng::Key;
use crate::tensor::Tensor;
use std::panic::Location;
use std::path::Path;

/// A network that scores images, of any family that is known here.
#[derive(Clone, Debug)]
#[non_exhaustive]
// One model lives at a time, and its memory is elsewhere.
#[allow(clippy::large_enum_variant)]
pub enum ImageModel {
    /// A residual network of convolutions, with torchvision's names.
    ResNet(ResNet),
    /// A vision transformer.
    Vit(Vit),
}

impl Module for ImageModel {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        match self {
            ImageModel::ResNet(m) => m.visit(v),
            ImageModel::Vit(m) => m.visit(v),
        }
    }
}

impl ImageModel {
    /// A fresh model.
    ///
    /// # Errors
    /// Argument error when the configuration is impossible; dtype error for integers; out of memory.
    #[track_caller]
    pub fn new(config: &ImageConfig, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        match &config.network {
            ImageNetwork::ResNet(c) => ResNet::new(c, dtype, key).map(ImageModel::ResNet),
            ImageNetwork::Vit(c) => Vit::new(c, dtype, key).map(ImageModel::Vit),
        }
    }

    /// Images `[batch, channels, height, width]` to scores `[batch, classes]`: evaluation.
    ///
    /// # Errors
    /// Shape error for images of another shape.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_in(x, &mut Pass::eval())
    }

    /// Scores in a pass: in training, batch norms go by the batch.
    ///
    /// # Errors
    /// As [`ImageModel::forward`].
    #[track_caller]
    pub fn forward_in(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        match self {
            ImageModel::ResNet(m) => m.forward_in(x, pass),
            ImageModel::Vit(m) => m.forward(x),
        }
    }
}

/// Opens a network for images in a folder of Hugging Face: `ResNetForImageClassification` or `ViTForImageClassification` of transformers,
/// or a ResNet of timm (whose names are torchvision's). Gives the model, what its files say of it, and the report.
///
/// ```no_run
/// use cotangent::{F32, models::{LoadOptions, load_image_model}};
/// let (model, config, report) = load_image_model("microsoft/resnet-50", LoadOptions::dtype(F32))?;
/// println!("{} classes, {} tensors", config.labels.len(), report.loaded.len());
/// # Ok::<(), cotangent::Error>(())
/// ```
///
/// # Errors
/// As [`load`](super::load); argument error for another family.
#[track_caller]
pub fn load_image_model(path: impl AsRef<Path>, options: LoadOptions<'_>) -> Result<(ImageModel, ImageConfig, LoadReport)> {
    let at = Location::caller();
    open(path.as_ref(), options).map_err(|e: Error| io::at_callers_line(e, "load_image_model", at))
}

fn open(path: &Path, mut options: LoadOptions<'_>) -> Result<(ImageModel, ImageConfig, LoadReport)> {
    if path.extension().is_some_and(|e| e == "safetensors") {
        bail!(argument, "{} holds weights alone: give the folder, where config.json says what they are", path.display());
    }
    if !path.exists() {
        bail!(io, "{} does not exist; expected a folder with config.json and model.safetensors", path.display());
    }
    let config = match ModelConfig::open(path)? {
        ModelConfig::Image(config) => config,
        ModelConfig::Bert(_) => bail!(argument, "{} is no network for images: `models::load_encoder` opens BERT", path.display()),
        _ => bail!(argument, "{} is no network for images: `models::load` opens language models", path.display()),
    };
    let source = Source::Folder(WeightFiles::open(path)?);
    let dtype = match options.dtype {
        Some(d) if !d.is_float() => bail!(dtype, "weights cannot be {d}"),
        Some(d) => d,
        None => source.usual_dtype()?,
    };
    let (mut model, family) = match &config.network {
        ImageNetwork::ResNet(c) => {
            let empty = |shape: crate::Shape| Tensor::zeros((), dtype)?.expand(shape);
            (ImageModel::ResNet(ResNet::with_weights(c, dtype, &mut { empty })?), "resnet")
        }
        ImageNetwork::Vit(c) => (ImageModel::Vit(Vit::skeleton(c, dtype)?), "vit"),
    };
    let report = fill(&mut model, &source, false, family, &mut options)?;
    Ok((model, config, report))
}
