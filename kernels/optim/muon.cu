// The elementwise parts of Muon's step, over many matrices: what comes before and after the Newton-Schulz products.
//
// Math         before: b += w (g - b), ahead = nesterov ? g + mu (b - g) : b;  after: p = p shrink - rate o
// Mapping      a block takes 8192 elements of one tensor, common/tensors.cuh
// Memory       before: reads b and g, writes b and ahead; after: reads p and o, writes p
// Aliasing     in place; no two arrays may overlap
// Determinism  no element depends on another. Same operations, in the same order, as the tensor ops on the CPU
// Tried        tensor ops, ten launches per matrix, which these replace; not yet timed on a GPU
#include "common/math.cuh"
#include "common/tensors.cuh"

// Arrays: b, g, ahead. `any` is any of the momenta.
KERNEL(muon_before, (T* any, const Tensors& all, f64 w, f64 mu, i32 nesterov), f64, f32) {
    (void)any;
    for_tensor_piece(all, [&](i32 k, i64 begin, i64 end) {
        T *b = array_of<T>(all, 0, k), *ahead = array_of<T>(all, 2, k);
        const T* g = array_of<T>(all, 1, k);
#pragma unroll 1
        for (i64 i = begin + threadIdx.x; i < end; i += blockDim.x) {
            T to = g[i], v = b[i] + (to - b[i]) * T(w);
            b[i] = v;
            ahead[i] = nesterov ? to + (v - to) * T(mu) : v;
        }
    });
}

// Arrays: p, o. Numbers: shrink, rate. `any` is any of the parameters.
KERNEL(muon_after, (T* any, const Tensors& all), f64, f32) {
    (void)any;
    for_tensor_piece(all, [&](i32 k, i64 begin, i64 end) {
        const f64* numbers = all.numbers[all.which[k]];
        T* p = array_of<T>(all, 0, k);
        const T* o = array_of<T>(all, 1, k);
        const T shrink = T(numbers[0]), rate = T(numbers[1]);
#pragma unroll 1
        for (i64 i = begin + threadIdx.x; i < end; i += blockDim.x) p[i] = p[i] * shrink - o[i] * rate;
    });
}
