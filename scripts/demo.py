"""Show models on a page in the browser; the same as `hf-segkd demo`.

python scripts/demo.py MODEL
"""

from hf_segkd.commands.demo import main

if __name__ == "__main__":
    main()
