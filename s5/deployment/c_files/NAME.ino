// Prints PASS or FAIL, then the digit in each image that arrives as 784 bytes: 0 (background) to 255 (ink), row by row.
#include "$name.h"

extern "C" int ${name}_check(uint8_t *image);
static uint8_t image[784];

void setup() {
  Serial.begin(115200);
  delay(2000);
  Serial.println(${name}_check(image) ? "FAIL" : "PASS");
}

void loop() {
  if (Serial.readBytes((char *)image, sizeof image) == sizeof image)
    Serial.println(${name}_predict(image));
}
