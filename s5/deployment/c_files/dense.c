/* --- Linear layers ----------------------------------------------------------------------------------------------- */

static int32_t dot_values(const int16_t *values, const int8_t *weights, int count)
{
    int32_t sum = 0;
    for (int i = 0; i < count; i++)
        sum += (int32_t)values[i] * weights[i];
    return sum;
}
