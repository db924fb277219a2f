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

// Whether element i lies inside, and where.
template <class I> DEVICE bool source(const Remap& m, I i, i64& at) {
    bool inside = true;
    at = 0;
#pragma unroll 1
    for (i32 k = m.rank - 1; k >= 0; k--) {
        I extent = I(m.extent[k]), next = k > 0 ? i / extent : 0;
        i64 p = i64(i - next * extent) + m.shift[k];
        if (m.wrap[k] > 0 && p >= m.wrap[k]) p -= m.wrap[k];
        if (m.step[k] != 1) {
            i64 q = p / m.step[k];
            inside = inside && q * m.step[k] == p;
            p = q;
        }
        inside = inside && p >= 0 && p < m.len[k];
        at += p * m.stride[k];
        i = next;
    }
    return inside;
}

KERNEL(remap, (T* y, const T* x, const Remap& m, u64 fill, i64 n), u8, u16, u32, u64) {
    constexpr int N = PACK<T>;
    i32 last = m.rank - 1;
    bool small = n <= 0x7fffffff, packed = last >= 0 && aligned<T, N>(x);
    if (packed) {
        packed = m.stride[last] == 1 && m.step[last] == 1;
        packed = packed && m.extent[last] % N == 0 && m.shift[last] % N == 0 && m.wrap[last] % N == 0 && m.len[last] % N == 0;
#pragma unroll 1
        for (i32 k = 0; k < last; k++) packed = packed && m.stride[k] % N == 0;
    }
    for_packs<N>(y, n, packed, [&](i64 i, auto& out) {
        constexpr int M = sizeof(out) / sizeof(T);
        i64 at;
        bool inside = small ? source(m, u32(i), at) : source(m, u64(i), at);
        Pack<T, M> p;
#pragma unroll
        for (int j = 0; j < M; j++) p.v[j] = T(fill);
        if (inside) p.load(x + at);
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = p.v[j];
    });
}

// Matrices of `rows` times `cols`: the elements whose column less row is at least `low` and at most `high`, else 0.
KERNEL(remap_band, (T* y, const T* x, const View& vx, i64 rows, i64 cols, i64 low, i64 high, i64 n), u8, u16, u32, u64) {
    constexpr int N = PACK<T>;
    Operand<T, N> from(x, vx, n);
    for_packs<N>(y, n, from.in_packs() && cols % N == 0, [&](i64 i, auto& out) {
        constexpr int M = sizeof(out) / sizeof(T);
        i64 row = from.small ? i64(u32(i) / u32(cols)) : i / cols, c = i - row * cols;
        row = from.small ? i64(u32(row) % u32(rows)) : row % rows;
        // Packs that nothing is kept of are not read.
        bool some = c + M - 1 - row >= low && c - row <= high;
        if (some) from.read(i, out);
#pragma unroll
        for (int j = 0; j < M; j++)
            if (!some || c + j - row < low || c + j - row > high) out[j] = T(0);
    });
}

// One part of a concatenation: stretches of `run` elements, `pitch` apart in y from `start` on, one behind the other in x.
KERNEL(remap_part, (T* y, const T* x, const View& vx, i64 start, i64 run, i64 pitch, i64 n), u8, u16, u32, u64) {
    constexpr int N = PACK<T>;
    Operand<T, N> from(x, vx, n);
    y += start;
    bool packed = from.in_packs() && aligned<T, N>(y) && run % N == 0 && pitch % N == 0;
    i64 packs = packed ? n / N : 0;
#pragma unroll 1
    for (i64 k = thread_index(); k < packs; k += thread_count()) {
        i64 i = k * N, row = from.small ? i64(u32(i) / u32(run)) : i / run;
        Pack<T, N> p;
        from.read(i, p.v);
        p.store(y + row * pitch + (i - row * run));
    }
#pragma unroll 1
    for (i64 i = packs * N + thread_index(); i < n; i += thread_count()) {
        i64 row = from.small ? i64(u32(i) / u32(run)) : i / run;
        y[row * pitch + (i - row * run)] = from.at(i);
    }
}
