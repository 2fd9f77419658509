/* From a drawing, as on a touch screen, to an image as in MNIST. */
#ifndef DRAWING_H
#define DRAWING_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* `drawing`: ink, row by row, 0 (none) to 255. The digit must be higher or wider than 20 pixels, and its lines are best
 * a tenth of its height. Returns 0 if there is no ink. Uses 900 bytes of stack. */
int drawing_to_image(const uint8_t *drawing, int width, int height, uint8_t image[784]);

#ifdef __cplusplus
}
#endif

#endif
