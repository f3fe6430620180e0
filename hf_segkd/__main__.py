"""`python -m hf_segkd COMMAND`."""

from hf_segkd.commands import main

if __name__ == "__main__":
    main()
