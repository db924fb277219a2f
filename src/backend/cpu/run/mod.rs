//! How kernels run: on all threads (`par`), on all lanes (`simd`), over operands of any layout (`view`), element by element (`map`),
//! axis by axis (`remap`), and over positions that an operand gives (`index`).

pub(crate) mod index;
pub(crate) mod map;
pub(crate) mod par;
pub(crate) mod remap;
pub(crate) mod simd;
pub(crate) mod view;
