#!/usr/bin/env python3
"""Write footprint.c: thousands of small functions that differ, called in a random order.

The same text on every run (fixed seed). Together they are more code than caches and jump predictors hold, as a kernel
is. Each function works on a window of one table, and calls up to two others; `depth` bounds the recursion.
"""

import random

FUNCTIONS = 4000
TABLE_BITS = 17
SEED = 20


def statement(rng: random.Random) -> str:
    number = rng.randrange(1, 60000)
    slot = rng.randrange(8)
    return rng.choice((
        f"if (y & {1 << rng.randrange(12)}) y += p[{slot}]; else y ^= {number};",
        f"y = y << {rng.randrange(1, 20)} | y >> {rng.randrange(1, 40)};",
        f"if ((uint32_t)y < {rng.randrange(1 << 31)}u) {{ p[{slot}] = y; x -= y; }}",
        f"for (unsigned k = 0; k < {rng.randrange(2, 6)}; k++) y += ((uint8_t *)p)[k];",
        f"y = y * {number} + x;",
        f"((uint32_t *)p)[{slot}] += {number};",
        f"x = (uint32_t)y - UINT64_C({number}); if ((int64_t)x < 0) x = -x;",
    ))


def function(index: int, rng: random.Random) -> str:
    window = rng.choice((6, 9, 9, 11, 13, TABLE_BITS))
    stride = rng.randrange(3, 99999) | 1
    lines = [
        "(void)depth;",
        f"uint64_t *p = &table[(x * {stride} + {rng.randrange(1 << TABLE_BITS)}) & {(1 << window) - 1}];",
        "uint64_t y = *p + x;",
    ]
    lines += (statement(rng) for _ in range(rng.randrange(2, 6)))
    calls = rng.choice((0, 1, 1, 2))
    lines += (f"if (depth) y += f{rng.randrange(FUNCTIONS)}(y ^ x, depth - 1);" for _ in range(calls))
    body = "\n    ".join(lines)
    return f"static uint64_t f{index}(uint64_t x, unsigned depth)\n{{\n    {body}\n    return y ^ x;\n}}"


def main() -> None:
    rng = random.Random(SEED)
    names = [f"f{index}" for index in range(FUNCTIONS)]
    print("/* Written by footprint.py. */")
    print('#include "loops.h"')
    # Eight words past the end: a function may touch p[7].
    print(f"static uint64_t table[(1 << {TABLE_BITS}) + 8];")
    print("\n".join(f"static __attribute__((noinline)) uint64_t {name}(uint64_t, unsigned);" for name in names))
    print("\n".join(function(index, rng) for index in range(FUNCTIONS)))
    print(f"static uint64_t (*const all[{FUNCTIONS}])(uint64_t, unsigned) = {{{', '.join(names)}}};")
    print("""uint64_t loop_footprint(uint64_t count)
{
    uint64_t sum = 1;
    uint32_t pick = 12345;
    for (uint64_t round = 0; round < count; round++) {
        pick = pick * 1664525u + 1013904223u;
        sum ^= all[(pick >> 8) % (sizeof all / sizeof all[0])](sum + round, 6);
    }
    return sum;
}""")


if __name__ == "__main__":
    main()
