//! Element types of GGUF tensors: how many elements make a block, and how many bytes that block has.

use std::fmt;

macro_rules! types {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $block:literal, $bytes:literal;)*) => {
        /// How the elements of a tensor are stored.
        ///
        /// The quantised types store a block of elements in a few bits each, with one or more scales.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(non_camel_case_types)] // the names that everyone uses
        #[non_exhaustive]
        pub enum GgufType {
            $($(#[$doc])* $name,)*
        }

        impl GgufType {
            /// Every type that files may name.
            pub const ALL: &[GgufType] = &[$(GgufType::$name),*];

            /// The type with this number in files.
            pub(super) fn from_id(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(GgufType::$name),)*
                    _ => None,
                }
            }

            /// Elements per block; 1 for types that are not quantised. A row is a whole number of blocks.
            pub const fn block(self) -> usize {
                match self { $(GgufType::$name => $block,)* }
            }

            /// Bytes per block.
            pub const fn bytes(self) -> usize {
                match self { $(GgufType::$name => $bytes,)* }
            }

            /// Its usual name: `Q4_K`.
            pub const fn name(self) -> &'static str {
                match self { $(GgufType::$name => stringify!($name),)* }
            }
        }
    };
}

types! {
    /// IEEE binary32.
    F32 = 0, 1, 4;
    /// IEEE binary16.
    F16 = 1, 1, 2;
    /// 4 bits and a scale per 32.
    Q4_0 = 2, 32, 18;
    /// 4 bits, a scale and an offset per 32.
    Q4_1 = 3, 32, 20;
    /// 5 bits and a scale per 32.
    Q5_0 = 6, 32, 22;
    /// 5 bits, a scale and an offset per 32.
    Q5_1 = 7, 32, 24;
    /// 8 bits and a scale per 32.
    Q8_0 = 8, 32, 34;
    /// 8 bits, a scale and a sum per 32; for activations, not read here.
    Q8_1 = 9, 32, 36;
    /// 2 bits, 4-bit scales and offsets per 16, two scales of those per 256.
    Q2_K = 10, 256, 84;
    /// 3 bits, 6-bit scales per 16, a scale of those per 256.
    Q3_K = 11, 256, 110;
    /// 4 bits, 6-bit scales and offsets per 32, two scales of those per 256.
    Q4_K = 12, 256, 144;
    /// 5 bits, 6-bit scales and offsets per 32, two scales of those per 256.
    Q5_K = 13, 256, 176;
    /// 6 bits, 8-bit scales per 16, a scale of those per 256.
    Q6_K = 14, 256, 210;
    /// 8 bits and a scale per 256; for activations, not read here.
    Q8_K = 15, 256, 292;
    /// 2.06 bits by a code book; not read here.
    IQ2_XXS = 16, 256, 66;
    /// 2.31 bits by a code book; not read here.
    IQ2_XS = 17, 256, 74;
    /// 3.06 bits by a code book; not read here.
    IQ3_XXS = 18, 256, 98;
    /// 1.56 bits by a code book; not read here.
    IQ1_S = 19, 256, 50;
    /// 4 bits that choose among 16 uneven levels, a scale per 32.
    IQ4_NL = 20, 32, 18;
    /// 3.44 bits by a code book; not read here.
    IQ3_S = 21, 256, 110;
    /// 2.56 bits by a code book; not read here.
    IQ2_S = 22, 256, 82;
    /// As `IQ4_NL`, with 6-bit scales per 32 and a scale of those per 256.
    IQ4_XS = 23, 256, 136;
    /// Integers of 8 bits.
    I8 = 24, 1, 1;
    /// Integers of 16 bits.
    I16 = 25, 1, 2;
    /// Integers of 32 bits.
    I32 = 26, 1, 4;
    /// Integers of 64 bits.
    I64 = 27, 1, 8;
    /// IEEE binary64.
    F64 = 28, 1, 8;
    /// 1.75 bits by a code book; not read here.
    IQ1_M = 29, 256, 56;
    /// bfloat16.
    BF16 = 30, 1, 2;
    /// Three levels, 1.69 bits; not read here.
    TQ1_0 = 34, 256, 54;
    /// Three levels, 2.06 bits; not read here.
    TQ2_0 = 35, 256, 66;
    /// 4-bit floats with a power of two per 32; not read here.
    MXFP4 = 39, 32, 17;
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
