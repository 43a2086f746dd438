/* The ten loops: each runs `count` rounds over the data that prepare() laid out and returns a checksum. */
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef uint64_t loop_function(uint64_t count);

loop_function loop_crc, loop_list, loop_matmul, loop_sieve, loop_fib, loop_state, loop_copy;
loop_function loop_nbody, loop_footprint, loop_crypto;

void prepare_integer(void);
void prepare_nbody(void);
void prepare_crypto(void);

/* The same sequence on every run. */
uint64_t next_random(void);

/* Runs the loop of that name on freshly prepared data. Returns 0 if there is none, else 1. */
int run_loop(const char *name, uint64_t count, uint64_t *checksum);
/* Reads "NAME COUNT" from `text` into `name` (at most `size` bytes with the terminating zero). 1 on success. */
int read_order(const char *text, char *name, size_t size, uint64_t *count);
