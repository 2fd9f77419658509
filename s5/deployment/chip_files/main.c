/* Runs the exported network on an emulated Cortex-M: prints wrong logits, ticks for an image, and bytes of stack. */

#include <stdint.h>
#include "net.h" /* of the exported folder */
#include "images.h"

extern uint32_t start_of_bss, end_of_bss, end_of_ram;
static uint8_t image[784];

static void call(int function, const void *argument) /* of the emulator, known as semihosting */
{
    register int r0 __asm__("r0") = function;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

static void print(uint32_t value)
{
    char text[12] = {0}, *digit = text + 11;
    *--digit = ' ';
    do
        *--digit = '0' + value % 10;
    while (value /= 10);
    call(4, digit);
}

static void start(void)
{
    volatile uint32_t *const timer = (volatile uint32_t *)0xE000E010;
    uint32_t here, wrong = 0, ticks = 0, *free = &end_of_bss;
    for (uint32_t *word = &start_of_bss; word < &here - 64; word++)
        *word = word < &end_of_bss ? 0 : 0xdeadbeef;
    timer[1] = 0xffffff, timer[2] = 0, timer[0] = 5;
    for (int number = 0; number < COUNT; number++) {
        int32_t logits[10];
        for (int i = 0; i < 784; i++)
            image[i] = images[number][i];
        const uint32_t before = timer[2];
        net_logits(image, logits);
        ticks += (before - timer[2]) & 0xffffff;
        for (int i = 0; i < 10; i++)
            wrong += logits[i] != expected[number][i];
        net_predict(image); /* it needs the most stack */
    }
    while (*free == 0xdeadbeef)
        free++;
    print(wrong), print(ticks / COUNT), print((uint32_t)&here - (uint32_t)free);
    call(0x18, (void *)0x20026);
}

static void fault(void) { call(4, "fault"), call(0x18, (void *)0x20023); }

__attribute__((section(".vectors"), used)) static void *const vectors[] = {
    &end_of_ram, (void *)start, (void *)fault, (void *)fault, (void *)fault, (void *)fault, (void *)fault};
