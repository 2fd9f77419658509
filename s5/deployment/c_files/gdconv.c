/* --- The sum of each map, weighted by position (global depthwise convolution) ------------------------------------ */

static int32_t sums[$channels];

static void add_row(const uint8_t *row, int number)
{
    const IN_FLASH int8_t *weights = head_weights + number * ($width * $channels);
    for (int x = 0; x < $width; x++)
        for (int channel = 0; channel < $channels; channel++)
            sums[channel] += (*row++ - $zero) * *weights++;
}

/* Put the sums in a new scale, to the nearest integer, from -$limit to $limit. */
static void finish_sums(void)
{
    const int64_t offset = ((int64_t)$limit << $head_shift) + ((int32_t)1 << ($head_shift - 1)); /* so that none is negative */
    for (int channel = 0; channel < $channels; channel++) {
        const int64_t value = (int64_t)sums[channel] * head_multipliers[channel] + offset;
        const int64_t scaled = value < 0 ? 0 : value >> $head_shift;
        sums[channel] = (int32_t)(scaled > 2 * (int32_t)$limit ? $limit : scaled - $limit);
    }
}
