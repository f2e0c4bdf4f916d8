"""What jaxpool claims, measured: `make bench` prints it, README records it. Nothing here asserts."""
