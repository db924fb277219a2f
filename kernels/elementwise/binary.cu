// Elementwise ops of two operands, broadcast against each other: one block per op, as in src/ops/elementwise/binary.
#include "common/math.cuh"
#include "common/view.cuh"

template <class T, class Op>
DEVICE void binary_fwd(T* y, const T* a, const View& va, const T* b, const View& vb, i64 n, const Params& p) {
    Operand<T, PACK<T>> lhs(a, va), rhs(b, vb);
    for_packs<PACK<T>>(y, n, lhs.in_packs() && rhs.in_packs(), [&](i64 i, auto& out) {
        constexpr int M = sizeof(out) / sizeof(T);
        T x[M], z[M];
        lhs.read(i, x);
        rhs.read(i, z);
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = store<T>(Op::f(load(x[j]), load(z[j]), p));
    });
}

BINARY(add, Add)
struct Add {
    template <class A> static DEVICE A f(A a, A b, const Params&) { return a + b; }
};

BINARY(sub, Sub)
struct Sub {
    template <class A> static DEVICE A f(A a, A b, const Params&) { return a - b; }
};

BINARY(mul, Mul)
struct Mul {
    template <class A> static DEVICE A f(A a, A b, const Params&) { return a * b; }
};

BINARY(div, Div)
struct Div {
    template <class A> static DEVICE A f(A a, A b, const Params&) { return a / b; }
};

BINARY(neg_mul, NegMul)
struct NegMul {
    template <class A> static DEVICE A f(A a, A b, const Params&) { return -(a * b); }
};

BINARY(maximum, Maximum)
struct Maximum {
    template <class A> static DEVICE A f(A a, A b, const Params&) { return max_nan(a, b); }
};

BINARY(minimum, Minimum)
struct Minimum {
    template <class A> static DEVICE A f(A a, A b, const Params&) { return min_nan(a, b); }
};

// The derivative of a^b, p[0] times in a and p[1] times in b.
BINARY(pow, Pow)
struct Pow {
    // Highest order of derivative in the exponent, plus one.
    static constexpr int ORDERS = 8;

    // Higher orders in double: a factor b(b-1)... may leave the range of a float where the power brings the product back.
    template <class A> static DEVICE A f(A a, A b, const Params& p) {
        i32 n = i32(p.p[0]), k = i32(p.p[1]);
        if (n == 0 && k == 0) return m_pow(a, b);
        return n + k > 1 ? A(partial(f64(a), f64(b), n, k)) : partial(a, b, n, k);
    }

    template <class A> static DEVICE A partial(A a, A b, i32 n, i32 k) {
        // a^(b-n) (d/db + ln a)^k b(b-1)...(b-n+1): first the falling factorial and its derivatives, then the powers of ln a.
        // The loops have fixed lengths, so that d stays in registers.
        A d[ORDERS];
#pragma unroll
        for (int j = 0; j < ORDERS; j++) d[j] = A(j == 0);
        for (i32 i = 0; i < n; i++) {
            A t = b - A(i);
#pragma unroll
            for (int j = ORDERS - 1; j > 0; j--) d[j] = d[j] * t + A(j) * d[j - 1];
            d[0] = d[0] * t;
        }
        A log = k == 0 ? A(0) : m_log(a), factor = A(0), binomial = A(1);
#pragma unroll
        for (int j = 0; j < ORDERS; j++) {
            if (j <= k) {
                // The first step has nothing to multiply: not 0 * ln 0.
                factor = j == 0 ? d[j] : factor * log + binomial * d[j];
                binomial = binomial * A(k - j) / A(j + 1);
            }
        }
        A rest = b - A(n);
        // A vanishing factor beats an infinite power, and at base 0 a positive power beats the logarithm.
        bool zero = k == 0 ? factor == A(0) : a == A(0) && rest >= A(0);
        if (zero) return A(0);
        A power = m_pow(a, rest);
        // A power that vanishes beats a polynomial that overflows.
        bool vanishes = power == A(0) && a != A(0) && is_finite(a) && is_finite(b);
        return vanishes ? A(0) : factor * power;
    }
};

// The cotangent of one operand of maximum or minimum: g where it was chosen, half of g at a tie, else 0. `sign` is -1 for
// the minimum, which chooses as the maximum of the negatives; of two NaN the first operand takes the cotangent.
KERNEL(extremum_vjp, (T* y, const T* own, const View& vo, const T* other, const View& vt, const T* g, const View& vg, i64 n, f32 sign, i32 first),
       f64, f32, bf16, f16) {
    Operand<T, PACK<T>> mine(own, vo), theirs(other, vt), cotangent(g, vg);
    for_packs<PACK<T>>(y, n, mine.in_packs() && theirs.in_packs() && cotangent.in_packs(), [&](i64 i, auto& out) {
        constexpr int M = sizeof(out) / sizeof(T);
        T x[M], z[M], bar[M];
        mine.read(i, x);
        theirs.read(i, z);
        cotangent.read(i, bar);
#pragma unroll
        for (int j = 0; j < M; j++) {
            typedef acc<T> A;
            A o = load(x[j]), t = load(z[j]), c = load(bar[j]), s = A(sign);
            bool chosen = o * s > t * s || (is_nan(o) && (first || !is_nan(t)));
            // No product with a weight: an infinite cotangent must not become NaN on the side that was not chosen.
            out[j] = store<T>(chosen ? c : o == t ? c * A(0.5) : A(0));
        }
    });
}
