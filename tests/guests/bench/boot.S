/* PVH entry (Xen public/arch-x86/hvm/start_info.h): 32-bit protected mode, paging off, EBX = start info.
   Turns on long mode with the first GiB mapped one to one in 2 MiB pages, and calls guest_main(start_info). */

        .set    CR0_PE_MP_PG, 0x80000003
        .set    CR0_EM, 1 << 2
        .set    CR4_PAE_OSFXSR_OSXMMEXCPT, 0x620
        .set    MSR_EFER, 0xc0000080
        .set    EFER_LME, 1 << 8
        .set    CODE64, 8
        .set    DATA, 16

        .section .note.pvh, "a", @note
        .long   4, 4, 18                /* XEN_ELFNOTE_PHYS32_ENTRY */
        .asciz  "Xen"
        .long   start32

        .section .boot, "ax"
        .code32
        .globl  start32
start32:
        cli
        mov     %ebx, %edi
        mov     $pml4, %eax
        mov     %eax, %cr3
        mov     $CR4_PAE_OSFXSR_OSXMMEXCPT, %eax
        mov     %eax, %cr4
        mov     $MSR_EFER, %ecx
        rdmsr
        or      $EFER_LME, %eax
        wrmsr
        mov     %cr0, %eax
        and     $~CR0_EM, %eax
        or      $CR0_PE_MP_PG, %eax
        mov     %eax, %cr0
        lgdt    gdtr
        ljmp    $CODE64, $start64

        .code64
start64:
        mov     $DATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $stack_top, %esp
        mov     %edi, %edi              /* zero-extends the start info's address */
        call    guest_main
halt:   hlt
        jmp     halt

        .section .rodata
        .align  8
gdt:    .quad   0
        .quad   0x00af9b000000ffff      /* CODE64 */
        .quad   0x00cf93000000ffff      /* DATA */
gdtr:   .word   . - gdt - 1
        .long   gdt

        .section .data
        .align  4096
pml4:   .quad   pdpt + 3
        .fill   511, 8, 0
pdpt:   .quad   pd + 3
        .fill   511, 8, 0
pd:
        .set    page, 0
        .rept   512
        .quad   (page << 21) | 0x83     /* present, writable, 2 MiB */
        .set    page, page + 1
        .endr

        .bss
        .align  16
        .skip   65536
stack_top:

        .section .note.GNU-stack, "", @progbits
