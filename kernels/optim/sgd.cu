// One step of gradient descent, over many parameters, their gradients and their momenta.
//
// Math         g += decay p; b = momentum b + g (b = g in the first step); p -= lr (nesterov ? g + momentum b : b), or lr g without
//              momentum
// Mapping      a block takes 8192 elements of one tensor, common/tensors.cuh; a thread 16 bytes of each array at a time
// Memory       reads two or three arrays, writes one or two
// Aliasing     in place; no two arrays may overlap
// Determinism  no element depends on another
// Tried        one launch per tensor, which this replaces; neither was timed on a GPU yet
#include "common/math.cuh"
#include "common/tensors.cuh"

// Arrays: p, g, b (none without momentum). Numbers: lr, decay, and 1 in a parameter's first step. `any` is any of the parameters.
KERNEL(sgd_step, (T* any, const Tensors& all, f64 momentum, i32 nesterov), f64, f32) {
    (void)any;
    for_tensor_piece(all, [&](i32 k, i64 begin, i64 end) {
        const f64* numbers = all.numbers[all.which[k]];
        const T lr = T(numbers[0]), decay = T(numbers[1]), mu = T(momentum);
        const bool first = numbers[2] != 0;
        T *p = array_of<T>(all, 0, k), *velocity = array_of<T>(all, 2, k);
        const T* g = array_of<T>(all, 1, k);
        auto step = [&](T& p, T g, T& b) {
            T d = decay == T(0) ? g : g + decay * p;
            if (velocity) {
                b = first ? d : b * mu + d;
                d = nesterov ? d + b * mu : b;
            }
            p = p - d * lr;
        };
        constexpr int N = PACK<T>;
        bool together = aligned<T, N>(p) && aligned<T, N>(g) && aligned<T, N>(velocity);
        i64 whole = together ? begin + (end - begin) / N * N : begin;
#pragma unroll 1
        for (i64 i = begin + i64(threadIdx.x) * N; i < whole; i += i64(blockDim.x) * N) {
            Pack<T, N> pp, gg, bb;
            pp.load(p + i);
            gg.load(g + i);
            if (velocity) bb.load(velocity + i);
#pragma unroll
            for (int j = 0; j < N; j++) step(pp.v[j], gg.v[j], bb.v[j]);
            pp.store(p + i);
            if (velocity) bb.store(velocity + i);
        }
#pragma unroll 1
        for (i64 i = whole + threadIdx.x; i < end; i += blockDim.x) {
            T b = velocity ? velocity[i] : T(0);
            step(p[i], g[i], b);
            if (velocity) velocity[i] = b;
        }
    });
}
