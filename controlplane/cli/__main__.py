"""``python -m controlplane.cli``."""

from controlplane.cli.main import main

if __name__ == "__main__":
    main()
