"""From a diffusers pipeline to graphs without weights, calibration samples and 16-bit references.

`source` opens and checks the pipeline's directory, `components` says which of its modules become graphs, `graph`
exports one of them with weights by reference, `check` compares it with torch, `calibrate` records what the linears
see, `references` stores what the 16-bit pipeline draws. A model family is one file in `families/`.
"""
