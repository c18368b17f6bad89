"""Pictures: files, the kinds Python callers hold them in, alpha, colour, tiles and resizing.

Inside, a picture is a float32 tensor `(1, 3, H, W)` in [0, 1], RGB. Nothing here knows a network.
"""
