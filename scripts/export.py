"""Export a student to ONNX; the same as `hf-segkd export`.

python scripts/export.py MODEL --output_dir OUT
"""

from hf_segkd.commands.export import main

if __name__ == "__main__":
    main()
