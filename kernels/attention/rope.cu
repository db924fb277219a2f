// Rotary position embedding.
//
// Math: pair i of a row at position t turns by t * frequency_i: (a cos - b sin, b cos + a sin); elements beyond the rotated
// ones pass through. The derivative is the same map with negative frequencies.
// Mapping: first a table of cosines and sines, one thread for each position and pair; then one thread for each N pairs of a
// row (16 bytes of both members), or for 16 bytes that pass through.
// Memory: reads x in its own layout, writes y; the table has 2 numbers for each position and pair and stays in the L2 cache.
// Determinism: no element depends on another.
#include "common/math.cuh"
#include "common/view.cuh"

// As many frequencies as fit the parameters of a launch next to the rest: they come from the host, since a power that is off
// by one unit in the last place turns position 100000 visibly wrong.
struct Frequencies {
    f64 f[128];
};
static_assert(sizeof(Frequencies) == 1024, "as in src/backend/cuda/abi");

// Cosines of all pairs of each position, then their sines. Angles are doubles: in float they would be off by t * 2^-24.
// This launch fills pairs first to first + count - 1. Position i is `start` + i unless positions are given.
KERNEL(rope_table, (T* table, maybe<const i64*> positions, i64 start, i64 n, i64 half, i64 first, i64 count, const Frequencies& f), f64, f32) {
#pragma unroll 1
    for (i64 k = thread_index(); k < n * count; k += thread_count()) {
        u64 pair;
        i64 i = i64(divided(u64(k), u64(count), pair)), j = i64(pair);
        f64 angle = f64(positions ? positions[i] : start + i) * f.f[j];
        table[i * 2 * half + first + j] = T(cos(angle));
        table[i * 2 * half + half + first + j] = T(sin(angle));
    }
}

template <class T, int N> DEVICE void read_pack(Pack<T, N>& p, const T* row, i64 j, i64 step) {
    if constexpr (N > 1) p.load(row + j);
    else p.v[0] = row[j * step];
}

// Rows of x: `leading` finds their first elements, `step` lies between neighbours. Elements 2i and 2i + 1 are a pair if
// `interleaved`, else i and i + half. Row r has position r % time, plus time * (r / batch) where each batch has its own.
template <class T, int N, bool INTERLEAVED>
DEVICE void rotate_rows(T* y, const T* x, const View& leading, i64 step, const acc<T>* table, i64 rows, i64 width, i64 half, i64 time, i64 batch) {
    typedef acc<T> A;
    i64 turning = half / N, units = turning + (width - 2 * half) / N;
#pragma unroll 1
    for (i64 k = thread_index(); k < rows * units; k += thread_count()) {
        u64 unit, moment;
        i64 r = i64(divided(u64(k), u64(units), unit)), u = i64(unit);
        const T* from = x + offset_of(leading, r);
        T* to = y + r * width;
        Pack<T, N> p, q;
        if (u >= turning) {
            i64 j = 2 * half + (u - turning) * N;
            read_pack(p, from, j, step);
            p.store(to + j);
            continue;
        }
        divided(u64(r), u64(time), moment);
        i64 position = i64(moment);
        if (batch > 0) position += i64(divided(u64(r), u64(batch), moment)) * time;
        i64 i = u * N, j = INTERLEAVED ? 2 * i : i, l = INTERLEAVED ? 2 * i + N : i + half;
        read_pack(p, from, j, step);
        read_pack(q, from, l, step);
        const A* angles = table + position * 2 * half + i;
        Pack<T, N> a, b;
#pragma unroll
        for (int n = 0; n < N; n++) {
            A c = angles[n], s = angles[half + n];
            if (INTERLEAVED && N > 1) {
                // The members of a pair are neighbours: the first half of the pairs lies in p, the second in q.
                constexpr int WRAP = N > 1 ? N : 2;
                const int at = 2 * n % WRAP;
                bool first = 2 * n < N;
                A v0 = load(first ? p.v[at] : q.v[at]), v1 = load(first ? p.v[at + 1] : q.v[at + 1]);
                T y0 = store<T>(v0 * c - v1 * s), y1 = store<T>(v1 * c + v0 * s);
                if (first) {
                    a.v[at] = y0;
                    a.v[at + 1] = y1;
                } else {
                    b.v[at] = y0;
                    b.v[at + 1] = y1;
                }
            } else {
                A v0 = load(p.v[n]), v1 = load(q.v[n]);
                a.v[n] = store<T>(v0 * c - v1 * s);
                b.v[n] = store<T>(v1 * c + v0 * s);
            }
        }
        a.store(to + j);
        b.store(to + l);
    }
}

KERNEL(rope_rotate, (T* y, const T* x, const View& leading, i64 step, const acc<T>* table, i64 rows, i64 width, i64 half, i64 time, i64 batch, i32 interleaved),
       f64, f32, bf16, f16) {
    constexpr int N = PACK<T>;
    bool packed = step == 1 && half % N == 0 && width % N == 0 && aligned<T, N>(x) && aligned<T, N>(y);
#pragma unroll 1
    for (i32 k = 0; k < leading.rank; k++) packed = packed && leading.stride[k] % N == 0;
    if (packed && interleaved) rotate_rows<T, N, true>(y, x, leading, step, table, rows, width, half, time, batch);
    else if (packed) rotate_rows<T, N, false>(y, x, leading, step, table, rows, width, half, time, batch);
    else if (interleaved) rotate_rows<T, 1, true>(y, x, leading, step, table, rows, width, half, time, batch);
    else rotate_rows<T, 1, false>(y, x, leading, step, table, rows, width, half, time, batch);
}
