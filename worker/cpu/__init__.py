"""Import shims that SGLang 0.5.23 needs without a GPU; ``eep_cpu.pth`` has ``boot`` install them."""
