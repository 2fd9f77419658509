/* As MNIST was made: the digit is scaled to a box of 20 x 20 pixels, its centre of mass in the middle of 28 x 28. */
#include "$name.h"

#define BOX 20

/* number * size / parts, to the nearest integer, halves up: where part `number` of `parts` begins. */
static int part(int32_t number, int size, int parts) { return (int)((2 * number * size + parts) / (2 * parts)); }

int drawing_to_image(const uint8_t *drawing, int width, int height, uint8_t image[784])
{
    int top = height, bottom = 0, left = width, right = 0; /* of the ink */
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            if (drawing[(int32_t)y * width + x]) {
                top = y < top ? y : top;
                bottom = y + 1;
                left = x < left ? x : left;
                right = x + 1 > right ? x + 1 : right;
            }
    for (int i = 0; i < 784; i++)
        image[i] = 0;
    if (bottom == 0)
        return 0;

    uint16_t box[BOX][BOX]; /* the mean of a rectangle of the drawing each, times 256 */
    const int rows = bottom - top, columns = right - left, longer = rows > columns ? rows : columns;
    const int box_rows = part(BOX, rows, longer) ? part(BOX, rows, longer) : 1;
    const int box_columns = part(BOX, columns, longer) ? part(BOX, columns, longer) : 1;
    uint32_t largest = 1, mass = 0, mass_y = 0, mass_x = 0;
    for (int y = 0; y < box_rows; y++)
        for (int x = 0; x < box_columns; x++) {
            uint32_t sum = 0, count = 0;
            for (int row = part(y, rows, box_rows); row < part(y + 1, rows, box_rows); row++)
                for (int column = part(x, columns, box_columns); column < part(x + 1, columns, box_columns); column++) {
                    sum += drawing[(int32_t)(top + row) * width + left + column];
                    count++;
                }
            const uint32_t value = count ? (sum * 256 + count - 1) / count : 0;
            box[y][x] = (uint16_t)value;
            largest = value > largest ? value : largest;
            mass += value;
            mass_y += value * y;
            mass_x += value * x;
        }
    const int shift_y = 14 - (int)((mass_y + mass - 1) / mass), shift_x = 14 - (int)((mass_x + mass - 1) / mass);
    for (int y = 0; y < 28; y++)
        for (int x = 0; x < 28; x++) {
            const int row = y - shift_y, column = x - shift_x;
            if (row >= 0 && row < box_rows && column >= 0 && column < box_columns)
                image[y * 28 + x] = (uint8_t)((box[row][column] * (uint32_t)255 + largest / 2) / largest);
        }
    return 1;
}
