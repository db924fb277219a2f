//! How a model's authors made its inputs of images: `preprocessor_config.json`, or timm's `pretrained_cfg`.

use crate::dtype::{DType, F32};
use crate::error::{Error, Result, bail};
use crate::io;
use crate::ops::{InterpolateMode, InterpolateOptions};
use crate::tensor::Tensor;
use serde_json::Value;
use std::panic::Location;
use std::path::Path;

/// Bytes of a configuration, at most.
const LONGEST: u64 = 1 << 24;
/// Pixels of a side, at most.
const MOST_PIXELS: u64 = 1 << 16;
/// Below this size transformers' processor of ConvNeXT and ResNet shrinks to more than is kept, and cuts the middle out.
const CUT_BELOW: usize = 384;

/// Processors whose fields are those that are known here, by how their names begin.
const KNOWN: [&str; 4] = ["ViT", "ConvNext", "DeiT", "Beit"];
/// Fields that change what comes out, where they are set.
const REFUSED: [&str; 12] = [
    "do_center_crop",
    "do_pad",
    "do_flip_channel_order",
    "do_convert_grayscale",
    "do_thumbnail",
    "do_align_long_axis",
    "do_reduce_labels",
    "keep_aspect_ratio",
    "ensure_multiple_of",
    "include_top",
    "offset",
    "rescale_offset",
];

/// Makes a model's inputs of images, as its authors did: other extents, numbers from 0 to 1, less their mean and over their deviation.
///
/// ```
/// use cotangent::{Tensor, U8, models::ImageProcessor};
/// let json = r#"{"size": {"height": 8, "width": 8}, "resample": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}"#;
/// let white = Tensor::full([3, 20, 30], 255.0, U8)?; // as `io::read_image` gives one
/// let x = ImageProcessor::parse(json)?.apply(&white)?;
/// assert_eq!((x.shape().dims(), x.max(..)?.item()?), (&[1, 3, 8, 8][..], 1.0));
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {
    /// How extents become those of the model.
    pub resize: ImageResize,
    /// How pixels between others are found.
    pub mode: InterpolateMode,
    /// Each number is multiplied by it: 1/255.
    pub scale: f64,
    /// Of each channel, subtracted.
    pub mean: Vec<f64>,
    /// Of each channel, divided by.
    pub std: Vec<f64>,
}

/// How images get a model's extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageResize {
    /// They have them.
    None,
    /// Both are changed to these: height and width.
    To([usize; 2]),
    /// The shorter side becomes `shorter`, the other in proportion; then a square is cut out of the middle.
    ShorterThenCut {
        /// Pixels of the shorter side.
        shorter: usize,
        /// Pixels of the square's sides.
        side: usize,
        /// Whether half a pixel before the square is rounded to even, as torchvision does, and not down, as transformers does.
        to_even: bool,
    },
}

impl ImageProcessor {
    /// Reads `preprocessor_config.json` of a folder of Hugging Face, or its `config.json` where timm wrote it.
    ///
    /// # Errors
    /// I/O error when there is neither; otherwise as [`ImageProcessor::parse`].
    #[track_caller]
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let at = Location::caller();
        let read = || {
            let (own, timm) = (folder.as_ref().join("preprocessor_config.json"), folder.as_ref().join("config.json"));
            let path = if own.exists() || !timm.exists() { own } else { timm };
            Self::of(&io::read(&path, LONGEST)?, &path.display().to_string())
        };
        read().map_err(|e: Error| io::at_callers_line(e, "image_processor", at))
    }

    /// Takes the text of such a file.
    ///
    /// # Errors
    /// Corrupt-file error that names the field when the text is not JSON, or a field is missing or of another type; argument error for a
    /// filter that is not known here (Lanczos, box, Hamming).
    #[track_caller]
    pub fn parse(json: &str) -> Result<Self> {
        let at = Location::caller();
        Self::of(json.as_bytes(), "preprocessor_config.json").map_err(|e| io::at_callers_line(e, "image_processor", at))
    }

    fn of(bytes: &[u8], shown: &str) -> Result<Self> {
        let value = io::json(bytes, shown)?;
        match value.get("pretrained_cfg") {
            Some(timm) => Self::timm(timm),
            None => Self::transformers(&value),
        }
        .map_err(|e| e.about(shown))
    }

    fn transformers(v: &Value) -> Result<Self> {
        let on = |name: &str| match v.get(name) {
            None | Some(Value::Null) => Ok(true),
            Some(Value::Bool(on)) => Ok(*on),
            Some(other) => Err(Error::corrupt_file(format!("`{name}` is {other}, expected true or false"))),
        };
        if !v.is_object() {
            bail!(corrupt_file, "expected an object, found {v}");
        }
        for name in REFUSED {
            if let Some(value) = v.get(name).filter(|v| !matches!(v, Value::Null | Value::Bool(false))) {
                bail!(argument, "`{name}` is {value}: such a processor is not known here");
            }
        }
        let kind = ["image_processor_type", "feature_extractor_type"].iter().find_map(|n| v.get(n)?.as_str());
        if let Some(other) = kind.filter(|k| !KNOWN.iter().any(|known| k.starts_with(known))) {
            bail!(argument, "the images' processor is `{other}`; those of {} are known here", KNOWN.join(", "));
        }
        let resize = if on("do_resize")? { resize(v)? } else { ImageResize::None };
        let mode = match v.get("resample") {
            None | Some(Value::Null) => InterpolateMode::Linear,
            Some(v) => match (v.as_f64(), v.as_str()) {
                (Some(0.0), _) | (_, Some("nearest")) => InterpolateMode::NearestExact,
                (Some(2.0), _) | (_, Some("bilinear")) => InterpolateMode::Linear,
                (Some(3.0), _) | (_, Some("bicubic")) => InterpolateMode::Cubic,
                _ => bail!(argument, "`resample` is {v}; 0, 2 and 3 are known here: nearest, bilinear, bicubic"),
            },
        };
        let scale = if on("do_rescale")? { v.get("rescale_factor").map_or(Some(1.0 / 255.0), Value::as_f64) } else { Some(1.0) };
        let Some(scale) = scale.filter(|s| *s > 0.0 && s.is_finite()) else {
            bail!(corrupt_file, "`rescale_factor` is {}, expected a positive number", v["rescale_factor"]);
        };
        let (mean, std) = if on("do_normalize")? { (numbers(v, "image_mean")?, numbers(v, "image_std")?) } else { (vec![0.0], vec![1.0]) };
        Self { resize, mode, scale, mean, std }.checked()
    }

    /// timm's transforms of evaluation.
    fn timm(v: &Value) -> Result<Self> {
        let side = match v.get("input_size").and_then(Value::as_array).map(Vec::as_slice) {
            Some([_, h, w]) if h == w => pixels("input_size", h)?,
            _ => bail!(corrupt_file, "`input_size` is {}, expected three numbers, the last two equal", v["input_size"]),
        };
        let mode = match v.get("interpolation").and_then(Value::as_str) {
            Some("bicubic") => InterpolateMode::Cubic,
            Some("bilinear") => InterpolateMode::Linear,
            other => bail!(argument, "`interpolation` is `{}`; known are bicubic and bilinear", other.unwrap_or("missing")),
        };
        if let Some(other) = v.get("crop_mode").and_then(Value::as_str).filter(|m| *m != "center") {
            bail!(argument, "`crop_mode` is `{other}`; known is center");
        }
        let resize = ImageResize::ShorterThenCut { shorter: grown(side, v, 0.875)?, side, to_even: true };
        Self { resize, mode, scale: 1.0 / 255.0, mean: numbers(v, "mean")?, std: numbers(v, "std")? }.checked()
    }

    fn checked(self) -> Result<Self> {
        if self.std.iter().any(|&s| s == 0.0 || !s.is_finite()) || self.mean.iter().any(|m| !m.is_finite()) {
            bail!(corrupt_file, "a deviation is 0, or a number is not finite: mean {:?}, deviation {:?}", self.mean, self.std);
        }
        if self.mean.len() != self.std.len() {
            bail!(corrupt_file, "there are {} means and {} deviations", self.mean.len(), self.std.len());
        }
        Ok(self)
    }

    /// Images `[channels, height, width]` or `[batch, channels, height, width]`, of `u8` or of floats from 0 to 255, to
    /// `[batch, channels, height, width]` of `f32`. Resampling is smoothed where it shrinks; images of `u8` are rounded after each axis, as
    /// by Pillow and torchvision, whose weights have 8 bits: numbers are theirs within one or two of 255.
    ///
    /// # Errors
    /// Shape error for another rank, or channels that the mean does not have; dtype error for other integers; out of memory.
    #[track_caller]
    pub fn apply(&self, images: &Tensor) -> Result<Tensor> {
        let at = Location::caller();
        self.run(images).map_err(|e| io::at_callers_line(e, "image_processor", at))
    }

    fn run(&self, images: &Tensor) -> Result<Tensor> {
        let x = match images.rank() {
            3 => images.unsqueeze(0)?,
            4 => images.clone(),
            _ => bail!(shape, "images are [channels, height, width] or [batch, channels, height, width], found {}", images.shape()),
        };
        if !x.dtype().is_float() && x.dtype() != DType::U8 {
            return Err(Error::dtype(format!("images are of u8 or of floats, found {}", x.dtype())));
        }
        let whole = x.dtype() == DType::U8;
        let (channels, [height, width]) = (x.size(1)?, [x.size(2)?, x.size(3)?]);
        if [&self.mean, &self.std].iter().any(|n| n.len() != 1 && n.len() != channels) {
            bail!(shape, "images of {channels} channels, and a mean of {}", self.mean.len());
        }
        let mut x = x.cast(F32)?;
        let to = match self.resize {
            ImageResize::None => [height, width],
            ImageResize::To(to) => to,
            ImageResize::ShorterThenCut { shorter, .. } => {
                let other = |side: usize| (shorter * side) / height.min(width).max(1);
                if height <= width { [shorter, other(width)] } else { [other(height), shorter] }
            }
        };
        if to != [height, width] {
            let options = InterpolateOptions {
                mode: self.mode,
                antialias: self.mode != InterpolateMode::NearestExact,
                ..InterpolateOptions::default()
            };
            // Along rows first, and whole numbers in between: so do Pillow and torchvision, and sharp edges show it.
            for to in [[height, to[1]], to] {
                x = x.interpolate(to, &options)?;
                if whole {
                    x = x.clamp(0.0, 255.0)?.round()?;
                }
            }
        }
        if let ImageResize::ShorterThenCut { side, to_even, .. } = self.resize {
            for (axis, has) in [(2, to[0]), (3, to[1])] {
                if has < side {
                    bail!(shape, "a square of {side} cannot be cut out of {} x {}", to[0], to[1]);
                }
                let more = has - side;
                let first = more / 2 + usize::from(to_even && more % 4 == 3);
                x = x.narrow(axis, first, side)?;
            }
        }
        let of = |n: &[f64]| Tensor::from_slice(n, [n.len()])?.cast(F32)?.to_device(x.device())?.reshape([1, n.len(), 1, 1]);
        x.mul_scalar(self.scale)?.sub(&of(&self.mean)?)?.div(&of(&self.std)?)
    }
}

/// A number of pixels.
fn pixels(name: &str, v: &Value) -> Result<usize> {
    match v.as_u64() {
        Some(n) if (1..=MOST_PIXELS).contains(&n) => Ok(n as usize),
        _ => Err(Error::corrupt_file(format!("`{name}` has {v}, expected a whole number from 1 to {MOST_PIXELS}"))),
    }
}

/// The size of which `crop_pct` is kept.
fn grown(side: usize, v: &Value, usual: f64) -> Result<usize> {
    let kept = v.get("crop_pct").filter(|k| !k.is_null()).map_or(Some(usual), Value::as_f64);
    match kept.filter(|k| *k > 0.0 && *k <= 1.0) {
        Some(kept) => Ok((side as f64 / kept) as usize),
        None => Err(Error::corrupt_file(format!("`crop_pct` is {}, expected a number up to 1", v["crop_pct"]))),
    }
}

fn resize(v: &Value) -> Result<ImageResize> {
    let Some(size) = v.get("size").filter(|s| !s.is_null()) else { bail!(corrupt_file, "`size` is missing") };
    let cuts = v.get("crop_pct").is_some();
    let shorter = match (size.get("shortest_edge"), size.as_u64()) {
        (Some(n), _) => Some(pixels("size.shortest_edge", n)?),
        // Older files: one number is the shorter side for the processor that cuts, and both sides for the others.
        (None, Some(_)) if cuts => Some(pixels("size", size)?),
        (None, Some(_)) => {
            let n = pixels("size", size)?;
            return Ok(ImageResize::To([n, n]));
        }
        (None, None) => None,
    };
    match shorter {
        Some(n) if cuts && n < CUT_BELOW => Ok(ImageResize::ShorterThenCut { shorter: grown(n, v, 0.875)?, side: n, to_even: false }),
        Some(n) if cuts => Ok(ImageResize::To([n, n])),
        Some(_) => bail!(argument, "`size` has a shorter side and there is no `crop_pct`: such a processor is not known here"),
        None => match (size.get("height"), size.get("width")) {
            (Some(h), Some(w)) => Ok(ImageResize::To([pixels("size.height", h)?, pixels("size.width", w)?])),
            _ => bail!(corrupt_file, "`size` is {size}, expected height and width, or shortest_edge"),
        },
    }
}

/// One number for each channel, or one for all.
fn numbers(v: &Value, name: &str) -> Result<Vec<f64>> {
    let list: Option<Vec<f64>> = match v.get(name) {
        // Images have few channels.
        Some(Value::Array(list)) if list.len() <= 1024 => list.iter().map(Value::as_f64).collect(),
        Some(one) => one.as_f64().map(|n| vec![n]),
        None => None,
    };
    match list.filter(|l| !l.is_empty()) {
        Some(list) => Ok(list),
        None => Err(Error::corrupt_file(format!("`{name}` is {}, expected a number for each channel", v[name]))),
    }
}
