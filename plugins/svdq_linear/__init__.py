"""svdq::SvdqLinear, a linear layer with 4-bit weights, quantised activations and a 16-bit low-rank branch.

`spec` is the contract as data, `reference` its numpy oracle, `layout` the packing that the kernels read.
"""
