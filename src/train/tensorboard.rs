//! Event files for TensorBoard: length-prefixed records of protocol-buffer messages, of which four fields are needed.

use super::metrics::MetricSink;
use crate::error::{Result, bail};
use crate::io::{Lock, create_folder, create_new, failed, lock_around};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Writes scalars that TensorBoard shows: `tensorboard --logdir FOLDER`.
///
/// ```
/// use cotangent::train::{MetricSink, TensorBoard};
/// # let folder = std::env::temp_dir().join(format!("cotangent-doc-tb-{}", std::process::id()));
/// let mut board = TensorBoard::create(&folder, 0)?;
/// board.write(0, &[("loss", 4.2)])?;
/// # assert_eq!(std::fs::read_dir(&folder)?.count(), 1);
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Debug)]
pub struct TensorBoard {
    path: PathBuf,
    out: BufWriter<File>,
    /// Of the folder, and of the one around it.
    _runs: [Option<Lock>; 2],
}

impl TensorBoard {
    /// Begins a new file in the folder, which may have others. TensorBoard forgets what those say of `step` and later: a run that
    /// continues from a snapshot replaces what came after it.
    ///
    /// # Errors
    /// Argument error for an empty path, and while a run of another process has the folder, or the one that it is in; I/O error.
    #[track_caller]
    pub fn create(folder: impl AsRef<Path>, step: usize) -> Result<Self> {
        let at = Location::caller();
        Self::create_at(folder.as_ref(), step).map_err(|e| e.in_op("tensorboard", at))
    }

    fn create_at(folder: &Path, step: usize) -> Result<Self> {
        if folder.as_os_str().is_empty() {
            bail!(argument, "the folder's path is empty; the current folder is `.`");
        }
        let runs = [lock_around(&folder.join("events"))?, lock_around(folder)?];
        create_folder(folder)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // TensorBoard reads files of one folder in the order of their names.
        let name = format!("events.out.tfevents.{:010}.{:09}.{}", now.as_secs(), now.subsec_nanos(), std::process::id());
        let path = folder.join(name);
        let file = create_new(&path)?;
        let mut board = TensorBoard { path, out: BufWriter::new(file), _runs: runs };
        board.put(0, |event| bytes(event, 3, b"brain.Event:2"))?;
        if step > 0 {
            // SessionLog { status: START }.
            board.put(step, |event| message(event, 7, |log| varint_field(log, 1, 1)))?;
        }
        Ok(board)
    }

    /// Writes `Event { wall_time, step, … }` as a record.
    fn put(&mut self, step: usize, rest: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let mut event = Vec::new();
        tag(&mut event, 1, 1);
        event.extend(now.to_le_bytes());
        varint_field(&mut event, 2, step as u64);
        rest(&mut event);
        let length = (event.len() as u64).to_le_bytes();
        let record = [&length[..], &masked_crc(&length), &event, &masked_crc(&event)].concat();
        // Flushed, so that what is shown is current.
        let written = self.out.write_all(&record).and_then(|()| self.out.flush());
        written.map_err(|e| failed("write", &self.path, e))
    }
}

impl MetricSink for TensorBoard {
    fn write(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        self.put(step, |event| {
            message(event, 5, |summary| {
                for (name, x) in values {
                    message(summary, 1, |value| {
                        bytes(value, 1, name.as_bytes());
                        tag(value, 2, 5);
                        value.extend((*x as f32).to_le_bytes());
                    });
                }
            });
        })
    }

    fn sync(&mut self) -> Result<()> {
        self.out.get_ref().sync_data().map_err(|e| failed("flush", &self.path, e))
    }
}

/// CRC-32C, rotated and shifted as TensorFlow's records have it.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn varint(out: &mut Vec<u8>, mut x: u64) {
    while x >= 0x80 {
        out.push(x as u8 | 0x80);
        x >>= 7;
    }
    out.push(x as u8);
}

/// Number and wire type (0 varint, 1 eight bytes, 2 length-delimited, 5 four bytes) of a field.
fn tag(out: &mut Vec<u8>, field: u64, wire: u64) {
    varint(out, field << 3 | wire);
}

fn varint_field(out: &mut Vec<u8>, field: u64, x: u64) {
    tag(out, field, 0);
    varint(out, x);
}

fn bytes(out: &mut Vec<u8>, field: u64, content: &[u8]) {
    tag(out, field, 2);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn message(out: &mut Vec<u8>, field: u64, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    bytes(out, field, &inner);
}
