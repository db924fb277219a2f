// Convolutions: the three derivatives of one trilinear form, as products of matrices that are never written down.
//
// Math         the sum over n, o, c, p, k of y[n, o, p] w[o, c, k] x[n, c, p stride - low + k dilation], differentiated by y (`forward`),
//              by x (`input`: the transposed convolution), and by w (`weight`). Padding takes part as zeros; in `input` nothing does that no
//              position reaches
// Mapping      a thread block per 64 x 64 outputs of a group, 4 x 4 a thread, 16 terms of the sum a step: both tiles of a step lie in shared
//              memory. forward: outputs of a group by positions of all images, over channels and elements of the kernel. input: inputs of a
//              group by positions, over the elements of the kernel and for each over the outputs. weight: outputs by channels and elements of
//              the kernel, over positions of all images; that sum is cut into parts, by shapes alone, which `join` adds in order
// Memory       what is read of x (of y in `input`) once for each element of the kernel and each 64 outputs, mostly from the cache; w once
//              for each 64 positions; y once
// Determinism  every sum belongs to one thread and has one order; no atomics
// Tried        nothing has been timed. To do: tensor cores for half types by the tiles of common/mma.cuh; positions of one remainder of the
//              stride together in `input`, which multiplies by zeros where they differ
#include "common/sliding.cuh"
#include "common/math.cuh"

constexpr int SIDE = 64, DEEP = 16;
// Four more than the tile's side: rows stay aligned to 16 bytes, and lie in other banks.
constexpr int LINE = SIDE + 4;

DEVICE i64 volume(const i64 (&extents)[3]) { return extents[0] * extents[1] * extents[2]; }

// The coordinates of position i (below 2^48), and what is left over in front of them.
DEVICE i64 unravel(i64 i, const i64 (&extents)[3], i64 (&at)[3]) {
    u64 left = u64(i), rest;
#pragma unroll
    for (int a = 2; a >= 0; a--) {
        left = divided(left, u64(extents[a]), rest);
        at[a] = i64(rest);
    }
    return i64(left);
}

// Where a position of the input lies in its channel; -1 in the padding.
DEVICE i64 place(const Sliding& s, const i64 (&p)[3], const i64 (&k)[3]) {
    i64 at = 0;
#pragma unroll
    for (int a = 0; a < 3; a++) {
        i64 q = p[a] * s.stride[a] - s.low[a] + k[a] * s.dilation[a];
        if (q < 0 || q >= s.input[a]) return -1;
        at = at * s.input[a] + q;
    }
    return at;
}

// Where the position of the output lies that meets position q of the input under element k of the kernel; -1 where there is none.
DEVICE i64 reaching(const Sliding& s, const i64 (&q)[3], const i64 (&k)[3]) {
    i64 at = 0;
#pragma unroll
    for (int a = 0; a < 3; a++) {
        i64 way = q[a] + s.low[a] - k[a] * s.dilation[a];
        if (way < 0) return -1;
        u64 rest, p = divided(u64(way), u64(s.stride[a]), rest);
        if (rest != 0 || i64(p) >= s.output[a]) return -1;
        at = at * s.output[a] + i64(p);
    }
    return at;
}

template <class A> DEVICE void clear(A (&sum)[4][4]) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] = A(0);
}

// Adds a step's products of a thread.
template <class A> DEVICE void multiply(const A* left, const A* right, int r, int c, A (&sum)[4][4]) {
#pragma unroll 8
    for (int k = 0; k < DEEP; k++) {
        A a[4], b[4];
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = left[k * LINE + r + i], b[i] = right[k * LINE + c + i];
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sum[i][j] = m_fma(a[i], b[j], sum[i][j]);
    }
}

KERNEL(conv_forward, (T* y, const T* x, const T* w, maybe<const T*> bias, const Sliding& s), f64, f32, bf16, f16) {
    typedef acc<T> A;
    SMEM(A, ws, [DEEP * LINE]);
    SMEM(A, xs, [DEEP * LINE]);
    const int tid = int(threadIdx.x), r = tid / 16 * 4, c = tid % 16 * 4;
    const i64 taps = volume(s.kernel), depth = s.inputs * taps, positions = volume(s.output), plane = volume(s.input);
    const i64 columns = s.images * positions, down = (s.outputs + SIDE - 1) / SIDE, across = (columns + SIDE - 1) / SIDE;
#pragma unroll 1
    for (i64 item = blockIdx.x; item < s.groups * down * across; item += gridDim.x) {
        const i64 group = item / (down * across), r0 = item % down * SIDE, c0 = item / down % across * SIDE;
        // A thread reads one column's elements of x all along.
        const i64 column = c0 + tid % SIDE;
        i64 p[3];
        const i64 image = unravel(column < columns ? column : 0, s.output, p);
        const T* from = x + (image * s.groups + group) * s.inputs * plane;
        const T* rows = w + group * s.outputs * depth;
        A sum[4][4];
        clear(sum);
#pragma unroll 1
        for (i64 k0 = 0; k0 < depth; k0 += DEEP) {
            // What the tile before is read for is done.
            __syncthreads();
#pragma unroll 1
            for (int i = 0; i < 4; i++) {
                int at = tid + 256 * i, k = at % DEEP, row = at / DEEP;
                bool there = k0 + k < depth && r0 + row < s.outputs;
                ws[k * LINE + row] = there ? load(rows[(r0 + row) * depth + k0 + k]) : A(0);
                k = at / SIDE;
                A v = A(0);
                if (k0 + k < depth && column < columns) {
                    i64 tap[3], channel = unravel(k0 + k, s.kernel, tap), q = place(s, p, tap);
                    if (q >= 0) v = load(from[channel * plane + q]);
                }
                xs[k * LINE + tid % SIDE] = v;
            }
            __syncthreads();
            multiply(ws, xs, r, c, sum);
        }
#pragma unroll 1
        for (int j = 0; j < 4; j++) {
            const i64 to = c0 + c + j;
            if (to >= columns) continue;
            const i64 n = to / positions, at = to % positions;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const i64 o = group * s.outputs + r0 + r + i;
                if (r0 + r + i >= s.outputs) continue;
                A v = j == 0 ? sum[i][0] : j == 1 ? sum[i][1] : j == 2 ? sum[i][2] : sum[i][3];
                if (bias) v += load(bias[o]);
                y[(n * s.groups * s.outputs + o) * positions + at] = store<T>(v);
            }
        }
    }
}

KERNEL(conv_input, (T* x, const T* y, const T* w, maybe<const T*> bias, const Sliding& s), f64, f32, bf16, f16) {
    typedef acc<T> A;
    SMEM(A, ws, [DEEP * LINE]);
    SMEM(A, ys, [DEEP * LINE]);
    SMEM(i32, reached, [SIDE]);
    const int tid = int(threadIdx.x), r = tid / 16 * 4, c = tid % 16 * 4;
    const i64 taps = volume(s.kernel), depth = s.inputs * taps, positions = volume(s.output), plane = volume(s.input);
    const i64 columns = s.images * plane, down = (s.inputs + SIDE - 1) / SIDE, across = (columns + SIDE - 1) / SIDE;
#pragma unroll 1
    for (i64 item = blockIdx.x; item < s.groups * down * across; item += gridDim.x) {
        const i64 group = item / (down * across), r0 = item % down * SIDE, c0 = item / down % across * SIDE;
        const i64 column = c0 + tid % SIDE;
        i64 q[3];
        const i64 image = unravel(column < columns ? column : 0, s.input, q);
        const T* from = y + (image * s.groups + group) * s.outputs * positions;
        const T* rows = w + group * s.outputs * depth;
        A sum[4][4];
        clear(sum);
#pragma unroll 1
        for (i64 tap = 0; tap < taps; tap++) {
            i64 k[3];
            unravel(tap, s.kernel, k);
            const i64 p = column < columns ? reaching(s, q, k) : -1;
#pragma unroll 1
            for (i64 o0 = 0; o0 < s.outputs; o0 += DEEP) {
                __syncthreads();
                if (tid < SIDE) reached[tid] = p >= 0;
#pragma unroll 1
                for (int i = 0; i < 4; i++) {
                    int at = tid + 256 * i, o = at / SIDE, row = at % SIDE;
                    bool there = o0 + o < s.outputs;
                    ws[o * LINE + row] = there && r0 + row < s.inputs ? load(rows[(o0 + o) * depth + (r0 + row) * taps + tap]) : A(0);
                    ys[o * LINE + tid % SIDE] = there && p >= 0 ? load(from[(o0 + o) * positions + p]) : A(0);
                }
                __syncthreads();
                // A zero in the place of what is not there would make NaN of an infinite weight.
                bool counts[4];
#pragma unroll
                for (int j = 0; j < 4; j++) counts[j] = reached[c + j] != 0;
#pragma unroll 4
                for (int o = 0; o < DEEP; o++) {
                    A a[4], b[4];
#pragma unroll
                    for (int i = 0; i < 4; i++) a[i] = ws[o * LINE + r + i], b[i] = ys[o * LINE + c + i];
#pragma unroll
                    for (int i = 0; i < 4; i++)
#pragma unroll
                        for (int j = 0; j < 4; j++)
                            if (counts[j]) sum[i][j] = m_fma(a[i], b[j], sum[i][j]);
                }
            }
        }
#pragma unroll 1
        for (int j = 0; j < 4; j++) {
            const i64 to = c0 + c + j;
            if (to >= columns) continue;
            const i64 n = to / plane, at = to % plane;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const i64 channel = group * s.inputs + r0 + r + i;
                if (r0 + r + i >= s.inputs) continue;
                A v = j == 0 ? sum[i][0] : j == 1 ? sum[i][1] : j == 2 ? sum[i][2] : sum[i][3];
                if (bias) v += load(bias[channel]);
                x[(n * s.groups * s.inputs + channel) * plane + at] = store<T>(v);
            }
        }
    }
}

// `each` positions of all images to a part, a multiple of DEEP.
KERNEL(conv_weight, (acc<T>* sums, const T* x, const T* y, const Sliding& s, i64 parts, i64 each), f64, f32, bf16, f16) {
    typedef acc<T> A;
    SMEM(A, ys, [DEEP * LINE]);
    SMEM(A, xs, [DEEP * LINE]);
    const int tid = int(threadIdx.x), r = tid / 16 * 4, c = tid % 16 * 4;
    const i64 taps = volume(s.kernel), depth = s.inputs * taps, positions = volume(s.output), plane = volume(s.input);
    const i64 down = (s.outputs + SIDE - 1) / SIDE, across = (depth + SIDE - 1) / SIDE, all = s.images * positions;
#pragma unroll 1
    for (i64 item = blockIdx.x; item < parts * s.groups * down * across; item += gridDim.x) {
        const i64 r0 = item % down * SIDE, c0 = item / down % across * SIDE;
        const i64 group = item / (down * across) % s.groups, part = item / (down * across * s.groups);
        const i64 end = part + 1 < parts ? (part + 1) * each : all;
        A sum[4][4];
        clear(sum);
#pragma unroll 1
        for (i64 p0 = part * each; p0 < end; p0 += DEEP) {
            // A thread reads one position's elements.
            const i64 position = p0 + tid % DEEP;
            const bool there = position < end;
            i64 p[3];
            const i64 image = unravel(there ? position : 0, s.output, p);
            const T* bars = y + (image * s.groups + group) * s.outputs * positions + ((there ? position : 0) - image * positions);
            const T* from = x + (image * s.groups + group) * s.inputs * plane;
            __syncthreads();
#pragma unroll 1
            for (int i = 0; i < 4; i++) {
                const int row = tid / DEEP + DEEP * i;
                ys[tid % DEEP * LINE + row] = there && r0 + row < s.outputs ? load(bars[(r0 + row) * positions]) : A(0);
                A v = A(0);
                if (there && c0 + row < depth) {
                    i64 tap[3], channel = unravel(c0 + row, s.kernel, tap), q = place(s, p, tap);
                    if (q >= 0) v = load(from[channel * plane + q]);
                }
                xs[tid % DEEP * LINE + row] = v;
            }
            __syncthreads();
            multiply(ys, xs, r, c, sum);
        }
        A* to = sums + (part * s.groups + group) * s.outputs * depth;
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (r0 + r + i < s.outputs && c0 + c + j < depth) to[(r0 + r + i) * depth + c0 + c + j] = sum[i][j];
    }
}

KERNEL(conv_join, (T* w, const acc<T>* sums, i64 parts, i64 n), f64, f32, bf16, f16) {
    for (i64 i = thread_index(); i < n; i += thread_count()) {
        acc<T> v = sums[i];
        for (i64 part = 1; part < parts; part++) v += sums[part * n + i];
        w[i] = store<T>(v);
    }
}
