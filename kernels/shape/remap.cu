// Copies that rearrange whole axes: pad, flip, roll, the derivative of slicing, triangles, concatenation.
//
// Math         remap: y[i] = x[p(i)], or a constant where p(i) lies outside of x; p acts on every axis by itself
// Mapping      one thread per 16 bytes of y where whole packs are moved or left out, else per element; grid-stride
// Memory       what is read of x once, y once
// Determinism  every element has one writer and one source
#include "common/view.cuh"

// Where the coordinates of y read. On each axis the position p = c + shift, less `wrap` where it reaches it (0: never),
// reads element p / step if step divides it and fewer than `len` come before; else it lies outside.
struct Remap {
    i32 rank;
    i64 extent[8];
    i64 shift[8];
    i64 wrap[8];
    i64 step[8];
    i64 len[8];
    i64 stride[8];
};
static_assert(sizeof(Remap) == 392, "as in src/backend/cuda/abi");

// Whether element i lies inside, and where.
DEVICE bool source(const Remap& m, i64 i, i64& at) {
    bool inside = true;
    u64 left = u64(i);
    at = 0;
#pragma unroll 1
    for (i32 k = m.rank - 1; k >= 0; k--) {
        u64 c = left;
        if (k > 0) left = divided(left, u64(m.extent[k]), c);
        i64 p = i64(c) + m.shift[k];
        if (m.wrap[k] > 0 && p >= m.wrap[k]) p -= m.wrap[k];
        inside = inside && p >= 0;
        if (m.step[k] != 1 && inside) {
            u64 q = divided(u64(p), u64(m.step[k]), c);
            inside = c == 0;
            p = i64(q);
        }
        inside = inside && p < m.len[k];
        at += p * m.stride[k];
    }
    return inside;
}

KERNEL(remap, (T* y, const T* x, const Remap& m, u64 fill, i64 n), u8, u16, u32, u64) {
    constexpr int N = PACK<T>;
    i32 last = m.rank - 1;
    bool packed = last >= 0 && aligned<T, N>(x);
    if (packed) {
        packed = m.stride[last] == 1 && m.step[last] == 1;
        packed = packed && m.extent[last] % N == 0 && m.shift[last] % N == 0 && m.wrap[last] % N == 0 && m.len[last] % N == 0;
#pragma unroll 1
        for (i32 k = 0; k < last; k++) packed = packed && m.stride[k] % N == 0;
    }
    for_packs<N>(y, n, packed, [&](i64 i, auto& out) {
        constexpr int M = sizeof(out) / sizeof(T);
        i64 at;
        bool inside = source(m, i, at);
        Pack<T, M> p;
        if (inside) p.load(x + at);
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = inside ? p.v[j] : T(fill);
    });
}

// Matrices of `rows` times `cols`: the elements whose column less row is at least `low` and at most `high`, else 0.
KERNEL(remap_band, (T* y, const T* x, const View& vx, i64 rows, i64 cols, i64 low, i64 high, i64 n), u8, u16, u32, u64) {
    constexpr int N = PACK<T>;
    Operand<T, N> from(x, vx);
    for_packs<N>(y, n, from.in_packs() && cols % N == 0, [&](i64 i, auto& out) {
        constexpr int M = sizeof(out) / sizeof(T);
        u64 col, in_matrix;
        divided(divided(u64(i), u64(cols), col), u64(rows), in_matrix);
        i64 c = i64(col), row = i64(in_matrix);
        // Packs that nothing is kept of are not read.
        bool some = c + M - 1 - row >= low && c - row <= high;
        if (some) from.read(i, out);
#pragma unroll
        for (int j = 0; j < M; j++)
            if (!some || c + j - row < low || c + j - row > high) out[j] = T(0);
    });
}

// One part of a concatenation: stretches of `run` elements, `pitch` apart in y from `start` on, one after the other in x.
KERNEL(remap_part, (T* y, const T* x, const View& vx, i64 start, i64 run, i64 pitch, i64 n), u8, u16, u32, u64) {
    constexpr int N = PACK<T>;
    Operand<T, N> from(x, vx);
    y += start;
    bool packed = from.in_packs() && aligned<T, N>(y) && run % N == 0 && pitch % N == 0;
    i64 packs = packed ? n / N : 0;
#pragma unroll 1
    for (i64 k = thread_index(); k < packs; k += thread_count()) {
        u64 c, row = divided(u64(k * N), u64(run), c);
        Pack<T, N> p;
        from.read(k * N, p.v);
        p.store(y + i64(row) * pitch + i64(c));
    }
#pragma unroll 1
    for (i64 i = packs * N + thread_index(); i < n; i += thread_count()) {
        u64 c, row = divided(u64(i), u64(run), c);
        y[i64(row) * pitch + i64(c)] = from.at(i);
    }
}
