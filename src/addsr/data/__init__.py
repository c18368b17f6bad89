"""Training pictures, synthetic degradation, and the pool of pairs that training draws from.

Pictures are float32 `(B, 3, H, W)` in [0, 1] at every border, uint8 `(N, 3, S, S)` where they are
kept. Random numbers come only from a passed `torch.Generator` or seed.
"""
