/* What follows the sum of a channel, BatchNorm and the scale of the output: sum * multiplier + bias * 2^bias_shift. */
typedef struct {
    int16_t multiplier, bias;
} Channel;

static int64_t scaled(int32_t sum, const Channel *channel, int bias_shift)
{
    return (int64_t)sum * channel->multiplier + channel->bias * ((int64_t)1 << bias_shift);
}
