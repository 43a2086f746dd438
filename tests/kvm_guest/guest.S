/* A long-mode guest: serial port, string output, a virtio device behind virtio-mmio, an interrupt through the I/O APIC,
 * a reset, and an end with a checked status. Entered as a PVH kernel: 32 bits, paging off (Xen, docs/misc/pvh.pandoc).
 *
 * It ends through isa-debug-exit with PASSED, or with the number of the step that failed.
 */
        .intel_syntax noprefix

        .set    SERIAL, 0x3f8
        .set    DEBUGCON, 0x402
        .set    DEBUG_EXIT, 0x501
        .set    VIRTIO, 0xfeb00000
        .set    VIRTIO_GSI, 16
        .set    IOAPIC, 0xfec00000
        .set    LAPIC, 0xfee00000
        .set    VECTOR, 0x40
        .set    RESET_CONTROL, 0xcf9
        .set    MARK, 0x300000          /* RAM that nobody else uses */
        .set    PASSED, 0x15
        .set    BUFFER_LEN, 64

        .section .note.pvh, "a", @note
        .long   4, 4, 18                /* XEN_ELFNOTE_PHYS32_ENTRY */
        .asciz  "Xen"
        .long   start

        .text
        .code32
        .globl  start
start:
        cld
        mov     ebp, ebx                /* hvm_start_info */
        mov     esp, offset stack_end
        /* Four directories of 2 MiB pages: all of the first 4 GiB, as they are. */
        mov     edi, offset directories
        mov     eax, 0x83
        mov     ecx, 2048
1:      mov     [edi], eax
        mov     dword ptr [edi + 4], 0
        add     eax, 0x200000
        add     edi, 8
        dec     ecx
        jnz     1b
        mov     eax, offset pml4
        mov     ecx, offset pdpt + 3
        mov     [eax], ecx
        mov     eax, offset pdpt
        mov     ecx, offset directories + 3
        mov     edx, 4
2:      mov     [eax], ecx
        add     ecx, 0x1000
        add     eax, 8
        dec     edx
        jnz     2b

        mov     eax, offset pml4
        mov     cr3, eax
        mov     eax, cr4
        or      eax, 0x20               /* PAE */
        mov     cr4, eax
        mov     ecx, 0xc0000080         /* EFER.LME */
        rdmsr
        or      eax, 0x100
        wrmsr
        mov     eax, cr0
        or      eax, 0x80000000         /* PG */
        mov     cr0, eax
        lgdt    [gdt_pointer]
        .byte   0xea                    /* ljmp 8:long_mode; the assembler has no Intel spelling that all versions take */
        .long   long_mode
        .word   8

        .code64
long_mode:
        mov     eax, 0x10
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        mov     esp, offset stack_end

        /* Step 1: a line over the serial port, a byte at a time. */
        mov     rsi, offset serial_text
print:  mov     dx, SERIAL + 5
ready:  in      al, dx
        test    al, 0x20
        jz      ready
        mov     al, [rsi]
        test    al, al
        jz      printed
        mov     dx, SERIAL
        out     dx, al
        inc     rsi
        jmp     print
printed:

        /* Step 2: a line with one string instruction. */
        mov     rsi, offset string_text
        mov     ecx, string_end - string_text
        mov     dx, DEBUGCON
        rep outsb
        mov     ebx, 2
        cmp     rsi, offset string_end
        jne     failed

        /* Step 3: virtio-mmio, version 2, an entropy device. */
        mov     ebx, 3
        mov     edi, VIRTIO
        cmp     dword ptr [rdi], 0x74726976
        jne     failed
        cmp     dword ptr [rdi + 4], 2
        jne     failed
        cmp     dword ptr [rdi + 8], 4
        jne     failed

        /* Step 4: features. Reset, ACKNOWLEDGE, DRIVER, VIRTIO_F_VERSION_1, FEATURES_OK. */
        mov     ebx, 4
        mov     dword ptr [rdi + 0x70], 0
        mov     dword ptr [rdi + 0x70], 1
        mov     dword ptr [rdi + 0x70], 3
        mov     dword ptr [rdi + 0x14], 1
        mov     eax, [rdi + 0x10]
        test    eax, 1
        jz      failed
        mov     dword ptr [rdi + 0x24], 0
        mov     dword ptr [rdi + 0x20], 0
        mov     dword ptr [rdi + 0x24], 1
        mov     dword ptr [rdi + 0x20], 1
        mov     dword ptr [rdi + 0x70], 0xb
        mov     eax, [rdi + 0x70]
        test    eax, 8
        jz      failed

        /* Step 5: the queue, with one buffer for the device to fill. */
        mov     ebx, 5
        mov     dword ptr [rdi + 0x30], 0
        mov     eax, [rdi + 0x34]
        cmp     eax, 8
        jb      failed
        mov     dword ptr [rdi + 0x38], 8
        mov     eax, offset descriptors
        mov     [rdi + 0x80], eax
        mov     dword ptr [rdi + 0x84], 0
        mov     eax, offset available
        mov     [rdi + 0x90], eax
        mov     dword ptr [rdi + 0x94], 0
        mov     eax, offset used
        mov     [rdi + 0xa0], eax
        mov     dword ptr [rdi + 0xa4], 0
        mov     dword ptr [rdi + 0x44], 1
        mov     dword ptr [rdi + 0x70], 0xf
        mov     eax, offset buffer
        mov     [descriptors], rax
        mov     dword ptr [descriptors + 8], BUFFER_LEN
        mov     dword ptr [descriptors + 12], 2 /* VIRTQ_DESC_F_WRITE */
        mov     dword ptr [available], 0x10000  /* one entry: descriptor 0 */

        /* Step 6: the device's interrupt through the I/O APIC, which also ends HLT. */
        mov     ebx, 6
        mov     eax, offset interrupt
        mov     rdi, offset idt + VECTOR * 16
        mov     [rdi], ax
        mov     word ptr [rdi + 2], 8
        mov     word ptr [rdi + 4], 0x8e00
        shr     eax, 16
        mov     [rdi + 6], ax
        lidt    [idt_pointer]
        mov     edi, LAPIC
        mov     dword ptr [rdi + 0xf0], 0x1ff   /* software enable, spurious vector 0xff */
        mov     dword ptr [rdi + 0x80], 0       /* every priority */
        mov     edi, IOAPIC
        mov     dword ptr [rdi], 0x10 + 2 * VIRTIO_GSI
        mov     eax, [rdi + 0x10]
        cmp     eax, 0x10000                    /* masked, as after power-on or reset */
        jne     failed
        mov     dword ptr [rdi + 0x10], VECTOR | 0x8000 /* level triggered */
        mov     dword ptr [rdi], 0x11 + 2 * VIRTIO_GSI
        mov     dword ptr [rdi + 0x10], 0
        mov     edi, VIRTIO
        mov     dword ptr [rdi + 0x50], 0       /* notify queue 0 */
wait:   cli
        cmp     dword ptr [interrupts], 0
        jne     interrupted
        sti
        hlt
        jmp     wait
interrupted:

        /* Step 7: one element used, of the whole length, and it is not zero any more. */
        mov     ebx, 7
        cmp     word ptr [used + 2], 1
        jne     failed
        cmp     dword ptr [used + 8], BUFFER_LEN
        jne     failed
        mov     rsi, offset buffer
        mov     ecx, BUFFER_LEN / 8
        xor     eax, eax
3:      or      rax, [rsi]
        add     rsi, 8
        dec     ecx
        jnz     3b
        test    rax, rax
        jz      failed

        /* With a command line that begins with 'r': all of it once more after a reset. RAM remembers. */
        mov     ebp, ebp
        mov     eax, [rbp + 24]                 /* hvm_start_info.cmdline_paddr */
        test    eax, eax
        jz      passed
        cmp     byte ptr [rax], 'r'
        jne     passed
        cmp     dword ptr [MARK], 0x55aa
        je      passed
        mov     dword ptr [MARK], 0x55aa
        mov     dx, RESET_CONTROL
        mov     al, 6
        out     dx, al
5:      hlt
        jmp     5b
passed:
        mov     ebx, PASSED
failed: mov     eax, ebx
        mov     dx, DEBUG_EXIT
        out     dx, al
stop:   hlt
        jmp     stop

/* Takes the cause away before it tells the local APIC: the line is level triggered. */
interrupt:
        push    rax
        push    rdi
        mov     edi, VIRTIO
        mov     eax, [rdi + 0x60]
        mov     [rdi + 0x64], eax
        test    eax, 1
        jz      4f
        inc     dword ptr [interrupts]
4:      mov     edi, LAPIC
        mov     dword ptr [rdi + 0xb0], 0
        pop     rdi
        pop     rax
        iretq

        .data
        .balign 8
gdt:    .quad   0
        .quad   0x00209b0000000000      /* 64-bit code */
        .quad   0x00cf93000000ffff      /* data */
gdt_pointer:
        .word   23
        .long   gdt
idt_pointer:
        .word   0x4ff
        .quad   idt
serial_text:
        .asciz  "serial: long mode is up\n"
string_text:
        .ascii  "string: one instruction, many bytes\n"
string_end:
        .balign 4
interrupts:
        .long   0

        .bss
        .balign 4096
pml4:           .skip   4096
pdpt:           .skip   4096
directories:    .skip   4 * 4096
descriptors:    .skip   8 * 16
        .balign 64
available:      .skip   64
        .balign 64
used:           .skip   128
buffer:         .skip   BUFFER_LEN
        .balign 16
idt:            .skip   0x500
        .skip   4096
stack_end:
        .section .note.GNU-stack, "", @progbits
