"""What leaves the house: folders to share with a model card, ONNX files."""
