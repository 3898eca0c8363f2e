"""The ops that neither TensorRT nor ONNX has: contracts and device code. Imports nothing else of ours."""
