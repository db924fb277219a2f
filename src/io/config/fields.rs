//! A JSON object whose fields are asked for by name and type; messages name field and value.

use serde_json::{Map, Value};

/// An object of a configuration. A field that is `null` counts as absent, as in Python.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// `rope_parameters.` where the object is a field itself.
    prefix: &'static str,
}

impl<'a> Fields<'a> {
    pub fn of(value: &'a Value, prefix: &'static str) -> Result<Self, String> {
        match value {
            Value::Object(object) => Ok(Fields { object, prefix }),
            other if prefix.is_empty() => Err(format!("expected an object, found {}", show(other))),
            other => Err(format!("`{}` is {}, not an object", prefix.trim_end_matches('.'), show(other))),
        }
    }

    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|v| !v.is_null())
    }

    /// Whether the field is there, be it `null`.
    pub fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.object.iter().filter(|(_, v)| !v.is_null()).map(|(k, _)| k.as_str())
    }

    /// The field, or `None`, or a message that it is not `expected`.
    fn typed<T>(&self, name: &str, expected: &str, convert: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, String> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match convert(value) {
            Some(x) => Ok(Some(x)),
            None => Err(format!("`{}{name}` is {}, expected {expected}", self.prefix, show(value))),
        }
    }

    fn required<T>(&self, name: &str, field: Option<T>) -> Result<T, String> {
        field.ok_or_else(|| format!("`{}{name}` is missing", self.prefix))
    }

    pub fn optional_size(&self, name: &str) -> Result<Option<usize>, String> {
        self.typed(name, "a whole number that is not negative", |v| v.as_u64()?.try_into().ok())
    }

    pub fn size(&self, name: &str) -> Result<usize, String> {
        self.required(name, self.optional_size(name)?)
    }

    pub fn optional_float(&self, name: &str) -> Result<Option<f64>, String> {
        self.typed(name, "a number", Value::as_f64)
    }

    pub fn float(&self, name: &str) -> Result<f64, String> {
        self.required(name, self.optional_float(name)?)
    }

    pub fn flag(&self, name: &str, default: bool) -> Result<bool, String> {
        Ok(self.typed(name, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>, String> {
        self.typed(name, "a text", Value::as_str)
    }

    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>, String> {
        self.typed(name, "a list", |v| v.as_array().map(Vec::as_slice))
    }

    /// Token ids: one number, a list of them, or none.
    pub fn tokens(&self, name: &str) -> Result<Vec<u32>, String> {
        let id = |v: &Value| v.as_u64().and_then(|x| u32::try_from(x).ok());
        let ids = self.typed(name, "a token id or a list of them", |v| match v {
            Value::Array(list) => list.iter().map(id).collect(),
            // Some files say -1 for "none".
            Value::Number(n) if n.as_i64() == Some(-1) => Some(Vec::new()),
            one => Some(vec![id(one)?]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    pub fn token(&self, name: &str) -> Result<Option<u32>, String> {
        Ok(self.tokens(name)?.first().copied())
    }
}

/// A value as messages show it.
pub(super) fn show(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((i, _)) => format!("{}…", &text[..i]),
        None => text,
    }
}

/// Fails unless `1 ≤ value ≤ most`: a file's number that is beyond any model's would only be found out by running out of memory.
pub(super) fn within(name: &str, value: usize, most: usize) -> Result<(), String> {
    if (1..=most).contains(&value) { Ok(()) } else { Err(format!("`{name}` is {value}, expected 1 to {most}")) }
}

/// Fails unless a number is finite and above 0.
pub(super) fn positive(name: &str, value: f64) -> Result<(), String> {
    if value > 0.0 && value.is_finite() { Ok(()) } else { Err(format!("`{name}` is {value}, expected a positive number")) }
}

/// Fails unless `whole` is a multiple of `part`.
pub(super) fn divides(part: (&str, usize), whole: (&str, usize)) -> Result<(), String> {
    if part.1 > 0 && whole.1.is_multiple_of(part.1) {
        Ok(())
    } else {
        Err(format!("`{}` is {}, which does not divide `{}`, {}", part.0, part.1, whole.0, whole.1))
    }
}
