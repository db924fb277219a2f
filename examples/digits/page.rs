//! Pictures of the mistakes, as one page.

use cotangent::io::write_atomically;
use cotangent::{Result, Tensor};
use std::fmt::Write as _;
use std::path::Path;

/// Most pictures on a page.
const MOST: usize = 100;
/// Width of a picture, in the page's pixels.
const SIDE: usize = 96;

/// Writes the images of these numbers, each with what it is and what it was taken for.
pub fn write(path: &Path, images: &Tensor, which: &[usize], right: &[i64], found: &[i64]) -> Result<()> {
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Mistakes</title>\n<style>body{font-family:sans-serif}\
         figure{display:inline-block;margin:12px;text-align:center}</style>\n",
    );
    let _ = writeln!(page, "<p>{} mistakes; the first {} are shown.</p>", which.len(), which.len().min(MOST));
    for &i in which.iter().take(MOST) {
        let image = images.select(0, i as isize)?.squeeze(0)?;
        let _ = writeln!(page, "<figure>{}<figcaption>{} taken for {}</figcaption></figure>", svg(&image)?, right[i], found[i]);
    }
    page.push_str("</html>\n");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    write_atomically(path, |out| Ok(out.write_all(page.as_bytes())?))
}

/// An image `[height, width]` from 0 to 1, dark on light.
fn svg(image: &Tensor) -> Result<String> {
    let (height, width) = (image.size(0)?, image.size(1)?);
    let mut text = format!("<svg width=\"{SIDE}\" viewBox=\"0 0 {width} {height}\" shape-rendering=\"crispEdges\">");
    for (i, v) in image.to_vec::<f32>()?.into_iter().enumerate() {
        let grey = (255.0 * (1.0 - v)).clamp(0.0, 255.0) as u8;
        let _ = write!(
            text,
            "<rect x=\"{}\" y=\"{}\" width=\"1\" height=\"1\" fill=\"#{grey:02x}{grey:02x}{grey:02x}\"/>",
            i % width,
            i / width
        );
    }
    text.push_str("</svg>");
    Ok(text)
}
