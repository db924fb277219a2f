// Gated activations: SwiGLU and GEGLU, and their derivatives.
//
// Math         y = f(a) b;  a_bar = g b f'(a),  b_bar = g f(a), with f and f' from one exponential
// Mapping      a thread takes 16 bytes of every operand at a time, and strides over what the grid does not cover
// Memory       forward reads a and b, writes y; the derivative reads a, b and g once and writes both cotangents (without a_bar, b is
//              not read). The composition reads five and writes three more arrays
// Aliasing     results are fresh memory; operands may be one and the same
// Determinism  no element depends on another
// Tried        not yet timed on a GPU
#include "common/activations.cuh"

template <class T, class F>
DEVICE void gated_fwd(T* y, const T* a, const View& va, const T* b, const View& vb, i64 n) {
    Operand<T, PACK<T>> gate(a, va), up(b, vb);
    for_packs<PACK<T>>(y, n, gate.in_packs() && up.in_packs(), [&](i64 i, auto& out) {
        constexpr int M = sizeof(out) / sizeof(T);
        T x[M], z[M];
        gate.read(i, x);
        up.read(i, z);
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = store<T>(F::f(load(x[j]), Params{}) * load(z[j]));
    });
}

template <class T, class F, int M>
DEVICE void gated_pull(T* da, T* db, const Operand<T, PACK<T>>& gate, const Operand<T, PACK<T>>& up, const Operand<T, PACK<T>>& bar, i64 i) {
    typedef acc<T> A;
    T x[M], g[M];
    gate.read(i, x);
    bar.read(i, g);
    A f[M], slope[M];
#pragma unroll
    for (int j = 0; j < M; j++) F::both(load(x[j]), f[j], slope[j]);
    if (da) {
        T z[M];
        Pack<T, M> out;
        up.read(i, z);
#pragma unroll
        for (int j = 0; j < M; j++) out.v[j] = store<T>(load(g[j]) * load(z[j]) * slope[j]);
        out.store(da + i);
    }
    if (db) {
        Pack<T, M> out;
#pragma unroll
        for (int j = 0; j < M; j++) out.v[j] = store<T>(load(g[j]) * f[j]);
        out.store(db + i);
    }
}

template <class T, class F>
DEVICE void gated_vjp(T* da, T* db, const T* a, const View& va, const T* b, const View& vb, const T* g, const View& vg, i64 n) {
    constexpr int N = PACK<T>;
    Operand<T, N> gate(a, va), up(b, vb), bar(g, vg);
    bool together = gate.in_packs() && up.in_packs() && bar.in_packs() && aligned<T, N>(da) && aligned<T, N>(db);
    i64 packs = together ? n / N : 0;
#pragma unroll 1
    for (i64 k = thread_index(); k < packs; k += thread_count()) gated_pull<T, F, N>(da, db, gate, up, bar, k * N);
#pragma unroll 1
    for (i64 i = packs * N + thread_index(); i < n; i += thread_count()) gated_pull<T, F, 1>(da, db, gate, up, bar, i);
}

KERNEL(gated_swiglu, (T* y, const T* a, const View& va, const T* b, const View& vb, i64 n), f64, f32, bf16, f16) {
    gated_fwd<T, Silu>(y, a, va, b, vb, n);
}
KERNEL(gated_geglu, (T* y, const T* a, const View& va, const T* b, const View& vb, i64 n), f64, f32, bf16, f16) {
    gated_fwd<T, Gelu>(y, a, va, b, vb, n);
}
KERNEL(gated_geglu_tanh, (T* y, const T* a, const View& va, const T* b, const View& vb, i64 n), f64, f32, bf16, f16) {
    gated_fwd<T, GeluTanh>(y, a, va, b, vb, n);
}

KERNEL(gated_swiglu_vjp,
       (maybe<T*> da, maybe<T*> db, const T* a, const View& va, const T* b, const View& vb, const T* g, const View& vg, i64 n),
       f64, f32, bf16, f16) {
    gated_vjp<T, Silu>(da, db, a, va, b, vb, g, vg, n);
}
KERNEL(gated_geglu_vjp,
       (maybe<T*> da, maybe<T*> db, const T* a, const View& va, const T* b, const View& vb, const T* g, const View& vg, i64 n),
       f64, f32, bf16, f16) {
    gated_vjp<T, Gelu>(da, db, a, va, b, vb, g, vg, n);
}
KERNEL(gated_geglu_tanh_vjp,
       (maybe<T*> da, maybe<T*> db, const T* a, const View& va, const T* b, const View& vb, const T* g, const View& vg, i64 n),
       f64, f32, bf16, f16) {
    gated_vjp<T, GeluTanh>(da, db, a, va, b, vb, g, vg, n);
}
