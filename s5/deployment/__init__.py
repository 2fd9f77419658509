"""A trained network elsewhere: the web page, ONNX, C."""
