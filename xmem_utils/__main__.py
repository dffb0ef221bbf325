"""`python -m xmem_utils`: see `cli`."""

from xmem_utils.cli import main

if __name__ == "__main__":
    main()
