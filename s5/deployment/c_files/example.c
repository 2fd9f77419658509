/* Three digits of MNIST and the answers that $name.c must give: the same logits, bit by bit, on every processor. */
#include <stdio.h>
#include "$name.h"

$expected

/* 0 if all answers are as expected, else the number of the first image whose are not. `image` is overwritten. */
int ${name}_check(uint8_t image[784])
{
    for (int number = 0; number < 3; number++) {
        int32_t found[10];
        for (int i = 0; i < 784; i++)
            image[i] = images[number * 784 + i];
        ${name}_logits(image, found);
        int is_right = ${name}_predict(image) == digits[number];
        for (int i = 0; i < 10; i++)
            is_right &= found[i] == logits[number * 10 + i];
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
