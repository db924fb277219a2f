// Reductions of tensors: x has the shape [outer, reduced, inner], contiguous, and every group x[o, :, i] becomes one part.
//
// A reduction R (see common/reduce.cuh) also says
//   R::Part, R::X        a partial result; an element as it is computed with
//   R::take(v, pivot)    an element of memory as an X; `pivot` is R::origin of the group's first element
//   R::of(x, at, step)   the part of the M numbers x, which are at at, at + step, ... in their group
//
// Mapping, inner = 1: a team of `lanes` threads per row (or piece of one), packs of 16 bytes where the row is aligned. Else
// `lanes` threads are side by side along the columns, and the rest of the block takes rows in turn.
// Long groups are cut in `pieces`, whose parts another kernel joins. How, depends on the shape alone.
#pragma once
#include "common/pack.cuh"
#include "common/reduce.cuh"

// Elements per piece: a multiple of every pack.
DEVICE i64 piece_of(i64 reduced, i64 pieces) { return ((reduced + pieces - 1) / pieces + 15) / 16 * 16; }

// This thread's share of elements `from` to `to` of a row.
template <class R, class T> DEVICE typename R::Part row_part(const T* x, i64 from, i64 to, i32 lane, i32 team) {
    typedef typename R::X X;
    constexpr int N = PACK<T>;
    typename R::Part part = R::template start<typename R::Part>();
    if (from >= to) return part;
    X pivot = R::origin(x[0]);
    if (aligned<T, N>(x)) {
        i64 whole = from + (to - from) / N * N, step = i64(team) * N, i = from + i64(lane) * N;
        auto join = [&](const Pack<T, N>& p, i64 at) {
            X v[N];
#pragma unroll
            for (int j = 0; j < N; j++) v[j] = R::take(p.v[j], pivot);
            part = R::join(part, R::of(v, at, i64(1)));
        };
#pragma unroll 1
        for (; i + step < whole; i += 2 * step) {
            Pack<T, N> a, b;
            a.load(x + i);
            b.load(x + i + step);
            join(a, i);
            join(b, i + step);
        }
        if (i < whole) {
            Pack<T, N> a;
            a.load(x + i);
            join(a, i);
        }
        from = whole;
    }
    constexpr int M = 4;
    i64 i = from + lane;
#pragma unroll 1
    for (; i + i64(M - 1) * team < to; i += i64(M) * team) {
        X v[M];
#pragma unroll
        for (int m = 0; m < M; m++) v[m] = R::take(x[i + i64(m) * team], pivot);
        part = R::join(part, R::of(v, i, i64(team)));
    }
#pragma unroll 1
    for (; i < to; i += team) {
        X v[1] = {R::take(x[i], pivot)};
        part = R::join(part, R::of(v, i, i64(1)));
    }
    return part;
}

template <class R, class T, class W> DEVICE void reduce_rows(const T* x, i64 outer, i64 reduced, i64 pieces, i32 team, W write) {
    typedef typename R::Part Part;
    SMEM(Part, partial, [32]);
    i64 tasks = outer * pieces, teams = blockDim.x / team, length = piece_of(reduced, pieces);
    i32 lane = i32(threadIdx.x % team);
    // Every team of a block makes the same number of turns: lanes meet in shuffles.
#pragma unroll 1
    for (i64 first = blockIdx.x * teams; first < tasks; first += gridDim.x * teams) {
        i64 task = first + threadIdx.x / team, row = pieces == 1 ? task : task / pieces, piece = task - row * pieces;
        i64 from = piece * length, to = from + length < reduced ? from + length : reduced;
        if (task >= tasks) to = from;
        Part part = team_reduce<R>(row_part<R>(x + (task < tasks ? row * reduced : 0), from, to, lane, team), team, partial);
        if (task < tasks && lane == 0) write(row, piece, part);
    }
}

// This thread's share of N neighbouring columns: rows from + row, from + row + rows, ...
template <class R, int N, class T>
DEVICE void column_parts(typename R::Part (&part)[N], const T* x, i64 from, i64 to, i64 inner, i32 row, i32 rows) {
    typedef typename R::X X;
    if (from >= to) return;
    X pivot[N];
    Pack<T, N> p;
    p.load(x);
#pragma unroll
    for (int j = 0; j < N; j++) pivot[j] = R::origin(p.v[j]);
    constexpr int M = 4;
    i64 r = from + row;
#pragma unroll 1
    for (; r + i64(M - 1) * rows < to; r += i64(M) * rows) {
        X v[N][M];
#pragma unroll
        for (int m = 0; m < M; m++) {
            Pack<T, N> q;
            q.load(x + (r + i64(m) * rows) * inner);
#pragma unroll
            for (int j = 0; j < N; j++) v[j][m] = R::take(q.v[j], pivot[j]);
        }
#pragma unroll
        for (int j = 0; j < N; j++) part[j] = R::join(part[j], R::of(v[j], r, i64(rows)));
    }
#pragma unroll 1
    for (; r < to; r += rows) {
        p.load(x + r * inner);
#pragma unroll
        for (int j = 0; j < N; j++) {
            X v[1] = {R::take(p.v[j], pivot[j])};
            part[j] = R::join(part[j], R::of(v, r, i64(1)));
        }
    }
}

template <class R, int N, class T, class W>
DEVICE void reduce_columns(const T* x, i64 outer, i64 reduced, i64 inner, i64 pieces, i32 lanes, W write) {
    typedef typename R::Part Part;
    SMEM(Part, shared, [256]);
    i32 lane = i32(threadIdx.x % lanes), row = i32(threadIdx.x / lanes), rows = i32(blockDim.x / lanes);
    i64 width = i64(lanes) * N, tiles = (inner + width - 1) / width, tasks = outer * tiles * pieces, length = piece_of(reduced, pieces);
    // After the lanes of a warp have joined, values of one column are this far apart.
    i32 stride = lanes < 32 ? 32 : lanes;
#pragma unroll 1
    for (i64 task = blockIdx.x; task < tasks; task += gridDim.x) {
        i64 piece = task % pieces, tile = task / pieces, o = tile / tiles, column = (tile - o * tiles) * width + i64(lane) * N;
        i64 from = piece * length, to = from + length < reduced ? from + length : reduced;
        Part part[N];
#pragma unroll
        for (int j = 0; j < N; j++) part[j] = R::template start<Part>();
        if (column < inner) column_parts<R, N>(part, x + o * reduced * inner + column, from, to, inner, row, rows);
#pragma unroll
        for (int j = 0; j < N; j++) {
            Part v = part[j];
#pragma unroll 1
            for (i32 step = 16; step >= lanes; step /= 2) v = R::join(v, shuffle_xor(v, step));
            if (stride < i32(blockDim.x)) {
                __syncthreads();
                shared[threadIdx.x] = v;
                __syncthreads();
                if (i32(threadIdx.x) < lanes)
                    for (i32 t = i32(threadIdx.x) + stride; t < i32(blockDim.x); t += stride) v = R::join(v, shared[t]);
            }
            if (i32(threadIdx.x) < lanes && column < inner) write(o * inner + column + j, piece, v);
        }
    }
}

// Neighbouring columns that a thread takes.
template <class T> constexpr int COLUMNS = sizeof(T) == 8 ? 2 : 4;

// write(group, piece, part) for every piece of every group. At most 256 threads per block.
template <class R, class T, class W>
DEVICE void reduce_lines(const T* x, i64 outer, i64 reduced, i64 inner, i64 pieces, i32 lanes, W write) {
    if (inner == 1) reduce_rows<R>(x, outer, reduced, pieces, lanes, write);
    else if (inner % COLUMNS<T> == 0 && aligned<T, COLUMNS<T>>(x)) reduce_columns<R, COLUMNS<T>>(x, outer, reduced, inner, pieces, lanes, write);
    else reduce_columns<R, 1>(x, outer, reduced, inner, pieces, lanes, write);
}

// Parts in memory: those of a group's pieces are together.
template <class P> DEVICE void put_part(u8* parts, i64 at, const P& part) {
    static_assert(sizeof(P) <= 32, "the launcher allocates 32 bytes per part");
    reinterpret_cast<P*>(parts)[at] = part;
}

// write(group, part) for every group whose pieces' parts are given: a warp per group.
template <class R, class W> DEVICE void merge_lines(const u8* parts, i64 groups, i64 pieces, W write) {
    typedef typename R::Part Part;
    const Part* p = reinterpret_cast<const Part*>(parts);
    i64 warps = i64(gridDim.x) * warp_count();
#pragma unroll 1
    for (i64 g = i64(blockIdx.x) * warp_count() + warp_index(); g < groups; g += warps) {
        Part part = R::template start<Part>();
#pragma unroll 1
        for (i64 k = lane_index(); k < pieces; k += 32) part = R::join(part, p[g * pieces + k]);
        part = warp_reduce<R>(part);
        if (lane_index() == 0) write(g, part);
    }
}

// y = f(x, part of its group, g of its group) for every element, f given x as R takes it.
template <class R, class T, class F>
DEVICE void spread_lines(T* y, const T* x, const T* g, const u8* parts, i64 n, i64 reduced, i64 inner, F f) {
    constexpr int N = PACK<T>;
    const typename R::Part* part = reinterpret_cast<const typename R::Part*>(parts);
    bool small = n <= 0x7fffffff, packs = (inner == 1 ? reduced : inner) % N == 0 && aligned<T, N>(x);
    i64 block = reduced * inner;
    for_packs<N>(y, n, packs, [&](i64 i, auto& out) {
        constexpr int M = sizeof(out) / sizeof(T);
        i64 o = small ? i64(u32(i) / u32(block)) : i / block, column = 0;
        if (inner > 1) column = small ? i64(u32(i) % u32(inner)) : i % inner;
        Pack<T, M> in;
        in.load(x + i);
#pragma unroll
        for (int j = 0; j < M; j++) {
            i64 group = inner == 1 ? o : o * inner + column + j, first = inner == 1 ? o * reduced : o * block + column + j;
            out[j] = store<T>(f(R::take(in.v[j], R::origin(x[first])), part[group], load(g[group])));
        }
    });
}
