//! Residual networks of convolutions (He et al. 2015), with the names of torchvision's state dicts.

use super::{BatchNorm2d, Conv2d, Fans, Init, Linear, Pass};
use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::memory;
use crate::module::{Module, Visitor};
use crate::ops::{Conv2dOptions, MaxPool2dOptions};
use crate::rng::Key;
use crate::shape::Shape;
use crate::tensor::Tensor;
use std::panic::Location;

/// How a [`ResNet`] begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResNetStem {
    /// 7×7 of stride 2, and the largest of 3×3 at stride 2: a quarter of the extents, for photographs.
    Large,
    /// 3×3 of stride 1: for images of 8 to 64 pixels.
    Small,
}

/// Sizes of a [`ResNet`]; begin with one of torchvision's: [`ResNetConfig::resnet18`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResNetConfig {
    /// Channels of an image.
    pub channels: usize,
    /// How it begins.
    pub stem: ResNetStem,
    /// Channels after the beginning.
    pub width: usize,
    /// Channels of each stage's results; each stage but the first halves the extents.
    pub widths: Vec<usize>,
    /// Blocks of each stage.
    pub depths: Vec<usize>,
    /// Whether blocks are [`Bottleneck`]s, whose middle has a quarter of the channels, and not [`BasicBlock`]s.
    pub bottleneck: bool,
    /// Numbers that come out.
    pub classes: usize,
}

impl ResNetConfig {
    fn torchvision(depths: [usize; 4], bottleneck: bool) -> Self {
        let widths = [64, 128, 256, 512].map(|w| if bottleneck { 4 * w } else { w });
        ResNetConfig {
            channels: 3,
            stem: ResNetStem::Large,
            width: 64,
            widths: widths.into(),
            depths: depths.into(),
            bottleneck,
            classes: 1000,
        }
    }

    /// ResNet-18: 11.7 million parameters.
    pub fn resnet18() -> Self {
        Self::torchvision([2, 2, 2, 2], false)
    }

    /// ResNet-34: 21.8 million parameters.
    pub fn resnet34() -> Self {
        Self::torchvision([3, 4, 6, 3], false)
    }

    /// ResNet-50: 25.6 million parameters.
    pub fn resnet50() -> Self {
        Self::torchvision([3, 4, 6, 3], true)
    }

    /// ResNet-101: 44.5 million parameters.
    pub fn resnet101() -> Self {
        Self::torchvision([3, 4, 23, 3], true)
    }

    /// ResNet-152: 60.2 million parameters.
    pub fn resnet152() -> Self {
        Self::torchvision([3, 8, 36, 3], true)
    }

    /// Checks that sizes are possible and fit each other.
    ///
    /// # Errors
    /// Argument error that names the field and its value.
    #[track_caller]
    pub fn validate(&self) -> Result<()> {
        // Beyond any model, below what overflows when multiplied.
        const MOST: usize = 1 << 24;
        let sizes = [("channels", self.channels), ("width", self.width), ("classes", self.classes)];
        let stages = self.widths.iter().map(|&w| ("widths", w)).chain(self.depths.iter().map(|&d| ("depths", d)));
        for (name, n) in sizes.into_iter().chain(stages) {
            if n == 0 || n > MOST {
                bail!(argument, "`{name}` has {n}: from 1 to {MOST}");
            }
        }
        if self.widths.is_empty() || self.widths.len() != self.depths.len() {
            bail!(argument, "{} widths and {} depths: one of each for every stage", self.widths.len(), self.depths.len());
        }
        if let Some(w) = self.widths.iter().find(|w| self.bottleneck && !w.is_multiple_of(4)) {
            bail!(argument, "a bottleneck's middle has a quarter of its {w} channels: no whole number");
        }
        Ok(())
    }
}

impl ResNetConfig {
    /// Elements of the matrices; `None` where they cannot be counted.
    fn elements(&self) -> Option<usize> {
        let product = |all: &[usize]| all.iter().try_fold(1usize, |n, &m| n.checked_mul(m));
        let mut n = product(&[49, self.channels, self.width])?;
        let mut inputs = self.width;
        for (&w, &depth) in self.widths.iter().zip(&self.depths) {
            let one = if self.bottleneck { product(&[w, w])? } else { product(&[18, w, w])? };
            n = n.checked_add(product(&[9, inputs, w])?)?.checked_add(one.checked_mul(depth)?)?;
            inputs = w;
        }
        n.checked_add(product(&[inputs, self.classes])?)
    }
}

/// The path around a block where its extents or channels change: a convolution of 1×1 and its norm.
pub type Downsample = (Conv2d, BatchNorm2d);

/// Two convolutions of 3×3, around which the input is added.
#[derive(Clone, Debug)]
pub struct BasicBlock {
    /// 3×3, with the block's stride.
    pub conv1: Conv2d,
    /// Of `conv1`.
    pub bn1: BatchNorm2d,
    /// 3×3.
    pub conv2: Conv2d,
    /// Of `conv2`.
    pub bn2: BatchNorm2d,
    /// Around them, where the result is of another shape than the input.
    pub downsample: Option<Downsample>,
}
crate::module!(BasicBlock { conv1, bn1, conv2, bn2, downsample });

/// Convolutions of 1×1, 3×3 and 1×1, around which the input is added; the stride is at the second (torchvision's V1.5).
#[derive(Clone, Debug)]
pub struct Bottleneck {
    /// 1×1 to a quarter of the result's channels.
    pub conv1: Conv2d,
    /// Of `conv1`.
    pub bn1: BatchNorm2d,
    /// 3×3, with the block's stride.
    pub conv2: Conv2d,
    /// Of `conv2`.
    pub bn2: BatchNorm2d,
    /// 1×1.
    pub conv3: Conv2d,
    /// Of `conv3`.
    pub bn3: BatchNorm2d,
    /// Around them, where the result is of another shape than the input.
    pub downsample: Option<Downsample>,
}
crate::module!(Bottleneck { conv1, bn1, conv2, bn2, conv3, bn3, downsample });

/// A block of a [`ResNet`].
#[derive(Clone, Debug)]
// Few of them live, and their memory is elsewhere.
#[allow(clippy::large_enum_variant)]
pub enum ResNetBlock {
    /// Of ResNet-18 and 34.
    Basic(BasicBlock),
    /// Of ResNet-50 and deeper.
    Bottleneck(Bottleneck),
}

impl Module for ResNetBlock {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        match self {
            ResNetBlock::Basic(b) => b.visit(v),
            ResNetBlock::Bottleneck(b) => b.visit(v),
        }
    }
}

fn around(x: &Tensor, downsample: Option<&Downsample>, pass: &mut Pass) -> Result<Tensor> {
    match downsample {
        Some((conv, norm)) => norm.forward_in(&conv.forward(x)?, pass),
        None => Ok(x.clone()),
    }
}

impl BasicBlock {
    /// From `[batch, in, height, width]` to `[batch, out, height / stride, width / stride]`.
    ///
    /// # Errors
    /// Shape error for other channels.
    #[track_caller]
    pub fn forward_in(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let y = self.bn1.forward_in(&self.conv1.forward(x)?, pass)?.relu()?;
        let y = self.bn2.forward_in(&self.conv2.forward(&y)?, pass)?;
        y.add(&around(x, self.downsample.as_ref(), pass)?)?.relu()
    }
}

impl Bottleneck {
    /// From `[batch, in, height, width]` to `[batch, out, height / stride, width / stride]`.
    ///
    /// # Errors
    /// Shape error for other channels.
    #[track_caller]
    pub fn forward_in(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let y = self.bn1.forward_in(&self.conv1.forward(x)?, pass)?.relu()?;
        let y = self.bn2.forward_in(&self.conv2.forward(&y)?, pass)?.relu()?;
        let y = self.bn3.forward_in(&self.conv3.forward(&y)?, pass)?;
        y.add(&around(x, self.downsample.as_ref(), pass)?)?.relu()
    }
}

impl ResNetBlock {
    /// As its kind's.
    ///
    /// # Errors
    /// As its kind's.
    #[track_caller]
    pub fn forward_in(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        match self {
            ResNetBlock::Basic(b) => b.forward_in(x, pass),
            ResNetBlock::Bottleneck(b) => b.forward_in(x, pass),
        }
    }
}

/// A residual network: images `[batch, channels, height, width]` to scores `[batch, classes]`.
///
/// Its names are torchvision's (`conv1.weight`, `layer1.0.bn1.running_mean`, `layer2.0.downsample.0.weight`, `fc.bias`), so a state dict of
/// torchvision saved as safetensors loads by [`ModuleFile::load`](crate::io::ModuleFile::load); [`models::load_image_model`](crate::models::load_image_model) opens folders of
/// Hugging Face.
///
/// ```
/// use cotangent::{F32, Key, Module, Tensor, nn::{Pass, ResNet, ResNetConfig, ResNetStem}, value_and_grad};
/// let config = ResNetConfig { stem: ResNetStem::Small, width: 8, widths: vec![8, 16], depths: vec![1, 1], classes: 10, ..ResNetConfig::resnet18() };
/// let mut net = ResNet::new(&config, F32, Key::new(1))?;
/// let (x, y) = (Tensor::randn([4, 3, 8, 8], F32, Key::new(2))?, Tensor::from_slice(&[1i64, 0, 9, 3], [4])?);
/// let mut pass = Pass::train();
/// let (loss, grads) = value_and_grad(&net, |net| net.forward_in(&x, &mut pass)?.cross_entropy(&y))?;
/// pass.update(&mut net)?; // running statistics of the batch norms
/// assert_eq!(net.forward(&x)?.shape(), &[4, 10]); // evaluation
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ResNet {
    /// The first convolution.
    pub conv1: Conv2d,
    /// Of `conv1`.
    pub bn1: BatchNorm2d,
    /// Stages of blocks, called `layer1`, `layer2`, ….
    pub layers: Vec<Vec<ResNetBlock>>,
    /// From the mean over the image to scores.
    pub fc: Linear,
    config: ResNetConfig,
}

impl Module for ResNet {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        let Self { conv1, bn1, layers, fc, config: _ } = self;
        v.field("conv1", conv1);
        v.field("bn1", bn1);
        for (i, stage) in layers.iter_mut().enumerate() {
            v.field(&format!("layer{}", i + 1), stage);
        }
        v.field("fc", fc);
    }
}

/// Makes convolutions without biases, their norms, and the last matrix.
struct Maker<'a> {
    dtype: DType,
    weight: &'a mut dyn FnMut(Shape) -> Result<Tensor>,
}

impl Maker<'_> {
    fn conv(&mut self, inputs: usize, outputs: usize, kernel: usize, stride: usize) -> Result<(Conv2d, BatchNorm2d)> {
        let options = Conv2dOptions { stride: [stride; 2], padding: (kernel / 2).into(), ..Conv2dOptions::default() };
        let weight = (self.weight)([outputs, inputs, kernel, kernel].into())?.into();
        Ok((Conv2d { weight, bias: None, options }, BatchNorm2d::new(outputs, self.dtype)?))
    }

    fn block(&mut self, bottleneck: bool, inputs: usize, outputs: usize, stride: usize) -> Result<ResNetBlock> {
        let block = if bottleneck {
            let middle = outputs / 4;
            let (conv1, bn1) = self.conv(inputs, middle, 1, 1)?;
            let (conv2, bn2) = self.conv(middle, middle, 3, stride)?;
            let (conv3, bn3) = self.conv(middle, outputs, 1, 1)?;
            ResNetBlock::Bottleneck(Bottleneck { conv1, bn1, conv2, bn2, conv3, bn3, downsample: None })
        } else {
            let (conv1, bn1) = self.conv(inputs, outputs, 3, stride)?;
            let (conv2, bn2) = self.conv(outputs, outputs, 3, 1)?;
            ResNetBlock::Basic(BasicBlock { conv1, bn1, conv2, bn2, downsample: None })
        };
        if inputs == outputs && stride == 1 {
            return Ok(block);
        }
        let downsample = Some(self.conv(inputs, outputs, 1, stride)?);
        Ok(match block {
            ResNetBlock::Basic(b) => ResNetBlock::Basic(BasicBlock { downsample, ..b }),
            ResNetBlock::Bottleneck(b) => ResNetBlock::Bottleneck(Bottleneck { downsample, ..b }),
        })
    }
}

impl ResNet {
    /// A fresh network as torchvision draws it: convolutions normal with `σ = √(2 / fan_out)` (He et al. 2015), the last matrix and its
    /// bias uniform in ±1/√in, norms one and zero.
    ///
    /// # Errors
    /// Argument error when the configuration is impossible; dtype error for integers; out of memory.
    #[track_caller]
    pub fn new(config: &ResNetConfig, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        let (key, at) = (key.into(), Location::caller());
        let made = || {
            let mut n = 0;
            let mut net = Self::with_weights(config, dtype, &mut |shape| {
                n += 1;
                let fans = Fans::of(&shape)?;
                Init::he().tensor_with(Fans { fan_in: fans.fan_out, ..fans }, shape, dtype, key.fold(n))
            })?;
            let features = config.widths.last().copied().unwrap_or(config.width);
            net.fc = Linear::new(features, config.classes, dtype, key.fold(0))?;
            Ok(net)
        };
        made().map_err(|e: Error| e.rename_op("resnet").called_at(at))
    }

    /// A network whose matrices are what `weight` gives for their shapes.
    pub(crate) fn with_weights(config: &ResNetConfig, dtype: DType, weight: &mut dyn FnMut(Shape) -> Result<Tensor>) -> Result<Self> {
        config.validate()?;
        if !dtype.is_float() {
            return Err(Error::dtype(format!("weights are floats, found {dtype}")));
        }
        // Before the first matrices are drawn: the last ones are the largest.
        memory::ensure(config.elements().and_then(|n| n.checked_mul(dtype.size())).unwrap_or(usize::MAX))?;
        let mut make = Maker { dtype, weight };
        let mut inputs = config.width;
        let (conv1, bn1) = match config.stem {
            ResNetStem::Large => make.conv(config.channels, inputs, 7, 2)?,
            ResNetStem::Small => make.conv(config.channels, inputs, 3, 1)?,
        };
        let mut layers = Vec::new();
        for (stage, (&outputs, &depth)) in config.widths.iter().zip(&config.depths).enumerate() {
            let mut blocks = Vec::new();
            for i in 0..depth {
                let stride = if i == 0 && stage > 0 { 2 } else { 1 };
                memory::push(&mut blocks, make.block(config.bottleneck, inputs, outputs, stride)?)?;
                inputs = outputs;
            }
            memory::push(&mut layers, blocks)?;
        }
        let fc = Linear {
            weight: (make.weight)([config.classes, inputs].into())?.into(),
            bias: Some(Tensor::zeros([config.classes], dtype)?.into()),
        };
        Ok(ResNet { conv1, bn1, layers, fc, config: config.clone() })
    }

    /// Sizes.
    pub fn config(&self) -> &ResNetConfig {
        &self.config
    }

    /// Scores `[batch, classes]` by running statistics: evaluation.
    ///
    /// # Errors
    /// Shape error for another rank, other channels, or an image too small.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_in(x, &mut Pass::eval())
    }

    /// Scores `[batch, classes]` in a pass: in training by the batch's statistics, which the pass notes.
    ///
    /// # Errors
    /// As [`ResNet::forward`].
    #[track_caller]
    pub fn forward_in(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        self.fc.forward(&self.features(x, pass)?.mean([2, 3])?)
    }

    /// The last stage's values `[batch, widths.last(), height, width]`.
    ///
    /// # Errors
    /// As [`ResNet::forward`].
    #[track_caller]
    pub fn features(&self, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let at = Location::caller();
        if x.rank() != 4 || x.shape()[1] != self.config.channels {
            let e = Error::shape(format!("images are [batch, {}, height, width], found {}", self.config.channels, x.shape()));
            return Err(e.in_op("resnet", at));
        }
        let mut x = self.bn1.forward_in(&self.conv1.forward(x)?, pass)?.relu()?;
        if self.config.stem == ResNetStem::Large {
            x = x.max_pool2d([3, 3], &MaxPool2dOptions { stride: Some([2, 2]), padding: [1, 1], ..MaxPool2dOptions::default() })?;
        }
        for (i, stage) in self.layers.iter().enumerate() {
            for (j, block) in stage.iter().enumerate() {
                x = block.forward_in(&x, pass)?;
                x.tap(|| format!("layer{}.{j}", i + 1));
            }
        }
        Ok(x)
    }
}

super::sequential::layers_in_a_pass!(BasicBlock, Bottleneck, ResNetBlock, ResNet);
