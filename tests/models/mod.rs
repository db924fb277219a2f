//! Models: Hugging Face's numbers and files, layers, generation, tokenizers.

mod generate;
mod hugging_face;
mod layers;
mod load_page;
mod lora;
mod planted_mistakes;
mod recurrence;
#[cfg(feature = "tokenizers")]
mod tokenizer;
mod user_models;
#[cfg(feature = "tokenizers")]
mod user_tokenizers;
mod vision;

#[cfg(feature = "emulator")]
pub use hugging_face::family;
pub use hugging_face::{folders, scratch};
