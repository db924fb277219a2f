//! Products of matrices and what is made of them: dense layers, Einstein sums, matrices in 8 or 4 bits, norms of matrices. They share
//! the matrix products of `backend::cpu::gemm` and cuBLASLt.

pub mod einsum;
pub mod linear;
pub mod matmul;
pub mod matrix_norm;
pub mod quant_linear;
