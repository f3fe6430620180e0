"""Segment images; the same as `hf-segkd predict`.

python scripts/predict.py MODEL photos/ --output_dir OUT
"""

from hf_segkd.commands.predict import main

if __name__ == "__main__":
    main()
