// Tensor cores of sm_80 and later: 16 x 8 results of 16-bit factors, 16 products each, summed in float.
//
// Which element a lane holds (g = lane / 4, t = lane % 4; a register holds two neighbours, the first in its low half):
//   A, 16 x 16, rows: a[0] row g, columns 2t and 2t+1; a[1] row g+8; a[2] row g, columns 2t+8 and 2t+9; a[3] row g+8, those
//   B, 16 x 8, given by columns: b[0] rows 2t and 2t+1 of column g; b[1] rows 2t+8 and 2t+9
//   C, 16 x 8: c[0], c[1] row g, columns 2t and 2t+1; c[2], c[3] row g+8
#pragma once
#include "common/types.cuh"
#ifndef CUEMU

// Four 8 x 8 matrices of 16-bit elements from shared memory. Lane l gives the address of row l % 8 of matrix l / 8 (16 bytes,
// aligned); register i gets, of matrix i, the elements of row lane / 4, columns 2 (lane % 4) and the next.
DEVICE void load_matrices(u32 (&r)[4], const void* row) {
    u32 p = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(p) : "memory");
}

// The same with every matrix transposed.
DEVICE void load_matrices_transposed(u32 (&r)[4], const void* row) {
    u32 p = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(p)
                 : "memory");
}

// Two numbers rounded to T, in the halves of a register.
template <class T> DEVICE u32 pack(f32 low, f32 high);

template <> DEVICE u32 pack<bf16>(f32 low, f32 high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

template <> DEVICE u32 pack<f16>(f32 low, f32 high) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

// c += a b
template <class T> DEVICE void mma(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]);

template <> DEVICE void mma<bf16>(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <> DEVICE void mma<f16>(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#else

DEVICE void load_matrices(u32 (&r)[4], const void* row) { ::cuemu::load_matrices<::cuemu::LDMATRIX>(r, row); }
DEVICE void load_matrices_transposed(u32 (&r)[4], const void* row) { ::cuemu::load_matrices<::cuemu::LDMATRIX_TRANSPOSED>(r, row); }

template <class T> DEVICE u32 pack(f32 low, f32 high) { return u32(store<T>(low).bits) | u32(store<T>(high).bits) << 16; }

// The element in the low or high half of a register.
template <class T> DEVICE f32 half_of(u32 r, int high) {
    T x;
    x.bits = u16(high ? r >> 16 : r & 0xffffu);
    return load(x);
}

template <class T> DEVICE void mma(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    struct Lane {
        f32* c;
        const u32 *a, *b;
    } mine{c, a, b};
    ::cuemu::rendezvous_of<Lane, ::cuemu::MMA>(0xffffffffu, mine, [](void** lanes, unsigned) {
        f32 A[16][16], B[16][8], sum[16][8] = {};
        for (int l = 0; l < 32; l++) {
            const Lane& x = *static_cast<Lane*>(lanes[l]);
            int g = l / 4, t = l % 4 * 2;
            for (int h = 0; h < 2; h++) {
                for (int i = 0; i < 4; i++) A[g + i % 2 * 8][t + i / 2 * 8 + h] = half_of<T>(x.a[i], h);
                for (int i = 0; i < 2; i++) B[t + i * 8 + h][g] = half_of<T>(x.b[i], h);
            }
        }
        for (int i = 0; i < 16; i++)
            for (int k = 0; k < 16; k++)
                for (int j = 0; j < 8; j++) sum[i][j] += A[i][k] * B[k][j];
        for (int l = 0; l < 32; l++) {
            const Lane& x = *static_cast<Lane*>(lanes[l]);
            for (int i = 0; i < 4; i++) x.c[i] += sum[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
        }
    });
}

#endif
