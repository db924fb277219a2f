//! Images as tensors, through the crate `image`.

use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::io::open::zeros;
use crate::io::{failed, replace};
use crate::memory;
use crate::tensor::Tensor;
use ::image::{ColorType, DynamicImage, ImageBuffer, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, imageops::FilterType};
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
    let mut picture = Picture::read(bytes)?;
    if let Some(size) = options.size {
        picture = picture.resized(size)?;
    }
    let channels = match options.mode {
        ImageMode::Rgb => 3,
        ImageMode::Gray => 1,
        ImageMode::Rgba => 4,
        ImageMode::Unchanged => picture.channels(),
    };
    let (w, h) = (picture.width as usize, picture.height as usize);
    let pixels = picture.pixels(channels)?;
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

/// What a file holds, as its decoder gives it: memory is asked for here, since the crate `image` takes it without asking.
struct Picture {
    width: u32,
    height: u32,
    color: ColorType,
    /// Pixel by pixel; numbers of 16 bits in the machine's order.
    bytes: Vec<u8>,
}

impl Picture {
    fn read(bytes: &[u8]) -> Result<Picture> {
        let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| damaged(ImageError::IoError(e)))?;
        let format = reader.format();
        // Before the pixels: a copy of the file (JPEG), colour profiles, a row.
        let first = bytes.len().saturating_mul(8).clamp(1 << 20, 16 << 20);
        memory::ensure(bytes.len().saturating_add(first))?;
        let mut limits = Limits::default();
        limits.max_alloc = Some(first as u64);
        reader.limits(limits.clone());
        let mut decoder = reader.into_decoder().map_err(damaged)?;
        let ((width, height), color, total) = (decoder.dimensions(), decoder.color_type(), decoder.total_bytes());
        if total > LARGEST {
            bail!(corrupt_file, "its pixels need more than {LARGEST} bytes");
        }
        let mut pixels = zeros(total)?;
        // Beside the pixels: all coefficients of a JPEG, in whole blocks; a picture that does not fill a GIF; a row of the others.
        let most = match format {
            Some(ImageFormat::Jpeg) => 16 * (u64::from(width) + 32) * (u64::from(height) + 32),
            Some(ImageFormat::Gif) => 2 * total,
            _ => total,
        };
        let most = most.max(1 << 20);
        memory::ensure(usize::try_from(most).unwrap_or(usize::MAX))?;
        limits.max_alloc = Some(most);
        decoder.set_limits(limits).map_err(damaged)?;
        decoder.read_image(&mut pixels).map_err(damaged)?;
        Ok(Picture { width, height, color, bytes: pixels })
    }

    fn channels(&self) -> usize {
        usize::from(self.color.channel_count())
    }

    /// As the crate's type.
    fn into_image(self) -> Result<DynamicImage> {
        let Picture { width: w, height: h, color, bytes } = self;
        let wide = |bytes: &[u8]| memory::try_collect(bytes.as_chunks().0.iter().map(|b| u16::from_ne_bytes(*b)));
        let image = match color {
            ColorType::L8 => ImageBuffer::from_raw(w, h, bytes).map(DynamicImage::ImageLuma8),
            ColorType::La8 => ImageBuffer::from_raw(w, h, bytes).map(DynamicImage::ImageLumaA8),
            ColorType::Rgb8 => ImageBuffer::from_raw(w, h, bytes).map(DynamicImage::ImageRgb8),
            ColorType::Rgba8 => ImageBuffer::from_raw(w, h, bytes).map(DynamicImage::ImageRgba8),
            ColorType::L16 => ImageBuffer::from_raw(w, h, wide(&bytes)?).map(DynamicImage::ImageLuma16),
            ColorType::La16 => ImageBuffer::from_raw(w, h, wide(&bytes)?).map(DynamicImage::ImageLumaA16),
            ColorType::Rgb16 => ImageBuffer::from_raw(w, h, wide(&bytes)?).map(DynamicImage::ImageRgb16),
            ColorType::Rgba16 => ImageBuffer::from_raw(w, h, wide(&bytes)?).map(DynamicImage::ImageRgba16),
            _ => None,
        };
        image.ok_or_else(|| Error::corrupt_file(format!("its pixels are of the type {color:?}, which is not read")))
    }

    fn resized(self, size: [usize; 2]) -> Result<Picture> {
        let fits = |n: usize| u32::try_from(n).ok().filter(|&n| n > 0);
        let [height, width] = size;
        let (Some(h), Some(w)) = (fits(height), fits(width)) else { bail!(argument, "an image cannot have the size {size:?}") };
        if u64::from(h) * u64::from(w) > LARGEST / 8 {
            bail!(argument, "an image of {height} by {width} pixels has more than {LARGEST} bytes");
        }
        // First along the height, in four floats to a pixel; then along the width, and a copy.
        let between = width.max(self.width as usize).saturating_mul(height).saturating_mul(16);
        let after = width * height * usize::from(self.color.bytes_per_pixel());
        let color = self.color;
        let image = self.into_image()?;
        memory::ensure(between.saturating_add(2 * after).saturating_add(1 << 20))?;
        let image = image.resize_exact(w, h, FilterType::Triangle);
        Ok(Picture { width: w, height: h, color, bytes: memory::copied(image.as_bytes())? })
    }

    /// Numbers of 8 bits, `to` of them to a pixel.
    fn pixels(mut self, to: usize) -> Result<Vec<u8>> {
        let from = self.channels();
        if to == 1 && from > 2 {
            // Of single precision in between, a pixel at a time.
            memory::ensure(self.bytes.len().saturating_mul(2).saturating_add(1 << 20))?;
            return Ok(self.into_image()?.into_luma8().into_raw());
        }
        if usize::from(self.color.bytes_per_pixel()) == 2 * from {
            let rounded = |b: &[u8; 2]| ((u32::from(u16::from_ne_bytes(*b)) + 128) / 257) as u8;
            self.bytes = memory::try_collect(self.bytes.as_chunks().0.iter().map(rounded))?;
        }
        if to == from {
            return Ok(self.bytes);
        }
        let mut out = memory::vec_of(0, self.bytes.len() / from * to)?;
        for (to, from) in out.chunks_exact_mut(to).zip(self.bytes.chunks_exact(from)) {
            let [r, g, b, a] = match *from {
                [grey] => [grey, grey, grey, u8::MAX],
                [grey, a] => [grey, grey, grey, a],
                [r, g, b] => [r, g, b, u8::MAX],
                _ => [from[0], from[1], from[2], from[3]],
            };
            to.copy_from_slice(&[r, g, b, a][..to.len()]);
        }
        Ok(out)
    }
}

fn damaged(e: ImageError) -> Error {
    match e {
        ImageError::Unsupported(_) => Error::corrupt_file("it is not an image of a known format (PNG, JPEG, BMP, GIF, PNM)").with_source(e),
        ImageError::Limits(_) => Error::corrupt_file("it takes more memory than an image of its size does").with_source(e),
        e => Error::corrupt_file("the image is damaged").with_source(e),
    }
}

/// Writes an image as PNG, JPEG or BMP, by the ending of the name: `u8` 0 to 255 or a float 0 to 1 (what is beyond is clamped),
/// `[height, width]`, `[1, height, width]`, or with 3 or 4 channels. An old file is replaced as
/// [`write_atomically`](crate::io::write_atomically) does it.
///
/// # Errors
/// Shape error for another shape; dtype error for integers other than `u8`; argument error for another ending, a NaN, or an opacity in JPEG; I/O error; out of memory.
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
    // A PNG is compressed as a whole before it is written.
    memory::ensure(image.as_bytes().len().saturating_mul(4).saturating_add(1 << 20))?;
    replace(path, |out| {
        image.write_to(out, format).map_err(|e| match e {
            ImageError::IoError(e) => failed("write", path, e),
            e => Error::argument("the image cannot be written in this format").with_source(e),
        })
    })
}
