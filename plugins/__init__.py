"""Device code: the ops that neither TensorRT nor ONNX has, with their contracts. Imports nothing else of the project."""
