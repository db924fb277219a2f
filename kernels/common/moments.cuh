// Reductions whose parts are more than one number, and how a cotangent spreads over a group: see common/lines.cuh. The same
// as src/backend/cpu/reduce/moments.rs, except that M elements at a time are joined to a running part.
#pragma once
#include "common/lines.cuh"

// Most reductions take elements as they are.
template <class A> struct Plain {
    typedef A X;
    template <class T> static DEVICE A origin(T) { return A(0); }
    template <class T> static DEVICE A take(T v, A) { return load(v); }
};

template <class A, int M> DEVICE A sum_of(const A (&x)[M]) {
    A v[M];
#pragma unroll
    for (int i = 0; i < M; i++) v[i] = x[i];
#pragma unroll
    for (int w = M / 2; w > 0; w /= 2)
#pragma unroll
        for (int i = 0; i < w; i++) v[i] += v[i + w];
    return v[0];
}

template <class A> struct Sums : Plain<A> {
    typedef A Part;
    template <class P> static DEVICE A start() { return A(0); }
    static DEVICE A join(A a, A b) { return a + b; }
    template <int M> static DEVICE A of(const A (&x)[M], i64, i64) { return sum_of(x); }
};

// The product of the elements that are neither zero nor infinite nor NaN, in double, and how many there are of each of those: so
// the product of all but one can be told for any of them. An infinity leaves its sign in the product.
template <class A> struct Factors : Plain<A> {
    struct Part {
        f64 product, zeros, infinities, nans;
    };
    template <class P> static DEVICE Part start() { return Part{1, 0, 0, 0}; }
    static DEVICE Part join(Part a, Part b) {
        return Part{a.product * b.product, a.zeros + b.zeros, a.infinities + b.infinities, a.nans + b.nans};
    }
    // What one element is in the product.
    static DEVICE f64 factor(f64 v) { return v == 0 || is_nan(v) ? 1 : is_finite(v) ? v : v > 0 ? 1 : -1; }
    template <int M> static DEVICE Part of(const A (&x)[M], i64, i64) {
        Part p = start<Part>();
#pragma unroll
        for (int i = 0; i < M; i++) {
            f64 v = f64(x[i]);
            p.product *= factor(v);
            p.zeros += v == 0 ? 1 : 0;
            p.nans += is_nan(v) ? 1 : 0;
            p.infinities += is_finite(v) || is_nan(v) ? 0 : 1;
        }
        return p;
    }
    static DEVICE f64 value(Part p) {
        if (p.nans > 0 || (p.infinities > 0 && p.zeros > 0)) return Limits<f64>::infinity() * 0;
        if (p.infinities > 0) return copysign(Limits<f64>::infinity(), p.product);
        return p.zeros > 0 ? copysign(0.0, p.product) : p.product;
    }
    static DEVICE A finish(Part p, f64) { return A(value(p)); }
    // In double: dividing one factor out again costs no accuracy that a float could show.
    static DEVICE A pull(A x, Part p, A g, f64) {
        f64 v = f64(x);
        p.product /= factor(v);
        p.zeros -= v == 0 ? 1 : 0;
        p.nans -= is_nan(v) ? 1 : 0;
        p.infinities -= is_finite(v) || is_nan(v) ? 0 : 1;
        return g * A(value(p));
    }
};

// The extremum, and how many elements equal it (NaN counts NaN).
template <class A, bool LARGEST> struct Ties : Plain<A> {
    struct Part {
        A value;
        u32 low, high;
        DEVICE i64 count() const { return i64(u64(high) << 32 | low); }
    };
    static DEVICE Part part(A value, i64 count) { return Part{value, u32(u64(count)), u32(u64(count) >> 32)}; }
    static DEVICE A pick(A a, A b) { return LARGEST ? max_nan(a, b) : min_nan(a, b); }
    static DEVICE bool same(A a, A b) { return a == b || (is_nan(a) && is_nan(b)); }
    template <class P> static DEVICE Part start() { return part(LARGEST ? -Limits<A>::infinity() : Limits<A>::infinity(), 0); }
    static DEVICE Part join(Part a, Part b) {
        A value = pick(a.value, b.value);
        return part(value, (same(a.value, value) ? a.count() : 0) + (same(b.value, value) ? b.count() : 0));
    }
    template <int M> static DEVICE Part of(const A (&x)[M], i64, i64) {
        A value = x[0];
#pragma unroll
        for (int i = 1; i < M; i++) value = pick(value, x[i]);
        i32 count = 0;
#pragma unroll
        for (int i = 0; i < M; i++) count += same(x[i], value);
        return part(value, count);
    }
    static DEVICE A finish(Part p, f64) { return p.value; }
    static DEVICE A pull(A x, Part p, A g, f64) { return same(x, p.value) ? g / A(p.count()) : A(0); }
};

// The largest element m, and the sum of exp(x - m). Without a finite m the sum is not used.
template <class A> struct LogSum : Plain<A> {
    struct Part {
        A max, sum;
    };
    template <class P> static DEVICE Part start() { return Part{-Limits<A>::infinity(), A(0)}; }
    static DEVICE Part join(Part a, Part b) {
        A max = max_nan(a.max, b.max);
        if (a.max != max) a.sum *= m_exp(a.max - max);
        if (b.max != max) b.sum *= m_exp(b.max - max);
        return Part{max, a.sum + b.sum};
    }
    template <int M> static DEVICE Part of(const A (&x)[M], i64, i64) {
        A max = x[0], e[M];
#pragma unroll
        for (int i = 1; i < M; i++) max = max_nan(max, x[i]);
        A m = is_finite(max) ? max : A(0);
#pragma unroll
        for (int i = 0; i < M; i++) e[i] = m_exp(x[i] - m);
        return Part{max, sum_of(e)};
    }
    static DEVICE A finish(Part p, f64) { return is_finite(p.max) ? p.max + m_log(p.sum) : p.max; }
    // Nothing flows in a group of minus infinities: the limit of their differences must not become NaN. At plus infinity it is NaN.
    static DEVICE A pull(A x, Part p, A g, f64) {
        if (is_finite(p.max)) return m_exp(x - p.max) * (g / p.sum);
        return is_nan(p.max) ? p.max : p.max > A(0) && x == p.max ? x - p.max : A(0);
    }
};

// Count, mean and sum of squared deviations. Everything is relative to the group's first element, so that a mean far above
// the spread costs nothing; M elements by two passes, then the pairwise update (Chan, Golub & LeVeque 1983). p is the divisor.
template <class A> struct Moments {
    typedef A X;
    struct Part {
        A n, mean, squares;
    };
    template <class T> static DEVICE A origin(T v) { return load(v); }
    template <class T> static DEVICE A take(T v, A pivot) { return load(v) - pivot; }
    template <class P> static DEVICE Part start() { return Part{A(0), A(0), A(0)}; }
    static DEVICE Part join(Part a, Part b) {
        if (a.n == A(0)) return b;
        if (b.n == A(0)) return a;
        A n = a.n + b.n, share = b.n / n, d = b.mean - a.mean;
        return Part{n, m_fma(d, share, a.mean), a.squares + b.squares + d * d * (a.n * share)};
    }
    template <int M> static DEVICE Part of(const A (&x)[M], i64, i64) {
        A mean = sum_of(x) * (A(1) / A(M)), d[M];
#pragma unroll
        for (int i = 0; i < M; i++) d[i] = (x[i] - mean) * (x[i] - mean);
        return Part{A(M), mean, sum_of(d)};
    }
};

// The same in double, where no square of a float overflows or vanishes.
template <class A> struct WideMoments {
    typedef f64 X;
    struct Part {
        f64 n, mean, squares;
    };
    template <class T> static DEVICE f64 origin(T v) { return f64(load(v)); }
    template <class T> static DEVICE f64 take(T v, f64 pivot) { return f64(load(v)) - pivot; }
    template <class P> static DEVICE Part start() { return Part{0, 0, 0}; }
    static DEVICE Part join(Part a, Part b) {
        if (a.n == 0) return b;
        if (b.n == 0) return a;
        f64 n = a.n + b.n, share = b.n / n, d = b.mean - a.mean;
        return Part{n, m_fma(d, share, a.mean), a.squares + b.squares + d * d * (a.n * share)};
    }
    template <int M> static DEVICE Part of(const f64 (&x)[M], i64, i64) {
        f64 mean = sum_of(x) * (1.0 / M), d[M];
#pragma unroll
        for (int i = 0; i < M; i++) d[i] = (x[i] - mean) * (x[i] - mean);
        return Part{f64(M), mean, sum_of(d)};
    }
};

template <class A> struct Variance : WideMoments<A> {
    typedef typename WideMoments<A>::Part Part;
    static DEVICE A finish(Part p, f64 degrees) { return A(p.squares / degrees); }
    static DEVICE A pull(f64 x, Part p, A g, f64 degrees) { return g * A((x - p.mean) * (2 / degrees)); }
};

template <class A> struct Deviation : WideMoments<A> {
    typedef typename WideMoments<A>::Part Part;
    static DEVICE A finish(Part p, f64 degrees) { return A(m_sqrt(p.squares / degrees)); }
    static DEVICE A pull(f64 x, Part p, A g, f64 degrees) {
        f64 slope = (x - p.mean) / (degrees * m_sqrt(p.squares / degrees));
        return p.squares == 0 && degrees > 0 ? A(0) : g * A(slope);
    }
};

// scale^2 squares = sum of x^2 in double, where no square of a float overflows or vanishes; doubles are scaled by their
// largest one when theirs would.
template <class A> struct SquareSum : Plain<A> {
    struct Part {
        f64 scale, squares;
    };
    static constexpr bool WIDE = sizeof(A) == 8;
    static DEVICE f64 norm(Part p) { return p.scale * sqrt(p.squares); }
    static DEVICE bool is_safe(f64 squares) { return !WIDE || (squares > 1e-280 && squares < 1e300); }
    template <int M> static DEVICE Part scaled(const f64 (&x)[M]) {
        f64 scale = 0, squares = 0;
#pragma unroll
        for (int i = 0; i < M; i++) scale = max_nan(scale, fabs(x[i]));
        if (scale == 0 || !is_finite(scale)) return Part{scale, 1};
#pragma unroll
        for (int i = 0; i < M; i++) squares += x[i] / scale * (x[i] / scale);
        return Part{scale, squares};
    }
    template <class P> static DEVICE Part start() { return WIDE ? Part{0, 1} : Part{1, 0}; }
    static DEVICE Part join(Part a, Part b) {
        f64 plain = a.squares + b.squares;
        if (a.scale == 1 && b.scale == 1 && is_safe(plain)) return Part{1, plain};
        f64 both[2] = {norm(a), norm(b)};
        return scaled(both);
    }
    template <int M> static DEVICE Part of(const A (&x)[M], i64, i64) {
        f64 squares = 0;
#pragma unroll
        for (int i = 0; i < M; i++) squares = m_fma(f64(x[i]), f64(x[i]), squares);
        if (is_safe(squares)) return Part{1, squares};
        f64 wide[M];
#pragma unroll
        for (int i = 0; i < M; i++) wide[i] = f64(x[i]);
        return scaled(wide);
    }
    static DEVICE A finish(Part p, f64) { return A(norm(p)); }
    // In double, where neither the norm nor its reciprocal leaves the range of a float.
    static DEVICE A pull(A x, Part p, A g, f64) {
        f64 n = norm(p);
        return n == 0 ? A(0) : g * A(f64(x) / n);
    }
};
