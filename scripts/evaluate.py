"""Score segmentation models; the same as `hf-segkd evaluate`.

python scripts/evaluate.py MODEL --dataset camvid --data_dir CamVid --output_dir OUT
"""

from hf_segkd.commands.evaluate import main

if __name__ == "__main__":
    main()
