// Smooth activations: the value f, and value and slope from one exponential.
#pragma once
#include "common/math.cuh"
#include "common/view.cuh"

// What elementwise ops ask for besides f: the slope times the cotangent.
template <class Self> struct Smooth {
    template <class A> static DEVICE A pull(A x, A g, const Params&) {
        A f, slope;
        Self::both(x, f, slope);
        return g * slope;
    }
};

struct Silu : Smooth<Silu> {
    template <class A> static DEVICE A f(A x, const Params&) { return cap_below(x, A(1000)) * m_sigmoid(x); }
    template <class A> static DEVICE void both(A x, A& f, A& slope) {
        A s, rise;
        sigmoid_and_slope(x, s, rise);
        f = cap_below(x, A(1000)) * s;
        slope = m_fma(cap(x, A(1000)), rise, s);
    }
};

struct Gelu : Smooth<Gelu> {
    template <class A> static DEVICE A f(A x, const Params&) { return cap_below(x, A(60)) * m_normcdf(x); }
    template <class A> static DEVICE void both(A x, A& f, A& slope) {
        A below = m_normcdf(x);
        f = cap_below(x, A(60)) * below;
        slope = m_fma(cap(x, A(60)), m_normpdf(x), below);
    }
};

// x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3). Beyond 30 the sigmoid is 0 or 1 to the last bit, and the cube stays finite.
struct GeluTanh : Smooth<GeluTanh> {
    static constexpr f64 LINEAR = 2 * 0.7978845608028654, CUBIC = LINEAR * 0.044715;
    template <class A> static DEVICE A f(A x, const Params&) {
        A t = cap(x, A(30));
        return cap_below(x, A(30)) * m_sigmoid(t * m_fma(t * t, A(CUBIC), A(LINEAR)));
    }
    template <class A> static DEVICE void both(A x, A& f, A& slope) {
        A t = cap(x, A(30)), t2 = t * t, s, rise;
        sigmoid_and_slope(t * m_fma(t2, A(CUBIC), A(LINEAR)), s, rise);
        f = cap_below(x, A(30)) * s;
        slope = m_fma(t * rise, m_fma(t2, A(3 * CUBIC), A(LINEAR)), s);
    }
};
