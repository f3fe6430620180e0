"""Students on the way to devices and people: ONNX, label files, a page in the browser."""
