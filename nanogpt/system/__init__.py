"""The machine: devices, files, signals, CPU cores."""
