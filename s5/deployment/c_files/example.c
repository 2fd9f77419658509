/* Three digits of MNIST and the answers that $name.c must give: the same logits, bit by bit, on every processor. */
#include <stdio.h>
#include "$name.h"

#ifdef __FLASH /* AVR: constants stay in flash */
#define FLASH __flash
#else
#define FLASH
#endif

static const FLASH uint8_t images[3][784] = {
$images
};

static const FLASH int32_t expected_logits[3][10] = {
$logits
};

static const FLASH int8_t expected_digits[3] = {$digits};

/* 0: all answers are as expected; else 1 to 3, the first image whose are not. `image` is overwritten. */
int ${name}_check(uint8_t image[784])
{
    int32_t logits[10];
    for (int number = 0; number < 3; number++) {
        for (int i = 0; i < 784; i++)
            image[i] = images[number][i];
        ${name}_logits(image, logits);
        for (int i = 0; i < 10; i++)
            if (logits[i] != expected_logits[number][i])
                return number + 1;
        if (${name}_predict(image) != expected_digits[number])
            return number + 1;
    }
    return 0;
}

#ifndef ARDUINO /* there, $name.ino calls ${name}_check */
int main(void)
{
    static uint8_t image[784];
    const int wrong = ${name}_check(image);
    if (wrong)
        printf("FAIL: the answer to image %d differs\n", wrong);
    else
        printf("PASS\n");
    return wrong;
}
#endif
