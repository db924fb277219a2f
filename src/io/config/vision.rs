//! Configurations of networks for images.

use super::fields::{Fields, divides, positive, show, within};
use super::{ConfigActivation, MOST_LAYERS, MOST_WIDTH, Refusal};
use crate::error::{Error, Result};
use crate::memory;
use crate::nn::{ResNetConfig, ResNetStem};
use serde_json::Value;

/// Pixels of a side, at most: beyond any model.
const MOST_PIXELS: usize = 1 << 16;

/// Which network for images, and what its scores are of.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageConfig {
    /// The network.
    pub network: ImageNetwork,
    /// Names of the classes, by their numbers; empty where the file does not have them.
    pub labels: Vec<String>,
}

/// A network for images, by its hyper-parameters.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ImageNetwork {
    /// A residual network of convolutions.
    ResNet(ResNetConfig),
    /// A vision transformer.
    Vit(VitConfig),
}

impl ImageConfig {
    pub(super) fn resnet(config: Fields<'_>) -> Result<Self, Refusal> {
        let labels = labels(config)?;
        Ok(ImageConfig { network: ImageNetwork::ResNet(resnet(config, labels.len())?), labels })
    }

    pub(super) fn vit(config: Fields<'_>) -> Result<Self, Refusal> {
        let labels = labels(config)?;
        Ok(ImageConfig { network: ImageNetwork::Vit(VitConfig::parse(config, labels.len())?), labels })
    }

    /// A folder of timm, which names its architecture and has torchvision's names of tensors.
    pub(super) fn timm(config: Fields<'_>, architecture: &str) -> Result<Self, Refusal> {
        let names = config.list("label_names")?.unwrap_or_default();
        let label = |v: &Value| v.as_str().map(str::to_owned).ok_or_else(|| "`label_names` has something other than texts".to_owned());
        let labels = collected(names.iter().map(label))?;
        Ok(ImageConfig { network: ImageNetwork::ResNet(timm(config, architecture)?), labels })
    }
}

/// A list of what a file has, in memory that was asked for.
fn collected<T>(all: impl Iterator<Item = Result<T, String>>) -> Result<Vec<T>, String> {
    let mut out = Vec::new();
    for one in all {
        memory::push(&mut out, one?).map_err(|e| e.text())?;
    }
    Ok(out)
}

/// Hyper-parameters of a vision transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct VitConfig {
    /// Height and width of an image, in pixels.
    pub image: [usize; 2],
    /// Height and width of a patch, in pixels.
    pub patch: [usize; 2],
    /// Channels of an image.
    pub channels: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside the MLP.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads of attention.
    pub heads: usize,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Activation of the MLP.
    pub activation: ConfigActivation,
    /// Added to the variance in layer norms.
    pub norm_eps: f64,
    /// Numbers that come out.
    pub classes: usize,
}

/// One number for both sides, or a list of both.
fn sides(config: Fields<'_>, name: &str) -> Result<[usize; 2], String> {
    let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
    match config.get(name) {
        None => Err(format!("`{name}` is missing")),
        Some(v) => match v.as_array().map(Vec::as_slice) {
            Some([h, w]) => number(h).zip(number(w)).map(|(h, w)| [h, w]),
            Some(_) => None,
            None => number(v).map(|n| [n, n]),
        }
        .ok_or_else(|| format!("`{name}` is {}, expected a whole number or two of them", show(v))),
    }
}

/// Names of the classes, by their numbers; transformers writes two where a file has none.
fn labels(config: Fields<'_>) -> Result<Vec<String>, String> {
    let Some(Value::Object(names)) = config.get("id2label") else {
        let n = config.optional_size("num_labels")?.unwrap_or(2);
        within("num_labels", n, MOST_WIDTH)?;
        return collected((0..n).map(|i| Ok(format!("LABEL_{i}"))));
    };
    let name = |i: usize| {
        let name = names.get(&i.to_string()).and_then(Value::as_str).map(str::to_owned);
        name.ok_or_else(|| format!("`id2label` has no text for {i}, expected one for every number from 0"))
    };
    collected((0..names.len()).map(name))
}

impl VitConfig {
    fn parse(config: Fields<'_>, classes: usize) -> Result<Self, String> {
        let out = VitConfig {
            image: sides(config, "image_size")?,
            patch: sides(config, "patch_size")?,
            channels: config.optional_size("num_channels")?.unwrap_or(3),
            width: config.size("hidden_size")?,
            hidden: config.size("intermediate_size")?,
            layers: config.size("num_hidden_layers")?,
            heads: config.size("num_attention_heads")?,
            qkv_bias: config.flag("qkv_bias", true)?,
            activation: ConfigActivation::named("hidden_act", config.text("hidden_act")?.unwrap_or("gelu"))?,
            norm_eps: config.optional_float("layer_norm_eps")?.unwrap_or(1e-12),
            classes,
        };
        out.check().map(|()| out)
    }

    fn check(&self) -> Result<(), String> {
        for (image, patch) in self.image.into_iter().zip(self.patch) {
            within("image_size", image, MOST_PIXELS)?;
            within("patch_size", patch, MOST_PIXELS)?;
            divides(("patch_size", patch), ("image_size", image))?;
        }
        within("num_channels", self.channels, MOST_WIDTH)?;
        within("hidden_size", self.width, MOST_WIDTH)?;
        within("intermediate_size", self.hidden, MOST_WIDTH)?;
        within("num_hidden_layers", self.layers, MOST_LAYERS)?;
        within("num_labels", self.classes, MOST_WIDTH)?;
        divides(("num_attention_heads", self.heads), ("hidden_size", self.width))?;
        positive("layer_norm_eps", self.norm_eps)
    }

    /// Checks that sizes are possible and fit each other.
    ///
    /// # Errors
    /// Argument error that names the field (as config.json calls it) and its value.
    #[track_caller]
    pub fn validate(&self) -> Result<()> {
        self.check().map_err(Error::argument)
    }

    /// Patches of an image.
    pub fn patches(&self) -> usize {
        (self.image[0] / self.patch[0].max(1)) * (self.image[1] / self.patch[1].max(1))
    }
}

/// transformers' `ResNetConfig`.
fn resnet(config: Fields<'_>, classes: usize) -> Result<ResNetConfig, Refusal> {
    for (name, value) in [("downsample_in_first_stage", false), ("downsample_in_bottleneck", false)] {
        if config.flag(name, value)? != value {
            return Err(Refusal::Unknown(format!("`{name}` is {}: such networks are not known here", !value)));
        }
    }
    if let Some(other) = config.text("hidden_act")?.filter(|a| *a != "relu") {
        return Err(Refusal::Unknown(format!("`hidden_act` is `{other}`; networks with relu are known here")));
    }
    let sizes = |name: &str| -> Result<Vec<usize>, String> {
        let list = config.list(name)?.ok_or_else(|| format!("`{name}` is missing"))?;
        let number = |v: &Value| {
            v.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| format!("`{name}` has {}, expected whole numbers", show(v)))
        };
        collected(list.iter().map(number))
    };
    let kind = config.text("layer_type")?.unwrap_or("bottleneck");
    let bottleneck = match kind {
        "bottleneck" => true,
        "basic" => false,
        other => return Err(Refusal::Wrong(format!("`layer_type` is `{other}`, expected basic or bottleneck"))),
    };
    checked(ResNetConfig {
        channels: config.optional_size("num_channels")?.unwrap_or(3),
        stem: ResNetStem::Large,
        width: config.optional_size("embedding_size")?.unwrap_or(64),
        widths: sizes("hidden_sizes")?,
        depths: sizes("depths")?,
        bottleneck,
        classes,
    })
}

fn timm(config: Fields<'_>, architecture: &str) -> Result<ResNetConfig, Refusal> {
    let known = match architecture {
        "resnet18" => ResNetConfig::resnet18(),
        "resnet34" => ResNetConfig::resnet34(),
        "resnet50" => ResNetConfig::resnet50(),
        "resnet101" => ResNetConfig::resnet101(),
        "resnet152" => ResNetConfig::resnet152(),
        other => {
            return Err(Refusal::Unknown(format!(
                "`architecture` is `{other}`; known are resnet18, resnet34, resnet50, resnet101 and resnet152"
            )));
        }
    };
    if let Some(args) = config.get("model_args").filter(|a| a.as_object().is_none_or(|o| !o.is_empty())) {
        return Err(Refusal::Unknown(format!("`model_args` is {}: networks with them are not known here", show(args))));
    }
    checked(ResNetConfig { classes: config.size("num_classes")?, ..known })
}

fn checked(config: ResNetConfig) -> Result<ResNetConfig, Refusal> {
    let stages = config.depths.iter().fold(0usize, |n, &d| n.saturating_add(d));
    if stages > MOST_LAYERS {
        return Err(Refusal::Wrong(format!("`depths` are {stages} blocks together, expected at most {MOST_LAYERS}")));
    }
    config.validate().map_err(|e| Refusal::Wrong(e.text()))?;
    Ok(config)
}
