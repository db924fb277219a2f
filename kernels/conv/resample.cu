// An axis whose elements become others, each a weighted sum of neighbours, and the transpose of that.
//
// Math         y[o, i, c] = sum over j of w[i, j] x[o, j, c]; an output sees consecutive elements, whose two ends never go back as i grows
// Mapping      table: a thread per output of the axis; then a thread per element of the result
// Memory       x once for each output that sees an element, mostly from the cache; y once; the table stays in the cache
// Determinism  every element belongs to one thread, which adds in order; no atomics
#include "common/math.cuh"
#include "common/view.cuh"

// As Rule in src/backend/resample.rs.
enum { SAME = 0, NEAREST, NEAREST_EXACT, LINEAR, CUBIC, AREA, WIDE_LINEAR, WIDE_CUBIC };

DEVICE f64 keys(f64 x, f64 a) {
    x = x < 0 ? -x : x;
    if (x <= 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    return x < 2.0 ? ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a : 0.0;
}

DEVICE i64 within(i64 at, i64 last) { return at < 0 ? 0 : at > last ? last : at; }

// What each output sees: its first element, the one after its last, and their weights. `step` are positions between neighbours; with `near`
// it comes from a factor, and is not exact. Divisions are of products of two extents, beyond what `divided` takes; there are few.
KERNEL(resample_table, (T* weights, i64* at, i64 from, i64 to, i64 width, i32 rule, i32 near, i32 align, f64 step, f64 reach), f64, f32) {
#pragma unroll 1
    for (i64 i = thread_index(); i < to; i += thread_count()) {
        T* w = weights + i * width;
        const i64 last = from - 1;
        i64 first = i, end;
        if (rule == NEAREST || rule == NEAREST_EXACT) {
            if (near) {
                const f64 p = (f64(i) + (rule == NEAREST ? 0.0 : 0.5)) * step;
                const i64 below = i64(p);
                first = f64(below + 1) - p <= p * (1.0 / f64(1ll << 40)) ? below + 1 : below;
            } else if (rule == NEAREST) first = i64(u64(i) * u64(from) / u64(to));
            else first = i64((2 * u64(i) + 1) * u64(from) / (2 * u64(to)));
            first = within(first, last);
        }
        if (rule == SAME || rule == NEAREST || rule == NEAREST_EXACT) {
            end = first + 1;
            w[0] = T(1);
        } else if (rule == AREA) {
            first = i64(u64(i) * u64(from) / u64(to));
            end = i64((u64(i + 1) * u64(from) + u64(to) - 1) / u64(to));
#pragma unroll 1
            for (i64 k = 0; k < end - first; k++) w[k] = T(1.0 / f64(end - first));
        } else if (rule == LINEAR || rule == CUBIC) {
            f64 p = align ? f64(i) * step : (f64(i) + 0.5) * step - 0.5;
            if (rule == LINEAR && p < 0.0) p = 0.0;
            i64 below = i64(p);
            if (f64(below) > p) below--;
            if (below > last) below = last;
            f64 t = p - f64(below);
            t = t < 0.0 ? 0.0 : t > 1.0 ? 1.0 : t;
            const i64 before = rule == LINEAR ? 0 : 1, taps = rule == LINEAR ? 2 : 4;
            first = within(below - before, last);
            end = within(below - before + taps - 1, last) + 1;
            // What lies outside is the element at the border.
#pragma unroll 1
            for (i64 j = first; j < end; j++) {
                f64 sum = 0.0;
#pragma unroll 1
                for (i64 k = 0; k < taps; k++) {
                    const f64 x = f64(k - before) - t;
                    if (within(below - before + k, last) == j) sum += rule == LINEAR ? 1.0 - (x < 0 ? -x : x) : keys(x, -0.75);
                }
                w[j - first] = T(sum);
            }
        } else {
            const f64 centre = (f64(i) + 0.5) * step, by = step > 1.0 ? 1.0 / step : 1.0;
            first = centre - reach + 0.5 > 0.0 ? i64(centre - reach + 0.5) : 0;
            end = i64(centre + reach + 0.5);
            if (end > from) end = from;
            f64 sum = 0.0;
#pragma unroll 1
            for (int pass = 0; pass < 2; pass++) {
                const f64 all = sum;
#pragma unroll 1
                for (i64 j = first; j < end; j++) {
                    f64 x = (f64(j) - centre + 0.5) * by, v;
                    if (rule == WIDE_LINEAR) {
                        x = x < 0 ? -x : x;
                        v = x < 1.0 ? 1.0 - x : 0.0;
                    } else v = keys(x, -0.5);
                    if (pass == 0) sum += v;
                    else w[j - first] = T(v / all);
                }
            }
        }
        at[2 * i] = first;
        at[2 * i + 1] = end;
    }
}

KERNEL(resample_forward, (T* y, const T* x, const i64* at, const acc<T>* weights, i64 from, i64 to, i64 width, i64 inner, i64 n), f64, f32, bf16, f16) {
#pragma unroll 1
    for (i64 e = thread_index(); e < n; e += thread_count()) {
        u64 c, i;
        const u64 outer = divided(divided(u64(e), u64(inner), c), u64(to), i);
        const T* line = x + i64(outer) * from * inner + i64(c);
        const i64 first = at[2 * i], end = at[2 * i + 1];
        const acc<T>* w = weights + i64(i) * width;
        acc<T> sum = acc<T>(0);
#pragma unroll 1
        for (i64 j = first; j < end; j++) {
            const acc<T> by = w[j - first];
            // A weight of 0 is none: an infinity stays where it has a part.
            if (by != acc<T>(0)) sum = m_fma(by, load(line[j * inner]), sum);
        }
        y[e] = store<T>(sum);
    }
}

KERNEL(resample_back, (T* x, const T* y, const i64* at, const acc<T>* weights, i64 from, i64 to, i64 width, i64 inner, i64 n), f64, f32, bf16, f16) {
#pragma unroll 1
    for (i64 e = thread_index(); e < n; e += thread_count()) {
        u64 c, place;
        const u64 outer = divided(divided(u64(e), u64(inner), c), u64(from), place);
        const T* line = y + i64(outer) * to * inner + i64(c);
        const i64 j = i64(place);
        // The first output that ends behind the element.
        i64 low = 0, high = to;
        while (low < high) {
            const i64 middle = low + (high - low) / 2;
            if (at[2 * middle + 1] > j) high = middle;
            else low = middle + 1;
        }
        acc<T> sum = acc<T>(0);
#pragma unroll 1
        for (i64 i = low; i < to && at[2 * i] <= j; i++) {
            const acc<T> by = weights[i * width + j - at[2 * i]];
            if (by != acc<T>(0)) sum = m_fma(by, load(line[i * inner]), sum);
        }
        x[e] = store<T>(sum);
    }
}
