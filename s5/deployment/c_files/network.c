/* Recognises handwritten digits: see $name.h. Written by code: change the network, not this file. */
#include "$name.h"

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

/* What follows the sum of a channel, BatchNorm and the scale of the output: sum * multiplier + bias * 2^bias_shift. */
typedef struct {
    int16_t multiplier, bias;
} Channel;

static int64_t scaled(int32_t sum, const Channel *channel, int bias_shift)
{
    return (int64_t)sum * channel->multiplier + channel->bias * ((int64_t)1 << bias_shift);
}

$deskew/* --- Weights ----------------------------------------------------------------------------------------------------- */

$weights

$head

/* --- Convolutions --------------------------------------------------------------------------------------------------
 *
 * Maps are never stored whole. Each layer keeps the last few rows of its input, and as soon as a row is complete, the
 * deepest layer that can compute a row of its output does.
 */
#define LAYERS $layer_count
#define LARGEST_SIDE $largest_side /* of a kernel */
#define CROP $crop         /* pixels of the image's border that are left out */

typedef struct {
    const int8_t *weights;         /* [output][row][column][input]; depthwise: one input */
    const Channel *channels;       /* [output] */
    uint8_t *rows;                 /* the last rows of the input, [row % slots][column][input]; layer 0 has the image */
    int32_t residual_multiplier;   /* of what is added */
    int16_t residual;              /* the layer whose input is added to the output; -1: none */
    uint16_t inputs, outputs;      /* channels */
    uint8_t height, width;         /* of the input */
    uint8_t rows_out, columns_out; /* of the output before pooling, without those that pooling leaves out */
    uint8_t side, stride, padding; /* of the kernel */
    uint8_t pool;                  /* each value is the largest of pool x pool */
    uint8_t slots;                 /* rows that are kept of the input */
    uint8_t depthwise;             /* 1: each output has one input */
    uint8_t relu;                  /* 1: ReLU before the addition */
    uint8_t zero_in, zero_out;     /* the bytes that stand for 0 */
    uint8_t shift, bias_shift;     /* see output_value */
} Layer;

$buffers

static const Layer layers[LAYERS] = {
$layers
};

static const uint8_t *input_image;
static uint8_t rows_done[LAYERS]; /* of each layer's output, before pooling */

static const uint8_t *input_row(int number, int row)
{
    const Layer *layer = &layers[number];
    if (number == 0)
        return input_image + (CROP + row) * 28 + CROP;
    return layer->rows + row % layer->slots * layer->width * layer->inputs;
}

static uint8_t *output_row(int number, int row)
{
    const Layer *next = &layers[number + 1];
    if (number + 1 == LAYERS)
        return $last_row;
    return next->rows + row % next->slots * next->width * next->inputs;
}

static int at_least(int low, int value) { return value < low ? low : value; }
static int at_most(int high, int value) { return value > high ? high : value; }

/* `residual` points to the value that is added, if any. */
static uint8_t output_value(const Layer *layer, int output, int32_t sum, const uint8_t *residual)
{
    int64_t value = scaled(sum, &layer->channels[output], layer->bias_shift);
    if (residual) {
        if (layer->relu && value < 0)
            value = 0;
        value += (int64_t)layer->residual_multiplier * (*residual - layers[layer->residual].zero_in);
    }
    return (uint8_t)clamp(layer->zero_out + divide(value, layer->shift), 0, 255);
}

static void convolve_row(int number, int row)
{
    const Layer *layer = &layers[number];
    const int side = layer->side, inputs = layer->inputs, zero = layer->zero_in, depthwise = layer->depthwise;
    const int count = depthwise ? 1 : inputs; /* of the channels that an output reads */
    const uint8_t *residual = layer->residual < 0 ? 0 : input_row(layer->residual, row);
    uint8_t *out = output_row(number, row / layer->pool);
    /* The part of the kernel that is inside the map: top, bottom, left, right; `rows` are the rows of the map. */
    const int first_row = row * layer->stride - layer->padding;
    const int top = at_least(0, -first_row), bottom = at_most(side, layer->height - first_row);
    const uint8_t *rows[LARGEST_SIDE];
    for (int y = top; y < bottom; y++)
        rows[y] = input_row(number, first_row + y);
    for (int column = 0; column < layer->columns_out; column++) {
        const int first_column = column * layer->stride - layer->padding;
        const int left = at_least(0, -first_column), right = at_most(side, layer->width - first_column);
        uint8_t *pixel = out + column / layer->pool * layer->outputs;
        const int first = row % layer->pool == 0 && column % layer->pool == 0; /* of those that are pooled */
        for (int output = 0; output < layer->outputs; output++) {
            const int8_t *weights = layer->weights + (output * side * side + left) * count;
            int32_t sum = 0;
            for (int y = top; y < bottom; y++) {
                const uint8_t *bytes = rows[y] + (first_column + left) * inputs;
                const int8_t *row_weights = weights + y * side * count;
                if (!depthwise)
                    sum += dot(bytes, zero, row_weights, (right - left) * inputs);
                else
                    for (int x = 0; x < right - left; x++)
                        sum += (bytes[x * inputs + output] - zero) * row_weights[x];
            }
            const uint8_t value =
                output_value(layer, output, sum, residual ? residual + column * layer->outputs + output : 0);
            if (first || value > pixel[output])
                pixel[output] = value;
        }
    }
}

/* 1 if all rows are there from which the next row of a layer's output is computed. */
static int is_ready(int number)
{
    const Layer *layer = &layers[number];
    const int there = number ? rows_done[number - 1] / layers[number - 1].pool : layer->height;
    const int needed = rows_done[number] * layer->stride - layer->padding + layer->side;
    return rows_done[number] < layer->rows_out && there >= at_most(layer->height, needed);
}

static void run_convolutions(void)
{
    for (int number = 0; number < LAYERS; number++)
        rows_done[number] = 0;
    for (int number = 0; number >= 0;) {
        if (!is_ready(number)) {
            number--;
            continue;
        }
        convolve_row(number, rows_done[number]++);
        if (rows_done[number] % layers[number].pool == 0) { /* a row of the next layer's input is complete */
            if (number + 1 < LAYERS)
                number++;
            else
                add_row($last_row, rows_done[number] / layers[number].pool - 1);
        }
    }
}

/* --- The network ------------------------------------------------------------------------------------------------- */

void ${name}_logits(const uint8_t image[784], int32_t logits[10])
{
    static int16_t values[$channels];
    for (int channel = 0; channel < $channels; channel++)
        sums[channel] = 0;
    input_image = $image;
    run_convolutions();
    finish_sums(values);
    for (int output = 0; output < 10; output++) {
        logits[output] = linear_biases[output];
        for (int channel = 0; channel < $channels; channel++)
            logits[output] += (int32_t)values[channel] * linear_weights[output * $channels + channel];
    }
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
