//! IDX, the format of MNIST and its relatives: one array.

use super::open_regular;
use super::raw::Raw;
use crate::error::{Error, Result, bail};
use crate::shape::Shape;
use crate::tensor::Tensor;
use std::io::{BufReader, Read};
use std::panic::Location;
use std::path::Path;

/// Reads an array in the IDX format, as MNIST's files have it (`train-images-idx3-ubyte`, `train-labels-idx1-ubyte`): `u8` stays `u8`,
/// signed integers become `i64`, floats stay floats.
///
/// ```
/// use cotangent::io::read_idx;
/// # let folder = std::env::temp_dir().join(format!("cotangent-doc-idx-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// let path = folder.join("labels-idx1-ubyte");
/// std::fs::write(&path, [0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1])?; // bytes, one axis, of three
/// assert_eq!(read_idx(&path)?.to_vec::<u8>()?, [7, 2, 1]);
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), cotangent::Error>(())
/// ```
///
/// # Errors
/// I/O error when it cannot be read or is not a regular file; corrupt-file error when it is not in the format, or its length does not fit
/// its header (a file that is still compressed, which the message says); out of memory.
#[doc(alias("mnist"))]
#[track_caller]
pub fn read_idx(path: impl AsRef<Path>) -> Result<Tensor> {
    let at = Location::caller();
    let path = path.as_ref();
    let read = || {
        let (file, length) = open_regular(path)?;
        read_from(&mut BufReader::new(file), length).map_err(|e| e.about(path.display()))
    };
    read().map_err(|e| crate::io::at_callers_line(e, "read_idx", at))
}

fn read_from(from: &mut dyn Read, length: u64) -> Result<Tensor> {
    let mut start = [0; 4];
    exact(from, &mut start)?;
    let (kind, axes) = match start {
        [0, 0, kind, axes] => (kind, axes),
        [0x1f, 0x8b, ..] => bail!(corrupt_file, "it is compressed by gzip: unpack it first (`gunzip`)"),
        _ => bail!(corrupt_file, "it does not begin as an IDX file does (two zeros, a type, a number of axes)"),
    };
    let raw = match kind {
        0x08 => Raw::U8,
        0x09 => Raw::I8,
        0x0b => Raw::I16,
        0x0c => Raw::I32,
        0x0d => Raw::F32,
        0x0e => Raw::F64,
        other => bail!(corrupt_file, "its elements are of the type {other:#04x}; known are 0x08, 0x09 and 0x0b to 0x0e"),
    };
    let mut extents = [0; 255 * 4];
    let extents = &mut extents[..4 * usize::from(axes)];
    exact(from, extents)?;
    let (four, _) = extents.as_chunks::<4>();
    let shape: Shape = four.iter().map(|&n| u32::from_be_bytes(n) as usize).collect();
    let have = length.saturating_sub(4 + 4 * u64::from(axes));
    let want = raw.bytes(&shape);
    if want != Some(have) {
        let want = want.map_or("more than any memory has".to_owned(), |w| w.to_string());
        bail!(corrupt_file, "an array of shape {shape} needs {want} bytes, but {have} follow the header");
    }
    raw.read(from, shape, true)
}

fn exact(from: &mut dyn Read, bytes: &mut [u8]) -> Result<()> {
    from.read_exact(bytes).map_err(|e| Error::corrupt_file("it ends inside its header").with_source(e))
}
