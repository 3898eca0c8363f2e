"""What a bundle's run.py is made of: numpy, tensorrt, tokenizers and Pillow, and files of ours that need no more."""
