//! JSON of others, parsed where there is memory for it.

use crate::error::{Error, Result};
use crate::memory;
use serde_json::Value;

/// Parses a text; what is wrong with it comes as an error about `what`. serde takes memory without asking: the most that this text can
/// take is asked for.
///
/// # Errors
/// Corrupt-file error; out of memory.
pub(crate) fn json(text: &[u8], what: impl std::fmt::Display) -> Result<Value> {
    memory::ensure(most_of_json(text))?;
    serde_json::from_slice(text).map_err(|e| Error::corrupt_file(format!("{what} is not JSON")).with_source(e))
}

/// Bytes that a text can take as a [`Value`], at most.
pub(crate) fn most_of_json(text: &[u8]) -> usize {
    let parts = Parts::of(text);
    // A node of a map has place for 11 entries; a list begins with 4 and doubles; a text has its own piece.
    let node = 12 * size_of::<(String, Value)>();
    let entry = 3 * size_of::<(String, Value)>();
    text.len().saturating_mul(3) + parts.objects * node + (parts.lists + parts.items) * entry + parts.texts * 48
}

/// How many things a text of JSON has at most: its marks are counted, also those inside of texts.
pub(crate) struct Parts {
    pub objects: usize,
    pub lists: usize,
    /// Of lists and objects, but for the first.
    pub items: usize,
    pub texts: usize,
}

impl Parts {
    pub(crate) fn of(text: &[u8]) -> Parts {
        let mut n = [0usize; 4];
        for b in text {
            match b {
                b'{' => n[0] += 1,
                b'[' => n[1] += 1,
                b',' => n[2] += 1,
                b'"' => n[3] += 1,
                _ => {}
            }
        }
        Parts { objects: n[0], lists: n[1], items: n[2], texts: n[3].div_ceil(2) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted_and_damage_is_named() {
        let text = br#"{"a":[1,2,{"b":"c"}],"d":[]}"#;
        let p = Parts::of(text);
        assert_eq!((p.objects, p.lists, p.items, p.texts), (2, 2, 3, 4));
        assert_eq!(json(text, "x").unwrap()["a"][1], 2);
        let e = json(b"{", "x").unwrap_err();
        assert!(e.is_corrupt_file() && e.to_string().contains("x is not JSON"), "{e}");
    }
}
