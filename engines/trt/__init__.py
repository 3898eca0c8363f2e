"""TensorRT engines of an artifact: built, checked, found again. Importing it needs neither TensorRT nor torch."""
