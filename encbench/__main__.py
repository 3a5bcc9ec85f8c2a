"""``python -m encbench``: the same as the ``encbench`` command."""

from .cli import main

if __name__ == "__main__":
    main()
