/* $name: recognises handwritten digits.
 *
 * $comment
 * Constants: $weight_bytes bytes (weights, multipliers, biases), and $layer_bytes for the table of layers.
 * Memory: $activation_bytes bytes of activations, all static, besides the image; a stack of $stack bytes.
 * Multiply-adds: $macs.
 *
 *     #include "$name.h"
 *
 *     static uint8_t image[28 * 28];     row by row, 0 for the black background to 255 for white ink, as in MNIST
 *     ...
 *     int digit = ${name}_predict(image);  0 to 9
 *
 * C99 with integers of 8 to 64 bits: no floating point, no allocation; of libraries only memset and,
 * $library, the compiler's own (libgcc).
 * One image at a time: the functions share static memory, so two threads or interrupts must not call them at once.
 */
#ifndef ${macro}_H
#define ${macro}_H

#include <stdint.h>

#ifdef __FLASH /* AVR: constants stay in flash, which has addresses of its own */
#define IN_FLASH __flash
#else
#define IN_FLASH
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The digit in the image. */
int ${name}_predict(const uint8_t image[784]);

/* The ten logits; the largest is the digit's. In units of $logit_scale they are those of the float network. */
void ${name}_logits(const uint8_t image[784], int32_t logits[10]);

/* The image of a drawing (drawing.c), as on a touch screen: ink, row by row, 0 (none) to 255. The digit must be higher
 * or wider than 20 pixels; lines are best a tenth of its height. 0: there is no ink. Uses 900 bytes of stack. */
int drawing_to_image(const uint8_t *drawing, int width, int height, uint8_t image[784]);

#ifdef __cplusplus
}
#endif

#endif
