/* --- The image upright, in the middle and equally high -----------------------------------------------------------
 *
 * Slant, centre and height come from the sums of pixels times their places (moments). Lengths are in pixels times 2^16.
 */
static uint8_t upright[784];

static int32_t clamp(int64_t value, int32_t low, int32_t high)
{
    return value < low ? low : value > high ? high : (int32_t)value;
}

/* value / 2^shift, rounded down. C leaves the right shift of negative numbers to the compiler. */
static int32_t shift_right(int64_t value, int shift)
{
    return (int32_t)(value < 0 ? ~(~value >> shift) : value >> shift);
}

static int64_t square_root(int64_t value)
{
    int64_t root = 0;
    for (int64_t bit = (int64_t)1 << 30; bit; bit /= 2)
        if ((root + bit) * (root + bit) <= value)
            root += bit;
    return root;
}

static int32_t pixel(const uint8_t *image, int row, int column)
{
    return row < 0 || row > 27 || column < 0 || column > 27 ? 0 : image[row * 28 + column];
}

/* The value at a place between four pixels. */
static uint8_t sample(const uint8_t *image, int32_t row, int32_t column)
{
    const int top = shift_right(row, 16), left = shift_right(column, 16);
    const int32_t down = (row & 0xffff) >> 8, right = (column & 0xffff) >> 8;
    const int32_t above = pixel(image, top, left) * (256 - right) + pixel(image, top, left + 1) * right;
    const int32_t below = pixel(image, top + 1, left) * (256 - right) + pixel(image, top + 1, left + 1) * right;
    return (uint8_t)((above * (256 - down) + below * down + 32768) >> 16);
}

static const uint8_t *deskew(const uint8_t *image)
{
    int32_t mass = 0, x = 0, y = 0, yy = 0, xy = 0;
    for (int row = 0; row < 28; row++)
        for (int column = 0; column < 28; column++) {
            const int32_t ink = image[row * 28 + column];
            mass += ink;
            x += ink * column;
            y += ink * row;
            yy += ink * (row * row);
            xy += ink * (row * column);
        }
    if (mass == 0)
        mass = 1;
    const int64_t variance = (int64_t)mass * yy - (int64_t)y * y; /* times mass x mass */
    const int64_t covariance = ((int64_t)mass * xy - (int64_t)x * y) * 65536;
    const int64_t divisor = variance ? variance : 1;
    const int32_t slant = clamp(covariance < 0 ? ~(~covariance / divisor) : covariance / divisor,
                                -$max_slant, $max_slant);
    const int64_t deviation = square_root(variance * 65536) * 256 / mass;
    const int32_t scale = clamp(deviation * 256 / $height, $min_scale, $max_scale);
    const int32_t middle_x = (int32_t)((int64_t)x * 65536 / mass), middle_y = (int32_t)((int64_t)y * 65536 / mass);
    for (int row = 0; row < 28; row++) {
        const int32_t down = shift_right(scale * (2 * row - 27), 1);
        const int32_t start = middle_x + shift_right((int64_t)slant * down, 16);
        for (int column = 0; column < 28; column++)
            upright[row * 28 + column] =
                sample(image, middle_y + down, start + shift_right(scale * (2 * column - 27), 1));
    }
    return upright;
}
