/* Seven integer loops. They are kept from being inlined or vectorised, so that each is what its name says. */
#include "loops.h"

#define NOINLINE __attribute__((noinline))

enum { BYTES = 65536, NODES = 4096, SIDE = 64, WORDS = 4096 };

struct node {
    struct node *next;
    uint64_t value;
};

static uint8_t bytes[BYTES] __attribute__((aligned(64)));
static struct node nodes[NODES];
static int32_t left[SIDE][SIDE], right[SIDE][SIDE], product[SIDE][SIDE];

void prepare_integer(void)
{
    for (uint32_t i = 0; i < BYTES; i++)
        bytes[i] = (uint8_t)next_random();
    for (uint32_t i = 0; i < SIDE * SIDE; i++) {
        left[i / SIDE][i % SIDE] = (int32_t)(next_random() & 1023);
        right[i / SIDE][i % SIDE] = (int32_t)(next_random() & 1023);
    }
    /* An odd stride visits every node of a power of two exactly once, never a neighbour. */
    uint32_t at = 0;
    for (uint32_t i = 0; i < NODES; i++) {
        uint32_t next = (at + 1021) % NODES;
        nodes[at].value = next_random();
        nodes[at].next = i + 1 < NODES ? &nodes[next] : NULL;
        at = next;
    }
}

/* CRC-16/ARC, one bit at a time. */
static NOINLINE uint16_t crc_byte(uint16_t crc, uint8_t byte)
{
    crc ^= byte;
    for (int bit = 0; bit < 8; bit++) {
        if (crc & 1)
            crc = (uint16_t)((crc >> 1) ^ 0xa001);
        else
            crc >>= 1;
    }
    return crc;
}

uint64_t loop_crc(uint64_t count)
{
    uint16_t crc = 0;
    for (uint64_t round = 0; round < count; round++)
        for (uint32_t i = 0; i < 4096; i++)
            crc = crc_byte(crc, bytes[i]);
    return crc;
}

uint64_t loop_list(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t round = 0; round < count; round++)
        for (struct node *node = nodes; node; node = node->next) {
            sum += node->value;
            node->value ^= sum;
        }
    return sum;
}

uint64_t loop_matmul(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t round = 0; round < count; round++) {
        for (uint32_t row = 0; row < SIDE; row++)
            for (uint32_t column = 0; column < SIDE; column++) {
                int32_t cell = 0;
                for (uint32_t k = 0; k < SIDE; k++)
                    cell += left[row][k] * right[k][column];
                product[row][column] = cell;
            }
        sum += (uint64_t)product[round % SIDE][0];
    }
    return sum;
}

uint64_t loop_sieve(uint64_t count)
{
    uint64_t primes = 0;
    for (uint64_t round = 0; round < count; round++) {
        for (uint32_t i = 0; i < BYTES; i++)
            bytes[i] = 1;
        for (uint32_t i = 2; i * i < BYTES; i++)
            if (bytes[i])
                for (uint32_t multiple = i * i; multiple < BYTES; multiple += i)
                    bytes[multiple] = 0;
        for (uint32_t i = 2; i < BYTES; i++)
            primes += bytes[i];
    }
    return primes;
}

/* The empty asm keeps the compiler from turning the first call into a loop. */
static NOINLINE uint64_t fib(uint64_t n)
{
    if (n < 2)
        return n;
    uint64_t before = fib(n - 1);
    __asm__ volatile("");
    return before + fib(n - 2);
}

uint64_t loop_fib(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t round = 0; round < count; round++)
        sum += fib(20 + round % 2);
    return sum;
}

uint64_t loop_state(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t round = 0; round < count; round++) {
        unsigned state = 0;
        for (uint32_t i = 0; i < 4096; i++) {
            uint8_t byte = bytes[i];
            switch (state) {
            case 0: state = byte & 0x01 ? 1 : 2; sum += 1; break;
            case 1: state = byte & 0x02 ? 3 : 0; sum += byte; break;
            case 2: state = byte & 0x04 ? 4 : 5; sum ^= byte; break;
            case 3: state = byte & 0x08 ? 6 : 1; sum += 3; break;
            case 4: state = byte & 0x10 ? 7 : 2; sum -= byte; break;
            case 5: state = byte & 0x20 ? 0 : 3; sum += 5; break;
            case 6: state = byte & 0x40 ? 4 : 1; sum ^= 7; break;
            default: state = byte & 0x80 ? 5 : 6; sum += 9; break;
            }
        }
    }
    return sum;
}

uint64_t loop_copy(uint64_t count)
{
    uint64_t sum = 0;
    uint64_t *from = (uint64_t *)bytes;
    volatile uint64_t *to = (volatile uint64_t *)(bytes + BYTES / 2);
    for (uint64_t round = 0; round < count; round++) {
        for (uint32_t i = 0; i < WORDS; i++)
            to[i] = from[i] + round;
        for (uint32_t i = 0; i + 1 < WORDS; i += 4)
            sum += from[i] ^ to[i + 1];
    }
    return sum;
}
