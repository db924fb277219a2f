// Sorted rows, and where each element came from.
//
// Math         stable order by value, NaN above every number, -0 equal to 0; descending inverts the keys, so equal elements
//              keep their order there too
// Mapping      rows of up to SORT_TILE elements: a block sorts (key, place) in shared memory (bitonic). Longer ones: tiles like
//              that, then passes that merge neighbouring runs, every element finding its place by a search in the other run
// Memory       x once, and for long rows 12 bytes per element read and written per pass
// Determinism  keys and places are whole numbers
#include "common/pack.cuh"
#include "common/math.cuh"

constexpr int SORT_TILE = 2048;

// A number whose unsigned order is the numeric one.
DEVICE u64 sort_key(f32 v, bool descending) {
    u32 bits = bits_of(v + 0.0f), key = is_nan(v) ? 0xffffffffu : bits >> 31 ? ~bits : bits | 0x80000000u;
    return descending ? u32(~key) : key;
}
DEVICE u64 sort_key(f64 v, bool descending) {
    u64 bits = bits_of(v + 0.0), key = is_nan(v) ? ~u64(0) : bits >> 63 ? ~bits : bits | u64(1) << 63;
    return descending ? ~key : key;
}

// Sorts keys and places of `size` elements, a power of two, in shared memory. The place breaks ties.
DEVICE void sort_block(u64* key, u32* place, i32 size) {
    for (i32 width = 2; width <= size; width *= 2) {
        for (i32 step = width / 2; step > 0; step /= 2) {
            __syncthreads();
            for (i32 t = i32(threadIdx.x); t < size / 2; t += i32(blockDim.x)) {
                i32 a = t / step * step * 2 + t % step, b = a + step;
                bool later = key[a] > key[b] || (key[a] == key[b] && place[a] > place[b]);
                if (later == ((a & width) == 0)) {
                    u64 k = key[a];
                    key[a] = key[b];
                    key[b] = k;
                    u32 p = place[a];
                    place[a] = place[b];
                    place[b] = p;
                }
            }
        }
    }
    __syncthreads();
}

// Fills shared memory with count elements from `first` on, the rest with what sorts last.
template <class T> DEVICE void sort_fetch(u64* key, u32* place, const T* row, i64 first, i64 count, i32 size, bool descending) {
    __syncthreads();
    for (i32 t = i32(threadIdx.x); t < size; t += i32(blockDim.x)) {
        key[t] = t < count ? sort_key(load(row[first + t]), descending) : ~u64(0);
        place[t] = t < count ? u32(first + t) : 0xffffffffu;
    }
}

// Rows of up to SORT_TILE elements, of which the first k are kept; size is the power of two that holds n.
KERNEL(sort_rows, (T* values, i64* indices, const T* x, i64 rows, i64 n, i64 k, i32 size, i32 descending), f64, f32, bf16, f16) {
    SMEM(u64, key, [SORT_TILE]);
    SMEM(u32, place, [SORT_TILE]);
    for (i64 r = blockIdx.x; r < rows; r += gridDim.x) {
        sort_fetch(key, place, x + r * n, 0, n, size, descending != 0);
        sort_block(key, place, size);
        for (i64 t = threadIdx.x; t < k; t += blockDim.x) {
            values[r * k + t] = x[r * n + place[t]];
            indices[r * k + t] = place[t];
        }
    }
}

// Every tile of every row by itself.
KERNEL(sort_tiles, (i64* keys, u32* places, const T* x, i64 rows, i64 n, i32 descending), f64, f32, bf16, f16) {
    SMEM(u64, key, [SORT_TILE]);
    SMEM(u32, place, [SORT_TILE]);
    i64 tiles = (n + SORT_TILE - 1) / SORT_TILE;
    for (i64 task = blockIdx.x; task < rows * tiles; task += gridDim.x) {
        i64 r = task / tiles, first = (task - r * tiles) * SORT_TILE, count = n - first < SORT_TILE ? n - first : SORT_TILE;
        sort_fetch(key, place, x + r * n, first, count, SORT_TILE, descending != 0);
        sort_block(key, place, SORT_TILE);
        for (i32 t = i32(threadIdx.x); t < count; t += i32(blockDim.x)) {
            keys[r * n + first + t] = i64(key[t]);
            places[r * n + first + t] = place[t];
        }
    }
}

// Merges runs of `run` elements pairwise. Of equal keys those of the first run come first: places stay in order.
KERNEL0(sort_merge, (i64* to_keys, u32* to_places, const i64* keys, const u32* places, i64 rows, i64 n, i64 run)) {
    for (i64 i = thread_index(); i < rows * n; i += thread_count()) {
        i64 r = i / n, at = i - r * n, pair = at / (2 * run) * (2 * run), middle = pair + run < n ? pair + run : n;
        i64 end = pair + 2 * run < n ? pair + 2 * run : n;
        const i64* row = keys + r * n;
        u64 key = u64(row[at]);
        bool first = at < middle;
        // How many of the other run come before this element.
        i64 low = first ? middle : pair, high = first ? end : middle, start = low;
        while (low < high) {
            i64 probe = low + (high - low) / 2;
            u64 other = u64(row[probe]);
            if (other < key || (other == key && !first)) low = probe + 1;
            else high = probe;
        }
        i64 to = r * n + pair + (at - (first ? pair : middle)) + (low - start);
        to_keys[to] = i64(key);
        to_places[to] = places[i];
    }
}

// The first k of every row.
KERNEL(sort_take, (T* values, i64* indices, const T* x, const u32* places, i64 rows, i64 n, i64 k), f64, f32, bf16, f16) {
    for (i64 i = thread_index(); i < rows * k; i += thread_count()) {
        i64 r = i / k, place = places[r * n + i - r * k];
        values[i] = x[r * n + place];
        indices[i] = place;
    }
}
