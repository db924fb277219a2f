//! Images as tensors, through the crate `image`.

use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::io::{failed, write_atomically};
use crate::tensor::Tensor;
use ::image::{DynamicImage, ImageError, ImageFormat, ImageReader, Limits, imageops::FilterType};
use std::io::Cursor;
use std::panic::Location;
use std::path::Path;

/// Bytes of an image's file, and of its pixels, at most.
const LARGEST: u64 = 1 << 30;

/// The channels of the tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageMode {
    /// Three: red, green, blue. Transparency is left out, grey is repeated.
    #[default]
    Rgb,
    /// One: the weighted sum of the colours.
    Gray,
    /// Four: the last is the opacity.
    Rgba,
    /// As many as the file has: 1, 2 (grey and opacity), 3 or 4.
    Unchanged,
}

/// What an image becomes; [`read_image_with`] takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageOptions {
    /// The channels.
    pub mode: ImageMode,
    /// `U8`: 0 to 255. A float: 0 to 1.
    pub dtype: DType,
    /// Height and width to resize to, by linear interpolation that averages what it leaves out.
    pub size: Option<[usize; 2]>,
    /// `[height, width, channels]` instead of `[channels, height, width]`.
    pub channels_last: bool,
}

impl Default for ImageOptions {
    fn default() -> Self {
        ImageOptions { mode: ImageMode::Rgb, dtype: DType::U8, size: None, channels_last: false }
    }
}

/// Reads a PNG, JPEG, BMP, GIF (its first picture) or PNM file: `u8`, `[3, height, width]`, as `torchvision.io.read_image` does.
///
/// # Errors
/// As [`read_image_with`].
#[track_caller]
pub fn read_image(path: impl AsRef<Path>) -> Result<Tensor> {
    let at = Location::caller();
    read(path.as_ref(), &ImageOptions::default()).map_err(|e| crate::io::at_callers_line(e, "read_image", at))
}

/// Reads an image. Numbers of 16 bits are rounded to 8; a rotation that a camera only noted beside the picture is not applied.
///
/// # Errors
/// I/O error when the file cannot be read or is not a regular file; corrupt-file error when it is damaged, of another format, or beyond 1 GiB;
/// dtype error unless `dtype` is `U8` or a float; argument error for a size of 0; out of memory.
#[track_caller]
pub fn read_image_with(path: impl AsRef<Path>, options: &ImageOptions) -> Result<Tensor> {
    let at = Location::caller();
    read(path.as_ref(), options).map_err(|e| crate::io::at_callers_line(e, "read_image_with", at))
}

/// The same for an image in memory: a cell of a data set, or what a server received.
///
/// # Errors
/// As [`read_image_with`], but for the file.
#[track_caller]
pub fn decode_image(bytes: &[u8], options: &ImageOptions) -> Result<Tensor> {
    let at = Location::caller();
    decode(bytes, options).map_err(|e| crate::io::at_callers_line(e, "decode_image", at))
}

fn read(path: &Path, options: &ImageOptions) -> Result<Tensor> {
    decode(&crate::io::read(path, LARGEST)?, options).map_err(|e| e.about(path.display()))
}

fn decode(bytes: &[u8], options: &ImageOptions) -> Result<Tensor> {
    if options.dtype != DType::U8 && !options.dtype.is_float() {
        bail!(dtype, "an image is u8 (0 to 255) or a float (0 to 1), not {}", options.dtype);
    }
    let damaged = |e: ImageError| match e {
        ImageError::Unsupported(_) => Error::corrupt_file("it is not an image of a known format (PNG, JPEG, BMP, GIF, PNM)").with_source(e),
        ImageError::Limits(_) => Error::corrupt_file(format!("its pixels need more than {LARGEST} bytes")).with_source(e),
        e => Error::corrupt_file("the image is damaged").with_source(e),
    };
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| damaged(ImageError::IoError(e)))?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(LARGEST);
    reader.limits(limits);
    let mut image = reader.decode().map_err(damaged)?;
    if let Some(size @ [height, width]) = options.size {
        let fits = |n: usize| u32::try_from(n).ok().filter(|&n| n > 0);
        let (Some(h), Some(w)) = (fits(height), fits(width)) else { bail!(argument, "an image cannot have the size {size:?}") };
        if u64::from(h) * u64::from(w) > LARGEST / 8 {
            bail!(argument, "an image of {height} by {width} pixels has more than {LARGEST} bytes");
        }
        image = image.resize_exact(w, h, FilterType::Triangle);
    }
    let (w, h) = (image.width() as usize, image.height() as usize);
    let (channels, pixels) = match (options.mode, &image) {
        (ImageMode::Rgb, _) => (3, image.into_rgb8().into_raw()),
        (ImageMode::Gray, _) => (1, image.into_luma8().into_raw()),
        (ImageMode::Rgba, _) => (4, image.into_rgba8().into_raw()),
        (ImageMode::Unchanged, _) => match image.color().channel_count() {
            1 => (1, image.into_luma8().into_raw()),
            2 => (2, image.into_luma_alpha8().into_raw()),
            3 => (3, image.into_rgb8().into_raw()),
            _ => (4, image.into_rgba8().into_raw()),
        },
    };
    let mut x = Tensor::from_vec(pixels, [h, w, channels])?;
    if !options.channels_last {
        x = x.permute([2, 0, 1])?.contiguous()?;
    }
    if options.dtype == DType::U8 {
        return Ok(x);
    }
    // In f32 each of the 256 values is divided exactly once; half types round it once more.
    x.cast(DType::F32)?.div_scalar(255.0)?.cast(options.dtype)
}

/// Writes an image as PNG, JPEG or BMP, by the ending of the name: `u8` 0 to 255 or a float 0 to 1 (what is beyond is clamped),
/// `[height, width]`, `[1, height, width]`, or with 3 or 4 channels. An old file is replaced as [`write_atomically`] does it.
///
/// # Errors
/// Shape error for another shape; dtype error for integers other than `u8`; argument error for another ending, a NaN, or an opacity in JPEG; I/O error.
#[track_caller]
pub fn save_image(path: impl AsRef<Path>, x: &Tensor) -> Result<()> {
    let at = Location::caller();
    save(path.as_ref(), x).map_err(|e| crate::io::at_callers_line(e, "save_image", at))
}

fn save(path: &Path, x: &Tensor) -> Result<()> {
    let Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::Bmp)) = ImageFormat::from_path(path) else {
        bail!(argument, "{}: images are written as .png, .jpg or .bmp", path.display())
    };
    let dims = x.shape().dims();
    let (channels, h, w) = match *dims {
        [h, w] => (1, h, w),
        [c @ (1 | 3 | 4), h, w] => (c, h, w),
        _ => bail!(shape, "an image is [height, width], or [channels, height, width] with 1, 3 or 4 channels; found {}", x.shape()),
    };
    let bytes = match x.dtype() {
        DType::U8 => x.clone(),
        d if d.is_float() => {
            if x.ne(x)?.to_vec::<u8>()?.contains(&1) {
                bail!(argument, "the image contains NaN");
            }
            x.cast(DType::F32)?.clamp(0.0, 1.0)?.mul_scalar(255.0)?.round()?.cast(DType::U8)?
        }
        d => bail!(dtype, "an image is u8 (0 to 255) or a float (0 to 1), not {d}"),
    };
    let pixels = bytes.detach().reshape([channels, h, w])?.permute([1, 2, 0])?.to_vec::<u8>()?;
    let (Ok(width), Ok(height)) = (u32::try_from(w), u32::try_from(h)) else { bail!(shape, "an image of {} is too large", x.shape()) };
    let image = match channels {
        1 => ::image::GrayImage::from_raw(width, height, pixels).map(DynamicImage::from),
        3 => ::image::RgbImage::from_raw(width, height, pixels).map(DynamicImage::from),
        _ => ::image::RgbaImage::from_raw(width, height, pixels).map(DynamicImage::from),
    };
    let Some(image) = image else { bail!(shape, "an image of {} has no pixels", x.shape()) };
    let mut encoded = Cursor::new(Vec::new());
    image.write_to(&mut encoded, format).map_err(|e| Error::argument("the image cannot be written in this format").with_source(e))?;
    write_atomically(path, |out| out.write_all(encoded.get_ref()).map_err(|e| failed("write", path, e)))
}
