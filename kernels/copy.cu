// Copies: into row-major order from any layout, and from one element type to another.
#include "common/view.cuh"

// y[i] = element i of x. By words of the elements' size: a copy does not look at what it moves.
KERNEL(gather, (T* y, const T* x, const View& vx, i64 n), u8, u16, u32, u64) {
    Operand<T, PACK<T>> from(x, vx, n);
    for_packs<PACK<T>>(y, n, from.in_packs(), [&](i64 i, auto& out) { from.read(i, out); });
}

// y[i] = x[0].
KERNEL(fill, (T* y, const T* x, i64 n), u8, u16, u32, u64) {
    T one = x[0];
    for_packs<PACK<T>>(y, n, true, [&](i64, auto& out) {
        constexpr int M = sizeof(out) / sizeof(T);
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = one;
    });
}

// ---- conversion: floats go through double, integers through i64; floats truncate and saturate to integers, NaN to 0.

// x rounded to odd: rounding it again to fewer bits gives what rounding x once would have given (Boldo & Melquiond 2008).
DEVICE f32 to_odd(f64 x) {
    f32 near = f32(x);
    f64 back = f64(near);
    u32 b = bits_of(near);
    if (back == x || (b & 1u) || (b & 0x7f800000u) == 0x7f800000u) return near;
    return of_bits((back < 0 ? -back : back) < (x < 0 ? -x : x) ? b + 1 : b - 1);
}

// From i64 to double without losing the last bit's parity is not needed above 2^53: the double is rounded once, then to odd.
template <class U> struct Converted;
template <> struct Converted<f64> {
    static DEVICE f64 of(f64 x) { return x; }
    static DEVICE f64 of(i64 x) { return f64(x); }
};
template <> struct Converted<f32> {
    static DEVICE f32 of(f64 x) { return f32(x); }
    static DEVICE f32 of(i64 x) { return f32(x); }
};
template <> struct Converted<bf16> {
    static DEVICE bf16 of(f64 x) { return store<bf16>(to_odd(x)); }
    static DEVICE bf16 of(i64 x) { return store<bf16>(to_odd(f64(x))); }
};
template <> struct Converted<f16> {
    static DEVICE f16 of(f64 x) { return store<f16>(to_odd(x)); }
    static DEVICE f16 of(i64 x) { return store<f16>(to_odd(f64(x))); }
};
template <> struct Converted<i64> {
    static DEVICE i64 of(f64 x) {
        if (x != x) return 0;
        if (x >= 9223372036854775808.0) return 0x7fffffffffffffffll;
        if (x <= -9223372036854775808.0) return -0x7fffffffffffffffll - 1;
        return i64(x);
    }
    static DEVICE i64 of(i64 x) { return x; }
};
template <> struct Converted<u32> {
    static DEVICE u32 of(f64 x) { return !(x > 0) ? 0u : x >= 4294967295.0 ? 0xffffffffu : u32(x); }
    static DEVICE u32 of(i64 x) { return x < 0 ? 0u : x > 0xffffffffll ? 0xffffffffu : u32(x); }
};
template <> struct Converted<u8> {
    static DEVICE u8 of(f64 x) { return !(x > 0) ? u8(0) : x >= 255.0 ? u8(255) : u8(u32(x)); }
    static DEVICE u8 of(i64 x) { return x < 0 ? u8(0) : x > 255 ? u8(255) : u8(x); }
};

DEVICE f64 widened(f64 x) { return x; }
DEVICE f64 widened(f32 x) { return x; }
DEVICE f64 widened(bf16 x) { return load(x); }
DEVICE f64 widened(f16 x) { return load(x); }
DEVICE i64 widened(i64 x) { return x; }
DEVICE i64 widened(u32 x) { return i64(x); }
DEVICE i64 widened(u8 x) { return i64(x); }

// As many elements at a time as the wider of the two types packs into 16 bytes.
KERNEL2(cast, (U* y, const T* x, const View& vx, i64 n), (f64, f32, bf16, f16, i64, u32, u8), (f64, f32, bf16, f16, i64, u32, u8)) {
    constexpr int N = PACK<T> < PACK<U> ? PACK<T> : PACK<U>;
    Operand<T, N> from(x, vx, n);
    for_packs<N>(y, n, from.in_packs(), [&](i64 i, auto& out) {
        constexpr int M = sizeof(out) / sizeof(U);
        T in[M];
        from.read(i, in);
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = Converted<U>::of(widened(in[j]));
    });
}
