/* The native twin of the guest: the same loops, the same line of output. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "loops.h"

int main(int argc, char **argv)
{
    uint64_t checksum;
    if (argc != 3 || !run_loop(argv[1], strtoull(argv[2], NULL, 10), &checksum)) {
        fprintf(stderr, "usage: %s NAME COUNT\n", argv[0]);
        return 2;
    }
    printf("%s %s %016" PRIx64 "\n", argv[1], argv[2], checksum);
    return 0;
}
