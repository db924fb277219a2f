// Conversion between all element types, as Rust's `as`: floats round once to nearest even, integers truncate and saturate, NaN
// becomes 0. As in src/ops/elementwise/cast.rs: f32 and the half types convert through float, everything else through double or i64.
#pragma once
#include "common/types.cuh"

template <class T> struct IsFloat { static constexpr bool value = false; };
template <> struct IsFloat<f64> { static constexpr bool value = true; };
template <> struct IsFloat<f32> { static constexpr bool value = true; };
template <> struct IsFloat<bf16> { static constexpr bool value = true; };
template <> struct IsFloat<f16> { static constexpr bool value = true; };

DEVICE i64 load(i64 x) { return x; }
DEVICE i64 load(u32 x) { return x; }
DEVICE i64 load(u8 x) { return x; }

template <class T> struct Whole;
template <> struct Whole<i64> {
    static DEVICE i64 max() { return i64(0x7fffffffffffffff); }
    static DEVICE i64 of(i64 x) { return x; }
    static DEVICE i64 of(f64 x) {
        if (x != x) return 0;
        if (x >= 9223372036854775808.0) return max();
        return x < -9223372036854775808.0 ? -max() - 1 : i64(x);
    }
};
template <> struct Whole<u32> {
    static DEVICE u32 max() { return 0xffffffffu; }
    static DEVICE u32 of(i64 x) { return x < 0 ? 0 : x > 0xffffffffll ? max() : u32(x); }
    static DEVICE u32 of(f64 x) { return of(Whole<i64>::of(x)); }
};
template <> struct Whole<u8> {
    static DEVICE u8 max() { return 255; }
    static DEVICE u8 of(i64 x) { return x < 0 ? u8(0) : x > 255 ? max() : u8(x); }
    static DEVICE u8 of(f64 x) { return of(Whole<i64>::of(x)); }
};

// x rounded to an f32 "to odd": rounding that again to fewer bits gives what rounding x once would have given (Boldo &
// Melquiond 2008).
DEVICE f32 to_odd(f64 x) {
    f32 near = f32(x);
    f64 back = f64(near);
    u32 bits = bits_of(near);
    if (back == x || (bits & 1u) || (bits & 0x7f800000u) == 0x7f800000u) return near;
    // Inexact with an even last bit: the odd neighbour lies on the other side of x.
    return of_bits(fabs(back) < fabs(x) ? bits + 1 : bits - 1);
}

template <class U> struct ToFloat {
    static DEVICE U of(f32 x) { return store<U>(x); }
    static DEVICE U of(f64 x) { return store<U>(to_odd(x)); }
    static DEVICE U of(i64 x) { return store<U>(to_odd(f64(x))); }
};
template <> struct ToFloat<f64> {
    static DEVICE f64 of(f32 x) { return x; }
    static DEVICE f64 of(f64 x) { return x; }
    static DEVICE f64 of(i64 x) { return f64(x); }
};
template <> struct ToFloat<f32> {
    static DEVICE f32 of(f32 x) { return x; }
    static DEVICE f32 of(f64 x) { return f32(x); }
    static DEVICE f32 of(i64 x) { return f32(x); }
};

template <class T, bool FLOAT = IsFloat<T>::value> struct Converted : ToFloat<T> {};
template <class T> struct Converted<T, false> {
    static DEVICE T of(f32 x) { return Whole<T>::of(f64(x)); }
    static DEVICE T of(f64 x) { return Whole<T>::of(x); }
    static DEVICE T of(i64 x) { return Whole<T>::of(x); }
};

// x as a U.
template <class U, class T> DEVICE U convert(T x) { return Converted<U>::of(load(x)); }
