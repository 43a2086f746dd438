/* The guest: reads its order from the kernel command line, prints the answer on COM1, leaves through isa-debug-exit. */
#include "loops.h"

enum { COM1 = 0x3f8, LINE_STATUS = COM1 + 5, TRANSMITTER_EMPTY = 1 << 5, DEBUG_EXIT = 0xf4 };
/* isa-debug-exit turns value v into exit status 2 * v + 1. */
enum { EXIT_DONE = 0x10, EXIT_BAD_ORDER = 0x11 };

/* The start of struct hvm_start_info (Xen public/arch-x86/hvm/start_info.h). */
struct start_info {
    uint32_t magic, version, flags, module_count;
    uint64_t modules, command_line;
};
enum { START_INFO_MAGIC = 0x336ec578 };

static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static void print(const char *text)
{
    for (; *text; text++) {
        while (!(in8(LINE_STATUS) & TRANSMITTER_EMPTY))
            ;
        out8(COM1, (uint8_t)*text);
    }
}

static void print_number(uint64_t number, unsigned base, unsigned width)
{
    char digits[24], *at = digits + sizeof digits;
    *--at = 0;
    do {
        *--at = "0123456789abcdef"[number % base];
        number /= base;
    } while (number || at > digits + sizeof digits - 1 - width);
    print(at);
}

/* gcc may call these for assignments of structures, even in freestanding code. */
void *memcpy(void *to, const void *from, size_t size)
{
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
    return start;
}

void *memset(void *to, int value, size_t size)
{
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
    return start;
}

void guest_main(const struct start_info *info)
{
    char name[16];
    uint64_t count, checksum;
    const char *order = info->magic == START_INFO_MAGIC ? (const char *)info->command_line : "";
    if (!read_order(order, name, sizeof name, &count) || !run_loop(name, count, &checksum)) {
        print("bench: the command line must be NAME COUNT\r\n");
        out8(DEBUG_EXIT, EXIT_BAD_ORDER);
        return;
    }
    print(name);
    print(" ");
    print_number(count, 10, 1);
    print(" ");
    print_number(checksum, 16, 16);
    print("\r\n");
    out8(DEBUG_EXIT, EXIT_DONE);
}
