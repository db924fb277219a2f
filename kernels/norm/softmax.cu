// Softmax of rows, its logarithm, and their derivatives.
//
// Math         softmax      y = exp(x - m) / s with m = max x, s = sum of exp(x - m); a row of minus infinity only gives 0
//              log_softmax  y = (x - m) - ln s
//              softmax_vjp      x_bar = y (y_bar - sum of y y_bar)
//              log_softmax_vjp  x_bar = y_bar - softmax(x) sum of y_bar
// Mapping      a team of threads per row, common/rows.cuh: the row stays in registers; rows that do not fit are read twice,
//              m and s coming from one online pass (common/moments.cuh)
// Memory       every operand once, the result once
// Determinism  sums have the shape of the team
#include "common/moments.cuh"
#include "common/rows.cuh"

// The shift of a row is its largest element; without any, or with minus infinity only, the row is masked.
template <bool LOG, class T, int N> DEVICE void softmax_held(T* y, const T* x, i64 rows, i32 n, i32 team) {
    typedef acc<T> A;
    SMEM(A, partial, [32]);
    for_rows(rows, team, [&](i64 row, bool here, i32 lane) {
        Held<T, N, HELD<T> / N> h;
        A lowest = -Limits<A>::infinity(), m = lowest, s = A(0);
        h.fetch(x + row * n, n, lane, team, lowest);
        h.each(n, team, [&](A& v) { m = max_nan(m, v); });
        m = team_reduce<MaxOf>(m, team, partial);
        bool masked = m == lowest;
        h.each(n, team, [&](A& v) {
            v -= m;
            A e = m_exp(v);
            s += e;
            if (!LOG) v = e;
        });
        s = team_reduce<SumOf>(s, team, partial);
        A by = LOG ? m_log(s) : A(1) / s;
        if (here) h.put(y + row * n, n, lane, team, [&](A v, i32) { return masked ? A(0) : LOG ? v - by : v * by; });
    });
}

template <bool LOG, class T> DEVICE void softmax_long(T* y, const T* x, i64 rows, i64 n, i32 team) {
    typedef acc<T> A;
    typedef typename LogSum<A>::Part Part;
    SMEM(Part, partial, [32]);
    for_rows(rows, team, [&](i64 row, bool here, i32 lane) {
        const T* from = x + row * n;
        Part p = team_reduce<LogSum<A>>(row_part<LogSum<A>>(from, 0, n, lane, team), team, partial);
        bool masked = p.max == -Limits<A>::infinity();
        A by = !is_finite(p.max) ? Limits<A>::nan() : LOG ? m_log(p.sum) : A(1) / p.sum;
        if (!here) return;
        write_row(y + row * n, from, from, n, lane, team, [&](A v, A, i64) {
            return masked ? A(0) : LOG ? v - p.max - by : m_exp(v - p.max) * by;
        });
    });
}

template <bool LOG, class T> DEVICE void softmax_rows(T* y, const T* x, i64 rows, i64 n, i32 team) {
    constexpr int N = PACK<T>;
    if (n > i64(team) * HELD<T>) softmax_long<LOG>(y, x, rows, n, team);
    else if (rows_aligned(x, n) && aligned<T, N>(y)) softmax_held<LOG, T, N>(y, x, rows, i32(n), team);
    else softmax_held<LOG, T, 1>(y, x, rows, i32(n), team);
}

// p is the softmax.
template <class T, int N> DEVICE void softmax_vjp_held(T* y, const T* p, const T* g, i64 rows, i32 n, i32 team) {
    typedef acc<T> A;
    SMEM(A, partial, [32]);
    for_rows(rows, team, [&](i64 row, bool here, i32 lane) {
        constexpr int K = HELD<T> / 2 / N;
        Held<T, N, K> hp, hg;
        hp.fetch(p + row * n, n, lane, team, A(0));
        hg.fetch(g + row * n, n, lane, team, A(0));
        A s = A(0);
#pragma unroll
        for (int k = 0; k < K; k++)
            if (hp.any(k, n, team))
#pragma unroll
                for (int j = 0; j < N; j++) s = m_fma(hp.v[k * N + j], hg.v[k * N + j], s);
        s = team_reduce<SumOf>(s, team, partial);
#pragma unroll
        for (int i = 0; i < K * N; i++) hp.v[i] *= hg.v[i] - s;
        if (here) hp.put(y + row * n, n, lane, team, [](A v, i32) { return v; });
    });
}

template <class T> DEVICE void softmax_vjp_long(T* y, const T* p, const T* g, i64 rows, i64 n, i32 team) {
    typedef acc<T> A;
    SMEM(A, partial, [32]);
    for_rows(rows, team, [&](i64 row, bool here, i32 lane) {
        const T *a = p + row * n, *b = g + row * n;
        A s = A(0);
        read_rows(a, b, n, lane, team, [&](A p, A g) { s = m_fma(p, g, s); });
        s = team_reduce<SumOf>(s, team, partial);
        if (here) write_row(y + row * n, a, b, n, lane, team, [&](A p, A g, i64) { return p * (g - s); });
    });
}

template <class T, int N> DEVICE void log_softmax_vjp_held(T* y, const T* x, const T* g, i64 rows, i32 n, i32 team) {
    typedef acc<T> A;
    SMEM(A, partial, [32]);
    for_rows(rows, team, [&](i64 row, bool here, i32 lane) {
        constexpr int K = HELD<T> / 2 / N;
        Held<T, N, K> hx, hg;
        A lowest = -Limits<A>::infinity(), m = lowest, s = A(0), total = A(0);
        hx.fetch(x + row * n, n, lane, team, lowest);
        hg.fetch(g + row * n, n, lane, team, A(0));
        hx.each(n, team, [&](A& v) { m = max_nan(m, v); });
        m = team_reduce<MaxOf>(m, team, partial);
        hx.each(n, team, [&](A& v) {
            v = m_exp(v - m);
            s += v;
        });
        hg.each(n, team, [&](A& v) { total += v; });
        s = team_reduce<SumOf>(s, team, partial);
        total = team_reduce<SumOf>(total, team, partial);
        A scale = total / s;
        bool masked = m == lowest;
#pragma unroll
        for (int i = 0; i < K * N; i++) hx.v[i] = masked ? A(0) : m_fma(-hx.v[i], scale, hg.v[i]);
        if (here) hx.put(y + row * n, n, lane, team, [](A v, i32) { return v; });
    });
}

template <class T> DEVICE void log_softmax_vjp_long(T* y, const T* x, const T* g, i64 rows, i64 n, i32 team) {
    typedef acc<T> A;
    typedef typename LogSum<A>::Part Part;
    SMEM(Part, parts, [32]);
    SMEM(A, partial, [32]);
    for_rows(rows, team, [&](i64 row, bool here, i32 lane) {
        const T *a = x + row * n, *b = g + row * n;
        Part p = team_reduce<LogSum<A>>(row_part<LogSum<A>>(a, 0, n, lane, team), team, parts);
        A total = team_reduce<SumOf>(row_part<Sums<A>>(b, 0, n, lane, team), team, partial);
        bool masked = p.max == -Limits<A>::infinity();
        A scale = is_finite(p.max) ? total / p.sum : Limits<A>::nan();
        if (!here) return;
        write_row(y + row * n, a, b, n, lane, team, [&](A x, A g, i64) { return masked ? A(0) : m_fma(-m_exp(x - p.max), scale, g); });
    });
}

LAUNCH_BOUNDS(512, 1)
KERNEL(softmax_fwd, (T* y, const T* x, i64 rows, i64 n, i32 team), f64, f32, bf16, f16) { softmax_rows<false>(y, x, rows, n, team); }

LAUNCH_BOUNDS(512, 1)
KERNEL(softmax_log_fwd, (T* y, const T* x, i64 rows, i64 n, i32 team), f64, f32, bf16, f16) { softmax_rows<true>(y, x, rows, n, team); }

LAUNCH_BOUNDS(512, 1)
KERNEL(softmax_vjp, (T* y, const T* p, const T* g, i64 rows, i64 n, i32 team), f64, f32, bf16, f16) {
    constexpr int N = PACK<T>;
    if (2 * n > i64(team) * HELD<T>) softmax_vjp_long(y, p, g, rows, n, team);
    else if (rows_aligned(p, n) && rows_aligned(g, n) && aligned<T, N>(y)) softmax_vjp_held<T, N>(y, p, g, rows, i32(n), team);
    else softmax_vjp_held<T, 1>(y, p, g, rows, i32(n), team);
}

LAUNCH_BOUNDS(512, 1)
KERNEL(softmax_log_vjp, (T* y, const T* x, const T* g, i64 rows, i64 n, i32 team), f64, f32, bf16, f16) {
    constexpr int N = PACK<T>;
    if (2 * n > i64(team) * HELD<T>) log_softmax_vjp_long(y, x, g, rows, n, team);
    else if (rows_aligned(x, n) && rows_aligned(g, n) && aligned<T, N>(y)) log_softmax_vjp_held<T, N>(y, x, g, rows, i32(n), team);
    else log_softmax_vjp_held<T, 1>(y, x, g, rows, i32(n), team);
}
