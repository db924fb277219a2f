//! The header of a safetensors file, out of its JSON.
//!
//! serde's own containers take memory without asking, several times the length of the header: a file of millions of names is read into
//! lists that ask. What they say is checked by the `safetensors` crate.

use crate::error::{Error, Result};
use crate::memory;
use ::safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

/// The key of the header that is no tensor.
pub(super) const METADATA: &str = "__metadata__";

/// Bytes that the crate takes for a tensor beside its name: a place in a hash map that is up to half empty, and an entry of a list.
const PER_TENSOR: usize = 2 * (size_of::<(String, usize)>() + 1) + 2 * size_of::<TensorInfo>();

thread_local! {
    /// Why memory was refused: serde's errors are texts.
    static REFUSED: Cell<Option<Error>> = const { Cell::new(None) };
}

/// A header that was checked.
#[derive(Debug)]
pub(super) struct Header {
    pub tensors: Metadata,
    /// Names of the tensors, in the order of the file.
    pub names: Vec<String>,
    /// The texts beside the tensors.
    pub texts: BTreeMap<String, String>,
}

/// The header's text, checked; `what` is the file.
pub(super) fn parse(bytes: &[u8], what: impl fmt::Display) -> Result<Header> {
    let damaged = |why: String| Error::corrupt_file(format!("{what}: {why}"));
    let text = std::str::from_utf8(bytes).map_err(|e| damaged(format!("the header is not UTF-8 at byte {}", 8 + e.valid_up_to())))?;
    if !text.starts_with('{') {
        return Err(damaged("the header does not begin with `{` at byte 8".to_owned()));
    }
    if text.contains('\\') {
        // A text with escapes is put together in a list that doubles.
        memory::ensure(3 * bytes.len())?;
    }
    REFUSED.set(None);
    let parsed = serde_json::from_str::<Parsed>(text);
    let Parsed { mut tensors, texts } = match (parsed, REFUSED.take()) {
        (Err(_), Some(refused)) => return Err(refused),
        (parsed, _) => parsed.map_err(|e| damaged(format!("the header is damaged: {e}")))?,
    };
    tensors.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    if let Some(twice) = tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(damaged(format!("the header is damaged: `{}` occurs twice", twice[0].0)));
    }
    // Where tensors have no elements, by name.
    tensors.sort_unstable_by(|a, b| (a.1.data_offsets, &a.0).cmp(&(b.1.data_offsets, &b.0)));
    memory::ensure(tensors.len().saturating_mul(PER_TENSOR))?;
    let names = memory::try_collect_ok(tensors.iter().map(|t| memory::text(&t.0)))?;
    let tensors = Metadata::new(None, tensors).map_err(|e| damaged(format!("the header is damaged: {e}")))?;
    Ok(Header { tensors, names, texts })
}

fn asked<T, E: de::Error>(asked: Result<T>) -> Result<T, E> {
    asked.map_err(|e| {
        let text = E::custom("out of memory");
        REFUSED.set(Some(e));
        text
    })
}

struct Parsed {
    tensors: Vec<(String, TensorInfo)>,
    texts: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Parsed;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed, A::Error> {
                let (mut tensors, mut texts) = (Vec::new(), None);
                while let Some(Text(name)) = map.next_key()? {
                    if name != METADATA {
                        let Info(info) = map.next_value()?;
                        asked(memory::push(&mut tensors, (name, info)))?;
                    } else if texts.replace(map.next_value::<Option<Texts>>()?).is_some() {
                        return Err(de::Error::custom(format!("`{METADATA}` occurs twice")));
                    }
                }
                let Texts(texts) = texts.flatten().unwrap_or_default();
                Ok(Parsed { tensors, texts })
            }
        }
        from.deserialize_map(Tensors)
    }
}

/// A text.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                asked(memory::text(text)).map(Text)
            }
        }
        from.deserialize_str(Any)
    }
}

/// Texts by key.
#[derive(Default)]
struct Texts(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Texts;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Texts, A::Error> {
                let mut texts = BTreeMap::new();
                while let Some((Text(key), Text(text))) = map.next_entry()? {
                    // Nodes are at least half full.
                    asked(memory::small(2 * size_of::<(String, String)>()))?;
                    texts.insert(key, text);
                }
                Ok(Texts(texts))
            }
        }
        from.deserialize_map(All)
    }
}

/// A tensor's entry.
struct Info(TensorInfo);

impl<'de> Deserialize<'de> for Info {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Info;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with `dtype`, `shape` and `data_offsets`")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Info, A::Error> {
                fn once<E: de::Error, T>(place: &mut Option<T>, name: &'static str, value: T) -> Result<(), E> {
                    if place.replace(value).is_some() { Err(E::duplicate_field(name)) } else { Ok(()) }
                }
                let (mut dtype, mut shape, mut offsets) = (None, None, None);
                while let Some(Text(field)) = map.next_key()? {
                    match field.as_str() {
                        "dtype" => once(&mut dtype, "dtype", map.next_value::<Dtype>()?)?,
                        "shape" => once(&mut shape, "shape", map.next_value::<Extents>()?.0)?,
                        "data_offsets" => once(&mut offsets, "data_offsets", map.next_value::<(usize, usize)>()?)?,
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                let missing = de::Error::missing_field;
                Ok(Info(TensorInfo {
                    dtype: dtype.ok_or_else(|| missing("dtype"))?,
                    shape: shape.ok_or_else(|| missing("shape"))?,
                    data_offsets: offsets.ok_or_else(|| missing("data_offsets"))?,
                }))
            }
        }
        from.deserialize_map(Fields)
    }
}

struct Extents(Vec<usize>);

impl<'de> Deserialize<'de> for Extents {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Extents;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of extents")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Extents, A::Error> {
                let mut extents = Vec::new();
                while let Some(extent) = items.next_element()? {
                    // As many as there are axes: mostly few.
                    let more = if extents.len() < 4 { 4 } else { extents.len() };
                    if extents.len() == extents.capacity() {
                        asked(memory::reserve(&mut extents, more))?;
                    }
                    extents.push(extent);
                }
                Ok(Extents(extents))
            }
        }
        from.deserialize_seq(List)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_and_mistakes_named() {
        let one = r#""x":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8],"more":{"y":[null]}}"#;
        let header = parse(format!(r#"{{"__metadata__":{{"a":"b\n"}},{one}}}"#).as_bytes(), "f").unwrap();
        assert_eq!((header.tensors.data_len(), header.names.as_slice()), (8, &["x".to_owned()][..]));
        assert_eq!(header.tensors.info("x").unwrap().shape, [1, 2]);
        assert_eq!(header.texts["a"], "b\n");
        assert!(parse(br#"{"__metadata__":null}"#, "f").unwrap().texts.is_empty());
        for (text, why) in [
            (format!("{{{one},{one}}}"), "`x` occurs twice"),
            (r#"{"__metadata__":{},"__metadata__":{}}"#.to_owned(), "`__metadata__` occurs twice"),
            (r#"{"__metadata__":{"a":1}}"#.to_owned(), "expected a string"),
            (r#"{"x":{"dtype":"F32","shape":[2]}}"#.to_owned(), "missing field `data_offsets`"),
            (r#"{"x":{"dtype":"F32","dtype":"F32"}}"#.to_owned(), "duplicate field `dtype`"),
            (r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0]}}"#.to_owned(), "invalid length 1"),
            (r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#.to_owned(), "invalid offset for tensor `x`"),
            (r#"{"x":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}}"#.to_owned(), "unknown variant `F33`"),
            (r#"{"x":[]}"#.to_owned(), "an object with `dtype`"),
        ] {
            let e = parse(text.as_bytes(), "f").unwrap_err();
            assert!(e.is_corrupt_file() && e.to_string().contains(why), "{text}: {e}");
        }
    }
}
