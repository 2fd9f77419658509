/* Recognises handwritten digits: see $name.h. Written by code: change the network, not this file. */
#include "$name.h"

#if defined(__GNUC__) && !defined(__clang__) /* -Os, the default of makers' tools, would keep sums in memory */
#define FAST __attribute__((optimize("O2"), noinline))
#else
#define FAST
#endif

static int32_t at_least(int32_t low, int32_t value) { return value < low ? low : value; }
static int32_t at_most(int32_t high, int32_t value) { return value > high ? high : value; }

$deskew/* --- Weights ----------------------------------------------------------------------------------------------------- */

/* What follows the sum of a channel: BatchNorm and the scale of the output. */
typedef struct {
    int16_t multiplier, bias;
} Channel;

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
#define DEPTHWISE $depthwise    /* 1: some convolutions are */
#define ADDITIONS $additions    /* 1: some layers add an earlier map */

typedef struct {
    const IN_FLASH int8_t *weights;   /* [row][column][input][output]; depthwise: one input */
    const IN_FLASH Channel *channels; /* [output] */
    uint8_t *rows;                    /* the last rows of the input, [row % slots][column][input]; layer 0: none */
    int32_t offset;                   /* of all biases: rounding, and the byte of the output that stands for 0 */
    int32_t residual_multiplier;      /* of the map that is added; 0: none is */
    uint16_t inputs, outputs;         /* channels */
    uint8_t height, width;            /* of the input */
    uint8_t rows_out, columns_out;    /* of the output before pooling, without those that pooling leaves out */
    uint8_t side, padding;            /* of the kernel */
    uint8_t pooled;                   /* 1: each value is the largest of 2 x 2 */
    uint8_t slots;                    /* rows that are kept of the input */
    uint8_t depthwise;                /* 1: each output has one input */
    uint8_t relu;                     /* 1: ReLU before the addition */
    uint8_t zero;                     /* the byte of the input that stands for 0 */
    uint8_t residual_from;            /* 0: the input is added; 1: that of the layer before */
    uint8_t residual_zero;            /* the byte of the map that is added that stands for 0 */
    uint8_t shift, bias_shift;        /* of scale and bias_scale: see FINISH */
} Layer;

$buffers

static const IN_FLASH Layer layers[LAYERS] = {
$layers
};

static const uint8_t *input_image;
static uint8_t rows_done[LAYERS]; /* of each layer's output, before pooling */

/* A row of the input of a layer, or of the head, but not the image. */
static uint8_t *stored_row(int number, int row)
{
    if (number == LAYERS)
        return $last_row;
    return layers[number].rows + row % layers[number].slots * layers[number].width * layers[number].inputs;
}

static const uint8_t *input_row(int number, int row)
{
    return number ? stored_row(number, row) : input_image + (CROP + row) * 28 + CROP;
}

/* GROUP outputs of a layer are computed at once: their sums stay in registers. A value is, rounded down,
 *
 *     (sum * multiplier * scale + (bias + offset) * bias_scale + added * residual_multiplier * scale) / 2^32
 */
#define GROUP $group
#define EACH(DO) $each
#define START(i) int32_t sum##i = 0;
#define ADD(i) sum##i += value * weights[i];
#define ADD_OWN(i) sum##i += (bytes[i] - $own_zero) * weights[i];
#define ADD_ROWS(PRODUCTS) /* the loops of each kind of layer: what kind it is, is asked once a pixel */ \
    do { \
        const uint8_t *bytes = *row++ + first_byte, *end = bytes + row_bytes; \
        do { \
            PRODUCTS \
            weights += outputs; \
        } while (bytes != end); \
        weights += skipped; \
    } while (row != window->end);
#define FINISH(i) \
    { \
        int64_t value = (int64_t)sum##i * (channels[i].multiplier * scale); \
        value += (int64_t)(channels[i].bias + offset) * bias_scale; \
        if (ADDITIONS && layer->residual_multiplier) { \
            const int32_t added = window->residual[column * outputs + output + i] - layer->residual_zero; \
            if (layer->relu && value < zero_out) \
                value = zero_out; \
            value += (int64_t)layer->residual_multiplier * (added * scale); \
        } \
        const int32_t byte = at_least(0, at_most(255, (int32_t)((uint64_t)value >> 32))); \
        if (is_first || byte > pixel[i]) \
            pixel[i] = (uint8_t)byte; \
    }

/* The part of the kernel that is inside the map, and what its outputs are computed from. */
typedef struct {
    const uint8_t *rows[LARGEST_SIDE]; /* of the input */
    const uint8_t *const *end;         /* of these rows */
    const IN_FLASH int8_t *weights;    /* from the first of these rows and columns on */
    const uint8_t *residual;           /* the row that is added */
    uint8_t *out;                      /* the row of the output */
    uint8_t columns;                   /* of the kernel */
    uint8_t is_second_row;             /* of two that are pooled */
} Window;

/* Outputs `output` to `output` + GROUP - 1 of the pixels from `column` to before `end_column`. Registers are few, so
 * what of the layer is used only after the sums is read for each pixel; the window is not, thanks to `restrict`. */
static FAST void convolve(const IN_FLASH Layer *layer, const Window *restrict window, int output, int column,
                          int end_column)
{
    const int inputs = layer->inputs, outputs = layer->outputs;
    const int depthwise = DEPTHWISE && layer->depthwise;
    const int row_bytes = window->columns * inputs;
    const int skipped = (layer->side - window->columns) * outputs * (depthwise ? 1 : inputs); /* weights of a row */
    const IN_FLASH Channel *channels = layer->channels + output;
    const int64_t zero_out = (int64_t)layer->offset * ((int32_t)1 << layer->bias_shift);
    int first_byte = at_least(0, column - layer->padding) * inputs + (depthwise ? output : 0);
    for (; column < end_column; column++, first_byte += inputs) {
        const uint8_t *const *row = window->rows;
        const IN_FLASH int8_t *weights = window->weights + output;
        const int zero = layer->zero;
        EACH(START)
        if (depthwise)
            ADD_ROWS(EACH(ADD_OWN) bytes += outputs;)
        else if (zero)
            ADD_ROWS(const int value = *bytes++ - zero; EACH(ADD))
        else
            ADD_ROWS(const int value = *bytes++; EACH(ADD))
        const int32_t scale = (int32_t)1 << layer->shift, bias_scale = (int32_t)1 << layer->bias_shift;
        const int32_t offset = layer->offset;
        const int is_first = !(window->is_second_row | (column & layer->pooled)); /* of those that are pooled */
        uint8_t *pixel = window->out + (column >> layer->pooled) * outputs + output;
        EACH(FINISH)
    }
}

static void convolve_row(int number, int row)
{
    const IN_FLASH Layer *layer = &layers[number];
    const int side = layer->side, outputs = layer->outputs, first_row = row - layer->padding;
    const int top = at_least(0, -first_row), bottom = at_most(side, layer->height - first_row);
    Window window;
    for (int y = top; y < bottom; y++)
        window.rows[y - top] = input_row(number, first_row + y);
    window.end = window.rows + bottom - top;
    window.residual = input_row(number - layer->residual_from, row);
    window.out = stored_row(number + 1, row >> layer->pooled);
    window.is_second_row = (uint8_t)(row & layer->pooled);
    for (int column = 0, next; column < layer->columns_out; column = next) {
        const int first_column = column - layer->padding, left = at_least(0, -first_column);
        window.columns = (uint8_t)(at_most(side, layer->width - first_column) - left);
        window.weights = layer->weights + (top * side + left) * (layer->depthwise ? 1 : layer->inputs) * outputs;
        next = column + 1;
        if (window.columns == side) /* up to the last pixel with all columns of the kernel */
            next = at_most(layer->columns_out, layer->width - side + layer->padding + 1);
        for (int output = 0; output < outputs; output += GROUP) /* the last group may begin inside the one before */
            convolve(layer, &window, at_most(outputs - GROUP, output), column, next);
    }
}

/* 1 if all rows are there from which the next row of a layer's output is computed. */
static int is_ready(int number)
{
    const IN_FLASH Layer *layer = &layers[number];
    const int there = number ? rows_done[number - 1] >> layers[number - 1].pooled : layer->height;
    const int needed = rows_done[number] - layer->padding + layer->side;
    return rows_done[number] < layer->rows_out && there >= at_most(layer->height, needed);
}

static void run_convolutions(void)
{
    for (int number = 0; number < LAYERS; number++)
        rows_done[number] = 0;
    for (int number = 0; number >= 0;)
        if (number == LAYERS) {
            number--;
            add_row($last_row, (rows_done[number] >> layers[number].pooled) - 1);
        } else if (is_ready(number)) {
            convolve_row(number, rows_done[number]++);
            number += !(rows_done[number] & layers[number].pooled); /* a row of the next layer's input is complete */
        } else
            number--;
}

/* --- The network ------------------------------------------------------------------------------------------------- */

void ${name}_logits(const uint8_t image[784], int32_t logits[10])
{
    for (int channel = 0; channel < $channels; channel++)
        sums[channel] = 0;
    input_image = $image;
    run_convolutions();
    finish_sums();
    for (int output = 0; output < 10; output++) {
        logits[output] = linear_biases[output];
        for (int channel = 0; channel < $channels; channel++)
            logits[output] += sums[channel] * linear_weights[output * $channels + channel];
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
