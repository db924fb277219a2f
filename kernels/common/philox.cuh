// Philox 4x32-10 of src/rng.rs, bit for bit: element i's numbers are a function of a key and i.
#pragma once
#include "common/types.cuh"

// A key: its two words. Rust passes `Key::parts()`.
struct Key {
    u64 seed, stream;
};

// The key of this run: where a step is replayed, `live` holds the words of the key it is replayed with. (Volatile: read where it
// is used, for in long loops four registers are dearer than two loads from the cache.)
DEVICE Key current_key(u64 seed, u64 stream, const volatile i64* live) {
    if (live) return Key{u64(live[0]), u64(live[1])};
    return Key{seed, stream};
}

struct Words {
    u32 w[4];
};

DEVICE Words philox4x32_10(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 p0 = u64(0xD2511F53u) * c0, p1 = u64(0xCD9E8D57u) * c2;
        c0 = u32(p1 >> 32) ^ c1 ^ k0;
        c1 = u32(p1);
        c2 = u32(p0 >> 32) ^ c3 ^ k1;
        c3 = u32(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return Words{{c0, c1, c2, c3}};
}

// Block `counter` of the stream: 128 random bits.
DEVICE Words random_block(const Key& key, u64 counter) {
    return philox4x32_10(u32(counter), u32(counter >> 32), u32(key.stream), u32(key.stream >> 32), u32(key.seed), u32(key.seed >> 32));
}

// Word i of the stream: four to a block.
DEVICE u32 random_word(const Key& key, u64 i) {
    Words b = random_block(key, i / 4);
    u32 k = u32(i % 4);
    return k < 2 ? (k == 0 ? b.w[0] : b.w[1]) : (k == 2 ? b.w[2] : b.w[3]);
}

// Double word i of the stream: two to a block.
DEVICE u64 random_double_word(const Key& key, u64 i) {
    Words b = random_block(key, i / 2);
    return i % 2 == 0 ? u64(b.w[0]) | u64(b.w[1]) << 32 : u64(b.w[2]) | u64(b.w[3]) << 32;
}

// Uniform in [0, 1): multiples of 2^-24, or of 2^-53.
DEVICE f32 uniform_f32(const Key& key, u64 i) { return f32(random_word(key, i) >> 8) * (1.0f / 16777216.0f); }
DEVICE f64 uniform_f64(const Key& key, u64 i) { return f64(random_double_word(key, i) >> 11) * (1.0 / 9007199254740992.0); }

// True where a word lies below the threshold, which Rust computes from the probability.
DEVICE bool bernoulli(const Key& key, u64 i, u64 threshold) { return u64(random_word(key, i)) < threshold; }
