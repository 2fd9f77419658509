/* --- Arithmetic -------------------------------------------------------------------------------------------------- */

/* The sum of bytes times weights; `zero` is the byte that stands for 0. */
static int32_t dot(const uint8_t *bytes, int32_t zero, const int8_t *weights, int count)
{
    int32_t sum = 0;
    for (int i = 0; i < count; i++)
        sum += (bytes[i] - zero) * weights[i];
    return sum;
}

/* value / 2^shift, to the nearest integer, halves up. C leaves the right shift of negative numbers to the compiler. */
static int64_t divide(int64_t value, int shift)
{
    value += (int64_t)1 << (shift - 1);
    return value < 0 ? ~(~value >> shift) : value >> shift;
}

static int32_t clamp(int64_t value, int32_t low, int32_t high)
{
    return value < low ? low : value > high ? high : (int32_t)value;
}
