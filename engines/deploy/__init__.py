"""The deploy bundle: all that a Jetson needs to build a preset's engines and to draw with them, without torch.

`bundle.write_bundle` makes it here; `device/` is the part that runs there.
"""
