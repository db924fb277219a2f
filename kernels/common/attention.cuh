// What attention kernels share: operands, options, which keys a query sees, the soft cap, and the dropout of weights.
#pragma once
#include "common/math.cuh"
#include "common/philox.cuh"
#include "common/view.cuh"

// A stack of matrices: where each head's starts, and the strides within.
struct Heads {
    View lead;
    i64 row, col;
};
static_assert(sizeof(Heads) == 152, "as in src/backend/cuda/abi");

// Extents and options. `heads` are query heads, `group` of which share a key head.
struct Scores {
    i64 heads, group, tq, tk, d, dv;
    // Scores are scale q k, capped to softcap tanh(x / softcap) unless that is 0.
    f64 scale, softcap, inverse_keep;
    u64 seed, stream;
    const i64* live;
    u64 threshold;
    // When banded, query i sees the keys from i + tk - tq - left to i + tk - tq + right (causal: right = 0). Packed sequences
    // have a table instead, {first key, end} of every query; neither of the two ever falls from one query to the next.
    i64 left, right;
    const i64* spans;
    i32 banded, dropout;
};
static_assert(sizeof(Scores) == 136, "as in src/backend/cuda/abi");

DEVICE i64 least(i64 a, i64 b) { return a < b ? a : b; }
DEVICE i64 between(i64 x, i64 low, i64 high) { return x < low ? low : x > high ? high : x; }
// A difference of 64-bit numbers of which only the part between the bounds matters.
DEVICE i32 within(i64 x, i32 low, i32 high) { return x < low ? low : x > high ? high : i32(x); }

// Consecutive keys or queries.
struct Span {
    i64 first, end;
};

// The keys that query i sees when no mask hides them.
DEVICE Span keys_of(const Scores& p, i64 i) {
    if (p.spans) return {p.spans[2 * i], p.spans[2 * i + 1]};
    if (!p.banded) return {0, p.tk};
    i64 own = i + p.tk - p.tq;
    return {between(own - p.left, 0, p.tk), between(own + p.right + 1, 0, p.tk)};
}

// Keys that some query from i0 to i1 - 1 sees, i0 < i1 <= tq: those of the first and of the last are the extremes.
DEVICE Span keys_of_tile(const Scores& p, i64 i0, i64 i1) { return {keys_of(p, i0).first, keys_of(p, i1 - 1).end}; }

// The first query whose keys end after key j (`end`), or start at key j or after it; tq if there is none.
DEVICE i64 first_query(const Scores& p, i64 j, bool end) {
    i64 low = 0, high = p.tq;
#pragma unroll 1
    while (low < high) {
        i64 i = (low + high) / 2;
        bool found = end ? p.spans[2 * i + 1] > j : p.spans[2 * i] >= j;
        if (found) high = i;
        else low = i + 1;
    }
    return low;
}

// Queries among which are all that see a key from j0 to j1 - 1, j0 < j1 <= tk.
DEVICE Span queries_of_tile(const Scores& p, i64 j0, i64 j1) {
    if (p.spans) return {first_query(p, j0, true), first_query(p, j1, false)};
    if (!p.banded) return {0, p.tq};
    i64 shift = p.tk - p.tq;
    return {between(j0 - p.right - shift, 0, p.tq), between(j1 + p.left - shift, 0, p.tq)};
}

// A product as a score, before masks.
template <class A> DEVICE A capped(const Scores& p, A x) {
    x *= A(p.scale);
    if (p.softcap == 0.0) return x;
    const A cap = A(p.softcap);
    return cap * m_tanh(x / cap);
}

// The derivative of the cap at a product: 1 / cosh^2, which 1 - tanh^2 would lose in rounding for large scores.
template <class A> DEVICE A cap_slope(const Scores& p, A x) {
    A e = m_exp(-m_abs(x * A(p.scale) / A(p.softcap))), sech = (e + e) / (A(1) + e * e);
    return sech * sech;
}

// Four bits: which of the scores number, number + 1, ... are kept.
DEVICE u32 kept(const Scores& p, u64 number) {
    // The key is read for each block: registers are short here.
    auto block = [&](u64 i) { return random_block(current_key(p.seed, p.stream, p.live), i); };
    u32 r = u32(number % 4), bits = 0;
    Words a = block(number / 4), b = a;
    if (r != 0) b = block(number / 4 + 1);
    const u32 w[8] = {a.w[0], a.w[1], a.w[2], a.w[3], b.w[0], b.w[1], b.w[2], b.w[3]};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        u32 word = r == 0 ? w[j] : r == 1 ? w[j + 1] : r == 2 ? w[j + 2] : w[j + 3];
        bits |= u32(u64(word) < p.threshold) << j;
    }
    return bits;
}
