//! From a GGUF file's names and layouts to Hugging Face's.
//!
//! Two things differ beside the names, and nothing in a file says so: converters permute the rows of Llama's query and key
//! matrices (llama.cpp rotates neighbouring elements, Hugging Face the two halves of a head), and transpose GPT-2's, which
//! Hugging Face keeps as `[in, out]`.

use super::{GgufFile, GgufType};
use crate::dtype::DType;
use crate::error::{Result, bail};
use crate::ops::Blocks;
use crate::shape::Shape;
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::panic::Location;

/// An architecture whose names are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    Gpt2,
    Llama,
    Qwen2,
    Qwen3,
}

/// What a tensor goes through on its way to Hugging Face's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Nothing,
    /// Rows permuted within each of so many heads.
    Rotated {
        heads: usize,
    },
    Transposed,
}

impl Architecture {
    pub(super) const NAMED: &str = "gpt2, llama, qwen2 and qwen3";

    pub(super) fn of(name: &str) -> Option<Self> {
        match name {
            "gpt2" => Some(Architecture::Gpt2),
            "llama" => Some(Architecture::Llama),
            "qwen2" => Some(Architecture::Qwen2),
            "qwen3" => Some(Architecture::Qwen3),
            _ => None,
        }
    }

    /// Hugging Face's name, without `.weight` or `.bias`.
    fn stem(self, stem: &str) -> Option<String> {
        let gpt2 = self == Architecture::Gpt2;
        if let Some(rest) = stem.strip_prefix("blk.") {
            let (layer, part) = rest.split_once('.')?;
            let layer: usize = layer.parse().ok()?;
            let part = if gpt2 {
                match part {
                    "attn_norm" => "ln_1",
                    "attn_qkv" => "attn.c_attn",
                    "attn_output" => "attn.c_proj",
                    "ffn_norm" => "ln_2",
                    "ffn_up" => "mlp.c_fc",
                    "ffn_down" => "mlp.c_proj",
                    _ => return None,
                }
            } else {
                match part {
                    "attn_norm" => "input_layernorm",
                    "attn_q" => "self_attn.q_proj",
                    "attn_k" => "self_attn.k_proj",
                    "attn_v" => "self_attn.v_proj",
                    "attn_output" => "self_attn.o_proj",
                    "attn_q_norm" if self == Architecture::Qwen3 => "self_attn.q_norm",
                    "attn_k_norm" if self == Architecture::Qwen3 => "self_attn.k_norm",
                    "ffn_norm" => "post_attention_layernorm",
                    "ffn_gate" => "mlp.gate_proj",
                    "ffn_up" => "mlp.up_proj",
                    "ffn_down" => "mlp.down_proj",
                    _ => return None,
                }
            };
            return Some(if gpt2 { format!("transformer.h.{layer}.{part}") } else { format!("model.layers.{layer}.{part}") });
        }
        let whole = match (stem, gpt2) {
            ("token_embd", true) => "transformer.wte",
            ("position_embd", true) => "transformer.wpe",
            ("output_norm", true) => "transformer.ln_f",
            ("token_embd", false) => "model.embed_tokens",
            ("output_norm", false) => "model.norm",
            ("output", _) => "lm_head",
            _ => return None,
        };
        Some(whole.to_owned())
    }
}

impl GgufFile {
    pub(super) fn architecture(&self) -> Result<Architecture> {
        const KEY: &str = "general.architecture";
        let path = self.path.display();
        let Some(name) = self.header.metadata.get(KEY).and_then(|v| v.as_str()) else {
            bail!(corrupt_file, "{path} has no text `{KEY}`");
        };
        let Some(known) = Architecture::of(name) else {
            bail!(argument, "{path}: `{KEY}` is `{name}`; known are {}", Architecture::NAMED);
        };
        Ok(known)
    }

    /// Hugging Face's names of the tensors that have one, with their names in the file. Others, such as tables that llama.cpp
    /// derives, are not in the list.
    ///
    /// # Errors
    /// Argument error for an architecture whose names are not known here; corrupt-file error when the file names none, or two
    /// tensors come to one name.
    #[track_caller]
    pub fn hf_names(&self) -> Result<BTreeMap<String, String>> {
        let at = Location::caller();
        self.renamed().map_err(|e| e.in_op("hf_names", at))
    }

    fn renamed(&self) -> Result<BTreeMap<String, String>> {
        let architecture = self.architecture()?;
        let mut out = BTreeMap::new();
        for name in self.names() {
            let Some((stem, last)) = name.rsplit_once('.').filter(|(_, l)| ["weight", "bias"].contains(l)) else { continue };
            let Some(stem) = architecture.stem(stem) else { continue };
            crate::memory::small(2 * size_of::<(String, String)>() + name.len() + 64)?;
            if let Some(other) = out.insert(format!("{stem}.{last}"), name.to_owned()) {
                bail!(corrupt_file, "{}: the tensors `{other}` and `{name}` are both `{stem}.{last}`", self.path.display());
            }
        }
        Ok(out)
    }

    /// Reads a tensor by Hugging Face's name, in Hugging Face's layout: rows of Llama's queries and keys in their old order,
    /// GPT-2's matrices as `[in, out]`.
    ///
    /// # Errors
    /// As [`GgufFile::hf_names`] and [`GgufFile::tensor`]; corrupt-file error when the heads that the file gives do not divide
    /// the rows.
    #[track_caller]
    pub fn hf_tensor(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let at = Location::caller();
        let read = || {
            let names = self.renamed()?;
            let Some(own) = names.get(name) else {
                bail!(argument, "{} has no tensor for `{name}`; it has {}", self.path.display(), self.some_names());
            };
            self.changed(own, dtype)
        };
        read().map_err(|e| e.in_op("hf_tensor", at))
    }

    /// Shape of a tensor by Hugging Face's name, in its layout, without reading it.
    ///
    /// # Errors
    /// As [`GgufFile::hf_tensor`].
    #[track_caller]
    pub fn hf_shape(&self, name: &str) -> Result<Shape> {
        let at = std::panic::Location::caller();
        let of = || {
            let names = self.renamed()?;
            let Some(own) = names.get(name) else { bail!(argument, "{} has no tensor for `{name}`", self.path.display()) };
            let shape = self.shape(own)?;
            Ok(if self.change(own)? == Change::Transposed { shape.dims().iter().rev().copied().collect() } else { shape })
        };
        of().map_err(|e: crate::Error| e.in_op("hf_shape", at).called_at(at))
    }

    /// Reads a matrix by Hugging Face's name as the blocks that it is stored in: `[rows, bytes]` of `u8`, rows in Hugging Face's order.
    /// `None` for other types than Q8_0 and Q4_0, and for matrices that would have to be transposed.
    ///
    /// # Errors
    /// As [`GgufFile::hf_tensor`].
    #[track_caller]
    pub fn hf_packed(&self, name: &str) -> Result<Option<(Tensor, Blocks)>> {
        let at = Location::caller();
        self.packed(name).map_err(|e| e.in_op("hf_packed", at))
    }

    fn packed(&self, name: &str) -> Result<Option<(Tensor, Blocks)>> {
        let names = self.renamed()?;
        let Some(own) = names.get(name) else { bail!(argument, "{} has no tensor for `{name}`", self.path.display()) };
        let kind = match self.kind(own)? {
            GgufType::Q8_0 => Blocks::Q8_0,
            GgufType::Q4_0 => Blocks::Q4_0,
            _ => return Ok(None),
        };
        let (change, entry) = (self.change(own)?, self.entry(own)?);
        let [rows, columns] = entry.shape[..] else { return Ok(None) };
        if change == Change::Transposed {
            return Ok(None);
        }
        let row = columns / entry.kind.block() * kind.bytes();
        let mut bytes = crate::memory::vec_of(0u8, rows * row)?;
        self.read_at(entry.begin, &mut bytes).map_err(|e| crate::io::failed("read", &self.path, e))?;
        let t = Tensor::from_vec(bytes, [rows, row])?;
        let t = match change {
            Change::Rotated { heads } => t.reshape([heads, rows / heads / 2, 2, row])?.transpose(1, 2)?.reshape([rows, row])?,
            _ => t,
        };
        Ok(Some((t, kind)))
    }

    /// Reads all tensors that have a name in Hugging Face's world, in its layout.
    ///
    /// # Errors
    /// As [`GgufFile::hf_tensor`].
    #[track_caller]
    pub fn hf_tensors(&self, dtype: DType) -> Result<BTreeMap<String, Tensor>> {
        let at = Location::caller();
        let changed = |(hf, own): (String, String)| Ok((hf, self.changed(&own, dtype)?));
        let all = || crate::memory::map(self.renamed()?.into_iter().map(changed), crate::memory::TENSOR);
        all().map_err(|e| e.in_op("hf_tensors", at))
    }

    fn changed(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let (change, shape) = (self.change(name)?, self.shape(name)?);
        let t = self.read(name, dtype)?;
        match change {
            Change::Nothing => Ok(t),
            Change::Transposed => t.t()?.contiguous(),
            Change::Rotated { heads } => {
                // `[heads, head_dim/2, 2, in]`: of each pair of neighbours, one goes to each half.
                let rows = shape.dims()[0];
                let rest = &shape.dims()[1..];
                let split: Shape = [heads, rows / heads / 2, 2].iter().chain(rest).copied().collect();
                t.reshape(split)?.transpose(1, 2)?.reshape(shape)
            }
        }
    }

    fn change(&self, name: &str) -> Result<Change> {
        let architecture = self.architecture()?;
        let part = name.strip_prefix("blk.").and_then(|r| r.split_once('.')).map_or("", |(_, part)| part);
        let rank = self.shape(name)?.rank();
        let rotated = |key: &str| {
            let heads = self.head_count(key)?;
            let rows = self.shape(name)?.dims().first().copied().unwrap_or(0);
            if heads == 0 || rows % (2 * heads) != 0 {
                bail!(corrupt_file, "{}: `{name}` has {rows} rows, which do not form pairs in each of {heads} heads", self.path.display());
            }
            Ok(Change::Rotated { heads })
        };
        match (architecture, part) {
            (Architecture::Gpt2, "attn_qkv.weight" | "attn_output.weight" | "ffn_up.weight" | "ffn_down.weight") if rank == 2 => {
                Ok(Change::Transposed)
            }
            (Architecture::Llama, "attn_q.weight" | "attn_q.bias") => rotated("attention.head_count"),
            (Architecture::Llama, "attn_k.weight" | "attn_k.bias") => rotated("attention.head_count_kv"),
            _ => Ok(Change::Nothing),
        }
    }
}
