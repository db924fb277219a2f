// One step of gradient descent, over a parameter, its gradient and its momentum.
//
// Math: g += decay p; b = momentum b + g (b = g in the first step); p -= lr (nesterov ? g + momentum b : b), or lr g without
// momentum.
// Mapping: a thread takes 16 bytes of each array at a time.
// Memory: reads two or three arrays, writes one or two.
// Determinism: no element depends on another. Half types are computed in float and rounded once.
#include "common/math.cuh"
#include "common/pack.cuh"

KERNEL(sgd_step,
       (T* p, const T* g, maybe<T*> velocity, i64 n, acc<T> lr, acc<T> momentum, acc<T> decay, i32 nesterov, i32 first),
       f64, f32, bf16, f16) {
    typedef acc<T> A;
    auto step = [&](T& p, T g, T* b) {
        A x = load(p), d = load(g) + decay * x;
        if (decay == A(0)) d = load(g);
        if (b) {
            A w = first ? d : load(*b) * momentum + d;
            *b = store<T>(w);
            d = nesterov ? d + w * momentum : w;
        }
        p = store<T>(x - d * lr);
    };
    constexpr int N = PACK<T>;
    bool together = aligned<T, N>(p) && aligned<T, N>(g) && aligned<T, N>(velocity);
    i64 packs = together ? n / N : 0;
#pragma unroll 1
    for (i64 k = thread_index(); k < packs; k += thread_count()) {
        Pack<T, N> pp, gg, bb;
        i64 i = k * N;
        pp.load(p + i);
        gg.load(g + i);
        if (velocity && !first) bb.load(velocity + i);
#pragma unroll
        for (int j = 0; j < N; j++) step(pp.v[j], gg.v[j], velocity ? &bb.v[j] : nullptr);
        pp.store(p + i);
        if (velocity) bb.store(velocity + i);
    }
#pragma unroll 1
    for (i64 i = packs * N + thread_index(); i < n; i += thread_count()) step(p[i], g[i], velocity ? velocity + i : nullptr);
}
