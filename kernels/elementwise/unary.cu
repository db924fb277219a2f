// Elementwise ops of one operand, and their derivatives: one block per op, as in src/ops/elementwise/unary.
//
// `f` is the function, `pull` its slope in terms of the saved value times the cotangent g. Where the slope is piecewise
// constant, `pull` selects instead of multiplying, so that nothing of an infinite cotangent leaks through a closed gate.
#include "common/activations.cuh"
#include "common/view.cuh"

template <class T, class Op> DEVICE void unary_fwd(T* y, const T* x, const View& vx, i64 n, const Params& p) {
    Operand<T, PACK<T>> from(x, vx);
    for_packs<PACK<T>>(y, n, from.in_packs(), [&](i64 i, auto& out) {
        constexpr int M = sizeof(out) / sizeof(T);
        T in[M];
        from.read(i, in);
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = store<T>(Op::f(load(in[j]), p));
    });
}

// y = g times the derivative of the op, from the value s that the forward pass saved.
template <class T, class Op>
DEVICE void unary_vjp(T* y, const T* s, const View& vs, const T* g, const View& vg, i64 n, const Params& p) {
    Operand<T, PACK<T>> saved(s, vs), cotangent(g, vg);
    for_packs<PACK<T>>(y, n, saved.in_packs() && cotangent.in_packs(), [&](i64 i, auto& out) {
        constexpr int M = sizeof(out) / sizeof(T);
        T a[M], b[M];
        saved.read(i, a);
        cotangent.read(i, b);
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = store<T>(Op::pull(load(a[j]), load(b[j]), p));
    });
}

// ---- roots and powers

UNARY(sqrt, Sqrt)
struct Sqrt {
    template <class A> static DEVICE A f(A x, const Params&) { return m_sqrt(x); }
    template <class A> static DEVICE A pull(A y, A g, const Params&) { return g * A(0.5) / y; }
};

UNARY(rsqrt, Rsqrt)
struct Rsqrt {
    template <class A> static DEVICE A f(A x, const Params&) { return A(1) / m_sqrt(x); }
    template <class A> static DEVICE A pull(A y, A g, const Params&) { return g * A(-0.5) * y * y * y; }
};

UNARY(recip, Recip)
struct Recip {
    template <class A> static DEVICE A f(A x, const Params&) { return A(1) / x; }
    template <class A> static DEVICE A pull(A y, A g, const Params&) { return -(g * y) * y; }
};

UNARY(square, Square)
struct Square {
    template <class A> static DEVICE A f(A x, const Params&) { return x * x; }
    // 2 (g x), not g (2 x): the double may overflow where the product does not.
    template <class A> static DEVICE A pull(A x, A g, const Params&) { return g * x + g * x; }
};

// p[0] is the exponent, a whole number.
UNARY(powi, Powi)
struct Powi {
    template <class A> static DEVICE A f(A x, const Params& p) { return m_powi(x, i32(p.p[0])); }
    template <class A> static DEVICE A pull(A x, A g, const Params& p) {
        i32 n = i32(p.p[0]);
        if (n == 0) return A(0);
        if (n > 0) return g * A(n) * m_powi(x, n - 1);
        // The power of a small number may overflow where a small cotangent brings the product back.
        return A(f64(g) * n * m_powi(f64(x), n - 1));
    }
};

// p[0] is the exponent. In double whatever the type: an exponent rounded to float would cost |p ln x| ulps.
UNARY(powf, Powf)
struct Powf {
    template <class A> static DEVICE A f(A x, const Params& p) { return A(pow(f64(x), p.p[0])); }
    template <class A> static DEVICE A pull(A x, A g, const Params& p) {
        return p.p[0] == 0 ? A(0) : A(f64(g) * p.p[0] * pow(f64(x), p.p[0] - 1));
    }
};

// ---- exponentials and logarithms

UNARY(exp, Exp)
struct Exp {
    template <class A> static DEVICE A f(A x, const Params&) { return m_exp(x); }
    template <class A> static DEVICE A pull(A y, A g, const Params&) { return g * y; }
};

UNARY(expm1, Expm1)
struct Expm1 {
    template <class A> static DEVICE A f(A x, const Params&) { return m_expm1(x); }
    template <class A> static DEVICE A pull(A x, A g, const Params&) { return g * m_exp(x); }
};

UNARY(log, Log)
struct Log {
    template <class A> static DEVICE A f(A x, const Params&) { return m_log(x); }
    template <class A> static DEVICE A pull(A x, A g, const Params&) { return g / x; }
};

UNARY(log1p, Log1p)
struct Log1p {
    template <class A> static DEVICE A f(A x, const Params&) { return m_log1p(x); }
    template <class A> static DEVICE A pull(A x, A g, const Params&) { return g / (x + A(1)); }
};

// ---- sine and cosine

UNARY(sin, Sin)
struct Sin {
    template <class A> static DEVICE A f(A x, const Params&) { return m_sin(x); }
    template <class A> static DEVICE A pull(A x, A g, const Params&) { return g * m_cos(x); }
};

UNARY(cos, Cos)
struct Cos {
    template <class A> static DEVICE A f(A x, const Params&) { return m_cos(x); }
    template <class A> static DEVICE A pull(A x, A g, const Params&) { return -(g * m_sin(x)); }
};

// ---- S-shaped functions and their integrals

// The slope is 4 sigma(2x) sigma(-2x): 1 - y^2 of a rounded y would have lost its digits in the tails.
UNARY(tanh, Tanh)
struct Tanh {
    template <class A> static DEVICE A f(A x, const Params&) { return m_tanh(x); }
    template <class A> static DEVICE A pull(A x, A g, const Params&) {
        A s, slope;
        sigmoid_and_slope(x + x, s, slope);
        return g * (slope * A(4));
    }
};

UNARY(sigmoid, Sigmoid)
struct Sigmoid {
    template <class A> static DEVICE A f(A x, const Params&) { return m_sigmoid(x); }
    template <class A> static DEVICE A pull(A x, A g, const Params&) {
        A s, slope;
        sigmoid_and_slope(x, s, slope);
        return g * slope;
    }
};

UNARY(softplus, Softplus)
struct Softplus {
    template <class A> static DEVICE A f(A x, const Params&) { return m_softplus(x); }
    template <class A> static DEVICE A pull(A x, A g, const Params&) { return g * m_sigmoid(x); }
};

UNARY(erf, Erf)
struct Erf {
    template <class A> static DEVICE A f(A x, const Params&) { return m_erf(x); }
    template <class A> static DEVICE A pull(A x, A g, const Params&) { return g * (m_exp(-(x * x)) * A(1.12837916709551257390)); }
};

UNARY(normal_cdf, NormalCdf)
struct NormalCdf {
    template <class A> static DEVICE A f(A x, const Params&) { return m_normcdf(x); }
    template <class A> static DEVICE A pull(A x, A g, const Params&) { return g * m_normpdf(x); }
};

// ---- activations

UNARY(relu, Relu)
struct Relu {
    template <class A> static DEVICE A f(A x, const Params&) { return x <= A(0) ? A(0) : x; }
    template <class A> static DEVICE A pull(A y, A g, const Params&) { return y <= A(0) ? A(0) : g; }
};

// p[0] is the slope below 0.
UNARY(leaky_relu, LeakyRelu)
struct LeakyRelu {
    template <class A> static DEVICE A f(A x, const Params& p) { return x > A(0) ? x : x * A(p.p[0]); }
    template <class A> static DEVICE A pull(A x, A g, const Params& p) { return x > A(0) ? g : g * A(p.p[0]); }
};

// p[0] is minus the limit at minus infinity.
UNARY(elu, Elu)
struct Elu {
    template <class A> static DEVICE A f(A x, const Params& p) { return x > A(0) ? x : m_expm1(x) * A(p.p[0]); }
    template <class A> static DEVICE A pull(A x, A g, const Params& p) { return x > A(0) ? g : g * (m_exp(x) * A(p.p[0])); }
};

// The caps make 0 of infinity times 0.
// These structs are in common/activations.cuh: gated activations use them as well.
UNARY(silu, Silu)

UNARY(gelu, Gelu)

UNARY(gelu_tanh, GeluTanh)

UNARY(relu_squared, ReluSquared)
struct ReluSquared {
    template <class A> static DEVICE A f(A x, const Params&) { return x <= A(0) ? A(0) : x * x; }
    template <class A> static DEVICE A pull(A x, A g, const Params&) { 
        // 2 (g x), not g (2 x): the double may overflow where the product does not.
        A half = g * x;
        return x <= A(0) ? A(0) : half + half;
    }
};

// ---- piecewise linear functions

UNARY(neg, Neg)
struct Neg {
    template <class A> static DEVICE A f(A x, const Params&) { return -x; }
    template <class A> static DEVICE A pull(A, A g, const Params&) { return -g; }
};

UNARY(abs, Abs)
struct Abs {
    template <class A> static DEVICE A f(A x, const Params&) { return m_abs(x); }
    template <class A> static DEVICE A pull(A x, A g, const Params&) { return x > A(0) ? g : x < A(0) ? -g : A(0); }
};

UNARY(sign, Sign)
struct Sign {
    template <class A> static DEVICE A f(A x, const Params&) { return x > A(0) ? A(1) : x < A(0) ? A(-1) : x; }
    template <class A> static DEVICE A pull(A, A, const Params&) { return A(0); }
};

UNARY(floor, Floor)
struct Floor {
    template <class A> static DEVICE A f(A x, const Params&) { return m_floor(x); }
    template <class A> static DEVICE A pull(A, A, const Params&) { return A(0); }
};

UNARY(ceil, Ceil)
struct Ceil {
    template <class A> static DEVICE A f(A x, const Params&) { return m_ceil(x); }
    template <class A> static DEVICE A pull(A, A, const Params&) { return A(0); }
};

UNARY(round, Round)
struct Round {
    template <class A> static DEVICE A f(A x, const Params&) { return m_round(x); }
    template <class A> static DEVICE A pull(A, A, const Params&) { return A(0); }
};

// p[0] is 10 to the number of digits, p[1] the sign of that number: after the point, or before it.
UNARY(round_decimals, RoundDecimals)
struct RoundDecimals {
    template <class A> static DEVICE A f(A x, const Params& p) {
        A s = A(p.p[0]), y = p.p[1] >= 0 ? m_round(x * s) / s : m_round(x / s) * s;
        return is_finite(y) ? y : x;
    }
    template <class A> static DEVICE A pull(A, A, const Params&) { return A(0); }
};

// p[0] and p[1] are the ends; an absent one is NaN. NaN stays; the slope is 0 at the ends and at NaN.
UNARY(clamp, Clamp)
struct Clamp {
    template <class A> static DEVICE A f(A x, const Params& p) {
        A lo = A(p.p[0]), hi = A(p.p[1]), y = x < lo ? lo : x;
        return y > hi ? hi : y;
    }
    template <class A> static DEVICE A pull(A x, A g, const Params& p) { return x <= A(p.p[0]) || x >= A(p.p[1]) || is_nan(x) ? A(0) : g; }
};

// ---- a tensor and the number p[0]

UNARY(add_scalar, AddScalar)
struct AddScalar {
    template <class A> static DEVICE A f(A x, const Params& p) { return x + A(p.p[0]); }
    template <class A> static DEVICE A pull(A, A g, const Params&) { return g; }
};

UNARY(sub_scalar, SubScalar)
struct SubScalar {
    template <class A> static DEVICE A f(A x, const Params& p) { return x - A(p.p[0]); }
    template <class A> static DEVICE A pull(A, A g, const Params&) { return g; }
};

UNARY(rsub_scalar, RsubScalar)
struct RsubScalar {
    template <class A> static DEVICE A f(A x, const Params& p) { return A(p.p[0]) - x; }
    template <class A> static DEVICE A pull(A, A g, const Params&) { return -g; }
};

UNARY(mul_scalar, MulScalar)
struct MulScalar {
    template <class A> static DEVICE A f(A x, const Params& p) { return x * A(p.p[0]); }
    template <class A> static DEVICE A pull(A, A g, const Params& p) { return g * A(p.p[0]); }
};

UNARY(div_scalar, DivScalar)
struct DivScalar {
    template <class A> static DEVICE A f(A x, const Params& p) { return x / A(p.p[0]); }
    template <class A> static DEVICE A pull(A, A g, const Params& p) { return g / A(p.p[0]); }
};

// The slope is not c / x^2: the square may overflow or underflow where the result does not.
UNARY(rdiv_scalar, RdivScalar)
struct RdivScalar {
    template <class A> static DEVICE A f(A x, const Params& p) { return A(p.p[0]) / x; }
    template <class A> static DEVICE A pull(A x, A g, const Params& p) { return -(g * (A(p.p[0]) / x)) / x; }
};
