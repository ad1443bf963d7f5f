"""The machine: devices, files, signals."""
