"""Plot pixel features; the same as `hf-segkd features`.

python scripts/features.py MODEL --dataset camvid --output OUT.png
"""

from hf_segkd.commands.features import main

if __name__ == "__main__":
    main()
