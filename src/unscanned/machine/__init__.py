"""What the process runs on: device, memory, threads, precision, versions."""
