"""Graph passes: from the 16-bit graph to the portable 4-bit form, and the solver that they are fed by.

Each module holds one pass; `presets` lists them in order. Passes rewire the graph and hold no weights.
"""
