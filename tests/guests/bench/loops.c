/* The table of loops, and what guest and native program share. */
#include "loops.h"

static uint64_t random_state;

/* xorshift64, G. Marsaglia 2003. */
uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static const struct {
    const char *name;
    loop_function *run;
} table[] = {
    {"crc", loop_crc},     {"list", loop_list},   {"matmul", loop_matmul}, {"sieve", loop_sieve},
    {"fib", loop_fib},     {"state", loop_state}, {"nbody", loop_nbody},   {"copy", loop_copy},
    {"footprint", loop_footprint}, {"crypto", loop_crypto},
};

static int equal(const char *one, const char *other)
{
    while (*one && *one == *other)
        one++, other++;
    return *one == *other;
}

int run_loop(const char *name, uint64_t count, uint64_t *checksum)
{
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (!equal(name, table[i].name))
            continue;
        random_state = 0x1234567;
        prepare_integer();
        prepare_nbody();
        prepare_crypto();
        *checksum = table[i].run(count);
        return 1;
    }
    return 0;
}

int read_order(const char *text, char *name, size_t size, uint64_t *count)
{
    size_t used = 0;
    while (*text == ' ')
        text++;
    while (*text && *text != ' ') {
        if (used + 1 >= size)
            return 0;
        name[used++] = *text++;
    }
    name[used] = 0;
    while (*text == ' ')
        text++;
    if (*text < '0' || *text > '9')
        return 0;
    for (*count = 0; *text >= '0' && *text <= '9'; text++)
        *count = *count * 10 + (uint64_t)(*text - '0');
    return 1;
}
