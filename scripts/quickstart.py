"""The whole library in a few minutes; the same as `hf-segkd quickstart`.

python scripts/quickstart.py --output_dir runs/demo
"""

from hf_segkd.commands.quickstart import main

if __name__ == "__main__":
    main()
