// One launch over many tensors: a table of addresses in the launch's parameters, and blocks that each take a piece of one tensor.
#pragma once
#include "common/pack.cuh"

// As many tensors as fit 4 KB of parameters beside the rest. The Rust struct of the same name is in src/backend/cuda/abi/tensors.rs.
struct Tensors {
    u64 at[5][64];       // addresses of up to five arrays of each tensor; 0 where there is none
    i64 n[64];           // elements of each tensor
    i32 first[65];       // first block of each tensor, and the number of blocks
    i32 which[64];       // which numbers are each tensor's
    i32 count;
    f64 numbers[8][3];
};
static_assert(sizeof(Tensors) == 3784, "as in src/backend/cuda/abi");

// Elements of a block: a multiple of what its threads take at a time.
constexpr i64 TENSOR_PIECE = 8192;

// body(tensor, first element, end) for the piece of this block.
template <class F> DEVICE void for_tensor_piece(const Tensors& t, F body) {
    i32 block = i32(blockIdx.x), k = 0;
#pragma unroll 1
    while (k + 1 < t.count && t.first[k + 1] <= block) k++;
    i64 begin = i64(block - t.first[k]) * TENSOR_PIECE, end = begin + TENSOR_PIECE;
    body(k, begin, end < t.n[k] ? end : t.n[k]);
}

template <class T> DEVICE T* array_of(const Tensors& t, int array, i32 k) { return reinterpret_cast<T*>(t.at[array][k]); }
