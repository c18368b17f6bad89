"""What a StableSR model does inside, timestep by timestep: figures, a chart, and their command."""
