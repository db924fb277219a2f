//! Metadata: typed values under text keys.

macro_rules! values {
    ($($(#[$doc:meta])* $name:ident($t:ty),)*) => {
        /// One metadata value, in the type that the file gives it.
        #[derive(Clone, Debug, PartialEq)]
        pub enum GgufValue {
            $($(#[$doc])* $name($t),)*
            /// A list, of one type throughout.
            Array(GgufArray),
        }

        /// A list of metadata values of one type.
        #[derive(Clone, Debug, PartialEq)]
        pub enum GgufArray {
            $($(#[$doc])* $name(Vec<$t>),)*
            /// Lists.
            Array(Vec<GgufArray>),
        }

        impl GgufArray {
            /// Number of values.
            pub fn len(&self) -> usize {
                match self {
                    $(GgufArray::$name(v) => v.len(),)*
                    GgufArray::Array(v) => v.len(),
                }
            }

            /// Whether there is none.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }
        }

        impl GgufValue {
            /// What the format calls its type.
            pub fn type_name(&self) -> &'static str {
                match self {
                    $(GgufValue::$name(_) => stringify!($name),)*
                    GgufValue::Array(_) => "Array",
                }
            }
        }
    };
}

values! {
    /// Unsigned, 8 bits.
    U8(u8),
    /// Signed, 8 bits.
    I8(i8),
    /// Unsigned, 16 bits.
    U16(u16),
    /// Signed, 16 bits.
    I16(i16),
    /// Unsigned, 32 bits.
    U32(u32),
    /// Signed, 32 bits.
    I32(i32),
    /// Single precision.
    F32(f32),
    /// A truth value.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Unsigned, 64 bits.
    U64(u64),
    /// Signed, 64 bits.
    I64(i64),
    /// Double precision.
    F64(f64),
}

impl GgufValue {
    /// A number that is not negative, of any integer type: writers do not agree on one.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            GgufValue::U8(x) => Some(x.into()),
            GgufValue::U16(x) => Some(x.into()),
            GgufValue::U32(x) => Some(x.into()),
            GgufValue::U64(x) => Some(x),
            GgufValue::I8(x) => x.try_into().ok(),
            GgufValue::I16(x) => x.try_into().ok(),
            GgufValue::I32(x) => x.try_into().ok(),
            GgufValue::I64(x) => x.try_into().ok(),
            _ => None,
        }
    }

    /// A number of either float type.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            GgufValue::F32(x) => Some(x.into()),
            GgufValue::F64(x) => Some(x),
            _ => None,
        }
    }

    /// A text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            GgufValue::String(x) => Some(x),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            GgufValue::Bool(x) => Some(*x),
            _ => None,
        }
    }

    /// A list of texts.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            GgufValue::Array(GgufArray::String(x)) => Some(x),
            _ => None,
        }
    }
}
