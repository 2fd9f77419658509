/* Three digits of MNIST and the answers that $name.c must give: the same logits, bit by bit, on every processor. */
#include <stdio.h>
#include "$name.h"

static const IN_FLASH uint8_t images[3][784] = {
$images
};

static const IN_FLASH int32_t expected_logits[3][10] = {
$logits
};

static const IN_FLASH int8_t expected_digits[3] = {$digits};

/* 0 if all answers are as expected, else the number of the first image whose are not. `image` is overwritten. */
int ${name}_check(uint8_t image[784])
{
    for (int number = 0; number < 3; number++) {
        int32_t logits[10];
        for (int i = 0; i < 784; i++)
            image[i] = images[number][i];
        ${name}_logits(image, logits);
        int is_right = ${name}_predict(image) == expected_digits[number];
        for (int i = 0; i < 10; i++)
            is_right &= logits[i] == expected_logits[number][i];
        if (!is_right)
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
