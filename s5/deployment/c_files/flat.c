/* --- A linear layer that reads the maps row by row --------------------------------------------------------------- */

static void add_row(const uint8_t *row, int number)
{
    const int8_t *weights = $weights + number * $count;
    for (int output = 0; output < $outputs; output++)
        sums[output] += dot(row, $zero, weights + output * $height * $count, $count);
}
