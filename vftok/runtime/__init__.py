"""The machine: files, locks, processes, devices, memory."""
