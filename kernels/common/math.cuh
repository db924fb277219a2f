// Elementary functions for float and double under one name each. The accurate ones: nothing here may be replaced by an
// approximate instruction, and no file may be compiled with fast math. Definitions follow src/backend/cpu/math/mod.rs.
#pragma once
#include "common/types.cuh"

DEVICE f32 m_abs(f32 x) { return fabsf(x); }
DEVICE f64 m_abs(f64 x) { return fabs(x); }
DEVICE f32 m_sqrt(f32 x) { return sqrtf(x); }
DEVICE f64 m_sqrt(f64 x) { return sqrt(x); }
DEVICE f64 m_hypot(f64 x, f64 y) { return hypot(x, y); }
DEVICE f32 m_fma(f32 a, f32 b, f32 c) { return fmaf(a, b, c); }
DEVICE f64 m_fma(f64 a, f64 b, f64 c) { return fma(a, b, c); }
DEVICE f32 m_floor(f32 x) { return floorf(x); }
DEVICE f64 m_floor(f64 x) { return floor(x); }
DEVICE f32 m_ceil(f32 x) { return ceilf(x); }
DEVICE f64 m_ceil(f64 x) { return ceil(x); }
DEVICE f32 m_trunc(f32 x) { return truncf(x); }
DEVICE f64 m_trunc(f64 x) { return trunc(x); }
// To nearest, ties to even.
DEVICE f32 m_round(f32 x) { return rintf(x); }
DEVICE f64 m_round(f64 x) { return rint(x); }
DEVICE f32 m_exp(f32 x) { return expf(x); }
DEVICE f64 m_exp(f64 x) { return exp(x); }
DEVICE f32 m_expm1(f32 x) { return expm1f(x); }
DEVICE f64 m_expm1(f64 x) { return expm1(x); }
DEVICE f32 m_log(f32 x) { return logf(x); }
DEVICE f64 m_log(f64 x) { return log(x); }
DEVICE f32 m_log1p(f32 x) { return log1pf(x); }
DEVICE f64 m_log1p(f64 x) { return log1p(x); }
DEVICE f32 m_sin(f32 x) { return sinf(x); }
DEVICE f64 m_sin(f64 x) { return sin(x); }
DEVICE f32 m_cos(f32 x) { return cosf(x); }
DEVICE f64 m_cos(f64 x) { return cos(x); }
DEVICE f32 m_tanh(f32 x) { return tanhf(x); }
DEVICE f64 m_tanh(f64 x) { return tanh(x); }
DEVICE f32 m_erf(f32 x) { return erff(x); }
DEVICE f64 m_erf(f64 x) { return erf(x); }
DEVICE f32 m_pow(f32 x, f32 p) { return powf(x, p); }
DEVICE f64 m_pow(f64 x, f64 p) { return pow(x, p); }

template <class A> DEVICE bool is_nan(A x) { return x != x; }
template <class A> DEVICE bool is_finite(A x) { return m_abs(x) < Limits<A>::infinity(); }

// The larger or smaller one; NaN when either is (fmaxf would drop it).
template <class A> DEVICE A max_nan(A a, A b) { return a > b || is_nan(a) ? a : b; }
template <class A> DEVICE A min_nan(A a, A b) { return a < b || is_nan(a) ? a : b; }

// x between -bound and bound, or from -bound upwards; NaN stays.
template <class A> DEVICE A cap(A x, A bound) {
    x = x > bound ? bound : x;
    return x < -bound ? -bound : x;
}
template <class A> DEVICE A cap_below(A x, A bound) { return x < -bound ? -bound : x; }

// 1 / (1 + e^-x) from e^-|x|: neither side overflows, and the left tail keeps its relative accuracy.
template <class A> DEVICE A m_sigmoid(A x) {
    A e = m_exp(-m_abs(x)), q = e / (A(1) + e);
    return x < A(0) ? m_fma(-e, q, e) : A(1) - q;
}

// sigmoid(x) and its derivative from one exponential, without cancellation.
template <class A> DEVICE void sigmoid_and_slope(A x, A& s, A& slope) {
    A e = m_exp(-m_abs(x)), q = A(1) / (A(1) + e), p = e * q;
    s = x < A(0) ? p : q;
    slope = p * q;
}

// ln(1 + e^x) without overflow.
template <class A> DEVICE A m_softplus(A x) { return max_nan(x, A(0)) + m_log1p(m_exp(-m_abs(x))); }

// The standard normal distribution function, with full relative accuracy in the left tail.
#ifdef CUEMU
inline f64 m_normcdf(f64 x) {
    // erfc's argument is rounded, which the tail magnifies by x^2: corrected to first order.
    const f64 c = 0.70710678118654752440, c_low = -4.833646656726457e-17;
    f64 t = x * -c, lost = fma(x, -c, -t) - x * c_low, y = 0.5 * erfc(t);
    f64 corrected = fma(lost, -0.56418958354775628695 * exp(-t * t), y);
    return fabs(x) < 40 ? corrected : y;
}
inline f32 m_normcdf(f32 x) { return f32(m_normcdf(f64(x))); }
#else
DEVICE f32 m_normcdf(f32 x) { return normcdff(x); }
DEVICE f64 m_normcdf(f64 x) { return normcdf(x); }
#endif

// Its derivative e^(-x^2/2) / sqrt(2 pi). The rounding error of the square is taken in: the tail would lose x^2 ulps.
template <class A> DEVICE A m_normpdf(A x) {
    A a = m_abs(x);
    a = a > A(60) ? A(60) : a;
    A h = a * a * A(0.5), lost = m_fma(a * A(0.5), a, -h), e = m_exp(-h);
    return m_fma(-lost, e, e) * A(0.398942280401432677939946);
}

// x to a whole power. Floats go through double, where the product is exact or nearly so, and round once.
DEVICE f64 m_powi(f64 x, i32 n) {
    if (n == -1) return 1 / x;
    if (n == 0) return 1;
    if (n == 1) return x;
    if (n == 2) return x * x;
    if (n == 3) return x * x * x;
    return pow(x, f64(n));
}
DEVICE f32 m_powi(f32 x, i32 n) {
    if (n == -1) return 1 / x;
    if (n == 0) return 1;
    if (n == 1) return x;
    if (n == 2) return x * x;
    if (n < -16 || n > 16) return f32(pow(f64(x), f64(n)));
    f64 product = 1, square = x;
    for (i32 bits = n < 0 ? -n : n; bits; bits >>= 1, square *= square)
        if (bits & 1) product *= square;
    return f32(n < 0 ? 1 / product : product);
}
