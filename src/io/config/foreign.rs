//! Fields that would change a model's numbers and have no place in the configurations here.
//!
//! Files carry dozens of fields that say nothing about the forward pass (dropout, caches, versions, heads for other tasks), so a
//! field that is not known cannot be an error by itself. These are known to change it, from the families that
//! Hugging Face's transformers has.

use super::Refusal;
use super::fields::{Fields, show};
use serde_json::Value;

/// A field, and the number at which it changes nothing, where there is one.
const FIELDS: [(&str, Option<f64>); 24] = [
    ("quantization_config", None),
    ("compression_config", None),
    ("clip_qkv", None),
    ("logit_softcapping", None),
    ("attn_logit_softcapping", None),
    ("final_logit_softcapping", None),
    ("logit_scale", Some(1.0)),
    ("logits_scaling", Some(1.0)),
    ("embedding_multiplier", Some(1.0)),
    ("residual_multiplier", Some(1.0)),
    ("attention_multiplier", None),
    ("query_pre_attn_scalar", None),
    ("add_cross_attention", None),
    ("is_encoder_decoder", None),
    ("alibi", None),
    ("parallel_attn", None),
    ("use_parallel_residual", None),
    ("use_qk_norm", None),
    ("num_local_experts", Some(1.0)),
    ("num_experts", Some(1.0)),
    ("moe_intermediate_size", None),
    ("attention_chunk_size", None),
    ("pruned_heads", None),
    ("vision_config", None),
];

/// Refuses a configuration with such a field, unless its value says that nothing is done.
pub(super) fn refuse(config: Fields<'_>) -> Result<(), Refusal> {
    for (name, neutral) in FIELDS {
        let Some(value) = config.get(name) else { continue };
        let idle = match value {
            Value::Bool(on) => !on,
            Value::Number(n) => n.as_f64() == Some(0.0) || n.as_f64() == neutral,
            Value::Array(list) => list.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        if !idle {
            return Err(Refusal::Unknown(format!("`{name}` is {}: models with it are not known here", show(value))));
        }
    }
    Ok(())
}
