// One step of Adam with decoupled weight decay, over many parameters, their gradients and their moments.
//
// Math         m += (g - m)(1 - b1); v = b2 v + (1 - b2) g^2; p = p shrink - rate m / (sqrt(v) / root + eps), where shrink, rate and
//              root carry weight decay and bias corrections; with `largest`, the largest v so far takes the place of v
// Mapping      a block takes 8192 elements of one tensor, common/tensors.cuh; a thread 16 bytes of each array at a time
// Memory       reads four arrays, writes three (28 bytes per f32 parameter); five and four with `largest`
// Aliasing     in place; no two arrays may overlap
// Determinism  no element depends on another. Same operations as src/backend/cpu/optim.rs
// Tried        one launch per tensor, which this replaces; neither was timed on a GPU yet
#include "common/math.cuh"
#include "common/tensors.cuh"

// Arrays: p, g, m, v, largest. Numbers: shrink, rate, root; a captured step reads rate, root and shrink from `live`, from the place that
// `which` says. `any` is any of the parameters: it chooses the kernel.
KERNEL(adamw_step, (T* any, const Tensors& all, f64 b1, f64 b2, f64 eps, maybe<const f64*> live), f64, f32) {
    (void)any;
    const T w1 = T(1 - b1), w2 = T(1 - b2), keep = T(b2), e = T(eps);
    for_tensor_piece(all, [&](i32 k, i64 begin, i64 end) {
        const f64* numbers = live ? live + all.which[k] : all.numbers[all.which[k]];
        const T s = T(live ? numbers[2] : numbers[0]), r = T(live ? numbers[0] : numbers[1]), c = T(live ? numbers[1] : numbers[2]);
        T *p = array_of<T>(all, 0, k), *m = array_of<T>(all, 2, k), *v = array_of<T>(all, 3, k), *largest = array_of<T>(all, 4, k);
        const T* g = array_of<T>(all, 1, k);
        auto step = [&](T& p, T g, T& m, T& v, T& l) {
            m = m_fma(g - m, w1, m);
            v = m_fma(g * w2, g, v * keep);
            T top = v;
            if (largest) top = l = max_nan(l, v);
            p = p * s - r * m / (m_sqrt(top) / c + e);
        };
        constexpr int N = PACK<T>;
        bool together = aligned<T, N>(p) && aligned<T, N>(g) && aligned<T, N>(m) && aligned<T, N>(v) && aligned<T, N>(largest);
        i64 whole = together ? begin + (end - begin) / N * N : begin;
#pragma unroll 1
        for (i64 i = begin + i64(threadIdx.x) * N; i < whole; i += i64(blockDim.x) * N) {
            Pack<T, N> pp, gg, mm, vv, ll;
            pp.load(p + i);
            gg.load(g + i);
            mm.load(m + i);
            vv.load(v + i);
            if (largest) ll.load(largest + i);
#pragma unroll
            for (int j = 0; j < N; j++) step(pp.v[j], gg.v[j], mm.v[j], vv.v[j], ll.v[j]);
            pp.store(p + i);
            mm.store(m + i);
            vv.store(v + i);
            if (largest) ll.store(largest + i);
        }
#pragma unroll 1
        for (i64 i = whole + threadIdx.x; i < end; i += blockDim.x) {
            T l = largest ? largest[i] : T(0);
            step(p[i], g[i], m[i], v[i], l);
            if (largest) largest[i] = l;
        }
    });
}
