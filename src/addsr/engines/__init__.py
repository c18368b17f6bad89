"""Running a network on a device: choice of device and type, memory, noise, one tile."""
