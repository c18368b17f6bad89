"""Noise schedule and samplers; they take any callable model and import nothing of ours."""
