/* --- The sum of each map, weighted by position (global depthwise convolution) ------------------------------------ */

static int32_t sums[$channels];

static void add_row(const uint8_t *row, int number)
{
    const int8_t *weights = head_weights + number * $width * $channels;
    for (int x = 0; x < $width; x++)
        for (int channel = 0; channel < $channels; channel++)
            sums[channel] += (row[x * $channels + channel] - $zero) * weights[x * $channels + channel];
}

static void finish_sums(int16_t *values)
{
    for (int channel = 0; channel < $channels; channel++)
        values[channel] = (int16_t)clamp(divide((int64_t)sums[channel] * head_multipliers[channel], $shift),
                                         -$limit, $limit);
}
