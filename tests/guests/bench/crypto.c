/* Keccak-f[1600] (FIPS 202), the BLAKE2s compression function (RFC 7693) and multi-word multiplication: long straight
   lines of 64-bit xor, rotate, add and multiply. */
#include "loops.h"

static uint64_t keccak[25];
static uint32_t chain[8], message[16];
static uint64_t factor[4], other_factor[4], accumulator[32];

void prepare_crypto(void)
{
    for (unsigned i = 0; i < 25; i++)
        keccak[i] = next_random();
    for (unsigned i = 0; i < 8; i++)
        chain[i] = (uint32_t)next_random();
    for (unsigned i = 0; i < 16; i++)
        message[i] = (uint32_t)next_random();
    for (unsigned i = 0; i < 4; i++) {
        factor[i] = next_random();
        other_factor[i] = next_random();
    }
    for (unsigned i = 0; i < 32; i++)
        accumulator[i] = next_random();
}

static inline uint64_t rotate_left(uint64_t word, unsigned by)
{
    return word << by | word >> (64 - by);
}

static inline uint32_t rotate_right(uint32_t word, unsigned by)
{
    return word >> by | word << (32 - by);
}

static __attribute__((noinline)) void keccak_round(uint64_t *a, uint64_t constant)
{
    static const uint8_t lane[24] = {10, 7,  11, 17, 18, 3, 5,  16, 8,  21, 24, 4,
                                     15, 23, 19, 13, 12, 2, 20, 14, 22, 9,  6,  1};
    static const uint8_t offset[24] = {1,  3,  6,  10, 15, 21, 28, 36, 45, 55, 2,  14,
                                       27, 41, 56, 8,  25, 43, 62, 18, 39, 61, 20, 44};
    uint64_t column[5];
#pragma GCC unroll 5
    for (unsigned x = 0; x < 5; x++)
        column[x] = a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20];
#pragma GCC unroll 5
    for (unsigned x = 0; x < 5; x++) {
        uint64_t mix = column[(x + 4) % 5] ^ rotate_left(column[(x + 1) % 5], 1);
#pragma GCC unroll 5
        for (unsigned y = 0; y < 25; y += 5)
            a[x + y] ^= mix;
    }
    uint64_t moving = a[1];
#pragma GCC unroll 24
    for (unsigned i = 0; i < 24; i++) {
        uint64_t next = a[lane[i]];
        a[lane[i]] = rotate_left(moving, offset[i]);
        moving = next;
    }
#pragma GCC unroll 5
    for (unsigned y = 0; y < 25; y += 5) {
        uint64_t row[5] = {a[y], a[y + 1], a[y + 2], a[y + 3], a[y + 4]};
#pragma GCC unroll 5
        for (unsigned x = 0; x < 5; x++)
            a[y + x] = row[x] ^ (~row[(x + 1) % 5] & row[(x + 2) % 5]);
    }
    a[0] ^= constant;
}

static void keccak_permute(uint64_t *a)
{
    /* The round constants are the output of an 8-bit shift register (FIPS 202, algorithm 5). */
    uint8_t shift_register = 1;
    for (unsigned round = 0; round < 24; round++) {
        uint64_t constant = 0;
        for (unsigned j = 0; j < 7; j++) {
            if (shift_register & 1)
                constant |= UINT64_C(1) << ((1u << j) - 1);
            shift_register = (uint8_t)(shift_register << 1 ^ (shift_register & 0x80 ? 0x71 : 0));
        }
        keccak_round(a, constant);
    }
}

static inline void blake_mix(uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d, uint32_t x, uint32_t y)
{
    *a += *b + x;
    *d = rotate_right(*d ^ *a, 16);
    *c += *d;
    *b = rotate_right(*b ^ *c, 12);
    *a += *b + y;
    *d = rotate_right(*d ^ *a, 8);
    *c += *d;
    *b = rotate_right(*b ^ *c, 7);
}

static __attribute__((noinline)) void blake_compress(uint32_t *h, const uint32_t *m)
{
    static const uint8_t sigma[10][16] = {
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
        {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
        {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
        {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
        {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
    };
    static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint32_t v[16];
    for (unsigned i = 0; i < 8; i++) {
        v[i] = h[i];
        v[i + 8] = initial[i];
    }
#pragma GCC unroll 10
    for (unsigned r = 0; r < 10; r++) {
        const uint8_t *s = sigma[r];
#pragma GCC unroll 4
        for (unsigned i = 0; i < 4; i++)
            blake_mix(&v[i], &v[4 + i], &v[8 + i], &v[12 + i], m[s[2 * i]], m[s[2 * i + 1]]);
#pragma GCC unroll 4
        for (unsigned i = 0; i < 4; i++)
            blake_mix(&v[i], &v[4 + (i + 1) % 4], &v[8 + (i + 2) % 4], &v[12 + (i + 3) % 4], m[s[8 + 2 * i]],
                      m[s[9 + 2 * i]]);
    }
    for (unsigned i = 0; i < 8; i++)
        h[i] ^= v[i] ^ v[i + 8];
}

/* `out` (8 words) = one * two (4 words each), schoolbook. */
static __attribute__((noinline)) void multiply(uint64_t *out, const uint64_t *one, const uint64_t *two)
{
    for (unsigned i = 0; i < 8; i++)
        out[i] = 0;
    for (unsigned i = 0; i < 4; i++) {
        uint64_t carry = 0;
        for (unsigned j = 0; j < 4; j++) {
            unsigned __int128 sum = (unsigned __int128)one[i] * two[j] + out[i + j] + carry;
            out[i + j] = (uint64_t)sum;
            carry = (uint64_t)(sum >> 64);
        }
        out[i + 4] = carry;
    }
}

/* `out` += `words` * by, over `length` words; returns the carry. */
static __attribute__((noinline)) uint64_t add_multiple(uint64_t *out, const uint64_t *words, unsigned length,
                                                       uint64_t by)
{
    uint64_t carry = 0;
    for (unsigned i = 0; i < length; i++) {
        unsigned __int128 sum = (unsigned __int128)words[i] * by + out[i] + carry;
        out[i] = (uint64_t)sum;
        carry = (uint64_t)(sum >> 64);
    }
    return carry;
}

uint64_t loop_crypto(uint64_t count)
{
    for (uint64_t round = 0; round < count; round++) {
        keccak_permute(keccak);
        blake_compress(chain, message);
        message[round % 16] ^= chain[3];
        for (unsigned i = 0; i < 12; i++) {
            uint64_t wide[8];
            multiply(wide, factor, other_factor);
            factor[i % 4] ^= wide[5];
            other_factor[i % 4] += wide[2];
        }
        keccak[1] ^= add_multiple(accumulator, keccak, 24, factor[1]);
    }
    return keccak[0] ^ chain[0] ^ factor[0] ^ accumulator[3];
}
