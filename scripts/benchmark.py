"""Compare methods over seeds; the same as `hf-segkd benchmark`.

python scripts/benchmark.py RECIPES --methods baseline kd --output_dir OUT
"""

from hf_segkd.commands.benchmark import main

if __name__ == "__main__":
    main()
