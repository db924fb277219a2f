// Element types, and the type that kernels compute in: double for f64, float for everything else.
#pragma once
#include "common/kernel.cuh"

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;

// Storage only: 16 bits that load() widens and store() rounds.
struct bf16 { u16 bits; };
struct f16 { u16 bits; };

template <class T> struct Compute { typedef f32 type; };
template <> struct Compute<f64> { typedef f64 type; };
template <class T> using acc = typename Compute<T>::type;

DEVICE u32 bits_of(f32 x) { return __float_as_uint(x); }
DEVICE f32 of_bits(u32 x) { return __uint_as_float(x); }
DEVICE u64 bits_of(f64 x) { return static_cast<u64>(__double_as_longlong(x)); }
DEVICE f64 of_bits(u64 x) { return __longlong_as_double(static_cast<i64>(x)); }

template <class A> struct Limits;
template <> struct Limits<f32> {
    static DEVICE f32 infinity() { return of_bits(0x7f800000u); }
    static DEVICE f32 nan() { return of_bits(0x7fffffffu); }
};
template <> struct Limits<f64> {
    static DEVICE f64 infinity() { return of_bits(u64(0x7ff0000000000000)); }
    static DEVICE f64 nan() { return of_bits(u64(0x7fffffffffffffff)); }
};

// ---- 16-bit floats: exact widening, rounding to nearest even; NaN stays NaN.

DEVICE f32 load(bf16 x) { return of_bits(u32(x.bits) << 16); }
DEVICE f32 load(f32 x) { return x; }
DEVICE f64 load(f64 x) { return x; }

DEVICE f32 load(f16 x) {
#ifdef CUEMU
    u32 sign = u32(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fffu;
    if (magnitude >= 0x7c00) return of_bits(sign | 0x7f800000u | magnitude << 13);
    // A subnormal is its bits times the smallest one, 2^-24; a normal one needs another exponent bias.
    if (magnitude < 0x0400) return of_bits(sign | bits_of(f32(magnitude) * 5.9604644775390625e-8f));
    return of_bits(sign | ((magnitude << 13) + (112u << 23)));
#else
    f32 y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#endif
}

// store<T>(x): x rounded to T, once.
template <class T> struct Rounded;
template <> struct Rounded<f64> { static DEVICE f64 of(f64 x) { return x; } };
template <> struct Rounded<f32> { static DEVICE f32 of(f32 x) { return x; } };
template <> struct Rounded<bf16> {
    static DEVICE bf16 of(f32 x) {
        bf16 y;
#ifdef CUEMU
        u32 b = bits_of(x);
        y.bits = u16((b & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (b + 0x7fffu + (b >> 16 & 1u)) >> 16);
#else
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
        return y;
    }
};
template <> struct Rounded<f16> {
    static DEVICE f16 of(f32 x) {
        f16 y;
#ifdef CUEMU
        u32 b = bits_of(x), a = b & 0x7fffffffu, h;
        if (a > 0x7f800000u) h = 0x7fffu;
        else if (a >= 0x47800000u) h = 0x7c00u;                                      // 2^16 and above, infinity
        else if (a < 113u << 23) h = bits_of(of_bits(a) + 0.5f) - bits_of(0.5f);     // the adder rounds at 2^-24, the last bit of a subnormal
        else h = (a + 0xfffu + (a >> 13 & 1u) - (112u << 23)) >> 13;                 // carries into infinity where it must
        y.bits = u16(h | (b >> 16 & 0x8000u));
#else
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
        return y;
    }
};
template <class T> DEVICE T store(acc<T> x) { return Rounded<T>::of(x); }
