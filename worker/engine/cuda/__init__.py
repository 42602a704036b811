"""What an elastic rank does differently on a CUDA device."""
