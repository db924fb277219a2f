// Choosing elements of any type, by their size, where a mask is not 0.
#include "common/view.cuh"

// y = a where the mask is set, else b.
KERNEL(by_mask,
       (T* y, const u8* mask, const View& vm, const T* a, const View& va, const T* b, const View& vb, i64 n),
       u8, u16, u32, u64) {
    constexpr int N = PACK<T>;
    Operand<u8, N> set(mask, vm);
    Operand<T, N> yes(a, va), no(b, vb);
    for_packs<N>(y, n, set.in_packs() && yes.in_packs() && no.in_packs(), [&](i64 i, auto& out) {
        constexpr int M = sizeof(out) / sizeof(T);
        u8 m[M];
        T p[M], q[M];
        set.read(i, m);
        yes.read(i, p);
        no.read(i, q);
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = m[j] ? p[j] : q[j];
    });
}

// y = the number whose bits are the lowest of `bits` where the mask is set, else x.
KERNEL(masked_fill, (T* y, const T* x, const View& vx, const u8* mask, const View& vm, u64 bits, i64 n), u8, u16, u32, u64) {
    constexpr int N = PACK<T>;
    Operand<u8, N> set(mask, vm);
    Operand<T, N> other(x, vx);
    for_packs<N>(y, n, set.in_packs() && other.in_packs(), [&](i64 i, auto& out) {
        constexpr int M = sizeof(out) / sizeof(T);
        u8 m[M];
        T p[M];
        set.read(i, m);
        other.read(i, p);
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = m[j] ? T(bits) : p[j];
    });
}
