"""`python -m octavo`: the same as the `octavo` command."""

from octavo.server.cli import main

if __name__ == "__main__":
    main()
