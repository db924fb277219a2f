// Elements and rows picked by index. The indices are i64 and were found to be in range (`check`) before anything is read
// through them; operands are words of the elements' size, for a copy does not look at what it moves.
//
// Math         gather: y[i] = x[.., ids[i], ..];  rows: y[o, k, :] = x[o, ids[k], :], zeros for the id `skip`;
//              one_hot: y[k, c] = 1 if c = ids[k], else 0;  put: y[o, first + t, :] = x[o, t, :]
// Mapping      one thread per element of y, or per 16 bytes of a row where rows consist of whole packs; grid-stride
// Memory       ids once per element (gather) or per pack, where neighbours share the cache line; what is picked; y once
// Determinism  every element has one writer and one source. The check takes the first offender by position
#include "common/reduce.cuh"
#include "common/view.cuh"

// found[2 b] = the smallest position, among those that block b looks at, of an index outside 0..limit, or n;
// found[2 b + 1] = that index. `safe` gets the indices, 0 in the place of those outside: a captured step goes on with them,
// and what was found is read when it is done.
KERNEL0(indexing_check, (i64* found, const i64* ids, maybe<i64*> safe, i64 n, i64 limit)) {
    SMEM(i64, partial, [32]);
    i64 first = n;
#pragma unroll 1
    for (i64 i = thread_index(); i < n; i += thread_count()) {
        i64 id = ids[i];
        bool outside = id < 0 || id >= limit;
        if (safe) safe[i] = outside ? 0 : id;
        if (outside && i < first) {
            first = i;
            if (!safe) break;
        }
    }
    for (i32 step = 16; step > 0; step /= 2) {
        i64 other = __shfl_xor_sync(0xffffffffu, first, step);
        first = other < first ? other : first;
    }
    if (lane_index() == 0) partial[warp_index()] = first;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (i32 w = 1; w < warp_count(); w++) first = partial[w] < first ? partial[w] : first;
        found[2 * i64(blockIdx.x)] = first;
        found[2 * i64(blockIdx.x) + 1] = first < n ? ids[first] : 0;
    }
}

// `vx` finds x at every position of ids with 0 along the axis, of which one step is `along` elements.
KERNEL(indexing_gather, (T* y, const T* x, const View& vx, const i64* ids, i64 along, i64 n), u8, u16, u32, u64) {
#pragma unroll 1
    for (i64 i = thread_index(); i < n; i += thread_count()) y[i] = x[offset_of(vx, i) + ids[i] * along];
}

// at[i] = where `gather` would read: the keys by which sums into these places are sorted.
KERNEL0(indexing_places, (i64* at, const View& vx, const i64* ids, i64 along, i64 n)) {
#pragma unroll 1
    for (i64 i = thread_index(); i < n; i += thread_count()) at[i] = offset_of(vx, i) + ids[i] * along;
}

// x is [outer, extent, inner], y is [outer, picked, inner] with n elements; `skip` is no id (-1) or the id of zeros.
KERNEL(indexing_rows, (T* y, const T* x, const i64* ids, i64 picked, i64 extent, i64 inner, i64 skip, i64 n), u8, u16, u32, u64) {
    constexpr int N = PACK<T>;
    for_packs<N>(y, n, inner % N == 0 && aligned<T, N>(x), [&](i64 i, auto& out) {
        // Rows that are moved in packs leave no rest: everything is counted in one unit, M elements.
        constexpr int M = sizeof(out) / sizeof(T);
        u64 c, k, row = divided(u64(i / M), u64(inner / M), c), outer = divided(row, u64(picked), k);
        i64 id = ids[k];
        Pack<T, M> p;
        if (id != skip) p.load(x + ((i64(outer) * extent + id) * (inner / M) + i64(c)) * M);
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = id != skip ? p.v[j] : T(0);
    });
}

// `one` holds the bits of 1 in its lowest.
KERNEL(indexing_one_hot, (T* y, const i64* ids, i64 classes, u64 one, i64 n), u8, u16, u32, u64) {
    for_packs<PACK<T>>(y, n, true, [&](i64 i, auto& out) {
        u64 rest, row = divided(u64(i), u64(classes), rest);
        i64 c = i64(rest), id = ids[row];
#pragma unroll
        for (int j = 0; j < int(sizeof(out) / sizeof(T)); j++) {
            out[j] = c == id ? T(one) : T(0);
            if (++c == classes && j + 1 < int(sizeof(out) / sizeof(T))) {
                c = 0;
                id = ids[++row];
            }
        }
    });
}

// y is [outer, capacity, inner], x (found by its view) is [outer, time, inner] with n elements. `at` adds a position that the device
// holds; what would lie beyond the capacity is left out.
KERNEL(indexing_put, (T* y, const T* x, const View& vx, maybe<const i64*> at, i64 first, i64 capacity, i64 time, i64 inner, i64 n), u8, u16, u32, u64) {
    if (at) first += at[0];
#pragma unroll 1
    for (i64 i = thread_index(); i < n; i += thread_count()) {
        u64 c, t, row = divided(u64(i), u64(inner), c), outer = divided(row, u64(time), t);
        i64 place = first + i64(t);
        if (place >= 0 && place < capacity) y[(i64(outer) * capacity + place) * inner + i64(c)] = x[offset_of(vx, i)];
    }
}
