/* --- The network ------------------------------------------------------------------------------------------------- */

void ${name}_logits(const uint8_t image[784], int32_t logits[10])
{
$evaluate
}

int ${name}_predict(const uint8_t image[784])
{
    int32_t logits[10];
    int digit = 0;
    ${name}_logits(image, logits);
    for (int i = 1; i < 10; i++)
        if (logits[i] > logits[digit])
            digit = i;
    return digit;
}
