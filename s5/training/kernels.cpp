// BatchNorm, ReLU and max-pooling in few passes over memory, for training on a CPU. `kernels.py` calls these functions.
//
// Images are channels last, (images, height, width, channels), contiguous, of type T: float or bfloat16. Arithmetic is
// float. Sums over a batch are float within an image, then double over the images in their order: results do not
// depend on the number of threads. Few channels do not fill a vector register, so loops run over whole rows, with what
// belongs to a channel repeated along the row. Where pixels of a row are combined, the last LANES of a pixel's channels
// reach into the next pixel: rows are longer by LANES, and that part is ignored or overwritten.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using Row = std::vector<float>;

constexpr long LANES = 8;
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));

inline Lanes lanes(const float* values) {
    Lanes result;
    std::memcpy(&result, values, sizeof result);
    return result;
}

inline void put(float* target, Lanes values) { std::memcpy(target, &values, sizeof values); }

struct Shape {
    long images, height, width, channels;
    long row() const { return width * channels; }
    long image() const { return height * row(); }
};

struct bfloat16 { uint16_t bits; };

inline float load(const float* value) { return *value; }

inline float load(const bfloat16* value) {
    const uint32_t bits = uint32_t(value->bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline void store(float* target, float value) { *target = value; }

inline void store(bfloat16* target, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    target->bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to the nearest, ties to even
}

inline float relu(float value) { return 0 > value ? 0 : value; }  // in this order NaN stays NaN

Row repeat(const float* per_channel, Shape shape) {
    Row row(shape.row());
    for (long x = 0; x < shape.width; x++) std::copy_n(per_channel, shape.channels, row.data() + x * shape.channels);
    return row;
}

// Adds the values of a row to the sums of their channels.
void add_to_channels(const float* row, long size, long channels, float* sums) {
    for (long i = 0; i < size; i += channels)
        for (long c = 0; c < channels; c++) sums[c] += row[i + c];
}

// Sums over images: float (images, values) → double (values).
std::vector<double> total(const Row& per_image, long values) {
    std::vector<double> sums(values);
    for (size_t i = 0; i < per_image.size(); i += values)
        for (long v = 0; v < values; v++) sums[v] += per_image[i + v];
    return sums;
}

// What the backward pass needs of the forward pass, each (channels): normalised = (x - mean) * gain + bias.
struct Saved {
    float *mean, *scale, *gain, *bias;  // scale = 1 / standard deviation
    Saved(float* saved, long n) : mean(saved), scale(saved + n), gain(saved + 2 * n), bias(saved + 3 * n) {}
};

// Sums of x - offset and of its square over each image: (images, 2, channels).
template <class T>
Row moments(const T* inputs, const Row& offset, Shape shape, int threads) {
    const long size = shape.row();
    Row sums(shape.images * 2 * shape.channels);
#pragma omp parallel num_threads(threads)
    {
        Row sum(size), squares(size);
#pragma omp for
        for (long image = 0; image < shape.images; image++) {
            std::fill(sum.begin(), sum.end(), 0.0f);
            std::fill(squares.begin(), squares.end(), 0.0f);
            for (long y = 0; y < shape.height; y++) {
                const T* row = inputs + image * shape.image() + y * size;
#pragma omp simd
                for (long i = 0; i < size; i++) {
                    const float value = load(row + i) - offset[i];
                    sum[i] += value;
                    squares[i] += value * value;
                }
            }
            float* target = sums.data() + image * 2 * shape.channels;
            add_to_channels(sum.data(), size, shape.channels, target);
            add_to_channels(squares.data(), size, shape.channels, target + shape.channels);
        }
    }
    return sums;
}

template <class T>
void norm_forward(Shape shape, const T* inputs, T* outputs, const float* weight, const float* bias, float* running_mean,
                  float* running_variance, float* saved_values, int pools, float eps, float momentum, int threads) {
    const long channels = shape.channels, size = shape.row();
    const Saved saved(saved_values, channels);

    // With an offset near the mean: E[x²] - E[x]² would lose most digits of values far from zero.
    Row offset(channels);
    for (long c = 0; c < channels; c++) offset[c] = load(inputs + c);
    const Row sums = moments(inputs, repeat(offset.data(), shape), shape, threads);
    const std::vector<double> totals = total(sums, 2 * channels);
    const double count = double(shape.images) * shape.height * shape.width;
    for (long c = 0; c < channels; c++) {
        const double mean = totals[c] / count, variance = totals[channels + c] / count - mean * mean;
        saved.mean[c] = float(mean + offset[c]);
        saved.scale[c] = float(1 / std::sqrt(std::max(variance, 0.0) + eps));
        saved.gain[c] = weight[c] * saved.scale[c];
        saved.bias[c] = bias[c];
        running_mean[c] += momentum * (saved.mean[c] - running_mean[c]);
        running_variance[c] += momentum * float(variance * count / (count - 1) - running_variance[c]);
    }

    const Row mean = repeat(saved.mean, shape), gain = repeat(saved.gain, shape), shift = repeat(bias, shape);
    const long rows = pools ? 2 : 1, bands = shape.height / rows;
#pragma omp parallel num_threads(threads)
    {
        Row maxima(size + LANES), pooled(size / 2 + LANES);
#pragma omp for
        for (long band = 0; band < shape.images * bands; band++) {
            const T *upper = inputs + band * rows * size, *lower = upper + size;
            if (!pools) {
#pragma omp simd
                for (long i = 0; i < size; i++) {
                    store(outputs + band * size + i, relu((load(upper + i) - mean[i]) * gain[i] + shift[i]));
                }
                continue;
            }
#pragma omp simd
            for (long i = 0; i < size; i++) {
                const float a = (load(upper + i) - mean[i]) * gain[i] + shift[i];
                const float b = (load(lower + i) - mean[i]) * gain[i] + shift[i];
                maxima[i] = relu(a > b ? a : b);
            }
            for (long x = 0; x < shape.width / 2; x++) {
                for (long c = 0; c < channels; c += LANES) {  // what is written too much, the next pixel overwrites
                    const Lanes left = lanes(&maxima[2 * x * channels + c]);
                    const Lanes right = lanes(&maxima[(2 * x + 1) * channels + c]);
                    put(&pooled[x * channels + c], left > right ? left : right);
                }
            }
#pragma omp simd
            for (long i = 0; i < size / 2; i++) store(outputs + band * (size / 2) + i, pooled[i]);
        }
    }
}

// Two rows of images before pooling, and the gradient of the row after it.
struct Band {
    Row centred, normalized, gradient;  // (2, width, channels) twice, and (width / 2, channels)

    explicit Band(Shape shape)
        : centred(2 * shape.row() + LANES),
          normalized(2 * shape.row() + LANES),
          gradient(shape.row() / 2 + LANES) {}

    template <class T>
    void set(const T* values, const T* outer, const Row& mean, const Row& gain, const Row& shift, Shape shape) {
        const long size = shape.row();
        for (long y = 0; y < 2; y++) {
#pragma omp simd
            for (long i = 0; i < size; i++) {
                centred[y * size + i] = load(values + y * size + i) - mean[i];
                normalized[y * size + i] = centred[y * size + i] * gain[i] + shift[i];
            }
        }
#pragma omp simd
        for (long i = 0; i < size / 2; i++) gradient[i] = load(outer + i);
    }
};

// Where the four pixels of a pooling block start in a band, for some of its channels.
struct Block {
    long corner[4];
    Block(Shape shape, long x, long c) {
        for (long i = 0; i < 4; i++) corner[i] = i / 2 * shape.row() + (2 * x + i % 2) * shape.channels + c;
    }
};

// The gradient of each of the block's pixels. The first maximum gets the gradient of the block, as in torch.
inline void spread(const float* normalized, const Block& block, Lanes gradient, Lanes* result) {
    const Lanes zero = {};
    Lanes value[4];
    for (long i = 0; i < 4; i++) value[i] = lanes(normalized + block.corner[i]);
    const Lanes upper = value[0] > value[1] ? value[0] : value[1];
    const Lanes lower = value[2] > value[3] ? value[2] : value[3];
    const Lanes passed = (upper > lower ? upper : lower) > zero ? gradient : zero;
    const Lanes in_upper = upper >= lower ? passed : zero, in_lower = passed - in_upper;
    result[0] = value[0] >= value[1] ? in_upper : zero;
    result[1] = in_upper - result[0];
    result[2] = value[2] >= value[3] ? in_lower : zero;
    result[3] = in_lower - result[2];
}

template <class T>
void norm_backward(Shape shape, const T* inputs, const T* gradient, float* saved_values, T* input_gradient,
                   float* weight_gradient, float* bias_gradient, int pools, int threads) {
    const long channels = shape.channels, size = shape.row(), rows = pools ? 2 : 1;
    const long bands = shape.height / rows, gradient_size = size / rows;
    const Saved saved(saved_values, channels);
    const Row mean = repeat(saved.mean, shape), gain = repeat(saved.gain, shape), shift = repeat(saved.bias, shape);

    // Sums of the gradient, and of the gradient times x - mean, over each image: (images, 2, channels).
    Row sums(shape.images * 2 * channels);
#pragma omp parallel num_threads(threads)
    {
        Band band_values(shape);
        Row sum(size + LANES), products(size + LANES);
#pragma omp for
        for (long image = 0; image < shape.images; image++) {
            std::fill(sum.begin(), sum.end(), 0.0f);
            std::fill(products.begin(), products.end(), 0.0f);
            for (long band = image * bands; band < (image + 1) * bands; band++) {
                const T *values = inputs + band * rows * size, *outer = gradient + band * gradient_size;
                if (!pools) {
#pragma omp simd
                    for (long i = 0; i < size; i++) {
                        const float centred = load(values + i) - mean[i], passed = load(outer + i);
                        const float inner = centred * gain[i] + shift[i] > 0 ? passed : 0;
                        sum[i] += inner;
                        products[i] += inner * centred;
                    }
                    continue;
                }
                band_values.set(values, outer, mean, gain, shift, shape);
                for (long x = 0; x < shape.width / 2; x++) {
                    for (long c = 0; c < channels; c += LANES) {
                        const Block block(shape, x, c);
                        const Lanes passed = lanes(&band_values.gradient[x * channels + c]);
                        Lanes inner[4], product = lanes(&products[c]);
                        spread(band_values.normalized.data(), block, passed, inner);
                        put(&sum[c], lanes(&sum[c]) + ((inner[0] + inner[1]) + (inner[2] + inner[3])));
                        for (long i = 0; i < 4; i++) product += inner[i] * lanes(&band_values.centred[block.corner[i]]);
                        put(&products[c], product);
                    }
                }
            }
            float* target = sums.data() + image * 2 * channels;
            const long used = pools ? channels : size;
            add_to_channels(sum.data(), used, channels, target);
            add_to_channels(products.data(), used, channels, target + channels);
        }
    }
    const std::vector<double> totals = total(sums, 2 * channels);
    const double count = double(shape.images) * shape.height * shape.width;

    // input gradient = gain * (gradient - bias_gradient / count - scale * (x - mean) * weight_gradient / count)
    //                = gain * gradient + slope * (x - mean) + constant
    Row slopes(channels), constants(channels);
    for (long c = 0; c < channels; c++) {
        const double weight = totals[channels + c] * saved.scale[c];
        bias_gradient[c] = float(totals[c]);
        weight_gradient[c] = float(weight);
        slopes[c] = float(-saved.gain[c] * weight * saved.scale[c] / count);
        constants[c] = float(-saved.gain[c] * totals[c] / count);
    }
    const Row slope = repeat(slopes.data(), shape), constant = repeat(constants.data(), shape);
    Row block_gain(channels + LANES);  // zero beyond the channels
    std::copy_n(saved.gain, channels, block_gain.begin());
#pragma omp parallel num_threads(threads)
    {
        Band band_values(shape);
        Row result(2 * size + LANES);
#pragma omp for
        for (long band = 0; band < shape.images * bands; band++) {
            const T *values = inputs + band * rows * size, *outer = gradient + band * gradient_size;
            T* target = input_gradient + band * rows * size;
            if (!pools) {
#pragma omp simd
                for (long i = 0; i < size; i++) {
                    const float centred = load(values + i) - mean[i], passed = load(outer + i);
                    const float inner = centred * gain[i] + shift[i] > 0 ? passed : 0;
                    store(target + i, gain[i] * inner + (slope[i] * centred + constant[i]));
                }
                continue;
            }
            band_values.set(values, outer, mean, gain, shift, shape);
            for (long y = 0; y < 2; y++) {
#pragma omp simd
                for (long i = 0; i < size; i++) {
                    result[y * size + i] = slope[i] * band_values.centred[y * size + i] + constant[i];
                }
            }
            for (long x = 0; x < shape.width / 2; x++) {
                for (long c = 0; c < channels; c += LANES) {
                    const Block block(shape, x, c);
                    const Lanes passed = lanes(&band_values.gradient[x * channels + c]) * lanes(&block_gain[c]);
                    Lanes inner[4];
                    spread(band_values.normalized.data(), block, passed, inner);
                    for (long i = 0; i < 4; i++) {  // one after the other: they overlap where channels are padded
                        float* pixel = &result[block.corner[i]];
                        put(pixel, lanes(pixel) + inner[i]);
                    }
                }
            }
#pragma omp simd
            for (long i = 0; i < 2 * size; i++) store(target + i, result[i]);
        }
    }
}

}  // namespace

// What Python calls, by address: a C function cannot be a template.
extern "C" {
void *norm_forward_float32 = (void*)norm_forward<float>, *norm_forward_bfloat16 = (void*)norm_forward<bfloat16>;
void *norm_backward_float32 = (void*)norm_backward<float>, *norm_backward_bfloat16 = (void*)norm_backward<bfloat16>;
}
