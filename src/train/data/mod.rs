//! Data: tokenizers, token lists in memory or on disk, and batches as functions of their position.

mod documents;
#[cfg(feature = "tokenizers")]
mod gguf_tokenizer;
mod order;
#[cfg(feature = "tokenizers")]
mod pre_tokenizer;
mod prefetch;
mod rows;
mod tokenizer;
mod tokens;
mod windows;

pub use documents::document_mask;
pub(super) use documents::ids_of;
pub use order::{Epoch, Order};
pub use prefetch::Prefetch;
pub use rows::{Rows, hold_out};
#[cfg(feature = "tokenizers")]
pub use tokenizer::TokenizerFile;
pub use tokenizer::{Bytes, Characters, Tokenizer};
pub use tokens::{Tokens, Width};
pub use windows::Windows;

use crate::error::Result;

/// Training data: batch `i` is a function of `i`, so that a run can continue anywhere and epochs need no memory of what was
/// drawn. Any closure `Fn(u64) -> Result<Batch>` will do.
pub trait Batches {
    /// What a loss gets.
    type Batch;

    /// The batch at a position; the same each time.
    ///
    /// # Errors
    /// Whatever reading the data can give.
    fn batch(&self, position: u64) -> Result<Self::Batch>;

    /// What tells these data from others, in words: sizes, order, and a sum over samples of the values. Snapshots keep it, so that a run does
    /// not continue on other data unnoticed. A closure has none.
    ///
    /// # Errors
    /// Whatever reading the data can give.
    fn fingerprint(&self) -> Result<Option<String>> {
        Ok(None)
    }
}

impl<B, F: Fn(u64) -> Result<B>> Batches for F {
    type Batch = B;
    fn batch(&self, position: u64) -> Result<B> {
        self(position)
    }
}
