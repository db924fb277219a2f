// One step of Adam with decoupled weight decay, over a parameter, its gradient and its moments.
//
// Math: m += (g - m)(1 - b1); v = b2 v + (1 - b2) g^2; p = p shrink - rate m / (sqrt(v) / root + eps), where shrink, rate and
// root carry weight decay and bias corrections; with `largest`, the largest v so far takes the place of v.
// Mapping: a thread takes 16 bytes of each array at a time.
// Memory: reads four arrays, writes three (28 bytes per f32 parameter); five and four with `largest`.
// Determinism: no element depends on another. Same operations as src/backend/cpu/optim.rs.
#include "common/math.cuh"
#include "common/pack.cuh"

KERNEL(adamw_step,
       (T* p, const T* g, T* m, T* v, maybe<T*> largest, i64 n, f64 shrink, f64 rate, f64 root, f64 b1, f64 b2, f64 eps,
        maybe<const f64*> live),
       f64, f32) {
    // A captured step reads what changes from step to step.
    if (live) {
        rate = live[0];
        root = live[1];
        shrink = live[2];
    }
    const T w1 = T(1 - b1), w2 = T(1 - b2), keep = T(b2), s = T(shrink), r = T(rate), c = T(root), e = T(eps);
    auto step = [&](T& p, T g, T& m, T& v, T* l) {
        m = m_fma(g - m, w1, m);
        v = m_fma(g * w2, g, v * keep);
        T top = v;
        if (l) top = *l = max_nan(*l, v);
        p = p * s - r * m / (m_sqrt(top) / c + e);
    };
    constexpr int N = PACK<T>;
    bool together = aligned<T, N>(p) && aligned<T, N>(g) && aligned<T, N>(m) && aligned<T, N>(v) && aligned<T, N>(largest);
    i64 packs = together ? n / N : 0;
#pragma unroll 1
    for (i64 k = thread_index(); k < packs; k += thread_count()) {
        Pack<T, N> pp, gg, mm, vv, ll;
        i64 i = k * N;
        pp.load(p + i);
        gg.load(g + i);
        mm.load(m + i);
        vv.load(v + i);
        if (largest) ll.load(largest + i);
#pragma unroll
        for (int j = 0; j < N; j++) step(pp.v[j], gg.v[j], mm.v[j], vv.v[j], largest ? &ll.v[j] : nullptr);
        pp.store(p + i);
        mm.store(m + i);
        vv.store(v + i);
        if (largest) ll.store(largest + i);
    }
#pragma unroll 1
    for (i64 i = packs * N + thread_index(); i < n; i += thread_count()) step(p[i], g[i], m[i], v[i], largest ? largest + i : nullptr);
}
